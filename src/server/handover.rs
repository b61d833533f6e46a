//! Streams that go on over a restart of the server: each as a line of text, and its two connections.

mod saved;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpStream;
use zeroize::Zeroizing;

use crate::config::keys::Credential;
use crate::converter;
use crate::net::Transport;
use crate::os::handover::{self, Inheritance};
use crate::os::{runtime, socket};
use crate::registry::Registry;
use crate::registry::forwards;
use crate::registry::streams::Opened;
use crate::relay::Workers;
use saved::{SavedStream, listener_line, read_listener, read_stream, stream_line};

/// How long streams may take to come to rest.
const REST_LIMIT: Duration = Duration::from_secs(1);

/// Goes on with a stream.
fn resume(
    stream: SavedStream,
    registry: &Rc<Registry>,
    workers: &Rc<Workers>,
    [tcp, target]: [OwnedFd; 2],
) -> io::Result<()> {
    let (tcp, target) = (connection(tcp)?, connection(target)?);
    let SavedStream { client, credential, peer, target: to, state } = stream;
    let stream = registry.resume_stream(&client, peer, to);
    let opened = Opened { client, credential, peer, target, stream, state };
    runtime::spawn(converter::relay(registry.clone(), workers.clone(), tcp, opened));
    Ok(())
}

fn connection(socket: OwnedFd) -> io::Result<TcpStream> {
    socket::reset_when_closed(&socket, false)?;
    TcpStream::from_std(socket.into())
}

/// What was left to this start of the server: a line for each listener and UDP port, which has a socket,
/// and for each stream, which has two.
pub(super) struct Inherited {
    listeners: Vec<forwards::Inherited>,
    streams: Vec<(SavedStream, [OwnedFd; 2])>,
}

impl Inherited {
    /// Reads what was left.
    ///
    /// # Errors
    /// `InvalidData` when an older or newer version wrote it otherwise.
    pub(super) fn read(Inheritance { state, sockets }: Inheritance) -> io::Result<Inherited> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let mut sockets = sockets.into_iter();
        let mut next = || sockets.next().ok_or_else(invalid);
        let mut inherited = Inherited { listeners: Vec::new(), streams: Vec::new() };
        for line in str::from_utf8(&state).map_err(|_| invalid())?.lines() {
            if let Some((transport, address)) = read_listener(line) {
                inherited.listeners.push((transport, address, next()?));
            } else {
                let stream = read_stream(line).ok_or_else(invalid)?;
                inherited.streams.push((stream, [next()?, next()?]));
            }
        }
        Ok(inherited)
    }

    /// The listener at an address, if it was left.
    pub(super) fn listener(&mut self, address: SocketAddr) -> Option<OwnedFd> {
        forwards::take_inherited(&mut self.listeners, Transport::Tcp, address)
    }

    /// Goes on with the streams, and keeps the forwarded ports' sockets; returns how many streams.
    pub(super) fn resume(self, registry: &Rc<Registry>, workers: &Rc<Workers>) -> usize {
        registry.forwards.inherit(self.listeners);
        let mut resumed = 0_usize;
        for (stream, sockets) in self.streams {
            let what = format!("stream of {} to {}", stream.client, stream.target);
            match resume(stream, registry, workers, sockets) {
                Ok(()) => resumed = resumed.saturating_add(1),
                Err(error) => log::debug!("{what} ended with the restart: {error}"),
            }
        }
        resumed
    }
}

/// Interrupts all streams and leaves them to the next start, with the listeners; returns how many.
///
/// Where nobody keeps them they are reset, so that none that was cut off looks complete.
///
/// # Errors
/// Why they could not be left.
pub(super) async fn leave(registry: &Registry, listeners: &[OwnedFd]) -> io::Result<usize> {
    registry.stop();
    let streams = registry.take_paused(REST_LIMIT).await;
    let mut state = Zeroizing::new(String::new());
    let mut sockets: Vec<BorrowedFd<'_>> = Vec::new();
    for listener in listeners {
        let udp = socket::is_datagram(listener)?;
        let transport = if udp { Transport::Udp } else { Transport::Tcp };
        state.push_str(&listener_line(transport, socket::local_address(listener)?));
        sockets.push(listener.as_fd());
    }
    let mut left = 0_usize;
    for (tcp, opened) in &streams {
        let Opened { client, credential, peer, target, stream, state: under_way } = opened;
        // One that has ended meanwhile is of no use to anybody.
        let ends = [tcp.as_fd(), target.as_fd()];
        if ends.iter().all(|end| socket::reset_when_closed(end, true).is_ok()) {
            let credential = match credential {
                Credential::Key(key) => Credential::Key(registry.newest_key(key)),
                Credential::Cookie(_) => *credential,
            };
            state.push_str(&stream_line(client, &credential, [*peer, stream.target], under_way));
            sockets.extend(ends);
            left = left.saturating_add(1);
        }
    }
    Ok(if handover::leave(state.as_bytes(), &sockets)? { left } else { 0 })
}
