//! What the uplinks carry, and what follows for their roles: quotas, and overflow.

use std::time::Instant;

use litemap::LiteMap;

use super::{Action, Controller};
use crate::config::agent::Role;
use crate::failover::InForce;
use crate::net::Counters;
use crate::quota::{Cap, DayCount, Reading, Save, Standing, Usage};

impl Controller {
    /// Continues what an earlier agent counted.
    pub fn resume_usage(&mut self, usage: Usage) {
        self.usage = usage;
    }

    /// What an uplink has carried in this period of its quota.
    pub fn usage(&self, uplink: &str) -> Option<Standing> {
        self.usage.standing(uplink)
    }

    /// What an uplink has carried on each of the last days, the oldest first.
    pub fn days(&self, uplink: &str) -> &[DayCount] {
        self.usage.days(uplink)
    }

    /// The quota that an uplink has reached.
    pub fn cap(&self, uplink: &str) -> Option<Cap> {
        self.usage.caps(&self.config.uplinks).remove(uplink)
    }

    /// Whether the uplink with this slot is switched off because its quota is reached.
    pub fn is_capped_off(&self, slot: u8) -> bool {
        let uplink = self.uplinks.iter().find(|uplink| uplink.slot == slot);
        uplink.is_some_and(|uplink| self.failover.is_capped_off(&uplink.name))
    }

    pub(super) fn on_counted(
        &mut self,
        clock: u64,
        counters: &LiteMap<u8, Counters>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let readings = self.uplinks.iter().filter_map(|uplink| {
            let (device, counters) = (uplink.device.as_ref()?, counters.get(&uplink.slot)?);
            let bytes = counters.rx_bytes.saturating_add(counters.tx_bytes);
            let reading = Reading { device: device.name.clone(), index: device.index.0, bytes };
            Some((uplink.name.clone(), reading))
        });
        self.usage.count(&self.config.uplinks, &readings.collect(), clock, now);
        if let Some(save) = self.usage.save_due(&self.config.uplinks, now) {
            actions.push(self.save_usage(save));
        }
        let off = |controller: &Controller| -> Vec<bool> {
            let slots = controller.uplinks.iter().map(|uplink| uplink.slot);
            slots.map(|slot| controller.is_capped_off(slot)).collect()
        };
        let before = off(self);
        self.failover.set_caps(self.usage.caps(&self.config.uplinks));
        let changed = before.into_iter().zip(off(self)).map(|(before, after)| before != after);
        for (uplink, _) in self.uplinks.iter().zip(changed).filter(|(_, changed)| *changed) {
            // It is not probed while it is off, so nothing is known of it.
            let health = self.new_health(&uplink.name, now);
            self.health.insert(uplink.slot, health);
        }
    }

    /// Whether overflow uplinks are needed.
    pub(super) fn judge_saturation(&mut self, counters: &LiteMap<u8, Counters>, now: Instant) {
        let slots = |role: Role, is: fn(InForce) -> bool| -> Vec<u8> {
            let assigned = self.uplinks.iter().zip(&self.assignments);
            assigned
                .filter(|(uplink, assignment)| {
                    self.failover.role(uplink) == role && is(assignment.in_force)
                })
                .map(|(uplink, _)| uplink.slot)
                .collect()
        };
        let bond = slots(Role::Bond, |in_force| in_force == InForce::Active);
        let overflow = slots(Role::Overflow, |in_force| in_force != InForce::Unused);
        self.saturation.count(counters, &bond, &overflow, now);
        self.failover.set_saturated(self.saturation.is_engaged());
    }

    pub(super) fn save_usage(&self, save: Save) -> Action {
        Action::SaveUsage { text: self.usage.to_json(), save }
    }
}
