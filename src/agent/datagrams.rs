//! UDP of the LAN that is tunnelled: what is diverted goes to the server, what comes back to the LAN.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::{Rc, Weak};
use std::time::Instant;

use tokio::sync::mpsc;

use crate::flows::FlowTable;
use crate::os::probe::Probers;
use crate::os::socket::{FlowSocket, UdpServer};
use crate::session::Session;
use crate::status::DatagramStatus;
use crate::tunnel::datagram::{DATAGRAM_MAX, Datagram, Flow, session_of};

/// Flows at once; each target of theirs takes a file descriptor.
const FLOWS: usize = 512;

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

    /// Drops flows that are over; to be called now and then.
    pub fn expire(&self, now: Instant) {
        self.flows.borrow_mut().expire(now);
    }

    /// What was carried.
    pub fn status(&self) -> DatagramStatus {
        DatagramStatus { flows: self.flows.borrow().len() as u64, ..self.counts.get() }
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
        if self.send(Some(flow), payload) {
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
    fn send(&self, flow: Option<Flow>, payload: &[u8]) -> bool {
        let [Some(session), _] = &*self.sessions.borrow() else { return false };
        let ways = self.ways.borrow();
        let twice = self.duplicate.get() && ways.len() > 1;
        let Some(sealed) = session.seal_datagram(&Datagram { flow, twice, payload }) else {
            return false;
        };
        let left = ways.iter().filter(|slot| self.probers.send(**slot, &sealed).is_ok());
        left.take(if twice { 2 } else { 1 }).count() > 0
    }

    /// Shows the server where to send what comes back: flows may only listen for a while.
    fn show_ways(&self) {
        if !self.flows.borrow().is_empty() {
            self.send(None, &[]);
        }
    }

    /// Takes what comes from the server.
    fn take(&self, bytes: &mut [u8]) {
        let sessions = self.sessions.borrow();
        let id = session_of(bytes);
        let session = sessions.iter().flatten().find(|session| Some(session.id()) == id);
        let Some(opened) = session.and_then(|session| session.open_datagram(bytes)) else { return };
        if !opened.fresh {
            return self.count(|counts| &mut counts.duplicates_removed_total);
        }
        let Datagram { flow: Some(flow), payload, .. } = opened.datagram else { return };
        let mut flows = self.flows.borrow_mut();
        let Some(socket) = flows.answered(&flow, Instant::now()) else { return };
        if socket.send_to(payload, flow.host).is_ok() {
            self.count(|counts| &mut counts.down_total);
        }
    }

    fn count(&self, which: fn(&mut DatagramStatus) -> &mut u64) {
        DatagramStatus::count(&self.counts, which);
    }
}
