//! The relay without encryption: splice(2) from socket to pipe to socket, and a buffer where the kernel has
//! no pages to hand over.

use std::pin::pin;

use tokio::io::Interest;
use tokio::net::TcpStream;

use super::{Counters, End, Failure, IdleLimits, Progress, Side, Turn, pool, run, unless_blocked};
use crate::os::socket::{self, Pipe};

/// How much the first splice of a burst asks for, in bytes: the kernel may allocate as many pages
/// in advance, too many for a keystroke.
const FIRST_FILL: usize = 16 * 1024;

/// Bytes that were read from one side and are not yet written to the other.
#[derive(Debug, Default)]
pub struct Unsent {
    /// From the LAN side.
    pub to_tunnel: Vec<u8>,
    /// From the tunnel: along with an answer, for instance.
    pub to_lan: Vec<u8>,
}

/// Relays until both directions have ended; what is `unsent` goes first.
///
/// # Errors
/// Why it ended early: both streams have then been reset.
pub async fn plain(
    lan: &TcpStream,
    tunnel: &TcpStream,
    unsent: &mut Unsent,
    counters: &Counters,
    limits: IdleLimits,
) -> Result<(), Failure> {
    let progress = Progress::new(counters, tunnel);
    let lan_end = End { side: Side::Lan, stream: lan };
    let tunnel_end = End { side: Side::Tunnel, stream: tunnel };
    lan_end.reset_unless_ended();
    // Through Linux 6.18 splicing from an MPTCP socket copies to new pages, one by one (`copy_splice_read`),
    // which costs more than to copy to a buffer and from there.
    let through = match socket::is_mptcp(tunnel) {
        Ok(true) => Through::Buffer,
        _ => {
            // On MPTCP that would reset each subflow, too, when it alone is closed.
            tunnel_end.reset_unless_ended();
            Through::Pipe
        }
    };
    let to_tunnel = copy(lan_end, tunnel_end, Through::Pipe, &mut unsent.to_tunnel, &progress);
    let to_lan = copy(tunnel_end, lan_end, through, &mut unsent.to_lan, &progress);
    let result = run(lan, tunnel, pin!(to_tunnel), pin!(to_lan), &progress, limits).await;
    if result.is_err() {
        socket::abort(lan);
        socket::abort(tunnel);
    }
    result
}

/// What bytes go through on their way.
#[derive(Clone, Copy)]
enum Through {
    Pipe,
    Buffer,
}

/// Copies one direction to its end.
async fn copy(
    from: End<'_>,
    to: End<'_>,
    through: Through,
    unsent: &mut Vec<u8>,
    progress: &Progress<'_>,
) -> Result<(), Failure> {
    let first = std::mem::take(unsent);
    to.write_all(&first, unsent, |written| progress.moved(to.side, written)).await?;
    drop(first);
    let mut turn = Turn::new(to.side, progress);
    loop {
        turn.wait().await;
        from.readable().await?;
        to.unstuck().await?;
        let pipe = match through {
            Through::Pipe => pool::pipe().ok(),
            Through::Buffer => None,
        };
        let ended = match pipe {
            Some(mut pipe) => {
                let mut under_way = UnderWay { pipe: &mut pipe, unsent };
                let burst = splice_burst(from, to, &mut under_way, progress, &mut turn).await;
                drop(under_way);
                pool::give_back(pipe);
                burst?
            }
            // Or out of file descriptors: a buffer needs none.
            None => copy_burst(from, to, unsent, progress, &mut turn).await?,
        };
        if ended {
            progress.check_end(from.side)?;
            return to.shutdown_write();
        }
    }
}

/// Bytes in a pipe; those left when this is dropped are added to `unsent`.
struct UnderWay<'a> {
    pipe: &'a mut Pipe,
    unsent: &'a mut Vec<u8>,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.pipe.empty_into(self.unsent);
    }
}

/// Moves what there is through a pipe; true at the end of the stream.
async fn splice_burst(
    from: End<'_>,
    to: End<'_>,
    UnderWay { pipe, .. }: &mut UnderWay<'_>,
    progress: &Progress<'_>,
    turn: &mut Turn<'_>,
) -> Result<bool, Failure> {
    let mut wanted = FIRST_FILL;
    loop {
        let max = wanted.min(turn.room());
        let fill = from.stream.try_io(Interest::READABLE, || pipe.fill(from.stream, max));
        let moved = match unless_blocked(fill).map_err(|error| from.broken(error))? {
            None => return Ok(false),
            Some(0) => return Ok(true),
            Some(moved) => moved,
        };
        while !pipe.is_empty() {
            let drain =
                |stream: &TcpStream| stream.try_io(Interest::WRITABLE, || pipe.drain(stream));
            progress.moved(to.side, to.write(drain).await?);
        }
        if moved == wanted {
            wanted = wanted.saturating_mul(2).min(pipe.size());
        }
        if turn.spend(moved).await {
            return Ok(false);
        }
    }
}

/// Moves what there is through a buffer; true at the end of the stream.
async fn copy_burst(
    from: End<'_>,
    to: End<'_>,
    unsent: &mut Vec<u8>,
    progress: &Progress<'_>,
    turn: &mut Turn<'_>,
) -> Result<bool, Failure> {
    let mut buffer = pool::buffer();
    loop {
        let room = buffer.len().min(turn.room());
        let read = from.stream.try_read(buffer.get_mut(..room).unwrap_or_default());
        let read = unless_blocked(read);
        let moved = match read.map_err(|error| from.broken(error))? {
            None => return Ok(false),
            Some(0) => return Ok(true),
            Some(moved) => moved,
        };
        let data = buffer.get(..moved).unwrap_or_default();
        to.write_all(data, unsent, |written| progress.moved(to.side, written)).await?;
        if turn.spend(moved).await || to.is_stuck()? {
            return Ok(false);
        }
    }
}
