//! The rates that streams share, whichever threads they run on, and their turns.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::yield_now;
use tokio::time::sleep;

use super::{Progress, Side};
use crate::token_bucket::TokenBucket;

/// Bytes a direction may move before it lets other streams have their turn.
pub(super) const TURN: usize = 256 * 1024;
/// How far datagrams may be ahead of the rate; the next one is dropped.
const DATAGRAMS_AHEAD: Duration = Duration::from_millis(50);

/// A rate in each direction, for all streams and datagrams of a client together.
#[derive(Debug, Default)]
pub struct Pace {
    to_tunnel: Mutex<Lane>,
    to_lan: Mutex<Lane>,
}

/// One direction.
#[derive(Debug, Default)]
struct Lane {
    all: TokenBucket,
    /// Datagrams do not wait for streams: streams wait for them.
    datagrams: TokenBucket,
    /// Bytes moved since they were last asked for.
    moved: u64,
}

impl Lane {
    fn spend(&mut self, bytes: usize, now: Instant) -> Duration {
        self.moved = self.moved.saturating_add(bytes as u64);
        self.all.spend(bytes, now)
    }
}

impl Pace {
    fn lane(&self, to: Side) -> MutexGuard<'_, Lane> {
        let lane = match to {
            Side::Tunnel => &self.to_tunnel,
            Side::Lan => &self.to_lan,
        };
        lane.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the rate towards a side in bytes a second; 0 is unlimited.
    pub fn set_rate(&self, to: Side, rate: u64) {
        let mut lane = self.lane(to);
        lane.all.set_rate(rate);
        lane.datagrams.set_rate(rate);
    }

    /// Bytes moved towards a side since this was last asked.
    pub fn take_moved(&self, to: Side) -> u64 {
        std::mem::take(&mut self.lane(to).moved)
    }

    pub(super) fn turn(&self, to: Side) -> usize {
        self.lane(to).all.turn()
    }

    pub(super) fn spend(&self, to: Side, bytes: usize) -> Duration {
        self.lane(to).spend(bytes, Instant::now())
    }

    fn debt(&self, to: Side) -> Duration {
        self.lane(to).all.debt(Instant::now())
    }

    /// Pays for a datagram, unless datagrams alone use up the rate: whether it may be sent.
    pub fn admit(&self, to: Side, bytes: usize, now: Instant) -> bool {
        let mut lane = self.lane(to);
        let admitted = lane.datagrams.debt(now) <= DATAGRAMS_AHEAD;
        if admitted {
            lane.datagrams.spend(bytes, now);
            lane.spend(bytes, now);
        }
        admitted
    }
}

/// Counts what a direction moves at a stretch, and holds it to the pace.
pub(super) struct Turn<'a> {
    spent: usize,
    is_ahead: bool,
    to: Side,
    pace: Option<&'a Pace>,
}

impl<'a> Turn<'a> {
    pub(super) fn new(to: Side, progress: &Progress<'a>) -> Turn<'a> {
        let pace = progress.counters.pace.as_deref();
        Turn { spent: 0, is_ahead: false, to, pace }
    }

    /// The most to read at a time, in bytes.
    pub(super) fn room(&self) -> usize {
        self.pace.map_or(usize::MAX, |pace| pace.turn(self.to))
    }

    /// Takes `bytes` from this turn, and lets the other tasks run when it is used up: the runtime
    /// does not see a stream that is always ready. Whether it is ahead of the pace, and has to
    /// [wait](Turn::wait) before it moves more.
    pub(super) async fn spend(&mut self, bytes: usize) -> bool {
        self.spent = self.spent.saturating_add(bytes);
        self.is_ahead = self.pace.is_some_and(|pace| !pace.spend(self.to, bytes).is_zero());
        if !self.is_ahead && self.spent >= TURN {
            self.spent = 0;
            yield_now().await;
        }
        self.is_ahead
    }

    /// Waits for the pace; meanwhile nothing should be held that is lent.
    pub(super) async fn wait(&mut self) {
        if let Some(pace) = self.pace
            && std::mem::take(&mut self.is_ahead)
        {
            self.spent = 0;
            sleep(pace.debt(self.to)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_keep_the_rate_and_streams_wait_for_them() {
        let (pace, start) = (Pace::default(), Instant::now());
        let second = Duration::from_secs(1);
        let sent = |from: Instant| {
            let times = (0..1000).map(|ms| from + ms * second / 1000);
            times.filter(|&now| pace.admit(Side::Lan, 1000, now)).count()
        };
        assert_eq!(sent(start), 1000, "unlimited");
        pace.set_rate(Side::Lan, 100_000);
        let admitted = sent(start + second);
        assert!((100..=112).contains(&admitted), "{admitted} kB in a second");
        let mut lane = pace.lane(Side::Lan);
        let debt = lane.all.debt(start + 2 * second);
        assert!(debt > DATAGRAMS_AHEAD / 2, "streams pay for them: {debt:?}");
        // Streams that are far ahead of the rate hold back no datagram.
        lane.all.spend(1_000_000, start + 2 * second);
        drop(lane);
        assert!(pace.admit(Side::Lan, 1000, start + 3 * second));
        assert!(pace.admit(Side::Tunnel, 1000, start), "the other direction has a rate of its own");
    }
}
