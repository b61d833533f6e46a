//! The relay without encryption: splice(2) from socket to pipe to socket.

use std::pin::pin;

use tokio::io::Interest;
use tokio::net::TcpStream;

use super::{Counters, End, Failure, IdleLimits, Progress, Side, Turn, pool, run, unless_blocked};
use crate::os::socket::{self, Pipe};

/// How much the first splice of a burst asks for, in bytes: the kernel may allocate as many pages
/// in advance, too many for a keystroke.
const FIRST_FILL: usize = 16 * 1024;

/// Relays until both directions have ended.
///
/// `carried` is payload that was read from the tunnel already, along with an answer.
///
/// # Errors
/// Why it ended early: both streams have then been reset.
pub async fn plain(
    lan: &TcpStream,
    tunnel: &TcpStream,
    carried: Vec<u8>,
    counters: &Counters,
    limits: IdleLimits,
) -> Result<(), Failure> {
    let progress = Progress::new(counters, tunnel);
    let lan_end = End { side: Side::Lan, stream: lan };
    let tunnel_end = End { side: Side::Tunnel, stream: tunnel };
    let to_tunnel = copy(lan_end, tunnel_end, &progress);
    let to_lan = async {
        write_all(lan_end, &carried, &progress).await?;
        drop(carried);
        copy(tunnel_end, lan_end, &progress).await
    };
    let result = run(lan, tunnel, pin!(to_tunnel), pin!(to_lan), &progress, limits).await;
    if result.is_err() {
        socket::abort(lan);
        socket::abort(tunnel);
    }
    result
}

/// Copies one direction to its end.
async fn copy(from: End<'_>, to: End<'_>, progress: &Progress<'_>) -> Result<(), Failure> {
    let mut turn = Turn::default();
    loop {
        from.readable().await?;
        let ended = match pool::pipe() {
            Ok(mut pipe) => {
                let ended = splice_burst(from, to, &mut pipe, progress, &mut turn).await?;
                pool::give_back(pipe);
                ended
            }
            // Out of file descriptors: a buffer needs none.
            Err(_) => copy_burst(from, to, progress, &mut turn).await?,
        };
        if ended {
            progress.check_end(from.side)?;
            return to.shutdown_write();
        }
    }
}

/// Moves what there is through a pipe; true at the end of the stream.
async fn splice_burst(
    from: End<'_>,
    to: End<'_>,
    pipe: &mut Pipe,
    progress: &Progress<'_>,
    turn: &mut Turn,
) -> Result<bool, Failure> {
    let mut wanted = FIRST_FILL;
    loop {
        let fill = from.stream.try_io(Interest::READABLE, || pipe.fill(from.stream, wanted));
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
        turn.spend(moved).await;
    }
}

/// Moves what there is through a buffer; true at the end of the stream.
async fn copy_burst(
    from: End<'_>,
    to: End<'_>,
    progress: &Progress<'_>,
    turn: &mut Turn,
) -> Result<bool, Failure> {
    let mut buffer = pool::buffer();
    loop {
        let read = unless_blocked(from.stream.try_read(&mut buffer));
        let moved = match read.map_err(|error| from.broken(error))? {
            None => return Ok(false),
            Some(0) => return Ok(true),
            Some(moved) => moved,
        };
        write_all(to, buffer.get(..moved).unwrap_or_default(), progress).await?;
        turn.spend(moved).await;
    }
}

async fn write_all(to: End<'_>, mut data: &[u8], progress: &Progress<'_>) -> Result<(), Failure> {
    while !data.is_empty() {
        let written = to.write(|stream| stream.try_write(data)).await?;
        progress.moved(to.side, written);
        data = data.get(written..).unwrap_or_default();
    }
    Ok(())
}
