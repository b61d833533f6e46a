//! Never slower than the best uplinks alone: an uplink that may slow the others down has to earn its
//! place.
//!
//! Data arrive in order, so all of them wait for what went over the longest path. A far uplink can
//! make a bond much slower than the near ones are alone, or faster, if it is fat: 5 Mbit/s at 300 ms
//! beside 100 Mbit/s at 10 ms leave 20 Mbit/s, 100 Mbit/s at 300 ms beside 10 Mbit/s are a gain. Which
//! it is shows only under load. So a far uplink stands by until the others carry a steady load, is
//! tried then, and stays if the bond became faster.
//!
//! So do all wait for what is lost and sent again. A thin uplink that loses packets costs a fast one
//! more than it adds: 20 Mbit/s with one per cent of loss take a tenth from 300 Mbit/s. Under a steady
//! load it is seen what the others do without it, and it comes back if that was less.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use litemap::LiteMap;

/// An uplink is far when its RTT is this many times the least, and this much longer.
const FAR_TIMES: u32 = 4;
const FAR_BEHIND: Duration = Duration::from_millis(100);
/// A load is steady when its rates of this many seconds are alike: none below this many percent of
/// the highest.
const STEADY_SECONDS: usize = 3;
const STEADY_PERCENT: u64 = 80;
/// Below this rate, in bits a second, nothing is tried: nobody would notice.
const LEAST_LOAD: u64 = 1_000_000;
/// How long a trial lasts: slow start, and the seconds that count.
const TRIAL: Duration = Duration::from_secs(6);
/// A trial is over when no second of it reached so many percent of the rate without the uplink,
/// after the first second, the second one and so on: what begins slowly may still be a gain.
const PATIENCE: [u64; 3] = [50, 75, 90];
/// What a far uplink has to add, in percent of the rate without it.
const GAIN_PERCENT: u64 = 5;
/// A verdict holds this long at first, twice as long each time it is confirmed, up to the last.
const FIRST_VERDICT: Duration = Duration::from_secs(4 * 60);
const LAST_VERDICT: Duration = Duration::from_secs(64 * 60);
/// A load this many percent of the one tried with is tried again sooner: more may be of use. Not at once,
/// for some loads go up and down.
const MORE_LOAD_PERCENT: u64 = 150;
const MORE_LOAD_AFTER: Duration = Duration::from_secs(60);
/// An uplink is thin when it carries less than one in so many bits.
const THIN: u64 = 10;
/// It is lossy when it lost so many segments in each of the last seconds. A connection needs some of
/// them to find out that its losses are random, and to fill the uplink then.
const LOST: u64 = 3;
const LOSSY_SECONDS: usize = 5;

/// Why an uplink stands by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Burden {
    /// What may slow the others down.
    pub kind: BurdenKind,
    /// Whether it has made the bond slower, or no faster, and when it is tried again; `None` before
    /// the first trial.
    pub again: Option<Duration>,
}

/// What may slow the other uplinks down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BurdenKind {
    /// Its round trip takes much longer.
    Far {
        /// Its RTT.
        rtt: Duration,
        /// The least of the others.
        least: Duration,
    },
    /// It loses packets and carries little.
    Lossy,
}

impl fmt::Display for Burden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let minutes = self.again.map(|again| again.as_secs().div_ceil(60));
        f.write_str(match minutes {
            None => "may make the bond slower: ",
            Some(_) => "makes the bond no faster: ",
        })?;
        match self.kind {
            BurdenKind::Far { rtt, least } => {
                write!(f, "{} ms behind {} ms", rtt.as_millis(), least.as_millis())?;
            }
            BurdenKind::Lossy => f.write_str("it carries little and loses packets")?,
        }
        match (minutes, self.kind) {
            (Some(minutes), _) => write!(f, "; tried again in {minutes} min"),
            (None, BurdenKind::Far { .. }) => f.write_str("; tried under the next load"),
            (None, BurdenKind::Lossy) => f.write_str("; trying without it"),
        }
    }
}

/// How a far uplink fares.
#[derive(Clone, Debug, PartialEq)]
enum Place {
    /// It was never tried.
    New,
    /// It is being tried since then.
    Trial(Instant),
    /// It was tried: when, until when the verdict holds, and whether it is in force.
    Judged { since: Instant, until: Instant, earned: bool },
}

/// What is known of an uplink that is, or was, a burden.
#[derive(Clone, Debug)]
struct Candidate {
    kind: BurdenKind,
    place: Place,
    /// The rate without it, at its last trial, in bits a second.
    without: u64,
    /// How long the next verdict holds.
    holds: Duration,
}

/// Decides which uplinks stand by that may slow the others down; learns from the rates while one is
/// tried.
#[derive(Clone, Debug, Default)]
pub struct Floor {
    candidates: LiteMap<u8, Candidate>,
    /// For how many seconds in a row an uplink has been thin and lossy, by slot.
    lossy: LiteMap<u8, usize>,
    /// Rates of all uplinks together in bits a second, a second each, the newest last.
    rates: VecDeque<u64>,
}

impl Floor {
    /// Takes the least RTT known of each live bond uplink, by slot. What is not far has its place;
    /// what was learnt of an uplink is kept until it is.
    pub fn set_rtts(&mut self, rtts: &LiteMap<u8, Duration>) {
        let least = rtts.values().min().copied().unwrap_or_default();
        let is_far = |rtt: Duration| rtt >= least * FAR_TIMES && rtt >= least + FAR_BEHIND;
        self.candidates.retain(|slot, candidate| {
            candidate.kind == BurdenKind::Lossy || rtts.get(slot).is_none_or(|rtt| is_far(*rtt))
        });
        for (&slot, &rtt) in rtts.iter().filter(|(_, rtt)| is_far(**rtt)) {
            let kind = BurdenKind::Far { rtt, least };
            let candidate =
                self.candidates.entry(slot).or_insert_with(|| Candidate::new(kind, Place::New));
            candidate.kind = kind;
        }
    }

    /// Takes the rates of the uplinks, both directions added, in bits a second, and the segments that
    /// each of them lost, by slot; to be called once a second.
    pub fn on_second(&mut self, rates: &LiteMap<u8, u64>, lost: &LiteMap<u8, u64>, now: Instant) {
        let total = rates.values().sum();
        for (&slot, &rate) in rates {
            let lost = lost.get(&slot).copied().unwrap_or_default();
            let is_lossy = lost >= LOST && rate < total / THIN;
            let seconds = self.lossy.entry(slot).or_default();
            *seconds = if is_lossy { seconds.saturating_add(1) } else { 0 };
            if *seconds >= LOSSY_SECONDS {
                // It is in use, and whether it should be is to be seen.
                let place = Place::Judged { since: now, until: now, earned: true };
                self.candidates
                    .entry(slot)
                    .or_insert_with(|| Candidate::new(BurdenKind::Lossy, place));
            }
        }
        self.on_rate(total, now);
    }

    fn on_rate(&mut self, rate: u64, now: Instant) {
        if self.rates.len() == STEADY_SECONDS {
            self.rates.pop_front();
        }
        self.rates.push_back(rate);
        let load = self.steady_load();
        let most = self.rates.iter().copied().max().unwrap_or_default();
        let mut tried = false;
        for (_, candidate) in &mut self.candidates {
            if let Place::Trial(since) = candidate.place {
                tried = true;
                if candidate.judge(since, rate, most, now) {
                    self.rates.clear();
                }
            }
        }
        let Some(load) = load.filter(|_| !tried) else { return };
        let lossy = |slot: &u8| self.lossy.get(slot).is_some_and(|row| *row >= LOSSY_SECONDS);
        let due = |(slot, candidate): &(&u8, &mut Candidate)| {
            let burdens = candidate.kind != BurdenKind::Lossy || lossy(slot);
            candidate.is_due(load, burdens, now)
        };
        if let Some((_, candidate)) = self.candidates.iter_mut().find(due) {
            candidate.begin(load, now);
            self.rates.clear();
        }
    }

    /// The uplinks that stand by, and why.
    pub fn standing_by(&self, now: Instant) -> LiteMap<u8, Burden> {
        let standing = self.candidates.iter().filter_map(|(&slot, candidate)| {
            let again = match candidate.place {
                Place::New => None,
                Place::Judged { until, earned: false, .. } => {
                    Some(until.saturating_duration_since(now))
                }
                _ => return None,
            };
            Some((slot, Burden { kind: candidate.kind, again }))
        });
        standing.collect()
    }

    /// The mean rate of the last seconds, if it was steady and worth a trial.
    fn steady_load(&self) -> Option<u64> {
        let (least, most) = (self.rates.iter().min()?, self.rates.iter().max()?);
        let steady = *least >= most.saturating_mul(STEADY_PERCENT) / 100 && *least >= LEAST_LOAD;
        let mean = self.rates.iter().sum::<u64>() / self.rates.len() as u64;
        (steady && self.rates.len() == STEADY_SECONDS).then_some(mean)
    }
}

impl Candidate {
    fn new(kind: BurdenKind, place: Place) -> Candidate {
        Candidate { kind, place, without: 0, holds: FIRST_VERDICT }
    }

    /// Whether it is time to try it or, while it still is a burden, to see what the others do
    /// without it.
    fn is_due(&self, load: u64, burdens: bool, now: Instant) -> bool {
        match self.place {
            Place::New => true,
            Place::Trial(_) => false,
            Place::Judged { until, earned: true, .. } => burdens && now >= until,
            Place::Judged { since, until, earned: false } => {
                let more = load >= self.without.saturating_mul(MORE_LOAD_PERCENT) / 100;
                now >= until || more && now >= since + MORE_LOAD_AFTER
            }
        }
    }

    /// Begins a trial; one that has its place first has to stand by, as if it were new.
    fn begin(&mut self, load: u64, now: Instant) {
        if matches!(self.place, Place::Judged { earned: true, .. }) {
            self.place = Place::New;
            return;
        }
        self.place = Place::Trial(now);
        self.without = load;
    }

    /// Ends the trial when it is over; whether it is.
    fn judge(&mut self, since: Instant, rate: u64, most: u64, now: Instant) -> bool {
        let lasted = now.saturating_duration_since(since);
        let hurts = most < self.without.saturating_mul(bearable(lasted)) / 100;
        if lasted < TRIAL && !hurts {
            return false;
        }
        let needed = self.without.saturating_mul(100 + GAIN_PERCENT) / 100;
        let (since, until) = (now, now + self.holds);
        self.place = Place::Judged { since, until, earned: rate >= needed };
        self.holds = (self.holds * 2).min(LAST_VERDICT);
        true
    }
}

/// The percentage of the rate without the uplink that a trial has to have reached by then.
fn bearable(lasted: Duration) -> u64 {
    let seconds = usize::try_from(lasted.as_secs()).unwrap_or(usize::MAX).min(PATIENCE.len());
    seconds.checked_sub(1).and_then(|index| PATIENCE.get(index)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const MBIT: u64 = 1_000_000;
    const MINUTE: Duration = Duration::from_secs(60);

    /// Uplinks 0 and 1 with these RTTs, and a clock.
    struct Test {
        floor: Floor,
        now: Instant,
    }

    impl Test {
        fn new(rtts: [u32; 2]) -> Test {
            let mut test = Test { floor: Floor::default(), now: Instant::now() };
            test.rtts(rtts);
            test
        }

        fn rtts(&mut self, rtts: [u32; 2]) {
            let rtts = (0..).zip(rtts.map(|rtt| rtt * MS));
            self.floor.set_rtts(&rtts.collect());
        }

        /// Uplink 1 stands by.
        fn stands_by(&self) -> bool {
            let standing = self.floor.standing_by(self.now);
            assert!(!standing.contains_key(&0), "the nearest never stands by");
            standing.contains_key(&1)
        }

        fn reason(&self) -> String {
            self.floor.standing_by(self.now)[&1].to_string()
        }

        /// A second with these rates in Mbit/s and so many segments lost on uplink 1.
        fn second(&mut self, rates: [u64; 2], lost: u64) {
            let rates = (0..).zip(rates.map(|rate| rate * MBIT));
            let lost = LiteMap::from_iter([(1, lost)]);
            self.floor.on_second(&rates.collect(), &lost, self.now);
        }

        /// Some seconds at the rate that the bond has with uplink 1, or without it; what becomes
        /// of uplink 1, a letter a second: `-` stands by, `+` is in use.
        fn load(&mut self, seconds: usize, without: u64, with: u64) -> String {
            let second = |test: &mut Test| {
                let rate = if test.stands_by() { without } else { with };
                test.now += Duration::from_secs(1);
                test.second([rate, 0], 0);
                if test.stands_by() { '-' } else { '+' }
            };
            (0..seconds).map(|_| second(self)).collect()
        }
    }

    #[test]
    fn an_uplink_that_is_not_far_behind_is_never_in_question() {
        for rtts in [[10, 10], [1, 100], [30, 119], [60, 200]] {
            let mut test = Test::new(rtts);
            assert_eq!(test.load(8, 100, 50), "++++++++", "{rtts:?}");
        }
    }

    #[test]
    fn one_that_makes_the_bond_slower_is_tried_briefly_and_stands_by() {
        let mut test = Test::new([10, 300]);
        let before = "may make the bond slower: 300 ms behind 10 ms; tried under the next load";
        assert_eq!(test.reason(), before);
        assert_eq!(test.load(12, 100, 20), "--+---------");
        let after = "makes the bond no faster: 300 ms behind 10 ms; tried again in 4 min";
        test.now -= Duration::from_secs(8);
        assert_eq!(test.reason(), after);
    }

    #[test]
    fn a_trial_is_over_the_sooner_the_worse_it_goes() {
        for (rate, seen) in [(49, "--+---"), (51, "--++--"), (76, "--+++-")] {
            assert_eq!(Test::new([10, 300]).load(6, 100, rate), seen, "{rate}");
        }
        // Slow start takes its time.
        let mut test = Test::new([10, 300]);
        assert_eq!(test.load(4, 100, 60), "--++");
        assert_eq!(test.load(1, 100, 80), "+");
        assert_eq!(test.load(8, 100, 150), "++++++++");
    }

    #[test]
    fn one_that_makes_it_hardly_faster_stands_by_too() {
        let mut test = Test::new([10, 300]);
        assert_eq!(test.load(12, 100, 103), "--++++++----");
    }

    #[test]
    fn one_that_makes_it_faster_earns_its_place() {
        let mut test = Test::new([10, 600]);
        assert_eq!(test.load(12, 10, 60), "--++++++++++");
        // After some time it is seen what the others do without it.
        test.now += 4 * MINUTE;
        assert_eq!(test.load(12, 10, 60), "---+++++++++");
    }

    #[test]
    fn trials_become_rare_unless_the_load_grows() {
        let mut test = Test::new([10, 300]);
        let mut waits = Vec::new();
        for _ in 0..7 {
            while test.stands_by() {
                test.load(1, 100, 20);
            }
            while !test.stands_by() {
                test.load(1, 100, 20);
            }
            let again = test.floor.standing_by(test.now)[&1].again.unwrap();
            waits.push(again.as_secs() / 60);
        }
        assert_eq!(waits, [4, 8, 16, 32, 64, 64, 64]);
        assert_eq!(test.load(3, 140, 20), "---");
        assert_eq!(test.load(20, 160, 20), "-".repeat(20), "loads go up and down");
        test.now += MINUTE;
        assert_eq!(test.load(4, 160, 20), "+---");
    }

    #[test]
    fn without_a_steady_load_nothing_is_tried() {
        let mut test = Test::new([10, 300]);
        for _ in 0..10 {
            assert_eq!(test.load(1, 10, 10) + &test.load(1, 50, 50), "--");
        }
        assert_eq!(test.load(10, 0, 0), "----------");
    }

    /// Some seconds beside uplink 1, a thin one that loses packets; as [`Test::load`].
    fn lossy_load(test: &mut Test, seconds: usize, without: u64, with: [u64; 2]) -> String {
        let second = |test: &mut Test| {
            let (rates, lost) = if test.stands_by() { ([without, 0], 0) } else { (with, 20) };
            test.now += Duration::from_secs(1);
            test.second(rates, lost);
            if test.stands_by() { '-' } else { '+' }
        };
        (0..seconds).map(|_| second(test)).collect()
    }

    #[test]
    fn a_thin_lossy_uplink_is_used_until_the_others_are_better_without() {
        let mut test = Test::new([30, 60]);
        assert_eq!(lossy_load(&mut test, 14, 276, [230, 18]), "++++---+++----");
        let after =
            "makes the bond no faster: it carries little and loses packets; tried again in 4 min";
        test.now -= Duration::from_secs(3);
        assert_eq!(test.reason(), after);
    }

    #[test]
    fn a_thin_lossy_uplink_that_helps_comes_back() {
        let mut test = Test::new([30, 60]);
        assert_eq!(lossy_load(&mut test, 14, 250, [250, 20]), "++++---+++++++");
        // Until its verdict has to be confirmed.
        assert_eq!(lossy_load(&mut test, 60, 250, [250, 20]), "+".repeat(60));
        test.now += 4 * MINUTE;
        assert_eq!(lossy_load(&mut test, 4, 250, [250, 20]), "---+");
    }

    #[test]
    fn a_lossy_uplink_that_carries_much_or_seldom_loses_is_not_in_question() {
        let mut test = Test::new([30, 60]);
        assert_eq!(lossy_load(&mut test, 9, 276, [80, 18]), "+++++++++");
        for lost in [2, 20, 20, 20, 20, 2, 20, 20, 2] {
            test.second([276, 18], lost);
            assert!(!test.stands_by());
        }
    }

    #[test]
    fn an_uplink_that_is_no_longer_far_has_its_place_at_once() {
        let mut test = Test::new([10, 300]);
        assert!(test.stands_by());
        test.rtts([200, 300]);
        assert!(!test.stands_by());
        // The near one is down: nothing is known of it.
        test.rtts([10, 300]);
        test.floor.set_rtts(&LiteMap::from_iter([(1, 300 * MS)]));
        assert!(!test.stands_by());
    }
}
