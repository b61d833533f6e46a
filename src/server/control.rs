//! The server's end of a control connection.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout};

use super::rotation::Accepted;
use super::{host, rotation};
use crate::config::keys::{Credential, PublicKey, Token};
use crate::os::{cpu, random};
use crate::provision::{EnrolError, enrol, invited, read_server_config};
use crate::registry::gate::Pass;
use crate::registry::{Cause, Client, Registry};
use crate::session::{Incoming, invalid, read_sealed};
use crate::tunnel::control::{ClientMessage, SILENCE_TIMEOUT, ServerMessage};
use crate::tunnel::forward::{Port, Verdict};
use crate::tunnel::handshake::{
    Channel, FIRST_BYTE, HandshakeError, REQUEST_HEADER_LEN, request_length, version_answer,
};
use crate::tunnel::hello::{Refusal, ServerHello};
use crate::tunnel::session::{ServerSession, SessionId, StreamSecret};
use crate::tunnel::{Cipher, CipherOffer, CipherSet, negotiate};

/// How long a refused client may take to hang up.
const HANG_UP_LIMIT: Duration = Duration::from_secs(5);

/// Serves a connection that began with a control connection's first byte.
pub async fn serve(registry: Rc<Registry>, mut tcp: TcpStream, peer: SocketAddr, pass: Pass) {
    let shaken = match shake_hands(&registry, &mut tcp, peer, &pass).await {
        Ok(Some(shaken)) => shaken,
        Ok(None) => return hang_up(tcp).await,
        Err(error) => {
            registry.refuse_broken(&error, peer.ip());
            return log::debug!("handshake with {peer}: {error}");
        }
    };
    pass.vouch();
    rotation::confirm(&registry, &shaken.key);
    let name = shaken.name.clone();
    let client = registry.client(&name);
    if shaken.server == registry.keys.borrow().public {
        client.knows_key.set(true);
        rotation::settle(&registry);
    }
    client.connected.set(client.connected.get() + 1);
    client.address.set(Some(peer));
    // An older connection of this client gives way.
    client.generation.set(client.generation.get().wrapping_add(1));
    client.changed.notify_waiters();
    let from = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    if client.connected.get() == 1 {
        client.since.set(Some(Instant::now()));
        registry.tell(log::Level::Info, format!("client {name}: connected from {from}"));
    } else {
        // A router whose old connection is dead, or somebody else who has its key.
        registry.tell(log::Level::Info, format!("client {name}: connected anew from {from}"));
    }
    // One that does not ask for its ports again has no use for them.
    registry.forwards.linger(&name, Instant::now());
    let mut granted = Granted { registry: registry.clone(), session: None };
    let reason = attend(&registry, &client, shaken, tcp, &mut granted).await;
    drop(granted);
    client.connected.set(client.connected.get().saturating_sub(1));
    if client.connected.get() == 0 {
        client.since.set(Some(Instant::now()));
        registry.forwards.linger(&name, Instant::now());
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

/// A client whose handshake is done.
struct Shaken {
    name: String,
    key: PublicKey,
    /// The server's key that it knows.
    server: PublicKey,
    cipher: Cipher,
    channel: Channel,
}

/// Runs the handshake to the client's first message; `None` when the client was refused.
async fn shake_hands(
    registry: &Registry,
    tcp: &mut TcpStream,
    peer: SocketAddr,
    pass: &Pass,
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
    pass.turn().await;
    let Some(accepted) = rotation::accept(registry, &request)? else {
        registry.refuse(Cause::NotAuthentic, peer.ip());
        return Ok(None);
    };
    let Accepted { handshake, client: key, hello, server } = accepted;
    let ours = ServerHello::ours(concat!("mptcp-bond ", env!("CARGO_PKG_VERSION")));
    let offer = CipherOffer { ciphers: CipherSet::all(), prefers_aes: cpu::has_aes() };
    let cipher = negotiate(hello.ciphers, offer);
    let agreed = match (handshake.downgraded(), cipher) {
        (true, _) => Err((Cause::Version, Refusal::Downgrade)),
        (false, None) => Err((Cause::Version, Refusal::NoCommonCipher)),
        (false, Some(cipher)) => match identify(registry, &key, hello.token.as_ref()) {
            Err(refusal) => Err((Cause::UnknownKey, refusal)),
            // All its streams would be refused; it does better to look for another way.
            Ok(known) if registry.is_full() && !has_streams(registry, known.as_deref()) => {
                Err((Cause::Full, Refusal::Busy))
            }
            Ok(known) => Ok((known, cipher)),
        },
    };
    let (known, cipher) = match agreed {
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
        Some(ClientMessage::Ready) => {}
        // It only wanted to know whether it would be welcome.
        Some(ClientMessage::Close) => return Ok(None),
        Some(ClientMessage::NewKey { key: next }) if known.is_some() => {
            rotation::confirm(registry, &key);
            let answer = rotation::renew(registry, &key, &next);
            write(&mut channel, tcp, &[answer]).await?;
            return Ok(None);
        }
        _ => return Err(io::ErrorKind::InvalidData.into()),
    }
    let name = match (known, hello.token) {
        (Some(name), _) => Ok(name),
        (None, Some(token)) => enrol_client(registry, &key, &token),
        (None, None) => Err(Refusal::UnknownKey),
    };
    match name {
        Ok(name) => Ok(Some(Shaken { name, key, server, cipher, channel })),
        Err(reason) => {
            registry.refuse(Cause::UnknownKey, peer.ip());
            write(&mut channel, tcp, &[ServerMessage::Close { reason }]).await?;
            Ok(None)
        }
    }
}

/// Opens a client's message; `None` for one of a later version.
fn open(channel: &mut Channel, sealed: &[u8]) -> io::Result<Option<ClientMessage>> {
    let plain = channel.open(sealed).map_err(invalid)?;
    ClientMessage::decode(&plain).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The client's name; `None` for one that is not known yet and shows a token that holds.
///
/// The message may be a replay: nothing is changed on its account.
fn identify(
    registry: &Registry,
    key: &PublicKey,
    token: Option<&Token>,
) -> Result<Option<String>, Refusal> {
    if let Some(client) = registry.client_of(key) {
        return Ok(Some(client.name));
    }
    let token = token.ok_or(Refusal::UnknownKey)?;
    let invited = invited(&registry.config_file, token, SystemTime::now());
    invited.map(|_| None).map_err(|error| not_enrolled(registry, &error))
}

/// Whether the client of this name has streams open.
fn has_streams(registry: &Registry, name: Option<&str>) -> bool {
    name.is_some_and(|name| registry.client(name).streams.get() > 0)
}

/// Adds a client, which has shown a token and holds its key, to the configuration.
fn enrol_client(registry: &Registry, key: &PublicKey, token: &Token) -> Result<String, Refusal> {
    let file = &registry.config_file;
    let name = enrol(file, token, key, SystemTime::now())
        .map_err(|error| not_enrolled(registry, &error))?;
    let config = read_server_config(file).map_err(|error| {
        registry.tell(log::Level::Error, error.to_string());
        Refusal::Other
    })?;
    registry.reconfigure(config);
    registry.tell(log::Level::Info, format!("client {name}: enrolled, key {}", key.fingerprint()));
    Ok(name)
}

/// A wrong token is anybody's doing, and is logged as any refusal; the rest is the operator's.
fn not_enrolled(registry: &Registry, error: &EnrolError) -> Refusal {
    if !matches!(error, EnrolError::Token) {
        registry.tell(log::Level::Warn, format!("a router was not enrolled: {error}"));
    }
    Refusal::BadToken
}

/// Gives sessions, answers pings and forwards ports until the connection ends; returns why it did.
async fn attend(
    registry: &Rc<Registry>,
    client: &Client,
    shaken: Shaken,
    tcp: TcpStream,
    granted: &mut Granted,
) -> String {
    let Shaken { name, key, mut server, cipher, mut channel } = shaken;
    let generation = client.generation.get();
    let (reading, mut writing) = tcp.into_split();
    let mut incoming = Incoming::new(reading);
    let mut rotation = Instant::now();
    let mut heard = Instant::now();
    let mut forwarding = Forwarding::default();
    loop {
        let changed = client.changed.notified();
        let arrived = client.arrived.notified();
        let cut_off = if !registry.holds(&Credential::Key(key)) {
            Some((Refusal::Revoked, "revoked"))
        } else if client.generation.get() != generation {
            Some((Refusal::Replaced, "another connection with its key took over"))
        } else if registry.is_stopping() {
            Some((Refusal::ShuttingDown, "the server stops"))
        } else {
            None
        };
        if let Some((reason, text)) = cut_off {
            // The client may be gone; it is cut off either way.
            let _ = write(&mut channel, &mut writing, &[ServerMessage::Close { reason }]).await;
            return text.to_owned();
        }
        let mut replies = forwarding.news(registry, &name);
        if Instant::now() >= rotation {
            let (id, secret) = match new_session(registry, &name, key, cipher) {
                Ok(session) => session,
                Err(error) => return error.to_string(),
            };
            granted.replace(Some(id));
            let lifetime = registry.config.borrow().limits.session_lifetime;
            replies.push(ServerMessage::Session { id, secret, cipher, lifetime, datagrams: true });
            // The next one comes well before the lifetime is over.
            rotation = Instant::now() + lifetime * 3 / 4;
        } else if server != registry.keys.borrow().public {
            server = registry.keys.borrow().public;
            replies.push(ServerMessage::NewServerKey { key: server });
        } else if replies.is_empty() {
            tokio::select! {
                sealed = incoming.next() => {
                    heard = Instant::now();
                    match sealed.and_then(|sealed| open(&mut channel, &sealed)) {
                        Ok(Some(ClientMessage::Ping { nonce })) => {
                            let host = Some(host::state().await);
                            replies.push(ServerMessage::Pong { nonce, host });
                        }
                        Ok(Some(ClientMessage::Forwards(ports))) => forwarding.ask(ports),
                        Ok(Some(ClientMessage::Decline { id })) => {
                            registry.forwards.decline(&name, id);
                        }
                        Ok(Some(ClientMessage::Close)) => return "it said goodbye".to_owned(),
                        Ok(Some(ClientMessage::Ready | ClientMessage::NewKey { .. }) | None) => {}
                        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                            let reason = Refusal::ProtocolError;
                            let close = [ServerMessage::Close { reason }];
                            // The client may be gone; the connection ends either way.
                            let _ = write(&mut channel, &mut writing, &close).await;
                            return error.to_string();
                        }
                        Err(_) => return "it hung up".to_owned(),
                    }
                }
                () = changed => {}
                () = arrived => {}
                () = sleep_until(rotation.min(heard + SILENCE_TIMEOUT).into()) => {}
            }
        }
        if let Err(error) = write(&mut channel, &mut writing, &replies).await {
            return error.to_string();
        }
        if heard.elapsed() >= SILENCE_TIMEOUT {
            return format!("silent for {} s", SILENCE_TIMEOUT.as_secs());
        }
    }
}

/// The ports that a client asks for over one connection.
#[derive(Default)]
struct Forwarding {
    asked: Option<Vec<Port>>,
    answered: Option<Vec<(Port, Verdict)>>,
}

impl Forwarding {
    fn ask(&mut self, ports: Vec<Port>) {
        (self.asked, self.answered) = (Some(ports), None);
    }

    /// What the client does not know yet. Ports that it could not have are tried again.
    fn news(&mut self, registry: &Rc<Registry>, client: &str) -> Vec<ServerMessage> {
        let Some(ports) = &self.asked else { return Vec::new() };
        let mut news = Vec::new();
        let verdicts = registry.forward(client, ports);
        if self.answered.as_ref() != Some(&verdicts) {
            self.answered = Some(verdicts.clone());
            news.push(ServerMessage::Forwards(verdicts));
        }
        let arrived = registry.forwards.announce(client).into_iter();
        news.extend(arrived.map(ServerMessage::Incoming));
        news
    }
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
