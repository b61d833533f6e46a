//! How long an uplink that goes down again and again is held down.

use std::time::{Duration, Instant};

use super::Policy;

/// Levels of the hold-down; enough to reach any [`Policy::hold_max`] worth having.
const LEVELS: u8 = 8;

/// How often an uplink went down: the level rises when it flaps and sinks with time spent up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flapping {
    downs: [Option<Instant>; 2],
    level: u8,
}

impl Flapping {
    /// How long replies must keep coming before a down uplink is up again.
    pub fn hold_down(&self, policy: &Policy) -> Duration {
        match self.level.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => {
                policy.hold_first.saturating_mul(1 << doublings).min(policy.hold_max)
            }
        }
    }

    /// It went down; three times within `window` is flapping.
    pub fn note_down(&mut self, now: Instant, window: Duration) {
        let within = |time: Option<Instant>| {
            time.is_some_and(|time| now.saturating_duration_since(time) < window)
        };
        if within(self.downs[0]) {
            self.level = (self.level + 1).min(LEVELS);
        } else if let Some(last) = self.downs[1] {
            let quiet = now.saturating_duration_since(last).as_millis() / window.as_millis().max(1);
            self.level = self.level.saturating_sub(u8::try_from(quiet).unwrap_or(u8::MAX));
        }
        self.downs = [self.downs[1], Some(now)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hold_down_has_a_limit() {
        let (policy, now) = (Policy::default(), Instant::now());
        let mut flapping = Flapping::default();
        for down in 0..300 {
            flapping.note_down(now + Duration::from_secs(down), policy.flap_window);
        }
        assert_eq!(flapping.hold_down(&policy), Duration::from_secs(60));
    }
}
