//! What a server's tasks share: sessions, clients, streams, and who was refused.

mod cause;
mod client;
pub mod forwards;
pub mod gate;
pub mod sessions;
pub mod sharing;
pub mod streams;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use litemap::LiteMap;

use crate::accounts::{Accounts, Bytes};
use crate::config::keys::{Credential, PublicKey, ServerKeys, TokenHash};
use crate::config::server::{ClientConfig, Denied, Policy, ServerConfig};
use crate::quota::Day;
use crate::status::{DatagramStatus, EVENTS_SHOWN, Event, EventLog, Throttle};
pub use cause::Cause;
pub use client::{Client, Traffic};
use forwards::Forwards;
use gate::Gate;
use sessions::Sessions;
use sharing::Shares;
use streams::{Opened, Stream, StreamView, Streams};
use tokio::net::TcpStream;
use tokio::time::sleep;

/// How often interrupted streams are looked at until they rest.
const REST_POLL: Duration = Duration::from_millis(2);

/// Why a stream may not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interruption {
    /// The client's credential is no longer among those configured.
    Revoked,
    /// The server ends.
    Stopping,
}

/// The shared state, which the program's own thread has for itself.
pub struct Registry {
    /// The configuration's file.
    pub config_file: PathBuf,
    /// The configuration in force.
    pub config: RefCell<Rc<ServerConfig>>,
    /// The server's keys.
    pub keys: RefCell<Rc<ServerKeys>>,
    /// Sessions given out.
    pub sessions: RefCell<Sessions>,
    /// Connections that are not authenticated yet.
    pub gate: Rc<Gate>,
    /// When the server started.
    pub started: Instant,
    /// What each client has carried on each day.
    pub accounts: RefCell<Accounts>,
    /// Ports that lead to clients' LANs.
    pub forwards: Forwards,
    /// The datagrams of all clients.
    pub datagrams: Cell<DatagramStatus>,
    clients: RefCell<LiteMap<String, Rc<Client>>>,
    streams: Rc<Streams>,
    own_addresses: RefCell<Vec<IpAddr>>,
    policy: RefCell<Policy>,
    refusals: RefCell<LiteMap<Cause, u64>>,
    failed: RefCell<LiteMap<&'static str, u64>>,
    events: RefCell<EventLog>,
    throttle: RefCell<Throttle>,
    stopping: Cell<bool>,
    /// Clients' keys, and those that took their places, in that order.
    renewed: RefCell<Vec<(PublicKey, PublicKey)>>,
    shares: Cell<Shares>,
}

impl Registry {
    /// A server without sessions.
    pub fn new(config_file: PathBuf, config: ServerConfig, keys: ServerKeys) -> Rc<Registry> {
        let registry = Rc::new(Registry {
            config_file,
            gate: Gate::new(config.limits.unauthenticated),
            policy: RefCell::new(policy_with(&config, &[])),
            config: RefCell::new(Rc::new(config)),
            keys: RefCell::new(Rc::new(keys)),
            sessions: RefCell::default(),
            started: Instant::now(),
            accounts: RefCell::default(),
            forwards: Forwards::default(),
            datagrams: Cell::default(),
            clients: RefCell::default(),
            streams: Rc::default(),
            own_addresses: RefCell::default(),
            refusals: RefCell::default(),
            failed: RefCell::default(),
            events: RefCell::new(EventLog::new(EVENTS_SHOWN)),
            throttle: RefCell::default(),
            stopping: Cell::new(false),
            renewed: RefCell::default(),
            shares: Cell::default(),
        });
        registry.reset_shares();
        registry
    }

    /// The configured client with this key.
    pub fn client_of(&self, key: &PublicKey) -> Option<ClientConfig> {
        let config = self.config.borrow();
        config.clients.iter().find(|client| client.has_key(key)).cloned()
    }

    /// The key that has taken the place of a client's key, or that key.
    pub fn newest_key(&self, key: &PublicKey) -> PublicKey {
        let renewed = self.renewed.borrow();
        renewed.iter().fold(*key, |key, (old, new)| if key == *old { *new } else { key })
    }

    /// Whether what a client began with this credential may go on.
    pub fn holds(&self, credential: &Credential) -> bool {
        match credential {
            Credential::Key(key) => {
                self.client_of(key).is_some() || self.client_of(&self.newest_key(key)).is_some()
            }
            Credential::Cookie(cookie) => self.bare_client(cookie).is_some(),
        }
    }

    /// Puts a configuration in force in which `new` has taken the place of a client's key `old`; what
    /// was begun with that goes on.
    pub fn renew_key(&self, old: PublicKey, new: PublicKey, config: ServerConfig) {
        self.renewed.borrow_mut().push((old, new));
        self.reconfigure(config);
    }

    /// The name of the bare client with this cookie, where there may be such clients.
    pub fn bare_client(&self, cookie: &TokenHash) -> Option<String> {
        let config = self.config.borrow();
        let known = config.bare_clients.iter().find(|client| client.cookie == *cookie)?;
        config.allow_plain_convert.then(|| known.name.clone())
    }

    /// A client's counters.
    pub fn client(&self, name: &str) -> Rc<Client> {
        let new = || {
            let client = Client::default();
            self.set_pace(&client);
            Rc::new(client)
        };
        self.clients.borrow_mut().entry(name.to_owned()).or_insert_with(new).clone()
    }

    /// Puts the server's keys in force; control connections with another one than the newest are told.
    pub fn set_keys(&self, keys: ServerKeys) {
        let old = self.keys.replace(Rc::new(keys));
        let another = old.public != self.keys.borrow().public;
        for client in self.clients.borrow().values().filter(|_| another) {
            client.knows_key.set(false);
            client.changed.notify_waiters();
        }
    }

    /// Puts a new configuration in force; clients that are gone lose their sessions, streams and
    /// control connections at once.
    pub fn reconfigure(&self, config: ServerConfig) {
        *self.policy.borrow_mut() = policy_with(&config, &self.own_addresses.borrow());
        let old = self.config.replace(Rc::new(config));
        let new = self.config.borrow().clone();
        self.sessions.borrow_mut().keep(|key| self.holds(&Credential::Key(*key)));
        for (name, credential) in old.credentials() {
            if !self.holds(&credential) {
                self.tell(log::Level::Info, format!("client {name}: revoked"));
            }
            if new.credentials().all(|(other, _)| other != name) {
                self.accounts.borrow_mut().forget(name, Instant::now());
            }
        }
        if new.limits.rate != old.limits.rate {
            self.reset_shares();
        }
        for client in self.clients.borrow().values() {
            self.set_pace(client);
            client.changed.notify_waiters();
        }
    }

    /// Waits until a stream of a client may not go on.
    pub async fn interrupted(&self, name: &str, credential: &Credential) -> Interruption {
        let client = self.client(name);
        loop {
            let changed = client.changed.notified();
            if !self.holds(credential) {
                return Interruption::Revoked;
            }
            if self.stopping.get() {
                return Interruption::Stopping;
            }
            changed.await;
        }
    }

    /// Whether the server ends.
    pub fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// Interrupts all streams and ends the control connections, at the server's end.
    pub fn stop(&self) {
        self.stopping.set(true);
        for client in self.clients.borrow().values() {
            client.changed.notify_waiters();
        }
    }

    /// Keeps a stream that was interrupted, and the client's connection.
    pub fn pause(&self, tcp: TcpStream, opened: Opened) {
        self.streams.paused.borrow_mut().push((tcp, opened));
    }

    /// Takes the streams that were interrupted, as soon as all are, and all control connections have
    /// ended, or time is up.
    pub async fn take_paused(&self, limit: Duration) -> Vec<(TcpStream, Opened)> {
        let deadline = Instant::now() + limit;
        let connected = || self.clients.borrow().values().any(|client| client.connected.get() > 0);
        while (self.streams.are_running() || connected()) && Instant::now() < deadline {
            sleep(REST_POLL).await;
        }
        self.streams.paused.take()
    }

    /// Takes note of the server's own addresses, which are no targets.
    pub fn set_own_addresses(&self, addresses: Vec<IpAddr>) {
        *self.policy.borrow_mut() = policy_with(&self.config.borrow(), &addresses);
        *self.own_addresses.borrow_mut() = addresses;
    }

    /// Whether an address is one of this host's.
    pub fn is_own(&self, address: IpAddr) -> bool {
        // Behind a NAT that translates one to one, the public address is none of the host's.
        let public = self.config.borrow().public.host.parse();
        public == Ok(address) || self.own_addresses.borrow().contains(&address)
    }

    /// Whether a client may reach the target.
    pub fn permits(&self, target: SocketAddr) -> Result<(), Denied> {
        self.policy.borrow().permits(target)
    }

    /// Whether all clients together have as many streams as they may.
    pub fn is_full(&self) -> bool {
        let open = self.streams.open.borrow().len();
        usize::try_from(self.config.borrow().limits.streams).is_ok_and(|limit| open >= limit)
    }

    /// Counts a new stream; `None` when the client, or all of them, have as many as they may.
    pub fn open_stream(&self, name: &str, peer: SocketAddr, target: SocketAddr) -> Option<Stream> {
        let client = self.client(name);
        let full = self.is_full();
        if full || client.streams.get() >= self.config.borrow().limits.streams_per_client {
            self.refuse(if full { Cause::Full } else { Cause::TooManyStreams }, peer.ip());
            return None;
        }
        Some(self.streams.add((name, client), peer, target))
    }

    /// Counts a stream that goes on, whatever the limits are now.
    pub fn resume_stream(&self, name: &str, peer: SocketAddr, target: SocketAddr) -> Stream {
        self.streams.add((name, self.client(name)), peer, target)
    }

    /// Authenticated streams of all clients that wait for their request.
    pub fn warm(&self) -> u64 {
        self.clients.borrow().values().map(|client| u64::from(client.warm.get())).sum()
    }

    /// Streams since the start.
    pub fn streams_total(&self) -> u64 {
        self.streams.total.get()
    }

    /// Looks at the open streams, oldest first.
    pub fn with_streams<T>(&self, look: impl FnOnce(&BTreeMap<u64, StreamView>) -> T) -> T {
        look(&self.streams.open.borrow())
    }

    /// What each client's targets sent and were sent in all its streams; the rates are those of the
    /// last [`Registry::measure`].
    pub fn traffic(&self) -> LiteMap<String, Traffic> {
        let clients = self.clients.borrow();
        let ended = clients.iter().map(|(name, client)| {
            let traffic = Traffic {
                down_bytes: client.down.ended.get(),
                up_bytes: client.up.ended.get(),
                down_bps: client.down.rate.borrow().bps(),
                up_bps: client.up.rate.borrow().bps(),
            };
            (name.clone(), traffic)
        });
        let mut all: LiteMap<String, Traffic> = ended.collect();
        for StreamView { client, counters, .. } in self.streams.open.borrow().values() {
            if let Some(Traffic { down_bytes, up_bytes, .. }) = all.get_mut(client) {
                *down_bytes = down_bytes.saturating_add(counters.to_tunnel());
                *up_bytes = up_bytes.saturating_add(counters.to_lan());
            }
        }
        all
    }

    /// Samples all rates and accounts for what was carried; to be called about once a second.
    pub fn measure(&self, now: Instant) {
        for stream in self.streams.open.borrow().values() {
            stream.counters.measure(now);
        }
        let today = Day::of_unix(unix_seconds());
        for (name, traffic) in self.traffic() {
            let total = Bytes { down: traffic.down_bytes, up: traffic.up_bytes };
            self.accounts.borrow_mut().count(&name, total, today, now);
            let client = self.client(&name);
            client.down.rate.borrow_mut().sample(now, traffic.down_bytes);
            client.up.rate.borrow_mut().sample(now, traffic.up_bytes);
        }
    }

    /// Counts a stream that failed.
    pub fn fail(&self, cause: &'static str) {
        *self.failed.borrow_mut().entry(cause).or_default() += 1;
    }

    /// Streams that failed since the start, by cause.
    pub fn failed(&self) -> BTreeMap<String, u64> {
        let failed = self.failed.borrow();
        failed.iter().map(|(cause, count)| ((*cause).to_owned(), *count)).collect()
    }

    /// Counts a refusal; it is logged once a minute for each cause.
    pub fn refuse(&self, cause: Cause, from: IpAddr) {
        *self.refusals.borrow_mut().entry(cause).or_default() += 1;
        let word = cause.word();
        if let Some(held_back) = self.throttle.borrow_mut().permit(Instant::now(), word) {
            let more = match held_back {
                0 => String::new(),
                count => format!(" ({count} more since the last such line)"),
            };
            self.tell(log::Level::Warn, format!("refused {}: {word}{more}", from.to_canonical()));
        }
    }

    /// Counts a connection that broke before it had shown who it is, as far as that is the peer's
    /// doing.
    pub fn refuse_broken(&self, error: &io::Error, from: IpAddr) {
        match error.kind() {
            io::ErrorKind::InvalidData => self.refuse(Cause::NotAuthentic, from),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                self.refuse(Cause::CutOff, from);
            }
            _ => {}
        }
    }

    /// Refusals since the start, by cause.
    pub fn refusals(&self) -> BTreeMap<String, u64> {
        let refusals = self.refusals.borrow();
        refusals.iter().map(|(cause, count)| (cause.word().to_owned(), *count)).collect()
    }

    /// Logs an event and keeps it for the status.
    pub fn tell(&self, level: log::Level, text: String) {
        log::log!(level, "{text}");
        self.events.borrow_mut().push(Instant::now(), unix_seconds(), level.into(), text);
    }

    /// The last events.
    pub fn events(&self) -> Vec<Event> {
        self.events.borrow().recent(Instant::now())
    }
}

/// The policy of a configuration, with the server itself denied: its firewall does not see
/// connections that come from it.
fn policy_with(config: &ServerConfig, own: &[IpAddr]) -> Policy {
    let mut policy = config.policy.clone();
    // Behind a NAT that translates one to one, the public address is none of the host's.
    let public = config.public.host.parse().ok();
    policy.deny_hosts(own.iter().copied().chain(public));
    policy
}

/// Seconds since 1970 (UTC).
pub fn unix_seconds() -> u64 {
    unix_time().as_secs()
}

/// The time since 1970 (UTC).
pub fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
