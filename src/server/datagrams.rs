//! The clients' UDP: a socket for each flow, connected to its target.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Instant;

use litemap::LiteMap;
use tokio::net::UdpSocket;

use crate::flows::{FlowTable, Ways};
use crate::os::runtime;
use crate::os::socket::{FlowSocket, UdpServer};
use crate::registry::{Cause, Registry};
use crate::relay::Side;
use crate::status::DatagramStatus;
use crate::tunnel::datagram::{DATAGRAM_MAX, Datagram, Flow, session_of};

/// Flows of one client at once.
const FLOWS_PER_CLIENT: usize = 512;
/// Flows of all clients at once; each takes a file descriptor.
const FLOWS: usize = 8192;

/// The UDP of all clients.
pub struct Datagrams {
    registry: Rc<Registry>,
    clients: RefCell<LiteMap<String, Client>>,
    /// Where targets' datagrams are received, one at a time.
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
}

impl Datagrams {
    /// No flows yet.
    pub fn new(registry: Rc<Registry>) -> Rc<Datagrams> {
        let buffer = RefCell::new(vec![0; DATAGRAM_MAX]);
        Rc::new(Datagrams { registry, clients: RefCell::default(), buffer })
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
        let new = || Client { ways: Ways::new(id), flows: FlowTable::new(FLOWS_PER_CLIENT) };
        let client = clients.entry(name.clone()).or_insert_with(new);
        client.ways.hear((id, live), &opened, remote, from);
        if !opened.fresh {
            return self.count(|counts| &mut counts.duplicates_removed_total);
        }
        let Datagram { flow: Some(flow), payload, .. } = opened.datagram else { return };
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
        let now = Instant::now();
        let mut clients = self.clients.borrow_mut();
        let Some(client) = clients.get_mut(name) else { return };
        if !self.registry.client(name).admit_datagram(Side::Tunnel, payload.len(), now) {
            return;
        }
        client.flows.answered(&flow, now);
        let mut sessions = self.registry.sessions.borrow_mut();
        // Nothing goes back to a client that was revoked.
        let session = sessions.find(client.ways.session(), now);
        let Some(channel) = session.and_then(|session| session.state.datagrams()) else { return };
        let datagram = Datagram { flow: Some(flow), twice: false, payload };
        let Ok(sealed) = channel.seal(&datagram) else { return };
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
        }
        clients.retain(|_, client| !client.flows.is_empty());
        let flows = clients.values().map(|client| client.flows.len() as u64).sum();
        self.registry.datagrams.set(DatagramStatus { flows, ..self.registry.datagrams.get() });
    }

    fn count(&self, which: fn(&mut DatagramStatus) -> &mut u64) {
        DatagramStatus::count(&self.registry.datagrams, which);
    }
}
