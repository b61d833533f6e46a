//! What a LAN client sees of targets that refuse, are silent, reset or half-close, and of those the
//! server's policy denies: the same as without a tunnel, as far as a proxy can.

mod lab;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lab::traffic::{Dialer, Kind, Pattern, TrafficServer};
use lab::{
    AgentProgram, Lab, Namespace, SERVER_V4, ServerProgram, TARGET_V4, TARGET_V6, two_of_three,
    until,
};
use rustix::process::Signal;
use serde_json::Value;
use socket2::SockRef;

const LIMIT: Duration = Duration::from_secs(10);
/// Where the lab's core answers with "host unreachable", "prohibited", and not at all.
const UNREACHABLE: [&str; 2] = ["203.0.113.1", "2001:db8:f3::1"];
const PROHIBITED: [&str; 2] = ["203.0.113.2", "2001:db8:f3::2"];
const SILENT: [&str; 2] = ["203.0.113.3", "2001:db8:f3::3"];

fn families() -> [IpAddr; 2] {
    [TARGET_V4.into(), TARGET_V6.into()]
}

/// Connects from the LAN, and waits for the connection to end without a byte; how it ended and
/// after what time. A proxy accepts before it knows, so that a refusal shows in the first read.
fn outcome(from: &Namespace, target: SocketAddr) -> (io::ErrorKind, Duration) {
    let started = Instant::now();
    let read = Dialer::new(from, Kind::Tcp, target).connect().and_then(|mut stream| {
        stream.set_read_timeout(Some(LIMIT))?;
        stream.read(&mut [0])
    });
    match read {
        Ok(_) => panic!("{target}: bytes or a clean end instead of an error"),
        Err(error) => (error.kind(), started.elapsed()),
    }
}

fn failed(status: &Value, cause: &str) -> u64 {
    status["streams"]["failed_by_cause"][cause].as_u64().unwrap_or(0)
}

#[test]
fn failing_targets_fail_as_fast_as_without_a_tunnel() {
    let lab = Lab::two_uplinks("failing-targets");
    for (kind, [v4, v6]) in
        [("unreachable", UNREACHABLE), ("prohibit", PROHIBITED), ("blackhole", SILENT)]
    {
        lab.inet.ip(&format!("route add {kind} {v4}"));
        lab.inet.ip(&format!("-6 route add {kind} {v6}"));
    }
    lab.inet.sysctl("net.ipv4.icmp_ratelimit", "0");
    lab.inet.sysctl("net.ipv6.icmp.ratelimit", "0");
    // Two SYNs, after 0 and 1 s, and the end after 3 s.
    lab.server.sysctl("net.ipv4.tcp_syn_retries", "1");
    let server = ServerProgram::start(&lab);
    let agent = AgentProgram::start(&lab, &server);
    let address = |text: &str, port| SocketAddr::new(text.parse().unwrap(), port);

    for family in 0..2 {
        let refusing = SocketAddr::new(families()[family], 81);
        for target in [refusing, address(UNREACHABLE[family], 80), address(PROHIBITED[family], 80)]
        {
            let (_, direct) = outcome(&lab.server, target);
            let (kind, tunnelled) = outcome(&lab.lan, target);
            println!("{target}: {direct:.1?} from the server, {tunnelled:.1?} from the LAN");
            assert_eq!(kind, io::ErrorKind::ConnectionReset, "{target}");
            assert!(tunnelled < direct + Duration::from_secs(1), "{target}: {tunnelled:?}");
        }
        let silent = address(SILENT[family], 80);
        let (kind, direct) = outcome(&lab.server, silent);
        assert_eq!(kind, io::ErrorKind::TimedOut);
        let (kind, tunnelled) = outcome(&lab.lan, silent);
        println!("{silent}: {direct:.1?} from the server, {tunnelled:.1?} from the LAN");
        assert_eq!(kind, io::ErrorKind::ConnectionReset);
        assert!(tunnelled > direct / 2 && tunnelled < direct + 2 * LIMIT / 10, "{tunnelled:?}");
    }
    for status in [agent.status().unwrap(), server.status().unwrap()] {
        let counts = ["refused", "unreachable", "timed out"].map(|cause| failed(&status, cause));
        assert_eq!(counts, [2, 4, 2], "{}", status["streams"]);
        assert_eq!(status["streams"]["failed_total"], 8);
        assert_eq!(status["connections"]["total"], 0);
    }
}

#[test]
fn ipv6_is_refused_at_once_where_the_server_has_none() {
    let lab = Lab::two_uplinks("no-ipv6");
    lab.server.ip("-6 route delete default");
    let _target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let server = ServerProgram::start(&lab);
    let _agent = AgentProgram::start(&lab, &server);
    let connect = |target: IpAddr| {
        let started = Instant::now();
        let dialer = Dialer::new(&lab.lan, Kind::Tcp, SocketAddr::new(target, 80));
        (dialer.connect().map_err(|error| error.kind()).map(drop), started.elapsed())
    };
    // By the target's own refusal a connection would stand before it is reset, and no client go on.
    let refused = || {
        let (connected, took) = connect(TARGET_V6.into());
        (connected == Err(io::ErrorKind::ConnectionRefused)).then_some(took)
    };
    until("IPv6 is refused", LIMIT, refused);
    let at_once = two_of_three(|| match refused() {
        Some(took) if took < Duration::from_millis(250) => Ok(()),
        took => Err(took),
    });
    assert_eq!(at_once, Ok(()), "sooner than a client tries IPv4");
    assert_eq!(connect(TARGET_V4.into()).0, Ok(()));
}

#[test]
fn a_client_that_gives_up_ends_the_attempt_of_the_server() {
    let lab = Lab::two_uplinks("giving-up");
    lab.inet.ip(&format!("route add blackhole {}", SILENT[0]));
    let server = ServerProgram::start(&lab);
    let _agent = AgentProgram::start(&lab, &server);
    let target = SocketAddr::new(SILENT[0].parse().unwrap(), 80);
    let attempts = || {
        let text = lab.server.run("ss", &["-Hnt", "state", "syn-sent", "dst", SILENT[0]]);
        text.lines().count()
    };
    let client = Dialer::new(&lab.lan, Kind::Tcp, target).connect().unwrap();
    until("the server tries", LIMIT, || (attempts() == 1).then_some(()));
    reset(client);
    until("the server gives up", LIMIT, || (attempts() == 0).then_some(()));
    until("nothing is left", LIMIT, || (server.status()?["streams"]["open"] == 0).then_some(()));
}

/// Puts another cipher in force, and waits for a session with it.
fn set_cipher(agent: &mut AgentProgram, cipher: &str) {
    let text = fs::read_to_string(agent.config()).unwrap();
    let kept: Vec<&str> = text.lines().filter(|line| !line.contains("option cipher")).collect();
    let text = kept.join("\n").replacen(
        "config server 'vps'",
        &format!("config server 'vps'\n\toption cipher '{cipher}'"),
        1,
    );
    assert!(text.contains("option cipher"), "{text}");
    fs::write(agent.config(), text).unwrap();
    agent.process().signal(Signal::HUP);
    agent.wait_status("the cipher is in force", |status| {
        status["servers"][0]["cipher"] == cipher && status["servers"][0]["state"] == "connected"
    });
}

/// Closes a connection with a RST.
fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// One connection on a thread: reads three bytes, answers with three, then does as it is told.
fn serve_once(
    namespace: &Namespace,
    port: u16,
    then: impl FnOnce(TcpStream) -> io::Result<usize> + Send + 'static,
) -> JoinHandle<io::Result<usize>> {
    let listener = namespace.enter(|| {
        let any = SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), port);
        TcpListener::bind(any).expect("listen")
    });
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.read_exact(&mut [0; 3])?;
        stream.write_all(b"yes")?;
        then(stream)
    })
}

/// A connection from the LAN on which a few bytes have gone both ways.
fn exchange(lab: &Lab, target: SocketAddr) -> TcpStream {
    let mut stream = Dialer::new(&lab.lan, Kind::Tcp, target).connect().unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(b"hey").unwrap();
    let mut answer = [0; 3];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"yes");
    stream
}

#[test]
fn ends_and_resets_pass_both_ways_with_every_cipher() {
    let lab = Lab::two_uplinks("ends");
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let traffic = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    for (round, cipher) in ["aes-128-gcm", "chacha20-poly1305", "none"].into_iter().enumerate() {
        set_cipher(&mut agent, cipher);
        for (family, address) in families().into_iter().enumerate() {
            let context = format!("{cipher}, {address}");
            client_ends_first(&traffic.dialer(&lab.lan, Kind::Tcp, address), &context);
            target_ends_first(&lab, &traffic, address, &context);
            let port = 8000 + 10 * (2 * round + family) as u16;
            target_resets(&lab, SocketAddr::new(address, port), &context);
            client_resets(&lab, SocketAddr::new(address, port + 1), &context);
        }
    }
    until("all connections have ended", LIMIT, || {
        let ended = |status: &Value| status["connections"]["total"] == 0;
        (ended(&agent.status()?) && ended(&server.status()?)).then_some(())
    });
    let streams = agent.status().unwrap()["streams"].clone();
    assert_eq!(streams["failed_total"], 0, "{streams}");
}

fn client_ends_first(dialer: &Dialer, context: &str) {
    const BYTES: u64 = 300_000;
    let mut stream = dialer.connect().unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    write!(stream, "after-eof 7 {BYTES}\nsome bytes").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    assert_eq!(received.len() as u64, BYTES, "{context}");
    assert_eq!(Pattern { seed: 7 }.first_difference(0, &received), None, "{context}");
}

fn target_ends_first(lab: &Lab, traffic: &TrafficServer, address: IpAddr, context: &str) {
    const BYTES: usize = 300_000;
    let pattern = Pattern { seed: 8 };
    let (id, recorder) = traffic.expect(pattern);
    let mut stream = traffic.dialer(&lab.lan, Kind::Tcp, address).connect().unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    writeln!(stream, "eof-first {id}").unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "{context}: the target's end arrives");
    let mut sent = vec![0; BYTES];
    pattern.fill(0, &mut sent);
    stream.write_all(&sent).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let arrived = || (recorder.bytes() == BYTES as u64).then_some(());
    until(&format!("{context}: the other half goes on"), LIMIT, arrived);
    assert_eq!(recorder.report().corrupt_at, None, "{context}");
}

fn target_resets(lab: &Lab, target: SocketAddr, context: &str) {
    let served = serve_once(&lab.target, target.port(), |stream| {
        reset(stream);
        Ok(0)
    });
    let mut stream = exchange(lab, target);
    let error = stream.read(&mut [0]).expect_err("a reset, not an end");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{context}");
    served.join().unwrap().unwrap();
}

fn client_resets(lab: &Lab, target: SocketAddr, context: &str) {
    let served = serve_once(&lab.target, target.port(), |mut stream| stream.read(&mut [0]));
    reset(exchange(lab, target));
    let error = served.join().unwrap().expect_err("a reset, not an end");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{context}");
}

#[test]
fn denied_targets_are_refused_and_counted() {
    const OWN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
    let lab = Lab::two_uplinks("denied");
    let server = ServerProgram::start(&lab);
    let agent = AgentProgram::start(&lab, &server);
    // A service on the server itself that is open to whoever reaches it.
    let service = TrafficServer::start(&lab.server, Kind::Tcp, 5000);
    let denied = || {
        let agent = failed(&agent.status().unwrap(), "denied");
        let status = server.status().unwrap();
        assert_eq!(agent, failed(&status, "denied"));
        assert_eq!(agent, status["refusals"]["denied by policy"].as_u64().unwrap_or(0));
        agent
    };
    let refused = |target: SocketAddr| {
        let (kind, time) = outcome(&lab.lan, target);
        assert_eq!(kind, io::ErrorKind::ConnectionReset, "{target}");
        assert!(time < LIMIT / 5, "{target}: {time:?}");
    };

    // Benchmark networks are denied by default.
    refused("198.18.0.1:80".parse().unwrap());
    assert_eq!(denied(), 1);

    // An address the server gets while it runs, of which the router cannot know.
    lab.server.ip(&format!("address add {OWN}/32 dev lo"));
    until("the new address is denied", LIMIT, || {
        let before = denied();
        refused(SocketAddr::new(OWN.into(), 5001));
        (denied() == before + 1).then_some(())
    });
    refused(SocketAddr::new(OWN.into(), 5000));
    // The same address in the form in which NAT64 would reach it, and as it is sent to a server
    // that knows the address by another name.
    refused("[2002:cb00:7109::1]:5000".parse().unwrap());
    let so_far = denied();

    // Allowed by name, it can be reached.
    let config = lab.work().join("server/server.toml");
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replacen("allow = []", &format!("allow = [\"{OWN}\"]"), 1);
    fs::write(&config, text).unwrap();
    let mut server = server;
    server.process().signal(Signal::HUP);
    let dialer = service.dialer(&lab.lan, Kind::Tcp, OWN);
    until("the service answers", LIMIT, || {
        let mut stream = dialer.connect().ok()?;
        stream.set_read_timeout(Some(LIMIT)).ok()?;
        stream.write_all(b"echo\n!").ok()?;
        stream.read_exact(&mut [0]).ok()
    });
    assert!(failed(&server.status().unwrap(), "denied") >= so_far);
    // Its other addresses stay denied; the router sends those it knows directly.
    assert_ne!(IpAddr::from(OWN), IpAddr::from(SERVER_V4));
    let log = server.process().output();
    assert_eq!(log.matches("denied by policy").count(), 1, "logged once a minute:\n{log}");
}

/// A client that tries IPv6 first (RFC 8305) falls back when it sees the reset.
#[test]
fn without_ipv6_at_the_server_ipv6_targets_fail_at_once_and_others_do_not() {
    let lab = Lab::two_uplinks("no-ipv6");
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let server = ServerProgram::start(&lab);
    let agent = AgentProgram::start(&lab, &server);
    lab.server.ip("-6 route del default");
    let (kind, time) = outcome(&lab.lan, SocketAddr::new(TARGET_V6.into(), 80));
    assert_eq!(kind, io::ErrorKind::ConnectionReset);
    assert!(time < LIMIT / 10, "{time:?}");
    client_ends_first(&target.dialer(&lab.lan, Kind::Tcp, TARGET_V4), "IPv4");
    for status in [agent.status().unwrap(), server.status().unwrap()] {
        assert_eq!(failed(&status, "unreachable"), 1, "{}", status["streams"]);
    }
}

#[test]
fn targets_are_reached_from_the_configured_source() {
    const SECOND: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 77);
    let lab = Lab::two_uplinks("source");
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let mut server = ServerProgram::start(&lab);
    let _agent = AgentProgram::start(&lab, &server);
    let seen = || target.dialer(&lab.lan, Kind::Tcp, TARGET_V4).seen_as().unwrap();
    assert_eq!(seen(), IpAddr::from(SERVER_V4));
    let mut reload = |source: &str| {
        let text = fs::read_to_string(server.config()).unwrap();
        let text = text.lines().filter(|line| !line.starts_with("source")).collect::<Vec<_>>();
        fs::write(server.config(), format!("source = \"{source}\"\n{}\n", text.join("\n")))
            .unwrap();
        server.process().signal(Signal::HUP);
    };
    let device =
        lab.server.run("ip", &["-o", "-4", "address", "show", "to", &SERVER_V4.to_string()]);
    let device = device.split_whitespace().nth(1).expect("the device of the address").to_owned();
    lab.server.ip(&format!("address add {SECOND}/32 dev {device}"));
    lab.inet.ip(&format!("route add {SECOND} via {SERVER_V4}"));
    reload(&SECOND.to_string());
    until("the second address is used", LIMIT, || (seen() == IpAddr::from(SECOND)).then_some(()));

    reload("198.51.100.78");
    until("an address that is none is told of", LIMIT, || {
        server.status()?["events"]
            .to_string()
            .contains("source 198.51.100.78 cannot be used")
            .then_some(())
    });
}
