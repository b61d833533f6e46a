//! UDP through the tunnel: a call goes on while an uplink dies, and goes where the server may send it.

mod attacker;
mod lab;

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use attacker::{Attacker, SERVER};
use lab::forwards::udp_section;
use lab::traffic::{UdpEcho, UdpFlow};
use lab::{
    AgentProgram, Direction, LAN_CLIENT_V4, LAN_CLIENT_V6, Lab, SERVER_V4, SERVER_V6,
    ServerProgram, TARGET_V4, TARGET_V6, two_of_three, until,
};
use mptcp_bond::tunnel::datagram::{Datagram, Flow};

const SECOND: Duration = Duration::from_secs(1);
/// How long anything may take that should happen soon.
const LIMIT: Duration = Duration::from_secs(10);
/// The longest pause of a call whose uplink dies, where each packet goes over one uplink.
const PAUSE: Duration = Duration::from_millis(500);
/// The port of calls.
const CALL: u16 = 5060;
const ONCE: &str = "config agent 'agent'\n\tlist udp_ports '5060-5061'\n";
const TWICE: &str =
    "config agent 'agent'\n\tlist udp_ports '5060-5061'\n\toption udp_duplicate '1'\n";

fn targets() -> [SocketAddr; 2] {
    [TARGET_V4.into(), TARGET_V6.into()].map(|address: IpAddr| SocketAddr::new(address, CALL))
}

/// Whether the other side sees a call come from the server.
fn is_tunnelled(flow: &UdpFlow) -> bool {
    [SERVER_V4.into(), SERVER_V6.into()].contains(&flow.seen_as())
}

#[test]
fn a_call_over_two_uplinks_loses_nothing_when_one_of_them_is_cut() {
    let lab = Lab::two_uplinks("udp-twice");
    // Each session lasts for three seconds.
    let mut server = ServerProgram::start_with(&lab, "session_lifetime = 4\n");
    let mut agent = AgentProgram::start_with(&lab, &server, TWICE);
    let _echo = UdpEcho::start(&lab.target, CALL);
    let calls = targets().map(|target| UdpFlow::start(&lab.lan, target));
    for call in &calls {
        assert!(is_tunnelled(call), "seen as {}", call.seen_as());
    }
    lose_nothing(&lab, &mut agent, calls);
    let duplicates = |status: &serde_json::Value| {
        status["datagrams"]["duplicates_removed_total"].as_u64().expect("a count") > 100
    };
    let status = agent.wait_status("duplicates are counted", duplicates);
    assert_eq!(status["datagrams"]["flows"], 2);
    server.wait_status("duplicates are counted", duplicates);
    let table = agent.status_table();
    assert!(table.contains("UDP  2 flows; "), "{table}");
}

/// An agent that has the server's ports 5060 and 5061 lead to the LAN, IPv4 and IPv6.
fn start_forwarding<'lab>(
    lab: &'lab Lab,
    server: &mut ServerProgram,
    uci: &str,
) -> AgentProgram<'lab> {
    let sections =
        [udp_section(CALL, (LAN_CLIENT_V4, CALL)), udp_section(CALL + 1, (LAN_CLIENT_V6, CALL))];
    let mut agent = AgentProgram::paired(lab, server, &(uci.to_owned() + &sections.concat()));
    server.allow_forwards(&[CALL, CALL + 1]);
    agent.restart();
    agent.wait_forwards("forwarded", &[CALL, CALL + 1]);
    agent
}

#[test]
fn a_call_from_outside_over_two_uplinks_loses_nothing_when_one_of_them_is_cut() {
    let lab = Lab::two_uplinks("udp-in-twice");
    // Each session lasts for three seconds.
    let mut server = ServerProgram::start_with(&lab, "session_lifetime = 4\n");
    let twice = "config agent 'agent'\n\toption udp_duplicate '1'\n";
    let mut agent = start_forwarding(&lab, &mut server, twice);
    let _echo = UdpEcho::start(&lab.lan, CALL);
    let ports: [SocketAddr; 2] = [(SERVER_V4, CALL).into(), (SERVER_V6, CALL + 1).into()];
    let calls = ports.map(|port| UdpFlow::start(&lab.target, port));
    lose_nothing(&lab, &mut agent, calls);
}

#[test]
fn a_call_from_outside_over_one_uplink_pauses_briefly_when_that_is_cut() {
    let lab = Lab::two_uplinks("udp-in-once");
    let mut server = ServerProgram::start(&lab);
    let mut agent = start_forwarding(&lab, &mut server, "");
    let _echo = UdpEcho::start(&lab.lan, CALL);
    let call = UdpFlow::start(&lab.target, (SERVER_V6, CALL).into());
    pauses_briefly(&lab, &mut agent, &call);
}

/// Cuts one uplink after the other.
#[track_caller]
fn lose_nothing(lab: &Lab, agent: &mut AgentProgram, calls: [UdpFlow; 2]) {
    for index in [0, 1] {
        sleep(SECOND);
        lab.uplink(index).blackhole(Direction::Both);
        agent
            .wait_status("an uplink is down", |status| status["uplinks"][index]["state"] == "down");
        lab.uplink(index).restore();
        agent.wait_ready();
    }
    for call in calls {
        let fates = call.end();
        println!("{fates:?}");
        assert!(fates.sent > 100, "{fates:?}");
        assert_eq!((fates.lost, fates.repeated), (0, 0), "{fates:?}");
    }
}

/// The uplink that a call goes over, after it has for two seconds.
fn carrier(lab: &Lab) -> usize {
    let totals = || [0, 1].map(|index| lab.uplink(index).bytes()).map(|(down, up)| down + up);
    sleep(SECOND);
    let before = totals();
    sleep(SECOND);
    let [first, second] = totals();
    usize::from(second - before[1] > first - before[0])
}

#[test]
fn a_call_over_one_uplink_pauses_briefly_when_that_is_cut() {
    let lab = Lab::two_uplinks("udp-once");
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start_with(&lab, &server, ONCE);
    let _echo = UdpEcho::start(&lab.target, CALL);
    let call = UdpFlow::start(&lab.lan, targets()[0]);
    assert!(is_tunnelled(&call), "seen as {}", call.seen_as());
    pauses_briefly(&lab, &mut agent, &call);
}

/// Cuts the uplink that a call goes over, twice.
#[track_caller]
fn pauses_briefly(lab: &Lab, agent: &mut AgentProgram, call: &UdpFlow) {
    for _ in 0..2 {
        let cut = two_of_three(|| {
            let index = carrier(lab);
            let cut = Instant::now();
            lab.uplink(index).blackhole(Direction::Both);
            agent.wait_status("an uplink is down", |status| {
                status["uplinks"][index]["state"] == "down"
            });
            sleep(SECOND);
            let pause = call.longest_pause_since(cut);
            println!("uplink {index} cut: a pause of {pause:.0?}");
            lab.uplink(index).restore();
            agent.wait_ready();
            if pause < PAUSE { Ok(()) } else { Err(pause) }
        });
        assert_eq!(cut, Ok(()));
    }
}

#[test]
fn only_what_may_be_carried_is_and_calls_outlive_the_server() {
    let lab = Lab::two_uplinks("udp-limits");
    let denied = SocketAddr::new(TARGET_V4.into(), CALL + 1);
    let mut server = ServerProgram::start(&lab);
    let config = fs::read_to_string(server.config()).expect("read the configuration");
    let config = config.replacen("deny = []", &format!("deny = [\"port {}\"]", denied.port()), 1);
    fs::write(server.config(), config).expect("write the configuration");
    server.stop();
    server.restart();
    let mut agent = AgentProgram::start_with(&lab, &server, ONCE);
    let _echoes = [CALL, CALL + 1, CALL + 2].map(|port| UdpEcho::start(&lab.target, port));

    let unlisted = SocketAddr::new(TARGET_V4.into(), CALL + 2);
    assert!(!is_tunnelled(&UdpFlow::start(&lab.lan, unlisted)), "a port that is not listed");
    let socket = lab.lan.enter(|| UdpSocket::bind((LAN_CLIENT_V4, 0)).expect("bind"));
    socket.set_read_timeout(Some(SECOND)).expect("set a limit");
    for _ in 0..3 {
        socket.send_to(b"asks", denied).expect("send");
    }
    server.wait_status("it is denied", |status| {
        status["refusals"]["denied by policy"].as_u64() >= Some(3)
    });
    let answer = socket.recv(&mut [0; 100]);
    assert!(answer.is_err(), "an answer from a target that is denied: {answer:?}");

    // Too large for a packet, and carried all the same.
    socket.send_to(&[0; 4000], targets()[0]).expect("send");
    let answer = socket.recv_from(&mut [0; 100]);
    assert_eq!(answer.expect("an answer to a large datagram").1, targets()[0]);

    let call = UdpFlow::start(&lab.lan, targets()[0]);
    assert!(is_tunnelled(&call));
    server.kill();
    until("the call goes on untunnelled", LIMIT, || (!is_tunnelled(&call)).then_some(()));
    server.restart();
    agent.wait_ready();
    until("the call is tunnelled again", LIMIT, || is_tunnelled(&call).then_some(()));
    agent.stop();
    until("the call goes on without the agent", LIMIT, || (!is_tunnelled(&call)).then_some(()));
}

#[test]
fn no_call_leaves_untunnelled_while_the_server_is_lost_and_that_is_blocked() {
    let lab = Lab::two_uplinks("udp-block");
    let mut server = ServerProgram::start(&lab);
    let block = format!("{ONCE}\toption on_server_loss 'block'\n");
    let mut agent = AgentProgram::start_with(&lab, &server, &block);
    let _echo = UdpEcho::start(&lab.target, CALL);
    let calls = targets().map(|target| UdpFlow::start(&lab.lan, target));
    let begun = Instant::now();
    server.kill();
    agent.wait_status("the server is lost", |status| {
        status["events"].to_string().contains("server lost")
    });
    // It is lost after three seconds; from then on they would be answered.
    until("the calls stay silent", LIMIT, || {
        calls.iter().all(|call| call.longest_pause_since(begun) > 5 * SECOND).then_some(())
    });
    server.restart();
    agent.wait_ready();
    for target in targets() {
        assert!(is_tunnelled(&UdpFlow::start(&lab.lan, target)), "{target}");
    }
    assert!(calls.iter().all(is_tunnelled));
}

#[test]
fn the_server_sends_nothing_to_targets_that_its_policy_denies() {
    let lab = Lab::two_uplinks("udp-policy");
    let mut server = ServerProgram::start(&lab);
    let _echo = UdpEcho::start(&lab.target, CALL);
    let attacker = Attacker::new(&lab.target, &server.invite("evil"));
    let control = attacker.connect_control(Some(attacker.token.clone())).expect("a client");
    let mut session = control.session();
    let socket = lab.target.enter(|| UdpSocket::bind("0.0.0.0:0").expect("bind"));
    socket.connect(SERVER).expect("connect");
    socket.set_read_timeout(Some(SECOND)).expect("set a limit");
    let mut seal = |target: SocketAddr, forwarded: bool| {
        let host = if target.is_ipv4() { "192.168.1.2:5062" } else { "[fd00::2]:5062" };
        let flow = Some(Flow { host: host.parse().expect("an address"), target });
        let datagram = Datagram { flow, forwarded, twice: false, payload: b"0123" };
        session.datagrams().expect("keys").seal(&datagram).expect("seal")
    };
    let denied = [
        "127.0.0.1:53",
        "169.254.169.254:80",
        "192.168.1.1:53",
        "[::1]:53",
        "[fe80::1]:53",
        "[64:ff9b::7f00:1]:53",
        "[2002:7f00:1::]:53",
    ];
    let own = [SocketAddr::new(SERVER_V4.into(), 443), SocketAddr::new(SERVER_V6.into(), 443)];
    let denied = denied.map(|text| text.parse().expect("an address"));
    for target in denied.iter().chain(&own) {
        socket.send(&seal(*target, false)).expect("send");
    }
    // What claims to answer somebody who has asked nothing goes nowhere.
    socket.send(&seal(targets()[0], true)).expect("send");
    let count = (denied.len() + own.len()) as u64;
    let status = server
        .wait_status("all are denied", |status| status["refusals"]["denied by policy"] == count);
    assert_eq!(status["datagrams"]["up_total"], 0, "{status:#}");

    // What is allowed is answered, once however often it is replayed.
    let allowed = seal(targets()[0], false);
    for _ in 0..3 {
        socket.send(&allowed).expect("send");
    }
    let mut answer = [0; 2048];
    assert!(socket.recv(&mut answer).is_ok(), "an answer");
    let more = socket.recv(&mut answer);
    assert!(more.is_err(), "{more:?}");
    let status = server.wait_status("replays are removed", |status| {
        status["datagrams"]["duplicates_removed_total"] == 2
    });
    assert_eq!(status["datagrams"]["up_total"], 1, "{status:#}");
}
