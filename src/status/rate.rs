//! Rates out of byte counters.

use std::time::{Duration, Instant};

/// Samples closer together than this are put off: their rate would be noise.
const SHORTEST: Duration = Duration::from_millis(50);
/// The time constant of the average, in seconds.
const TIME_CONSTANT: f64 = 1.0;

/// Turns samples of a byte counter into a smoothed rate.
///
/// The average is exponential with a time constant of one second and does not depend on how often
/// it is sampled. A counter that goes back (its device was made anew) starts the count anew, and
/// the rate decays as if nothing had passed in between.
#[derive(Clone, Debug, Default)]
pub struct RateMeter {
    last: Option<(Instant, u64)>,
    bits_per_second: Option<f64>,
}

impl RateMeter {
    /// Takes a sample: the counter showed `bytes` at `now`. Spurious calls do no harm.
    pub fn sample(&mut self, now: Instant, bytes: u64) {
        let Some((then, before)) = self.last else {
            self.last = Some((now, bytes));
            return;
        };
        let elapsed = now.saturating_duration_since(then);
        if elapsed < SHORTEST {
            return;
        }
        self.last = Some((now, bytes));
        // Most connections are idle, and the average takes long to compute where there is no FPU.
        if bytes == before && self.bps() == 0 {
            self.bits_per_second = Some(0.0);
            return;
        }
        let seconds = elapsed.as_secs_f64();
        let current = bytes.saturating_sub(before) as f64 * 8.0 / seconds;
        self.bits_per_second = Some(match self.bits_per_second {
            None => current,
            Some(average) => {
                average + (current - average) * (1.0 - (-seconds / TIME_CONSTANT).exp())
            }
        });
    }

    /// The rate at the last sample in bits a second; 0 before two samples were taken.
    pub fn bps(&self) -> u64 {
        // A cast from a float saturates, and a rate below one bit a second is none.
        self.bits_per_second.unwrap_or(0.0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEGABYTE: u64 = 1_000_000;

    fn at(start: Instant, milliseconds: u64) -> Instant {
        start + Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_steady_flow_shows_its_rate_from_the_second_sample_on() {
        let start = Instant::now();
        let mut meter = RateMeter::default();
        for second in 0..5 {
            meter.sample(at(start, second * 1000), 7 + second * MEGABYTE);
            assert_eq!(meter.bps(), if second == 0 { 0 } else { 8_000_000 });
        }
    }

    #[test]
    fn a_change_arrives_within_seconds_however_often_it_is_sampled() {
        let start = Instant::now();
        for period in [100, 250, 1000] {
            let mut meter = RateMeter::default();
            meter.sample(start, 0);
            meter.sample(at(start, period), 0);
            for step in 1..=2000 / period {
                let sent = step * period * MEGABYTE / 1000;
                meter.sample(at(start, period + step * period), sent);
            }
            // After two time constants 1 - e^-2 of the change has arrived.
            assert_eq!(meter.bps() / 1000, 6_917, "sampled each {period} ms");
        }
    }

    #[test]
    fn a_counter_that_goes_back_makes_no_peak() {
        let start = Instant::now();
        let mut meter = RateMeter::default();
        meter.sample(start, 500 * MEGABYTE);
        meter.sample(at(start, 1000), 501 * MEGABYTE);
        meter.sample(at(start, 2000), 3);
        assert!(meter.bps() < 8_000_000);
        meter.sample(at(start, 3000), 3 + MEGABYTE);
        assert!(meter.bps() > 4_000_000 && meter.bps() < 8_000_000, "{}", meter.bps());
    }

    #[test]
    fn samples_at_the_same_time_or_in_the_past_change_nothing() {
        let start = Instant::now();
        let mut meter = RateMeter::default();
        meter.sample(at(start, 1000), 0);
        meter.sample(at(start, 1000), MEGABYTE);
        meter.sample(start, 2 * MEGABYTE);
        assert_eq!(meter.bps(), 0);
        meter.sample(at(start, 2000), MEGABYTE);
        assert_eq!(meter.bps(), 8_000_000);
    }

    #[test]
    fn the_largest_counters_do_not_overflow() {
        let start = Instant::now();
        let mut meter = RateMeter::default();
        meter.sample(start, 0);
        meter.sample(at(start, 50), u64::MAX);
        assert_eq!(meter.bps(), u64::MAX);
    }
}
