//! What is known of the server, and whether it counts as lost.

use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long the server may be silent before it counts as lost.
const SERVER_SILENCE: Duration = Duration::from_secs(3);
/// How long it may be silent before it is asked for a sign of life, where no answered probes show that
/// it is there; and the time between two such questions.
const PING_AFTER: Duration = Duration::from_secs(1);
/// The least time that an answer is given. With it a server that falls silent between two sparse probes
/// over near uplinks is lost within [`SERVER_SILENCE`].
const ANSWER_TIME: Duration = Duration::from_millis(700);

/// When signs of life of a server are expected.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expectation {
    /// While all is well, one comes at least so often.
    every: Duration,
    /// So long after a question there should be an answer.
    within: Duration,
}

impl Expectation {
    /// Of a server that is probed: answered probes come so often, if they do, and take no longer
    /// than `timeout`.
    pub(super) fn probed(every: Option<Duration>, timeout: Duration) -> Expectation {
        let within = timeout.clamp(ANSWER_TIME, SERVER_SILENCE - PING_AFTER);
        Expectation { every: every.unwrap_or(PING_AFTER), within }
    }

    /// Of a server that is heard on its control connection alone.
    pub(super) fn unprobed() -> Expectation {
        Expectation::probed(None, SERVER_SILENCE)
    }
}

/// What is known of the server.
#[derive(Clone, Debug, Default)]
pub struct Server {
    /// The addresses its name stands for.
    pub addresses: Vec<IpAddr>,
    /// The address in use, once there was a session.
    pub in_use: Option<IpAddr>,
    /// Whether there is a control connection.
    pub connected: bool,
    /// It is of a version that carries no datagrams, as its last session has shown.
    pub without_datagrams: bool,
    /// When it was last heard of, over any way.
    pub heard: Option<Instant>,
    /// Whether it has said that it has no way to IPv6 targets.
    pub lacks_ipv6: bool,
    /// Whether new connections can be tunnelled.
    pub reachable: bool,
    /// Since when that is so.
    pub since: Option<Instant>,
    /// Why there is no session, once one failed.
    pub trouble: Option<String>,
    /// When the first question since then was put, and the last.
    asked: Option<(Instant, Instant)>,
}

impl Server {
    /// All addresses it is reached at: what LAN hosts send there is not tunnelled.
    pub(super) fn all_addresses(&self) -> Vec<IpAddr> {
        let other = self.in_use.filter(|address| !self.addresses.contains(address));
        self.addresses.iter().copied().chain(other).collect()
    }

    /// Why it does not answer, in words.
    pub fn why_lost(&self) -> &str {
        self.trouble.as_deref().unwrap_or("it answers on no uplink")
    }

    /// There is a session; whether it is with another address than before.
    pub(super) fn on_session(&mut self, address: IpAddr, now: Instant) -> bool {
        self.connected = true;
        self.on_answer(now);
        self.trouble = None;
        self.in_use.replace(address) != Some(address)
    }

    /// It answered a probe or a ping; whether that ends a silence in which it may have been lost.
    pub(super) fn on_answer(&mut self, now: Instant) -> bool {
        let before = self.heard.replace(now);
        self.asked = None;
        before.is_some_and(|before| now >= before + SERVER_SILENCE)
    }

    /// It is asked for a sign of life.
    pub(super) fn on_question(&mut self, now: Instant) {
        self.asked = Some((self.asked.map_or(now, |(first, _)| first), now));
    }

    /// Whether to ask it for a sign of life now; remembers that it was asked.
    pub(super) fn ping_due(&mut self, expected: Expectation, now: Instant) -> bool {
        let due = self.connected && self.next_question(expected).is_none_or(|at| now >= at);
        if due {
            self.on_question(now);
        }
        due
    }

    fn next_question(&self, expected: Expectation) -> Option<Instant> {
        match self.asked {
            Some((_, last)) => Some(last + PING_AFTER),
            None => Some(self.heard? + expected.every),
        }
    }

    /// Decides whether it can be reached; whether that changed. It counts as lost when neither
    /// probes nor the control connection bring an answer.
    pub(super) fn judge(&mut self, expected: Expectation, now: Instant) -> bool {
        let waits = self.asked.is_none_or(|(first, _)| now < first + expected.within);
        let lately = |heard: Instant| now < heard + SERVER_SILENCE;
        // One that is lost has to answer: with more patience it would only seem to be well again.
        let may_answer = self.reachable && self.connected && waits;
        let answers = self.heard.is_some_and(|heard| lately(heard) || may_answer);
        // Without a control connection answers to probes may be those of a dying session.
        let reachable = self.in_use.is_some() && answers && (self.connected || self.reachable);
        if reachable == self.reachable {
            return false;
        }
        self.reachable = reachable;
        self.since = Some(now);
        true
    }

    /// When [`Server::ping_due`] or [`Server::judge`] say otherwise by time alone.
    pub(super) fn deadline(&self, expected: Expectation, now: Instant) -> Option<Instant> {
        let heard = self.heard.filter(|_| self.connected || self.reachable)?;
        let silent = Some(heard + SERVER_SILENCE);
        let unanswered = self.asked.map(|(first, _)| first + expected.within);
        let all = [self.next_question(expected), silent, unanswered].into_iter().flatten();
        all.filter(|&at| at > now).min()
    }
}
