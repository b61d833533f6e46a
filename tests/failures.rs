//! Whatever fails on the way: what the person downloading, uploading, typing and talking notices.

mod lab;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::traffic::{Dialer, Kind, TrafficServer, Transfer, UdpEcho, UdpFlow};
use lab::{AgentProgram, Direction, Lab, ServerProgram, TARGET_V4, Uplink};

const SECOND: Duration = Duration::from_secs(1);
/// The longest pause of a download or an upload when a path fails.
const PAUSE: Duration = Duration::from_millis(500);
/// The same where what is lost is a matter of luck, and of how often in a row.
const LUCK: Duration = Duration::from_millis(1500);
/// The longest pause of a UDP flow of 50 packets a second.
const UDP_PAUSE: Duration = Duration::from_millis(1500);
/// How long a key stroke may take: a retransmission timeout, and one more.
const KEY_LIMIT: Duration = Duration::from_millis(1500);
/// How long everything may take to be well again; an uplink that keeps failing is held down.
const WELL_LIMIT: Duration = Duration::from_secs(90);
/// The UDP echo's port.
const ECHO: u16 = 5004;

/// How a path fails and recovers.
struct Failure {
    name: &'static str,
    go: fn(&Uplink),
    come: fn(&Uplink),
    pause: Duration,
}

fn far(uplink: &Uplink, one_way: Duration) {
    for direction in [Direction::Up, Direction::Down] {
        uplink.delay(direction, one_way);
    }
}

const FAILURES: [Failure; 8] = [
    Failure {
        name: "black hole up",
        go: |uplink| uplink.blackhole(Direction::Up),
        come: Uplink::restore,
        pause: PAUSE,
    },
    Failure {
        name: "black hole down",
        go: |uplink| uplink.blackhole(Direction::Down),
        come: Uplink::restore,
        pause: PAUSE,
    },
    Failure { name: "link down", go: Uplink::link_down, come: Uplink::link_up, pause: PAUSE },
    Failure {
        name: "address lost",
        go: Uplink::drop_address,
        come: Uplink::obtain_address,
        pause: PAUSE,
    },
    Failure {
        name: "gateway lost",
        go: Uplink::gateway_down,
        come: Uplink::gateway_up,
        pause: PAUSE,
    },
    Failure {
        name: "30 % loss",
        go: |uplink| uplink.loss(Direction::Both, 30.0),
        come: Uplink::restore,
        pause: LUCK,
    },
    Failure {
        name: "RTT of 2 s",
        go: |uplink| far(uplink, SECOND),
        come: |uplink| far(uplink, Duration::ZERO),
        pause: PAUSE,
    },
    Failure { name: "another address", go: Uplink::renumber, come: |_| {}, pause: PAUSE },
];

/// A connection on which somebody types now and then.
struct Terminal(TcpStream);

impl Terminal {
    fn open(dialer: &Dialer) -> Terminal {
        let mut stream = dialer.connect().expect("connect through the tunnel");
        stream.set_read_timeout(Some(10 * SECOND)).expect("set a time limit");
        stream.write_all(b"echo\n").expect("ask for an echo");
        Terminal(stream)
    }

    /// How long the echo of a key stroke takes.
    fn key(&mut self) -> Duration {
        let pressed = Instant::now();
        self.0.write_all(b"k").expect("the connection takes a key stroke");
        let mut echo = [0];
        self.0.read_exact(&mut echo).expect("the connection echoes a key stroke");
        pressed.elapsed()
    }
}

#[test]
fn nobody_notices_a_failure_of_the_faster_uplink() {
    let lab = Lab::two_uplinks("failures");
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let _echo = UdpEcho::start(&lab.target, ECHO);
    let mut terminal = Terminal::open(&dialer);
    let mut wrong = Vec::new();
    println!("{:<16} {:>9} {:>9} {:>9} {:>9}", "", "download", "upload", "key", "UDP");
    for failure in FAILURES {
        let mut pauses = Vec::new();
        for is_download in [true, false] {
            all_well(&mut agent);
            let call = UdpFlow::start(&lab.lan, SocketAddr::new(TARGET_V4.into(), ECHO));
            let transfer = match is_download {
                true => Transfer::download(&dialer, Transfer::ENDLESS),
                false => Transfer::upload(&target, &dialer, Transfer::ENDLESS),
            }
            .expect("start a transfer");
            transfer.wait_bytes(20_000_000, 10 * SECOND);
            let gone = Instant::now();
            (failure.go)(lab.uplink(0));
            sleep(SECOND / 10);
            let key = terminal.key();
            sleep(3 * SECOND);
            assert!(!transfer.is_finished(), "{}: the connection was lost", failure.name);
            let report = transfer.report();
            pauses.push((
                report.longest_pause_since(report.at(gone)),
                key,
                call.longest_pause_since(gone),
            ));
            (failure.come)(lab.uplink(0));
            assert_eq!(transfer.stop().corrupt_at, None);
        }
        let [down, up] = pauses[..] else { unreachable!("two transfers") };
        let (key, udp) = (down.1.max(up.1), down.2.max(up.2));
        let name = failure.name;
        println!("{name:<16} {:>9.2?} {:>9.2?} {key:>9.2?} {udp:>9.2?}", down.0, up.0);
        for (what, pause, limit) in [
            ("download", down.0, failure.pause),
            ("upload", up.0, failure.pause),
            ("key stroke", key, KEY_LIMIT),
            ("UDP flow", udp, UDP_PAUSE),
        ] {
            if pause > limit {
                wrong.push(format!("{name}: the {what} paused {pause:.2?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", agent.status_table());
}

fn all_well(agent: &mut AgentProgram) {
    lab::until("both uplinks are well", WELL_LIMIT, || {
        let status = agent.status()?;
        let well = |uplink: &serde_json::Value| {
            uplink["state"] == "up" && uplink["in_use"] == true && uplink["subflows"] != 0
        };
        status["uplinks"].as_array()?.iter().all(well).then_some(())
    });
}
