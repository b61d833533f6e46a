//! Subflows that outlived an outage of the server.
//!
//! Meanwhile TCP has doubled the wait for its next retransmission again and again (RFC 6298, section
//! 5.5): what was under way would stand still for as long again as the outage lasted. When an endpoint
//! is made anew the kernel closes its subflows at both ends, and sends what had been under way on them
//! over the new ones at once. All go before any comes: what is sent again over one of the old ones
//! would be stuck as before, and hold up what follows it.

use std::time::Instant;

use litemap::LiteMap;

use super::refreshes::joined_again;
use super::{Action, Controller};
use crate::net::{Endpoint, EndpointId};
use crate::reconcile::Operation;

/// What tells which endpoints are as old as an outage.
#[derive(Default)]
pub(super) struct Revival {
    /// Since when there may be connections that outlive one.
    lost: Option<Instant>,
    added: LiteMap<EndpointId, Instant>,
}

impl Revival {
    /// An endpoint is added.
    pub(super) fn note(&mut self, id: EndpointId, now: Instant) {
        self.added.insert(id, now);
    }

    /// When an endpoint was added; `None` for one found in the kernel.
    pub(super) fn added(&self, id: EndpointId) -> Option<Instant> {
        self.added.get(&id).copied()
    }

    /// The server used until now does not answer.
    pub(super) fn begin(&mut self, now: Instant) {
        self.lost.get_or_insert(now);
    }
}

impl Controller {
    /// Has new subflows join over all endpoints when an outage is over. Over those that came meanwhile the
    /// first ones are still about to join, and TCP has doubled the waits for their SYN, too.
    pub(super) fn revive(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some(lost) = self.revival.lost.take() else { return };
        let ours = self.kernel.endpoints.iter().filter(|endpoint| endpoint.is_ours()).cloned();
        let (young, old): (Vec<Endpoint>, Vec<Endpoint>) =
            ours.partition(|it| self.revival.added(it.id).is_some_and(|added| added >= lost));
        let deletions = old.iter().cloned().map(Operation::DeleteEndpoint);
        let additions = old.iter().cloned().map(Operation::AddEndpoint);
        let plan = deletions.chain(additions).chain(young.into_iter().flat_map(joined_again));
        self.apply(plan.collect(), now, actions);
    }
}
