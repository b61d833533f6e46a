//! The server's half of a connection: from an authenticated stream to the target it asks for.

use std::future::ready;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::os::socket;
use crate::registry::gate::Pass;
use crate::registry::{Cause, Registry, Stream};
use crate::relay::{self, IdleLimits, message};
use crate::tunnel::Cipher;
use crate::tunnel::convert::{Failure, Message};
use crate::tunnel::record::{Kind, Opener, Sealer};
use crate::tunnel::stream::{FIRST_BYTE, PREAMBLE_LEN, PreambleError, UnverifiedPreamble};

/// How long a warm stream may wait for its request: longer than clients keep theirs.
const WARM_LIMIT: Duration = Duration::from_secs(300);
/// How long a refused client may take to hang up.
const HANG_UP_LIMIT: Duration = Duration::from_secs(5);

/// Serves a connection that began with a stream's first byte.
pub async fn serve(registry: Rc<Registry>, mut tcp: TcpStream, peer: SocketAddr, pass: Pass) {
    let mut preamble = [FIRST_BYTE; PREAMBLE_LEN];
    let read = match preamble.split_first_mut() {
        Some((_, rest)) => tcp.read_exact(rest).await,
        None => return,
    };
    if read.is_err() {
        return;
    }
    let (client, cipher, sealer, opener) = match authenticate(&registry, &preamble) {
        Ok(stream) => stream,
        Err(cause) => {
            registry.refuse(cause, peer.ip());
            socket::abort(&tcp);
            return;
        }
    };
    drop(pass);
    if let Err(error) = convert(&registry, &client, cipher, sealer, opener, &tcp, peer).await {
        log::debug!("stream of {client} from {peer}: {error}");
        socket::abort(&tcp);
    }
}

fn authenticate(
    registry: &Registry,
    preamble: &[u8; PREAMBLE_LEN],
) -> Result<(String, Cipher, Sealer, Opener), Cause> {
    let now = Instant::now();
    let preamble = UnverifiedPreamble::parse(preamble).map_err(cause)?;
    let mut sessions = registry.sessions.borrow_mut();
    let session = sessions.find(preamble.session(), now).ok_or(Cause::NoSession)?;
    let (_, keys) = session.state.accept(&preamble, now).map_err(cause)?;
    let (sealer, opener) = keys.server();
    Ok((session.client.clone(), keys.cipher(), sealer, opener))
}

fn cause(error: PreambleError) -> Cause {
    match error {
        PreambleError::NotStream | PreambleError::UnknownCipher(_) => Cause::NotOurs,
        PreambleError::Version(_) => Cause::Version,
        PreambleError::UnknownSession(_) | PreambleError::Expired => Cause::NoSession,
        PreambleError::Forged | PreambleError::CipherMismatch(_) => Cause::NotAuthentic,
        PreambleError::Replayed(_) => Cause::Replayed,
    }
}

/// Waits for the request, connects to the target, answers, and relays.
async fn convert(
    registry: &Registry,
    client: &str,
    cipher: Cipher,
    mut sealer: Sealer,
    mut opener: Opener,
    tcp: &TcpStream,
    peer: SocketAddr,
) -> io::Result<()> {
    let mut carried = Vec::new();
    let received = timeout(WARM_LIMIT, message::receive(tcp, &mut opener, &mut carried)).await;
    let request = match received {
        Err(_) => return Ok(()),
        Ok(received) => match received? {
            None => return Ok(()),
            Some((_, request)) => request,
        },
    };
    let (target, stream) = match open(registry, client, &request, tcp, peer).await {
        Ok(opened) => opened,
        Err(refusal) => {
            answer(tcp, &mut sealer, &refusal).await?;
            return hang_up(tcp).await;
        }
    };
    answer(tcp, &mut sealer, &Message::connected()).await?;
    let (counters, limits) = (&stream.counters, IdleLimits::default());
    let result = match cipher {
        Cipher::None => relay::plain(&target, tcp, ready(Ok(carried)), counters, limits).await,
        _ => {
            let opened = ready(Ok((opener, carried)));
            relay::sealed(&target, tcp, &mut sealer, opened, counters, limits).await
        }
    };
    // Resets are how some connections end; the relay has passed them on.
    if let Err(failure) = result {
        log::debug!("stream of {client} to {}: {failure}", stream.target);
    }
    Ok(())
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
    if let Err(denied) = registry.config.borrow().policy.permits(target) {
        registry.refuse(Cause::Denied, peer.ip());
        log::debug!("{client} asked for {target}: {denied}");
        return Err(Message::failed(Failure::NOT_AUTHORIZED));
    }
    let stream = registry.open_stream(client, peer, target);
    let stream = stream.ok_or_else(|| Message::failed(Failure::RESOURCE_EXCEEDED))?;
    let connected = tokio::select! {
        connected = socket::tcp_connect(target, None) => connected,
        // Nobody waits for the target any more.
        error = socket::broken(tcp) => Err(error),
    };
    let connected = connected.map_err(|error| Message::failed(Failure::from_io(&error)))?;
    Ok((connected, stream))
}

async fn answer(tcp: &TcpStream, sealer: &mut Sealer, answer: &Message) -> io::Result<()> {
    let answer = answer.encode().map_err(io::Error::other)?;
    let record = sealer.seal_new(Kind::Answer, &answer).map_err(message::invalid)?;
    message::send(tcp, &record).await
}

/// Ends a connection without losing what was sent: closing it with unread data would reset it.
async fn hang_up(tcp: &TcpStream) -> io::Result<()> {
    socket::shutdown_write(tcp)?;
    let drained = async {
        let mut discarded = [0; 4096];
        loop {
            tcp.readable().await?;
            match tcp.try_read(&mut discarded) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    };
    timeout(HANG_UP_LIMIT, drained).await.unwrap_or(Ok(()))
}
