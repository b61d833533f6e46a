//! A token bucket: what is moved is held to a rate by waiting, and nothing is dropped.
//!
//! It lends: bytes are moved first, and whoever moved them waits until they are paid for. Those who share
//! a bucket wait one after the other, so that each has its turn.

use std::time::{Duration, Instant};

/// What is not used is kept for so long.
const BURST: Duration = Duration::from_millis(50);
/// So much of the rate is moved in a turn, that others need not wait long for theirs.
const TURN: u64 = 100;
/// The least that may be moved in a turn, in bytes: less would cost more than it is worth.
pub const LEAST_TURN: usize = 16 * 1024;

/// A rate, and what of it is used.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenBucket {
    /// Bytes a second; 0 is unlimited.
    rate: u64,
    paid_at: Option<Instant>,
}

impl TokenBucket {
    /// Sets the rate in bytes a second; 0 is unlimited. Debts remain.
    pub fn set_rate(&mut self, rate: u64) {
        self.rate = rate;
    }

    /// How many bytes to move at most before they are [spent](TokenBucket::spend).
    pub fn turn(&self) -> usize {
        match self.rate {
            0 => usize::MAX,
            rate => usize::try_from(rate / TURN).unwrap_or(usize::MAX).max(LEAST_TURN),
        }
    }

    /// How long it takes until what was moved is paid for.
    pub fn debt(&self, now: Instant) -> Duration {
        self.paid_at.map_or(Duration::ZERO, |paid| paid.saturating_duration_since(now))
    }

    /// Pays for bytes that were moved; returns how long to wait before more are.
    pub fn spend(&mut self, bytes: usize, now: Instant) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        let nanoseconds = (bytes as u64).saturating_mul(1_000_000_000) / self.rate;
        let kept = now.checked_sub(BURST).unwrap_or(now);
        let start = self.paid_at.map_or(kept, |paid| paid.max(kept));
        let paid = start.checked_add(Duration::from_nanos(nanoseconds)).unwrap_or(start);
        self.paid_at = Some(paid);
        paid.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bucket(rate: u64) -> TokenBucket {
        let mut bucket = TokenBucket::default();
        bucket.set_rate(rate);
        bucket
    }

    #[test]
    fn without_a_rate_nobody_waits() {
        let mut bucket = bucket(0);
        assert_eq!(bucket.turn(), usize::MAX);
        assert_eq!(bucket.spend(usize::MAX, Instant::now()), Duration::ZERO);
    }

    #[test]
    fn what_is_unused_is_kept_for_a_short_time() {
        let (mut bucket, start) = (bucket(1_000_000), Instant::now());
        let ms = Duration::from_millis;
        assert_eq!(bucket.spend(50_000, start), ms(0));
        assert_eq!(bucket.spend(20_000, start), ms(20));
        assert_eq!(bucket.spend(20_000, start), ms(40), "after the one before");
        assert_eq!(bucket.spend(10_000, start + ms(40)), ms(10));
        assert_eq!(bucket.spend(60_000, start + ms(10_000)), ms(10));
    }

    #[test]
    fn a_new_rate_holds_at_once() {
        let (mut bucket, start) = (bucket(1_000_000), Instant::now());
        bucket.spend(150_000, start);
        bucket.set_rate(10_000_000);
        assert_eq!(bucket.turn(), 100_000);
        assert_eq!(bucket.spend(100_000, start), Duration::from_millis(110));
        bucket.set_rate(0);
        assert_eq!(bucket.spend(100_000, start), Duration::ZERO);
    }

    proptest! {
        /// However they take turns, those who wait as they are told move no more than the rate allows,
        /// and who never pauses gets all of it.
        #[test]
        fn the_rate_is_kept(rate in 1_000..1_000_000_000_u64, sizes in prop::collection::vec(1..262_144_usize, 1..200)) {
            let (mut bucket, start) = (bucket(rate), Instant::now());
            let (mut now, mut moved) = (start, 0);
            for size in sizes {
                now += bucket.spend(size, now);
                moved += size as u64;
            }
            let time = (now - start + BURST).as_secs_f64();
            let least = moved as f64 / rate as f64;
            prop_assert!(time >= least - 1e-6 && time <= (least + 1e-6).max(BURST.as_secs_f64()));
        }
    }
}
