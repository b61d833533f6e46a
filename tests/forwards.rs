//! Hosts on the LAN, reached from outside through ports of the server.

mod lab;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use lab::traffic::{Dialer, Kind, TrafficServer, Transfer};
use lab::{
    AgentProgram, Direction, LAN_CLIENT_V4, LAN_CLIENT_V6, Lab, SERVER_V4, SERVER_V6,
    ServerProgram, SshSession, TARGET_V4, TARGET_V6, until,
};
use rustix::process::Signal;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(20);
const MB: u64 = 1_000_000;
/// The key of a client that is not there.
const OTHER: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE=";

/// A `config forward` section, named as its port.
fn section(port: u16, target: impl Into<SocketAddr>, more: &str) -> String {
    let target = target.into();
    format!(
        "config forward 'p{port}'\n\toption listen '{port}'\n\toption target '{target}'\n{more}\n"
    )
}

/// A server that lets its router have these ports, and another one 2223; an agent that wants those
/// of the sections.
fn start<'lab>(
    lab: &'lab Lab,
    mut server: ServerProgram<'lab>,
    allowed: &[u16],
    sections: &str,
) -> (ServerProgram<'lab>, AgentProgram<'lab>) {
    let mut agent = AgentProgram::paired(lab, &server, sections);
    allow(&mut server, allowed);
    agent.restart();
    (server, agent)
}

/// Lets the router have these ports and no others.
fn allow(server: &mut ServerProgram, ports: &[u16]) {
    let text = fs::read_to_string(server.config()).unwrap();
    let kept = text.lines().filter(|line| !line.starts_with("forwards"));
    let text: String = kept.map(|line| format!("{line}\n")).collect();
    let text = text.replace("name = \"other\"\n", "name = \"other\"\nforwards = [2223]\n");
    let name = "name = \"router\"\n";
    let text = text.replace(name, &format!("{name}forwards = {ports:?}\n"));
    fs::write(server.config(), text).unwrap();
    server.process().signal(Signal::HUP);
}

fn with_other_client(lab: &Lab) -> ServerProgram<'_> {
    let toml = format!("\n[[client]]\nname = \"other\"\npublic_key = \"{OTHER}\"\n");
    ServerProgram::start_with(lab, &toml)
}

fn forward(status: &Value, port: u16) -> &Value {
    let forwards = status["forwards"].as_array().expect("a list");
    forwards.iter().find(|it| it["port"] == port).expect("the port is listed")
}

/// Waits until the agent says this of these ports.
#[track_caller]
fn wait_state(agent: &mut AgentProgram, state: &str, ports: &[u16]) -> Value {
    agent.wait_status(&format!("{ports:?} {state}"), |status| {
        ports.iter().all(|port| forward(status, *port)["state"] == state)
    })
}

/// From outside, to a port of the server.
fn dialer(lab: &Lab, address: impl Into<SocketAddr>) -> Dialer {
    Dialer::new(&lab.target, Kind::Tcp, address.into())
}

/// How a connection ends that nobody serves.
fn outcome(lab: &Lab, port: u16) -> io::ErrorKind {
    let read = dialer(lab, (SERVER_V4, port)).connect().and_then(|mut stream| {
        stream.set_read_timeout(Some(LIMIT))?;
        stream.read(&mut [0])
    });
    read.expect_err("bytes or a clean end instead of an error").kind()
}

#[test]
fn ssh_and_http_stay_up_when_an_uplink_fails() {
    let lab = Lab::two_uplinks("forwards");
    let sections = [
        section(2222, (LAN_CLIENT_V4, 22), ""),
        section(8080, (LAN_CLIENT_V4, 80), ""),
        section(8081, (LAN_CLIENT_V6, 81), ""),
    ];
    let ports = [2222, 8080, 8081];
    let (_server, mut agent) = start(&lab, ServerProgram::start(&lab), &ports, &sections.concat());
    wait_state(&mut agent, "forwarded", &ports);

    let www = lab.work().join("www");
    fs::create_dir(&www).unwrap();
    let content: Vec<u8> = (0..12 * MB).map(|at| ((at * at) >> 7) as u8).collect();
    fs::write(www.join("file"), &content).unwrap();
    let mut http = Command::new("python3");
    http.args(["-I", "-m", "http.server", "--bind", "0.0.0.0", "80"]).current_dir(&www);
    let _http = lab.spawn(&lab.lan, "http", http);
    until("the web server listens", LIMIT, || {
        (!lab.lan.run("ss", &["-Htln", "sport = :80"]).is_empty()).then_some(())
    });
    let traffic = TrafficServer::start(&lab.lan, Kind::Tcp, 81);

    let session = SshSession::open(&lab, [&lab.lan, &lab.target], (SERVER_V4, 2222).into());
    // A target of either family, for a client of either.
    let fetched = lab.work().join("fetched");
    let mut curl = Command::new("curl");
    curl.args(["-sSg", "-o"]).arg(&fetched).arg(format!("http://[{SERVER_V6}]:8080/file"));
    let mut curl = lab.spawn(&lab.target, "curl", curl);
    let download = Transfer::download(&dialer(&lab, (SERVER_V4, 8081)), 12 * MB).unwrap();
    let upload = Transfer::upload(&traffic, &dialer(&lab, (SERVER_V6, 8081)), 8 * MB).unwrap();
    download.wait_bytes(2 * MB, LIMIT);
    let (stop, slowest) = (AtomicBool::new(false), AtomicU64::new(0));
    let lines = thread::scope(|scope| {
        let typing = scope.spawn(|| session.type_lines(&stop, &slowest));
        lab.uplink(0).blackhole(Direction::Both);
        let open = agent
            .wait_status("the uplink is down", |status| status["uplinks"][0]["state"] == "down");
        assert_eq!(forward(&open, 2222)["connections"], 1, "{open:#}");
        for transfer in [download, upload] {
            transfer.finish(2 * LIMIT).unwrap_or_else(|error| panic!("{error}"));
        }
        let ended = curl.wait(2 * LIMIT);
        stop.store(true, Ordering::Relaxed);
        assert!(ended.is_some_and(|status| status.success()), "{}", curl.output());
        typing.join().expect("the session is intact")
    });
    assert!(fs::read(&fetched).unwrap() == content, "the file is another one");
    println!("{lines} lines, the slowest took {slowest:?} ms");
    agent.wait_status("all have ended", |status| status["connections"]["total"] == 0);
}

#[test]
fn what_is_denied_is_told_and_what_has_no_target_is_reset() {
    let lab = Lab::two_uplinks("denied-forwards");
    let taken = lab.server.enter(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 8084)).unwrap());
    let ports = [2223, 9999, 8084, 80, 8083];
    let sections = ports.map(|port| section(port, (LAN_CLIENT_V4, 4444), ""));
    let allowed = [8083, 8084, 80];
    let (mut server, mut agent) =
        start(&lab, with_other_client(&lab), &allowed, &sections.concat());
    wait_state(&mut agent, "forwarded", &[8083]);
    let status = wait_state(&mut agent, "denied", &[2223, 9999, 8084, 80]);
    let not_allowed = "the server does not allow it to this router: add it to 'forwards' of this \
                       router's [[client]] in server.toml there, and reload";
    let in_use = "another program listens there: choose another port, or stop that program";
    let privileged = "the server may not listen on ports below 1024: restart the server, or choose \
                      a port above 1023";
    for (port, reason) in
        [(2223, not_allowed), (9999, not_allowed), (8084, in_use), (80, privileged)]
    {
        assert_eq!(forward(&status, port)["reason"], reason);
        let problem = format!("forward p{port}: no port {port}: {reason}");
        assert!(status["kernel"]["conflicts"].to_string().contains(&problem), "{status:#}");
        assert!(agent.log().contains(&problem), "{}", agent.log());
    }
    let (_, report) = agent.check();
    let found = |code: &str| {
        let findings = report["findings"].as_array().unwrap().iter();
        findings.filter(|it| it["check"] == "forward" && it["code"] == code).count()
    };
    assert_eq!((found("forward_denied"), found("ok")), (4, 1), "{report:#}");
    assert_eq!(outcome(&lab, 9999), io::ErrorKind::ConnectionRefused);
    assert_eq!(outcome(&lab, 8083), io::ErrorKind::ConnectionReset);

    // What was in the way is gone.
    drop(taken);
    server.stop();
    server.restart();
    wait_state(&mut agent, "forwarded", &[8083, 8084, 80]);
}

#[test]
fn a_target_that_speaks_the_proxy_protocol_learns_who_connects() {
    let lab = Lab::two_uplinks("proxy-protocol");
    let sections = section(8082, (LAN_CLIENT_V4, 82), "\toption proxy_protocol '1'\n");
    let (_server, mut agent) = start(&lab, ServerProgram::start(&lab), &[8082], &sections);
    wait_state(&mut agent, "forwarded", &[8082]);
    let target = lab.lan.enter(|| TcpListener::bind((LAN_CLIENT_V4, 82)).unwrap());
    for v6 in [false, true] {
        let server: SocketAddr =
            if v6 { (SERVER_V6, 8082).into() } else { (SERVER_V4, 8082).into() };
        let mut client = dialer(&lab, server).connect().unwrap();
        client.write_all(b"hello").unwrap();
        let (mut served, _) = target.accept().unwrap();
        let mut header = vec![0; if v6 { 52 } else { 28 }];
        let mut hello = [0; 5];
        served.set_read_timeout(Some(LIMIT)).unwrap();
        served.read_exact(&mut header).and_then(|()| served.read_exact(&mut hello)).unwrap();
        let port = client.local_addr().unwrap().port().to_be_bytes();
        let addresses = match v6 {
            true => [TARGET_V6.octets(), SERVER_V6.octets()].concat(),
            false => [TARGET_V4.octets(), SERVER_V4.octets()].concat(),
        };
        let (family, length) = if v6 { (0x21, 36) } else { (0x11, 12) };
        let expected = [
            b"\r\n\r\n\0\r\nQUIT\n\x21".as_slice(),
            &[family, 0, length],
            &addresses,
            &port,
            &8082_u16.to_be_bytes(),
        ];
        assert_eq!(header, expected.concat());
        assert_eq!(&hello, b"hello");
    }
}

/// A connection to an echo, which answers.
struct Echo(TcpStream);

impl Echo {
    #[track_caller]
    fn open(dialer: &Dialer) -> Echo {
        let mut stream = dialer.connect().expect("connect");
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(b"echo\n").unwrap();
        let mut echo = Echo(stream);
        echo.check();
        echo
    }

    #[track_caller]
    fn check(&mut self) {
        let mut answer = [0; 5];
        self.0.write_all(b"again").and_then(|()| self.0.read_exact(&mut answer)).expect("alive");
        assert_eq!(&answer, b"again");
    }
}

#[test]
fn ports_come_and_go_with_the_configurations() {
    let lab = Lab::two_uplinks("forwards-reload");
    let sections = [8080, 8081].map(|port| section(port, (LAN_CLIENT_V4, 80), ""));
    let ports = [8080, 8081];
    let (mut server, mut agent) =
        start(&lab, ServerProgram::start(&lab), &ports, &sections.concat());
    wait_state(&mut agent, "forwarded", &ports);
    let _target = TrafficServer::start(&lab.lan, Kind::Tcp, 80);
    let mut open = ports.map(|port| Echo::open(&dialer(&lab, (SERVER_V4, port))));

    allow(&mut server, &[8080]);
    wait_state(&mut agent, "denied", &[8081]);
    assert_eq!(outcome(&lab, 8081), io::ErrorKind::ConnectionRefused);
    drop(Echo::open(&dialer(&lab, (SERVER_V4, 8080))));
    allow(&mut server, &ports);
    wait_state(&mut agent, "forwarded", &ports);
    drop(Echo::open(&dialer(&lab, (SERVER_V4, 8081))));

    let text = fs::read_to_string(agent.config()).unwrap();
    let moved = text.replace(&sections[1], &section(8081, (LAN_CLIENT_V4, 4444), ""));
    fs::write(agent.config(), moved).unwrap();
    agent.reload();
    let target = format!("{LAN_CLIENT_V4}:4444");
    agent.wait_status("another target", |status| forward(status, 8081)["target"] == *target);
    assert_eq!(outcome(&lab, 8081), io::ErrorKind::ConnectionReset);
    fs::write(agent.config(), text.replace(&sections.concat(), "")).unwrap();
    agent.reload();
    for port in ports {
        until("the port is closed", LIMIT, || {
            let refused = dialer(&lab, (SERVER_V4, port)).connect().err()?;
            (refused.kind() == io::ErrorKind::ConnectionRefused).then_some(())
        });
    }
    open.iter_mut().for_each(Echo::check);
}

#[test]
fn a_restart_of_the_server_is_not_noticed() {
    let lab = Lab::two_uplinks("forwards-restart");
    let mut server = ServerProgram::start(&lab);
    server.stop();
    server.make_service();
    server.restart();
    let sections = section(8080, (LAN_CLIENT_V4, 80), "");
    let (mut server, mut agent) = start(&lab, server, &[8080], &sections);
    wait_state(&mut agent, "forwarded", &[8080]);
    let _target = TrafficServer::start(&lab.lan, Kind::Tcp, 80);
    let outside = dialer(&lab, (SERVER_V4, 8080));
    let mut open = Echo::open(&outside);
    assert!(server.stop().success());
    assert!(server.service().keeps(), "{}", server.process().output());
    // It waits for the next start.
    let mut meanwhile = outside.connect().expect("the port is open");
    server.restart();
    meanwhile.set_read_timeout(Some(LIMIT)).unwrap();
    meanwhile.write_all(b"echo\n").unwrap();
    Echo(meanwhile).check();
    open.check();
    assert!(!agent.log().contains("no port"), "{}", agent.log());
}
