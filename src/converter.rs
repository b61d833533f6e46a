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
use crate::registry::sessions::Refused;
use crate::registry::{Cause, Registry, Stream};
use crate::relay::{self, IdleLimits, message};
use crate::tunnel::{Cipher, STREAM};
use crate::tunnel::convert::{self, ErrorCode};
use crate::tunnel::record::{Kind, Opener, Sealer};
use crate::tunnel::session::End;
use crate::tunnel::stream::{PREAMBLE, Preamble};

/// How long a warm stream may wait for its request: longer than clients keep theirs.
const WARM_LIMIT: Duration = Duration::from_secs(300);
/// How long a refused client may take to hang up.
const HANG_UP_LIMIT: Duration = Duration::from_secs(5);

/// Serves a connection that began with a stream's first byte.
pub async fn serve(registry: Rc<Registry>, mut tcp: TcpStream, peer: SocketAddr, pass: Pass) {
    let mut preamble = [STREAM; PREAMBLE];
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
    // Failing to tune a socket costs latency, not correctness.
    let _ = socket::tune(&tcp);
    if let Err(error) = convert(&registry, &client, cipher, sealer, opener, &tcp, peer).await {
        log::debug!("stream of {client} from {peer}: {error}");
        socket::abort(&tcp);
    }
}

fn authenticate(
    registry: &Registry,
    preamble: &[u8; PREAMBLE],
) -> Result<(String, Cipher, Sealer, Opener), Cause> {
    let now = Instant::now();
    let preamble = Preamble::decode(preamble).ok_or(Cause::NotOurs)?;
    let mut sessions = registry.sessions.borrow_mut();
    let session = sessions.find(preamble.session, now).ok_or(Cause::NoSession)?;
    if !preamble.verify(&session.keys) || preamble.cipher != session.cipher {
        return Err(Cause::NotAuthentic);
    }
    let (sealer, opener) = session
        .keys
        .stream(session.cipher, preamble.counter, End::Server)
        .ok_or(Cause::NotAuthentic)?;
    let stream = (session.client.clone(), session.cipher, sealer, opener);
    match sessions.use_counter(preamble.session, preamble.counter, now) {
        Ok(()) => Ok(stream),
        Err(Refused::Replayed) => Err(Cause::Replayed),
        Err(Refused::NoSession) => Err(Cause::NoSession),
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
            Some((Kind::Request, request)) => request,
            Some(_) => return Err(io::ErrorKind::InvalidData.into()),
        },
    };
    let (target, stream) = match open(registry, client, &request, tcp, peer).await {
        Ok(opened) => opened,
        Err(code) => {
            answer(tcp, &mut sealer, Err(code)).await?;
            return hang_up(tcp).await;
        }
    };
    answer(tcp, &mut sealer, Ok(())).await?;
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
) -> Result<(TcpStream, Stream), ErrorCode> {
    let target = convert::decode_connect(request)?;
    if let Err(denied) = registry.config.borrow().policy.permits(target) {
        registry.refuse(Cause::Denied, peer.ip());
        log::debug!("{client} asked for {target}: {denied}");
        return Err(ErrorCode::NotAuthorized);
    }
    let stream = registry.open_stream(client, peer, target).ok_or(ErrorCode::ResourceExceeded)?;
    let connected = tokio::select! {
        connected = socket::tcp_connect(target, None) => connected,
        // Nobody waits for the target any more.
        error = socket::broken(tcp) => Err(error),
    };
    let connected = connected.map_err(|error| ErrorCode::of(&error))?;
    let _ = socket::tune(&connected);
    Ok((connected, stream))
}

async fn answer(
    tcp: &TcpStream,
    sealer: &mut Sealer,
    answer: Result<(), ErrorCode>,
) -> io::Result<()> {
    let mut record = Vec::new();
    sealer.append(Kind::Answer, &convert::encode_answer(answer), &mut record)?;
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
