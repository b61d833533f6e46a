//! The agent's way to its server: the control connection, and the session it yields.

mod handshake;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, sleep_until, timeout};

pub use handshake::{Incoming, hello, invalid, open, read_sealed, shake_hands};

use crate::config::agent::ServerConfig;
use crate::config::keys::PrivateKey;
use crate::controller::Outlet;
use crate::os::socket;
use crate::tunnel::Cipher;
use crate::tunnel::control::{ClientMessage, PING_INTERVAL, ServerMessage};
use crate::tunnel::handshake::Channel;
use crate::tunnel::probe::{PROBE_LEN, ProbeReply, ProbeRequest, UnverifiedProbe};
use crate::tunnel::record::{Opener, Sealer};
use crate::tunnel::session::{ClientSession, SessionId};

/// How long one path has before the next one is tried beside it (RFC 8305, section 8).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// How long a server may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long a connection that fell back to plain TCP waits for a better one.
const BETTER_LIMIT: Duration = Duration::from_secs(1);
/// How long a way out on which MPTCP became plain TCP comes after the others.
const DEMOTION: Duration = Duration::from_secs(600);
/// How long a server may take to answer a handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// After how long without an answer the control connection is given up.
const PING_LIMIT: Duration = Duration::from_secs(10);
/// The longest wait between two attempts.
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// A session the server gave, and the server address it is used with.
pub struct Session {
    session: RefCell<ClientSession>,
    next_probe: Cell<u64>,
    /// The server address in use.
    pub server: SocketAddr,
}

impl Session {
    /// A session just received from `server`.
    pub fn new(session: ClientSession, server: SocketAddr) -> Session {
        Session { session: RefCell::new(session), next_probe: Cell::new(0), server }
    }

    /// The session's number.
    pub fn id(&self) -> SessionId {
        self.session.borrow().keys().id()
    }

    /// The cipher of its streams.
    pub fn cipher(&self) -> Cipher {
        self.session.borrow().cipher()
    }

    /// A new stream: its preamble and its record layer.
    pub fn open_stream(&self) -> (Vec<u8>, Sealer, Opener) {
        let (preamble, keys) = self.session.borrow_mut().open_stream();
        let (sealer, opener) = keys.client();
        (preamble.to_vec(), sealer, opener)
    }

    /// A new probe: its number and the datagram.
    pub fn probe(&self) -> (u64, [u8; PROBE_LEN]) {
        // A number is used once in a session.
        let counter = self.next_probe.replace(self.next_probe.get().wrapping_add(1));
        (counter, ProbeRequest { counter }.encode(self.session.borrow().keys()))
    }

    /// What an authentic reply to a probe of this session says.
    pub fn probe_reply(&self, datagram: &[u8]) -> Option<ProbeReply> {
        let probe = UnverifiedProbe::parse(datagram).ok()?;
        let session = self.session.borrow();
        (probe.session() == session.keys().id()).then_some(())?;
        probe.reply(session.keys()).ok()
    }
}

/// What session, pool and proxy share: the ways out and the session in force.
#[derive(Default)]
pub struct Trunk {
    paths: RefCell<Vec<Outlet>>,
    /// Addresses from which a connection fell back to plain TCP, and when the last one did.
    fell_back: RefCell<BTreeMap<IpAddr, Instant>>,
    session: RefCell<Option<Rc<Session>>>,
    /// Told at each change of these.
    pub changed: Notify,
    /// Asks for a ping on the control connection at once.
    pub ping: Notify,
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

    /// The session in force, as soon as there is one other than `rejected`.
    pub async fn wait_for_session(&self, rejected: Option<SessionId>) -> Rc<Session> {
        loop {
            let changed = self.changed.notified();
            if let Some(session) = self.session().filter(|s| Some(s.id()) != rejected) {
                return session;
            }
            changed.await;
        }
    }

    /// Has the control connection checked at once, or tried again if there is none.
    pub fn suspect(&self) {
        self.ping.notify_one();
        self.changed.notify_waiters();
    }

    /// Puts a session in force, or none.
    pub fn set_session(&self, session: Option<Rc<Session>>) {
        *self.session.borrow_mut() = session;
        self.changed.notify_waiters();
    }

    /// Whether connections from an address lately fell back to plain TCP.
    pub fn falls_back(&self, source: IpAddr) -> bool {
        self.fell_back.borrow().get(&source).is_some_and(|at| at.elapsed() < DEMOTION)
    }

    fn note_fallback(&self, source: IpAddr) {
        let mut fell_back = self.fell_back.borrow_mut();
        fell_back.retain(|_, at| at.elapsed() < DEMOTION);
        fell_back.insert(source, Instant::now());
    }

    /// The ways out that can reach `server`, in the order they are tried: best first, those on
    /// which MPTCP became plain TCP last.
    pub fn paths_to(&self, server: IpAddr) -> Vec<Outlet> {
        let paths = self.paths.borrow();
        let fits = |path: &&Outlet| path.source.is_ipv4() == server.is_ipv4();
        let mut paths: Vec<Outlet> = paths.iter().filter(fits).cloned().collect();
        paths.sort_by_key(|path| self.falls_back(path.source));
        paths
    }

    /// Connects to `server`: over the best way out first, then over the next one beside it each
    /// 250 ms; the first to be accepted wins. One that fell back to plain TCP wins only if no other
    /// way brings MPTCP: it could not be bonded.
    ///
    /// # Errors
    /// The last way's error, or `NetworkUnreachable` where there is none.
    pub async fn dial(&self, server: SocketAddr) -> io::Result<TcpStream> {
        let mut paths = self.paths_to(server.ip());
        if paths.is_empty() {
            let text = "no uplink is up that could reach the server";
            return Err(io::Error::new(io::ErrorKind::NetworkUnreachable, text));
        }
        let mut plain = None;
        loop {
            let limit = if plain.is_some() { BETTER_LIMIT } else { CONNECT_LIMIT };
            let dialed = timeout(limit, race(server, paths.clone()))
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            let (source, tcp) = match (dialed, plain) {
                (Ok(dialed), _) => dialed,
                (Err(_), Some(tcp)) => return Ok(tcp),
                (Err(error), None) => return Err(error),
            };
            if socket::is_mptcp(&tcp).unwrap_or(true) {
                return Ok(tcp);
            }
            self.note_fallback(source);
            paths.retain(|path| !self.falls_back(path.source));
            if paths.is_empty() {
                return Ok(tcp);
            }
            plain = Some(tcp);
        }
    }
}

/// The connection that was accepted first, and the address it comes from.
async fn race(server: SocketAddr, paths: Vec<Outlet>) -> io::Result<(IpAddr, TcpStream)> {
    let mut attempts = FuturesUnordered::new();
    let mut last = io::Error::from(io::ErrorKind::NetworkUnreachable);
    for path in paths {
        attempts.push(Box::pin(async move {
            let source = path.source;
            let tcp = socket::mptcp_connect(server, Some(source), Some(&path.device)).await?;
            Ok((source, tcp))
        }) as Pin<Box<dyn Future<Output = io::Result<(IpAddr, TcpStream)>>>>);
        match timeout(ATTEMPT_DELAY, attempts.next()).await {
            Ok(Some(Ok(dialed))) => return Ok(dialed),
            Ok(Some(Err(error))) => last = error,
            Ok(None) | Err(_) => {}
        }
    }
    while let Some(result) = attempts.next().await {
        match result {
            Ok(dialed) => return Ok(dialed),
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
}

impl Keeper {
    /// Connects, serves, and connects again with backoff.
    pub async fn run(self) {
        let mut backoff = Duration::ZERO;
        loop {
            let reason = match self.connect().await {
                Ok(connection) => {
                    let since = Instant::now();
                    let reason = self.serve(connection).await;
                    // A server that takes a connection only to end it is not asked without end.
                    if since.elapsed() > LONGEST_BACKOFF {
                        backoff = Duration::ZERO;
                    }
                    reason
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
        let hello = hello(self.config.cipher, None);
        let shaken = timeout(
            HANDSHAKE_LIMIT,
            shake_hands(&mut tcp, &self.key, &self.config.public_key, &hello),
        );
        let channel = shaken
            .await
            .map_err(|_| "no answer to the handshake".to_owned())?
            .map_err(|error| error.to_string())?;
        Ok(Connection { tcp, channel, server })
    }

    /// Serves a control connection until it ends; returns why it did.
    async fn serve(&self, connection: Connection) -> String {
        let Connection { tcp, mut channel, server } = connection;
        let mptcp = socket::is_mptcp(&tcp).unwrap_or(false);
        let (reading, mut writing) = tcp.into_split();
        let mut incoming = Incoming::new(reading);
        let mut pings = Pings::default();
        loop {
            let now = Instant::now();
            if pings.overdue(now) {
                return format!("no answer for {} s", PING_LIMIT.as_secs());
            }
            let arrived = tokio::select! {
                message = incoming.next() => Some(message),
                () = self.trunk.ping.notified() => {
                    pings.due = Some(Instant::now());
                    None
                }
                () = sleep_until(pings.next(now).into()) => None,
            };
            if let Some(sealed) = arrived {
                match sealed.and_then(|sealed| open(&mut channel, &sealed)) {
                    Ok(Some(message)) => {
                        if let Err(reason) = self.take(message, server, mptcp, &mut pings) {
                            return reason;
                        }
                    }
                    Ok(None) => {}
                    Err(error) => return format!("the control connection ended: {error}"),
                }
            }
            if let Some(number) = pings.ping(Instant::now()) {
                let sent = match channel.seal(&ClientMessage::Ping { nonce: number }.encode()) {
                    Ok(sealed) => writing.write_all(&sealed).await,
                    Err(error) => Err(invalid(error)),
                };
                if let Err(error) = sent {
                    return format!("the control connection broke: {error}");
                }
            }
        }
    }

    fn take(
        &self,
        message: ServerMessage,
        server: SocketAddr,
        mptcp: bool,
        pings: &mut Pings,
    ) -> Result<(), String> {
        match message {
            ServerMessage::Session { id, secret, cipher, lifetime: _ } => {
                let session = ClientSession::new(id, &secret, cipher);
                let session = Rc::new(Session::new(session, server));
                self.trunk.set_session(Some(session.clone()));
                self.tell(Event::Up { session, mptcp });
            }
            ServerMessage::Pong { nonce } => {
                if let Some(rtt) = pings.pong(nonce, Instant::now()) {
                    self.tell(Event::Heard { rtt });
                }
            }
            ServerMessage::Close { reason } => return Err(format!("the server said: {reason}")),
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
