//! The server's end of a control connection.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep_until, timeout};

use crate::config::keys::{PublicKey, Token};
use crate::os::{cpu, random};
use crate::provision::{enrol, read_server_config};
use crate::registry::gate::Pass;
use crate::registry::{Cause, Registry};
use crate::session::{invalid, read_sealed};
use crate::tunnel::control::{ClientMessage, SESSION_LIFETIME, SILENCE_TIMEOUT, ServerMessage};
use crate::tunnel::handshake::{
    Channel, FIRST_BYTE, HandshakeError, REQUEST_HEADER_LEN, ServerHandshake, request_length,
    version_answer,
};
use crate::tunnel::hello::{Refusal, ServerHello};
use crate::tunnel::session::{ServerSession, SessionId, StreamSecret};
use crate::tunnel::{Cipher, CipherOffer, CipherSet, negotiate};

/// A session is replaced by a new one well before its lifetime is over.
const ROTATION: Duration = Duration::from_secs(SESSION_LIFETIME.as_secs() * 3 / 4);
/// How long a refused client may take to hang up.
const HANG_UP_LIMIT: Duration = Duration::from_secs(5);

/// Serves a connection that began with a control connection's first byte.
pub async fn serve(registry: Rc<Registry>, mut tcp: TcpStream, peer: SocketAddr, pass: Pass) {
    let (name, key, cipher, channel) = match shake_hands(&registry, &mut tcp, peer).await {
        Ok(Some(client)) => client,
        Ok(None) => return hang_up(tcp).await,
        Err(error) => return log::debug!("handshake with {peer}: {error}"),
    };
    drop(pass);
    let client = registry.client(&name);
    client.connected.set(client.connected.get() + 1);
    client.address.set(Some(peer));
    if client.connected.get() == 1 {
        client.since.set(Some(Instant::now()));
        let from = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        registry.tell(log::Level::Info, format!("client {name}: connected from {from}"));
    }
    let mut granted = Granted { registry: registry.clone(), session: None };
    let reason = attend(&registry, &name, key, cipher, tcp, channel, &mut granted).await;
    drop(granted);
    client.connected.set(client.connected.get().saturating_sub(1));
    if client.connected.get() == 0 {
        client.since.set(Some(Instant::now()));
        registry.tell(log::Level::Info, format!("client {name}: disconnected: {reason}"));
    }
}

/// The session in force on a connection; it runs out when the connection ends.
struct Granted {
    registry: Rc<Registry>,
    session: Option<SessionId>,
}

impl Granted {
    fn replace(&mut self, session: Option<SessionId>) {
        if let Some(old) = std::mem::replace(&mut self.session, session) {
            self.registry.sessions.borrow_mut().retire(old, Instant::now());
        }
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        self.replace(None);
    }
}

type Shaken = (String, PublicKey, Cipher, Channel);

/// Runs the handshake to the client's first message; `None` when the client was refused.
async fn shake_hands(
    registry: &Registry,
    tcp: &mut TcpStream,
    peer: SocketAddr,
) -> io::Result<Option<Shaken>> {
    let mut request = vec![FIRST_BYTE; REQUEST_HEADER_LEN];
    tcp.read_exact(request.get_mut(1..).unwrap_or_default()).await?;
    let header = request.first_chunk().copied().unwrap_or_default();
    match request_length(&header) {
        Ok(length) => request.resize(REQUEST_HEADER_LEN + length, 0),
        Err(HandshakeError::Version(_)) => {
            registry.refuse(Cause::Version, peer.ip());
            tcp.write_all(&version_answer()).await?;
            return Ok(None);
        }
        Err(_) => {
            registry.refuse(Cause::NotOurs, peer.ip());
            return Ok(None);
        }
    }
    tcp.read_exact(request.get_mut(REQUEST_HEADER_LEN..).unwrap_or_default()).await?;
    let mut random = random::source()?;
    let accepted = ServerHandshake::accept(registry.key.as_bytes(), &request, &mut random);
    let Ok((handshake, client, hello)) = accepted else {
        registry.refuse(Cause::NotAuthentic, peer.ip());
        return Ok(None);
    };
    let key = PublicKey(client);
    let ours = ServerHello::ours(concat!("mptcp-bond ", env!("CARGO_PKG_VERSION")));
    let offer = CipherOffer { ciphers: CipherSet::all(), prefers_aes: cpu::has_aes() };
    let cipher = negotiate(hello.ciphers, offer);
    let agreed = match (handshake.downgraded(), cipher) {
        (true, _) => Err((Cause::Version, Refusal::Downgrade)),
        (false, None) => Err((Cause::Version, Refusal::NoCommonCipher)),
        (false, Some(cipher)) => {
            let name = identify(registry, &key, hello.token.as_ref());
            name.map(|name| (name, cipher)).map_err(|refusal| (Cause::UnknownKey, refusal))
        }
    };
    let (name, cipher) = match agreed {
        Ok(agreed) => agreed,
        Err((cause, refusal)) => {
            registry.refuse(cause, peer.ip());
            tcp.write_all(&handshake.refuse(&ours, refusal).map_err(invalid)?).await?;
            return Ok(None);
        }
    };
    let (answer, mut channel) = handshake.reply(&ours).map_err(invalid)?;
    tcp.write_all(&answer).await?;
    // Only the holder of the ephemeral key gets this far: message 1 may have been a replay.
    let sealed = read_sealed(tcp).await?;
    match open(&mut channel, &sealed)? {
        Some(ClientMessage::Ready) => Ok(Some((name, key, cipher, channel))),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Opens a client's message; `None` for one of a later version.
fn open(channel: &mut Channel, sealed: &[u8]) -> io::Result<Option<ClientMessage>> {
    let plain = channel.open(sealed).map_err(invalid)?;
    ClientMessage::decode(&plain).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The client's name; one with an invitation's token is enrolled.
///
/// A token may come in a replayed message, which then enrols the key of the router it was made for.
fn identify(
    registry: &Registry,
    key: &PublicKey,
    token: Option<&Token>,
) -> Result<String, Refusal> {
    if let Some(client) = registry.client_of(key) {
        return Ok(client.name);
    }
    let token = token.ok_or(Refusal::UnknownKey)?;
    let file = &registry.config_file;
    let enrolled = enrol(file, token, key, SystemTime::now()).map_err(|error| {
        registry.tell(log::Level::Warn, format!("a router was not enrolled: {error}"));
        Refusal::BadToken
    });
    let name = enrolled?;
    let config = read_server_config(file).map_err(|error| {
        registry.tell(log::Level::Error, error.to_string());
        Refusal::Other
    });
    registry.reconfigure(config?);
    registry.tell(log::Level::Info, format!("client {name}: enrolled, key {}", key.fingerprint()));
    Ok(name)
}

/// Gives sessions and answers pings until the connection ends; returns why it did.
async fn attend(
    registry: &Registry,
    name: &str,
    key: PublicKey,
    cipher: Cipher,
    tcp: TcpStream,
    mut channel: Channel,
    granted: &mut Granted,
) -> String {
    let (mut reading, mut writing) = tcp.into_split();
    let (read, mut incoming) = mpsc::channel(8);
    // Reading in a task of its own makes waiting for a message safe to give up at any time.
    let reader = tokio::task::spawn_local(async move {
        loop {
            let message = read_sealed(&mut reading).await;
            let ended = message.is_err();
            if read.send(message).await.is_err() || ended {
                return;
            }
        }
    });
    let mut rotation = Instant::now();
    let mut heard = Instant::now();
    let reason = loop {
        let mut replies = Vec::new();
        if Instant::now() >= rotation {
            let (id, secret) = match new_session(registry, name, key, cipher) {
                Ok(session) => session,
                Err(error) => break error.to_string(),
            };
            granted.replace(Some(id));
            let lifetime = SESSION_LIFETIME;
            replies.push(ServerMessage::Session { id, secret, cipher, lifetime });
            rotation = Instant::now() + ROTATION;
        } else {
            tokio::select! {
                sealed = incoming.recv() => {
                    let Some(Ok(sealed)) = sealed else { break "it hung up".to_owned() };
                    heard = Instant::now();
                    match open(&mut channel, &sealed) {
                        Ok(Some(ClientMessage::Ping { nonce })) => {
                            replies.push(ServerMessage::Pong { nonce });
                        }
                        Ok(Some(ClientMessage::Close)) => break "it said goodbye".to_owned(),
                        Ok(Some(ClientMessage::Ready) | None) => {}
                        Err(error) => break error.to_string(),
                    }
                }
                () = sleep_until(rotation.min(heard + SILENCE_TIMEOUT).into()) => {}
            }
        }
        if registry.client_of(&key).is_none() {
            replies.push(ServerMessage::Close { reason: Refusal::Revoked });
            // The client may be gone; it is cut off either way.
            let _ = write(&mut channel, &mut writing, &replies).await;
            break "revoked".to_owned();
        }
        if let Err(error) = write(&mut channel, &mut writing, &replies).await {
            break error.to_string();
        }
        if heard.elapsed() >= SILENCE_TIMEOUT {
            break format!("silent for {} s", SILENCE_TIMEOUT.as_secs());
        }
    };
    reader.abort();
    reason
}

async fn write(
    channel: &mut Channel,
    writing: &mut (impl AsyncWriteExt + Unpin),
    messages: &[ServerMessage],
) -> io::Result<()> {
    for message in messages {
        let sealed = channel.seal(&message.encode()).map_err(invalid)?;
        timeout(SILENCE_TIMEOUT, writing.write_all(&sealed)).await??;
    }
    Ok(())
}

fn new_session(
    registry: &Registry,
    name: &str,
    key: PublicKey,
    cipher: Cipher,
) -> io::Result<(SessionId, StreamSecret)> {
    loop {
        let mut random = random::source()?;
        let mut id = [0; 8];
        random(&mut id);
        let id = SessionId(u64::from_be_bytes(id));
        let secret = StreamSecret::generate(&mut random);
        let session = ServerSession::new(id, &secret, cipher);
        if registry.sessions.borrow_mut().add(name, key, session) {
            return Ok((id, secret));
        }
    }
}

/// Lets a refused client read why before the connection is closed.
async fn hang_up(mut tcp: TcpStream) {
    let drained = async {
        tcp.shutdown().await?;
        tokio::io::copy(&mut tcp, &mut tokio::io::sink()).await
    };
    // Whatever the client does, it was refused.
    let _ = timeout(HANG_UP_LIMIT, drained).await;
}
