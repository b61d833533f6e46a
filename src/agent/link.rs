//! The agent's side of the tunnel: session, warm streams and probes, put together.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use litemap::LiteMap;
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;

use super::datagrams::Datagrams;
use crate::check::ServerLimits;
use crate::config::agent::ServerConfig;
use crate::config::keys::PublicKey;
use crate::controller::{Event, Outlet, ServerNews};
use crate::examine::Means;
use crate::os::probe::Probers;
use crate::os::{random, resolve, runtime};
use crate::pool::Pool;
use crate::provision;
use crate::registry;
use crate::session::{self, Keeper, Session, Trunk, Wishes};
use crate::tunnel::control::HostState;
use crate::tunnel::forward::Port;

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
    /// What the server last said of its host.
    pub limits: Rc<Cell<Option<ServerLimits>>>,
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
    wishes: Rc<Wishes>,
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
    probers: Rc<Probers>,
    datagrams: Rc<Datagrams>,
    outlets: Vec<Outlet>,
    lines: LiteMap<String, Line>,
    /// The name of the server in use.
    used: Option<String>,
    /// The ports that it is asked for.
    forwards: Vec<Port>,
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
        runtime::spawn(pool.clone().run());
        let datagrams = Datagrams::new(received);
        let link = Link {
            key_dir: key_dir.to_owned(),
            trunk: trunk.clone(),
            pool,
            probers: datagrams.probers(),
            datagrams,
            outlets: Vec::new(),
            lines: LiteMap::new(),
            used: None,
            forwards: Vec::new(),
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

    /// The UDP that is tunnelled.
    pub fn datagrams(&self) -> &Rc<Datagrams> {
        &self.datagrams
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
                wishes: Rc::default(),
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
        self.datagrams.use_session(session.as_ref());
        self.trunk.set_session(session);
        self.put_wishes();
    }

    fn put_wishes(&self) {
        for (name, line) in self.lines.iter() {
            let used = self.used.as_ref() == Some(name);
            line.wishes.set(if used { &self.forwards } else { &[] });
        }
    }

    /// What is told to the server in use of forwarded ports.
    pub fn wishes(&self) -> Option<Rc<Wishes>> {
        Some(self.lines.get(self.used.as_ref()?)?.wishes.clone())
    }

    /// Asks the server in use for these ports, and no others.
    pub fn set_forwards(&mut self, ports: Vec<Port>) {
        self.forwards = ports;
        self.put_wishes();
    }

    /// Asks for the addresses of a server; they come as news.
    pub fn resolve(&self, server: &str) {
        let Some(line) = self.lines.get(server) else { return };
        let (server, host) = (server.to_owned(), line.config.address.clone());
        let (answers, outlets) = (self.answers.clone(), self.trunk.paths());
        runtime::spawn(async move {
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
            wishes: line.wishes.clone(),
            id,
            events: self.events.clone(),
        };
        let handle = runtime::spawn(keeper.run(addresses)).abort_handle();
        line.attempt = Some(Task { id, handle });
        None
    }

    /// Gives up the control connection to a server.
    pub fn hang_up(&mut self, server: &str) {
        if let Some(line) = self.lines.get_mut(server) {
            (line.attempt, line.connection, line.view) = (None, None, View::default());
        }
    }

    /// Dials each server anew that there is a connection to, which lasts until the new one stands.
    pub fn redial(&mut self) -> Vec<Event> {
        let at = |line: &Line| Some((line.config.name.clone(), line.view.session.as_ref()?.server));
        let connected: Vec<_> = self.lines.values().filter_map(at).collect();
        connected.into_iter().filter_map(|(name, at)| self.dial(&name, vec![at.ip()])).collect()
    }

    /// Knows a server by another key from now on.
    pub fn set_server_key(&mut self, server: &str, key: PublicKey) {
        if let Some(line) = self.lines.get_mut(server) {
            line.config.public_key = key;
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
                let (address, datagrams) = (session.server.ip(), session.datagrams);
                line.view.session = Some(session);
                line.view.mptcp = Some(mptcp);
                if self.used.as_ref() == Some(&name) {
                    self.put_in_use();
                }
                ServerNews::Up { address, datagrams }
            }
            session::Event::Heard { rtt, host } => {
                if let Some(host) = host {
                    line.view.limits.set(Some(limits(host, rtt)));
                }
                let smoothed = line.view.rtt.map_or(rtt, |old| (old * 7 + rtt) / 8);
                line.view.rtt = Some(smoothed);
                ServerNews::Heard { lacks_ipv6: host.map(|host| host.lacks_ipv6) }
            }
            session::Event::NewServerKey { key } => ServerNews::NewKey(key),
            session::Event::Forwards(verdicts) => ServerNews::Forwards(verdicts),
            session::Event::Incoming(incoming) => ServerNews::Incoming(incoming),
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

    /// What it takes to try uplinks out towards a server; none without the router's key.
    pub fn means(&self, config: &ServerConfig, address: IpAddr) -> Option<Means> {
        let session = self.view(&config.name).session;
        Some(Means {
            server: SocketAddr::new(address, config.port),
            config: config.clone(),
            key: provision::read_agent_key(&self.key_dir).ok()?,
            session: session.filter(|session| session.server.ip() == address),
        })
    }

    /// Has probe sockets on these outlets.
    pub fn set_probers(&mut self, outlets: Vec<Outlet>) {
        self.outlets = outlets;
        if let Some(server) = self.session().map(|session| session.server) {
            self.probers.set(&self.outlets, server);
            // Other sockets are other ways.
            self.datagrams.show_ways();
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
    random::bytes().map_or(0, u16::from_ne_bytes)
}

/// What a server said of its host half a round trip ago.
fn limits(host: HostState, rtt: Duration) -> ServerLimits {
    let now = registry::unix_time().saturating_sub(rtt / 2);
    let ours = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
    let theirs = i64::try_from(host.time_unix_ms).unwrap_or(i64::MAX);
    ServerLimits {
        subflows: host.subflows,
        mptcp: host.mptcp,
        buffers: host.buffers,
        lacks_ipv6: host.lacks_ipv6,
        clock_ahead_ms: theirs.saturating_sub(ours),
    }
}

#[cfg(test)]
mod tests;
