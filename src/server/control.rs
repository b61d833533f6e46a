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
use crate::os::{cpu, socket};
use crate::provision::{enrol, read_server_config};
use crate::registry::gate::Pass;
use crate::registry::{Cause, Registry};
use crate::session::read_sealed;
use crate::tunnel::Cipher;
use crate::tunnel::control::Message;
use crate::tunnel::handshake::{
    self, Channel, HandshakeError, ServerHandshake, ServerHello, version_refusal,
};
use crate::tunnel::session::{Keys, StreamSecret};

/// A session is replaced by a new one after this time.
const ROTATION: Duration = Duration::from_secs(3600);
/// A client that says nothing for so long has gone: it pings four times as often.
const SILENCE: Duration = Duration::from_secs(60);
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
    // Failing to tune a socket costs latency, not correctness.
    let _ = socket::tune(&tcp);
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
    session: Option<u64>,
}

impl Granted {
    fn replace(&mut self, session: Option<u64>) {
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
    let version = tcp.read_u8().await?;
    let length = usize::from(tcp.read_u16().await?);
    if length > handshake::LONGEST {
        registry.refuse(Cause::NotOurs, peer.ip());
        return Ok(None);
    }
    let mut message = vec![0; length];
    tcp.read_exact(&mut message).await?;
    let shaken = match ServerHandshake::accept(registry.key.as_bytes(), version, &message) {
        Ok(shaken) => shaken,
        Err(HandshakeError::Version(_)) => {
            registry.refuse(Cause::Version, peer.ip());
            tcp.write_all(&version_refusal()).await?;
            return Ok(None);
        }
        Err(_) => {
            registry.refuse(Cause::NotAuthentic, peer.ip());
            return Ok(None);
        }
    };
    let key = PublicKey(shaken.client);
    let client = match identify(registry, &key, shaken.hello.token.as_ref()) {
        Ok(client) => client,
        Err(reason) => {
            registry.refuse(Cause::UnknownKey, peer.ip());
            tcp.write_all(&shaken.refuse(&reason)?).await?;
            return Ok(None);
        }
    };
    let hello = &shaken.hello;
    let cipher = Cipher::negotiate(hello.cipher, hello.prefers_aes, cpu::has_aes());
    let software = env!("CARGO_PKG_VERSION").into();
    let (answer, mut channel) = shaken.reply(&ServerHello { software })?;
    tcp.write_all(&answer).await?;
    // Only the holder of the ephemeral key gets this far: message 1 may have been a replay.
    let sealed = read_sealed(tcp).await?;
    if channel.open(&sealed)?.first() != Some(&Message::Ready) {
        return Err(HandshakeError::Malformed.into());
    }
    Ok(Some((client, key, cipher, channel)))
}

/// The client's name; one with an invitation's token is enrolled.
///
/// A token may come in a replayed message, which then enrols the key of the router it was made for.
fn identify(
    registry: &Registry,
    key: &PublicKey,
    token: Option<&Token>,
) -> Result<String, String> {
    if let Some(client) = registry.client_of(key) {
        return Ok(client.name);
    }
    let token = token.ok_or("the server does not know this router's key: pair it again")?;
    let file = &registry.config_file;
    let name = enrol(file, token, key, SystemTime::now()).map_err(|error| error.to_string())?;
    let config = read_server_config(file).map_err(|error| error.to_string())?;
    registry.reconfigure(config);
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
            let Some(keys) = new_session(registry, name, key, cipher) else {
                break "no random numbers".to_owned();
            };
            granted.replace(Some(keys.id));
            replies.push(Message::Session { keys, cipher });
            rotation = Instant::now() + ROTATION;
        } else {
            tokio::select! {
                sealed = incoming.recv() => {
                    let Some(Ok(sealed)) = sealed else { break "it hung up".to_owned() };
                    match channel.open(&sealed) {
                        Ok(messages) => {
                            heard = Instant::now();
                            let pings = messages.into_iter().filter_map(|message| match message {
                                Message::Ping(number) => Some(Message::Pong(number)),
                                _ => None,
                            });
                            replies.extend(pings);
                        }
                        Err(error) => break error.to_string(),
                    }
                }
                () = sleep_until(rotation.min(heard + SILENCE).into()) => {}
            }
        }
        if registry.client_of(&key).is_none() {
            replies.push(Message::Close("this router's key was revoked".into()));
            // The client may be gone; it is cut off either way.
            let _ = write(&mut channel, &mut writing, &replies).await;
            break "revoked".to_owned();
        }
        if let Err(error) = write(&mut channel, &mut writing, &replies).await {
            break error.to_string();
        }
        if heard.elapsed() >= SILENCE {
            break format!("silent for {} s", SILENCE.as_secs());
        }
    };
    reader.abort();
    reason
}

async fn write(
    channel: &mut Channel,
    writing: &mut (impl AsyncWriteExt + Unpin),
    messages: &[Message],
) -> io::Result<()> {
    for message in messages {
        let sealed = channel.seal(message)?;
        timeout(SILENCE, writing.write_all(&sealed)).await??;
    }
    Ok(())
}

fn new_session(registry: &Registry, name: &str, key: PublicKey, cipher: Cipher) -> Option<Keys> {
    loop {
        let (mut id, mut secret) = ([0; 8], [0; 32]);
        getrandom::fill(&mut id).ok()?;
        getrandom::fill(&mut secret).ok()?;
        let keys = Keys { id: u64::from_be_bytes(id), secret: StreamSecret::new(secret) };
        if registry.sessions.borrow_mut().add(name.to_owned(), key, cipher, keys.clone()) {
            return Some(keys);
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
