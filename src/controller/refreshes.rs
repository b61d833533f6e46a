//! Endpoints made anew because subflows are missing.
//!
//! The kernel's path manager never makes a subflow anew that has died: its endpoint is removed and
//! added again, more and more rarely where that does not help.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::net::{Endpoint, EndpointId};
use crate::reconcile::{Operation, Plan};

/// The first wait before an endpoint is made anew another time; it doubles.
const WAIT_FIRST: Duration = Duration::from_secs(5);
/// The longest such wait.
const WAIT_LAST: Duration = Duration::from_secs(600);

struct Refresh {
    not_before: Instant,
    wait: Duration,
    /// Whether subflows were still missing after the first refresh.
    in_vain: bool,
}

/// What was made anew, by slot.
#[derive(Default)]
pub(super) struct Refreshes(BTreeMap<u8, Refresh>);

impl Refreshes {
    /// The plan for slots on which subflows are missing; the others are well again.
    pub(super) fn plan(&mut self, slots: &[u8], endpoints: &[Endpoint], now: Instant) -> Plan {
        self.0.retain(|slot, _| slots.contains(slot));
        let mut plan = Plan::new();
        for &slot in slots {
            let id = EndpointId::of_slot(slot);
            let Some(endpoint) = endpoints.iter().find(|endpoint| endpoint.id == id) else {
                continue;
            };
            let refresh = self
                .0
                .entry(slot)
                .and_modify(|refresh| refresh.in_vain = true)
                .or_insert(Refresh { not_before: now, wait: WAIT_FIRST, in_vain: false });
            if now < refresh.not_before {
                continue;
            }
            refresh.not_before = now + refresh.wait;
            refresh.wait = (refresh.wait * 2).min(WAIT_LAST);
            plan.push(Operation::DeleteEndpoint(endpoint.clone()));
            plan.push(Operation::AddEndpoint(endpoint.clone()));
        }
        plan
    }

    /// Whether subflows on this slot stay missing.
    pub(super) fn in_vain(&self, slot: u8) -> bool {
        self.0.get(&slot).is_some_and(|refresh| refresh.in_vain)
    }
}
