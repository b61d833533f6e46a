//! The agent's half of a connection: from the LAN client, whose TCP was diverted, into the tunnel.

mod forwarded;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use litemap::LiteMap;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use crate::config::agent::OnServerLoss;
use crate::os::runtime;
use crate::os::socket::{self, Acceptor, Subflow};
use crate::pool::{NoStream, Pool, Stream};
use crate::relay::{self, Counters, Ended, Records, Relay, State, Unsent, Workers, message};
use crate::tunnel::Cipher;
use crate::tunnel::convert::{Failure, Message};
use crate::tunnel::forward::Incoming;
use crate::tunnel::record::{Kind, Opener, Sealer};

/// What a client says before the server has answered is sent on, and kept for another stream, up to
/// this many bytes.
const EARLY: usize = 32 * 1024;
/// How long the request waits for the client's first bytes, to be one with them: most clients speak first,
/// and what follows the request on its heels would go over another uplink than the nearest.
const PATIENCE: Duration = Duration::from_millis(10);
/// How many streams a connection is tried on.
const ATTEMPTS: u32 = 5;
/// How long the server may take to answer: longer than the kernel tries to connect to a target.
const ANSWER_LIMIT: Duration = Duration::from_secs(180);

/// One connection: of a LAN client, or to a forwarded port.
pub struct Connection {
    /// The client.
    pub client: SocketAddr,
    /// What it connected to.
    pub target: SocketAddr,
    /// Of one to a forwarded port, what the server said of it.
    pub forwarded: Option<Incoming>,
    /// When.
    pub since: Instant,
    /// Bytes moved.
    pub counters: Arc<Counters>,
    /// How many looks in a row found it without any subflow while it could have had one.
    pub stranded: Cell<u8>,
    tunnel: RefCell<Option<Arc<TcpStream>>>,
}

impl Connection {
    /// Of a client whose connection was diverted.
    pub(crate) fn diverted(client: SocketAddr, lan: &TcpStream) -> io::Result<Rc<Connection>> {
        // TPROXY leaves the original destination as the socket's own address.
        Ok(Connection::new(client, lan.local_addr()?, None))
    }

    fn new(client: SocketAddr, target: SocketAddr, forwarded: Option<Incoming>) -> Rc<Connection> {
        let (since, counters, tunnel) = (Instant::now(), Arc::default(), RefCell::new(None));
        let stranded = Cell::default();
        Rc::new(Connection { client, target, forwarded, since, counters, stranded, tunnel })
    }

    /// Its connection to the server, once there is one.
    pub fn tunnel(&self) -> Option<Arc<TcpStream>> {
        self.tunnel.borrow().clone()
    }
}

/// How connections fared since the start.
#[derive(Debug, Default)]
pub struct Tally {
    /// Accepted from the LAN.
    pub opened: Cell<u64>,
    /// Relayed untunnelled because no stream to the server could be had.
    pub direct: Cell<u64>,
    /// Put on another stream because the first one broke before the server answered.
    pub retried: Cell<u64>,
    /// Those that failed, by cause; a reset by client or target is how some connections end.
    pub failed: RefCell<LiteMap<&'static str, u64>>,
}

impl Tally {
    fn fail(&self, cause: &'static str) {
        let mut failed = self.failed.borrow_mut();
        let count = failed.entry(cause).or_default();
        *count = count.saturating_add(1);
    }
}

fn count(cell: &Cell<u64>) {
    cell.set(cell.get().saturating_add(1));
}

/// Takes diverted connections and relays them.
pub struct Proxy {
    pool: Rc<Pool>,
    workers: Workers,
    on_server_loss: Cell<OnServerLoss>,
    server_answers: watch::Sender<bool>,
    connections: RefCell<BTreeMap<u64, Rc<Connection>>>,
    next: Cell<u64>,
    /// Connections to forwarded ports on their way to their target.
    reaching: Cell<u32>,
    /// How connections fared.
    pub tally: Tally,
}

/// Why a connection failed.
enum Trouble {
    /// The client went away before there was an answer.
    Client(io::Error),
    NoStream(NoStream),
    /// The server said no, or an untunnelled connection was refused.
    Refused(Failure),
    /// The stream to the server broke before there was an answer.
    Tunnel(io::Error),
    Relay(relay::Failure),
}

impl Trouble {
    /// What it is counted as; `None` for the ways in which connections end anyway.
    fn cause(&self) -> Option<&'static str> {
        match self {
            Trouble::Client(_) => None,
            Trouble::NoStream(_) => Some("no tunnel"),
            Trouble::Refused(failure) => Some(failure.word()),
            Trouble::Tunnel(_) => Some("tunnel broke"),
            Trouble::Relay(failure) => failure.cause(),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Client(error) => write!(f, "the client went away: {error}"),
            Trouble::NoStream(error) => error.fmt(f),
            Trouble::Refused(failure) => failure.fmt(f),
            Trouble::Tunnel(error) => write!(f, "the tunnel broke: {error}"),
            Trouble::Relay(failure) => failure.fmt(f),
        }
    }
}

/// A stream on which the server has answered that the target is connected.
struct Opened {
    tunnel: Arc<TcpStream>,
    cipher: Cipher,
    sealer: Sealer,
    opener: Opener,
    /// What was read along with the answer.
    carried: Vec<u8>,
}

impl Proxy {
    /// A proxy that takes its streams from `pool` and relays on `workers`.
    pub fn new(pool: Rc<Pool>, workers: Workers, on_server_loss: OnServerLoss) -> Rc<Proxy> {
        Rc::new(Proxy {
            pool,
            workers,
            on_server_loss: Cell::new(on_server_loss),
            server_answers: watch::Sender::new(true),
            connections: RefCell::default(),
            next: Cell::new(0),
            reaching: Cell::new(0),
            tally: Tally::default(),
        })
    }

    /// Changes what becomes of connections that no stream can be had for.
    pub fn set_on_server_loss(&self, on_server_loss: OnServerLoss) {
        self.on_server_loss.set(on_server_loss);
    }

    /// Takes note of whether the server answers: while it does not, no connection waits for it.
    pub fn set_server_answers(&self, answers: bool) {
        self.server_answers.send_replace(answers);
    }

    async fn server_lost(&self) {
        // The sender lives as long as this.
        let _ = self.server_answers.subscribe().wait_for(|answers| !answers).await;
    }

    /// The connections open now, oldest first.
    pub fn connections(&self) -> Vec<Rc<Connection>> {
        self.connections.borrow().values().cloned().collect()
    }

    /// Resets what goes through the tunnel, while the server can still be told.
    pub fn abort(&self) {
        let connections = self.connections.borrow();
        connections.values().filter_map(|it| it.tunnel()).for_each(socket::abort);
    }

    /// The subflows of the newest connections, `limit` at most.
    pub fn subflows(&self, limit: usize) -> Vec<Subflow> {
        let connections = self.connections.borrow();
        let tunnels = connections.values().rev().filter_map(|connection| connection.tunnel());
        let of = |tunnel: Arc<TcpStream>| socket::subflows(&*tunnel).unwrap_or_default();
        tunnels.take(limit).flat_map(of).collect()
    }

    /// Samples the connections' rates; to be called about once a second.
    pub fn measure(&self, now: Instant) {
        for connection in self.connections.borrow().values() {
            connection.counters.measure(now);
        }
    }

    /// Accepts for ever.
    pub async fn run(self: Rc<Self>, listener: TcpListener) {
        let mut acceptor = Acceptor::new(listener);
        loop {
            let (lan, client) = acceptor.next().await;
            if let Ok(connection) = Connection::diverted(client, &lan) {
                runtime::spawn(self.clone().serve(lan, connection));
            }
        }
    }

    /// Relays one connection to its end.
    pub(crate) async fn serve(self: Rc<Self>, lan: TcpStream, connection: Rc<Connection>) {
        count(&self.tally.opened);
        let id = self.next.get();
        self.next.set(id.wrapping_add(1));
        self.connections.borrow_mut().insert(id, connection.clone());
        if let Err(trouble) = self.relay(lan, &connection).await {
            if let Some(cause) = trouble.cause() {
                self.tally.fail(cause);
            }
            let altered = matches!(&trouble, Trouble::Relay(failure) if failure.is_altered());
            let level = if altered { log::Level::Warn } else { log::Level::Debug };
            log::log!(level, "{} to {}: {trouble}", connection.client, connection.target);
        }
        self.connections.borrow_mut().remove(&id);
    }

    /// Relays to the end; where that fails, `lan` has been reset.
    async fn relay(&self, lan: TcpStream, connection: &Connection) -> Result<(), Trouble> {
        let mut early = Vec::new();
        // In a frame of its own, which is given back before there is one for the relay.
        let open = Box::pin(self.open(&lan, connection, &mut early));
        let opened = tokio::select! {
            opened = open => opened,
            error = socket::broken(&lan) => Err(Trouble::Client(error)),
            () = self.server_lost() => Err(Trouble::NoStream(NoStream::ServerLost)),
        };
        let trouble = match opened {
            Ok(opened) => {
                drop(early);
                return self.relay_tunnelled(lan, connection, opened).await;
            }
            Err(trouble) => trouble,
        };
        // Otherwise the kernel would bring the request to a server that comes back.
        if let Some(tunnel) = connection.tunnel.take() {
            socket::abort(&*tunnel);
        }
        match trouble {
            Trouble::NoStream(error)
                if self.on_server_loss.get() == OnServerLoss::Direct
                    && connection.forwarded.is_none() =>
            {
                log::debug!("{}: {error}: untunnelled", connection.target);
                self.relay_direct(lan, connection, &early).await
            }
            trouble => {
                socket::abort(&lan);
                Err(trouble)
            }
        }
    }

    /// Has the server connect to the target. A stream that breaks before the server has answered,
    /// as those do which a server that was started anew does not know, gives way to another one.
    async fn open(
        &self,
        lan: &TcpStream,
        connection: &Connection,
        early: &mut Vec<u8>,
    ) -> Result<Opened, Trouble> {
        let mut rejected = None;
        let mut attempt = 1;
        loop {
            let stream = self.pool.take(rejected).await.map_err(Trouble::NoStream)?;
            let (session, warm) = (stream.session, stream.preamble.is_empty());
            let error = match ask(lan, connection, stream, early).await {
                Err(Trouble::Tunnel(error)) => error,
                result => {
                    connection.counters.add_to_tunnel(early.len());
                    return result;
                }
            };
            self.pool.suspect();
            if attempt == ATTEMPTS || error.kind() == io::ErrorKind::InvalidData {
                return Err(Trouble::Tunnel(error));
            }
            log::debug!("{}: a stream broke: {error}: trying another one", connection.target);
            count(&self.tally.retried);
            attempt += 1;
            if !warm {
                rejected = Some(session);
            }
        }
    }

    /// Without a tunnel the agent itself connects to the target, and sends it what the client had
    /// said by then.
    async fn relay_direct(
        &self,
        lan: TcpStream,
        connection: &Connection,
        early: &[u8],
    ) -> Result<(), Trouble> {
        count(&self.tally.direct);
        let connect = async {
            let target = socket::tcp_connect(connection.target, None).await?;
            message::send(&target, early).await?;
            Ok(target)
        };
        let connected = tokio::select! {
            connected = connect => {
                connected.map_err(|error| Trouble::Refused(Failure::from_io(&error)))
            }
            error = socket::broken(&lan) => Err(Trouble::Client(error)),
        };
        let target = connected.inspect_err(|_| socket::abort(&lan))?;
        connection.counters.add_to_tunnel(early.len());
        let state = State::Plain(Unsent::default());
        self.relay_between(lan, Arc::new(target), connection, state, drop).await
    }

    /// Relays between the client and a stream on which the server has answered.
    async fn relay_tunnelled(
        &self,
        lan: TcpStream,
        connection: &Connection,
        opened: Opened,
    ) -> Result<(), Trouble> {
        let Opened { tunnel, cipher, sealer, opener, carried } = opened;
        let state = match cipher {
            Cipher::None => State::Plain(Unsent { to_lan: carried, ..Unsent::default() }),
            _ => State::Sealed(Box::new(Records::new(sealer, opener, carried))),
        };
        // Who else looks at it keeps it for no longer than that.
        let show = |tunnel| *connection.tunnel.borrow_mut() = tunnel;
        self.relay_between(lan, tunnel, connection, state, show).await
    }

    async fn relay_between(
        &self,
        lan: TcpStream,
        tunnel: Arc<TcpStream>,
        connection: &Connection,
        state: State,
        show: impl Fn(Option<Arc<TcpStream>>),
    ) -> Result<(), Trouble> {
        let (uninterrupted, interruption) = oneshot::channel();
        let relay = Relay { lan, tunnel, state, counters: connection.counters.clone() };
        let ended = self.workers.relay(relay, interruption, show).await;
        drop(uninterrupted);
        match ended {
            Ended::Done(relayed) => relayed.map_err(Trouble::Relay),
            Ended::Interrupted(_) => Ok(()),
        }
    }
}

/// Sends the request and what the client has said so far, and waits for the server's answer; what
/// the client says meanwhile follows, up to a limit, and is kept in `early`.
async fn ask(
    lan: &TcpStream,
    connection: &Connection,
    stream: Stream,
    early: &mut Vec<u8>,
) -> Result<Opened, Trouble> {
    let Stream { tcp, cipher, mut sealer, mut opener, preamble, session: _, opening } = stream;
    let tunnel = Arc::new(tcp);
    *connection.tunnel.borrow_mut() = Some(tunnel.clone());
    let (request, patience) = match &connection.forwarded {
        None => (Message::connect(connection.target), PATIENCE),
        // The one who speaks first is at the other end, more often than not.
        Some(incoming) => (Message::accept(incoming.id), Duration::ZERO),
    };
    let request = request.encode();
    let request = request.map_err(|error| Trouble::Tunnel(io::Error::other(error)))?;
    let mut first = preamble;
    first.extend(seal(&mut sealer, Kind::Request, &request)?);
    let mut listening = read_early(lan, early)?;
    let said = async {
        while listening && early.is_empty() {
            // An end shows again when the relay reads.
            let _ = lan.readable().await;
            listening = read_early(lan, early)?;
        }
        Ok(())
    };
    timeout(patience, said).await.unwrap_or(Ok(()))?;
    first.extend(seal_data(&mut sealer, cipher, early)?);
    message::send(&tunnel, &first).await.map_err(Trouble::Tunnel)?;
    drop(opening);
    let carried = {
        let mut answer = pin!(timeout(ANSWER_LIMIT, read_answer(&tunnel, &mut opener)));
        loop {
            let sent = early.len();
            tokio::select! {
                answered = &mut answer => {
                    break answered
                        .unwrap_or_else(|_| Err(Trouble::Tunnel(io::ErrorKind::TimedOut.into())))?;
                }
                // An end shows again when the relay reads.
                _ = lan.readable(), if listening => listening = read_early(lan, early)?,
            }
            let more = seal_data(&mut sealer, cipher, early.get(sent..).unwrap_or_default())?;
            message::send(&tunnel, &more).await.map_err(Trouble::Tunnel)?;
        }
    };
    Ok(Opened { tunnel, cipher, sealer, opener, carried })
}

/// Reads what the client has said already; whether more may be read. An error is told: reading takes
/// it from the socket, and nobody would see it again.
fn read_early(lan: &TcpStream, early: &mut Vec<u8>) -> Result<bool, Trouble> {
    let mut buffer = [0; 4096];
    while let Some(room) = EARLY.checked_sub(early.len()).filter(|room| *room > 0) {
        let room = room.min(buffer.len());
        match lan.try_read(buffer.get_mut(..room).unwrap_or_default()) {
            Ok(0) => return Ok(false),
            Ok(length) => early.extend(buffer.iter().take(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(Trouble::Client(error)),
        }
    }
    Ok(false)
}

fn seal(sealer: &mut Sealer, kind: Kind, plaintext: &[u8]) -> Result<Vec<u8>, Trouble> {
    sealer.seal_new(kind, plaintext).map_err(|error| Trouble::Tunnel(message::invalid(error)))
}

/// Payload as it goes into the tunnel.
fn seal_data(sealer: &mut Sealer, cipher: Cipher, payload: &[u8]) -> Result<Vec<u8>, Trouble> {
    match cipher {
        Cipher::None => Ok(payload.to_vec()),
        _ if payload.is_empty() => Ok(Vec::new()),
        _ => seal(sealer, Kind::Data, payload),
    }
}

/// Waits for the server's answer; gives what was read along with it.
async fn read_answer(tunnel: &TcpStream, opener: &mut Opener) -> Result<Vec<u8>, Trouble> {
    let mut carried = Vec::new();
    let received = message::receive(tunnel, opener, &mut carried).await;
    let (_, answer) = received
        .and_then(|received| received.ok_or_else(|| io::ErrorKind::UnexpectedEof.into()))
        .map_err(Trouble::Tunnel)?;
    let invalid = |error| Trouble::Tunnel(io::Error::new(io::ErrorKind::InvalidData, error));
    let outcome = Message::decode(&answer).map_err(invalid)?.outcome();
    outcome.map(|()| carried).map_err(Trouble::Refused)
}
