//! Probes in quick succession when a flow collapses, to tell heavy loss from a transfer that ends.
//!
//! A few hundredths of a second show what a probe each quarter of a second takes more than a second to.

use std::time::{Duration, Instant};

/// Probes of a volley.
const PROBES: u8 = 24;
/// From the beginning of a volley to that of the next one, at least: they are to stay next to nothing
/// beside the flow that gives rise to them.
const APART: Duration = Duration::from_millis(500);

/// The volleys of one uplink.
#[derive(Clone, Copy, Debug, Default)]
pub struct Volley {
    /// Probes that are still to leave.
    left: u8,
    begun: Option<Instant>,
}

impl Volley {
    /// Begins one, if the last one is long enough ago.
    pub fn begin(&mut self, now: Instant) {
        let lately = |at: Instant| now.saturating_duration_since(at) < APART;
        if !self.begun.is_some_and(lately) {
            *self = Volley { left: PROBES, begun: Some(now) };
        }
    }

    /// Whether more probes are to leave.
    pub fn is_under_way(&self) -> bool {
        self.left > 0
    }

    /// A probe has left.
    pub fn count(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// No more probes are to leave.
    pub fn end(&mut self) {
        self.left = 0;
    }
}
