//! Probe results and the time become up, degraded or down, with hysteresis.
//!
//! A probe is lost when no reply came within a timeout made from the RTT as TCP makes its own
//! (RFC 6298), so that a far or congested uplink is slow and not down; a reply that comes later
//! still shows that the uplink is alive. On an uplink that carries traffic, silence together with an
//! unanswered probe is enough: waiting for more losses would be a pause that people notice. Where a
//! network lets no probe through, what subflows hear decides alone.

mod flapping;
mod outcomes;
mod policy;
mod probes;
mod rtt;
mod traffic;
mod trial;
mod volley;

use std::time::{Duration, Instant};

use flapping::Flapping;
use outcomes::Outcomes;
pub use policy::Policy;
use probes::Probes;
pub use rtt::Rtt;
use traffic::Traffic;
use trial::Trial;
use volley::Volley;

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

/// What the subflows on an uplink show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signs {
    /// When one of them last heard the server: data or an acknowledgement.
    pub heard: Instant,
    /// Whether data waits for an acknowledgement on one, and none of them hears anything any more.
    pub stalled: bool,
    /// The least of their smoothed round-trip times.
    pub rtt: Duration,
}

/// Subflows that heard something so long after the first probe that was not answered left show that
/// the path is alive: it had not failed meanwhile.
const OUTLIVES: Duration = Duration::from_millis(500);
/// After so many losses in a row no probe gets through; fewer may be heavy loss.
const SILENT: u8 = 12;

/// The health of one uplink.
#[derive(Clone, Debug)]
pub struct Health {
    policy: Policy,
    probing: bool,
    active: bool,
    traffic: Traffic,
    state: State,
    since: Instant,
    probes: Probes,
    last_sent: Option<Instant>,
    last_reply: Option<Instant>,
    /// When the newest of the answered probes was sent; older losses say nothing any more.
    answered: Option<Instant>,
    losses: u8,
    /// When the first of the consecutive unanswered probes was sent.
    unanswered_since: Option<Instant>,
    by_subflows: bool,
    /// Whether it lost heavily, and has not recovered since.
    lossy: bool,
    trial: Trial,
    failing_since: Option<Instant>,
    suspected: bool,
    volley: Volley,
    replies: u8,
    replying_since: Option<Instant>,
    outcomes: Outcomes,
    rtt: Rtt,
    flapping: Flapping,
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
            probes: Probes::default(),
            last_sent: None,
            last_reply: None,
            answered: None,
            losses: 0,
            unanswered_since: None,
            by_subflows: false,
            lossy: false,
            trial: Trial::new(&policy),
            failing_since: None,
            suspected: false,
            volley: Volley::default(),
            replies: 0,
            replying_since: None,
            outcomes: Outcomes::default(),
            rtt: Rtt::default(),
            flapping: Flapping::default(),
        }
    }

    /// An uplink that cannot be probed for want of a session: unknown, counts as up.
    pub fn unprobed(policy: Policy, now: Instant) -> Health {
        Health { probing: false, ..Health::new(policy, now) }
    }

    /// Probes by another policy from now on.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
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

    /// Whether it counts as up only to find out whether subflows get through.
    pub fn is_trial(&self) -> bool {
        self.trial.is_under_way()
    }

    /// Whether no probe gets through and its subflows show that it is alive.
    pub fn is_by_subflows(&self) -> bool {
        self.by_subflows
    }

    fn is_silent(&self) -> bool {
        self.by_subflows && self.losses >= SILENT
    }

    /// Whether [`Health::on_subflows`] should be told at once what subflows show.
    pub fn wants_subflows(&self) -> bool {
        let losing = self.losses > 0 && self.state != State::Down;
        if self.by_subflows { self.active } else { losing }
    }

    /// The share of probes lost, 0 to 1, over the last 32; `None` before the first outcome, and where
    /// no probe gets through.
    pub fn loss(&self) -> Option<f32> {
        self.outcomes.loss().filter(|_| !self.by_subflows)
    }

    /// Whether so many probes get lost that data over it are a nuisance: others wait for what is sent
    /// again. It is not, once 31 of 32 probes were answered.
    pub fn is_lossy(&self) -> bool {
        self.lossy
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

    /// The longest time between the replies to two of its probes, if they are replied to and it stays
    /// well.
    pub fn answers_every(&self) -> Option<Duration> {
        let answers = matches!(self.state, State::Up | State::Degraded) && !self.by_subflows;
        (self.probing && answers).then(|| self.policy.sparse + self.timeout())
    }

    /// Without a least margin a steady far link would lose probes to a millisecond's jitter.
    fn timeout_with(&self, least_margin: Duration) -> Duration {
        let longest = self.policy.timeout_max;
        self.rtt.timeout(least_margin).map_or(longest, |timeout| timeout.min(longest))
    }

    /// How long replies must keep coming before a down uplink is up again.
    pub fn hold_down(&self) -> Duration {
        self.flapping.hold_down(&self.policy)
    }

    /// Until when an uplink that is down and answers again is held down, if no more replies are lost.
    pub fn held_until(&self) -> Option<Instant> {
        let replying_since = self.replying_since.filter(|_| self.state == State::Down)?;
        let hold_down = self.hold_down();
        (!hold_down.is_zero()).then(|| replying_since + hold_down)
    }

    /// Says whether data flows over the uplink: an active one is probed densely.
    pub fn set_active(&mut self, active: bool) {
        self.active = active;
        if !active {
            self.traffic.stop();
        }
    }

    /// Nothing leaves over the uplink from now on, for want of carrier or address: what is missing until it
    /// is probed again says nothing of its path.
    pub fn rest(&mut self) {
        self.set_active(false);
        self.probes = Probes::default();
        if self.state != State::Down {
            self.clear_losses();
        }
    }

    /// Whether [`Health::on_received`] should be told how many packets arrive.
    pub fn is_active(&self) -> bool {
        self.active
    }

    /// The uplink's device has received so many packets since it exists.
    pub fn on_received(&mut self, now: Instant, packets: u64) {
        if self.traffic.count(now, packets) {
            self.volley.begin(now);
        }
    }

    /// Probes densely until the next reply: something else gives rise to doubt.
    pub fn suspect(&mut self) {
        self.suspected = true;
    }

    /// A probe with this number, unique within the uplink, left.
    pub fn on_sent(&mut self, now: Instant, seq: u64) {
        self.last_sent = Some(now);
        self.volley.count();
        self.probes.add(now, seq);
    }

    /// A probe could not be sent: as good as lost.
    pub fn on_send_failed(&mut self, now: Instant) {
        self.last_sent = Some(now);
        self.volley.end();
        self.outcomes.count(false);
        self.lose(now, now);
        self.judge(now);
    }

    /// The reply to a probe came; the RTT, or `None` when no such probe is waited for.
    pub fn on_reply(&mut self, now: Instant, seq: u64) -> Option<Duration> {
        let probe = self.probes.take(seq)?;
        let rtt = now.saturating_duration_since(probe.sent);
        self.rtt.sample(rtt);
        match probe.lost {
            // What was lost before the first reply says nothing of how good the path is now.
            _ if self.answered.is_none() => {
                self.outcomes = Outcomes::default();
                self.probes.forget_until(probe.sent);
                self.outcomes.count(true);
            }
            Some(outcome) => self.outcomes.correct(outcome),
            None => {
                self.pass_over(probe.sent);
                self.outcomes.count(true);
            }
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

    /// Probes that left well before one that was answered are lost: paths keep packets in order, by and
    /// large (RACK, RFC 8985).
    fn pass_over(&mut self, answered: Instant) {
        let margin = self.rtt.smoothed().unwrap_or_default() / 4;
        let overtaken = |sent| sent + margin < answered;
        while self.probes.lose(&mut self.outcomes, overtaken).is_some() {}
    }

    /// Takes what the subflows on the uplink show; it counts only while probes are not answered.
    pub fn on_subflows(&mut self, now: Instant, signs: Signs) {
        let Some(since) = self.unanswered_since.filter(|_| self.state != State::Down) else {
            return;
        };
        // Where a probe was answered before, subflows may have heard something just before the path
        // failed.
        let margin = self.answered.map_or(Duration::ZERO, |_| OUTLIVES);
        self.by_subflows = !signs.stalled && (self.by_subflows || signs.heard > since + margin);
        if self.by_subflows {
            if self.is_silent() {
                self.answered = None;
            }
            self.rtt.sample(signs.rtt);
            self.last_reply = self.last_reply.max(Some(signs.heard));
            self.failing_since = None;
        }
        self.judge(now);
    }

    /// Takes account of the time. Spurious calls are harmless.
    pub fn poll(&mut self, now: Instant) {
        if self.probing {
            self.expire(now);
            self.judge(now);
        }
    }

    /// When to poll again at the latest, if that was done last at `polled` and what was due is sent; `None`
    /// when there is nothing to wait for.
    pub fn deadline(&self, polled: Instant) -> Option<Instant> {
        if !self.probing {
            return None;
        }
        let due = self.due(polled);
        let due = if due <= polled { polled + self.policy.dense } else { due };
        let expiry = self.probes.waited_for_since().map(|sent| sent + self.timeout());
        Some(expiry.map_or(due, |expiry| expiry.min(due)))
    }

    /// Whether a probe may leave now that something else woke the program, which costs more than the
    /// probe: it is due, or will be within an eighth of its interval.
    pub fn takes_probe(&self, now: Instant) -> bool {
        self.probing && self.due(now) <= now + self.interval(now) / 8
    }

    fn due(&self, now: Instant) -> Instant {
        self.last_sent.map_or(now, |sent| sent + self.interval(now))
    }

    fn interval(&self, now: Instant) -> Duration {
        let policy = &self.policy;
        match self.state {
            // A reply while down may be the first of the consecutive ones it takes.
            State::Down if self.replies > 0 && self.replies < policy.replies => policy.urgent,
            State::Down => self.interval_of_recovery(now),
            // Three losses take two intervals and a timeout: these keep that near half a second.
            _ if self.is_silent() => policy.sparse,
            _ if self.volley.is_under_way() => policy.volley,
            _ if self.suspected || self.traffic.quiet_since(now).is_some() => policy.urgent,
            _ if self.losses > 0 => (self.timeout() / 3).min(policy.dense),
            State::Unknown => policy.dense,
            _ if self.active && self.outcomes.lost_lately() => policy.urgent,
            _ if self.active => policy.dense,
            _ if self.lossy => self.interval_of_recovery(now),
            _ => policy.sparse,
        }
    }

    /// Between probes of an uplink that is out of use until they are answered.
    fn interval_of_recovery(&self, now: Instant) -> Duration {
        self.policy.interval_of_recovery(now.saturating_duration_since(self.since))
    }

    fn expire(&mut self, now: Instant) {
        let timeout = self.timeout();
        let expired = |sent| now.saturating_duration_since(sent) >= timeout;
        while let Some(sent) = self.probes.lose(&mut self.outcomes, expired) {
            if self.answered.is_none_or(|answered| sent > answered) {
                self.lose(now, sent);
            }
        }
    }

    /// Since when there is silence where traffic flowed, with a probe that should have been answered.
    fn dead_since(&self, now: Instant) -> Option<Instant> {
        let since = self.traffic.dead_since(now)?;
        let timeout = self.timeout_with(self.policy.margin_in_silence);
        let unanswered = |sent| {
            self.answered.is_none_or(|answered| sent > answered)
                && now.saturating_duration_since(sent) >= timeout
        };
        self.probes.any(unanswered).then_some(since)
    }

    fn lose(&mut self, now: Instant, sent: Instant) {
        self.losses = self.losses.saturating_add(1);
        self.unanswered_since.get_or_insert(sent);
        if !self.by_subflows {
            self.failing_since.get_or_insert(now);
        }
        self.replies = 0;
        self.replying_since = None;
    }

    fn clear_losses(&mut self) {
        self.losses = 0;
        self.unanswered_since = None;
        self.by_subflows = false;
        self.failing_since = None;
        self.suspected = false;
    }

    fn judge(&mut self, now: Instant) {
        if self.state != State::Down {
            let lossy = self.outcomes.is_lossy(self.lossy);
            self.lossy = lossy && !self.is_silent();
        }
        let policy = &self.policy;
        let dead_since = self.dead_since(now);
        let next = match self.state {
            State::Down if self.replies == 0 && self.trial.is_due(now) => State::Unknown,
            State::Down => {
                let held = self
                    .replying_since
                    .is_some_and(|since| now.saturating_duration_since(since) >= self.hold_down());
                let back = self.replies >= policy.replies && held;
                self.lossy |= back && self.outcomes.has_gaps();
                match back {
                    true if self.lossy => State::Degraded,
                    true => State::Up,
                    false => State::Down,
                }
            }
            _ if self.by_subflows && self.lossy => State::Degraded,
            _ if self.by_subflows => State::Up,
            _ if self.losses >= policy.losses || dead_since.is_some() => State::Down,
            State::Unknown if self.replies == 0 => State::Unknown,
            state if self.lossy || self.outcomes.is_degraded(state == State::Degraded) => {
                State::Degraded
            }
            _ if self.is_slow() => State::Degraded,
            _ => State::Up,
        };
        if next == self.state {
            return;
        }
        let failed_trial = self.trial.end().filter(|_| next == State::Down);
        if next == State::Down {
            self.outcomes = Outcomes::default();
            self.failing_since = dead_since.or(self.failing_since);
            self.replies = 0;
            self.replying_since = None;
            self.trial.plan(now, failed_trial.is_some(), self.answered.is_some(), policy);
            if failed_trial.is_none() {
                self.flapping.note_down(now, policy.flap_window);
            }
        }
        if self.state == State::Down {
            if next == State::Unknown {
                self.trial.begin(self.since);
            }
            self.clear_losses();
            // Nor does what was lost while it was down.
            self.outcomes = Outcomes::default();
            self.probes.forget_lost();
        }
        self.state = next;
        self.since = failed_trial.unwrap_or(now);
    }
}

#[cfg(test)]
mod tests;
