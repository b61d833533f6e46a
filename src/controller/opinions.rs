//! A second opinion on uplinks over which the server does not answer: whether the Internet does.

use std::fmt;
use std::time::{Duration, Instant};

use litemap::LiteMap;

use super::outlets::{self, Outlet};
use super::{Action, Controller};
use crate::health::State;

/// How long the server has to be silent before there is a question.
const DOUBT: Duration = Duration::from_secs(2);
/// The first wait before an uplink is checked again; it doubles.
const WAIT_FIRST: Duration = Duration::from_secs(15);
/// The longest such wait.
const WAIT_LAST: Duration = Duration::from_secs(300);
/// Uplinks whose traffic counts against a quota wait so many times longer.
const METERED: u32 = 8;

/// Whether the Internet answers over an uplink on which the server does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opinion {
    /// It does: it is the server that is missing, or something on the way to it alone.
    Works,
    /// It does not, for this reason: the uplink is dead.
    Fails(String),
}

impl fmt::Display for Opinion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Opinion::Works => f.write_str("the Internet works over it"),
            Opinion::Fails(reason) => write!(f, "nothing works over it: {reason}"),
        }
    }
}

/// An uplink in doubt.
pub(super) struct Doubtful {
    /// Where to check.
    pub(super) outlet: Outlet,
    /// Whether its traffic counts against a quota.
    pub(super) metered: bool,
}

struct Question {
    next: Instant,
    waiting: bool,
    asked: u32,
    opinion: Option<Opinion>,
}

/// The uplinks in doubt and what was found out, by slot.
#[derive(Default)]
pub(super) struct Opinions(LiteMap<u8, Question>);

impl Opinions {
    /// Takes note of the uplinks in doubt, and gives those to check now, each once at a time.
    pub(super) fn due(&mut self, doubtful: Vec<Doubtful>, now: Instant) -> Vec<Outlet> {
        self.0.retain(|slot, _| doubtful.iter().any(|it| it.outlet.slot == *slot));
        let mut due = Vec::new();
        for Doubtful { outlet, metered } in doubtful {
            let new = Question { next: now + DOUBT, waiting: false, asked: 0, opinion: None };
            let question = self.0.entry(outlet.slot).or_insert(new);
            if question.waiting || now < question.next {
                continue;
            }
            let wait = WAIT_FIRST.saturating_mul(1 << question.asked.min(16)).min(WAIT_LAST);
            question.next = now + if metered { wait * METERED } else { wait };
            question.asked = question.asked.saturating_add(1);
            question.waiting = true;
            due.push(outlet);
        }
        due
    }

    /// Takes the outcome of a check. Whether it is another one than before.
    pub(super) fn take(&mut self, slot: u8, opinion: Opinion) -> bool {
        let Some(question) = self.0.get_mut(&slot) else { return false };
        question.waiting = false;
        question.opinion.replace(opinion.clone()) != Some(opinion)
    }

    /// What was found out about an uplink; `None` where there is no doubt, or no answer yet.
    pub(super) fn of(&self, slot: u8) -> Option<&Opinion> {
        self.0.get(&slot)?.opinion.as_ref()
    }

    /// When the next check is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0.values().filter(|question| !question.waiting).map(|question| question.next).min()
    }
}

impl Controller {
    /// Asks for a second opinion on uplinks over which the server does not answer.
    pub(super) fn ask_internet(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let url = self.config.check_url.clone().filter(|_| self.config.idle_reason().is_none());
        let Some(url) = url else { return };
        let lost = !self.servers.used().reachable;
        let is_down = |slot| self.health.get(&slot).is_some_and(|it| it.state() == State::Down);
        let silent = self.uplinks.iter().filter(|uplink| lost || is_down(uplink.slot));
        let doubtful = silent.filter_map(|uplink| {
            let mut outlets = outlets::dial_order(&[uplink.slot], &self.uplinks).into_iter();
            let metered = self.config.is_metered(&uplink.name);
            Some(Doubtful { outlet: outlets.next()?, metered })
        });
        let due = self.opinions.due(doubtful.collect(), now);
        let checks = due.into_iter().map(|outlet| Action::AskInternet { outlet, url: url.clone() });
        actions.extend(checks);
    }

    /// What was found out counts at once: untunnelled traffic may have to take another uplink.
    pub(super) fn on_opinion(
        &mut self,
        slot: u8,
        opinion: Opinion,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Some(uplink) = self.uplinks.iter().find(|uplink| uplink.slot == slot) else { return };
        let text = format!("uplink {}: the server does not answer; {opinion}", uplink.name);
        if self.opinions.take(slot, opinion) {
            self.looks.by(now);
            if self.told.flaps(&slot) {
                return;
            }
            actions.push(Action::Log(log::Level::Warn, text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlet(slot: u8) -> Outlet {
        Outlet { slot, source: [192, 0, 2, slot].into(), device: format!("eth{slot}") }
    }

    /// The seconds at which an uplink is checked that stays in doubt, when each check lasts one.
    fn checks(metered: bool, seconds: u64) -> Vec<u64> {
        let (start, mut opinions) = (Instant::now(), Opinions::default());
        let mut checks = Vec::new();
        for second in 0..seconds {
            let now = start + Duration::from_secs(second);
            if checks.last() == Some(&second.wrapping_sub(1)) {
                opinions.take(1, Opinion::Works);
            }
            let due = opinions.due(vec![Doubtful { outlet: outlet(1), metered }], now);
            assert!(due.iter().all(|due| *due == outlet(1)));
            checks.extend(due.iter().map(|_| second));
        }
        checks
    }

    #[test]
    fn checks_are_rare() {
        assert_eq!(checks(false, 1200), [2, 17, 47, 107, 227, 467, 767, 1067]);
        assert_eq!(checks(true, 1200), [2, 122, 362, 842]);
    }

    #[test]
    fn one_check_of_an_uplink_is_under_way_at_a_time() {
        let (start, mut opinions) = (Instant::now(), Opinions::default());
        let doubtful = |slots: &[u8]| -> Vec<Doubtful> {
            let doubtful = |slot: &u8| Doubtful { outlet: outlet(*slot), metered: false };
            slots.iter().map(doubtful).collect()
        };
        assert_eq!(opinions.due(doubtful(&[1, 2]), start), []);
        assert_eq!(opinions.deadline(), Some(start + DOUBT));
        let mut now = start + DOUBT;
        assert_eq!(opinions.due(doubtful(&[1, 2]), now), [outlet(1), outlet(2)]);
        assert!(opinions.take(2, Opinion::Works));
        now += WAIT_LAST;
        assert_eq!(opinions.due(doubtful(&[1, 2]), now), [outlet(2)]);
        assert!(!opinions.take(2, Opinion::Works), "no news");
        assert_eq!(opinions.of(2), Some(&Opinion::Works));

        // Beyond doubt, what was found out is forgotten.
        assert_eq!(opinions.due(vec![], now), []);
        assert!(!opinions.take(1, Opinion::Works) && opinions.of(2).is_none());
    }
}
