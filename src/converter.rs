//! The server's half of a connection: from an authenticated stream to the target it asks for.

mod bare;

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::config::keys::Credential;
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

/// A client that has shown who it is, and whose request is waited for, or served.
struct Recognised {
    client: String,
    credential: Credential,
    speech: Speech,
}

/// How a client tells its request, and is answered.
enum Speech {
    /// In the records of a stream, when it likes.
    Records { cipher: Cipher, sealer: Sealer, opener: Opener },
    /// In the clear, and this is it.
    Clear(Vec<u8>),
}

impl Speech {
    fn answer(&mut self, answer: &Message) -> io::Result<Vec<u8>> {
        let answer = answer.encode().map_err(io::Error::other)?;
        match self {
            Speech::Records { sealer, .. } => {
                sealer.seal_new(Kind::Answer, &answer).map_err(message::invalid)
            }
            Speech::Clear(_) => Ok(answer),
        }
    }
}

/// Serves a connection that began with this byte: a stream, or a bare client of whatever version of
/// RFC 8803. One of `workers` relays it.
pub async fn serve(
    registry: Rc<Registry>,
    workers: Rc<Workers>,
    mut tcp: TcpStream,
    peer: SocketAddr,
    pass: Pass,
    first: u8,
) {
    let recognised = match first {
        FIRST_BYTE => recognise(&registry, &mut tcp, peer).await,
        // Apart: few are of this kind.
        _ => Box::pin(bare::recognise(&registry, &mut tcp, peer, first)).await,
    };
    let Some(recognised) = recognised else { return };
    pass.vouch();
    let (client, credential) = (recognised.client.clone(), recognised.credential);
    // In a frame of its own, which is gone afterwards.
    let convert = Box::pin(convert(&registry, recognised, &tcp, peer));
    let opened = tokio::select! {
        opened = convert => opened,
        _ = registry.interrupted(&client, &credential) => {
            Err(io::ErrorKind::PermissionDenied.into())
        }
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
    let Opened { client, credential, peer, target, stream, state } = opened;
    let (interrupt, interruption) = oneshot::channel();
    let counters = stream.counters.clone();
    let relay = Relay { lan: target, tunnel: Arc::new(tcp), state, counters };
    let mut relaying = pin!(workers.relay(relay, interruption, drop));
    let (ended, stopping) = tokio::select! {
        ended = &mut relaying => (ended, false),
        interruption = registry.interrupted(&client, &credential) => {
            drop(interrupt);
            (relaying.await, interruption == Interruption::Stopping)
        }
    };
    let relayed = match ended {
        Ended::Done(relayed) => relayed,
        Ended::Interrupted(Relay { lan: target, tunnel, state, .. }) => {
            return match Arc::into_inner(tunnel) {
                Some(tcp) if stopping => {
                    let opened = Opened { client, credential, peer, target, stream, state };
                    registry.pause(tcp, opened);
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

/// Reads a stream's preamble, after its first byte; `None` when it was refused.
async fn recognise(
    registry: &Registry,
    tcp: &mut TcpStream,
    peer: SocketAddr,
) -> Option<Recognised> {
    let mut preamble = [FIRST_BYTE; PREAMBLE_LEN];
    let (_, rest) = preamble.split_first_mut()?;
    if let Err(error) = tcp.read_exact(rest).await {
        registry.refuse_broken(&error, peer.ip());
        return None;
    }
    let authenticated = authenticate(registry, &preamble);
    authenticated
        .inspect_err(|cause| {
            registry.refuse(*cause, peer.ip());
            socket::abort(&*tcp);
        })
        .ok()
}

fn authenticate(registry: &Registry, preamble: &[u8; PREAMBLE_LEN]) -> Result<Recognised, Cause> {
    let now = Instant::now();
    let preamble = UnverifiedPreamble::parse(preamble).map_err(cause)?;
    let mut sessions = registry.sessions.borrow_mut();
    let session = sessions.find(preamble.session(), now).ok_or(Cause::NoSession)?;
    let (_, keys) = session.state.accept(&preamble, now).map_err(cause)?;
    let (sealer, opener) = keys.server();
    let speech = Speech::Records { cipher: keys.cipher(), sealer, opener };
    let credential = Credential::Key(session.key);
    Ok(Recognised { client: session.client.clone(), credential, speech })
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
    recognised: Recognised,
    tcp: &TcpStream,
    peer: SocketAddr,
) -> io::Result<Option<Opened>> {
    let Recognised { client, credential, mut speech } = recognised;
    let mut carried = Vec::new();
    let request = match &mut speech {
        Speech::Records { opener, .. } => {
            let request = receive(registry, &client, tcp, peer, opener, &mut carried).await?;
            let Some(request) = request else { return Ok(None) };
            request
        }
        Speech::Clear(request) => std::mem::take(request),
    };
    let at_once = match &speech {
        Speech::Records { .. } => {
            let accepts = Message::decode(&request).ok().and_then(|message| message.accepts());
            accepts.map(|id| accept(registry, &client, id, peer))
        }
        Speech::Clear(_) => bare::answer_at_once(&request).map(Err),
    };
    let opened = match at_once {
        Some(opened) => opened,
        None => open(registry, &client, &request, tcp, peer).await,
    };
    let (target, stream) = match opened {
        Ok(opened) => opened,
        Err(answer) => {
            refuse(registry, tcp, &mut speech, &answer).await?;
            return Ok(None);
        }
    };
    let connected = speech.answer(&Message::connected())?;
    let state = match speech {
        Speech::Records { cipher, sealer, opener } if cipher != Cipher::None => {
            let mut records = Box::new(Records::new(sealer, opener, carried));
            // With the first payload, if that comes soon.
            records.unsent = connected;
            State::Sealed(records)
        }
        _ => {
            message::send(tcp, &connected).await?;
            State::Plain(Unsent { to_lan: carried, ..Unsent::default() })
        }
    };
    Ok(Some(Opened { client, credential, peer, target, stream, state }))
}

/// Waits for a stream's request; `None` when the client has given the stream up, or time is up.
async fn receive(
    registry: &Registry,
    client: &str,
    tcp: &TcpStream,
    peer: SocketAddr,
    opener: &mut Opener,
    carried: &mut Vec<u8>,
) -> io::Result<Option<Vec<u8>>> {
    let state = registry.client(client);
    if state.warm.get() >= WARM_LIMIT {
        registry.refuse(Cause::TooManyStreams, peer.ip());
        return Err(io::ErrorKind::QuotaExceeded.into());
    }
    let _warm = Warm::count(&state.warm);
    match timeout(WARM_TIMEOUT, message::receive(tcp, opener, carried)).await {
        Err(_) => Ok(None),
        Ok(received) => Ok(match received? {
            Some((Kind::Request, request)) => Some(request),
            // Given up, without a record or with a Reset: none but these can come first.
            Some(_) | None => None,
        }),
    }
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

/// Answers that a request is not served, or needs nothing more than the answer.
async fn refuse(
    registry: &Registry,
    tcp: &TcpStream,
    speech: &mut Speech,
    answer: &Message,
) -> io::Result<()> {
    if let Err(failure) = answer.outcome() {
        registry.fail(failure.word());
    }
    message::send(tcp, &speech.answer(answer)?).await?;
    hang_up(tcp).await
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
