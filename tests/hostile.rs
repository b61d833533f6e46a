//! The server under attack, while an honest client's transfer goes on: everything is refused, said
//! once, and costs nobody else anything.

mod attacker;
mod lab;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use attacker::{Attacker, SERVER, random_bytes, refused_silently};
use lab::traffic::{Kind, TrafficServer, Transfer, churn, open_idle};
use lab::{AgentProgram, Lab, Process, ServerProgram, TARGET_V4, until, wait_for};
use mptcp_bond::config::keys::PrivateKey;
use mptcp_bond::tunnel::Cipher;
use mptcp_bond::tunnel::convert::Message;
use mptcp_bond::tunnel::handshake::HandshakeError;
use mptcp_bond::tunnel::hello::Refusal;
use mptcp_bond::tunnel::probe::{PROBE_MAX, ProbeRequest};
use mptcp_bond::tunnel::record::Kind as Record;
use mptcp_bond::tunnel::session::{ClientSession, SessionId, SessionKeys, StreamSecret};
use mptcp_bond::tunnel::stream::{PREAMBLE_LEN, Preamble};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(10);
/// The longest an honest transfer may pause, on a machine that tests keep busy.
const PAUSE: Duration = Duration::from_secs(2);

fn refusals(status: &Value, cause: &str) -> u64 {
    status["refusals"][cause].as_u64().unwrap_or(0)
}

/// Asserts that a transfer ran all the time, unharmed.
fn assert_unharmed(transfer: Transfer) {
    let bytes = transfer.report().bytes;
    transfer.wait_bytes(bytes + 1_000_000, LIMIT);
    assert!(!transfer.is_finished(), "the honest transfer ended");
    let report = transfer.stop();
    println!("honest transfer: {:.0} Mbit/s, {:?}", report.goodput(), report.longest_pause());
    assert_eq!(report.corrupt_at, None);
    assert!(report.longest_pause() < PAUSE, "paused for {:?}", report.longest_pause());
}

/// Asserts that each of these causes was counted, and logged once.
fn assert_refused(server: &mut ServerProgram, causes: &[&str]) {
    let status = server.status().expect("the server answers");
    let log = server.process().output();
    for cause in causes {
        assert!(refusals(&status, cause) > 0, "'{cause}' is not in {}", status["refusals"]);
    }
    for (cause, count) in status["refusals"].as_object().expect("an object") {
        let lines = log.lines().filter(|line| line.ends_with(&format!(": {cause}"))).count();
        assert_eq!(lines, 1, "'{cause}', refused {count} times, in the log:\n{log}");
    }
}

#[test]
fn forgeries_replays_and_garbage_are_refused() {
    let lab = Lab::two_uplinks("forgeries");
    let mut server = ServerProgram::start(&lab);
    let _agent = AgentProgram::start(&lab, &server);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let honest = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let transfer = Transfer::download(&honest, Transfer::ENDLESS).unwrap();
    let attacker = Attacker::new(&lab.target, &server.invite("second"));

    let lingering = slow_connections(&attacker);
    strangers_are_turned_away(&attacker);
    a_replayed_handshake_changes_nothing(&attacker, &server);
    recorded_streams_are_refused(&attacker);
    truncated_and_oversized_frames_are_refused(&attacker);
    garbage_is_refused(&attacker);
    datagrams_earn_no_more_than_they_are(&attacker);

    until("slow connections are closed", 2 * LIMIT, || {
        lingering.iter().all(attacker::is_closed).then_some(())
    });
    let causes = [
        "cut off",
        "no session",
        "not authentic",
        "not this protocol",
        "replayed",
        "silent",
        "unknown key",
        "version",
    ];
    assert_refused(&mut server, &causes);
    until("nobody waits at the door", LIMIT, || {
        (server.status()?["unauthenticated"] == 0).then_some(())
    });
    assert_unharmed(transfer);
}

/// Connections that stop at each stage before they have shown who they are.
fn slow_connections(attacker: &Attacker) -> Vec<TcpStream> {
    let message_1 = attacker.first_message(&PrivateKey::from_bytes([9; 32]), None);
    let preamble = attacker.forged_preamble();
    let prefixes: Vec<&[u8]> =
        [1, 3, 4, 100].iter().map(|length| &message_1[..*length]).collect::<Vec<_>>();
    let prefixes = prefixes.into_iter().chain([&[], &preamble[..1], &preamble[..35]]);
    prefixes.flat_map(|prefix| (0..5).map(|_| attacker.send(prefix))).collect()
}

fn strangers_are_turned_away(attacker: &Attacker) {
    let stranger = PrivateKey::from_bytes([5; 32]);
    let refusal = |result: Result<_, HandshakeError>| match result {
        Err(HandshakeError::Refused(refusal)) => refusal,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("a stranger was let in"),
    };
    assert_eq!(refusal(attacker.handshake(&stranger, None).map(drop)), Refusal::UnknownKey);
    let token = mptcp_bond::config::keys::Token::from_bytes([1; 32]);
    assert_eq!(refusal(attacker.handshake(&stranger, Some(token)).map(drop)), Refusal::BadToken);
    // Made for another server.
    let message_1 = attacker.first_message_to(&stranger, &stranger.public());
    refused_silently(attacker.send(&message_1));
    let mut newer = attacker.first_message(&stranger, None);
    newer[1] = 99;
    assert_eq!(attacker::read_to_end(attacker.send(&newer)), [1, 0, 0], "the version spoken here");
}

fn a_replayed_handshake_changes_nothing(attacker: &Attacker, server: &ServerProgram) {
    let clients = || server.status().expect("the server answers")["clients"].clone();
    let before = clients().as_array().expect("a list").len();
    // The token is in message 1; without a sign of life that only its maker can give, it stays.
    let (key, token) = (&attacker.key, attacker.token.clone());
    let message_1 = attacker.first_message(key, Some(token.clone()));
    let mut replay = attacker.send(&message_1);
    replay.read_exact(&mut [0; 200]).expect("message 2");
    replay.write_all(&[0, 17, 0, 0, 0]).and_then(|()| replay.write_all(&[0; 14])).unwrap();
    until("a forged answer is refused", LIMIT, || attacker::is_closed(&replay).then_some(()));
    assert_eq!(clients().as_array().expect("a list").len(), before, "nobody was enrolled");

    let mut control = attacker.connect_control(Some(token)).expect("the token still holds");
    let session = control.session();
    for _ in 0..3 {
        let mut replay = attacker.send(control.message_1());
        replay.read_exact(&mut [0; 100]).expect("message 2");
        drop(replay);
    }
    control.ping();
    let second =
        clients().as_array().expect("a list").iter().find(|c| c["name"] == "second").cloned();
    assert_eq!(second.expect("it was enrolled")["sessions"], 1);
    assert_eq!(control.session().keys().id(), session.keys().id(), "the session is the same");
    // Whoever completes a handshake with the same key takes over.
    let _newer = attacker.connect_control(None).expect("a known key needs no token");
    control.wait_for_end();
}

fn recorded_streams_are_refused(attacker: &Attacker) {
    let control = attacker.connect_control(None).expect("a known key needs no token");
    let mut session = control.session();
    let mut recording = Vec::new();
    let (preamble, keys) = session.open_stream();
    let (mut sealer, _) = keys.client();
    let request = Message::connect((TARGET_V4, 80).into());
    recording.extend(preamble);
    recording.extend(sealer.seal_new(Record::Request, &request.encode().unwrap()).unwrap());
    recording.extend(sealer.seal_new(Record::Data, b"echo\nonce").unwrap());
    let mut stream = attacker.send(&recording);
    let mut answer = [0; 28];
    stream.read_exact(&mut answer).expect("an answer and data");
    for length in [PREAMBLE_LEN, recording.len()] {
        refused_silently(attacker.send(&recording[..length]));
    }
    // The recorded one goes on.
    stream.write_all(&sealer.seal_new(Record::Data, b"more").unwrap()).unwrap();
    stream.read_exact(&mut [0; 10]).expect("more echo");

    // A preamble overheard and used first, with records that cannot be right.
    let (preamble, _) = session.open_stream();
    let mut forged = preamble.to_vec();
    forged.extend([Record::Request as u8, 0, 0, 24]);
    forged.extend([7; 24 + 16]);
    refused_silently(attacker.send(&forged));

    // A stream that is given up asks for nothing, and is answered with nothing.
    let (preamble, keys) = session.open_stream();
    let reset = keys.client().0.seal_new(Record::Reset, &[]).unwrap();
    refused_silently(attacker.send(&[&preamble[..], &reset].concat()));

    // Unknown sessions, and known ones with another key.
    refused_silently(attacker.send(&attacker.forged_preamble()));
    let keys = SessionKeys::new(session.keys().id(), &StreamSecret::from_bytes([0; 32]));
    for cipher in Cipher::ALL {
        let forged = Preamble { cipher, flags: 0, session: keys.id(), counter: 1000 };
        refused_silently(attacker.send(&forged.encode(&keys)));
    }
}

fn truncated_and_oversized_frames_are_refused(attacker: &Attacker) {
    let message_1 = attacker.first_message(&attacker.key, None);
    let preamble = attacker.forged_preamble();
    for (whole, lengths) in [(&message_1[..], [1, 2, 4, 5, 200]), (&preamble, [1, 2, 4, 20, 35])] {
        for length in lengths {
            let stream = attacker.send(&whole[..length]);
            stream.shutdown(Shutdown::Write).unwrap();
            refused_silently(stream);
        }
    }
    for length in [0_u16, 95, 1025, u16::MAX] {
        let [high, low] = length.to_be_bytes();
        refused_silently(attacker.send(&[b'C', 1, high, low, 0, 0]));
    }
    // Authenticated ones that claim too much.
    let mut control = attacker.connect_control(None).expect("a known key");
    let mut session = control.session();
    control.write(&[0xff, 0xff]);
    assert_eq!(control.wait_for_close(), Refusal::ProtocolError);
    for header in [[1, 0, 0xff, 0xff], [1, 0, 0x10, 0], [3, 0, 0, 1], [1, 1, 0, 24], [99, 0, 0, 24]]
    {
        let (preamble, _) = session.open_stream();
        refused_silently(attacker.send(&[&preamble[..], &header, &[0; 64]].concat()));
    }
}

fn garbage_is_refused(attacker: &Attacker) {
    let mut streams = Vec::new();
    // What begins as a handshake of another version is told the version spoken here.
    for first in (0..=255_u8).filter(|first| *first != b'C') {
        let mut bytes = random_bytes(u64::from(first) + 1, 300);
        bytes[0] = first;
        let stream = attacker.send(&bytes);
        stream.shutdown(Shutdown::Write).ok();
        streams.push(stream);
    }
    streams.into_iter().for_each(refused_silently);
}

fn datagrams_earn_no_more_than_they_are(attacker: &Attacker) {
    let control = attacker.connect_control(None).expect("a known key");
    let session = control.session();
    let socket = attacker.namespace.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    socket.connect(SERVER).unwrap();
    let probe = ProbeRequest { counter: 1 }.encode(session.keys());
    let mut buffer = [0; 2048];
    for seed in 1..5000_u64 {
        let mut garbage = random_bytes(seed, usize::try_from(seed % 1400).unwrap());
        if seed % 3 == 0 {
            garbage = probe.to_vec();
            garbage[usize::try_from(seed).unwrap() % probe.len()] ^= 1;
        }
        socket.send(&garbage).unwrap();
    }
    let strange = SessionKeys::new(SessionId(1), &StreamSecret::from_bytes([2; 32]));
    socket.send(&ProbeRequest { counter: 1 }.encode(&strange)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut padded = probe.to_vec();
    padded.resize(PROBE_MAX, 0);
    let mut requests = 0;
    for request in [probe.to_vec(), padded] {
        let mut replies = 0;
        until("probes are answered", LIMIT, || {
            socket.send(&request).unwrap();
            requests += 1;
            // The flood before may have filled the queue of the server's socket.
            if let Ok(length) = socket.recv(&mut buffer) {
                assert!(length <= request.len(), "no more than was sent");
                replies += usize::from(length == request.len());
            }
            (replies == 100).then_some(())
        });
    }
    socket.set_nonblocking(true).unwrap();
    assert!(socket.recv(&mut buffer).is_err(), "{requests} requests, garbage has no answer");
}

/// Opens some hundred connections a second from these addresses for as long as `running`, holds the
/// last ones, and counts all.
fn flood(lab: &Lab, sources: u16, running: &AtomicBool, opened: &AtomicUsize) {
    lab.inet.join();
    let mut held = std::collections::VecDeque::new();
    while running.load(Ordering::Relaxed) {
        let number = opened.fetch_add(1, Ordering::Relaxed);
        let [high, low] = u16::try_from(number % usize::from(sources)).unwrap().to_be_bytes();
        let source = Ipv4Addr::new(100, 65, high, low);
        if let Ok(mut stream) = attacker::connect_from(source) {
            let _ = stream.write_all(&b"CS"[number % 2..][..1]);
            held.push_back(stream);
        }
        if held.len() > 500 {
            held.pop_front();
        }
        // More is a measurement of the machine, which runs the strangers too.
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_flood_of_strangers_harms_nobody() {
    let lab = Lab::two_uplinks("flood");
    lab.inet.ip("route add local 100.65.0.0/16 dev lo");
    let mut server = ServerProgram::start(&lab);
    let agent = AgentProgram::start(&lab, &server);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let honest = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let transfer = Transfer::download(&honest, Transfer::ENDLESS).unwrap();
    transfer.wait_bytes(1_000_000, LIMIT);
    let newcomer = Attacker::new(&lab.target, &server.invite("newcomer"));
    let before = (server.process().open_files(), server.process().resident_kib());

    for sources in [1, 5000] {
        let (running, opened) = (AtomicBool::new(true), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| flood(&lab, sources, &running, &opened));
            }
            until("the flood has filled the server's door", LIMIT, || {
                (server.status()?["unauthenticated"].as_u64()? >= 200).then_some(())
            });
            let report = churn(&honest, 20, 3 * LIMIT / 10);
            println!(
                "{} strangers from {sources} addresses, {} honest connections, slowest {:?}",
                opened.load(Ordering::Relaxed),
                report.done,
                report.slowest
            );
            // Somebody the server does not know yet may have to try again.
            let token = (sources == 1).then(|| newcomer.token.clone());
            let entered = wait_for(LIMIT, || newcomer.connect_control(token.clone()).ok());
            running.store(false, Ordering::Relaxed);
            assert!(entered.is_some(), "a new client is let in during the flood");
            assert_eq!(report.failures, Vec::<String>::new());
            assert!(report.slowest < 2 * PAUSE, "{report:?}");
        });
        assert!(opened.load(Ordering::Relaxed) > 1000, "{opened:?} connections are no flood");
    }
    assert_eq!(agent.status().unwrap()["streams"]["failed_total"], 0);
    assert_refused(&mut server, &["crowded"]);
    assert_unharmed(transfer);
    let process = server.process();
    let now = || (process.open_files(), process.resident_kib());
    let calm = wait_for(2 * LIMIT, || (now().0 <= before.0 + 20).then_some(()));
    println!("descriptors and KiB before {before:?}, after {:?}", now());
    assert!(calm.is_some(), "descriptors before {before:?}, after {:?}", now());
    assert!(now().1 < before.1 + 16 * 1024, "KiB before {before:?}, after {:?}", now());
}

#[test]
fn sessions_are_replaced_and_no_stream_is_disturbed() {
    let lab = Lab::two_uplinks("rotation");
    // The next one comes after three quarters of it.
    let server = ServerProgram::start_with(&lab, "session_lifetime = 4\n");
    let agent = AgentProgram::start(&lab, &server);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let honest = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let transfer = Transfer::download(&honest, Transfer::ENDLESS).unwrap();
    let mut idle = open_idle(&honest, 4).expect("connect");

    let client = Attacker::new(&lab.target, &server.invite("second"));
    let mut control = client.connect_control(Some(client.token.clone())).expect("it is invited");
    let mut first = control.session();
    let open = |session: &mut ClientSession| {
        let mut stream = client.open_stream(session, (TARGET_V4, 80).into());
        stream.write(b"echo\n");
        stream
    };
    let mut stream = open(&mut first);
    let mut second = control.next_session();
    assert_ne!(first.keys().id(), second.keys().id());
    stream.assert_echo(b"keys of its own");
    open(&mut first).assert_echo(b"begun after its session was replaced");
    open(&mut second).assert_echo(b"with the new one");
    control.next_session();
    control.ping();

    // The agent's session has been replaced as often.
    for stream in &mut idle {
        stream.write_all(b"?").and_then(|()| stream.read_exact(&mut [0])).expect("it goes on");
    }
    open_idle(&honest, 4).expect("new connections work");
    assert_eq!(agent.status().unwrap()["streams"]["failed_total"], 0);
    assert_unharmed(transfer);
}

/// Leaves a program so many more descriptors than it has open.
fn limit_files(process: &Process, more: usize) {
    let pid = Pid::from_raw(process.id().try_into().unwrap());
    let limit = Some((process.open_files() + more) as u64);
    prlimit(pid, Resource::Nofile, Rlimit { current: limit, maximum: limit }).unwrap();
}

/// Soft and hard limit of open files.
fn file_limits(process: &Process) -> (String, String) {
    let text = std::fs::read_to_string(format!("/proc/{}/limits", process.id())).unwrap();
    let line = text.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let mut words = line.split_whitespace().skip(3).map(str::to_owned);
    (words.next().unwrap(), words.next().unwrap())
}

#[test]
fn programs_out_of_descriptors_shed_and_recover() {
    let lab = Lab::two_uplinks("descriptors");
    // Programs start with the usual soft limit, and raise it.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(1024), ..limit }).unwrap();
    let mut server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    setrlimit(Resource::Nofile, limit).unwrap();
    for process in [server.process(), agent.process()] {
        let (soft, hard) = file_limits(process);
        assert_eq!(soft, hard);
    }
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let honest = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    // It is quiet, so that the processor's time is that of the programs' waiting.
    let mut early = open_idle(&honest, 1).expect("connect").remove(0);
    let mut echo = || early.write_all(b"?").and_then(|()| early.read_exact(&mut [0]));

    // The server: strangers take what is left.
    limit_files(server.process(), 20);
    let strangers: Vec<TcpStream> = (0..100)
        .map(|_| lab.target.enter(|| TcpStream::connect(SERVER)).expect("connect"))
        .collect();
    at_rest_at_the_limit(server.process());
    echo().expect("the connection from before goes on");
    drop(strangers);
    until("the server serves again", LIMIT, || open_idle(&honest, 1).ok());

    // The agent: LAN clients do.
    limit_files(agent.process(), 20);
    let clients: Vec<_> = (0..100).map(|_| honest.connect()).collect();
    at_rest_at_the_limit(agent.process());
    echo().expect("the connection from before goes on");
    drop(clients);
    until("the agent serves again", LIMIT, || open_idle(&honest, 1).ok());
}

/// Asserts that a program says what it lacks, and does not burn the processor for it.
fn at_rest_at_the_limit(process: &Process) {
    const SPELL: Duration = Duration::from_secs(2);
    until("it says so", LIMIT, || process.output().contains("cannot accept").then_some(()));
    let (started, used) = (Instant::now(), process.cpu_time());
    thread::sleep(SPELL);
    let share = (process.cpu_time() - used).as_secs_f64() / started.elapsed().as_secs_f64();
    println!("{:.0} % of a processor at the limit", share * 100.0);
    assert!(share < 0.15, "{share}");
    assert_eq!(process.output().matches("cannot accept").count(), 1, "said once a minute");
}

#[test]
fn a_server_started_anew_loses_no_new_connection() {
    let lab = Lab::two_uplinks("anew");
    let mut server = ServerProgram::start(&lab);
    let block = "config agent 'agent'\n\toption on_server_loss 'block'\n";
    let mut agent = AgentProgram::start_with(&lab, &server, block);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let honest = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let is_warm = |status: &Value| status["streams"]["warm"].as_u64() >= Some(2);
    for silently in [false, true] {
        agent.wait_status("streams are warm", is_warm);
        // Without a word to the agent, as when the host loses its power.
        if silently {
            lab.uplinks().iter().for_each(|uplink| uplink.blackhole(lab::Direction::Both));
        }
        server.kill();
        server.restart();
        lab.uplinks().iter().for_each(lab::Uplink::restore);
        let opened = open_idle(&honest, 4);
        let streams = agent.status().expect("the agent answers")["streams"].clone();
        println!("silently: {silently}, {streams}");
        assert_eq!(opened.expect("new connections work").len(), 4);
        assert_eq!(streams["failed_total"], 0);
        let retried = streams["failed_by_cause"]["tried again"].as_u64().unwrap_or(0);
        assert!(!silently || retried > 0, "no stream was dead: {streams}");
    }
}
