//! Subflows that outlived an outage of the server.
//!
//! Meanwhile TCP has doubled the wait for its next retransmission again and again (RFC 6298, section
//! 5.5): what was under way would stand still for as long again as the outage lasted. When an endpoint
//! is made anew the kernel closes its subflows at both ends, and sends what had been under way on them
//! over the new ones at once. All go before any comes: what is sent again over one of the old ones
//! would be stuck as before, and hold up what follows it.

use std::time::Instant;

use super::{Action, Controller};
use crate::reconcile::Operation;

impl Controller {
    /// Makes all endpoints anew.
    pub(super) fn revive(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let ours = || self.kernel.endpoints.iter().filter(|endpoint| endpoint.is_ours()).cloned();
        let plan = ours().map(Operation::DeleteEndpoint).chain(ours().map(Operation::AddEndpoint));
        self.apply(plan.collect(), now, actions);
    }
}
