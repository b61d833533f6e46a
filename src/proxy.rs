//! The agent's half of a connection: from the LAN client, whose TCP was diverted, into the tunnel.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use crate::config::agent::OnServerLoss;
use crate::os::socket;
use crate::pool::{NoStream, Pool, Stream};
use crate::relay::{self, Counters, IdleLimits, message};
use crate::tunnel::Cipher;
use crate::tunnel::convert::{Failure, Message};
use crate::tunnel::record::{Kind, Opener, Sealer};

/// What a client sent at once travels with the request, up to this many bytes.
const EARLY: usize = 8 * 1024;
/// Wait after the kernel could not give a connection (out of file descriptors, say).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// One connection of a LAN client.
pub struct Connection {
    /// The client.
    pub client: SocketAddr,
    /// What it connected to.
    pub target: SocketAddr,
    /// When.
    pub since: Instant,
    /// Bytes moved.
    pub counters: Counters,
    tunnel: RefCell<Option<Rc<TcpStream>>>,
}

impl Connection {
    /// Its connection to the server, once there is one.
    pub fn tunnel(&self) -> Option<Rc<TcpStream>> {
        self.tunnel.borrow().clone()
    }
}

/// How connections fared since the start.
#[derive(Debug, Default)]
pub struct Tally {
    /// Accepted from the LAN.
    pub opened: Cell<u64>,
    /// Answered by the server with an error: the target refused, was unreachable or is not allowed.
    pub refused: Cell<u64>,
    /// Without a way to the server, or broken off.
    pub failed: Cell<u64>,
    /// Relayed untunnelled because no stream to the server could be had.
    pub direct: Cell<u64>,
}

fn count(cell: &Cell<u64>) {
    cell.set(cell.get().saturating_add(1));
}

/// Takes diverted connections and relays them.
pub struct Proxy {
    pool: Rc<Pool>,
    on_server_loss: Cell<OnServerLoss>,
    connections: RefCell<BTreeMap<u64, Rc<Connection>>>,
    next: Cell<u64>,
    /// How connections fared.
    pub tally: Tally,
}

/// Why a connection ended badly.
enum Trouble {
    NoStream(NoStream),
    Tunnel(io::Error),
    Relay(relay::Failure),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::NoStream(error) => error.fmt(f),
            Trouble::Tunnel(error) => write!(f, "the tunnel broke: {error}"),
            Trouble::Relay(failure) => failure.fmt(f),
        }
    }
}

impl Proxy {
    /// A proxy that takes its streams from `pool`.
    pub fn new(pool: Rc<Pool>, on_server_loss: OnServerLoss) -> Rc<Proxy> {
        Rc::new(Proxy {
            pool,
            on_server_loss: Cell::new(on_server_loss),
            connections: RefCell::default(),
            next: Cell::new(0),
            tally: Tally::default(),
        })
    }

    /// Changes what becomes of connections that no stream can be had for.
    pub fn set_on_server_loss(&self, on_server_loss: OnServerLoss) {
        self.on_server_loss.set(on_server_loss);
    }

    /// The connections open now, oldest first.
    pub fn connections(&self) -> Vec<Rc<Connection>> {
        self.connections.borrow().values().cloned().collect()
    }

    /// Accepts for ever.
    pub async fn run(self: Rc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((lan, client)) => {
                    tokio::task::spawn_local(self.clone().serve(lan, client));
                }
                Err(error) => {
                    log::debug!("cannot accept a LAN connection: {error}");
                    sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    async fn serve(self: Rc<Self>, lan: TcpStream, client: SocketAddr) {
        // TPROXY leaves the original destination as the socket's own address.
        let Ok(target) = lan.local_addr() else { return };
        count(&self.tally.opened);
        let id = self.next.get();
        self.next.set(id.wrapping_add(1));
        let connection = Rc::new(Connection {
            client,
            target,
            since: Instant::now(),
            counters: Counters::default(),
            tunnel: RefCell::new(None),
        });
        self.connections.borrow_mut().insert(id, connection.clone());
        if let Err(trouble) = self.relay(lan, &connection).await {
            count(&self.tally.failed);
            log::debug!("{client} to {target}: {trouble}");
        }
        self.connections.borrow_mut().remove(&id);
    }

    async fn relay(&self, lan: TcpStream, connection: &Connection) -> Result<(), Trouble> {
        let stream = match self.pool.take().await {
            Ok(stream) => stream,
            Err(error) if self.on_server_loss.get() == OnServerLoss::Direct => {
                log::debug!("{}: {error}: untunnelled", connection.target);
                return self.relay_direct(&lan, connection).await;
            }
            Err(error) => {
                socket::abort(&lan);
                return Err(Trouble::NoStream(error));
            }
        };
        let Stream { tcp, cipher, mut sealer, mut opener, preamble } = stream;
        let tunnel = Rc::new(tcp);
        *connection.tunnel.borrow_mut() = Some(tunnel.clone());
        let first = first_flight(&lan, connection, cipher, &mut sealer, preamble);
        let sent = match first {
            Ok((first, early)) => {
                connection.counters.add_to_tunnel(early);
                message::send(&tunnel, &first).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = sent {
            socket::abort(&lan);
            socket::abort(&*tunnel);
            return Err(Trouble::Tunnel(error));
        }
        let refusal = Cell::new(None);
        let answer = async {
            let carried = read_answer(&tunnel, &mut opener, &refusal).await?;
            Ok((opener, carried))
        };
        let counters = &connection.counters;
        let limits = IdleLimits::default();
        let result = match cipher {
            Cipher::None => {
                let answer = async { answer.await.map(|(_, carried)| carried) };
                relay::plain(&lan, &tunnel, answer, counters, limits).await
            }
            _ => relay::sealed(&lan, &tunnel, &mut sealer, answer, counters, limits).await,
        };
        match (result, refusal.get()) {
            (Err(_), Some(failure)) => {
                count(&self.tally.refused);
                log::debug!("{} to {}: {failure}", connection.client, connection.target);
                Ok(())
            }
            // A reset from either end is how some connections end.
            (Err(relay::Failure::Broken { error, .. }), None)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
                ) =>
            {
                Ok(())
            }
            (result, _) => result.map_err(Trouble::Relay),
        }
    }

    /// Without a tunnel the agent itself connects to the target.
    async fn relay_direct(&self, lan: &TcpStream, connection: &Connection) -> Result<(), Trouble> {
        count(&self.tally.direct);
        let target = match socket::tcp_connect(connection.target, None).await {
            Ok(target) => target,
            Err(error) => {
                socket::abort(lan);
                log::debug!("{}: {error}", connection.target);
                return Ok(());
            }
        };
        let (counters, limits) = (&connection.counters, IdleLimits::default());
        let opened = std::future::ready(Ok(Vec::new()));
        relay::plain(lan, &target, opened, counters, limits).await.map_err(Trouble::Relay)
    }
}

/// What is sent first: the preamble unless the stream is warm, the request, and what the client has
/// said already; also how many bytes that was.
fn first_flight(
    lan: &TcpStream,
    connection: &Connection,
    cipher: Cipher,
    sealer: &mut Sealer,
    preamble: Vec<u8>,
) -> io::Result<(Vec<u8>, usize)> {
    let mut first = preamble;
    let request = Message::connect(connection.target).encode().map_err(io::Error::other)?;
    first.extend(sealer.seal_new(Kind::Request, &request).map_err(message::invalid)?);
    let mut early = [0; EARLY];
    // An end or an error shows again when the relay reads.
    let length = lan.try_read(&mut early).unwrap_or(0);
    let early = early.get(..length).unwrap_or_default();
    match cipher {
        _ if early.is_empty() => {}
        Cipher::None => first.extend(early),
        _ => first.extend(sealer.seal_new(Kind::Data, early).map_err(message::invalid)?),
    }
    Ok((first, length))
}

/// Waits for the server's answer; returns what was read along with it.
async fn read_answer(
    tunnel: &TcpStream,
    opener: &mut Opener,
    refusal: &Cell<Option<Failure>>,
) -> io::Result<Vec<u8>> {
    let mut carried = Vec::new();
    match message::receive(tunnel, opener, &mut carried).await? {
        Some((_, answer)) => {
            let answer = Message::decode(&answer).map_err(io::Error::other)?;
            answer.outcome().map(|()| carried).map_err(|failure| {
                refusal.set(Some(failure));
                failure.to_io().into()
            })
        }
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
