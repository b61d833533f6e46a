//! The streams that a server relays.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::TcpStream;

use super::Client;
use crate::config::keys::Credential;
use crate::relay::{Counters, State};

/// A stream in use.
pub struct Opened {
    /// Whose it is.
    pub client: String,
    /// What the client has shown.
    pub credential: Credential,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// The connection to the target.
    pub target: TcpStream,
    /// Its place among the open ones.
    pub stream: Stream,
    /// What of it is under way.
    pub state: State,
}

/// An open stream; it is counted until it is dropped.
pub struct Stream {
    registry: Rc<Streams>,
    client: Rc<Client>,
    id: u64,
    /// Where it goes.
    pub target: SocketAddr,
    /// Bytes moved; "LAN" is the target's side.
    pub counters: Arc<Counters>,
}

/// A stream as the status shows it.
pub struct StreamView {
    /// The client's name.
    pub client: String,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// Where it goes.
    pub target: SocketAddr,
    /// When it was opened.
    pub since: Instant,
    /// Bytes moved.
    pub counters: Arc<Counters>,
}

/// All streams of a server.
#[derive(Default)]
pub(super) struct Streams {
    pub(super) open: RefCell<BTreeMap<u64, StreamView>>,
    pub(super) total: Cell<u64>,
    pub(super) paused: RefCell<Vec<(TcpStream, Opened)>>,
}

impl Streams {
    /// Counts a new stream.
    pub(super) fn add(
        self: &Rc<Streams>,
        (name, client): (&str, Rc<Client>),
        peer: SocketAddr,
        target: SocketAddr,
    ) -> Stream {
        client.streams.set(client.streams.get().saturating_add(1));
        let id = self.total.get();
        self.total.set(id.wrapping_add(1));
        let counters = Arc::new(Counters::paced(client.pace.clone()));
        let view = StreamView {
            client: name.to_owned(),
            peer,
            target,
            since: Instant::now(),
            counters: counters.clone(),
        };
        self.open.borrow_mut().insert(id, view);
        Stream { registry: self.clone(), client, id, target, counters }
    }

    /// Whether there are others than those that were interrupted.
    pub(super) fn are_running(&self) -> bool {
        self.open.borrow().len() > self.paused.borrow().len()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let client = &self.client;
        client.streams.set(client.streams.get().saturating_sub(1));
        client.down.add(self.counters.to_tunnel());
        client.up.add(self.counters.to_lan());
        self.registry.open.borrow_mut().remove(&self.id);
    }
}
