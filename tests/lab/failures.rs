//! Ways for an uplink to fail, and what the person downloading, uploading, typing and talking notices.

use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::traffic::{Dialer, Kind, TrafficServer, Transfer, UdpEcho, UdpFlow};
use super::{AgentProgram, Direction, Lab, TARGET_V4, Uplink};

const SECOND: Duration = Duration::from_secs(1);
/// How long everything may take to be well again; an uplink that keeps failing is held down.
const WELL_LIMIT: Duration = Duration::from_secs(90);
/// Bytes after which a transfer is under way over all uplinks.
const UNDER_WAY: u64 = 20_000_000;
/// The UDP echo's port.
const ECHO: u16 = 5004;

/// How a path fails and recovers.
pub struct Failure {
    /// What it is called.
    pub name: &'static str,
    /// Begins it.
    pub go: fn(&Uplink),
    /// Ends it.
    pub come: fn(&Uplink),
}

impl Failure {
    const fn new(name: &'static str, go: fn(&Uplink), come: fn(&Uplink)) -> Failure {
        Failure { name, go, come }
    }
}

fn far(uplink: &Uplink, one_way: Duration) {
    for direction in [Direction::Up, Direction::Down] {
        uplink.delay(direction, one_way);
    }
}

/// Failures of one uplink.
pub const FAILURES: [Failure; 9] = [
    Failure::new("black hole up", |wan| wan.blackhole(Direction::Up), Uplink::restore),
    Failure::new("black hole down", |wan| wan.blackhole(Direction::Down), Uplink::restore),
    Failure::new("black hole", |wan| wan.blackhole(Direction::Both), Uplink::restore),
    Failure::new("link down", Uplink::link_down, Uplink::link_up),
    Failure::new("address lost", Uplink::drop_address, Uplink::obtain_address),
    Failure::new("gateway lost", Uplink::gateway_down, Uplink::gateway_up),
    Failure::new("30 % loss", |wan| wan.loss(Direction::Both, 30.0), Uplink::restore),
    Failure::new("RTT of 2 s", |wan| far(wan, SECOND), |wan| far(wan, Duration::ZERO)),
    Failure::new("another address", Uplink::renumber, |_| {}),
];

/// The longest pauses that a failure made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pauses {
    /// Of a download.
    pub download: Duration,
    /// Of an upload.
    pub upload: Duration,
    /// Until the echo of an idle session's next key stroke.
    pub key: Duration,
    /// Of a UDP flow of 50 packets a second.
    pub udp: Duration,
}

impl Pauses {
    /// Whether none is longer than in `limits`.
    pub fn are_within(&self, limits: &Pauses) -> bool {
        let each = |pauses: &Pauses| [pauses.download, pauses.upload, pauses.key, pauses.udp];
        each(self).iter().zip(each(limits)).all(|(pause, limit)| *pause <= limit)
    }
}

impl fmt::Display for Pauses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Pauses { download, upload, key, udp } = self;
        write!(f, "{download:>9.2?} {upload:>9.2?} {key:>9.2?} {udp:>9.2?}")
    }
}

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

/// People on the LAN, and what they talk to.
pub struct Users<'lab> {
    lab: &'lab Lab,
    /// What they fetch from and send to.
    pub target: TrafficServer,
    /// Their connections.
    pub dialer: Dialer,
    _echo: UdpEcho,
    terminal: Terminal,
}

impl<'lab> Users<'lab> {
    /// Users of a lab whose agent is ready.
    #[track_caller]
    pub fn start(lab: &'lab Lab) -> Users<'lab> {
        let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
        let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
        let _echo = UdpEcho::start(&lab.target, ECHO);
        let terminal = Terminal::open(&dialer);
        Users { lab, target, dialer, _echo, terminal }
    }

    /// Opens a session anew, after the last one ended.
    #[track_caller]
    pub fn log_in(&mut self) {
        self.terminal = Terminal::open(&self.dialer);
    }

    /// Has them notice a failure of the first uplink, during a download and during an upload.
    #[track_caller]
    pub fn notice(&mut self, failure: &Failure, agent: &mut AgentProgram) -> Pauses {
        let mut pauses = Pauses::default();
        for is_download in [true, false] {
            all_well(agent);
            let transfer = self.transfer(is_download);
            let call = self.call();
            let gone = Instant::now();
            (failure.go)(self.lab.uplink(0));
            sleep(SECOND / 10);
            pauses.key = pauses.key.max(self.terminal.key());
            sleep(3 * SECOND);
            assert!(!transfer.is_finished(), "{}: the connection was lost", failure.name);
            let report = transfer.report();
            let pause = report.longest_pause_since(report.at(gone));
            *(if is_download { &mut pauses.download } else { &mut pauses.upload }) = pause;
            pauses.udp = pauses.udp.max(call.longest_pause_since(gone));
            (failure.come)(self.lab.uplink(0));
            assert_eq!(transfer.stop().corrupt_at, None);
        }
        pauses
    }

    /// A transfer that is under way.
    #[track_caller]
    pub fn transfer(&self, is_download: bool) -> Transfer {
        let transfer = match is_download {
            true => Transfer::download(&self.dialer, Transfer::ENDLESS),
            false => Transfer::upload(&self.target, &self.dialer, Transfer::ENDLESS),
        }
        .expect("start a transfer");
        transfer.wait_bytes(UNDER_WAY, 10 * SECOND);
        transfer
    }

    /// A UDP flow that is answered.
    #[track_caller]
    pub fn call(&self) -> UdpFlow {
        UdpFlow::start(&self.lab.lan, SocketAddr::new(TARGET_V4.into(), ECHO))
    }

    /// How long the echo of a key stroke takes in the session that is open all the time.
    #[track_caller]
    pub fn key(&mut self) -> Duration {
        self.terminal.key()
    }
}

/// Waits until all uplinks carry subflows.
#[track_caller]
pub fn all_well(agent: &mut AgentProgram) {
    super::until("all uplinks are well", WELL_LIMIT, || {
        let status = agent.status()?;
        let well = |uplink: &serde_json::Value| {
            uplink["state"] == "up" && uplink["in_use"] == true && uplink["subflows"] != 0
        };
        status["uplinks"].as_array()?.iter().all(well).then_some(())
    });
}
