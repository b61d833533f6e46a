//! What the clients of one server share: its streams, its uplink, and its end.

mod attacker;
mod lab;

use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use attacker::Attacker;
use attacker::crowd::Crowd;
use lab::traffic::Kind;
use lab::{AgentProgram, Lab, ServerProgram, TARGET_V4, until};
use mptcp_bond::config::keys::PrivateKey;
use mptcp_bond::tunnel::handshake::HandshakeError;
use mptcp_bond::tunnel::hello::Refusal;

/// How long anything may take that should happen soon.
const LIMIT: Duration = Duration::from_secs(10);
/// Routers that share the server's uplink.
const ROUTERS: usize = 10;
/// For how long shares settle, and are measured.
const MEASURED: [Duration; 2] = [Duration::from_secs(2); 2];
/// Where the target listens.
const PORT: u16 = 80;

/// Accepts the target's connections, and keeps them for as long as this program runs.
fn hold_connections(lab: &Lab) {
    let listener = lab.target.enter(|| Kind::Tcp.listen(PORT)).expect("listen at the target");
    thread::spawn(move || {
        let _held: Vec<TcpStream> = listener.incoming().flatten().collect();
    });
}

#[test]
fn a_full_server_says_so_and_so_does_one_that_stops() {
    let lab = Lab::two_uplinks("full");
    let mut server = ServerProgram::start_with(&lab, "streams = 1\n");
    let mut agent = AgentProgram::paired(&lab, &server, "");
    hold_connections(&lab);
    let first = Attacker::new(&lab.target, &server.invite("first"));
    let mut second = Attacker::new(&lab.target, &server.invite("second"));
    second.key = PrivateKey::from_bytes([0x55; 32]);

    let control = first.connect_control(Some(first.token.clone())).expect("it is invited");
    let stream = first.open_stream(&mut control.session(), (TARGET_V4, PORT).into());
    let refused = second.connect_control(Some(second.token.clone())).err();
    assert_eq!(refused, Some(HandshakeError::Refused(Refusal::Busy)));
    agent.launch();
    agent.wait_status("the agent says what to do", |status| {
        let reason = status["servers"][0]["reason"].as_str();
        reason.is_some_and(|why| why.contains("the server is full: raise its `limits.streams`"))
    });
    // Who has the stream is not cut off from it.
    let control_again = first.connect_control(None).expect("it has a stream");
    assert_eq!(control.wait_for_close(), Refusal::Replaced);

    drop(stream);
    agent.wait_ready();
    let control =
        until("there is room", LIMIT, || second.connect_control(Some(second.token.clone())).ok());
    server.stop();
    for control in [control_again, control] {
        assert_eq!(control.wait_for_close(), Refusal::ShuttingDown);
    }
}

#[test]
fn routers_have_equal_parts_whatever_one_of_them_does() {
    let lab = Lab::two_uplinks("shares");
    lab.shape_server(50);
    let server = ServerProgram::start_with(&lab, "rate = \"40Mbit\"\n");
    let crowd = Crowd::start(&lab, &server, ROUTERS, 2);
    let (alone, _) = crowd.measure(None, MEASURED);
    let hostile = crowd.join_hostile(&server, 40);
    let (beside, taken) = crowd.measure(Some(&hostile), MEASURED);
    for shares in [&alone, &beside] {
        println!("{:?}, {:.1} Mbit/s", shares.spread(), shares.total() / 1e6);
        let [least, _, most] = shares.spread();
        assert!(least > 0.75 && most < 1.25, "{:?}", shares.spread());
    }
    // By streams it would be half of all.
    let share = taken * ROUTERS as f64 / beside.total();
    assert!(share < 1.25, "{share}");
}
