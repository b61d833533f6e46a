//! The clients' UDP: a socket for each flow, connected to its target; and what arrives at their
//! forwarded ports.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::time::Instant;

use litemap::LiteMap;
use tokio::net::UdpSocket;
use tokio::task::coop::consume_budget;

use crate::flows::{FlowTable, Ways};
use crate::os::runtime;
use crate::os::socket::{FlowSocket, UdpServer};
use crate::registry::{Cause, Registry};
use crate::relay::Side;
use crate::status::DatagramStatus;
use crate::tunnel::datagram::{DATAGRAM_MAX, Datagram, Flow, session_of};
use crate::tunnel::session::SessionId;

/// Flows of one client at once, and as many that began at its forwarded ports.
const FLOWS_PER_CLIENT: usize = 512;
/// Flows of all clients at once; each takes a file descriptor.
const FLOWS: usize = 8192;

/// The UDP of all clients.
pub struct Datagrams {
    registry: Rc<Registry>,
    clients: RefCell<LiteMap<String, Client>>,
    /// Where datagrams of targets and others outside are received, one at a time.
    buffer: RefCell<Vec<u8>>,
}

/// A way to a client: over one of its uplinks.
pub struct Way {
    /// The socket that it was heard on.
    pub socket: Rc<UdpServer>,
    /// Where it was heard from.
    pub remote: SocketAddr,
    /// The address that it spoke to.
    pub local: IpAddr,
}

/// One client's UDP.
struct Client {
    ways: Ways<Way>,
    flows: FlowTable<Rc<FlowSocket>>,
    /// Those that somebody outside began, with the sockets of the ports: they are closed with these.
    forwarded: FlowTable<Weak<UdpServer>>,
}

impl Client {
    fn new(session: SessionId) -> Client {
        let (flows, forwarded) =
            (FlowTable::new(FLOWS_PER_CLIENT), FlowTable::new(FLOWS_PER_CLIENT));
        Client { ways: Ways::new(session), flows, forwarded }
    }
}

impl Datagrams {
    /// No flows yet. The ports that are forwarded from now on are read.
    pub fn new(registry: Rc<Registry>) -> Rc<Datagrams> {
        let buffer = RefCell::new(vec![0; DATAGRAM_MAX]);
        let datagrams = Rc::new(Datagrams { registry, clients: RefCell::default(), buffer });
        let this = Rc::downgrade(&datagrams);
        datagrams.registry.forwards.read_udp_with(move |client, port, socket| {
            let (this, client) = (this.clone(), client.to_owned());
            runtime::spawn(listen(this, client, port, Rc::new(socket))).abort_handle()
        });
        datagrams
    }

    /// Takes a datagram from a client. What is not authentic is dropped without a word, as probes are.
    pub fn take(self: &Rc<Self>, from: Way, bytes: &mut [u8]) {
        let now = Instant::now();
        let Some(id) = session_of(bytes) else { return };
        let mut sessions = self.registry.sessions.borrow_mut();
        let Some(session) = sessions.find(id, now) else { return };
        let (name, live) = (session.client.clone(), session.live);
        let Some(channel) = session.state.datagrams() else { return };
        let Ok(opened) = channel.open(bytes) else { return };
        drop(sessions);
        let remote = from.remote;
        let mut clients = self.clients.borrow_mut();
        let client = clients.entry(name.clone()).or_insert_with(|| Client::new(id));
        client.ways.hear((id, live), &opened, remote, from);
        if !opened.fresh {
            return self.count(|counts| &mut counts.duplicates_removed_total);
        }
        let Datagram { flow: Some(flow), forwarded, payload, .. } = opened.datagram else { return };
        if forwarded {
            return self.answer(&name, client, &flow, payload);
        }
        if !self.registry.client(&name).admit_datagram(Side::Lan, payload.len(), now) {
            return;
        }
        let known = client.flows.sent(&flow, now).cloned();
        let socket = match known {
            Some(socket) => socket,
            None => {
                let total: usize = clients.values().map(|client| client.flows.len()).sum();
                let Some(socket) = self.open(&name, flow, remote.ip(), total) else { return };
                let Some(client) = clients.get_mut(&name) else { return };
                client.flows.insert(flow, socket.clone(), now);
                socket
            }
        };
        if socket.send(payload).is_ok() {
            self.count(|counts| &mut counts.up_total);
        }
    }

    /// Sends a client's answer to somebody outside who has sent something to its port: to nobody else.
    fn answer(&self, name: &str, client: &mut Client, flow: &Flow, payload: &[u8]) {
        let now = Instant::now();
        let Some(port) = client.forwarded.answered(flow, now).and_then(Weak::upgrade) else {
            return;
        };
        let admitted = self.registry.client(name).admit_datagram(Side::Lan, payload.len(), now);
        if admitted && port.send_now(payload, flow.target, flow.host.ip()).is_ok() {
            self.count(|counts| &mut counts.up_total);
        }
    }

    /// Takes what somebody outside has sent to a client's port.
    fn arrive(&self, name: &str, number: u16, port: &Rc<UdpServer>) -> io::Result<()> {
        let mut buffer = self.buffer.borrow_mut();
        let arrived = port.receive_now(&mut buffer)?;
        let remote = SocketAddr::new(arrived.remote.ip(), arrived.remote.port());
        // Two ports could answer each other for ever.
        if self.registry.is_own(remote.ip()) {
            self.registry.refuse(Cause::Denied, remote.ip());
            return Ok(());
        }
        let flow = Flow { host: (arrived.local.ip(), number).into(), target: remote };
        let now = Instant::now();
        // Without a way to the client there is nothing to be done.
        let mut clients = self.clients.borrow_mut();
        let Some(client) = clients.get_mut(name) else { return Ok(()) };
        if client.forwarded.sent(&flow, now).is_none() {
            client.forwarded.insert(flow, Rc::downgrade(port), now);
        }
        let payload = buffer.get(..arrived.length).unwrap_or_default();
        self.send(
            name,
            client,
            &Datagram { flow: Some(flow), forwarded: true, twice: false, payload },
        );
        Ok(())
    }

    /// A socket for a new flow, beside `total` others.
    fn open(
        self: &Rc<Self>,
        name: &str,
        flow: Flow,
        source: IpAddr,
        total: usize,
    ) -> Option<Rc<FlowSocket>> {
        if let Err(denied) = self.registry.permits(flow.target) {
            self.registry.refuse(Cause::Denied, source);
            log::debug!("{name} asked for UDP to {}: {denied}", flow.target);
            return None;
        }
        if total >= FLOWS {
            self.registry.refuse(Cause::Full, source);
            return None;
        }
        let bind = self.registry.config.borrow().source_towards(flow.target);
        let read = |socket| {
            runtime::spawn(self.clone().read(name.to_owned(), flow, socket)).abort_handle()
        };
        let opened = FlowSocket::connect(flow.target, bind, read);
        let opened = opened.inspect_err(|error| {
            log::debug!("cannot open a flow of {name} to {}: {error}", flow.target);
        });
        opened.ok().map(Rc::new)
    }

    /// Sends back what a flow's target says, until the flow is over.
    async fn read(self: Rc<Self>, name: String, flow: Flow, socket: Rc<UdpSocket>) {
        while socket.readable().await.is_ok() {
            let mut buffer = self.buffer.borrow_mut();
            // Errors are what ICMP said of earlier ones.
            if let Ok(length) = socket.try_recv(&mut buffer) {
                self.send_back(&name, flow, buffer.get(..length).unwrap_or_default());
            }
        }
    }

    fn send_back(&self, name: &str, flow: Flow, payload: &[u8]) {
        let mut clients = self.clients.borrow_mut();
        let Some(client) = clients.get_mut(name) else { return };
        client.flows.answered(&flow, Instant::now());
        let flow = Some(flow);
        self.send(name, client, &Datagram { flow, forwarded: false, twice: false, payload });
    }

    /// Sends a datagram to a client, over the ways that it was heard over.
    fn send(&self, name: &str, client: &Client, datagram: &Datagram) {
        let now = Instant::now();
        let length = datagram.payload.len();
        if !self.registry.client(name).admit_datagram(Side::Tunnel, length, now) {
            return;
        }
        let mut sessions = self.registry.sessions.borrow_mut();
        // Nothing goes back to a client that was revoked.
        let session = sessions.find(client.ways.session(), now);
        let Some(channel) = session.and_then(|session| session.state.datagrams()) else { return };
        let Ok(sealed) = channel.seal(datagram) else { return };
        for Way { socket, remote, local } in client.ways.get() {
            // One that does not leave is lost, as datagrams may be.
            let _ = socket.send_now(&sealed, *remote, *local);
        }
        self.count(|counts| &mut counts.down_total);
    }

    /// Drops flows that are over; to be called now and then.
    pub fn expire(&self, now: Instant) {
        let mut clients = self.clients.borrow_mut();
        for (_, client) in &mut *clients {
            client.flows.expire(now);
            client.forwarded.expire(now);
        }
        // The way to a client whose port somebody may send to is kept, and shown before it has that.
        let registry = &self.registry;
        clients.retain(|name, client| {
            let connected = registry.client(name).connected.get() > 0;
            !client.flows.is_empty() || connected || registry.forwards.has_udp(name)
        });
        let count = |client: &Client| client.flows.len().saturating_add(client.forwarded.len());
        let flows = clients.values().map(|client| count(client) as u64).sum();
        self.registry.datagrams.set(DatagramStatus { flows, ..self.registry.datagrams.get() });
    }

    fn count(&self, which: fn(&mut DatagramStatus) -> &mut u64) {
        DatagramStatus::count(&self.registry.datagrams, which);
    }
}

/// Takes what arrives at a client's port, until that is closed.
async fn listen(datagrams: Weak<Datagrams>, client: String, number: u16, port: Rc<UdpServer>) {
    loop {
        port.readable().await;
        let Some(datagrams) = datagrams.upgrade() else { return };
        match datagrams.arrive(&client, number, &port) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                log::debug!("cannot receive a datagram at port {number}: {error}");
            }
            _ => {}
        }
        // A flood at one port leaves others their turn.
        consume_budget().await;
    }
}
