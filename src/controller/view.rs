//! What of the controller's state the status shows and others look up.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{ByConnection, Controller, Failing, Opinion, Server, ServerView};
use crate::config::agent::{AgentConfig, Role};
use crate::desired;
use crate::failover::{Assignment, InForce};
use crate::health::{Health, State};
use crate::net::{EndpointId, Family, Kernel};
use crate::reconcile::Conflict;
use crate::uplink::Uplink;

/// Connections have this long to get a subflow by a new endpoint.
const SETTLED: Duration = Duration::from_secs(5);
/// Those without any have this long: to join takes one and a half round trips, and to ask again is no more than
/// TCP does, which sends a SYN again after a second (RFC 6298).
const STRANDED: Duration = Duration::from_secs(1);

impl Controller {
    /// The configuration in force.
    pub fn config(&self) -> &AgentConfig {
        &self.config
    }

    /// The names of the LAN's devices; of an interface that has none at the moment, none.
    pub fn lan_devices(&self) -> Vec<String> {
        let lan = self.config.lan.iter().filter_map(|interface| self.netifd.device(interface));
        lan.map(str::to_owned).collect()
    }

    /// The role set at run time for an uplink, in place of the configured one.
    pub fn manual_role(&self, uplink: &str) -> Option<Role> {
        self.roles.of(uplink)
    }

    /// The uplinks, with the roles to go by.
    pub fn uplinks(&self) -> &[Uplink] {
        &self.uplinks
    }

    /// The health of the uplink with this slot.
    pub fn health(&self, slot: u8) -> Option<&Health> {
        self.health.get(&slot)
    }

    /// The roles in force.
    pub fn assignments(&self) -> &[Assignment] {
        &self.assignments
    }

    /// What is known of the server in use.
    pub fn server(&self) -> &Server {
        self.servers.used()
    }

    /// All servers, in the order of the configuration.
    pub fn servers(&self, now: Instant) -> impl Iterator<Item = ServerView<'_>> {
        self.servers.view(now)
    }

    /// What a check found out about an uplink over which the server does not answer.
    pub fn opinion(&self, slot: u8) -> Option<&Opinion> {
        self.opinions.of(slot)
    }

    /// Whether it is the server that is missing or the Internet, where a check could tell.
    pub fn verdict(&self) -> Option<String> {
        let names = |works: bool| -> Vec<&str> {
            let found = |uplink: &&Uplink| {
                self.opinion(uplink.slot).is_some_and(|it| (*it == Opinion::Works) == works)
            };
            self.uplinks.iter().filter(found).map(|uplink| uplink.name.as_str()).collect()
        };
        match (names(true).join(", "), names(false).join(", ")) {
            (works, _) if !works.is_empty() => Some(format!("the Internet works over {works}")),
            (_, fails) if !fails.is_empty() => Some(format!("nothing works over {fails}")),
            _ => None,
        }
    }

    /// The last dump of the kernel.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Foreign objects that stand in the way.
    pub fn conflicts(&self) -> &[Conflict] {
        &self.conflicts
    }

    /// Why the kernel could not be looked at, if the last look failed.
    pub fn look_failure(&self) -> Option<&str> {
        self.look_failure.as_deref()
    }

    /// Operations that fail and are tried again.
    pub fn failures(&self) -> impl Iterator<Item = Failing<'_>> {
        self.attempts.failing()
    }

    /// Sysctls that this kernel does not have although they matter, with the values they should have.
    pub fn absent_sysctls(&self) -> Vec<(&'static str, &'static str)> {
        // Without MPTCP all are missing, and the conflict says so.
        if self.config.idle_reason().is_some() || self.kernel.limits.is_none() {
            return Vec::new();
        }
        desired::absent_sysctls(&self.kernel.sysctls)
    }

    /// Whether traffic flows whose sudden silence [`Event::Received`](super::Event::Received) would
    /// show, or subflows are to be looked at.
    pub fn watches_traffic(&self) -> bool {
        self.health.values().any(|health| health.is_active() || health.wants_subflows())
    }

    /// Whether [`Event::Subflows`](super::Event::Subflows) should be told at once.
    pub fn wants_subflows(&self) -> bool {
        self.health.values().any(Health::wants_subflows)
    }

    /// Whether any uplink is known to be alive by its subflows alone.
    pub fn relies_on_subflows(&self) -> bool {
        self.health.values().any(Health::is_by_subflows)
    }

    /// Slots and local addresses of the subflows that connections should have.
    pub fn expected_subflows(&self, now: Instant) -> ByConnection<(u8, IpAddr)> {
        let used = self.addresses(|in_force, health| {
            in_force != InForce::Unused && matches!(health.state(), State::Up | State::Degraded)
        });
        let for_longer_than = |time| {
            let old = |(slot, address): &(u8, IpAddr)| {
                let id = EndpointId::of_slot(*slot, Family::of(*address));
                self.revival.added(id).is_none_or(|at| now.saturating_duration_since(at) > time)
            };
            used.iter().copied().filter(old).collect()
        };
        ByConnection { settled: for_longer_than(SETTLED), stranded: for_longer_than(STRANDED) }
    }

    /// Slots and local addresses of uplinks that stand by while others are in use, and carry traffic
    /// all the same.
    pub fn busy_standbys(&self) -> Vec<(u8, IpAddr)> {
        if !self.assignments.iter().any(|assignment| assignment.in_force == InForce::Active) {
            return Vec::new();
        }
        self.addresses(|in_force, health| in_force == InForce::Backup && health.is_active())
    }

    /// Slots and addresses, in the family of the server in use, of the uplinks that are `wanted`.
    fn addresses(&self, wanted: impl Fn(InForce, &Health) -> bool) -> Vec<(u8, IpAddr)> {
        let Some(server) = self.servers.used().in_use else { return Vec::new() };
        let address = |assignment: &Assignment| {
            let health = self.health.get(&assignment.slot)?;
            let uplink = self.uplinks.iter().find(|uplink| uplink.slot == assignment.slot)?;
            let path = uplink.path(Family::of(server))?;
            wanted(assignment.in_force, health).then_some((assignment.slot, path.address))
        };
        self.assignments.iter().filter_map(address).collect()
    }

    /// Whether connections get no subflow on the uplink with this slot, even by a new endpoint.
    pub(super) fn lacks_subflows(&self, slot: u8) -> bool {
        self.refreshes.in_vain(slot)
    }
}
