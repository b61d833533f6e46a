//! Waiting for conditions, with a deadline.

use std::time::{Duration, Instant};

/// How long to let others run between two looks at a condition.
const INTERVAL: Duration = Duration::from_millis(10);

/// Looks until `condition` gives a value, or `limit` has passed: then `None`.
pub fn wait_for<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(INTERVAL);
    }
}

/// Like [`wait_for`], and panics with `what` at the deadline.
#[track_caller]
pub fn until<T>(what: &str, limit: Duration, condition: impl FnMut() -> Option<T>) -> T {
    match wait_for(limit, condition) {
        Some(value) => value,
        None => panic!("waited {limit:?} in vain: {what}"),
    }
}
