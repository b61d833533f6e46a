//! Uplinks far behind the others.

use std::time::Instant;

use super::Controller;
use crate::failover::InForce;

impl Controller {
    /// Has far uplinks stand by unless they make the bond faster; `rate` is that of all uplinks.
    pub(super) fn keep_floor(&mut self, rate: u64, now: Instant) {
        let live = self.uplinks.iter().filter(|uplink| {
            let mut assignments = self.assignments.iter();
            let assignment = assignments.find(|assignment| assignment.slot == uplink.slot);
            let used = assignment.is_some_and(|assignment| assignment.in_force != InForce::Unused);
            used && self.failover.bonds(uplink)
        });
        let rtts = live.filter_map(|uplink| {
            Some((uplink.slot, self.health.get(&uplink.slot)?.rtt().least()?))
        });
        self.floor.set_rtts(&rtts.collect());
        self.floor.on_rate(rate, now);
        self.failover.set_far(self.floor.standing_by(now));
    }
}
