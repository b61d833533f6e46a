//! When to probe, and what to make of the answers.

use std::time::Duration;

/// When to probe, and what to make of the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Between the probes of a volley.
    pub volley: Duration,
    /// Between probes while the uplink is under suspicion.
    pub urgent: Duration,
    /// Between probes while the uplink carries data.
    pub dense: Duration,
    /// Between probes while it is idle; short enough to keep a NAT's UDP mapping.
    pub sparse: Duration,
    /// Between probes once it is down, at first.
    pub down_first: Duration,
    /// Between probes once it has been down for `down_settled`.
    pub down_last: Duration,
    /// How long the interval takes to grow from `down_first` to `down_last`.
    pub down_settled: Duration,
    /// A probe is lost this much after the smoothed RTT, or more where the RTT varies.
    pub margin: Duration,
    /// The same while there is silence where traffic flowed.
    pub margin_in_silence: Duration,
    /// The longest time after which a probe is lost, and the one in use while the RTT is unknown.
    pub timeout_max: Duration,
    /// Slow when the smoothed RTT is so much over the least, until it is half as much.
    pub slow: Duration,
    /// Down after so many consecutive losses.
    pub losses: u8,
    /// Up after so many consecutive replies.
    pub replies: u8,
    /// An uplink that is down is given a trial, without an answered probe, after so long: subflows may
    /// get through where probes do not. The wait doubles.
    pub trial_first: Duration,
    /// The first wait where probes have been answered before.
    pub trial_answered: Duration,
    /// The longest such wait.
    pub trial_max: Duration,
    /// The first hold-down of an uplink that flaps; it doubles each time.
    pub hold_first: Duration,
    /// The longest hold-down.
    pub hold_max: Duration,
    /// Three times down within this time is flapping; so much time up halves the hold-down.
    pub flap_window: Duration,
}

impl Policy {
    /// Of an uplink whose bytes are counted: it is probed rarely while it is idle, just often enough
    /// to keep a NAT's UDP mapping.
    pub fn metered() -> Policy {
        Policy { sparse: Duration::from_secs(10), ..Policy::default() }
    }

    /// Between probes of an uplink that has been out of use for so long.
    pub fn interval_of_recovery(&self, time: Duration) -> Duration {
        let settled = self.down_settled.as_millis().max(1);
        let growth = self.down_last.saturating_sub(self.down_first).as_millis();
        let grown = growth * time.as_millis().min(settled) / settled;
        self.down_first + Duration::from_millis(u64::try_from(grown).unwrap_or(0))
    }
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            volley: Duration::from_millis(10),
            urgent: Duration::from_millis(100),
            dense: Duration::from_millis(250),
            sparse: Duration::from_secs(2),
            down_first: Duration::from_millis(500),
            down_last: Duration::from_secs(2),
            down_settled: Duration::from_secs(300),
            margin: Duration::from_millis(300),
            margin_in_silence: Duration::from_millis(50),
            timeout_max: Duration::from_secs(3),
            slow: Duration::from_millis(400),
            losses: 3,
            replies: 5,
            trial_first: Duration::from_secs(10),
            trial_answered: Duration::from_secs(60),
            trial_max: Duration::from_secs(600),
            hold_first: Duration::from_secs(2),
            hold_max: Duration::from_secs(60),
            flap_window: Duration::from_secs(60),
        }
    }
}
