//! The agent's side of the tunnel: session, warm streams and probes, put together.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc;
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
        let keeper = Keeper { config, key, trunk: self.trunk.clone(), events: self.events.clone() };
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

    /// The slot of the uplink that a connection to `server` would begin on.
    pub fn first_path(&self, server: IpAddr) -> Option<u8> {
        self.trunk.paths_to(server).first().map(|path| path.slot)
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
        let session = self.last.as_ref()?;
        let (counter, request) = session.probe();
        let sent = self.probers.send(slot, &request).is_ok();
        if !sent {
            // For want of file descriptors, say, a socket may not have been made.
            self.probers.set(&self.outlets, session.server);
        }
        Some(Event::ProbeSent { slot, counter, sent })
    }

    /// Sets the ways to the server, best first.
    pub fn set_dial_order(&self, outlets: Vec<Outlet>) {
        self.trunk.set_paths(outlets);
    }

    /// Asks for a sign of life.
    pub fn ping(&self) {
        self.trunk.ping.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;

    use super::*;
    use crate::tunnel::Cipher;
    use crate::tunnel::probe::{ProbeReply, UnverifiedProbe};
    use crate::tunnel::session::{ClientSession, SessionId, SessionKeys, StreamSecret};

    fn run(test: impl AsyncFnOnce(Link)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new()
            .block_on(&runtime, async { test(Link::new(Path::new("/nonexistent")).0).await });
    }

    fn secret(id: u64) -> (SessionId, StreamSecret) {
        (SessionId(id), StreamSecret::from_bytes([4; 32]))
    }

    fn up(id: u64) -> News {
        let (id, secret) = secret(id);
        let session = ClientSession::new(id, &secret, Cipher::None);
        let session = Rc::new(Session::new(session, "127.0.0.1:443".parse().unwrap()));
        News::Session(session::Event::Up { session, mptcp: true })
    }

    /// The server's reply to a probe of a session.
    fn reply(id: u64, counter: u64) -> News {
        let (id, secret) = secret(id);
        let observed = "192.0.2.1:1".parse().unwrap();
        let reply = ProbeReply { counter, observed }.encode(&SessionKeys::new(id, &secret));
        assert!(UnverifiedProbe::parse(&reply).is_ok());
        News::Probe(3, reply.to_vec())
    }

    #[test]
    fn only_replies_of_the_latest_session_count() {
        run(async |mut link| {
            assert!(link.take(reply(1, 5)).is_none(), "before there is a session");
            assert!(matches!(link.take(up(1)), Some(Event::SessionUp { .. })));
            let taken = link.take(reply(1, 5));
            assert!(matches!(taken, Some(Event::ProbeAnswered { slot: 3, counter: 5 })));
            link.take(up(2));
            assert!(link.take(reply(1, 6)).is_none());
            assert!(link.take(reply(2, 6)).is_some());
            assert!(link.take(News::Probe(3, vec![0; 5])).is_none());
        });
    }

    #[test]
    fn probes_are_numbered_anew_in_each_session() {
        run(async |mut link| {
            assert!(link.probe(0).is_none());
            let mut counters = Vec::new();
            for id in [1, 1, 2] {
                if counters.len() != 1 {
                    link.take(up(id));
                }
                // There is no such outlet: it is told that the probe did not leave.
                let Some(Event::ProbeSent { counter, sent: false, .. }) = link.probe(0) else {
                    panic!("no probe");
                };
                counters.push(counter);
            }
            assert_eq!(counters, [0, 1, 0]);
        });
    }

    #[test]
    fn a_socket_that_could_not_be_made_is_made_later() {
        run(async |mut link| {
            link.outlets =
                vec![Outlet { slot: 3, source: [127, 0, 0, 1].into(), device: "lo".into() }];
            let News::Session(session::Event::Up { session, .. }) = up(1) else { panic!() };
            link.last = Some(session);
            let sent = |event| matches!(event, Some(Event::ProbeSent { sent: true, .. }));
            assert!(!sent(link.probe(3)));
            assert!(sent(link.probe(3)));
        });
    }

    #[test]
    fn the_round_trip_time_is_smoothed() {
        run(async |mut link| {
            let heard =
                |ms| News::Session(session::Event::Heard { rtt: Duration::from_millis(ms) });
            link.take(heard(80));
            link.take(heard(160));
            assert_eq!(link.view().rtt, Some(Duration::from_millis(90)));
        });
    }

    #[test]
    fn a_server_without_a_key_is_an_error_and_none_ends_the_session() {
        run(async |mut link| {
            let Some(News::Session(session::Event::Up { session, .. })) = Some(up(1)) else {
                panic!();
            };
            link.trunk.set_session(Some(session));
            assert!(link.session().is_some());
            let text = "config server 's'\n option address 'h'\n option public_key \
                        'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE='\n";
            let config = crate::config::agent::AgentConfig::parse(text, "mptcpd").unwrap();
            assert!(link.set_server(config.servers.first()).is_err());
            assert!(link.session().is_none());
            assert_eq!(link.set_server(None), Ok(()));
        });
    }
}
