//! What is known of the server, and whether it counts as lost.

use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long the server may be silent before it counts as lost.
const SERVER_SILENCE: Duration = Duration::from_secs(3);
/// How long it may be silent before it is asked for a sign of life.
const PING_AFTER: Duration = Duration::from_secs(1);

/// What is known of the server.
#[derive(Clone, Debug, Default)]
pub struct Server {
    /// The addresses its name stands for.
    pub addresses: Vec<IpAddr>,
    /// The address in use, once there was a session.
    pub in_use: Option<IpAddr>,
    /// Whether there is a control connection.
    pub connected: bool,
    /// When it was last heard of, over any way.
    pub heard: Option<Instant>,
    /// Whether new connections can be tunnelled.
    pub reachable: bool,
    /// Since when that is so.
    pub since: Option<Instant>,
    /// Why there is no session, once one failed.
    pub trouble: Option<String>,
    pinged: Option<Instant>,
}

impl Server {
    /// All addresses it is reached at: what LAN hosts send there is not tunnelled.
    pub(super) fn all_addresses(&self) -> Vec<IpAddr> {
        let other = self.in_use.filter(|address| !self.addresses.contains(address));
        self.addresses.iter().copied().chain(other).collect()
    }

    /// Why it does not answer, in words.
    pub fn why_lost(&self) -> &str {
        self.trouble.as_deref().unwrap_or("it answers on no uplink")
    }

    /// There is a session; whether it is with another address than before.
    pub(super) fn on_session(&mut self, address: IpAddr, now: Instant) -> bool {
        self.connected = true;
        self.heard = Some(now);
        self.trouble = None;
        self.pinged = None;
        self.in_use.replace(address) != Some(address)
    }

    /// Whether to ask it for a sign of life now; remembers that it was asked.
    pub(super) fn ping_due(&mut self, now: Instant) -> bool {
        let long_ago = |at: Option<Instant>| at.is_none_or(|at| now >= at + PING_AFTER);
        let due = self.connected && long_ago(self.heard) && long_ago(self.pinged);
        if due {
            self.pinged = Some(now);
        }
        due
    }

    /// Decides whether it can be reached; whether that changed. It counts as lost when neither
    /// probes nor the control connection bring an answer.
    pub(super) fn judge(&mut self, now: Instant) -> bool {
        let answers = self.heard.is_some_and(|heard| now < heard + SERVER_SILENCE);
        // Without a control connection answers to probes may be those of a dying session.
        let reachable = self.in_use.is_some() && answers && (self.connected || self.reachable);
        if reachable == self.reachable {
            return false;
        }
        self.reachable = reachable;
        self.since = Some(now);
        true
    }

    /// When [`Server::ping_due`] or [`Server::judge`] say otherwise by time alone.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let heard = self.heard.filter(|_| self.connected || self.reachable)?;
        [PING_AFTER, SERVER_SILENCE].into_iter().map(|wait| heard + wait).find(|&at| at > now)
    }
}
