//! The rates that streams share, whichever threads they run on.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Side;
use crate::token_bucket::TokenBucket;

/// A rate in each direction, for all streams of a client together.
#[derive(Debug, Default)]
pub struct Pace {
    to_tunnel: Mutex<Flow>,
    to_lan: Mutex<Flow>,
}

/// One direction.
#[derive(Debug, Default)]
struct Flow {
    bucket: TokenBucket,
    /// Bytes moved since they were last asked for.
    moved: u64,
}

impl Pace {
    fn flow(&self, to: Side) -> MutexGuard<'_, Flow> {
        let flow = match to {
            Side::Tunnel => &self.to_tunnel,
            Side::Lan => &self.to_lan,
        };
        flow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the rate towards a side in bytes a second; 0 is unlimited.
    pub fn set_rate(&self, to: Side, rate: u64) {
        self.flow(to).bucket.set_rate(rate);
    }

    /// Bytes moved towards a side since this was last asked.
    pub fn take_moved(&self, to: Side) -> u64 {
        std::mem::take(&mut self.flow(to).moved)
    }

    pub(super) fn turn(&self, to: Side) -> usize {
        self.flow(to).bucket.turn()
    }

    pub(super) fn spend(&self, to: Side, bytes: usize) -> Duration {
        let mut flow = self.flow(to);
        flow.moved = flow.moved.saturating_add(bytes as u64);
        flow.bucket.spend(bytes, Instant::now())
    }
}
