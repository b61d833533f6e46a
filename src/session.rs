//! The agent's way to its server: the control connection, and the session it yields.

mod handshake;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use litemap::LiteMap;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep_until, timeout};

pub use handshake::{Incoming, hello, introduce, invalid, open, read_sealed, shake_hands};

use crate::config::agent::ServerConfig;
use crate::config::keys::{PrivateKey, PublicKey};
use crate::controller::Outlet;
use crate::os::socket;
use crate::tunnel::Cipher;
use crate::tunnel::control::{ClientMessage, HostState, PING_INTERVAL, ServerMessage};
use crate::tunnel::datagram::{Datagram, Opened};
use crate::tunnel::forward::{Incoming as Arrival, Port, Verdict};
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

    /// A datagram, sealed; `None` when it is too long.
    pub fn seal_datagram(&self, datagram: &Datagram) -> Option<Vec<u8>> {
        self.session.borrow_mut().datagrams()?.seal(datagram).ok()
    }

    /// What an authentic datagram of this session holds.
    pub fn open_datagram<'a>(&self, bytes: &'a mut [u8]) -> Option<Opened<'a>> {
        self.session.borrow_mut().datagrams()?.open(bytes).ok()
    }
}

/// What session, pool and proxy share: the ways out and the session in force.
#[derive(Default)]
pub struct Trunk {
    paths: RefCell<Vec<Outlet>>,
    /// Addresses from which a connection fell back to plain TCP, and when the last one did.
    fell_back: RefCell<LiteMap<IpAddr, Instant>>,
    session: RefCell<Option<Rc<Session>>>,
    /// Told at each change of these.
    pub changed: Notify,
    /// Told when a stream breaks before the server has answered.
    pub suspected: Notify,
}

impl Trunk {
    /// Sets the ways out, best first.
    pub fn set_paths(&self, paths: Vec<Outlet>) {
        if *self.paths.borrow() != paths {
            *self.paths.borrow_mut() = paths;
            self.changed.notify_waiters();
        }
    }

    /// The ways out, best first.
    pub fn paths(&self) -> Vec<Outlet> {
        self.paths.borrow().clone()
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
        self.suspected.notify_one();
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

    /// Connects to a server; see [`Trunk::dial_any`].
    ///
    /// # Errors
    /// Those of [`Trunk::dial_any`].
    pub async fn dial(&self, server: SocketAddr) -> io::Result<TcpStream> {
        self.dial_any(&[server]).await.map(|(_, tcp)| tcp)
    }

    /// Connects to a server at one of its addresses: over the best way out first, at each address in
    /// turn, then over the next way, an attempt beside the others each 250 ms; the first to be
    /// accepted wins. One that fell back to plain TCP wins only if no other way brings MPTCP: it could
    /// not be bonded.
    ///
    /// # Errors
    /// The last attempt's error, or `NetworkUnreachable` where there is no way.
    pub async fn dial_any(&self, servers: &[SocketAddr]) -> io::Result<(SocketAddr, TcpStream)> {
        let mut attempts = self.attempts(servers);
        if attempts.is_empty() {
            let text = "no uplink is up that could reach the server";
            return Err(io::Error::new(io::ErrorKind::NetworkUnreachable, text));
        }
        let mut plain = None;
        loop {
            let limit = if plain.is_some() { BETTER_LIMIT } else { CONNECT_LIMIT };
            let dialed = timeout(limit, race(attempts.clone()))
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            let (attempt, tcp) = match (dialed, plain) {
                (Ok(dialed), _) => dialed,
                (Err(_), Some(plain)) => return Ok(plain),
                (Err(error), None) => return Err(error),
            };
            let Attempt { server, path } = attempt;
            if socket::is_mptcp(&tcp).unwrap_or(true) {
                return Ok((server, tcp));
            }
            self.note_fallback(path.source);
            attempts.retain(|attempt| !self.falls_back(attempt.path.source));
            if attempts.is_empty() {
                return Ok((server, tcp));
            }
            plain = Some((server, tcp));
        }
    }

    /// The slot of the uplink that a connection to `server` begins on, if all goes well.
    pub fn first_path(&self, server: SocketAddr) -> Option<u8> {
        self.attempts(&[server]).first().map(|attempt| attempt.path.slot)
    }

    /// Each address over each way of its family, in the order to try them.
    fn attempts(&self, servers: &[SocketAddr]) -> Vec<Attempt> {
        let paths = self.paths.borrow();
        let mut attempts = Vec::new();
        for uplink in paths.chunk_by(|a, b| a.slot == b.slot) {
            for &server in servers {
                let reaches = |path: &&Outlet| path.source.is_ipv4() == server.is_ipv4();
                let ways = uplink.iter().filter(reaches).cloned();
                attempts.extend(ways.map(|path| Attempt { server, path }));
            }
        }
        attempts.sort_by_key(|attempt| self.falls_back(attempt.path.source));
        attempts
    }
}

/// An address and a way to it.
#[derive(Clone)]
struct Attempt {
    server: SocketAddr,
    path: Outlet,
}

type Dialed = io::Result<(Attempt, TcpStream)>;

/// The attempt that was accepted first.
async fn race(all: Vec<Attempt>) -> Dialed {
    let mut running = FuturesUnordered::new();
    let mut last = io::Error::from(io::ErrorKind::NetworkUnreachable);
    for attempt in all {
        running.push(Box::pin(async move {
            let Attempt { server, path } = &attempt;
            let tcp = socket::mptcp_connect(*server, Some(path.source), Some(&path.device)).await?;
            Ok((attempt, tcp))
        }) as Pin<Box<dyn Future<Output = Dialed>>>);
        match timeout(ATTEMPT_DELAY, running.next()).await {
            Ok(Some(Ok(dialed))) => return Ok(dialed),
            Ok(Some(Err(error))) => last = error,
            Ok(None) | Err(_) => {}
        }
    }
    while let Some(result) = running.next().await {
        match result {
            Ok(dialed) => return Ok(dialed),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What became of the session.
pub enum Event {
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
        /// What it said of its host.
        host: Option<HostState>,
    },
    /// The server has a new key.
    NewServerKey {
        /// It.
        key: PublicKey,
    },
    /// What the server says of the ports asked for.
    Forwards(Vec<(Port, Verdict)>),
    /// A connection to one of them waits.
    Incoming(Arrival),
    /// There is no control connection, or no longer: the last event.
    Down {
        /// Why, in words.
        reason: String,
    },
}

/// What to tell a server of forwarded ports.
#[derive(Default)]
pub struct Wishes {
    ports: RefCell<Vec<Port>>,
    declined: RefCell<Vec<u64>>,
    changed: Notify,
}

impl Wishes {
    /// Asks for these ports, and no others.
    pub fn set(&self, ports: &[Port]) {
        if *self.ports.borrow() != ports {
            *self.ports.borrow_mut() = ports.to_vec();
            self.changed.notify_waiters();
        }
    }

    /// Has a connection reset that waits at the server.
    pub fn decline(&self, id: u64) {
        self.declined.borrow_mut().push(id);
        self.changed.notify_waiters();
    }

    /// What the server is to be told next, which knows these ports.
    pub(crate) fn news(&self, told: &mut Vec<Port>) -> Option<ClientMessage> {
        let ports = self.ports.borrow();
        if *ports != *told {
            told.clone_from(&ports);
            return Some(ClientMessage::Forwards(ports.clone()));
        }
        self.declined.borrow_mut().pop().map(|id| ClientMessage::Decline { id })
    }
}

/// Makes a control connection to one server, and keeps it until it ends.
pub struct Keeper {
    /// The server.
    pub config: ServerConfig,
    /// The router's key.
    pub key: PrivateKey,
    /// What is shared with pool and proxy.
    pub trunk: Rc<Trunk>,
    /// Asks for a ping at once.
    pub ping: Rc<Notify>,
    /// What to tell of forwarded ports.
    pub wishes: Rc<Wishes>,
    /// The number its events come with.
    pub id: u64,
    /// Where they go.
    pub events: mpsc::UnboundedSender<(u64, Event)>,
}

impl Keeper {
    /// Connects to one of these addresses of the server, best first, and serves the connection.
    pub async fn run(self, addresses: Vec<IpAddr>) {
        let port = self.config.port;
        let servers = addresses.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
        let reason = match self.connect(servers).await {
            Ok(connection) => self.serve(connection).await,
            Err(reason) => reason,
        };
        self.tell(Event::Down { reason });
    }

    fn tell(&self, event: Event) {
        // The receiver outlives the keeper; a failure means that the agent is stopping.
        let _ = self.events.send((self.id, event));
    }

    /// Connects to the first address that accepts and is the server: something else may listen at
    /// an address that was given to another host.
    async fn connect(&self, mut servers: Vec<SocketAddr>) -> Result<Connection, String> {
        loop {
            let (server, tcp) = self.trunk.dial_any(&servers).await.map_err(|error| {
                let addresses: Vec<String> = servers.iter().map(ToString::to_string).collect();
                format!("{}: {error}", addresses.join(", "))
            })?;
            servers.retain(|other| *other != server);
            match self.shake_hands(tcp, server).await {
                Err(error) if servers.is_empty() => return Err(format!("{server}: {error}")),
                Err(error) => log::debug!("{server}: {error}: trying the next address"),
                connected => return connected,
            }
        }
    }

    async fn shake_hands(
        &self,
        mut tcp: TcpStream,
        server: SocketAddr,
    ) -> Result<Connection, String> {
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
        let mut asked = Vec::new();
        loop {
            let now = Instant::now();
            if pings.overdue(now) {
                return format!("no answer for {} s", PING_LIMIT.as_secs());
            }
            let wish = self.wishes.changed.notified();
            while let Some(message) = self.wishes.news(&mut asked) {
                if let Err(error) = say(&mut channel, &mut writing, &message).await {
                    return error;
                }
            }
            let arrived = tokio::select! {
                message = incoming.next() => Some(message),
                () = self.ping.notified() => {
                    pings.due = Some(Instant::now());
                    None
                }
                () = wish => None,
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
                let message = ClientMessage::Ping { nonce: number };
                if let Err(error) = say(&mut channel, &mut writing, &message).await {
                    return error;
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
                self.tell(Event::Up { session, mptcp });
            }
            ServerMessage::Pong { nonce, host } => {
                if let Some(rtt) = pings.pong(nonce, Instant::now()) {
                    self.tell(Event::Heard { rtt, host });
                }
            }
            ServerMessage::NewServerKey { key } => self.tell(Event::NewServerKey { key }),
            ServerMessage::KeyAccepted => {}
            ServerMessage::Forwards(verdicts) => self.tell(Event::Forwards(verdicts)),
            ServerMessage::Incoming(incoming) => self.tell(Event::Incoming(incoming)),
            ServerMessage::Close { reason } => return Err(format!("the server said: {reason}")),
        }
        Ok(())
    }
}

/// Sends a message; the error is a sentence.
async fn say(
    channel: &mut Channel,
    writing: &mut OwnedWriteHalf,
    message: &ClientMessage,
) -> Result<(), String> {
    let sent = match channel.seal(&message.encode()) {
        Ok(sealed) => writing.write_all(&sealed).await,
        Err(error) => Err(invalid(error)),
    };
    sent.map_err(|error| format!("the control connection broke: {error}"))
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
