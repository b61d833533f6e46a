//! The agent's way to its server: the control connection, and the session it yields.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, sleep_until, timeout};

use crate::config::agent::ServerConfig;
use crate::config::keys::{PrivateKey, PublicKey};
use crate::controller::Outlet;
use crate::os::socket;
use crate::tunnel::Cipher;
use crate::tunnel::control::Message;
use crate::tunnel::handshake::{
    self, Channel, ClientHandshake, ClientHello, HandshakeError, ServerHello,
};
use crate::tunnel::record::{Opener, Sealer};
use crate::tunnel::session::{End, Keys};
use crate::tunnel::stream;

/// How long one path has before the next one is tried beside it (RFC 8305, section 8).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// How long a server may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long a server may take to answer a handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// How often the control connection is tried, to keep NAT state and to measure.
const PING_INTERVAL: Duration = Duration::from_secs(15);
/// After how long without an answer the control connection is given up.
const PING_LIMIT: Duration = Duration::from_secs(10);
/// The longest wait between two attempts.
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// A session the server gave.
pub struct Session {
    /// Id and secret.
    pub keys: Keys,
    /// Cipher of its streams.
    pub cipher: Cipher,
    /// The server address in use.
    pub server: SocketAddr,
    next_stream: Cell<u64>,
    next_probe: Cell<u64>,
}

impl Session {
    fn new(keys: Keys, cipher: Cipher, server: SocketAddr) -> Session {
        Session { keys, cipher, server, next_stream: Cell::new(0), next_probe: Cell::new(0) }
    }

    /// The preamble and the record layer of a new stream; `None` never in practice.
    pub fn open_stream(&self) -> Option<(Vec<u8>, Sealer, Opener)> {
        let counter = next(&self.next_stream);
        let (sealer, opener) = self.keys.stream(self.cipher, counter, End::Client)?;
        Some((stream::preamble(&self.keys, counter, self.cipher), sealer, opener))
    }

    /// The counter of a new probe.
    pub fn next_probe(&self) -> u64 {
        next(&self.next_probe)
    }
}

/// A counter is used once in a session.
fn next(counter: &Cell<u64>) -> u64 {
    counter.replace(counter.get().wrapping_add(1))
}

/// What session, pool and proxy share: the ways out and the session in force.
#[derive(Default)]
pub struct Trunk {
    paths: RefCell<Vec<Outlet>>,
    session: RefCell<Option<Rc<Session>>>,
    /// Told at each change of either.
    pub changed: Notify,
}

impl Trunk {
    /// Sets the ways out, best first.
    pub fn set_paths(&self, paths: Vec<Outlet>) {
        if *self.paths.borrow() != paths {
            *self.paths.borrow_mut() = paths;
            self.changed.notify_waiters();
        }
    }

    /// The session in force.
    pub fn session(&self) -> Option<Rc<Session>> {
        self.session.borrow().clone()
    }

    /// The session in force, as soon as there is one.
    pub async fn wait_for_session(&self) -> Rc<Session> {
        loop {
            let changed = self.changed.notified();
            if let Some(session) = self.session() {
                return session;
            }
            changed.await;
        }
    }

    /// Puts a session in force, or none.
    pub fn set_session(&self, session: Option<Rc<Session>>) {
        *self.session.borrow_mut() = session;
        self.changed.notify_waiters();
    }

    /// Connects to `server`: over the best way out first, then over the next one beside it each
    /// 250 ms; the first to be accepted wins.
    ///
    /// # Errors
    /// The last way's error, or `NetworkUnreachable` where there is none.
    pub async fn dial(&self, server: SocketAddr) -> io::Result<TcpStream> {
        let paths: Vec<Outlet> = self
            .paths
            .borrow()
            .iter()
            .filter(|path| path.source.is_ipv4() == server.is_ipv4())
            .cloned()
            .collect();
        if paths.is_empty() {
            let text = "no uplink is up that could reach the server";
            return Err(io::Error::new(io::ErrorKind::NetworkUnreachable, text));
        }
        timeout(CONNECT_LIMIT, race(server, paths))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

async fn race(server: SocketAddr, paths: Vec<Outlet>) -> io::Result<TcpStream> {
    let mut attempts = FuturesUnordered::new();
    let mut last = io::Error::from(io::ErrorKind::NetworkUnreachable);
    for path in paths {
        attempts.push(Box::pin(async move {
            socket::mptcp_connect(server, Some(path.source), Some(&path.device)).await
        })
            as Pin<Box<dyn Future<Output = io::Result<TcpStream>>>>);
        match timeout(ATTEMPT_DELAY, attempts.next()).await {
            Ok(Some(Ok(stream))) => return Ok(stream),
            Ok(Some(Err(error))) => last = error,
            Ok(None) | Err(_) => {}
        }
    }
    while let Some(result) = attempts.next().await {
        match result {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What became of the session.
pub enum Event {
    /// The server's name stands for these addresses.
    Resolved(Vec<IpAddr>),
    /// A session is in force; also after a rotation.
    Up {
        /// The session.
        session: Rc<Session>,
        /// Whether the control connection is MPTCP or fell back to TCP.
        mptcp: bool,
    },
    /// The server answered on the control connection.
    Heard {
        /// Round-trip time over the control connection.
        rtt: Duration,
    },
    /// There is no control connection.
    Down {
        /// Why, in words.
        reason: String,
    },
}

/// Keeps a control connection to one server, for ever.
pub struct Keeper {
    /// The server.
    pub config: ServerConfig,
    /// The router's key.
    pub key: PrivateKey,
    /// What is shared with pool and proxy.
    pub trunk: Rc<Trunk>,
    /// Where news goes.
    pub events: mpsc::UnboundedSender<Event>,
    /// Asks for a ping at once.
    pub ping: Rc<Notify>,
}

impl Keeper {
    /// Connects, serves, and connects again with backoff.
    pub async fn run(self) {
        let mut backoff = Duration::ZERO;
        loop {
            let reason = match self.connect().await {
                Ok(connection) => {
                    backoff = Duration::ZERO;
                    self.serve(connection).await
                }
                Err(reason) => reason,
            };
            self.tell(Event::Down { reason });
            backoff = (backoff * 2).clamp(Duration::from_millis(250), LONGEST_BACKOFF);
            let _ = timeout(backoff, self.trunk.changed.notified()).await;
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn tell(&self, event: Event) {
        // The receiver outlives the keeper; a failure means that the agent is stopping.
        let _ = self.events.send(event);
    }

    async fn resolve(&self) -> Result<Vec<SocketAddr>, String> {
        let ServerConfig { address, port, .. } = &self.config;
        let name = |what: String| format!("cannot resolve server name '{address}': {what}");
        let found = timeout(CONNECT_LIMIT, tokio::net::lookup_host((address.as_str(), *port)))
            .await
            .map_err(|_| name("no answer from DNS".into()))?
            .map_err(|error| name(error.to_string()))?;
        let found: Vec<SocketAddr> = found.collect();
        self.tell(Event::Resolved(found.iter().map(SocketAddr::ip).collect()));
        Ok(found)
    }

    async fn connect(&self) -> Result<Connection, String> {
        let mut last = format!("'{}' has no address", self.config.address);
        for server in self.resolve().await? {
            match self.connect_to(server).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = format!("{server}: {error}"),
            }
        }
        Err(last)
    }

    async fn connect_to(&self, server: SocketAddr) -> Result<Connection, String> {
        let mut tcp = self.trunk.dial(server).await.map_err(|error| error.to_string())?;
        let hello = ClientHello {
            cipher: self.config.cipher,
            prefers_aes: crate::os::cpu::has_aes(),
            software: env!("CARGO_PKG_VERSION").into(),
            token: None,
        };
        let shaken = timeout(HANDSHAKE_LIMIT, shake_hands(&mut tcp, &self.key, &self.config.public_key, &hello));
        let (channel, _) = shaken
            .await
            .map_err(|_| "no answer to the handshake".to_owned())?
            .map_err(|error| error.to_string())?;
        Ok(Connection { tcp, channel, server })
    }

    /// Serves a control connection until it ends; returns why it did.
    async fn serve(&self, connection: Connection) -> String {
        let Connection { tcp, mut channel, server } = connection;
        let mptcp = socket::is_mptcp(&tcp).unwrap_or(false);
        let (mut reading, mut writing) = tcp.into_split();
        let (opened, mut incoming) = mpsc::channel(8);
        // Reading in a task of its own makes waiting for a message safe to give up at any time.
        let reader = tokio::task::spawn_local(async move {
            loop {
                let message = read_sealed(&mut reading).await;
                let ended = message.is_err();
                if opened.send(message).await.is_err() || ended {
                    return;
                }
            }
        });
        let mut pings = Pings::default();
        let reason = loop {
            let now = Instant::now();
            if pings.overdue(now) {
                break format!("no answer for {} s", PING_LIMIT.as_secs());
            }
            let arrived = tokio::select! {
                message = incoming.recv() => message,
                () = self.ping.notified() => {
                    pings.due = Some(Instant::now());
                    None
                }
                () = sleep_until(pings.next(now).into()) => None,
            };
            if let Some(sealed) = arrived {
                let opened = sealed.and_then(|sealed| Ok(channel.open(&sealed)?));
                match opened {
                    Ok(messages) => match self.take(messages, server, mptcp, &mut pings) {
                        Ok(()) => {}
                        Err(reason) => break reason,
                    },
                    Err(error) => break format!("the control connection ended: {error}"),
                }
            }
            if let Some(number) = pings.ping(Instant::now()) {
                let sent = match channel.seal(&Message::Ping(number)) {
                    Ok(sealed) => writing.write_all(&sealed).await,
                    Err(error) => Err(error.into()),
                };
                if let Err(error) = sent {
                    break format!("the control connection broke: {error}");
                }
            }
        };
        reader.abort();
        reason
    }

    fn take(
        &self,
        messages: Vec<Message>,
        server: SocketAddr,
        mptcp: bool,
        pings: &mut Pings,
    ) -> Result<(), String> {
        for message in messages {
            match message {
                Message::Session { keys, cipher } => {
                    let session = Rc::new(Session::new(keys, cipher, server));
                    self.trunk.set_session(Some(session.clone()));
                    self.tell(Event::Up { session, mptcp });
                }
                Message::Pong(number) => {
                    if let Some(rtt) = pings.pong(number, Instant::now()) {
                        self.tell(Event::Heard { rtt });
                    }
                }
                Message::Close(reason) => return Err(format!("the server said: {reason}")),
                Message::Ready | Message::Ping(_) => {}
            }
        }
        Ok(())
    }
}

/// A control connection that is set up.
struct Connection {
    tcp: TcpStream,
    channel: Channel,
    server: SocketAddr,
}

/// Pings on a control connection.
#[derive(Default)]
struct Pings {
    sent: u64,
    waiting: Option<(u64, Instant)>,
    due: Option<Instant>,
}

impl Pings {
    fn overdue(&self, now: Instant) -> bool {
        self.waiting.is_some_and(|(_, at)| now >= at + PING_LIMIT)
    }

    /// When to look again.
    fn next(&self, now: Instant) -> Instant {
        match self.waiting {
            Some((_, at)) => at + PING_LIMIT,
            None => self.due.unwrap_or(now),
        }
    }

    /// The number to send now, if any; one is on its way at a time.
    fn ping(&mut self, now: Instant) -> Option<u64> {
        if self.waiting.is_some() || self.due.is_some_and(|due| now < due) {
            return None;
        }
        self.sent = self.sent.wrapping_add(1);
        self.waiting = Some((self.sent, now));
        self.waiting.map(|(number, _)| number)
    }

    fn pong(&mut self, number: u64, now: Instant) -> Option<Duration> {
        let (_, at) = self.waiting.take_if(|(waiting, _)| *waiting == number)?;
        self.due = Some(now + PING_INTERVAL);
        Some(now.saturating_duration_since(at))
    }
}

/// Runs the client's side of the handshake.
///
/// # Errors
/// The connection's, or `InvalidData` with what the server's answer means.
pub async fn shake_hands(
    tcp: &mut TcpStream,
    key: &PrivateKey,
    server: &PublicKey,
    hello: &ClientHello,
) -> io::Result<(Channel, ServerHello)> {
    let (handshake, first) =
        ClientHandshake::start(key.as_bytes(), &server.0, hello)?;
    tcp.write_all(&first).await?;
    let version = tcp.read_u8().await.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::new(
            error.kind(),
            "the server hung up: its public key is another one, or something else listens there",
        ),
        _ => error,
    })?;
    let length = usize::from(tcp.read_u16().await?);
    if length > handshake::LONGEST {
        return Err(HandshakeError::Malformed.into());
    }
    let mut answer = vec![0; length];
    tcp.read_exact(&mut answer).await?;
    let (mut channel, said) = handshake.finish(version, &answer)?;
    tcp.write_all(&channel.seal(&Message::Ready)?).await?;
    Ok((channel, said))
}

/// Reads one sealed transport message.
///
/// # Errors
/// The connection's, or `InvalidData` for one that is too long.
pub async fn read_sealed(reading: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Vec<u8>> {
    let mut header = [0; 2];
    reading.read_exact(&mut header).await?;
    let length = handshake::transport_length(header).ok_or(HandshakeError::Malformed)?;
    let mut sealed = vec![0; length];
    reading.read_exact(&mut sealed).await?;
    Ok(sealed)
}
