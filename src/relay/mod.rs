//! Copies between two streams until both directions are done: [`plain`] with splice(2) where that saves
//! a copy, [`sealed`] through AEAD records.
//!
//! One stream is the LAN side (the client at the agent, the target at the server), the other the
//! tunnel. Each direction ends by itself (half-close). When one side breaks, the other is reset, as
//! it would be without a relay in between. A stream that moves nothing holds neither pipe nor
//! buffer.
//!
//! A relay that is dropped before its end leaves what it has taken from one side, and the other has
//! not taken yet, in what it was called with: called again with that, it goes on where it was.

mod losses;
pub mod message;
mod pace;
mod plain;
mod pool;
mod sealed;
mod window;
mod workers;

#[cfg(test)]
mod tests;

pub use pace::Pace;
pub use plain::{Unsent, plain};
pub use sealed::{Records, sealed};
pub use workers::{Ended, Relay, State, Workers};

use std::cell::Cell;
use std::convert::Infallible;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::os::socket::{self, CongestionControl};
use crate::status::RateMeter;
use losses::Losses;
use pace::Turn;
use window::Window;

/// How long what a side sent before it broke may take to be delivered.
const DELIVERY: Duration = Duration::from_secs(2);

/// How often the tunnel is nudged while data moves or did lately.
const NUDGE_ACTIVE: Duration = Duration::from_secs(1);
/// How often otherwise, and how long "lately" is.
const NUDGE_IDLE: Duration = Duration::from_secs(10);

/// Payload bytes moved so far, readable while the relay runs, on another thread perhaps.
#[derive(Debug, Default)]
pub struct Counters {
    moved: Mutex<Moved>,
    pace: Option<Arc<Pace>>,
}

#[derive(Debug, Default)]
struct Moved {
    to_tunnel: u64,
    to_lan: u64,
    to_tunnel_rate: RateMeter,
    to_lan_rate: RateMeter,
}

impl Counters {
    /// Counters of a stream that has to keep a pace.
    pub fn paced(pace: Arc<Pace>) -> Counters {
        Counters { pace: Some(pace), ..Counters::default() }
    }

    fn moved(&self) -> MutexGuard<'_, Moved> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts payload that is written to a side.
    fn add(&self, to: Side, bytes: usize) {
        let mut moved = self.moved();
        let counter = match to {
            Side::Lan => &mut moved.to_lan,
            Side::Tunnel => &mut moved.to_tunnel,
        };
        *counter = counter.saturating_add(bytes as u64);
    }

    /// Payload bytes from the LAN side into the tunnel.
    pub fn to_tunnel(&self) -> u64 {
        self.moved().to_tunnel
    }

    /// Counts payload that went into the tunnel ahead of the relay.
    pub fn add_to_tunnel(&self, bytes: usize) {
        self.add(Side::Tunnel, bytes);
    }

    /// Payload bytes from the tunnel to the LAN side.
    pub fn to_lan(&self) -> u64 {
        self.moved().to_lan
    }

    /// Takes a sample for the rates; to be called about once a second.
    pub fn measure(&self, now: std::time::Instant) {
        let mut moved = self.moved();
        let Moved { to_tunnel, to_lan, .. } = *moved;
        moved.to_tunnel_rate.sample(now, to_tunnel);
        moved.to_lan_rate.sample(now, to_lan);
    }

    /// Bits a second in both directions, at the last sample.
    pub fn bps(&self) -> u64 {
        self.to_tunnel_bps().saturating_add(self.to_lan_bps())
    }

    /// Bits a second from the LAN side into the tunnel, at the last sample.
    pub fn to_tunnel_bps(&self) -> u64 {
        self.moved().to_tunnel_rate.bps()
    }

    /// Bits a second from the tunnel to the LAN side, at the last sample.
    pub fn to_lan_bps(&self) -> u64 {
        self.moved().to_lan_rate.bps()
    }
}

/// How long a connection may move nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleLimits {
    /// While both directions are open.
    pub open: Duration,
    /// Once one direction has ended.
    pub half_closed: Duration,
}

impl Default for IdleLimits {
    /// Two hours, which RFC 5382 expects of a NAT too, and ten minutes.
    fn default() -> IdleLimits {
        IdleLimits { open: Duration::from_secs(7200), half_closed: Duration::from_secs(600) }
    }
}

/// One of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client at the agent, the target at the server.
    Lan,
    /// The other end of the tunnel (or the target, when nothing is tunnelled).
    Tunnel,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Lan => "LAN side",
            Side::Tunnel => "tunnel",
        })
    }
}

/// Why a relay ended before both directions were done. Both streams have been reset.
#[derive(Debug)]
pub enum Failure {
    /// A side broke.
    Broken {
        /// Which.
        side: Side,
        /// How: `ConnectionReset` when its peer reset it, `UnexpectedEof` for a tunnel cut off
        /// without its end record, `InvalidData` for records that are not authentic.
        error: io::Error,
    },
    /// Nothing was moved for as long as this.
    Idle(Duration),
}

impl Failure {
    /// Whether what arrived through the tunnel is not what the other end sent.
    pub fn is_altered(&self) -> bool {
        matches!(self, Failure::Broken { side: Side::Tunnel, error } if error.kind() == io::ErrorKind::InvalidData)
    }

    /// What the status counts it as; `None` for a reset, which either end may send.
    pub fn cause(&self) -> Option<&'static str> {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        match self {
            Failure::Idle(_) => Some("idle"),
            Failure::Broken { error, .. }
                if matches!(error.kind(), ConnectionReset | BrokenPipe) =>
            {
                None
            }
            Failure::Broken { side: Side::Lan, .. } => Some("connection lost"),
            Failure::Broken { .. } if self.is_altered() => Some("altered on the way"),
            Failure::Broken { side: Side::Tunnel, .. } => Some("tunnel broke"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Broken { side, error } => write!(f, "the {side} broke: {error}"),
            Failure::Idle(limit) => write!(f, "nothing was moved for {} s", limit.as_secs()),
        }
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Failure::Broken { error, .. } => Some(error),
            Failure::Idle(_) => None,
        }
    }
}

/// A stream and which of the two it is.
#[derive(Clone, Copy)]
struct End<'a> {
    side: Side,
    stream: &'a TcpStream,
}

impl End<'_> {
    fn broken(&self, error: io::Error) -> Failure {
        Failure::Broken { side: self.side, error }
    }

    /// Waits until there is something to read; by one task at a time, and in 150 bytes less of its frame
    /// than `TcpStream::readable` takes.
    async fn readable(&self) -> Result<(), Failure> {
        poll_fn(|context| self.stream.poll_read_ready(context))
            .await
            .map_err(|error| self.broken(error))
    }

    /// Waits until there is room to write, likewise.
    async fn writable(&self) -> Result<(), Failure> {
        poll_fn(|context| self.stream.poll_write_ready(context))
            .await
            .map_err(|error| self.broken(error))
    }

    /// Whether it is better not to read for this end now: it takes nothing, and many buffers are lent already.
    fn is_stuck(&self) -> Result<bool, Failure> {
        let has_room = || socket::has_room(self.stream).map_err(|error| self.broken(error));
        Ok(pool::are_scarce() && !has_room()?)
    }

    /// Waits until it is worth while to read for this end.
    async fn unstuck(&self) -> Result<(), Failure> {
        while self.is_stuck()? {
            self.writable().await?;
        }
        Ok(())
    }

    /// Writes by `write`, which returns how many bytes went out, as soon as there is room.
    async fn write(
        &self,
        mut write: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Result<usize, Failure> {
        loop {
            match write(self.stream) {
                Ok(0) => return Err(self.broken(io::ErrorKind::WriteZero.into())),
                Ok(written) => return Ok(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.writable().await?;
                }
                Err(error) => return Err(self.broken(error)),
            }
        }
    }

    /// Writes all of `data`, counted by `written`. What is not written when this ends early, or is
    /// dropped, is added to `unsent`.
    async fn write_all(
        &self,
        data: &[u8],
        unsent: &mut Vec<u8>,
        mut written: impl FnMut(usize),
    ) -> Result<(), Failure> {
        let mut rest = Rest { bytes: data, unsent };
        while !rest.bytes.is_empty() {
            let count = self.write(|stream| stream.try_write(rest.bytes)).await?;
            rest.bytes = rest.bytes.get(count..).unwrap_or_default();
            written(count);
        }
        Ok(())
    }

    /// Has the kernel reset the stream, rather than end it, if it is closed before [`End::shutdown_write`]: the
    /// process may end at any time, and what was cut off must not look complete.
    fn reset_unless_ended(&self) {
        // It fails only on a stream that is broken already.
        let _ = socket::reset_when_closed(self.stream, true);
    }

    /// Ends this direction towards the stream's peer.
    fn shutdown_write(&self) -> Result<(), Failure> {
        let _ = socket::reset_when_closed(self.stream, false);
        match socket::shutdown_write(self.stream) {
            // It was ended before an interruption, and so has its peer since; one that broke is noticed
            // as that.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            result => result.map_err(|error| self.broken(error)),
        }
    }
}

/// Bytes being written; those left when it is dropped are added to `unsent`.
struct Rest<'a> {
    bytes: &'a [u8],
    unsent: &'a mut Vec<u8>,
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        self.unsent.extend_from_slice(self.bytes);
    }
}

/// What `read` gave; `None` when the stream has nothing now.
fn unless_blocked(read: io::Result<usize>) -> io::Result<Option<usize>> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        result => result.map(Some),
    }
}

/// What the two directions of a relay share.
struct Progress<'a> {
    counters: &'a Counters,
    window: Window<'a>,
    last: Cell<Instant>,
    /// Told whenever payload was moved, or an end.
    moves: Notify,
    failed: Cell<Option<Side>>,
}

impl<'a> Progress<'a> {
    fn new(counters: &'a Counters, tunnel: &'a TcpStream) -> Progress<'a> {
        let (window, last) = (Window::of(tunnel), Cell::new(Instant::now()));
        Progress { counters, window, last, moves: Notify::new(), failed: Cell::new(None) }
    }

    /// Counts payload that was written to a side.
    fn moved(&self, to: Side, bytes: usize) {
        self.counters.add(to, bytes);
        let now = Instant::now();
        if to == Side::Lan {
            self.window.received(bytes, now);
        }
        self.stir(now);
    }

    /// Notes that something moves.
    fn stir(&self, now: Instant) {
        self.last.set(now);
        self.moves.notify_waiters();
    }

    /// Whether a stream that ends really ends: after it broke, its end means nothing.
    fn check_end(&self, of: Side) -> Result<(), Failure> {
        match self.failed.get() {
            Some(side) if side == of => {
                Err(Failure::Broken { side, error: io::ErrorKind::ConnectionReset.into() })
            }
            _ => Ok(()),
        }
    }

    /// Waits until nothing was moved for as long as is allowed, which it returns.
    async fn idle(&self, limits: IdleLimits, half_closed: &Cell<bool>) -> Duration {
        loop {
            let limit = if half_closed.get() { limits.half_closed } else { limits.open };
            let idle = self.last.get().elapsed();
            if idle >= limit {
                return limit;
            }
            // The limit may shrink meanwhile, so that is looked at in between.
            let wait = limits.half_closed.min(limit.saturating_sub(idle));
            sleep_until(Instant::now() + wait.max(Duration::from_millis(1))).await;
        }
    }
}

/// Has the kernel send again what it holds back, for ever.
///
/// When the last subflow of an MPTCP connection is closed and others join later, Linux (through 6.18)
/// marks all data as unsent: its retransmission timer then finds nothing to repeat, and what is unsent
/// waits for the next write, which may never come. Setting TCP_NODELAY again sends it. Where all is
/// delivered there is nothing to send, and no timer runs.
///
/// The same rhythm serves to look at the subflows' losses.
async fn nudge(tunnel: &TcpStream, progress: &Progress<'_>) -> Infallible {
    let mut losses = Losses::default();
    loop {
        let active = progress.last.get().elapsed() < NUDGE_IDLE;
        sleep(if active { NUDGE_ACTIVE } else { NUDGE_IDLE }).await;
        // It fails only on a connection that has ended, which the relay notices itself.
        let _ = tunnel.set_nodelay(true);
        if active && losses.are_random(&socket::subflows(tunnel).unwrap_or_default()) {
            // A kernel without BBR goes on as before.
            let _ = socket::set_congestion_control(tunnel, CongestionControl::Bbr);
        }
        // Plain TCP, which cannot say so, sends again by itself.
        if socket::is_delivered(tunnel).unwrap_or(true) {
            progress.moves.notified().await;
        }
    }
}

/// One direction of a relay, at rest in its caller's frame: it is large enough not to be moved.
type Direction<'a> = Pin<&'a mut dyn Future<Output = Result<(), Failure>>>;

/// Runs both directions to their ends, or until one side breaks or both are idle. What a side that
/// broke had sent before is still delivered, as far as the other side takes it soon.
async fn run(
    lan: &TcpStream,
    tunnel: &TcpStream,
    mut to_tunnel: Direction<'_>,
    mut to_lan: Direction<'_>,
    progress: &Progress<'_>,
    limits: IdleLimits,
) -> Result<(), Failure> {
    let mut lan_broken = pin!(socket::broken(lan));
    let mut tunnel_broken = pin!(socket::broken(tunnel));
    let (mut to_tunnel_done, mut to_lan_done) = (false, false);
    let half_closed = Cell::new(false);
    let mut idle = pin!(progress.idle(limits, &half_closed));
    let mut nudge = pin!(nudge(tunnel, progress));
    let failure = loop {
        let ended = tokio::select! {
            biased;
            result = &mut to_tunnel, if !to_tunnel_done => {
                to_tunnel_done = true;
                result
            }
            result = &mut to_lan, if !to_lan_done => {
                to_lan_done = true;
                result
            }
            error = &mut lan_broken => Err(Failure::Broken { side: Side::Lan, error }),
            error = &mut tunnel_broken => Err(Failure::Broken { side: Side::Tunnel, error }),
            limit = &mut idle => Err(Failure::Idle(limit)),
            never = &mut nudge => match never {},
        };
        match ended {
            Ok(()) if to_tunnel_done && to_lan_done => return Ok(()),
            Ok(()) => half_closed.set(true),
            Err(failure) => break failure,
        }
    };
    if let Failure::Broken { side, .. } = failure {
        progress.failed.set(Some(side));
        // How the delivery ends adds nothing to the failure there is already.
        let _ = match side {
            Side::Lan if !to_tunnel_done => timeout(DELIVERY, to_tunnel).await.is_ok(),
            Side::Tunnel if !to_lan_done => timeout(DELIVERY, to_lan).await.is_ok(),
            _ => true,
        };
    }
    Err(failure)
}
