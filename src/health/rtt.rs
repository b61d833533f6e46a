//! Round-trip times, smoothed as TCP does it (RFC 6298).

use std::collections::VecDeque;
use std::time::Duration;

/// Samples that the percentile is taken over.
const RECENT: usize = 64;
/// What so many samples in a row agree on counts at once: after an outage the few late replies must
/// not make the path look far for long.
const AGREE: usize = 4;
/// Samples after which the least RTT is looked for anew: a path may have become longer for good.
const EPOCH: u16 = 512;

/// The round-trip times of one path.
#[derive(Clone, Debug, Default)]
pub struct Rtt {
    smoothed: Option<Duration>,
    variation: Duration,
    /// The least of this epoch and of the one before.
    least: [Option<Duration>; 2],
    /// Samples in this epoch.
    taken: u16,
    jitter: Duration,
    recent: VecDeque<Duration>,
}

impl Rtt {
    /// Takes a sample.
    pub fn sample(&mut self, rtt: Duration) {
        if let Some(&last) = self.recent.back() {
            let difference = last.abs_diff(rtt);
            self.jitter = (self.jitter * 15 + difference) / 16;
        }
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(rtt);
        if self.taken == EPOCH {
            self.taken = 0;
            self.least = [None, self.least[0]];
        }
        self.taken += 1;
        self.least[0] = Some(self.least[0].map_or(rtt, |least| least.min(rtt)));
        match self.smoothed {
            None => {
                self.smoothed = Some(rtt);
                self.variation = rtt / 2;
            }
            Some(smoothed) => {
                self.variation = (self.variation * 3 + smoothed.abs_diff(rtt)) / 4;
                self.smoothed = Some((smoothed * 7 + rtt) / 8);
            }
        }
        self.heed_agreement();
    }

    fn heed_agreement(&mut self) {
        if self.recent.len() < AGREE {
            return;
        }
        let last = || self.recent.iter().rev().take(AGREE).copied();
        if let (Some(longest), Some(least)) = (last().max(), last().min())
            && self.smoothed > Some(longest)
        {
            self.smoothed = Some(longest);
            self.variation = self.variation.min(longest - least);
        }
    }

    /// Smoothed.
    pub fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }

    /// The least of the last 512 at least.
    pub fn least(&self) -> Option<Duration> {
        self.least.into_iter().flatten().min()
    }

    /// The 95th percentile of the last 64.
    pub fn p95(&self) -> Option<Duration> {
        let mut sorted: Vec<_> = self.recent.iter().copied().collect();
        sorted.sort_unstable();
        let rank = (sorted.len() * 95).div_ceil(100);
        sorted.get(rank.checked_sub(1)?).copied()
    }

    /// The mean difference of neighbours, as RTP takes it (RFC 3550, section 6.4.1).
    pub fn jitter(&self) -> Option<Duration> {
        (self.recent.len() > 1).then_some(self.jitter)
    }

    /// How long an answer may take: the smoothed RTT and four times its variation, at least
    /// `margin`; `None` before the first sample.
    pub fn timeout(&self, margin: Duration) -> Option<Duration> {
        let smoothed = self.smoothed?;
        Some(smoothed.saturating_add(self.variation.saturating_mul(4).max(margin)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn nothing_is_known_at_first() {
        let rtt = Rtt::default();
        assert_eq!((rtt.smoothed(), rtt.least(), rtt.p95()), (None, None, None));
        assert_eq!((rtt.jitter(), rtt.timeout(MS)), (None, None));
    }

    #[test]
    fn a_steady_path_has_no_jitter_and_the_least_margin() {
        let mut rtt = Rtt::default();
        for _ in 0..200 {
            rtt.sample(20 * MS);
        }
        assert_eq!((rtt.smoothed(), rtt.least()), (Some(20 * MS), Some(20 * MS)));
        assert_eq!(rtt.p95(), Some(20 * MS));
        assert_eq!(rtt.jitter(), Some(Duration::ZERO));
        assert_eq!(rtt.timeout(50 * MS), Some(70 * MS));
    }

    #[test]
    fn a_path_that_became_longer_for_good_has_a_longer_least() {
        let mut rtt = Rtt::default();
        rtt.sample(20 * MS);
        (0..2 * EPOCH).for_each(|_| rtt.sample(30 * MS));
        assert_eq!(rtt.least(), Some(30 * MS));
    }

    #[test]
    fn late_replies_are_soon_forgotten() {
        let mut rtt = Rtt::default();
        (0..20).for_each(|_| rtt.sample(20 * MS));
        (0..3).for_each(|_| rtt.sample(2000 * MS));
        assert!(rtt.timeout(MS) > Some(2000 * MS));
        (0..4).for_each(|_| rtt.sample(30 * MS));
        assert_eq!((rtt.smoothed(), rtt.timeout(50 * MS)), (Some(30 * MS), Some(80 * MS)));
    }

    #[test]
    fn the_percentile_leaves_the_rare_outlier_out() {
        let mut rtt = Rtt::default();
        for n in 0..64 {
            rtt.sample(if n % 32 == 0 { 500 * MS } else { 20 * MS });
        }
        assert_eq!(rtt.p95(), Some(20 * MS));
        for n in 0..64 {
            rtt.sample(if n % 8 == 0 { 500 * MS } else { 20 * MS });
        }
        assert_eq!(rtt.p95(), Some(500 * MS));
        assert!(rtt.jitter() > Some(40 * MS));
    }
}
