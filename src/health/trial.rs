//! Trials of an uplink that is down: subflows may get through where probes do not.

use std::time::{Duration, Instant};

use super::Policy;

/// When an uplink that is down is tried without an answered probe.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    at: Option<Instant>,
    wait: Duration,
    /// During a trial, since when the uplink was down.
    of: Option<Instant>,
}

impl Trial {
    /// Of an uplink that was not down yet.
    pub fn new(policy: &Policy) -> Trial {
        Trial { at: None, wait: policy.trial_first, of: None }
    }

    /// Plans the next one for an uplink that is down from now on, or is so again after a trial.
    pub fn plan(&mut self, now: Instant, is_again: bool, was_answered: bool, policy: &Policy) {
        self.wait = match is_again {
            true => (self.wait * 2).min(policy.trial_max),
            false if was_answered => policy.trial_answered,
            false => policy.trial_first,
        };
        self.at = Some(now + self.wait);
    }

    /// Whether it is time for one.
    pub fn is_due(&self, now: Instant) -> bool {
        self.at.is_some_and(|at| at <= now)
    }

    /// Begins one of an uplink that has been down since then.
    pub fn begin(&mut self, down_since: Instant) {
        self.of = Some(down_since);
    }

    /// Whether there is one now.
    pub fn is_under_way(&self) -> bool {
        self.of.is_some()
    }

    /// Ends the one that is under way, if there is one; since when the uplink was down before it.
    pub fn end(&mut self) -> Option<Instant> {
        self.of.take()
    }
}
