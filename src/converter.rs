//! The server's half of a connection: from an authenticated stream to the target it asks for.

pub mod bare;

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::config::keys::PublicKey;
use crate::os::{runtime, socket};
use crate::registry::gate::Pass;
use crate::registry::streams::{Opened, Stream};
use crate::registry::{Cause, Interruption, Registry};
use crate::relay::{Ended, Records, Relay, State, Unsent, Workers, message};
use crate::tunnel::Cipher;
use crate::tunnel::convert::{ErrorCode, Failure, Message};
use crate::tunnel::record::{Kind, Opener, Sealer};
use crate::tunnel::stream::{
    FIRST_BYTE, PREAMBLE_LEN, PreambleError, UnverifiedPreamble, WARM_TIMEOUT,
};

/// How long a refused client may take to hang up.
const HANG_UP_LIMIT: Duration = Duration::from_secs(5);

/// How many streams of one client may wait for their request: far more than an agent keeps warm.
const WARM_LIMIT: u32 = 1024;

/// An authenticated stream that waits for its request, or serves it.
struct Authenticated {
    client: String,
    key: PublicKey,
    cipher: Cipher,
    sealer: Sealer,
    opener: Opener,
}

/// Serves a connection that began with a stream's first byte; one of `workers` relays it.
pub async fn serve(
    registry: Rc<Registry>,
    workers: Rc<Workers>,
    mut tcp: TcpStream,
    peer: SocketAddr,
    pass: Pass,
) {
    let mut preamble = [FIRST_BYTE; PREAMBLE_LEN];
    let read = match preamble.split_first_mut() {
        Some((_, rest)) => tcp.read_exact(rest).await,
        None => return,
    };
    if let Err(error) = read {
        return registry.refuse_broken(&error, peer.ip());
    }
    let stream = match authenticate(&registry, &preamble) {
        Ok(stream) => stream,
        Err(cause) => {
            registry.refuse(cause, peer.ip());
            socket::abort(&tcp);
            return;
        }
    };
    pass.vouch();
    let (client, key) = (stream.client.clone(), stream.key);
    // In a frame of its own, which is gone afterwards.
    let convert = Box::pin(convert(&registry, stream, &tcp, peer));
    let opened = tokio::select! {
        opened = convert => opened,
        _ = registry.interrupted(&client, &key) => Err(io::ErrorKind::PermissionDenied.into()),
    };
    match opened {
        // A task of its own keeps nothing of what was needed to get here.
        Ok(Some(opened)) => drop(runtime::spawn(relay(registry, workers, tcp, opened))),
        Ok(None) => {}
        Err(error) => {
            log::debug!("stream of {client} from {peer}: {error}");
            // Records that do not verify: somebody else goes on with a preamble overheard.
            if error.kind() == io::ErrorKind::InvalidData {
                registry.refuse(Cause::NotAuthentic, peer.ip());
            }
            socket::abort(&tcp);
        }
    }
}

/// Relays between a client and its target to the end; a stream that the server's end interrupts is
/// left in the registry.
pub async fn relay(registry: Rc<Registry>, workers: Rc<Workers>, tcp: TcpStream, opened: Opened) {
    let Opened { client, key, peer, target, stream, state } = opened;
    let seat = workers.seat();
    let (lan, tunnel) = match (seat.adopt(target), seat.adopt(tcp)) {
        (Ok(lan), Ok(tunnel)) => (lan, Arc::new(tunnel)),
        (Err(error), _) | (_, Err(error)) => {
            return log::debug!("stream of {client} to {}: {error}", stream.target);
        }
    };
    let (interrupt, interruption) = oneshot::channel();
    let relay = Relay { lan, tunnel, state, counters: stream.counters.clone() };
    let mut relaying = seat.relay(relay, interruption);
    let (ended, stopping) = tokio::select! {
        ended = &mut relaying => (ended, false),
        interruption = registry.interrupted(&client, &key) => {
            drop(interrupt);
            (relaying.await, interruption == Interruption::Stopping)
        }
    };
    let relayed = match ended {
        Ended::Done(relayed) => relayed,
        Ended::Interrupted(Relay { lan: target, tunnel, state, .. }) => {
            return match Arc::into_inner(tunnel) {
                Some(tcp) if stopping => {
                    registry.pause(tcp, Opened { client, key, peer, target, stream, state });
                }
                Some(tcp) => socket::abort(&tcp),
                None => {}
            };
        }
    };
    // The relay has passed the end on.
    let Err(failure) = relayed else { return };
    log::debug!("stream of {client} to {}: {failure}", stream.target);
    if let Some(cause) = failure.cause() {
        registry.fail(cause);
    }
    if failure.is_altered() {
        registry.refuse(Cause::Altered, peer.ip());
    }
}

fn authenticate(
    registry: &Registry,
    preamble: &[u8; PREAMBLE_LEN],
) -> Result<Authenticated, Cause> {
    let now = Instant::now();
    let preamble = UnverifiedPreamble::parse(preamble).map_err(cause)?;
    let mut sessions = registry.sessions.borrow_mut();
    let session = sessions.find(preamble.session(), now).ok_or(Cause::NoSession)?;
    let (_, keys) = session.state.accept(&preamble, now).map_err(cause)?;
    let (sealer, opener) = keys.server();
    let (client, key, cipher) = (session.client.clone(), session.key, keys.cipher());
    Ok(Authenticated { client, key, cipher, sealer, opener })
}

fn cause(error: PreambleError) -> Cause {
    match error {
        PreambleError::NotStream | PreambleError::UnknownCipher(_) => Cause::NotOurs,
        PreambleError::Version(_) => Cause::Version,
        PreambleError::Expired => Cause::NoSession,
        PreambleError::Forged | PreambleError::CipherMismatch(_) => Cause::NotAuthentic,
        PreambleError::Replayed(_) => Cause::Replayed,
    }
}

/// Waits for the request, connects to the target, and answers; `None` when there is nothing to relay.
async fn convert(
    registry: &Registry,
    stream: Authenticated,
    tcp: &TcpStream,
    peer: SocketAddr,
) -> io::Result<Option<Opened>> {
    let Authenticated { client, key, cipher, mut sealer, mut opener } = stream;
    let mut carried = Vec::new();
    let state = registry.client(&client);
    if state.warm.get() >= WARM_LIMIT {
        registry.refuse(Cause::TooManyStreams, peer.ip());
        return Err(io::ErrorKind::QuotaExceeded.into());
    }
    let warm = Warm::count(&state.warm);
    let received = timeout(WARM_TIMEOUT, message::receive(tcp, &mut opener, &mut carried)).await;
    drop(warm);
    let request = match received {
        Err(_) => return Ok(None),
        Ok(received) => match received? {
            Some((Kind::Request, request)) => request,
            // Given up, without a record or with a Reset: none but these can come first.
            Some(_) | None => return Ok(None),
        },
    };
    let accepts = Message::decode(&request).ok().and_then(|message| message.accepts());
    let opened = match accepts {
        Some(id) => accept(registry, &client, id, peer),
        None => open(registry, &client, &request, tcp, peer).await,
    };
    let (target, stream) = match opened {
        Ok(opened) => opened,
        Err(refusal) => {
            if let Err(failure) = refusal.outcome() {
                registry.fail(failure.word());
            }
            message::send(tcp, &seal_answer(&mut sealer, &refusal)?).await?;
            hang_up(tcp).await?;
            return Ok(None);
        }
    };
    let connected = seal_answer(&mut sealer, &Message::connected())?;
    let state = match cipher {
        Cipher::None => {
            message::send(tcp, &connected).await?;
            State::Plain(Unsent { to_lan: carried, ..Unsent::default() })
        }
        _ => {
            let mut records = Box::new(Records::new(sealer, opener, carried));
            // With the first payload, if that comes soon.
            records.unsent = connected;
            State::Sealed(records)
        }
    };
    Ok(Some(Opened { client, key, peer, target, stream, state }))
}

/// A stream that is counted as warm until this is dropped.
struct Warm<'a>(&'a Cell<u32>);

impl Warm<'_> {
    fn count(count: &Cell<u32>) -> Warm<'_> {
        count.set(count.get().saturating_add(1));
        Warm(count)
    }
}

impl Drop for Warm<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// The connection to a forwarded port with this number, which a request accepts.
fn accept(
    registry: &Registry,
    client: &str,
    id: u64,
    peer: SocketAddr,
) -> Result<(TcpStream, Stream), Message> {
    // Too late otherwise.
    let gone = Failure { code: ErrorCode::ConnectionReset, detail: 0 };
    let waiting = registry.forwards.claim(client, id).ok_or_else(|| Message::failed(gone))?;
    match registry.open_stream(client, peer, waiting.peer) {
        Some(stream) => Ok((waiting.tcp, stream)),
        None => {
            socket::abort(&waiting.tcp);
            Err(Message::failed(Failure::RESOURCE_EXCEEDED))
        }
    }
}

/// Connects to the target that a request asks for, if that is allowed.
async fn open(
    registry: &Registry,
    client: &str,
    request: &[u8],
    tcp: &TcpStream,
    peer: SocketAddr,
) -> Result<(TcpStream, Stream), Message> {
    let decoded = Message::decode(request).and_then(|message| Ok(message.target()?.0));
    let target = decoded.map_err(|error| error.answer(request))?;
    if let Err(denied) = registry.permits(target) {
        registry.refuse(Cause::Denied, peer.ip());
        log::debug!("{client} asked for {target}: {denied}");
        return Err(Message::failed(Failure::NOT_AUTHORIZED));
    }
    let stream = registry.open_stream(client, peer, target);
    let stream = stream.ok_or_else(|| Message::failed(Failure::RESOURCE_EXCEEDED))?;
    let source = registry.config.borrow().source_towards(target);
    let connected = tokio::select! {
        connected = socket::tcp_connect(target, source) => connected,
        // Nobody waits for the target any more.
        error = socket::broken(tcp) => Err(error),
    };
    let connected = connected.map_err(|error| Message::failed(Failure::from_io(&error)))?;
    Ok((connected, stream))
}

fn seal_answer(sealer: &mut Sealer, answer: &Message) -> io::Result<Vec<u8>> {
    let answer = answer.encode().map_err(io::Error::other)?;
    sealer.seal_new(Kind::Answer, &answer).map_err(message::invalid)
}

/// Ends a connection without losing what was sent: closing it with unread data would reset it.
async fn hang_up(tcp: &TcpStream) -> io::Result<()> {
    socket::shutdown_write(tcp)?;
    let drained = async {
        loop {
            tcp.readable().await?;
            // Not kept while it waits: every stream's task would be larger by it.
            match tcp.try_read(&mut [0; 4096]) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    };
    timeout(HANG_UP_LIMIT, drained).await.unwrap_or(Ok(()))
}

#[cfg(test)]
mod tests;
