//! How clients share the server's uplink: what each may move is set anew ten times a second, which is
//! about as long as those that begin at once can take more than there is.

use std::time::{Duration, Instant};

use super::{Client, Registry};
use crate::fair_share::fair_share;
use crate::relay::Side;

/// How often the shares are set.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// What each client may move, in bytes a second in each direction, and when that was found out; 0 is
/// unlimited.
#[derive(Clone, Copy, Default)]
pub(super) struct Shares {
    to_tunnel: u64,
    to_lan: u64,
    at: Option<Instant>,
}

impl Registry {
    /// Whether the server's uplink is divided.
    pub fn shares_uplink(&self) -> bool {
        self.config.borrow().limits.rate > 0
    }

    /// Divides the rate of the server's uplink anew; to be called each [`INTERVAL`].
    pub fn share(&self, now: Instant) {
        let before = self.shares.get();
        let elapsed = before.at.map_or(INTERVAL, |at| now.saturating_duration_since(at));
        self.shares.set(Shares {
            to_tunnel: self.divide(Side::Tunnel, before.to_tunnel, elapsed),
            to_lan: self.divide(Side::Lan, before.to_lan, elapsed),
            at: Some(now),
        });
        self.clients.borrow().values().for_each(|client| self.set_pace(client));
    }

    fn divide(&self, to: Side, share: u64, elapsed: Duration) -> u64 {
        let milliseconds = elapsed.as_millis().max(1) as u64;
        let used = |client: &Client| {
            let used = client.pace.take_moved(to).saturating_mul(1000) / milliseconds;
            let rate = match to {
                Side::Tunnel => &client.down_used,
                Side::Lan => &client.up_used,
            };
            // Streams move in bursts: a pause does not mean at once that there is no more to come.
            rate.set(used.max(rate.get() / 10 * 9));
            rate.get()
        };
        let clients = self.clients.borrow();
        let used: Vec<u64> = clients.values().map(|client| used(client)).collect();
        fair_share(self.config.borrow().limits.rate, share, &used)
    }

    /// Begins to divide anew, as another rate is configured.
    pub(super) fn reset_shares(&self) {
        let rate = self.config.borrow().limits.rate;
        self.shares.set(Shares { to_tunnel: rate, to_lan: rate, at: None });
    }

    /// Holds a client to its share, and to the rate that none may exceed.
    pub(super) fn set_pace(&self, client: &Client) {
        let most = self.config.borrow().limits.rate_per_client;
        let Shares { to_tunnel, to_lan, .. } = self.shares.get();
        for (to, share) in [(Side::Tunnel, to_tunnel), (Side::Lan, to_lan)] {
            let rate = [share, most].into_iter().filter(|&rate| rate > 0).min();
            client.pace.set_rate(to, rate.unwrap_or(0));
        }
    }
}
