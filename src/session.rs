//! The agent's way to its server: the control connection, and the session it yields.

mod handshake;
#[cfg(test)]
mod tests;
mod trunk;

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep_until, timeout};

pub use handshake::{Incoming, hello, introduce, invalid, open, read_sealed, shake_hands};
pub use trunk::Trunk;

use crate::config::agent::ServerConfig;
use crate::config::keys::{PrivateKey, PublicKey};
use crate::os::socket;
use crate::tunnel::Cipher;
use crate::tunnel::control::{ClientMessage, HostState, PING_INTERVAL, ServerMessage};
use crate::tunnel::datagram::{Datagram, Opened};
use crate::tunnel::forward::{Incoming as Arrival, Port, Verdict};
use crate::tunnel::handshake::Channel;
use crate::tunnel::probe::{PROBE_LEN, ProbeReply, ProbeRequest, UnverifiedProbe};
use crate::tunnel::record::{Opener, Sealer};
use crate::tunnel::session::{ClientSession, SessionId};

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
    /// Whether it carries datagrams.
    pub datagrams: bool,
}

impl Session {
    /// A session just received from `server`.
    pub fn new(session: ClientSession, server: SocketAddr, datagrams: bool) -> Session {
        Session { session: RefCell::new(session), next_probe: Cell::new(0), server, datagrams }
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
            ServerMessage::Session { id, secret, cipher, lifetime: _, datagrams } => {
                let session = ClientSession::new(id, &secret, cipher);
                let session = Rc::new(Session::new(session, server, datagrams));
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
