//! UDP of the LAN that is tunnelled: what is diverted goes to the server, what comes back to the LAN.
//! And what arrives at forwarded ports of the server, the other way round.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::Instant;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use crate::flows::{FlowTable, Signs};
use crate::os::probe::Probers;
use crate::os::runtime;
use crate::os::socket::{FlowSocket, UdpServer};
use crate::session::Session;
use crate::status::DatagramStatus;
use crate::tunnel::datagram::{DATAGRAM_MAX, Datagram, Flow, session_of};

/// Flows at once, and as many that began at forwarded ports; each target of the first and each of the
/// others takes a file descriptor.
const FLOWS: usize = 512;

/// What shows a way alone.
const SIGN: Datagram<'_> = Datagram { flow: None, forwarded: false, twice: false, payload: &[] };

/// Carries datagrams both ways.
pub struct Datagrams {
    probers: Rc<Probers>,
    /// The uplinks to send over, best first.
    ways: RefCell<Vec<u8>>,
    duplicate: Cell<bool>,
    /// The session in use, and the one before it, whose datagrams may still arrive.
    sessions: RefCell<[Option<Rc<Session>>; 2]>,
    /// Flows with the sockets that pose as their targets; those of the same target share one.
    flows: RefCell<FlowTable<Rc<FlowSocket>>>,
    /// Forwarded ports of the server, and their targets.
    targets: RefCell<Vec<(u16, SocketAddr)>>,
    /// Flows that began there, with sockets that are connected to the target.
    forwarded: RefCell<FlowTable<Rc<FlowSocket>>>,
    signs: RefCell<Signs>,
    /// Where those targets' datagrams are received, one at a time; empty until there is one.
    buffer: RefCell<Vec<u8>>,
    counts: Cell<DatagramStatus>,
}

impl Datagrams {
    /// No flows yet; they will go over the sockets of probes, whose NAT mappings are kept alive. The
    /// replies to probes go to `received`.
    pub fn new(received: mpsc::Sender<(u8, Vec<u8>)>) -> Rc<Datagrams> {
        Rc::new_cyclic(|this: &Weak<Datagrams>| {
            let this = this.clone();
            let take = move |bytes: &mut [u8]| {
                if let Some(this) = this.upgrade() {
                    this.take(bytes);
                }
            };
            Datagrams {
                probers: Rc::new(Probers::new(received, Rc::new(take))),
                ways: RefCell::default(),
                duplicate: Cell::new(false),
                sessions: RefCell::default(),
                flows: RefCell::new(FlowTable::new(FLOWS)),
                targets: RefCell::default(),
                forwarded: RefCell::new(FlowTable::new(FLOWS)),
                signs: RefCell::default(),
                buffer: RefCell::default(),
                counts: Cell::default(),
            }
        })
    }

    /// The sockets.
    pub fn probers(&self) -> Rc<Probers> {
        self.probers.clone()
    }

    /// Sends over these uplinks from now on, best first: over the first alone, or over two if each
    /// datagram is to be duplicated.
    pub fn set_ways(&self, slots: Vec<u8>, duplicate: bool) {
        self.duplicate.set(duplicate);
        *self.ways.borrow_mut() = slots;
        self.show_ways();
    }

    /// Seals with this session from now on.
    pub fn use_session(&self, session: Option<&Rc<Session>>) {
        let mut sessions = self.sessions.borrow_mut();
        let [current, _] = &*sessions;
        if current.as_ref().map(|it| it.id()) == session.map(|it| it.id()) {
            return;
        }
        let [current, _] = std::mem::take(&mut *sessions);
        *sessions = [session.cloned(), current];
        drop(sessions);
        self.show_ways();
    }

    /// Forwards these ports of the server to these targets from now on; flows to others are over.
    pub fn set_targets(&self, targets: Vec<(u16, SocketAddr)>) {
        let before = self.targets.replace(targets.clone());
        let target = |of: &[(u16, SocketAddr)], flow: &Flow| target_of(of, flow.host.port());
        let stays = |flow: &Flow| target(&before, flow) == target(&targets, flow);
        self.forwarded.borrow_mut().retain(stays);
        self.show_ways();
    }

    /// Drops flows that are over, and shows the ways again if it is time; to be called about once a
    /// second.
    pub fn expire(&self, now: Instant) {
        self.flows.borrow_mut().expire(now);
        self.forwarded.borrow_mut().expire(now);
        if !self.targets.borrow().is_empty() && self.signs.borrow_mut().is_due(now) {
            self.send(&SIGN);
        }
    }

    /// What was carried.
    pub fn status(&self) -> DatagramStatus {
        let flows = self.flows.borrow().len().saturating_add(self.forwarded.borrow().len());
        DatagramStatus { flows: flows as u64, ..self.counts.get() }
    }

    /// How many flows there are that began at a forwarded port.
    pub fn forwarded(&self, port: u16) -> u64 {
        self.forwarded.borrow().count(|flow| flow.host.port() == port) as u64
    }

    /// Takes for ever what is diverted from the LAN.
    pub async fn divert(self: Rc<Self>, diverted: UdpServer) {
        // No memory is taken before there is something to carry.
        diverted.readable().await;
        let mut buffer = vec![0; DATAGRAM_MAX];
        loop {
            match diverted.receive(&mut buffer).await {
                Ok(datagram) => {
                    let flow = Flow { host: datagram.remote, target: datagram.local };
                    self.carry(flow, buffer.get(..datagram.length).unwrap_or_default());
                }
                Err(error) => {
                    log::debug!("cannot receive a datagram from the LAN: {error}");
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    fn carry(&self, flow: Flow, payload: &[u8]) {
        let now = Instant::now();
        let known = self.flows.borrow_mut().sent(&flow, now).is_some();
        if !known && let Err(error) = self.open(flow, now) {
            return log::debug!("datagram to {} dropped: {error}", flow.target);
        }
        if self.send(&Datagram { flow: Some(flow), payload, ..SIGN }) {
            self.count(|counts| &mut counts.up_total);
        }
    }

    fn open(&self, flow: Flow, now: Instant) -> io::Result<()> {
        let mut flows = self.flows.borrow_mut();
        let socket = match flows.find(|other| other.target == flow.target) {
            Some(shared) => shared.clone(),
            None => Rc::new(FlowSocket::posing_as(flow.target)?),
        };
        flows.insert(flow, socket, now);
        Ok(())
    }

    /// Sends over the best uplinks; whether it left. It is lost otherwise, as datagrams may be.
    fn send(&self, datagram: &Datagram) -> bool {
        let [Some(session), _] = &*self.sessions.borrow() else { return false };
        let ways = self.ways.borrow();
        let twice = self.duplicate.get() && ways.len() > 1;
        let Some(sealed) = session.seal_datagram(&Datagram { twice, ..*datagram }) else {
            return false;
        };
        let left = ways.iter().filter(|slot| self.probers.send(**slot, &sealed).is_ok());
        left.take(if twice { 2 } else { 1 }).count() > 0
    }

    /// Shows the server where to send to: flows may only listen for a while, and somebody outside may
    /// begin one.
    pub fn show_ways(&self) {
        self.signs.borrow_mut().changed();
        if !self.flows.borrow().is_empty() || !self.targets.borrow().is_empty() {
            self.send(&SIGN);
        }
    }

    /// Takes what comes from the server.
    fn take(self: &Rc<Self>, bytes: &mut [u8]) {
        let sessions = self.sessions.borrow();
        let id = session_of(bytes);
        let session = sessions.iter().flatten().find(|session| Some(session.id()) == id);
        let Some(opened) = session.and_then(|session| session.open_datagram(bytes)) else { return };
        if !opened.fresh {
            return self.count(|counts| &mut counts.duplicates_removed_total);
        }
        let Datagram { flow: Some(flow), forwarded, payload, .. } = opened.datagram else { return };
        if forwarded {
            drop(sessions);
            return self.arrive(flow, payload);
        }
        let mut flows = self.flows.borrow_mut();
        let Some(socket) = flows.answered(&flow, Instant::now()) else { return };
        if socket.send_to(payload, flow.host).is_ok() {
            self.count(|counts| &mut counts.down_total);
        }
    }

    /// Passes on what somebody outside has sent to a forwarded port.
    fn arrive(self: &Rc<Self>, flow: Flow, payload: &[u8]) {
        let now = Instant::now();
        let Some(target) = target_of(&self.targets.borrow(), flow.host.port()) else { return };
        let known = self.forwarded.borrow_mut().sent(&flow, now).cloned();
        let opened = known.map_or_else(|| self.open_forwarded(flow, target, now), Ok);
        match opened.and_then(|socket| socket.send(payload)) {
            Ok(()) => self.count(|counts| &mut counts.down_total),
            Err(error) => log::debug!("datagram of {} to {target} dropped: {error}", flow.target),
        }
    }

    fn open_forwarded(
        self: &Rc<Self>,
        flow: Flow,
        target: SocketAddr,
        now: Instant,
    ) -> io::Result<Rc<FlowSocket>> {
        let this = self.clone();
        let read = |socket| runtime::spawn(this.read(flow, socket)).abort_handle();
        let socket = Rc::new(FlowSocket::connect(target, None, read)?);
        self.forwarded.borrow_mut().insert(flow, socket.clone(), now);
        Ok(socket)
    }

    /// Sends back what a forwarded port's target says, until the flow is over.
    async fn read(self: Rc<Self>, flow: Flow, socket: Rc<UdpSocket>) {
        while socket.readable().await.is_ok() {
            let mut buffer = self.buffer.borrow_mut();
            buffer.resize(DATAGRAM_MAX, 0);
            // Errors are what ICMP said of earlier ones.
            let Ok(length) = socket.try_recv(&mut buffer) else { continue };
            self.forwarded.borrow_mut().answered(&flow, Instant::now());
            let payload = buffer.get(..length).unwrap_or_default();
            if self.send(&Datagram { flow: Some(flow), forwarded: true, payload, ..SIGN }) {
                self.count(|counts| &mut counts.up_total);
            }
        }
    }

    fn count(&self, which: fn(&mut DatagramStatus) -> &mut u64) {
        DatagramStatus::count(&self.counts, which);
    }
}

fn target_of(targets: &[(u16, SocketAddr)], port: u16) -> Option<SocketAddr> {
    targets.iter().find(|(forwarded, _)| *forwarded == port).map(|(_, target)| *target)
}
