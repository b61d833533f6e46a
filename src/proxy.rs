//! The agent's half of a connection: from the LAN client, whose TCP was diverted, into the tunnel.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use crate::config::agent::OnServerLoss;
use crate::os::socket;
use crate::pool::{NoStream, Pool, Stream};
use crate::relay::{self, Counters, IdleLimits};
use crate::tunnel::Cipher;
use crate::tunnel::convert;
use crate::tunnel::record::{self, Kind, Opener};
use crate::tunnel::stream::read_message;

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
        // Failing to tune a socket costs latency, not correctness.
        let _ = socket::tune(&lan);
        let stream = match self.pool.take().await {
            Ok(stream) => stream,
            Err(error) if self.on_server_loss.get() == OnServerLoss::Direct => {
                log::debug!("{}: {error}: untunnelled", connection.target);
                return self.relay_direct(lan, connection).await;
            }
            Err(error) => {
                socket::abort(&lan);
                return Err(Trouble::NoStream(error));
            }
        };
        let Stream { tcp, cipher, mut sealer, opener, mut preamble } = stream;
        let tunnel = Rc::new(tcp);
        *connection.tunnel.borrow_mut() = Some(tunnel.clone());

        let mut early = vec![0; EARLY];
        // The data of a client that speaks first is usually there by now.
        let length = if cipher == Cipher::None { 0 } else { lan.try_read(&mut early).unwrap_or(0) };
        let request = convert::encode_connect(connection.target);
        let mut first = record::seal_one(&mut sealer, Kind::Request, &request);
        if let (Ok(first), 1..) = (&mut first, length) {
            let data = early.get(..length).unwrap_or_default();
            match record::seal_one(&mut sealer, Kind::Data, data) {
                Ok(data) => first.extend(data),
                Err(error) => return Err(self.broken(&lan, error.into())),
            }
        }
        drop(early);
        match first {
            Ok(first) => preamble.extend(first),
            Err(error) => return Err(self.broken(&lan, error.into())),
        }
        let mut sending: &TcpStream = &tunnel;
        Ok(())
    }
}
