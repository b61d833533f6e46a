//! Operations carried out whose effect was not seen yet: each is tried again, more and more rarely.

use std::time::{Duration, Instant};

use super::event::Failed;
use crate::reconcile::{Operation, Plan};

/// The first wait before an operation that is still needed is tried again; it doubles.
const WAIT_FIRST: Duration = Duration::from_millis(100);
/// The longest such wait.
pub(super) const WAIT_LAST: Duration = Duration::from_secs(15);
/// An operation that gave no error and was still needed after so many tries has no effect.
const IN_VAIN: u32 = 3;

struct Attempt {
    operation: Operation,
    tries: u32,
    first: Instant,
    next: Instant,
    /// Carried out, and not heard of since.
    open: bool,
    error: Option<(String, Option<i32>)>,
    /// The reason last told.
    told: Option<String>,
}

impl Attempt {
    fn reason(&self) -> Option<&str> {
        match &self.error {
            Some((reason, _)) => Some(reason),
            None if self.tries >= IN_VAIN => {
                Some("done without an error, but to no effect: something else undoes it")
            }
            None => None,
        }
    }
}

/// An operation that fails, or has no effect, and is tried again.
#[derive(Clone, Copy, Debug)]
pub struct Failing<'a> {
    /// The operation.
    pub operation: &'a Operation,
    /// Why.
    pub reason: &'a str,
    /// The kernel's error number, if it gave one.
    pub errno: Option<i32>,
    /// When it was tried first.
    pub since: Instant,
}

/// The operations that were tried and are still needed.
#[derive(Default)]
pub(super) struct Attempts(Vec<Attempt>);

impl Attempts {
    /// What of a fresh plan to carry out now; an operation missing in it took effect.
    pub(super) fn due(&mut self, plan: Plan, now: Instant) -> Plan {
        self.0.retain(|attempt| plan.contains(&attempt.operation));
        plan.into_iter().filter(|operation| self.begin(operation, now)).collect()
    }

    fn begin(&mut self, operation: &Operation, now: Instant) -> bool {
        match self.0.iter_mut().find(|attempt| attempt.operation == *operation) {
            Some(attempt) if now < attempt.next => return false,
            Some(attempt) => {
                let doublings = attempt.tries.min(16);
                attempt.tries = attempt.tries.saturating_add(1);
                attempt.next = now + WAIT_FIRST.saturating_mul(1 << doublings).min(WAIT_LAST);
                attempt.open = true;
            }
            None => self.0.push(Attempt {
                operation: operation.clone(),
                tries: 1,
                first: now,
                next: now + WAIT_FIRST,
                open: true,
                error: None,
                told: None,
            }),
        }
        true
    }

    /// Takes what became of what was due. Returns the operations that fail otherwise than before.
    pub(super) fn note(&mut self, failed: &[Failed]) -> Vec<Failing<'_>> {
        let mut news = Vec::new();
        for attempt in self.0.iter_mut().filter(|attempt| attempt.open) {
            attempt.open = false;
            attempt.error = failed
                .iter()
                .find(|failed| failed.operation == attempt.operation)
                .map(|failed| (failed.reason.clone(), failed.errno));
            let reason = attempt.reason().map(str::to_owned);
            if attempt.told != reason {
                attempt.told = reason;
                news.extend(failing(attempt));
            }
        }
        news
    }

    /// When the next operation is tried again.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.iter().map(|attempt| attempt.next).min()
    }

    /// The operations that fail.
    pub(super) fn failing(&self) -> impl Iterator<Item = Failing<'_>> {
        self.0.iter().filter_map(failing)
    }
}

fn failing(attempt: &Attempt) -> Option<Failing<'_>> {
    Some(Failing {
        operation: &attempt.operation,
        reason: attempt.reason()?,
        errno: attempt.error.as_ref().and_then(|(_, errno)| *errno),
        since: attempt.first,
    })
}
