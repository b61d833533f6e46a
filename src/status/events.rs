//! What happened of late, and how often a cause may be logged.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use litemap::LiteMap;

#[cfg(test)]
use serde::Deserialize;
use serde::Serialize;

/// Characters kept of an event's text.
const TEXT_LIMIT: usize = 500;
/// How long a cause stays quiet after it was logged.
const QUIET: Duration = Duration::from_secs(60);
/// Causes remembered at once; a cause may carry a peer's words, so their number is bounded.
const CAUSES_LIMIT: usize = 256;

/// How serious an event is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Something does not work and needs a person.
    Error,
    /// Something does not work and may heal by itself.
    Warning,
    /// Something changed.
    #[default]
    Info,
}

impl Level {
    /// The level in a word.
    pub fn word(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Info => "info",
        }
    }
}

impl From<Level> for log::Level {
    fn from(level: Level) -> log::Level {
        match level {
            Level::Error => log::Level::Error,
            Level::Warning => log::Level::Warn,
            Level::Info => log::Level::Info,
        }
    }
}

impl From<log::Level> for Level {
    fn from(level: log::Level) -> Level {
        match level {
            log::Level::Error => Level::Error,
            log::Level::Warn => Level::Warning,
            log::Level::Info | log::Level::Debug | log::Level::Trace => Level::Info,
        }
    }
}

/// One event, as a snapshot shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(default)]
pub struct Event {
    /// What the clock showed, in seconds since 1970 (UTC).
    pub time_unix_seconds: u64,
    /// Seconds since then; right also when the clock was set in between.
    pub age_seconds: u64,
    /// Level.
    pub level: Level,
    /// What happened, in one line.
    pub text: String,
}

/// A ring of the last events.
#[derive(Clone, Debug)]
pub struct EventLog {
    capacity: usize,
    events: VecDeque<(Instant, u64, Level, String)>,
}

impl EventLog {
    /// A ring that keeps the last `capacity` events.
    pub fn new(capacity: usize) -> EventLog {
        EventLog { capacity, events: VecDeque::new() }
    }

    /// Keeps an event that happens at `now`, when the clock shows `unix_seconds`. A long text is
    /// cut.
    pub fn push(&mut self, now: Instant, unix_seconds: u64, level: Level, text: impl Into<String>) {
        let mut text = text.into();
        if let Some((end, _)) = text.char_indices().nth(TEXT_LIMIT) {
            text.truncate(end);
        }
        self.events.push_back((now, unix_seconds, level, text));
        while self.events.len() > self.capacity {
            self.events.pop_front();
        }
    }

    /// The last events as seen at `now`, oldest first.
    pub fn recent(&self, now: Instant) -> Vec<Event> {
        self.events
            .iter()
            .map(|(then, unix_seconds, level, text)| Event {
                time_unix_seconds: *unix_seconds,
                age_seconds: now.saturating_duration_since(*then).as_secs(),
                level: *level,
                text: text.clone(),
            })
            .collect()
    }
}

/// Lets each cause through once a minute, and counts those held back.
#[derive(Clone, Debug, Default)]
pub struct Throttle {
    causes: LiteMap<String, (Instant, u64)>,
}

impl Throttle {
    /// A throttle that has seen nothing.
    pub fn new() -> Throttle {
        Throttle::default()
    }

    /// Whether `cause` may be logged at `now`: if so, how many times it was held back since it was
    /// last let through.
    pub fn permit(&mut self, now: Instant, cause: &str) -> Option<u64> {
        let quiet = |logged: Instant| now.saturating_duration_since(logged) < QUIET;
        if let Some((logged, held_back)) = self.causes.get_mut(cause) {
            if quiet(*logged) {
                *held_back = held_back.saturating_add(1);
                return None;
            }
            *logged = now;
            return Some(std::mem::take(held_back));
        }
        if self.causes.len() >= CAUSES_LIMIT {
            self.causes.retain(|_, (logged, _)| quiet(*logged));
        }
        if self.causes.len() >= CAUSES_LIMIT {
            return None;
        }
        self.causes.insert(cause.to_owned(), (now, 0));
        Some(0)
    }
}

/// What goes wrong again and again, told once.
#[derive(Debug, Default)]
pub struct Trouble(Option<String>);

impl Trouble {
    /// Takes how an attempt went.
    ///
    /// # Errors
    /// What went wrong, unless it did so at the attempt before, too.
    pub fn news(&mut self, trouble: Option<String>) -> Result<(), String> {
        let known = std::mem::replace(&mut self.0, trouble.clone());
        trouble.filter(|trouble| known.as_ref() != Some(trouble)).map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_last_and_tells_their_age() {
        let start = Instant::now();
        let mut events = EventLog::new(3);
        for number in 0..5u64 {
            let now = start + Duration::from_secs(number);
            events.push(now, 1000 + number, Level::Info, format!("event {number}"));
        }
        let recent = events.recent(start + Duration::from_secs(10));
        let seen: Vec<_> = recent
            .iter()
            .map(|event| (event.time_unix_seconds, event.age_seconds, event.text.as_str()))
            .collect();
        assert_eq!(seen, [(1002, 8, "event 2"), (1003, 7, "event 3"), (1004, 6, "event 4")]);
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let start = Instant::now();
        let mut events = EventLog::new(1);
        events.push(start, 0, Level::Error, "é".repeat(10_000));
        assert_eq!(events.recent(start).first().map(|event| event.text.len()), Some(1000));
    }

    #[test]
    fn a_ring_of_none_keeps_none() {
        let start = Instant::now();
        let mut events = EventLog::new(0);
        events.push(start, 0, Level::Info, "x");
        assert!(events.recent(start).is_empty());
    }

    #[test]
    fn a_cause_passes_once_a_minute_and_tells_how_many_were_held_back() {
        let start = Instant::now();
        let mut throttle = Throttle::new();
        assert_eq!(throttle.permit(start, "wrong key"), Some(0));
        for second in 1..60 {
            assert_eq!(throttle.permit(start + Duration::from_secs(second), "wrong key"), None);
        }
        assert_eq!(throttle.permit(start + Duration::from_secs(5), "replay"), Some(0));
        assert_eq!(throttle.permit(start + Duration::from_secs(60), "wrong key"), Some(59));
        assert_eq!(throttle.permit(start + Duration::from_secs(61), "wrong key"), None);
        assert_eq!(throttle.permit(start + Duration::from_secs(500), "wrong key"), Some(1));
    }

    #[test]
    fn a_flood_of_causes_neither_grows_without_end_nor_blocks_for_ever() {
        let start = Instant::now();
        let mut throttle = Throttle::new();
        let passed =
            (0..10_000).filter(|n| throttle.permit(start, &n.to_string()).is_some()).count();
        assert_eq!(passed, CAUSES_LIMIT);
        assert_eq!(throttle.causes.len(), CAUSES_LIMIT);
        assert_eq!(throttle.permit(start + QUIET, "another"), Some(0));
        assert_eq!(throttle.causes.len(), 1);
    }
}
