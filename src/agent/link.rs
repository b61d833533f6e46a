//! The agent's side of the tunnel: session, warm streams and probes, put together.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::{AbortHandle, spawn_local};

use crate::config::agent::ServerConfig;
use crate::controller::{Event, Outlet};
use crate::os::probe::Probers;
use crate::pool::Pool;
use crate::provision;
use crate::session::{self, Keeper, Session, Trunk};

/// Replies to probes that may wait.
const PROBE_QUEUE: usize = 64;

/// What comes from the tunnel.
pub enum News {
    /// From the session's keeper.
    Session(session::Event),
    /// A datagram on the uplink with this slot.
    Probe(u8, Vec<u8>),
}

/// Where news arrives.
pub struct Inputs {
    sessions: mpsc::UnboundedReceiver<session::Event>,
    probes: mpsc::Receiver<(u8, Vec<u8>)>,
}

impl Inputs {
    /// The next news; never `None`, as the senders live as long as the agent.
    pub async fn next(&mut self) -> Option<News> {
        tokio::select! {
            event = self.sessions.recv() => event.map(News::Session),
            probe = self.probes.recv() => probe.map(|(slot, data)| News::Probe(slot, data)),
        }
    }
}

/// What the status shows of the session.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Smoothed round-trip time of the control connection.
    pub rtt: Option<Duration>,
    /// Whether the control connection is MPTCP.
    pub mptcp: Option<bool>,
}

/// The tunnel's state.
pub struct Link {
    key_dir: PathBuf,
    trunk: Rc<Trunk>,
    pool: Rc<Pool>,
    probers: Probers,
    outlets: Vec<Outlet>,
    last: Option<Rc<Session>>,
    server: Option<ServerConfig>,
    keeper: Option<AbortHandle>,
    ping: Rc<Notify>,
    events: mpsc::UnboundedSender<session::Event>,
    view: View,
}

impl Link {
    /// No server yet. Keys are in `key_dir`.
    pub fn new(key_dir: &Path) -> (Link, Inputs) {
        let (events, sessions) = mpsc::unbounded_channel();
        let (received, probes) = mpsc::channel(PROBE_QUEUE);
        let trunk = Rc::new(Trunk::default());
        let pool = Pool::new(trunk.clone());
        spawn_local(pool.clone().run());
        let link = Link {
            key_dir: key_dir.to_owned(),
            trunk,
            pool,
            probers: Probers::new(received),
            outlets: Vec::new(),
            last: None,
            server: None,
            keeper: None,
            ping: Rc::new(Notify::new()),
            events,
            view: View::default(),
        };
        (link, Inputs { sessions, probes })
    }

    /// The warm streams.
    pub fn pool(&self) -> Rc<Pool> {
        self.pool.clone()
    }

    /// What the status shows.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The session in force.
    pub fn session(&self) -> Option<Rc<Session>> {
        self.trunk.session()
    }

    /// Keeps a session with `server`, or with none; another one than before loses its session.
    ///
    /// # Errors
    /// When the router's key cannot be read, in words.
    pub fn set_server(&mut self, server: Option<&ServerConfig>) -> Result<(), String> {
        if self.server.as_ref() == server && (self.keeper.is_some() || server.is_none()) {
            return Ok(());
        }
        if let Some(keeper) = self.keeper.take() {
            keeper.abort();
        }
        self.server = server.cloned();
        self.trunk.set_session(None);
        self.last = None;
        self.view = View::default();
        let Some(config) = server.cloned() else { return Ok(()) };
        let key = provision::read_agent_key(&self.key_dir).map_err(|error| error.to_string())?;
        let keeper = Keeper {
            config,
            key,
            trunk: self.trunk.clone(),
            events: self.events.clone(),
            ping: self.ping.clone(),
        };
        self.keeper = Some(spawn_local(keeper.run()).abort_handle());
        Ok(())
    }

    /// Takes news; what it means to the controller, if anything.
    pub fn take(&mut self, news: News) -> Option<Event> {
        match news {
            News::Session(event) => Some(self.take_session(event)),
            News::Probe(slot, datagram) => {
                let reply = self.last.as_ref()?.probe_reply(&datagram)?;
                Some(Event::ProbeAnswered { slot, counter: reply.counter })
            }
        }
    }

    fn take_session(&mut self, event: session::Event) -> Event {
        match event {
            session::Event::Resolved(addresses) => Event::ServerResolved(addresses),
            session::Event::Up { session, mptcp } => {
                self.view.mptcp = Some(mptcp);
                let server = session.server;
                self.last = Some(session);
                self.probers.set(&self.outlets, server);
                Event::SessionUp { server: server.ip() }
            }
            session::Event::Heard { rtt } => {
                let smoothed = self.view.rtt.map_or(rtt, |old| (old * 7 + rtt) / 8);
                self.view.rtt = Some(smoothed);
                Event::ServerHeard
            }
            session::Event::Down { reason } => Event::SessionDown { reason },
        }
    }

    /// Whether connections from an address lately fell back to plain TCP.
    pub fn falls_back(&self, source: IpAddr) -> bool {
        self.trunk.falls_back(source)
    }

    fn server_address(&self) -> Option<SocketAddr> {
        self.last.as_ref().map(|session| session.server)
    }

    /// Has probe sockets on these outlets.
    pub fn set_probers(&mut self, outlets: Vec<Outlet>) {
        self.outlets = outlets;
        if let Some(server) = self.server_address() {
            self.probers.set(&self.outlets, server);
        }
    }

    /// Sends a probe; whether it left.
    pub fn probe(&mut self, slot: u8) -> Option<Event> {
        let (counter, request) = self.last.as_ref()?.probe();
        let sent = self.probers.send(slot, &request).is_ok();
        Some(Event::ProbeSent { slot, counter, sent })
    }

    /// Sets the ways to the server, best first.
    pub fn set_dial_order(&self, outlets: Vec<Outlet>) {
        self.trunk.set_paths(outlets);
    }

    /// Asks for a sign of life.
    pub fn ping(&self) {
        self.ping.notify_one();
    }
}
