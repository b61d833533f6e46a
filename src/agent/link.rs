//! The agent's side of the tunnel: session, warm streams and probes, put together.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::{AbortHandle, spawn_local};

use crate::config::agent::ServerConfig;
use crate::controller::{Event, Outlet, ServerNews};
use crate::os::probe::Probers;
use crate::os::{random, resolve};
use crate::pool::Pool;
use crate::provision;
use crate::session::{self, Keeper, Session, Trunk};

/// Replies to probes that may wait.
const PROBE_QUEUE: usize = 64;

/// What comes from the tunnel.
pub enum News {
    /// From the keeper with this number.
    Session(u64, session::Event),
    /// Of a server's name.
    Resolved(Resolved),
    /// A stream broke before the server answered.
    Suspected,
    /// A datagram on the uplink with this slot.
    Probe(u8, Vec<u8>),
}

/// The addresses that a server's host name stands for, or why they are not known.
pub struct Resolved {
    server: String,
    host: String,
    answer: Result<Vec<IpAddr>, String>,
}

/// Where news arrives.
pub struct Inputs {
    trunk: Rc<Trunk>,
    sessions: mpsc::UnboundedReceiver<(u64, session::Event)>,
    resolved: mpsc::UnboundedReceiver<Resolved>,
    probes: mpsc::Receiver<(u8, Vec<u8>)>,
}

impl Inputs {
    /// The next news; never `None`, as the senders live as long as the agent.
    pub async fn next(&mut self) -> Option<News> {
        tokio::select! {
            event = self.sessions.recv() => event.map(|(keeper, event)| News::Session(keeper, event)),
            resolved = self.resolved.recv() => resolved.map(News::Resolved),
            () = self.trunk.suspected.notified() => Some(News::Suspected),
            probe = self.probes.recv() => probe.map(|(slot, data)| News::Probe(slot, data)),
        }
    }
}

/// What the status shows of a session.
#[derive(Clone, Default)]
pub struct View {
    /// The session.
    pub session: Option<Rc<Session>>,
    /// Smoothed round-trip time of the control connection.
    pub rtt: Option<Duration>,
    /// Whether the control connection is MPTCP.
    pub mptcp: Option<bool>,
}

/// A task that makes and keeps a control connection; it ends with this.
struct Task {
    id: u64,
    handle: AbortHandle,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

/// The way to one server.
struct Line {
    config: ServerConfig,
    ping: Rc<Notify>,
    /// Dials.
    attempt: Option<Task>,
    /// Has the control connection.
    connection: Option<Task>,
    view: View,
}

/// The tunnel's state.
pub struct Link {
    key_dir: PathBuf,
    trunk: Rc<Trunk>,
    pool: Rc<Pool>,
    probers: Probers,
    outlets: Vec<Outlet>,
    lines: BTreeMap<String, Line>,
    /// The name of the server in use.
    used: Option<String>,
    keepers: u64,
    events: mpsc::UnboundedSender<(u64, session::Event)>,
    answers: mpsc::UnboundedSender<Resolved>,
}

impl Link {
    /// No server yet. Keys are in `key_dir`.
    pub fn new(key_dir: &Path) -> (Link, Inputs) {
        let (events, sessions) = mpsc::unbounded_channel();
        let (answers, resolved) = mpsc::unbounded_channel();
        let (received, probes) = mpsc::channel(PROBE_QUEUE);
        let trunk = Rc::new(Trunk::default());
        let pool = Pool::new(trunk.clone());
        spawn_local(pool.clone().run());
        let link = Link {
            key_dir: key_dir.to_owned(),
            trunk: trunk.clone(),
            pool,
            probers: Probers::new(received),
            outlets: Vec::new(),
            lines: BTreeMap::new(),
            used: None,
            keepers: 0,
            events,
            answers,
        };
        (link, Inputs { trunk, sessions, resolved, probes })
    }

    /// The warm streams.
    pub fn pool(&self) -> Rc<Pool> {
        self.pool.clone()
    }

    /// What the status shows of the session with a server.
    pub fn view(&self, server: &str) -> View {
        self.lines.get(server).map(|line| line.view.clone()).unwrap_or_default()
    }

    /// Whether the server in use is reached over MPTCP; `None` while that is not known.
    pub fn mptcp(&self) -> Option<bool> {
        self.lines.get(self.used.as_ref()?)?.view.mptcp
    }

    /// Knows these servers and no others; those that are the same as before keep their sessions.
    ///
    /// # Errors
    /// When the router's key cannot be read, in words.
    pub fn keep_servers(&mut self, servers: &[ServerConfig]) -> Result<(), String> {
        self.lines.retain(|_, line| servers.contains(&line.config));
        for config in servers {
            self.lines.entry(config.name.clone()).or_insert_with(|| Line {
                config: config.clone(),
                ping: Rc::default(),
                attempt: None,
                connection: None,
                view: View::default(),
            });
        }
        self.put_in_use();
        if servers.is_empty() {
            return Ok(());
        }
        provision::read_agent_key(&self.key_dir).map(drop).map_err(|error| error.to_string())
    }

    /// Opens streams at this server, and probes it.
    pub fn use_server(&mut self, name: String) {
        self.used = Some(name);
        self.put_in_use();
    }

    fn session(&self) -> Option<&Rc<Session>> {
        self.lines.get(self.used.as_ref()?)?.view.session.as_ref()
    }

    fn put_in_use(&mut self) {
        let session = self.session().cloned();
        if let Some(session) = &session {
            self.probers.set(&self.outlets, session.server);
        }
        self.trunk.set_session(session);
    }

    /// Asks for the addresses of a server; they come as news.
    pub fn resolve(&self, server: &str) {
        let Some(line) = self.lines.get(server) else { return };
        let (server, host) = (server.to_owned(), line.config.address.clone());
        let (answers, outlets) = (self.answers.clone(), self.trunk.paths());
        spawn_local(async move {
            let answer = resolve::resolve(&host, &outlets).await;
            // Nobody waits for it when the agent is stopping.
            let _ = answers.send(Resolved { server, host, answer });
        });
    }

    /// Dials a server at these addresses, best first; what becomes of it comes as news.
    pub fn dial(&mut self, server: &str, addresses: Vec<IpAddr>) -> Option<Event> {
        let line = self.lines.get_mut(server)?;
        let key = match provision::read_agent_key(&self.key_dir) {
            Ok(key) => key,
            Err(error) => {
                let news = ServerNews::Failed { reason: error.to_string(), dice: dice() };
                return Some(Event::Server(server.to_owned(), news));
            }
        };
        self.keepers = self.keepers.wrapping_add(1);
        let id = self.keepers;
        let keeper = Keeper {
            config: line.config.clone(),
            key,
            trunk: self.trunk.clone(),
            ping: line.ping.clone(),
            id,
            events: self.events.clone(),
        };
        let handle = spawn_local(keeper.run(addresses)).abort_handle();
        line.attempt = Some(Task { id, handle });
        None
    }

    /// Gives up the control connection to a server.
    pub fn hang_up(&mut self, server: &str) {
        if let Some(line) = self.lines.get_mut(server) {
            (line.attempt, line.connection, line.view) = (None, None, View::default());
        }
    }

    /// Takes news; what it means to the controller, if anything.
    pub fn take(&mut self, news: News) -> Option<Event> {
        match news {
            News::Session(keeper, event) => self.take_session(keeper, event),
            News::Resolved(Resolved { server, host, answer }) => {
                // The section may name another host by now.
                self.lines.get(&server).filter(|line| line.config.address == host)?;
                Some(Event::Server(server, ServerNews::Resolved(answer)))
            }
            News::Suspected => Some(Event::ServerSuspected),
            News::Probe(slot, datagram) => {
                let reply = self.session()?.probe_reply(&datagram)?;
                Some(Event::ProbeAnswered { slot, counter: reply.counter })
            }
        }
    }

    fn take_session(&mut self, keeper: u64, event: session::Event) -> Option<Event> {
        let is = |task: &Option<Task>| task.as_ref().is_some_and(|task| task.id == keeper);
        let (name, line) =
            self.lines.iter_mut().find(|(_, line)| is(&line.attempt) || is(&line.connection))?;
        let name = name.clone();
        let news = match event {
            session::Event::Up { session, mptcp } => {
                if is(&line.attempt) {
                    // The connection there was before ends here.
                    line.connection = line.attempt.take();
                    line.view.rtt = None;
                }
                let address = session.server.ip();
                line.view.session = Some(session);
                line.view.mptcp = Some(mptcp);
                if self.used.as_ref() == Some(&name) {
                    self.put_in_use();
                }
                ServerNews::Up { address }
            }
            session::Event::Heard { rtt } => {
                let smoothed = line.view.rtt.map_or(rtt, |old| (old * 7 + rtt) / 8);
                line.view.rtt = Some(smoothed);
                ServerNews::Heard
            }
            session::Event::Down { reason } if is(&line.attempt) => {
                line.attempt = None;
                ServerNews::Failed { reason, dice: dice() }
            }
            session::Event::Down { reason } => {
                line.connection = None;
                ServerNews::Down { reason, dice: dice() }
            }
        };
        Some(Event::Server(name, news))
    }

    /// Whether connections from an address lately fell back to plain TCP.
    pub fn falls_back(&self, source: IpAddr) -> bool {
        self.trunk.falls_back(source)
    }

    /// The slot of the uplink that a connection to `server` would begin on.
    pub fn first_path(&self, server: IpAddr) -> Option<u8> {
        self.trunk.first_path((server, 0).into())
    }

    /// Has probe sockets on these outlets.
    pub fn set_probers(&mut self, outlets: Vec<Outlet>) {
        self.outlets = outlets;
        if let Some(server) = self.session().map(|session| session.server) {
            self.probers.set(&self.outlets, server);
        }
    }

    /// Sends a probe; whether it left.
    pub fn probe(&mut self, slot: u8) -> Option<Event> {
        let session = self.session()?.clone();
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

    /// Asks a server for a sign of life.
    pub fn ping(&self, server: &str) {
        if let Some(line) = self.lines.get(server) {
            line.ping.notify_one();
        }
    }
}

/// A random number; 0 if there is none to be had.
fn dice() -> u16 {
    let mut bytes = [0; 2];
    if let Ok(mut random) = random::source() {
        random(&mut bytes);
    }
    u16::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;

    use super::*;
    use crate::config::agent::AgentConfig;
    use crate::tunnel::Cipher;
    use crate::tunnel::probe::{ProbeReply, UnverifiedProbe};
    use crate::tunnel::session::{ClientSession, SessionId, SessionKeys, StreamSecret};

    /// A link that uses the one server it knows.
    fn run(test: impl AsyncFnOnce(Link)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let (mut link, _inputs) = Link::new(Path::new("/nonexistent"));
            assert!(link.keep_servers(&[server("vps")]).is_err(), "there is no key");
            link.use_server("vps".into());
            test(link).await;
        });
    }

    fn server(name: &str) -> ServerConfig {
        let text = format!(
            "config server '{name}'\n option address '{name}.example.net'\n option public_key \
             'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE='\n"
        );
        AgentConfig::parse(&text, "mptcpd").unwrap().servers.remove(0)
    }

    /// A keeper that dials this server.
    fn dial(link: &mut Link, server: &str) -> u64 {
        link.keepers += 1;
        let handle = spawn_local(std::future::pending::<()>()).abort_handle();
        let attempt = Task { id: link.keepers, handle };
        link.lines.get_mut(server).unwrap().attempt = Some(attempt);
        link.keepers
    }

    fn secret(id: u64) -> (SessionId, StreamSecret) {
        (SessionId(id), StreamSecret::from_bytes([4; 32]))
    }

    fn up(keeper: u64, id: u64) -> News {
        let (id, secret) = secret(id);
        let session = ClientSession::new(id, &secret, Cipher::None);
        let session = Rc::new(Session::new(session, "127.0.0.1:443".parse().unwrap()));
        News::Session(keeper, session::Event::Up { session, mptcp: true })
    }

    fn down(keeper: u64) -> News {
        News::Session(keeper, session::Event::Down { reason: "reset".into() })
    }

    /// The server's reply to a probe of a session.
    fn reply(id: u64, counter: u64) -> News {
        let (id, secret) = secret(id);
        let observed = "192.0.2.1:1".parse().unwrap();
        let reply = ProbeReply { counter, observed }.encode(&SessionKeys::new(id, &secret));
        assert!(UnverifiedProbe::parse(&reply).is_ok());
        News::Probe(3, reply.to_vec())
    }

    fn in_force(link: &Link) -> Option<u64> {
        link.trunk.session().map(|session| session.id().0)
    }

    #[test]
    fn only_replies_of_the_latest_session_count() {
        run(async |mut link| {
            assert!(link.take(reply(1, 5)).is_none(), "before there is a session");
            let keeper = dial(&mut link, "vps");
            let taken = link.take(up(keeper, 1));
            assert!(matches!(taken, Some(Event::Server(_, ServerNews::Up { .. }))));
            let taken = link.take(reply(1, 5));
            assert!(matches!(taken, Some(Event::ProbeAnswered { slot: 3, counter: 5 })));
            link.take(up(keeper, 2));
            assert!(link.take(reply(1, 6)).is_none());
            assert!(link.take(reply(2, 6)).is_some());
            assert!(link.take(News::Probe(3, vec![0; 5])).is_none());
        });
    }

    #[test]
    fn probes_are_numbered_anew_in_each_session() {
        run(async |mut link| {
            assert!(link.probe(0).is_none());
            let keeper = dial(&mut link, "vps");
            let mut counters = Vec::new();
            for id in [1, 1, 2] {
                if counters.len() != 1 {
                    link.take(up(keeper, id));
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
            let keeper = dial(&mut link, "vps");
            link.take(up(keeper, 1));
            link.outlets =
                vec![Outlet { slot: 3, source: [127, 0, 0, 1].into(), device: "lo".into() }];
            let sent = |event| matches!(event, Some(Event::ProbeSent { sent: true, .. }));
            assert!(!sent(link.probe(3)));
            assert!(sent(link.probe(3)));
        });
    }

    #[test]
    fn the_round_trip_time_is_smoothed() {
        run(async |mut link| {
            let keeper = dial(&mut link, "vps");
            let heard = |ms| {
                News::Session(keeper, session::Event::Heard { rtt: Duration::from_millis(ms) })
            };
            link.take(up(keeper, 1));
            link.take(heard(80));
            link.take(heard(160));
            assert_eq!(link.view("vps").rtt, Some(Duration::from_millis(90)));
        });
    }

    #[test]
    fn a_connection_stays_until_the_next_one_is_there() {
        run(async |mut link| {
            let first = dial(&mut link, "vps");
            link.take(up(first, 1));
            let second = dial(&mut link, "vps");
            assert!(link.take(down(second)).is_some_and(|event| {
                matches!(event, Event::Server(_, ServerNews::Failed { .. }))
            }));
            assert_eq!(in_force(&link), Some(1), "an attempt in vain");
            let third = dial(&mut link, "vps");
            link.take(up(third, 3));
            assert_eq!(in_force(&link), Some(3));
            assert!(link.take(down(first)).is_none(), "it was given up");
            assert!(link.take(down(third)).is_some_and(|event| {
                matches!(event, Event::Server(_, ServerNews::Down { .. }))
            }));
            assert_eq!(in_force(&link), Some(3), "the server may know it a while");
        });
    }

    #[test]
    fn the_session_in_force_is_that_of_the_server_in_use() {
        run(async |mut link| {
            let _ = link.keep_servers(&[server("vps"), server("second")]);
            let (first, second) = (dial(&mut link, "vps"), dial(&mut link, "second"));
            link.take(up(first, 1));
            link.take(up(second, 2));
            assert_eq!(in_force(&link), Some(1));
            link.use_server("second".into());
            assert_eq!(in_force(&link), Some(2));
            assert!(link.take(reply(1, 1)).is_none());
            assert!(link.take(reply(2, 1)).is_some());
            let _ = link.keep_servers(&[server("second")]);
            assert_eq!(in_force(&link), Some(2), "the one in use stays");
            link.hang_up("second");
            assert!(link.take(up(second, 4)).is_none());
            assert_eq!(link.keep_servers(&[]), Ok(()));
            assert_eq!(in_force(&link), None);
        });
    }

    #[test]
    fn an_answer_for_another_host_is_dropped() {
        run(async |mut link| {
            let resolved = |server: &str, host: &str| {
                let (server, host) = (server.to_owned(), host.to_owned());
                News::Resolved(Resolved { server, host, answer: Ok(Vec::new()) })
            };
            assert!(link.take(resolved("vps", "vps.example.net")).is_some());
            assert!(link.take(resolved("vps", "before.example.net")).is_none());
            assert!(link.take(resolved("gone", "vps.example.net")).is_none());
        });
    }
}
