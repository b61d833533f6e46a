//! Storms of connections, at the server's port and in the LAN: they are shed, hurt nobody else, and are
//! over when they end.

mod attacker;
mod lab;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use attacker::{Attacker, SERVER};
use lab::traffic::{Dialer, Kind, TrafficServer, Transfer, churn, open_idle};
use lab::{AgentProgram, Lab, Namespace, Process, ServerProgram, TARGET_V4, until};
use mptcp_bond::config::keys::PrivateKey;
use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};

const LIMIT: Duration = Duration::from_secs(10);
/// The longest that others may be held up, on a machine that makes the storm as well.
const PAUSE: Duration = Duration::from_secs(2);
/// Within this time after its end nothing is left of a storm for who connects.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Connections of each kind.
const MANY: usize = 3000;
/// Threads that open them.
const THREADS: usize = 4;
/// KiB that a program may need for a storm, and afterwards keep.
const MORE_MEMORY: [u64; 2] = [24 * 1024, 8 * 1024];
/// Streams that the server has for all clients.
const STREAMS: usize = 600;
/// Addresses whose owner never answers, and those of strangers.
const DEAF: &str = "100.66.0.0/16";
const STRANGERS: &str = "100.65.0.0/16";

/// Runs `open` so many times, on some threads inside a namespace, and gives what it returns.
fn storm<T: Send>(from: &Namespace, count: usize, open: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let open = &open;
    thread::scope(|scope| {
        let work = |first: usize| {
            move || {
                from.join();
                (first..count).step_by(THREADS).map(open).collect::<Vec<T>>()
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|first| scope.spawn(work(first))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    })
}

/// An address of one of the prefixes, another one for each number.
fn address(second: u8, number: usize) -> Ipv4Addr {
    let [high, low] = u16::try_from(number + 1).expect("not so many").to_be_bytes();
    Ipv4Addr::new(100, second, high, low)
}

/// Sends a SYN from an address that nothing is answered from: half a handshake.
fn half_open(number: usize, to: SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::new(address(66, number).into(), 0).into()).expect("bind");
    socket.set_nonblocking(true).expect("do not block");
    // It is under way.
    let _ = socket.connect(&to.into());
}

/// Makes this namespace the owner of strangers' addresses, and of some that answer nothing.
fn take_addresses(namespace: &Namespace) {
    for prefix in [STRANGERS, DEAF] {
        namespace.ip(&format!("route add local {prefix} dev lo"));
    }
    namespace.nft(&format!(
        "table inet deaf {{
  chain input {{
    type filter hook input priority filter;
    ip daddr {DEAF} drop
  }}
}}"
    ));
}

/// Is set at its end, also by a panic: who waits for it would wait for ever.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Those who were there before: a download, and a session in which somebody types.
struct Others {
    transfer: Transfer,
    session: TcpStream,
}

impl Others {
    fn begin(honest: &Dialer) -> Others {
        let transfer = Transfer::download(honest, Transfer::ENDLESS).expect("connect");
        transfer.wait_bytes(1_000_000, LIMIT);
        let session = open_idle(honest, 1).expect("connect").remove(0);
        Others { transfer, session }
    }

    /// Runs `storm` while they go on; asserts that none waits for long.
    fn endure<T>(&mut self, storm: impl FnOnce() -> T) -> T {
        let over = AtomicBool::new(false);
        let session = &mut self.session;
        thread::scope(|scope| {
            let typing = scope.spawn(|| {
                let mut slowest = Duration::ZERO;
                while !over.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let echo = session.write_all(b"?").and_then(|()| session.read_exact(&mut [0]));
                    echo.expect("the session goes on");
                    slowest = slowest.max(begun.elapsed());
                    thread::sleep(Duration::from_millis(20));
                }
                slowest
            });
            let outcome = {
                let _over = SetAtEnd(&over);
                storm()
            };
            let slowest = typing.join().expect("no panic");
            println!("slowest key stroke: {slowest:?}");
            assert!(slowest < PAUSE, "a key stroke took {slowest:?}");
            outcome
        })
    }

    fn assert_unharmed(self) {
        let bytes = self.transfer.report().bytes;
        self.transfer.wait_bytes(bytes + 1_000_000, LIMIT);
        let report = self.transfer.stop();
        println!("download: {:.0} Mbit/s, {:?}", report.goodput(), report.longest_pause());
        assert_eq!(report.corrupt_at, None);
        assert!(report.longest_pause() < PAUSE, "paused for {:?}", report.longest_pause());
    }
}

/// Asserts that a program does not hold more than it may, with what it held `before`.
#[track_caller]
fn assert_memory(process: &Process, before: u64, may_grow: u64) {
    let now = process.resident_kib();
    println!("{before} KiB before, {now} now");
    assert!(now <= before + may_grow, "{before} KiB before, {now} now");
}

/// Asserts that somebody new is served soon.
fn assert_over(honest: &Dialer) {
    let begun = Instant::now();
    open_idle(honest, 1).expect("a new connection works");
    let took = begun.elapsed();
    println!("a new connection takes {took:?}");
    assert!(took < AT_ONCE, "a new connection took {took:?}");
}

#[test]
fn a_storm_at_the_servers_port_is_shed() {
    let lab = Lab::two_uplinks("storm-server");
    take_addresses(&lab.inet);
    let mut server = ServerProgram::start(&lab);
    let agent = AgentProgram::start(&lab, &server);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let honest = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let mut others = Others::begin(&honest);
    let before = server.process().resident_kib();

    let stranger = Attacker::new(&lab.inet, &server.invite("nobody"));
    let message_1 = stranger.first_message(&PrivateKey::from_bytes([9; 32]), None);
    let held = others.endure(|| {
        storm(&lab.inet, 2 * MANY, |number| half_open(number, SERVER));
        // Half of them say nothing, the others begin a handshake and leave it at that.
        let held = storm(&lab.inet, MANY, |number| {
            let mut stream = attacker::connect_from(address(65, number)).ok()?;
            let said: &[u8] = if number % 2 == 0 { &[] } else { &message_1 };
            // The server may have closed it already.
            let _ = stream.write_all(said);
            Some(stream)
        });
        let report = churn(&honest, 20, Duration::from_secs(2));
        println!("{} new connections beside, slowest {:?}", report.done, report.slowest);
        assert_eq!(report.failures, Vec::<String>::new());
        assert!(report.slowest < 2 * PAUSE, "{report:?}");
        held
    });
    let connected = held.iter().flatten().count();
    assert!(connected > MANY / 2, "{connected} connections are no storm");
    let status = server.status().expect("the server answers");
    assert!(status["unauthenticated"].as_u64() <= Some(256), "{}", status["unauthenticated"]);
    assert_memory(server.process(), before, MORE_MEMORY[0]);

    drop(held);
    assert_over(&honest);
    until("nobody waits at the door", 2 * LIMIT, || {
        (server.status()?["unauthenticated"] == 0).then_some(())
    });
    assert_memory(server.process(), before, MORE_MEMORY[1]);
    assert_eq!(agent.status().expect("the agent answers")["streams"]["failed_total"], 0);
    others.assert_unharmed();
}

#[test]
fn a_storm_in_the_lan_is_shed() {
    let lab = Lab::two_uplinks("storm-lan");
    take_addresses(&lab.lan);
    for prefix in [STRANGERS, DEAF] {
        lab.router.ip(&format!("route add {prefix} via 192.168.77.2"));
    }
    let mut server = ServerProgram::start_with(&lab, &format!("streams = {STREAMS}\n"));
    let mut agent = AgentProgram::start(&lab, &server);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let honest = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let mut others = Others::begin(&honest);
    let before = [agent.process().resident_kib(), server.process().resident_kib()];
    let files = agent.process().open_files();
    let to = SocketAddr::new(TARGET_V4.into(), 80);

    let mut after = Vec::new();
    // The kernel keeps what is half open for a minute. It has room for 4096 of them, and answers the rest,
    // and whoever comes next, with SYN cookies.
    others.endure(|| {
        storm(&lab.lan, 2 * MANY, |number| half_open(number, to));
        assert_over(&honest);
    });
    let cookies = lab.router.run("nstat", &["-asz", "TcpExtSyncookiesRecv"]);
    let taken: Option<u64> = cookies.split_whitespace().rev().nth(1).and_then(|it| it.parse().ok());
    assert!(taken > Some(0), "not one came with a cookie: {cookies}");
    for _ in 0..2 {
        let held = others.endure(|| {
            storm(&lab.lan, MANY, |_| {
                if let Ok(stream) = TcpStream::connect(to) {
                    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger");
                }
            });
            storm(&lab.lan, MANY, |_| TcpStream::connect(to).ok())
        });
        let connected = held.iter().flatten().count();
        assert!(connected > MANY / 2, "{connected} connections are no storm");
        drop(held);
        // Those that the kernel has accepted are worked off: in 5 s, or in 20 beside other work.
        until("the agent has forgotten them", 6 * LIMIT, || {
            let queued = lab.router.run("ss", &["-Hltn", "src 127.0.0.1"]);
            let accepted = queued.split_whitespace().nth(1) == Some("0");
            let open = agent.status()?["connections"]["total"].as_u64()?;
            (accepted && open <= 4).then_some(())
        });
        assert_over(&honest);
        until("files are closed", LIMIT, || {
            (agent.process().open_files() <= files + 70).then_some(())
        });
        after.push([agent.process().resident_kib(), server.process().resident_kib()]);
    }
    println!("KiB before {before:?}, after each storm {after:?}");
    for end in [0, 1] {
        assert!(after[0][end] < before[end] + MORE_MEMORY[0], "before {before:?}, after {after:?}");
        assert!(after[1][end] < after[0][end] + MORE_MEMORY[1], "it grows: {after:?}");
    }
    // The server's door was not so crowded with them that some had to go another way.
    let status = agent.status().expect("the agent answers");
    assert_eq!(status["streams"]["failed_by_cause"]["untunnelled"], Value::Null, "{status:#}");
    others.assert_unharmed();
}
