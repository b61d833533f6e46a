//! The probes that have left and were not answered yet, and which of them count as lost.

use std::collections::VecDeque;
use std::time::Instant;

use super::outcomes::Outcomes;

/// Probes remembered: more than can be on their way within [`super::Policy::timeout_max`].
const OUTSTANDING: usize = 32;

/// A probe that has left.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    seq: u64,
    /// When it left.
    pub sent: Instant,
    /// The number of its outcome, once it counts as lost.
    pub lost: Option<u32>,
}

/// The newest probes without a reply, in the order in which they left.
#[derive(Clone, Debug, Default)]
pub struct Probes(VecDeque<Probe>);

impl Probes {
    /// One has left; the oldest is forgotten for it when there are too many.
    pub fn add(&mut self, now: Instant, seq: u64) {
        if self.0.len() == OUTSTANDING {
            self.0.pop_front();
        }
        self.0.push_back(Probe { seq, sent: now, lost: None });
    }

    /// The one with this number is answered.
    pub fn take(&mut self, seq: u64) -> Option<Probe> {
        let position = self.0.iter().position(|probe| probe.seq == seq)?;
        self.0.remove(position)
    }

    /// Counts the oldest one as lost for which this says that it is by the time when it left; gives that
    /// time. Each counts once.
    pub fn lose(
        &mut self,
        outcomes: &mut Outcomes,
        is_lost: impl Fn(Instant) -> bool,
    ) -> Option<Instant> {
        let mut waited_for = self.0.iter_mut().filter(|probe| probe.lost.is_none());
        let probe = waited_for.find(|probe| is_lost(probe.sent))?;
        probe.lost = Some(outcomes.count(false));
        Some(probe.sent)
    }

    /// When the oldest left that does not count as lost.
    pub fn waited_for_since(&self) -> Option<Instant> {
        self.0.iter().find(|probe| probe.lost.is_none()).map(|probe| probe.sent)
    }

    /// Whether there is one, lost or not, that left at such a time.
    pub fn any(&self, is_meant: impl Fn(Instant) -> bool) -> bool {
        self.0.iter().any(|probe| is_meant(probe.sent))
    }

    /// Forgets all that left until then.
    pub fn forget_until(&mut self, then: Instant) {
        self.0.retain(|probe| probe.sent > then);
    }

    /// Forgets those that count as lost.
    pub fn forget_lost(&mut self) {
        self.0.retain(|probe| probe.lost.is_none());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_so_many_are_remembered() {
        let (mut probes, now) = (Probes::default(), Instant::now());
        (0..=OUTSTANDING as u64).for_each(|seq| probes.add(now, seq));
        assert_eq!(probes.0.len(), OUTSTANDING);
        assert!(probes.take(0).is_none() && probes.take(1).is_some());
    }

    #[test]
    fn each_is_lost_once_and_the_oldest_first() {
        let (mut probes, begun) = (Probes::default(), Instant::now());
        let mut outcomes = Outcomes::default();
        let at = |ms| begun + Duration::from_millis(ms);
        (0..3).for_each(|seq| probes.add(at(seq), seq));
        let mut lose = |probes: &mut Probes| probes.lose(&mut outcomes, |sent| sent < at(2));
        assert_eq!([(); 3].map(|()| lose(&mut probes)), [Some(at(0)), Some(at(1)), None]);
        assert_eq!(probes.waited_for_since(), Some(at(2)));
        assert_eq!(outcomes.loss(), Some(1.0));
        assert!(probes.any(|sent| sent == begun), "lost ones are remembered, too");
        probes.forget_lost();
        assert!(!probes.any(|sent| sent < at(2)));
        probes.forget_until(at(2));
        assert_eq!(probes.waited_for_since(), None);
    }
}
