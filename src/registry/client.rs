//! What is known of a client while the server runs.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;

use crate::config::keys::Credential;
use crate::relay::{Pace, Side};
use crate::status::RateMeter;

/// A client, as its connections show it.
#[derive(Default)]
pub struct Client {
    /// Control connections open now.
    pub connected: Cell<u32>,
    /// Where the newest of them came from, or the newest stream of a bare client.
    pub address: Cell<Option<SocketAddr>>,
    /// Since when there is one, or none any more; of a bare client, when its newest stream came.
    pub since: Cell<Option<Instant>>,
    /// Streams open now.
    pub streams: Cell<u32>,
    /// Authenticated streams that wait for their request.
    pub warm: Cell<u32>,
    /// Whether it has come with the server's newest key.
    pub knows_key: Cell<bool>,
    /// How often it has opened a control connection.
    pub generation: Cell<u64>,
    /// Told when it opens another control connection, or when the configuration changes.
    pub changed: Notify,
    /// Told when a connection at one of its forwarded ports waits for it.
    pub arrived: Notify,
    pub(super) down: Total,
    pub(super) up: Total,
    pub(super) pace: Arc<Pace>,
    /// Bytes a second that it moved lately.
    pub(super) down_used: Cell<u64>,
    pub(super) up_used: Cell<u64>,
}

impl Client {
    /// Whether it is there: a bare client has no control connection, and is while it has streams.
    pub fn is_connected(&self, credential: &Credential) -> bool {
        let there = match credential {
            Credential::Key(_) => &self.connected,
            Credential::Cookie(_) => &self.streams,
        };
        there.get() > 0
    }

    /// Counts a datagram, unless the client's rate is used up: whether it may be sent. "LAN" is the
    /// target's side.
    pub fn admit_datagram(&self, to: Side, bytes: usize, now: Instant) -> bool {
        let admitted = self.pace.admit(to, bytes, now);
        if admitted {
            let total = if to == Side::Lan { &self.up } else { &self.down };
            total.add(bytes as u64);
        }
        admitted
    }
}

/// Bytes of all streams and datagrams of a client, in one direction.
#[derive(Default)]
pub(super) struct Total {
    pub(super) ended: Cell<u64>,
    pub(super) rate: RefCell<RateMeter>,
}

impl Total {
    pub(super) fn add(&self, bytes: u64) {
        self.ended.set(self.ended.get().saturating_add(bytes));
    }
}

/// What a client's targets sent and were sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes to the client.
    pub down_bytes: u64,
    /// Bytes from the client.
    pub up_bytes: u64,
    /// Bits a second to the client.
    pub down_bps: u64,
    /// Bits a second from the client.
    pub up_bps: u64,
}
