//! Servers that move, go and come back, and are told from uplinks that do.

mod lab;

use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use lab::traffic::{Dialer, Kind, TrafficServer, Transfer};
use lab::{
    AgentProgram, Direction, DnsServer, Lab, Namespace, SERVER_V4, SERVER_V6, ServerProgram,
    TARGET_V4, until,
};
use serde_json::Value;

/// How long anything may take that should happen soon.
const LIMIT: Duration = Duration::from_secs(30);
/// A server that was away for 30 s is tried again after 32 s, and has to answer steadily then.
const FAILBACK: Duration = Duration::from_secs(90);
/// Bytes of clear progress.
const SOME: u64 = 2_000_000;
/// The VPS's other address.
const MOVED_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// Has the server's port at this address swallow every packet, both ways.
fn cut(server: &Namespace, address: Ipv4Addr) {
    server.nft(&format!(
        "table ip cut {{
            chain in {{ type filter hook input priority 0; ip daddr {address} th dport 443 drop; }}
            chain out {{ type filter hook output priority 0; ip saddr {address} th sport 443 drop; }}
        }}"
    ));
}

fn mend(server: &Namespace) {
    server.nft("delete table ip cut");
}

fn endless(dialer: &Dialer) -> Transfer {
    let transfer = Transfer::download(dialer, Transfer::ENDLESS).expect("connect");
    transfer.wait_bytes(SOME, LIMIT);
    transfer
}

/// It goes on, and was neither reset nor altered.
#[track_caller]
fn assert_unharmed(transfer: &Transfer) {
    transfer.wait_bytes(transfer.report().bytes + SOME, LIMIT);
    assert!(!transfer.is_finished(), "the transfer was cut off");
    assert_eq!(transfer.report().corrupt_at, None);
}

fn server<'a>(status: &'a Value, name: &str) -> &'a Value {
    let servers = status["servers"].as_array().expect("a list");
    servers.iter().find(|server| server["name"] == name).expect("the server is listed")
}

#[test]
fn a_server_whose_name_stands_for_another_address_takes_its_session_along() {
    let lab = Lab::two_uplinks("server-moves");
    lab.server.ip("address add 198.51.100.2/24 dev eth0");
    let dns = DnsServer::start(&lab, SERVER_V4);
    let first = ServerProgram::start(&lab);
    let named = "config server 'vps'\n\toption address 'vps.example.net'\n";
    let mut agent = AgentProgram::start_with(&lab, &first, named);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let before = endless(&dialer);

    // The default route, by which the router asks DNS, is dead as well.
    dns.set(Some(MOVED_V4.into()));
    cut(&lab.server, SERVER_V4);
    lab.uplink(0).blackhole(Direction::Both);
    agent.wait_status("the session has moved", |status| {
        let server = server(status, "vps");
        server["address_in_use"] == MOVED_V4.to_string() && server["state"] == "connected"
    });
    assert_eq!(dialer.seen_as().expect("connect"), IpAddr::from(SERVER_V4), "tunnelled");
    let after = endless(&dialer);
    mend(&lab.server);
    assert_unharmed(&before);
    lab.uplink(0).restore();
    agent.wait_status("both uplinks carry it", |status| status["state"] == "bonding");

    dns.set(None);
    agent.reload();
    until("the name stands for nothing", LIMIT, || {
        agent.process().output().contains("its last addresses are kept").then_some(())
    });
    assert_eq!(dialer.seen_as().expect("connect"), IpAddr::from(SERVER_V4), "tunnelled");
    assert_unharmed(&after);
    assert_unharmed(&before);
}

#[test]
fn connections_over_ipv6_go_on_when_the_session_moves_to_ipv4() {
    let lab = Lab::two_uplinks("other-family");
    let dns = DnsServer::start(&lab, SERVER_V6);
    let first = ServerProgram::start(&lab);
    let named = "config server 'vps'\n\toption address 'vps.example.net'\n";
    let mut agent = AgentProgram::start_with(&lab, &first, named);
    let is_at = |status: &Value, address: IpAddr| {
        server(status, "vps")["address_in_use"] == address.to_string()
            && server(status, "vps")["state"] == "connected"
            && status["state"] == "bonding"
    };
    agent.wait_status("all is over IPv6", |status| is_at(status, SERVER_V6.into()));
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let over_v6 = endless(&dialer);

    dns.set(Some(SERVER_V4.into()));
    agent.reload();
    agent.wait_status("new ones are over IPv4", |status| is_at(status, SERVER_V4.into()));
    let over_v4 = endless(&dialer);
    let on_both = |status: &Value| {
        let connections = status["connections"]["top"].as_array().expect("a list");
        connections.len() == 2 && connections.iter().all(|connection| connection["subflows"] == 2)
    };
    agent.wait_status("each has both uplinks", on_both);
    // Only a subflow on the other uplink keeps either alive.
    lab.uplink(0).blackhole(Direction::Both);
    assert_unharmed(&over_v6);
    assert_unharmed(&over_v4);
    lab.uplink(0).restore();
    agent.wait_status("each has both uplinks again", on_both);
    assert_unharmed(&over_v6);
}

#[test]
fn the_second_server_takes_over_and_the_first_comes_back() {
    let lab = Lab::two_uplinks("second-server");
    let (first, second) = (ServerProgram::start(&lab), ServerProgram::start_second(&lab));
    let mut agent = AgentProgram::paired(&lab, &first, "");
    agent.pair(&second, "second");
    agent.restart();
    let status = agent.wait_ready();
    assert_eq!(server(&status, "second")["reason"], "stands by for vps");
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let through_first = IpAddr::from(SERVER_V4);
    let at_first = endless(&dialer);

    cut(&lab.server, SERVER_V4);
    agent.wait_status("the second is in use", |status| {
        server(status, "second")["state"] == "connected" && status["state"] == "bonding"
    });
    let seen = dialer.seen_as().expect("connect");
    assert!(seen != through_first && seen.to_string().ends_with(".254"), "{seen}");
    let at_second = endless(&dialer);
    let status = agent.status().expect("a status");
    assert_eq!(server(&status, "vps")["state"], "standby");
    let reason = server(&status, "vps")["reason"].as_str().expect("a reason");
    assert!(reason.contains("it answers on no uplink"), "{reason}");

    mend(&lab.server);
    assert_unharmed(&at_first);
    until("the first is in use again", FAILBACK, || {
        let status = agent.status()?;
        let back = server(&status, "vps")["state"] == "connected" && status["state"] == "bonding";
        back.then_some(())
    });
    assert_eq!(dialer.seen_as().expect("connect"), through_first);
    assert_unharmed(&at_second);
    assert_unharmed(&at_first);
}

/// A web server on the target's side that has nothing to say.
fn serve_204(lab: &Lab) {
    let listener = lab.target.enter(|| TcpListener::bind((TARGET_V4, 8080))).expect("listen");
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // Who does not listen has asked in vain.
            let _ = answer_204(&client);
        }
    });
}

fn answer_204(mut client: &TcpStream) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new(client).read_line(&mut line)?;
    client.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
}

#[test]
fn a_lost_server_is_told_from_a_dead_uplink() {
    let lab = Lab::two_uplinks("second-opinion");
    serve_204(&lab);
    let server = ServerProgram::start(&lab);
    let check = format!("config agent 'agent'\n\toption check_url 'http://{TARGET_V4}:8080/204'\n");
    let mut agent = AgentProgram::start_with(&lab, &server, &check);
    let reason = |status: &Value, list: &str, at: usize| {
        status[list][at]["reason"].as_str().unwrap_or_default().to_owned()
    };

    let start = agent.process().output().len();
    lab.uplink(0).blackhole(Direction::Both);
    agent.wait_status("the uplink is dead", |status| {
        let reason = reason(status, "uplinks", 0);
        status["state"] == "single"
            && reason.contains("probes unanswered")
            && reason.contains("nothing works over it")
    });
    cut(&lab.server, SERVER_V4);
    agent.wait_status("the server is lost", |status| {
        let reasons = (reason(status, "uplinks", 1), reason(status, "servers", 0));
        status["state"] == "direct"
            && reasons.0.ends_with("the server answers on no uplink; the Internet works over it")
            && reasons.1.ends_with("; the Internet works over wanb")
    });
    until("the check tells them apart as well", LIMIT, || {
        let (_, report) = agent.check();
        let reasons = [0, 1].map(|at| report["uplinks"][at]["reason"].clone());
        (reasons == ["unanswered", "server_down"]).then_some(())
    });
    let output = agent.process().output();
    for text in ["nothing works over it", "the Internet works over it"] {
        assert_eq!(output[start..].matches(text).count(), 1, "told once: {output}");
    }
    mend(&lab.server);
    lab.uplink(0).restore();
    let status = agent.wait_ready();
    assert_eq!(reason(&status, "servers", 0), "");
    assert_eq!(reason(&status, "uplinks", 1), "probes answered");
}
