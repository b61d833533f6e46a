//! What is heard of the uplinks, and the probes that are due.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use litemap::LiteMap;

use super::server::Expectation;
use super::{Action, Controller, Outlet, outlets};
use crate::config::agent::Role;
use crate::health::{Health, Policy, Signs, State};
use crate::net::Family;
use crate::uplink::Uplink;

/// Above this rate an uplink carries data and is probed densely, in bits a second.
const ACTIVE_BPS: u64 = 64_000;

impl Controller {
    pub(super) fn on_probe_sent(&mut self, slot: u8, counter: u64, sent: bool, now: Instant) {
        self.probing.retain(|&asked| asked != slot);
        if let Some(health) = self.health.get_mut(&slot) {
            if sent { health.on_sent(now, counter) } else { health.on_send_failed(now) }
        }
    }

    pub(super) fn on_reply(&mut self, slot: u8, counter: u64, now: Instant) {
        let health = self.health.get_mut(&slot);
        if health.and_then(|health| health.on_reply(now, counter)).is_some() {
            self.servers.on_probe_answered(now);
        }
    }

    pub(super) fn on_rates(&mut self, rates: &LiteMap<u8, u64>) {
        for (slot, health) in &mut self.health {
            health.set_active(rates.get(slot).is_some_and(|&rate| rate > ACTIVE_BPS));
        }
    }

    /// Probes leave here from now on.
    pub(super) fn set_probers(&mut self, probers: Vec<Outlet>, actions: &mut Vec<Action>) {
        self.probing.clear();
        self.probers = probers;
        for (slot, health) in &mut self.health {
            if !self.probers.iter().any(|outlet| outlet.slot == *slot) {
                health.rest();
            }
        }
        actions.push(Action::SetProbers(self.probers.clone()));
    }

    pub(super) fn on_received(&mut self, packets: &LiteMap<u8, u64>, now: Instant) {
        for (slot, health) in self.health.iter_mut().filter(|(_, health)| health.is_active()) {
            if let Some(&packets) = packets.get(slot) {
                health.on_received(now, packets);
            }
        }
    }

    pub(super) fn on_subflows(&mut self, signs: &LiteMap<u8, Signs>, now: Instant) {
        for (slot, &signs) in signs {
            if let Some(health) = self.health.get_mut(slot) {
                health.on_subflows(now, signs);
            }
        }
    }

    pub(super) fn on_subflow_failed(&mut self, address: IpAddr) {
        for uplink in self.uplinks.iter().filter(|uplink| uplink.has_address(address)) {
            if let Some(health) = self.health.get_mut(&uplink.slot) {
                health.suspect();
            }
        }
    }

    /// Sends the probes that are due.
    pub(super) fn probe(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for (_, health) in &mut self.health {
            health.poll(now);
        }
        self.spread_suspicion(now);
        for &Outlet { slot, .. } in &self.probers {
            let due = self.health.get(&slot).is_some_and(|health| health.takes_probe(now));
            if due && !self.probing.contains(&slot) {
                self.probing.push(slot);
                actions.push(Action::Probe { slot });
            }
        }
    }

    /// When an uplink begins to fail the others are probed at once: they tell whether it is the
    /// uplink or the server.
    fn spread_suspicion(&mut self, now: Instant) {
        let fails = |(slot, health): (&u8, &Health)| health.is_doubtful(now).then_some(*slot);
        let failing: Vec<u8> = self.health.iter().filter_map(fails).collect();
        if failing.iter().any(|slot| !self.failing.contains(slot)) {
            let well = self.health.iter_mut().filter(|(slot, _)| !failing.contains(slot));
            well.for_each(|(_, health)| health.suspect());
        }
        self.failing = failing;
    }

    /// When signs of life of the server in use are expected. Answered probes are as good as answers
    /// on the control connection, until one of them is missing.
    pub(super) fn expectation(&self, now: Instant) -> Expectation {
        let probed = || self.probers.iter().filter_map(|outlet| self.health.get(&outlet.slot));
        let doubtful =
            probed().any(|health| health.state() != State::Down && health.is_doubtful(now));
        let every = probed().filter_map(Health::answers_every).min().filter(|_| !doubtful);
        let timeout = probed().map(Health::timeout).min();
        Expectation::probed(every, timeout.unwrap_or(Duration::MAX))
    }

    /// Health belongs to a path: another address or device starts anew, a gap in it does not. What
    /// was known of an uplink before it was switched off says nothing afterwards.
    pub(super) fn renew_health(&mut self, before: &[Uplink], now: Instant) {
        let family = self.servers.used().in_use.map_or(Family::V4, Family::of);
        let mut kept = LiteMap::new();
        for uplink in &self.uplinks {
            let old = before.iter().find(|old| old.slot == uplink.slot && old.name == uplink.name);
            let same = old.is_some_and(|old| {
                let (old, new) = (outlets::source(old, family), outlets::source(uplink, family));
                old == new || new.is_none()
            });
            let switched =
                old.is_some_and(|old| (old.role == Role::Off) != (uplink.role == Role::Off));
            let health = self.health.remove(&uplink.slot).filter(|_| same && !switched);
            kept.insert(uplink.slot, health.unwrap_or_else(|| self.new_health(&uplink.name, now)));
        }
        self.health = kept;
    }

    pub(super) fn renew_all_health(&mut self, now: Instant) {
        let anew = |uplink: &Uplink| (uplink.slot, self.new_health(&uplink.name, now));
        self.health = self.uplinks.iter().map(anew).collect();
    }

    pub(super) fn healths(&self) -> Vec<&Health> {
        self.uplinks.iter().filter_map(|uplink| self.health.get(&uplink.slot)).collect()
    }

    /// The health of an uplink of which nothing is known yet.
    pub(super) fn new_health(&self, name: &str, now: Instant) -> Health {
        match self.servers.used().in_use {
            Some(_) => Health::new(self.policy(name), now),
            None => Health::unprobed(self.policy(name), now),
        }
    }

    /// Has the uplinks probed as their configuration wants it.
    pub(super) fn set_policies(&mut self) {
        let policies: Vec<(u8, Policy)> =
            self.uplinks.iter().map(|uplink| (uplink.slot, self.policy(&uplink.name))).collect();
        for (slot, policy) in policies {
            if let Some(health) = self.health.get_mut(&slot) {
                health.set_policy(policy);
            }
        }
    }

    fn policy(&self, name: &str) -> Policy {
        if self.config.is_metered(name) { Policy::metered() } else { Policy::default() }
    }
}
