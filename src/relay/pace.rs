//! The rates that streams share, whichever threads they run on.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Side;
use crate::token_bucket::TokenBucket;

/// A rate in each direction, for all streams of a client together.
#[derive(Debug, Default)]
pub struct Pace {
    to_tunnel: Mutex<TokenBucket>,
    to_lan: Mutex<TokenBucket>,
}

impl Pace {
    fn bucket(&self, to: Side) -> MutexGuard<'_, TokenBucket> {
        let bucket = match to {
            Side::Tunnel => &self.to_tunnel,
            Side::Lan => &self.to_lan,
        };
        bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the rate of each direction in bytes a second; 0 is unlimited.
    pub fn set_rate(&self, rate: u64) {
        for to in [Side::Tunnel, Side::Lan] {
            self.bucket(to).set_rate(rate);
        }
    }

    pub(super) fn turn(&self, to: Side) -> usize {
        self.bucket(to).turn()
    }

    pub(super) fn spend(&self, to: Side, bytes: usize) -> Duration {
        self.bucket(to).spend(bytes, Instant::now())
    }
}
