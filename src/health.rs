//! Probe results and the time become up, degraded or down, with hysteresis.
//!
//! A probe is lost when no reply came within a timeout made from the RTT as TCP makes its own
//! (RFC 6298), so that a far or congested uplink is slow and not down; a reply that comes later
//! still shows that the uplink is alive. On an uplink that carries traffic, silence together with an
//! unanswered probe is enough: waiting for more losses would be a pause that people notice.

mod rtt;
mod traffic;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub use rtt::Rtt;
use traffic::Traffic;

/// When to probe, and what to make of the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
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
    /// The first hold-down of an uplink that flaps; it doubles each time.
    pub hold_first: Duration,
    /// The longest hold-down.
    pub hold_max: Duration,
    /// Three times down within this time is flapping; so much time up halves the hold-down.
    pub flap_window: Duration,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
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
            replies: 2,
            hold_first: Duration::from_secs(2),
            hold_max: Duration::from_secs(60),
            flap_window: Duration::from_secs(60),
        }
    }
}

/// What is known of an uplink's way to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing yet, or there is no session to probe with; counts as up.
    Unknown,
    /// Probes are answered.
    Up,
    /// Probes are answered, but many are lost, or the answers take long.
    Degraded,
    /// Probes are not answered.
    Down,
}

/// What [`Health::poll`] wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Poll {
    /// A probe is due now.
    pub send: bool,
    /// When to poll again at the latest; `None` when there is nothing to wait for.
    pub wake: Option<Instant>,
}

/// Probes remembered: more than can be on their way within [`Policy::timeout_max`].
const OUTSTANDING: usize = 32;
/// Outcomes that the loss is taken over.
const HISTORY: u32 = u32::BITS;
/// Losses among [`HISTORY`] outcomes at which an uplink becomes degraded (12.5 %).
const DEGRADED_AT: u32 = 4;
/// Losses at which it stops being so.
const RECOVERED_AT: u32 = 1;
/// Levels of the hold-down; enough to reach any [`Policy::hold_max`] worth having.
const LEVELS: u8 = 8;

#[derive(Clone, Copy, Debug)]
struct Probe {
    seq: u64,
    sent: Instant,
    /// The number of its outcome, once it counts as lost.
    lost: Option<u32>,
}

/// The health of one uplink.
#[derive(Clone, Debug)]
pub struct Health {
    policy: Policy,
    probing: bool,
    active: bool,
    traffic: Traffic,
    state: State,
    since: Instant,
    probes: VecDeque<Probe>,
    last_sent: Option<Instant>,
    last_reply: Option<Instant>,
    /// When the newest of the answered probes was sent; older losses say nothing any more.
    answered: Option<Instant>,
    losses: u8,
    failing_since: Option<Instant>,
    suspected: bool,
    replies: u8,
    replying_since: Option<Instant>,
    /// A bit for each of the last outcomes, the newest lowest, set when a reply came.
    history: u32,
    outcomes: u32,
    rtt: Rtt,
    downs: [Option<Instant>; 2],
    level: u8,
}

impl Health {
    /// An uplink that is probed from `now` on.
    pub fn new(policy: Policy, now: Instant) -> Health {
        Health {
            policy,
            probing: true,
            active: false,
            traffic: Traffic::default(),
            state: State::Unknown,
            since: now,
            probes: VecDeque::new(),
            last_sent: None,
            last_reply: None,
            answered: None,
            losses: 0,
            failing_since: None,
            suspected: false,
            replies: 0,
            replying_since: None,
            history: 0,
            outcomes: 0,
            rtt: Rtt::default(),
            downs: [None; 2],
            level: 0,
        }
    }

    /// An uplink that cannot be probed for want of a session: unknown, counts as up.
    pub fn unprobed(policy: Policy, now: Instant) -> Health {
        Health { probing: false, ..Health::new(policy, now) }
    }

    /// The state, as of the last call with a time.
    pub fn state(&self) -> State {
        self.state
    }

    /// Since when the state holds.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Whether it is probed at all.
    pub fn is_probed(&self) -> bool {
        self.probing
    }

    /// Smoothed RTT (RFC 6298).
    pub fn srtt(&self) -> Option<Duration> {
        self.rtt.smoothed()
    }

    /// The round-trip times.
    pub fn rtt(&self) -> &Rtt {
        &self.rtt
    }

    /// The share of probes lost, 0 to 1, over the last 32; `None` before the first outcome.
    pub fn loss(&self) -> Option<f32> {
        let counted = self.outcomes.min(HISTORY);
        (counted > 0).then(|| self.lost_recently() as f32 / counted as f32)
    }

    /// Whether it is the round-trip time that it is degraded for.
    pub fn is_slow(&self) -> bool {
        let limit = match self.state {
            State::Degraded => self.policy.slow / 2,
            _ => self.policy.slow,
        };
        let (smoothed, least) = (self.rtt.smoothed(), self.rtt.least());
        smoothed.zip(least).is_some_and(|(smoothed, least)| smoothed.saturating_sub(least) > limit)
    }

    /// When the last reply came.
    pub fn last_reply(&self) -> Option<Instant> {
        self.last_reply
    }

    /// Since when no probe is answered: when the first of the consecutive losses was noticed, or
    /// traffic fell silent.
    pub fn failing_since(&self) -> Option<Instant> {
        self.failing_since
    }

    /// Whether there is a sign that the path may have failed.
    pub fn is_doubtful(&self, now: Instant) -> bool {
        self.failing_since.is_some() || self.traffic.quiet_since(now).is_some()
    }

    /// After what time a probe counts as lost.
    pub fn timeout(&self) -> Duration {
        self.timeout_with(self.policy.margin)
    }

    /// Without a least margin a steady far link would lose probes to a millisecond's jitter.
    fn timeout_with(&self, least_margin: Duration) -> Duration {
        let longest = self.policy.timeout_max;
        self.rtt.timeout(least_margin).map_or(longest, |timeout| timeout.min(longest))
    }

    /// How long replies must keep coming before a down uplink is up again.
    pub fn hold_down(&self) -> Duration {
        match self.level.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => {
                self.policy.hold_first.saturating_mul(1 << doublings).min(self.policy.hold_max)
            }
        }
    }

    /// Says whether data flows over the uplink: an active one is probed densely.
    pub fn set_active(&mut self, active: bool) {
        self.active = active;
        if !active {
            self.traffic.stop();
        }
    }

    /// Whether [`Health::on_received`] should be told how many packets arrive.
    pub fn is_active(&self) -> bool {
        self.active
    }

    /// The uplink's device has received so many packets since it exists.
    pub fn on_received(&mut self, now: Instant, packets: u64) {
        self.traffic.count(now, packets);
    }

    /// Probes densely until the next reply: something else gives rise to doubt.
    pub fn suspect(&mut self) {
        self.suspected = true;
    }

    /// A probe with this number, unique within the uplink, left.
    pub fn on_sent(&mut self, now: Instant, seq: u64) {
        self.last_sent = Some(now);
        if self.probes.len() == OUTSTANDING {
            self.probes.pop_front();
        }
        self.probes.push_back(Probe { seq, sent: now, lost: None });
    }

    /// A probe could not be sent: as good as lost.
    pub fn on_send_failed(&mut self, now: Instant) {
        self.last_sent = Some(now);
        self.count_outcome(false);
        self.lose(now);
        self.judge(now);
    }

    /// The reply to a probe came; the RTT, or `None` when no such probe is waited for.
    pub fn on_reply(&mut self, now: Instant, seq: u64) -> Option<Duration> {
        let position = self.probes.iter().position(|probe| probe.seq == seq)?;
        let probe = self.probes.remove(position)?;
        let rtt = now.saturating_duration_since(probe.sent);
        self.rtt.sample(rtt);
        match probe.lost {
            Some(outcome) => {
                let age = self.outcomes.wrapping_sub(outcome);
                self.history |= 1u32.checked_shl(age).unwrap_or(0);
            }
            None => self.count_outcome(true),
        }
        self.last_reply = Some(now);
        if self.traffic.quiet_since(now).is_some_and(|since| probe.sent > since) {
            self.traffic.revive(now);
        }
        self.answered = self.answered.max(Some(probe.sent));
        self.clear_losses();
        self.replies = self.replies.saturating_add(1);
        self.replying_since.get_or_insert(now);
        self.judge(now);
        Some(rtt)
    }

    /// Takes account of the time: losses, and whether a probe is due. Spurious calls are harmless.
    pub fn poll(&mut self, now: Instant) -> Poll {
        if !self.probing {
            return Poll { send: false, wake: None };
        }
        self.expire(now);
        self.judge(now);
        let due = self.last_sent.map_or(now, |sent| sent + self.interval(now));
        let timeout = self.timeout();
        let expiry = self.probes.iter().find(|probe| probe.lost.is_none());
        let expiry = expiry.map(|probe| probe.sent + timeout);
        let send = due <= now;
        // After sending, the caller polls again and learns when the next is due.
        let due = if send { now + self.policy.dense } else { due };
        Poll { send, wake: Some(expiry.map_or(due, |expiry| expiry.min(due))) }
    }

    fn interval(&self, now: Instant) -> Duration {
        let policy = &self.policy;
        match self.state {
            // A reply while down may be the first of the consecutive ones it takes.
            State::Down if self.replies > 0 && self.replies < policy.replies => policy.dense,
            State::Down => {
                let settled = policy.down_settled.as_millis().max(1);
                let down = now.saturating_duration_since(self.since).as_millis().min(settled);
                let growth = policy.down_last.saturating_sub(policy.down_first).as_millis();
                let more = u64::try_from(growth * down / settled).unwrap_or(0);
                policy.down_first + Duration::from_millis(more)
            }
            // Three losses take two intervals and a timeout: these keep that near half a second.
            _ if self.suspected || self.traffic.quiet_since(now).is_some() => policy.urgent,
            _ if self.losses > 0 => (self.timeout() / 3).min(policy.dense),
            State::Unknown => policy.dense,
            _ if self.active => policy.dense,
            _ => policy.sparse,
        }
    }

    fn expire(&mut self, now: Instant) {
        let timeout = self.timeout();
        for index in 0..self.probes.len() {
            let Some(probe) = self.probes.get_mut(index) else { break };
            if probe.lost.is_some() || now.saturating_duration_since(probe.sent) < timeout {
                continue;
            }
            let sent = probe.sent;
            probe.lost = Some(self.outcomes.wrapping_add(1));
            self.count_outcome(false);
            if self.answered.is_none_or(|answered| sent > answered) {
                self.lose(now);
            }
        }
    }

    /// Since when there is silence where traffic flowed, with a probe that should have been answered.
    fn dead_since(&self, now: Instant) -> Option<Instant> {
        let since = self.traffic.dead_since(now)?;
        let timeout = self.timeout_with(self.policy.margin_in_silence);
        let unanswered = |probe: &Probe| {
            self.answered.is_none_or(|answered| probe.sent > answered)
                && now.saturating_duration_since(probe.sent) >= timeout
        };
        self.probes.iter().any(unanswered).then_some(since)
    }

    fn lose(&mut self, now: Instant) {
        self.losses = self.losses.saturating_add(1);
        self.failing_since.get_or_insert(now);
        self.replies = 0;
        self.replying_since = None;
    }

    fn clear_losses(&mut self) {
        self.losses = 0;
        self.failing_since = None;
        self.suspected = false;
    }

    fn count_outcome(&mut self, replied: bool) {
        self.history = self.history << 1 | u32::from(replied);
        self.outcomes = self.outcomes.checked_add(1).unwrap_or(HISTORY);
    }

    fn lost_recently(&self) -> u32 {
        let counted = self.outcomes.min(HISTORY);
        counted - (self.history & u32::MAX.checked_shr(HISTORY - counted).unwrap_or(0)).count_ones()
    }

    fn judge(&mut self, now: Instant) {
        let policy = &self.policy;
        let dead_since = self.dead_since(now);
        let next = match self.state {
            State::Down => {
                let held = self
                    .replying_since
                    .is_some_and(|since| now.saturating_duration_since(since) >= self.hold_down());
                if self.replies >= policy.replies && held { State::Up } else { State::Down }
            }
            _ if self.losses >= policy.losses || dead_since.is_some() => State::Down,
            State::Unknown if self.replies == 0 => State::Unknown,
            State::Degraded if self.lost_recently() > RECOVERED_AT => State::Degraded,
            _ if self.lost_recently() >= DEGRADED_AT || self.is_slow() => State::Degraded,
            _ => State::Up,
        };
        if next == self.state {
            return;
        }
        if next == State::Down {
            self.failing_since = dead_since.or(self.failing_since);
            self.replies = 0;
            self.replying_since = None;
            self.note_down(now);
        }
        if self.state == State::Down {
            // What was lost while it was down says nothing of how good it is now.
            self.history = 0;
            self.outcomes = 0;
            self.probes.retain(|probe| probe.lost.is_none());
        }
        self.state = next;
        self.since = now;
    }

    /// Counts how often it goes down; the level rises when it flaps and sinks with time spent up.
    fn note_down(&mut self, now: Instant) {
        let window = self.policy.flap_window;
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
mod tests;
