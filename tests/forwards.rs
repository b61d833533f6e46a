//! Hosts on the LAN, reached from outside through ports of the server.

mod lab;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lab::forwards::{forward, section, udp_section};
use lab::traffic::{Dialer, Kind, TrafficServer, Transfer, UdpEcho, UdpFlow};
use lab::{
    AgentProgram, Direction, LAN_CLIENT_V4, LAN_CLIENT_V6, Lab, Namespace, SERVER_V4, SERVER_V6,
    ServerProgram, SshSession, TARGET_V4, TARGET_V6, until,
};

const LIMIT: Duration = Duration::from_secs(20);
const MB: u64 = 1_000_000;
/// The key of a client that is not there.
const OTHER: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE=";

/// A server that lets its router have these ports, and another one 2223; an agent that wants those
/// of the sections.
fn start<'lab>(
    lab: &'lab Lab,
    mut server: ServerProgram<'lab>,
    allowed: &[u16],
    sections: &str,
) -> (ServerProgram<'lab>, AgentProgram<'lab>) {
    let mut agent = AgentProgram::paired(lab, &server, sections);
    server.allow_forwards(allowed);
    agent.restart();
    (server, agent)
}

fn with_other_client(lab: &Lab) -> ServerProgram<'_> {
    let toml = format!("\n[[client]]\nname = \"other\"\npublic_key = \"{OTHER}\"\n");
    ServerProgram::start_with(lab, &toml)
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
    agent.wait_forwards("forwarded", &ports);

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
    agent.wait_forwards("forwarded", &[8083]);
    let status = agent.wait_forwards("denied", &[2223, 9999, 8084, 80]);
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
    agent.wait_forwards("forwarded", &[8083, 8084, 80]);
}

#[test]
fn a_target_that_speaks_the_proxy_protocol_learns_who_connects() {
    let lab = Lab::two_uplinks("proxy-protocol");
    let sections = section(8082, (LAN_CLIENT_V4, 82), "\toption proxy_protocol '1'\n");
    let (_server, mut agent) = start(&lab, ServerProgram::start(&lab), &[8082], &sections);
    agent.wait_forwards("forwarded", &[8082]);
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
    agent.wait_forwards("forwarded", &ports);
    let _target = TrafficServer::start(&lab.lan, Kind::Tcp, 80);
    let mut open = ports.map(|port| Echo::open(&dialer(&lab, (SERVER_V4, port))));

    server.allow_forwards(&[8080]);
    agent.wait_forwards("denied", &[8081]);
    assert_eq!(outcome(&lab, 8081), io::ErrorKind::ConnectionRefused);
    drop(Echo::open(&dialer(&lab, (SERVER_V4, 8080))));
    server.allow_forwards(&ports);
    agent.wait_forwards("forwarded", &ports);
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
    agent.wait_forwards("forwarded", &[8080]);
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

/// A socket in a namespace that talks to a port of the server.
fn asks(namespace: &Namespace, server: impl Into<SocketAddr>) -> UdpSocket {
    let server = server.into();
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = namespace.enter(|| UdpSocket::bind(any).unwrap());
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket
}

/// Whether a port of the server is answered.
fn is_answered(socket: &UdpSocket) -> bool {
    socket.send(b"0123").and_then(|_| socket.recv(&mut [0; 100])).is_ok()
}

#[test]
fn udp_goes_where_it_may_and_answers_go_to_those_who_asked() {
    let lab = Lab::two_uplinks("udp-forwards");
    let taken = lab.server.enter(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 8084)).unwrap());
    let ports = [8083, 8084, 9999];
    let sections = ports.map(|port| udp_section(port, (LAN_CLIENT_V4, 53))).concat();
    let both = section(8085, (LAN_CLIENT_V6, 53), "\toption proto 'tcp udp'");
    let (mut server, mut agent) =
        start(&lab, ServerProgram::start(&lab), &[8083, 8084, 8085], &(sections.clone() + &both));
    let status = agent.wait_forwards("denied", &[8084, 9999]);
    for (port, reason) in [
        (8084, "another program listens there: choose another port, or stop that program"),
        (
            9999,
            "the server does not allow it to this router: add it to 'forwards' of this router's \
             [[client]] in server.toml there, and reload",
        ),
    ] {
        assert_eq!(forward(&status, port)["reason"], reason);
        let problem = format!("forward p{port}: no UDP port {port}: {reason}");
        assert!(status["kernel"]["conflicts"].to_string().contains(&problem), "{status:#}");
        assert!(agent.log().contains(&problem), "{}", agent.log());
        let (_, report) = agent.check();
        assert!(report.to_string().contains(&format!("no UDP port {port}")), "{report:#}");
    }
    let table = agent.status_table();
    assert!(table.contains(" 8085/tcp ") && table.contains(" 8085/udp "), "{table}");

    // Each of two who ask is answered, on either family, whatever the family of the target.
    let _echo = UdpEcho::start(&lab.lan, 53);
    let first = asks(&lab.target, (SERVER_V4, 8083));
    let others = [(SERVER_V4, 8083).into(), (SERVER_V6, 8083).into(), (SERVER_V6, 8085).into()];
    until("it is answered", LIMIT, || is_answered(&first).then_some(()));
    for address in others {
        let address: SocketAddr = address;
        assert!(is_answered(&asks(&lab.target, address)), "{address}");
    }
    let _web = TrafficServer::start(&lab.lan, Kind::Tcp, 53);
    drop(Echo::open(&dialer(&lab, (SERVER_V4, 8085))));
    // A packet that is too large for the way is carried all the same.
    first.send(&[b'4'; 4000]).unwrap();
    assert!(first.recv(&mut [0; 100]).is_ok(), "an answer to a large datagram");
    agent.wait_status("flows are counted", |status| forward(status, 8083)["connections"] == 3);
    // Two ports of the server could answer each other for ever.
    let own = asks(&lab.server, (SERVER_V4, 8083));
    assert!(!is_answered(&own), "the server itself is answered");
    server.wait_status("it is refused", |status| status["refusals"]["denied by policy"] == 1);

    // Another target, then none.
    let text = fs::read_to_string(agent.config()).unwrap();
    let nowhere = sections.replace(":53'", ":54'");
    fs::write(agent.config(), text.replace(&sections, &nowhere)).unwrap();
    agent.reload();
    until("it is answered no more", LIMIT, || (!is_answered(&first)).then_some(()));
    let _other = UdpEcho::start(&lab.lan, 54);
    until("another host answers", LIMIT, || is_answered(&first).then_some(()));
    fs::write(agent.config(), text.replace(&sections, "")).unwrap();
    agent.reload();
    until("the port is closed", LIMIT, || {
        let refused = first.send(b"0123").and_then(|_| first.recv(&mut [0; 100])).err()?;
        (refused.kind() == io::ErrorKind::ConnectionRefused).then_some(())
    });
    drop(taken);
}

#[test]
fn a_call_from_outside_outlives_a_restart_of_the_server() {
    let lab = Lab::two_uplinks("udp-forwards-restart");
    let mut server = ServerProgram::start(&lab);
    server.stop();
    server.make_service();
    server.restart();
    let sections = udp_section(8080, (LAN_CLIENT_V4, 80));
    let (mut server, mut agent) = start(&lab, server, &[8080], &sections);
    agent.wait_forwards("forwarded", &[8080]);
    let _echo = UdpEcho::start(&lab.lan, 80);
    let call = UdpFlow::start(&lab.target, (SERVER_V4, 8080).into());
    let stopped = Instant::now();
    assert!(server.stop().success());
    assert!(server.service().keeps(), "{}", server.process().output());
    let meanwhile = asks(&lab.target, (SERVER_V4, 8080));
    for _ in 0..3 {
        let answer = meanwhile.send(b"0123").and_then(|_| meanwhile.recv(&mut [0; 100]));
        let refused = answer.expect_err("an answer of a server that is not there").kind();
        assert_eq!(refused, io::ErrorKind::WouldBlock, "the port is not open");
    }
    server.restart();
    until("the call goes on", LIMIT, || {
        (call.longest_pause_since(Instant::now()) < Duration::from_millis(200)).then_some(())
    });
    println!("a pause of {:.1?}", call.longest_pause_since(stopped));
    assert!(!agent.log().contains("no UDP port"), "{}", agent.log());

    // One that is killed has lost the socket, too.
    server.kill();
    server.restart();
    let killed = Instant::now();
    until("the call goes on", LIMIT, || {
        let again = call.longest_pause_since(killed) > Duration::ZERO;
        let goes_on = call.longest_pause_since(Instant::now()) < Duration::from_millis(200);
        (again && goes_on).then_some(())
    });
}
