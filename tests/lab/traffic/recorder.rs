//! Progress of a stream at its receiver: bytes per slot of time, pauses, integrity.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Pattern;

/// The length of a slot of the time line.
pub const SLOT: Duration = Duration::from_millis(10);

/// Takes what a receiver gets, and can be read while it runs.
#[derive(Debug)]
pub struct Recorder {
    pattern: Pattern,
    first_offset: u64,
    start: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes: u64,
    slots: Vec<u64>,
    last: Option<Duration>,
    first: Option<Duration>,
    pauses: Vec<(Duration, Duration)>,
    end: Option<Duration>,
    broke: bool,
    corrupt_at: Option<u64>,
}

/// A recorder's findings so far. Times count from the recorder's start.
#[derive(Clone, Debug)]
pub struct Report {
    /// Bytes received.
    pub bytes: u64,
    /// When the recorder started.
    pub start: Instant,
    /// When the first byte came.
    pub first: Option<Duration>,
    /// When the last byte came.
    pub last: Duration,
    /// Bytes received in each [`SLOT`].
    pub timeline: Vec<u64>,
    /// Pauses longer than two slots: when they began, and how long they were; the one that still
    /// goes on is included.
    pub pauses: Vec<(Duration, Duration)>,
    /// Whether it broke, rather than ended.
    pub broke: bool,
    /// The offset of the first wrong byte.
    pub corrupt_at: Option<u64>,
}

impl Recorder {
    /// A recorder of a stream that begins at `first_offset` of `pattern`.
    pub fn new(pattern: Pattern, first_offset: u64) -> Recorder {
        Recorder { pattern, first_offset, start: Instant::now(), state: Mutex::default() }
    }

    /// The content expected.
    pub fn pattern(&self) -> Pattern {
        self.pattern
    }

    /// Takes bytes just received.
    pub fn take(&self, received: &[u8]) {
        let offset = self.first_offset + self.bytes();
        let difference = self.pattern.first_difference(offset, received);
        let now = self.start.elapsed();
        let mut state = self.state();
        state.bytes += received.len() as u64;
        state.first.get_or_insert(now);
        state.corrupt_at = state.corrupt_at.or(difference);
        if let Some(last) = state.last.replace(now) {
            let pause = now.saturating_sub(last);
            if pause > 2 * SLOT {
                state.pauses.push((last, pause));
            }
        }
        let slot = (now.as_nanos() / SLOT.as_nanos()) as usize;
        if state.slots.len() <= slot {
            state.slots.resize(slot + 1, 0);
        }
        state.slots[slot] += received.len() as u64;
    }

    /// Notes that the stream has ended, or broke: a pause no longer goes on.
    pub fn finish(&self, broke: bool) {
        let now = self.start.elapsed();
        let mut state = self.state();
        state.end.get_or_insert(now);
        state.broke = broke;
    }

    /// Bytes received so far.
    pub fn bytes(&self) -> u64 {
        self.state().bytes
    }

    /// Findings so far.
    pub fn report(&self) -> Report {
        let now = self.start.elapsed();
        let state = self.state();
        let mut pauses = state.pauses.clone();
        if let (Some(last), None) = (state.last, state.end) {
            let pause = now.saturating_sub(last);
            if pause > 2 * SLOT {
                pauses.push((last, pause));
            }
        }
        Report {
            bytes: state.bytes,
            start: self.start,
            first: state.first,
            last: state.last.unwrap_or_default(),
            timeline: state.slots.clone(),
            pauses,
            broke: state.broke,
            corrupt_at: state.corrupt_at,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Report {
    /// Mbit/s from the first to the last byte.
    pub fn goodput(&self) -> f64 {
        let span = self.last.saturating_sub(self.first.unwrap_or_default());
        mbit(self.bytes, span)
    }

    /// Mbit/s between two times, to the slot.
    pub fn goodput_between(&self, from: Duration, to: Duration) -> f64 {
        let slot = |time: Duration| (time.as_nanos() / SLOT.as_nanos()) as usize;
        let (from, to) = (slot(from), slot(to));
        let bytes = self.timeline.iter().take(to).skip(from).sum();
        mbit(bytes, SLOT * u32::try_from(to.saturating_sub(from)).unwrap_or(u32::MAX))
    }

    /// The longest pause between two arrivals, from the first byte on.
    pub fn longest_pause(&self) -> Duration {
        self.longest_pause_since(Duration::ZERO)
    }

    /// The longest pause among those that began (or went on) after a time.
    pub fn longest_pause_since(&self, from: Duration) -> Duration {
        let counted = self.pauses.iter().filter(|(began, length)| *began + *length > from);
        counted.map(|(_, length)| *length).max().unwrap_or_default()
    }

    /// An instant on this report's time scale.
    pub fn at(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.start)
    }
}

fn mbit(bytes: u64, span: Duration) -> f64 {
    if span.is_zero() { 0.0 } else { bytes as f64 * 8.0 / span.as_secs_f64() / 1e6 }
}
