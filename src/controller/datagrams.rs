//! UDP of the LAN that is tunnelled: which, and over which uplinks.

use std::time::{Duration, Instant};

use super::{Action, Controller};
use crate::failover::{self, InForce};
use crate::health::State;

/// A round trip shorter by less than this is no reason to take another uplink: each change shows as
/// jitter.
const RTT_MARGIN: Duration = Duration::from_millis(10);

/// What is in force.
#[derive(Default)]
pub(super) struct Datagrams {
    /// The ports that are diverted.
    ports: Vec<(u16, u16)>,
    /// The uplinks to send over, best first, and whether over two of them.
    ways: (Vec<u8>, bool),
    /// Whether the user knows of the trouble there is.
    told: bool,
}

/// How good an uplink is for datagrams.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rank {
    Good,
    Lossy,
    /// The last sign of life is missing: enough, since a change costs nothing.
    Doubtful,
    Down,
}

impl Controller {
    /// The UDP ports that are tunnelled: those of the configuration, unless the server is too old.
    pub(super) fn udp_ports(&self) -> &[(u16, u16)] {
        if self.servers.used().without_datagrams { &[] } else { &self.config.udp_ports }
    }

    /// Why UDP that should be tunnelled is not, and what to do about it.
    pub fn udp_trouble(&self) -> Option<(&'static str, &'static str)> {
        let refused = self.servers.used().without_datagrams && !self.config.udp_ports.is_empty();
        let found = "UDP to the ports in 'udp_ports' leaves untunnelled: the server is of a version that \
                     does not carry it";
        refused.then_some((found, "update the server"))
    }

    /// Tells the user of that, once.
    pub(super) fn tell_udp_trouble(&mut self, actions: &mut Vec<Action>) {
        let trouble = self.udp_trouble();
        if let Some((found, advice)) = trouble.filter(|_| !self.datagrams.told) {
            actions.push(Action::Log(log::Level::Warn, format!("{found}: {advice}")));
        }
        self.datagrams.told = trouble.is_some();
    }

    /// Has flows forgotten that begin or cease to be tunnelled: conntrack would go on translating
    /// them, or not, as before.
    pub(super) fn forget_diverted(&mut self, actions: &mut Vec<Action>) {
        let diverts = self.servers.used().reachable && self.config.idle_reason().is_none();
        let ports = if diverts { self.udp_ports().to_vec() } else { Vec::new() };
        if ports != self.datagrams.ports {
            let mut changed = std::mem::replace(&mut self.datagrams.ports, ports.clone());
            changed.extend(ports);
            actions.push(Action::ForgetUdp(changed));
        }
    }

    /// What is diverted goes on untunnelled when the agent has left.
    pub(super) fn forget_all_diverted(&mut self) -> Action {
        Action::ForgetUdp(std::mem::take(&mut self.datagrams.ports))
    }

    /// Chooses the uplinks that datagrams leave over from now on.
    pub(super) fn choose_ways(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.config.udp_ports.is_empty() && self.udp_targets().is_empty() {
            return;
        }
        let ways = (self.ways(now), self.config.udp_duplicate);
        if ways != self.datagrams.ways {
            let (slots, duplicate) = ways.clone();
            actions.push(Action::SetDatagramWays { slots, duplicate });
            self.datagrams.ways = ways;
        }
    }

    /// The uplinks in use, best first; those that stand by only where there is no other.
    fn ways(&self, now: Instant) -> Vec<u8> {
        let mut near = failover::best(&self.assignments, &self.uplinks, &self.healths());
        let active = |slot: &u8| {
            let mut assignments = self.assignments.iter();
            assignments.any(|it| it.slot == *slot && it.in_force == InForce::Active)
        };
        if near.iter().any(active) {
            near.retain(active);
        }
        let mut slots = Vec::new();
        for rank in [Rank::Good, Rank::Lossy, Rank::Doubtful, Rank::Down] {
            slots.extend(near.iter().filter(|slot| self.rank(**slot, now) == rank));
        }
        let used = self.datagrams.ways.0.first().copied();
        if let (Some(&best), Some(used)) = (slots.first(), used)
            && self.rank(used, now) == self.rank(best, now)
            && self.rtt(used) <= self.rtt(best) + RTT_MARGIN
            && let Some(place) = slots.iter().position(|slot| *slot == used)
        {
            slots.swap(0, place);
        }
        slots
    }

    fn rank(&self, slot: u8, now: Instant) -> Rank {
        match self.health.get(&slot) {
            Some(health) if health.state() == State::Down || health.is_trial() => Rank::Down,
            Some(health) if health.is_doubtful(now) => Rank::Doubtful,
            Some(health) if health.is_lossy() || health.state() == State::Degraded => Rank::Lossy,
            _ => Rank::Good,
        }
    }

    fn rtt(&self, slot: u8) -> Duration {
        self.health.get(&slot).and_then(|health| health.srtt()).unwrap_or_default()
    }
}
