//! The server goes and comes back, and the internet does.

use std::io;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::lab::traffic::{Kind, TrafficServer, Transfer};
use super::lab::{AgentProgram, Lab, SERVER_V4, ServerProgram, TARGET_V4, joining_uploads};
use super::{assert_goes_on, assert_intact};

/// How long a connection may take that should come about, or be refused, at once.
const AT_ONCE: Duration = Duration::from_secs(1);
/// TCP's own retransmissions come 6.2 s and 12.6 s after the beginning of an outage.
const OUTAGE: Duration = Duration::from_secs(7);
/// How long after an outage data has to flow again.
const RESUMED: Duration = Duration::from_secs(3);

#[test]
fn without_its_server_connections_go_out_directly() {
    let lab = Lab::two_uplinks("loss-direct");
    let mut server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let through_the_server = IpAddr::from(SERVER_V4);
    assert_eq!(dialer.seen_as().expect("connect"), through_the_server);
    for kill in [true, false] {
        if kill {
            server.kill();
        } else {
            server.stop();
        }
        // Not yet noticed, and yet no connection fails.
        let unnoticed = dialer.seen_as().expect("connect");
        assert_ne!(unnoticed, through_the_server);
        agent.wait_status("the loss is noticed", |status| status["state"] == "direct");
        let begun = Instant::now();
        assert_ne!(dialer.seen_as().expect("connect"), through_the_server);
        assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
        let direct = Transfer::download(&dialer, Transfer::ENDLESS).expect("connect");
        assert_goes_on(&direct);

        server.restart();
        agent.wait_status("the tunnel is back", |status| status["state"] == "bonding");
        assert_eq!(dialer.seen_as().expect("connect"), through_the_server);
        assert_goes_on(&direct);
        assert_intact(direct);
    }
}

#[test]
fn without_its_server_connections_are_refused() {
    let lab = Lab::two_uplinks("loss-block");
    let mut server = ServerProgram::start(&lab);
    let block = "config agent 'agent'\n\toption on_server_loss 'block'\n";
    let mut agent = AgentProgram::start_with(&lab, &server, block);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let refused = || {
        let begun = Instant::now();
        let error = dialer.seen_as().expect_err("the server is lost");
        let kind = error.kind();
        let refusal =
            matches!(kind, io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset);
        assert!(refusal, "{error}");
        assert!(begun.elapsed() < 3 * AT_ONCE, "{:?}", begun.elapsed());
    };
    for kill in [true, false] {
        if kill {
            server.kill();
        } else {
            server.stop();
        }
        refused();
        agent.wait_status("the loss is noticed", |status| status["state"] == "blocked");
        refused();
        server.restart();
        agent.wait_status("the tunnel is back", |status| status["state"] == "bonding");
        assert_eq!(dialer.seen_as().expect("connect"), IpAddr::from(SERVER_V4));
    }
}

#[test]
fn streams_survive_a_silent_server_and_new_connections_do_not_wait_for_it() {
    joining_uploads(Lab::two_distant_uplinks("outage"), survive_silence);
}

fn survive_silence(lab: &Lab) {
    let server = ServerProgram::start(lab);
    let mut agent = AgentProgram::start(lab, &server);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let down = Transfer::download(&dialer, Transfer::ENDLESS).expect("connect");
    let up = Transfer::upload(&target, &dialer, Transfer::ENDLESS).expect("connect");
    assert_goes_on(&down);
    assert_goes_on(&up);
    lab.cut_server();
    let begun = Instant::now();
    // Asked of a server that cannot answer, before anybody knows.
    assert_ne!(dialer.seen_as().expect("connect"), IpAddr::from(SERVER_V4));
    println!("a connection went out directly after {:?}", begun.elapsed());
    agent.wait_status("the loss is noticed", |status| status["state"] == "direct");
    sleep(OUTAGE.saturating_sub(begun.elapsed()));
    let bytes = (down.report().bytes, up.report().bytes);
    lab.restore_server();
    let begun = Instant::now();
    down.wait_bytes(bytes.0 + 1, RESUMED);
    up.wait_bytes(bytes.1 + 1, RESUMED);
    println!("data flows again after {:?}", begun.elapsed());
    agent.wait_ready();
    assert_eq!(dialer.seen_as().expect("connect"), IpAddr::from(SERVER_V4));
    for transfer in [&down, &up] {
        let before = [0, 1].map(|index| lab.uplink(index).bytes());
        assert_goes_on(transfer);
        assert_goes_on(transfer);
        let after = [0, 1].map(|index| lab.uplink(index).bytes());
        println!("{before:?} {after:?}");
    }
    assert_intact(down);
    assert_intact(up);
}
