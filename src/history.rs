//! What each uplink carried: a sample for each second of the last ten minutes, and for each minute of
//! the last day.
//!
//! A sample takes 8 bytes, so that an uplink's history takes 16 KiB at most.

use std::collections::VecDeque;
use std::time::Instant;

use litemap::LiteMap;
use serde::Serialize;

use crate::net::Counters;

/// Seconds that are remembered one by one.
const SECONDS: usize = 600;
/// Seconds in a minute, which are remembered as their average.
const MINUTE: u64 = 60;
/// Minutes that are remembered one by one.
const MINUTES: usize = 24 * 60;

/// How finely a history is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// Each second of the last ten minutes.
    Seconds,
    /// Each minute of the last day.
    Minutes,
}

impl Span {
    /// The span of this name: `seconds` or `minutes`.
    pub fn of_name(name: &str) -> Option<Span> {
        match name {
            "seconds" => Some(Span::Seconds),
            "minutes" => Some(Span::Minutes),
            _ => None,
        }
    }
}

/// Bytes received and sent in a second.
type Sample = [u32; 2];

/// The latest samples, so many at most.
#[derive(Debug, Default)]
struct Ring(VecDeque<Sample>);

impl Ring {
    fn push(&mut self, sample: Sample, limit: usize) {
        if self.0.len() >= limit {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    /// The last samples, `last` at most, of one direction.
    fn bps(&self, way: usize, last: usize) -> Vec<u64> {
        let first = self.0.len().saturating_sub(last);
        let bytes = self.0.iter().skip(first).filter_map(|sample| sample.get(way));
        bytes.map(|&bytes| u64::from(bytes) * 8).collect()
    }
}

#[derive(Debug, Default)]
struct Series {
    last: Option<Counters>,
    seconds: Ring,
    /// Bytes of the minute that is not over.
    minute: [u64; 2],
    minutes: Ring,
}

impl Series {
    /// Adds `passed` seconds, in which the counters came to what they show; they count from anew where
    /// they show less than before.
    fn add(&mut self, counters: Option<Counters>, passed: u64, begun: u64) {
        let before = std::mem::replace(&mut self.last, counters);
        let moved = before.zip(counters).map(|(before, now)| {
            [(before.rx_bytes, now.rx_bytes), (before.tx_bytes, now.tx_bytes)]
                .map(|(before, now)| now.saturating_sub(before) / passed.max(1))
        });
        let moved = moved.unwrap_or_default();
        let sample = moved.map(|bytes| u32::try_from(bytes).unwrap_or(u32::MAX));
        // Nobody was there to see longer pauses: the machine slept.
        for second in begun..begun.saturating_add(passed.min(SECONDS as u64)) {
            self.seconds.push(sample, SECONDS);
            for (sum, bytes) in self.minute.iter_mut().zip(moved) {
                *sum = sum.saturating_add(bytes);
            }
            if (second + 1).is_multiple_of(MINUTE) {
                let average = std::mem::take(&mut self.minute).map(|bytes| bytes / MINUTE);
                let average = average.map(|bytes| u32::try_from(bytes).unwrap_or(u32::MAX));
                self.minutes.push(average, MINUTES);
            }
        }
    }
}

/// The histories of all uplinks.
#[derive(Debug)]
pub struct History {
    begun: Instant,
    /// Whole seconds that were taken account of.
    seconds: u64,
    by_name: LiteMap<String, Series>,
}

/// Samples of an uplink in bits a second, the oldest first; the last ends with the last whole second, or
/// minute, of all uplinks.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub struct Told {
    /// Received.
    pub rx_bps: Vec<u64>,
    /// Sent.
    pub tx_bps: Vec<u64>,
}

impl History {
    /// Nothing yet.
    pub fn new(now: Instant) -> History {
        History { begun: now, seconds: 0, by_name: LiteMap::new() }
    }

    /// Takes the counters of all uplinks there are, `None` of one without a device; to be called about
    /// once a second. An uplink that is no longer among them is forgotten.
    pub fn count(&mut self, now: Instant, counters: &LiteMap<String, Option<Counters>>) {
        let seconds = now.saturating_duration_since(self.begun).as_secs();
        let passed = seconds.saturating_sub(self.seconds);
        if passed == 0 {
            return;
        }
        let begun = std::mem::replace(&mut self.seconds, seconds);
        self.by_name.retain(|name, _| counters.contains_key(name));
        for (name, counters) in counters {
            self.by_name.entry(name.clone()).or_default().add(*counters, passed, begun);
        }
    }

    /// The rates of an uplink in the last minute, both directions added, as so many means.
    pub fn recent(&self, name: &str, means: usize) -> Vec<u64> {
        let Some(Series { seconds: Ring(seconds), .. }) = self.by_name.get(name) else {
            return Vec::new();
        };
        let each = (60 / means.max(1)).max(1);
        let mut latest: Vec<u64> =
            seconds.iter().map(|[rx, tx]| (u64::from(*rx) + u64::from(*tx)) * 8).collect();
        latest.drain(..latest.len().saturating_sub(60));
        latest.reverse();
        let mean = |chunk: &[u64]| chunk.iter().sum::<u64>() / chunk.len().max(1) as u64;
        let mut recent: Vec<u64> = latest.chunks(each).map(mean).collect();
        recent.reverse();
        recent
    }

    /// The number of the last sample: who comes again knows by it how many are new.
    pub fn end(&self, span: Span) -> u64 {
        match span {
            Span::Seconds => self.seconds,
            Span::Minutes => self.seconds / MINUTE,
        }
    }

    /// The last samples of the uplinks, `last` at most, by name.
    pub fn tell(&self, span: Span, last: usize) -> LiteMap<&str, Told> {
        let told = |series: &Series| {
            let ring = match span {
                Span::Seconds => &series.seconds,
                Span::Minutes => &series.minutes,
            };
            Told { rx_bps: ring.bps(0, last), tx_bps: ring.bps(1, last) }
        };
        self.by_name.iter().map(|(name, series)| (name.as_str(), told(series))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn wan(rx_bytes: u64, tx_bytes: u64) -> LiteMap<String, Option<Counters>> {
        LiteMap::from_iter([("wan".to_owned(), Some(Counters { rx_bytes, tx_bytes }))])
    }

    /// A history of `wan` with these counters at these times in milliseconds.
    fn history(looks: &[(u64, u64, u64)]) -> History {
        let begun = Instant::now();
        let mut history = History::new(begun);
        for &(ms, rx, tx) in looks {
            history.count(begun + Duration::from_millis(ms), &wan(rx, tx));
        }
        history
    }

    fn rx(history: &History, span: Span) -> Vec<u64> {
        history.tell(span, MINUTES)[&"wan"].rx_bps.clone()
    }

    #[test]
    fn each_second_has_its_sample() {
        let history =
            history(&[(1000, 5000, 0), (2001, 5100, 7), (2900, 6000, 7), (3002, 6100, 7)]);
        assert_eq!(rx(&history, Span::Seconds), [0, 800, 8000]);
        assert_eq!(history.tell(Span::Seconds, MINUTES)[&"wan"].tx_bps, [0, 56, 0]);
        assert_eq!(rx(&history, Span::Minutes), [0; 0]);
    }

    #[test]
    fn the_last_minute_in_few_means() {
        let looks: Vec<_> =
            (1..=100).map(|second| (second * 1000, second * 100, second * 25)).collect();
        let steady = history(&looks);
        assert_eq!(steady.recent("wan", 20), [1000; 20]);
        let short = history(&[(1000, 0, 0), (2000, 300, 0), (3000, 300, 0), (4000, 300, 600)]);
        assert_eq!(short.recent("wan", 20), [0, 2400]);
        assert_eq!(short.recent("lte", 20), [0; 0]);
    }

    #[test]
    fn who_comes_again_is_told_what_is_new() {
        let history = history(&[(1000, 0, 0), (2000, 100, 0), (3000, 300, 0)]);
        assert_eq!((history.end(Span::Seconds), history.end(Span::Minutes)), (3, 0));
        assert_eq!(history.tell(Span::Seconds, 2)[&"wan"].rx_bps, [800, 1600]);
        assert_eq!(history.tell(Span::Seconds, 0)[&"wan"].rx_bps, [0; 0]);
    }

    #[test]
    fn seconds_without_a_look_share_what_was_moved() {
        let history = history(&[(1000, 0, 0), (4000, 300, 0)]);
        assert_eq!(rx(&history, Span::Seconds), [0, 800, 800, 800]);
    }

    #[test]
    fn a_device_made_anew_counts_from_anew() {
        let history = history(&[(1000, 9000, 0), (2000, 10, 0), (3000, 20, 0)]);
        assert_eq!(rx(&history, Span::Seconds), [0, 0, 80]);
    }

    #[test]
    fn minutes_are_averages_and_old_samples_make_way() {
        let looks: Vec<_> = (1..=2000).map(|second| (second * 1000, second * 100, 0)).collect();
        let history = history(&looks);
        assert_eq!(rx(&history, Span::Seconds), [800; SECONDS]);
        let minutes = rx(&history, Span::Minutes);
        assert_eq!((minutes.len(), &minutes[..2]), (33, &[784, 800][..]));
    }

    #[test]
    fn a_pause_however_long_takes_no_more_room() {
        let day = 86_400_000;
        let history = history(&[(1000, 0, 0), (40 * day, u64::MAX, 0), (41 * day, 0, 0)]);
        assert_eq!(rx(&history, Span::Seconds).len(), SECONDS);
        assert!(rx(&history, Span::Minutes).len() <= MINUTES);
    }

    #[test]
    fn an_uplink_without_a_device_moves_nothing_and_one_not_configured_is_forgotten() {
        let begun = Instant::now();
        let mut history = History::new(begun);
        let at = |seconds| begun + Duration::from_secs(seconds);
        history.count(at(1), &wan(0, 0));
        history.count(at(2), &LiteMap::from_iter([("wan".to_owned(), None)]));
        history.count(at(3), &wan(1000, 0));
        assert_eq!(rx(&history, Span::Seconds), [0, 0, 0]);
        history.count(at(4), &LiteMap::new());
        assert!(history.tell(Span::Seconds, MINUTES).is_empty());
    }
}
