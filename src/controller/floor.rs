//! Uplinks that slow the others down.

use std::time::Instant;

use litemap::LiteMap;

use super::Controller;
use super::refreshes::anew;
use crate::failover::{Assignment, InForce, Reason};
use crate::net::Endpoint;
use crate::reconcile::{Operation, Plan};

impl Controller {
    /// Has far uplinks, and thin ones that lose packets, stand by unless they make the bond faster.
    /// Takes rates in bits a second and segments lost in the last second, by slot.
    pub(super) fn keep_floor(
        &mut self,
        rates: &LiteMap<u8, u64>,
        lost: &LiteMap<u8, u64>,
        now: Instant,
    ) {
        let live = self.uplinks.iter().filter(|uplink| {
            let mut assignments = self.assignments.iter();
            let assignment = assignments.find(|assignment| assignment.slot == uplink.slot);
            let used = assignment.is_some_and(|assignment| assignment.in_force != InForce::Unused);
            used && self.failover.bonds(uplink)
        });
        let rtts = live.filter_map(|uplink| {
            let health = self.health.get(&uplink.slot)?;
            // Beside one that loses much, none is too far.
            Some((uplink.slot, health.rtt().least().filter(|_| !health.is_lossy())?))
        });
        self.floor.set_rtts(&rtts.collect());
        self.floor.on_second(rates, lost, now);
        self.failover.set_burdens(self.floor.standing_by(now));
    }

    /// An uplink that slows the others down is not told to stand by: its subflows are closed and made
    /// anew as backups, so that the kernel sends at once over the others what is on its way over them.
    pub(super) fn withdraw(&self, plan: Plan) -> Plan {
        let slows = |endpoint: &Endpoint| {
            let mut assignments = self.assignments.iter();
            assignments.any(|Assignment { slot, reason, .. }| {
                endpoint.is_of_slot(*slot) && matches!(reason, Reason::Burden(_) | Reason::TooLossy)
            })
        };
        let operations = plan.into_iter().flat_map(|operation| match operation {
            Operation::ChangeEndpoint(endpoint) if endpoint.backup && slows(&endpoint) => {
                anew(endpoint).to_vec()
            }
            other => vec![other],
        });
        operations.collect()
    }
}
