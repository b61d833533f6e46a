//! Ports of the server that lead to a client's LAN, and connections accepted there that wait for the
//! client to take them.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use super::{Cause, Registry};
use crate::net::Transport;
use crate::os::socket::{self, Acceptor, UdpServer};
use crate::os::{random, runtime};
use crate::tunnel::forward::{Incoming, Port, Verdict};

/// How long a connection waits for its client.
const CLAIM_LIMIT: Duration = Duration::from_secs(10);
/// How many connections wait for one client.
const WAITING_LIMIT: usize = 64;
/// How long a port stays open while its client has no control connection.
const LINGER: Duration = Duration::from_secs(60);

/// A port that is listened on.
struct Open {
    client: String,
    port: Port,
    listening: Vec<(OwnedFd, AbortHandle)>,
    /// When it is closed unless the client asks for it again.
    until: Option<Instant>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.listening.iter().for_each(|(_, task)| task.abort());
    }
}

/// A connection accepted on a port.
pub struct Waiting {
    client: String,
    /// Who connected.
    pub peer: SocketAddr,
    /// The connection.
    pub tcp: TcpStream,
    incoming: Incoming,
    since: Instant,
    announced: bool,
}

/// Starts what reads a client's UDP port, and ends with it.
type Reader = Box<dyn Fn(&str, u16, UdpServer) -> AbortHandle>;

/// A socket of before the restart.
pub type Inherited = (Transport, SocketAddr, OwnedFd);

/// Takes the socket of an address out of those of before the restart.
pub fn take_inherited(
    sockets: &mut Vec<Inherited>,
    transport: Transport,
    address: SocketAddr,
) -> Option<OwnedFd> {
    let is = |(of, at, _): &Inherited| (*of, *at) == (transport, address);
    let at = sockets.iter().position(is)?;
    Some(sockets.swap_remove(at).2)
}

/// The forwarded ports of all clients.
#[derive(Default)]
pub struct Forwards {
    open: RefCell<Vec<Open>>,
    waiting: RefCell<Vec<Waiting>>,
    /// Sockets of before the restart, until their clients ask for them.
    inherited: RefCell<Vec<Inherited>>,
    reader: RefCell<Option<Reader>>,
}

impl Registry {
    /// Opens the ports that a client asks for, as far as it may have them, and closes its others.
    pub fn forward(self: &Rc<Self>, client: &str, ports: &[Port]) -> Vec<(Port, Verdict)> {
        self.forwards.open.borrow_mut().retain_mut(|open| {
            if open.client != client {
                return true;
            }
            open.until = None;
            ports.contains(&open.port)
        });
        ports.iter().map(|port| (*port, self.open_port(client, *port))).collect()
    }

    fn open_port(self: &Rc<Self>, client: &str, port: Port) -> Verdict {
        let Some(transport) = port.transport() else { return Verdict::Unsupported };
        if !self.may_forward(client, port) {
            return Verdict::NotAllowed;
        }
        // Whose it was before may not have it any more.
        let stays = |open: &Open| open.port != port || open.client == client;
        self.forwards.open.borrow_mut().retain(stays);
        if self.forwards.open.borrow().iter().any(|open| open.port == port) {
            return Verdict::Granted;
        }
        let what = format!("client {client}: {port}");
        match self.listen(client, transport, port.number) {
            Ok(listening) => {
                let open = Open { client: client.to_owned(), port, listening, until: None };
                self.forwards.open.borrow_mut().push(open);
                self.tell_seldom(log::Level::Info, format!("{what} is forwarded"));
                Verdict::Granted
            }
            Err(error) => {
                self.tell_seldom(log::Level::Warn, format!("{what} is not forwarded: {error}"));
                match error.kind() {
                    io::ErrorKind::AddrInUse => Verdict::InUse,
                    io::ErrorKind::PermissionDenied => Verdict::Privileged,
                    _ => Verdict::Failed,
                }
            }
        }
    }

    /// Of what a client can have happen again and again.
    fn tell_seldom(&self, level: log::Level, text: String) {
        if self.throttle.borrow_mut().permit(Instant::now(), &text).is_some() {
            self.tell(level, text);
        }
    }

    /// Clients are given numbers, of TCP and UDP alike.
    fn may_forward(&self, client: &str, port: Port) -> bool {
        let config = self.config.borrow();
        config.clients.iter().any(|it| it.name == client && it.forwards.contains(&port.number))
    }

    /// Listens on a port of each address that the server itself listens on.
    fn listen(
        self: &Rc<Self>,
        client: &str,
        transport: Transport,
        port: u16,
    ) -> io::Result<Vec<(OwnedFd, AbortHandle)>> {
        let mut addresses: Vec<IpAddr> = Vec::new();
        for address in &self.config.borrow().listen {
            if !addresses.contains(&address.ip()) {
                addresses.push(address.ip());
            }
        }
        let addresses = addresses.into_iter().map(|ip| SocketAddr::new(ip, port));
        let mut listening = Vec::new();
        // All are bound before the first is served.
        match transport {
            Transport::Tcp => {
                let listeners = addresses.map(|address| self.forwards.tcp_listener(address));
                for listener in listeners.collect::<io::Result<Vec<_>>>()? {
                    let socket = listener.as_fd().try_clone_to_owned()?;
                    let task = runtime::spawn(accept(self.clone(), client.to_owned(), listener));
                    listening.push((socket, task.abort_handle()));
                }
            }
            Transport::Udp => {
                let sockets = addresses.map(|address| self.forwards.udp_server(address));
                for server in sockets.collect::<io::Result<Vec<_>>>()? {
                    let socket = server.as_fd().try_clone_to_owned()?;
                    let reader = self.forwards.reader.borrow();
                    let reader = reader.as_ref().ok_or(io::ErrorKind::Unsupported)?;
                    listening.push((socket, reader(client, port, server)));
                }
            }
        }
        Ok(listening)
    }

    /// Ends what nobody may have or has asked for in time; to be called about once a second, and when
    /// the configuration has changed.
    pub fn tidy_forwards(&self, now: Instant) {
        let forwards = &self.forwards;
        forwards.open.borrow_mut().retain(|open| {
            let stays = self.may_forward(&open.client, open.port)
                && open.until.is_none_or(|until| now < until);
            if !stays {
                let Open { client, port, .. } = open;
                let text = format!("client {client}: {port} is no longer forwarded");
                self.tell(log::Level::Info, text);
            }
            stays
        });
        forwards.waiting.borrow_mut().retain(|waiting| {
            let stays = now < waiting.since + CLAIM_LIMIT
                && self.may_forward(&waiting.client, Port::tcp(waiting.incoming.local.port()));
            if !stays {
                socket::abort(&waiting.tcp);
            }
            stays
        });
        if now >= self.started + LINGER {
            forwards.inherited.take();
        }
    }

    fn arrive(&self, client: &str, tcp: TcpStream, peer: SocketAddr) {
        let mut waiting = self.forwards.waiting.borrow_mut();
        let crowd = waiting.iter().filter(|waiting| waiting.client == client).count();
        let number = random::bytes().map(u64::from_be_bytes);
        let (Ok(id), Ok(local), true) = (number, tcp.local_addr(), crowd < WAITING_LIMIT) else {
            self.refuse(Cause::Unclaimed, peer.ip());
            return socket::abort(&tcp);
        };
        waiting.push(Waiting {
            client: client.to_owned(),
            peer,
            tcp,
            incoming: Incoming { id, peer, local },
            since: Instant::now(),
            announced: false,
        });
        self.client(client).arrived.notify_waiters();
    }
}

async fn accept(registry: Rc<Registry>, client: String, listener: TcpListener) {
    let mut acceptor = Acceptor::new(listener);
    loop {
        let (tcp, peer) = acceptor.next().await;
        registry.arrive(&client, tcp, peer);
    }
}

impl Forwards {
    /// Has UDP ports read by this.
    pub fn read_udp_with(&self, reader: impl Fn(&str, u16, UdpServer) -> AbortHandle + 'static) {
        *self.reader.borrow_mut() = Some(Box::new(reader));
    }

    /// Whether a client has a UDP port.
    pub fn has_udp(&self, client: &str) -> bool {
        let open = self.open.borrow();
        open.iter().any(|open| open.client == client && open.port.protocol == Port::UDP)
    }

    /// The connections that a client has not been told of yet.
    pub fn announce(&self, client: &str) -> Vec<Incoming> {
        let mut waiting = self.waiting.borrow_mut();
        let new = waiting.iter_mut().filter(|it| it.client == client && !it.announced);
        let announce = |it: &mut Waiting| {
            it.announced = true;
            it.incoming
        };
        new.map(announce).collect()
    }

    /// A connection that waits for this client.
    pub fn claim(&self, client: &str, id: u64) -> Option<Waiting> {
        let mut waiting = self.waiting.borrow_mut();
        let at = waiting.iter().position(|it| it.client == client && it.incoming.id == id)?;
        Some(waiting.remove(at))
    }

    /// Resets a connection that waits for this client.
    pub fn decline(&self, client: &str, id: u64) {
        if let Some(waiting) = self.claim(client, id) {
            socket::abort(&waiting.tcp);
        }
    }

    /// Closes a client's ports in a minute, unless it asks for them again.
    pub fn linger(&self, client: &str, now: Instant) {
        let mut open = self.open.borrow_mut();
        for open in open.iter_mut().filter(|open| open.client == client) {
            open.until = Some(now + LINGER);
        }
    }

    /// The sockets of all ports, which nobody serves any more, for the next start.
    pub fn leave(&self) -> Vec<OwnedFd> {
        let mut open = self.open.take();
        open.iter_mut()
            .flat_map(|open| std::mem::take(&mut open.listening))
            .map(|(socket, task)| {
                task.abort();
                socket
            })
            .collect()
    }

    /// Keeps sockets of before the restart until their clients ask for them.
    pub fn inherit(&self, sockets: Vec<Inherited>) {
        *self.inherited.borrow_mut() = sockets;
    }

    fn inherited(&self, transport: Transport, address: SocketAddr) -> Option<OwnedFd> {
        take_inherited(&mut self.inherited.borrow_mut(), transport, address)
    }

    fn tcp_listener(&self, address: SocketAddr) -> io::Result<TcpListener> {
        match self.inherited(Transport::Tcp, address) {
            Some(socket) => TcpListener::from_std(socket.into()),
            None => socket::tcp_listen(address, None),
        }
    }

    fn udp_server(&self, address: SocketAddr) -> io::Result<UdpServer> {
        match self.inherited(Transport::Udp, address) {
            Some(socket) => UdpServer::adopt(socket),
            None => UdpServer::bind(address),
        }
    }
}
