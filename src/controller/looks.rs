//! When to look at the kernel.

use std::time::{Duration, Instant};

/// Changes within this time are looked at together; the first of them at once.
pub(super) const COALESCE: Duration = Duration::from_millis(100);
/// The kernel is looked at this often even if nothing was heard of it.
pub(super) const PERIODIC: Duration = Duration::from_secs(15);
/// After a look that failed the next one waits this long, whatever happens.
pub(super) const RETRY: Duration = Duration::from_secs(2);

/// When the kernel was looked at, and when it will be.
pub(super) struct Looks {
    due: Instant,
    not_before: Instant,
    last: Option<Instant>,
    last_thorough: Option<Instant>,
    under_way: bool,
}

impl Looks {
    /// None yet; the first is due now.
    pub(super) fn new(now: Instant) -> Looks {
        Looks { due: now, not_before: now, last: None, last_thorough: None, under_way: false }
    }

    /// Something may have changed.
    pub(super) fn soon(&mut self, now: Instant) {
        self.by(self.last.map_or(now, |last| last + COALESCE));
    }

    /// The next look is at `when` at the latest.
    pub(super) fn by(&mut self, when: Instant) {
        self.due = self.due.min(when);
    }

    /// Begins a look if one is due, and says whether it is a thorough one.
    pub(super) fn begin(&mut self, now: Instant) -> Option<bool> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return None;
        }
        let thorough = self.last_thorough.is_none_or(|last| now >= last + PERIODIC);
        if thorough {
            self.last_thorough = Some(now);
        }
        self.last = Some(now);
        self.due = now + PERIODIC;
        self.under_way = true;
        Some(thorough)
    }

    /// A look ended.
    pub(super) fn end(&mut self) {
        self.under_way = false;
    }

    /// A look failed.
    pub(super) fn fail(&mut self, now: Instant) {
        self.under_way = false;
        self.not_before = now + RETRY;
        self.by(self.not_before);
    }

    /// When the next look begins; `None` while one is under way.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (!self.under_way).then(|| self.due.max(self.not_before))
    }
}
