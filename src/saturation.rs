//! Whether the bond uplinks are saturated, so that overflow uplinks are needed.
//!
//! An uplink's capacity is not known, and neither a queue nor its absence shows that it is reached:
//! bursts fill queues, and BBR leaves them empty. So what counts is the rate. Bond uplinks that
//! steadily carry about the most they have ever sustained may be saturated, or the demand may be
//! just that. A trial tells: with the overflow uplinks in use either more is carried in all, or the
//! same is merely carried elsewhere.

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use litemap::LiteMap;

use crate::net::Counters;

/// The ways data goes, as indices.
const DOWN: usize = 0;
const UP: usize = 1;

/// Rates that are looked at together, about one a second.
const WINDOW: usize = 4;
/// Samples closer together than this are put off: their rate would be noise.
const SHORTEST: Duration = Duration::from_millis(500);
/// The lowest of them is at least this share of the highest when the rate is steady.
const STEADY: f64 = 0.8;
/// Above this share of their capacity the bond uplinks may be saturated.
const FULL: f64 = 0.85;
/// Below this share the demand fits the bond uplinks alone.
const FITS: f64 = 0.7;
/// A capacity that is not reached any more halves in this time,
const HALF_LIFE: Duration = Duration::from_secs(900);
/// but only while at least this share of it is used: idleness says nothing.
const USED: f64 = 0.2;
/// Below this share of the other direction's rate a direction carries acknowledgements.
const ACKNOWLEDGEMENTS: f64 = 0.05;
/// Below this rate in bits a second nothing is worth an overflow uplink.
const LEAST: f64 = 1e6;
/// What a trial takes until its outcome is clear.
const TRIAL: Duration = Duration::from_secs(6);
/// After a trial in vain the next one waits this long, doubling up to the longest.
const RETRY_FIRST: Duration = Duration::from_secs(60);
const RETRY_LONGEST: Duration = Duration::from_secs(600);
/// The demand has to fit for this long, doubling up to the longest when it comes back soon.
const HOLD_FIRST: Duration = Duration::from_secs(10);
const HOLD_LONGEST: Duration = Duration::from_secs(160);
/// Demand that comes back within this time comes back soon.
const SOON: Duration = Duration::from_secs(60);

/// One direction of an uplink.
#[derive(Clone, Debug, Default)]
struct Meter {
    /// Rates in bits a second, the newest first.
    rates: [f64; WINDOW],
    /// The most it sustained, in bits a second.
    capacity: f64,
}

impl Meter {
    fn sample(&mut self, rate: f64, elapsed: Duration) {
        self.rates.rotate_right(1);
        self.rates[0] = rate;
        if rate >= USED * self.capacity {
            self.capacity *= 0.5f64.powf(elapsed.as_secs_f64() / HALF_LIFE.as_secs_f64());
        }
        self.capacity = self.capacity.max(lowest(&self.rates));
    }
}

fn lowest(rates: &[f64]) -> f64 {
    rates.iter().copied().fold(f64::INFINITY, f64::min)
}

/// Several uplinks taken together, in one direction.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    rates: [f64; WINDOW],
    capacity: f64,
}

impl Load {
    /// The mean rate over the window.
    fn rate(&self) -> f64 {
        self.rates.iter().sum::<f64>() / WINDOW as f64
    }

    fn is_full(&self) -> bool {
        let highest = self.rates.iter().copied().fold(0.0, f64::max);
        let steady = lowest(&self.rates) >= STEADY * highest;
        steady && self.rate() >= LEAST.max(FULL * self.capacity)
    }
}

#[derive(Clone, Debug)]
struct Engaged {
    way: usize,
    since: Instant,
    /// What the bond uplinks carried before, until the trial is judged.
    before: Option<f64>,
    fits_since: Option<Instant>,
}

/// When trials in one direction are made again.
#[derive(Clone, Copy, Debug)]
struct Retry {
    not_before: Option<Instant>,
    wait: Duration,
}

const NO_RETRY: Retry = Retry { not_before: None, wait: RETRY_FIRST };

/// Decides when overflow uplinks are used.
#[derive(Clone, Debug)]
pub struct Saturation {
    last: LiteMap<u8, (Instant, Counters)>,
    meters: LiteMap<u8, [Meter; 2]>,
    engaged: Option<Engaged>,
    released: Option<Instant>,
    hold: Duration,
    retries: [Retry; 2],
}

impl Default for Saturation {
    fn default() -> Saturation {
        Saturation {
            last: LiteMap::new(),
            meters: LiteMap::new(),
            engaged: None,
            released: None,
            hold: HOLD_FIRST,
            retries: [NO_RETRY; 2],
        }
    }
}

impl Saturation {
    /// Whether overflow uplinks are to be used.
    pub fn is_engaged(&self) -> bool {
        self.engaged.is_some()
    }

    /// Takes the counters of all uplinks' devices, by slot, about once a second. `bond` are the bond
    /// uplinks in use, `overflow` the overflow uplinks that are, or could be.
    pub fn count(
        &mut self,
        counters: &LiteMap<u8, Counters>,
        bond: &[u8],
        overflow: &[u8],
        now: Instant,
    ) {
        self.measure(counters, now);
        if bond.is_empty() || overflow.is_empty() {
            self.engaged = None;
            return;
        }
        let loads = |slots| [DOWN, UP].map(|way| self.load(slots, way));
        let (bond, overflow) = (loads(bond), loads(overflow));
        match self.engaged.take() {
            None => self.consider(bond, now),
            Some(engaged) => self.reconsider(engaged, bond, overflow, now),
        }
    }

    fn measure(&mut self, counters: &LiteMap<u8, Counters>, now: Instant) {
        self.meters.retain(|slot, _| counters.contains_key(slot));
        self.last.retain(|slot, _| counters.contains_key(slot));
        for (slot, new) in counters {
            let (then, old) = *self.last.entry(*slot).or_insert((now, *new));
            let elapsed = now.saturating_duration_since(then);
            if elapsed < SHORTEST {
                continue;
            }
            self.last.insert(*slot, (now, *new));
            let rate =
                |old: u64, new: u64| new.saturating_sub(old) as f64 * 8.0 / elapsed.as_secs_f64();
            let rates = [rate(old.rx_bytes, new.rx_bytes), rate(old.tx_bytes, new.tx_bytes)];
            let meters = self.meters.entry(*slot).or_default();
            for (meter, rate) in meters.iter_mut().zip(rates) {
                meter.sample(rate, elapsed);
            }
        }
    }

    fn load(&self, slots: &[u8], way: usize) -> Load {
        let meters = slots.iter().filter_map(|slot| self.meters.get(slot));
        let mut load = Load::default();
        for meter in meters.map(|meters| &meters[way]) {
            load.rates.iter_mut().zip(meter.rates).for_each(|(sum, rate)| *sum += rate);
            load.capacity += meter.capacity;
        }
        load
    }

    /// Engages when the bond uplinks look saturated.
    fn consider(&mut self, bond: [Load; 2], now: Instant) {
        // The busier direction first: the other one may carry all it is asked to.
        let busier = if bond[0].rate() >= bond[1].rate() { DOWN } else { UP };
        let full = |way: &usize| {
            let waits = self.retries[*way].not_before.is_some_and(|time| now < time);
            let data = bond[*way].rate() > ACKNOWLEDGEMENTS * bond[1 - *way].rate();
            bond[*way].is_full() && data && !waits
        };
        let Some(way) = [busier, 1 - busier].into_iter().find(full) else { return };
        let soon = self.released.is_some_and(|then| now.saturating_duration_since(then) < SOON);
        self.hold = if soon { (self.hold * 2).min(HOLD_LONGEST) } else { HOLD_FIRST };
        let before = Some(bond[way].rate());
        self.engaged = Some(Engaged { way, since: now, before, fits_since: None });
    }

    /// Releases after a trial in vain, or when the demand has fitted the bond uplinks for a while.
    fn reconsider(
        &mut self,
        mut engaged: Engaged,
        bond: [Load; 2],
        overflow: [Load; 2],
        now: Instant,
    ) {
        let way = engaged.way;
        let (bond, overflow) = (bond[way], overflow[way]);
        let demand = bond.rate() + overflow.rate();
        if now.saturating_duration_since(engaged.since) >= TRIAL
            && let Some(before) = engaged.before.take()
        {
            let retry = &mut self.retries[way];
            if demand - before < overflow.rate() / 2.0 {
                retry.not_before = Some(now + retry.wait);
                // Demand that went away meanwhile shows nothing.
                if demand > STEADY * before {
                    retry.wait = (retry.wait * 2).min(RETRY_LONGEST);
                }
                return;
            }
            *retry = NO_RETRY;
        }
        if demand > FITS * bond.capacity {
            engaged.fits_since = None;
        } else if now.saturating_duration_since(*engaged.fits_since.get_or_insert(now)) >= self.hold
        {
            self.released = Some(now);
            return;
        }
        self.engaged = Some(engaged);
    }
}
