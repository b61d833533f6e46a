//! Streams that go on over a restart of the server: each as a line of text, and its two connections.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

use crate::converter;
use crate::os::handover::{self, Inheritance};
use crate::os::{runtime, socket};
use crate::registry::Registry;
use crate::registry::streams::Opened;
use crate::relay::{Records, State, Unsent, Workers};
use crate::tunnel::Cipher;
use crate::tunnel::record::{Opener, Position, Sealer};

/// How long streams may take to come to rest.
const REST_LIMIT: Duration = Duration::from_secs(1);

/// All that is left to the next start. A later version may add to it.
#[derive(Deserialize, Serialize)]
struct Saved {
    /// What the first sockets listen on.
    listeners: Vec<SocketAddr>,
    /// The streams; two sockets each follow, the client's and the target's.
    streams: Vec<SavedStream>,
}

#[derive(Deserialize, Serialize)]
struct SavedStream {
    client: String,
    key: String,
    peer: SocketAddr,
    target: SocketAddr,
    #[serde(flatten)]
    state: SavedState,
}

/// What is under way in a stream; texts are base64.
#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum SavedState {
    Sealed {
        sealer: SavedPosition,
        opener: SavedPosition,
        carried: String,
        unsent: String,
        undelivered: String,
    },
    Plain {
        to_tunnel: String,
        to_lan: String,
    },
}

#[derive(Deserialize, Serialize)]
struct SavedPosition {
    cipher: u8,
    secret: Zeroizing<String>,
    counter: u64,
    ended: bool,
}

fn text(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

impl SavedPosition {
    fn new(position: &Position) -> SavedPosition {
        let &Position { cipher, ref secret, counter, ended } = position;
        let secret = Zeroizing::new(text(secret.as_slice()));
        SavedPosition { cipher: cipher.to_wire(), secret, counter, ended }
    }

    fn position(&self) -> Option<Position> {
        let secret = Zeroizing::new(bytes(&self.secret)?);
        let secret = Zeroizing::new(<[u8; 32]>::try_from(secret.as_slice()).ok()?);
        let cipher = Cipher::from_wire(self.cipher)?;
        Some(Position { cipher, secret, counter: self.counter, ended: self.ended })
    }
}

impl SavedState {
    fn new(state: &State) -> SavedState {
        match state {
            State::Plain(Unsent { to_tunnel, to_lan }) => {
                SavedState::Plain { to_tunnel: text(to_tunnel), to_lan: text(to_lan) }
            }
            State::Sealed(records) => SavedState::Sealed {
                sealer: SavedPosition::new(&records.sealer.position()),
                opener: SavedPosition::new(&records.opener.position()),
                carried: text(&records.carried),
                unsent: text(&records.unsent),
                undelivered: text(&records.undelivered),
            },
        }
    }

    fn state(&self) -> Option<State> {
        Some(match self {
            SavedState::Plain { to_tunnel, to_lan } => {
                State::Plain(Unsent { to_tunnel: bytes(to_tunnel)?, to_lan: bytes(to_lan)? })
            }
            SavedState::Sealed { sealer, opener, carried, unsent, undelivered } => {
                State::Sealed(Box::new(Records {
                    sealer: Sealer::at(&sealer.position()?),
                    opener: Opener::at(&opener.position()?),
                    carried: bytes(carried)?,
                    unsent: bytes(unsent)?,
                    undelivered: bytes(undelivered)?,
                }))
            }
        })
    }
}

impl SavedStream {
    fn new(opened: &Opened) -> SavedStream {
        SavedStream {
            client: opened.client.clone(),
            key: opened.key.to_string(),
            peer: opened.peer,
            target: opened.stream.target,
            state: SavedState::new(&opened.state),
        }
    }

    /// Goes on with it.
    fn resume(
        &self,
        registry: &Rc<Registry>,
        workers: &Rc<Workers>,
        [tcp, target]: [OwnedFd; 2],
    ) -> io::Result<()> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let (tcp, target) = (connection(tcp)?, connection(target)?);
        let opened = Opened {
            client: self.client.clone(),
            key: self.key.parse().map_err(|_| invalid())?,
            peer: self.peer,
            target,
            stream: registry.resume_stream(&self.client, self.peer, self.target),
            state: self.state.state().ok_or_else(invalid)?,
        };
        runtime::spawn(converter::relay(registry.clone(), workers.clone(), tcp, opened));
        Ok(())
    }
}

fn connection(socket: OwnedFd) -> io::Result<TcpStream> {
    socket::reset_when_closed(&socket, false)?;
    TcpStream::from_std(socket.into())
}

/// What was left to this start of the server.
pub(super) struct Inherited {
    saved: Saved,
    sockets: Vec<OwnedFd>,
}

impl Inherited {
    /// Reads what was left.
    ///
    /// # Errors
    /// `InvalidData` when an older or newer version wrote it otherwise.
    pub(super) fn read(Inheritance { state, sockets }: Inheritance) -> io::Result<Inherited> {
        let saved: Saved = serde_json::from_slice(&state)?;
        Ok(Inherited { saved, sockets })
    }

    /// The listener at an address, if it was left.
    pub(super) fn listener(&mut self, address: SocketAddr) -> Option<OwnedFd> {
        let at = self.saved.listeners.iter().position(|listener| *listener == address)?;
        self.saved.listeners.remove(at);
        (at < self.sockets.len()).then(|| self.sockets.remove(at))
    }

    /// Goes on with the streams; returns how many.
    pub(super) fn resume(self, registry: &Rc<Registry>, workers: &Rc<Workers>) -> usize {
        let mut sockets = self.sockets.into_iter().skip(self.saved.listeners.len());
        let mut resumed = 0_usize;
        for stream in &self.saved.streams {
            let (Some(tcp), Some(target)) = (sockets.next(), sockets.next()) else { break };
            match stream.resume(registry, workers, [tcp, target]) {
                Ok(()) => resumed = resumed.saturating_add(1),
                Err(error) => {
                    let SavedStream { client, target, .. } = stream;
                    log::debug!("stream of {client} to {target} ended with the restart: {error}");
                }
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
    let mut saved = Saved { listeners: Vec::new(), streams: Vec::new() };
    let mut sockets: Vec<BorrowedFd<'_>> = Vec::new();
    for listener in listeners {
        saved.listeners.push(socket::local_address(listener)?);
        sockets.push(listener.as_fd());
    }
    for (tcp, opened) in &streams {
        // One that has ended meanwhile is of no use to anybody.
        let ends = [tcp.as_fd(), opened.target.as_fd()];
        if ends.iter().all(|end| socket::reset_when_closed(end, true).is_ok()) {
            saved.streams.push(SavedStream::new(opened));
            sockets.extend(ends);
        }
    }
    let state = Zeroizing::new(serde_json::to_vec(&saved)?);
    Ok(if handover::leave(&state, &sockets)? { saved.streams.len() } else { 0 })
}
