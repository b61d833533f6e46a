//! The agent's mind: what happens goes in as events, what is to be done comes out as actions.
//!
//! It owns the facts of the uplinks, their health and what is in force; it never waits and never
//! touches the kernel. A wish is compared with a fresh dump each time: events only say "look again".

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::config::agent::AgentConfig;
use crate::desired::{self, Desired};
use crate::failover::{self, Assignment, Failover, InForce};
use crate::health::{Health, Policy, State};
use crate::interception::TproxyPorts;
use crate::net::{Endpoint, EndpointId, Family, Kernel};
use crate::reconcile::{self, Conflict, Operation, Plan};
use crate::uplink::{self, Uplink};

/// Changes within this time are looked at together; the first of them at once.
const COALESCE: Duration = Duration::from_millis(100);
/// The kernel is looked at this often even if nothing was heard of it.
const PERIODIC: Duration = Duration::from_secs(15);
/// A failed operation is tried again after this time.
const RETRY: Duration = Duration::from_secs(2);
/// How long the server may be silent before it counts as lost.
pub const SERVER_SILENCE: Duration = Duration::from_secs(3);
/// Above this rate an uplink carries data and is probed densely, in bits a second.
const ACTIVE_BPS: u64 = 64_000;
/// The first wait before an endpoint whose subflows are missing is made anew; it doubles.
const REFRESH_FIRST: Duration = Duration::from_secs(5);
/// The longest such wait.
const REFRESH_LAST: Duration = Duration::from_secs(600);

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// Something in the kernel changed.
    Changed,
    /// The dump asked for.
    Dumped(Box<Kernel>),
    /// The kernel could not be dumped, for this reason.
    LookFailed(String),
    /// A plan was carried out; these operations failed, with the reason.
    Applied(Vec<(String, String)>),
    /// A probe left, or could not be sent.
    ProbeSent {
        /// The uplink's slot.
        slot: u8,
        /// The probe's number.
        counter: u64,
        /// Whether it left.
        sent: bool,
    },
    /// A probe was answered.
    ProbeAnswered {
        /// The uplink's slot.
        slot: u8,
        /// The probe's number.
        counter: u64,
    },
    /// The server's name stands for these addresses.
    ServerResolved(Vec<IpAddr>),
    /// There is a session with the server at this address.
    SessionUp {
        /// The address in use.
        server: IpAddr,
    },
    /// The server answered on the control connection.
    ServerHeard,
    /// There is no control connection.
    SessionDown {
        /// Why.
        reason: String,
    },
    /// Rates of the uplinks' devices in bits a second, both directions added.
    Rates(BTreeMap<u8, u64>),
    /// Slots on which settled connections have no subflow although one should be there.
    MissingSubflows(Vec<u8>),
    /// A new configuration.
    Configured(Box<AgentConfig>),
    /// Time went by.
    Tick,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Dump the kernel; `fresh` includes what is costly to look at.
    Look {
        /// Whether costly parts are looked at although nothing was heard of them.
        fresh: bool,
    },
    /// Carry out a plan.
    Apply(Plan),
    /// Send a probe over an uplink.
    Probe {
        /// The uplink's slot.
        slot: u8,
    },
    /// Have probe sockets on these uplinks and no others.
    SetProbers(Vec<Outlet>),
    /// Dial the server over these uplinks, best first.
    SetDialOrder(Vec<Outlet>),
    /// Ask the server for a sign of life on the control connection.
    PingServer,
    /// Tell the user.
    Log(log::Level, String),
}

/// Where packets of our own leave an uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlet {
    /// The uplink's slot.
    pub slot: u8,
    /// Its address.
    pub source: IpAddr,
    /// Its device.
    pub device: String,
}

/// What is known of the server.
#[derive(Clone, Debug, Default)]
pub struct Server {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The address in use, while there is a session.
    pub in_use: Option<IpAddr>,
    /// Whether there is a control connection.
    pub connected: bool,
    /// When it was last heard of, over any way.
    pub heard: Option<Instant>,
    /// Whether new connections can be tunnelled.
    pub reachable: bool,
    /// Since when that is so.
    pub since: Option<Instant>,
    /// Why there is no session, once one failed.
    pub trouble: Option<String>,
    pinged: Option<Instant>,
}

/// An operation that failed and is tried again by each pass.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: Instant,
}

struct Refresh {
    not_before: Instant,
    wait: Duration,
    /// Whether subflows were still missing after the first refresh.
    in_vain: bool,
}

/// The state of the agent.
pub struct Controller {
    config: AgentConfig,
    ports: TproxyPorts,
    uplinks: Vec<Uplink>,
    health: BTreeMap<u8, Health>,
    failover: Failover,
    assignments: Vec<Assignment>,
    server: Server,
    kernel: Kernel,
    conflicts: Vec<Conflict>,
    failures: BTreeMap<String, Failure>,
    refreshes: BTreeMap<u8, Refresh>,
    probers: Vec<Outlet>,
    dial_order: Vec<Outlet>,
    look_due: Instant,
    looked: Option<Instant>,
    looking: bool,
}

impl Controller {
    /// An agent that knows nothing of the kernel yet.
    pub fn new(config: AgentConfig, ports: TproxyPorts, now: Instant) -> Controller {
        Controller {
            config,
            ports,
            uplinks: Vec::new(),
            health: BTreeMap::new(),
            failover: Failover::default(),
            assignments: Vec::new(),
            server: Server::default(),
            kernel: Kernel::default(),
            conflicts: Vec::new(),
            failures: BTreeMap::new(),
            refreshes: BTreeMap::new(),
            probers: Vec::new(),
            dial_order: Vec::new(),
            look_due: now,
            looked: None,
            looking: false,
        }
    }

    /// Takes one event; what is returned is to be carried out in its order.
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Changed => self.look_soon(now),
            Event::Dumped(kernel) => self.on_dump(*kernel, now, &mut actions),
            Event::LookFailed(reason) => {
                self.looking = false;
                self.look_due = now + RETRY;
                let text = format!("cannot look at the kernel: {reason}; trying again");
                actions.push(Action::Log(log::Level::Warn, text));
            }
            Event::Applied(failures) => self.on_applied(failures, now, &mut actions),
            Event::ProbeSent { slot, counter, sent } => {
                if let Some(health) = self.health.get_mut(&slot) {
                    if sent { health.on_sent(now, counter) } else { health.on_send_failed(now) }
                }
            }
            Event::ProbeAnswered { slot, counter } => {
                let health = self.health.get_mut(&slot);
                if health.and_then(|health| health.on_reply(now, counter)).is_some() {
                    self.server.heard = Some(now);
                }
            }
            Event::ServerResolved(addresses) => {
                if self.server.addresses != addresses {
                    self.server.addresses = addresses;
                    self.look_soon(now);
                }
            }
            Event::SessionUp { server } => self.on_session(server, now),
            Event::ServerHeard => self.server.heard = Some(now),
            Event::SessionDown { reason } => {
                self.server.connected = false;
                self.server.trouble = Some(reason);
            }
            Event::Rates(rates) => {
                for (slot, health) in &mut self.health {
                    health.set_active(rates.get(slot).is_some_and(|&rate| rate > ACTIVE_BPS));
                }
            }
            Event::MissingSubflows(slots) => self.on_missing(&slots, now, &mut actions),
            Event::Configured(config) => self.on_configured(*config, now),
            Event::Tick => {}
        }
        self.probe(now, &mut actions);
        self.judge_server(now, &mut actions);
        self.judge_uplinks(now, &mut actions);
        self.look(now, &mut actions);
        actions
    }

    /// When to call [`Controller::handle`] with a tick at the latest.
    pub fn deadline(&mut self, now: Instant) -> Instant {
        let probed: Vec<u8> = self.probers.iter().map(|outlet| outlet.slot).collect();
        let health = self.health.iter_mut().filter(|(slot, _)| probed.contains(slot));
        let probes = health.filter_map(|(_, health)| health.poll(now).wake);
        let silence = self.server.heard.map(|heard| heard + SERVER_SILENCE / 3);
        let others = [self.failover.deadline(), silence.filter(|_| self.server.reachable)];
        // A tick a second keeps words such as "unanswered for 5 s" true.
        let latest = now + Duration::from_secs(1);
        let look = if self.looking { latest } else { self.look_due };
        let soonest = probes.chain(others.into_iter().flatten()).filter(|&at| at > now);
        soonest.chain([look, latest]).min().unwrap_or(latest)
    }

    /// What the kernel should hold once the agent has stopped: nothing of ours.
    pub fn farewell(kernel: &Kernel) -> Plan {
        reconcile::reconcile(kernel, &Desired::default())
    }

    /// The configuration in force.
    pub fn config(&self) -> &AgentConfig {
        &self.config
    }

    /// The uplinks.
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

    /// What is known of the server.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The last dump of the kernel.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Foreign objects that stand in the way.
    pub fn conflicts(&self) -> &[Conflict] {
        &self.conflicts
    }

    /// Operations that fail.
    pub fn failures(&self) -> &BTreeMap<String, Failure> {
        &self.failures
    }

    /// Whether connections get no subflow on the uplink with this slot, even by a new endpoint.
    pub fn lacks_subflows(&self, slot: u8) -> bool {
        self.refreshes.get(&slot).is_some_and(|refresh| refresh.in_vain)
    }

    fn look_soon(&mut self, now: Instant) {
        let earliest = self.looked.map_or(now, |looked| looked + COALESCE);
        self.look_due = self.look_due.min(earliest.max(now));
    }

    fn look(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.looking || now < self.look_due {
            return;
        }
        let fresh = self.looked.is_none_or(|looked| now >= looked + PERIODIC);
        self.looking = true;
        self.looked = Some(now);
        self.look_due = now + PERIODIC;
        actions.push(Action::Look { fresh });
    }

    fn on_dump(&mut self, kernel: Kernel, now: Instant, actions: &mut Vec<Action>) {
        self.looking = false;
        for name in kernel.other_managers.difference(&self.kernel.other_managers) {
            let text = format!(
                "{name} is running and manages MPTCP endpoints, too: stop it, or links may not be used"
            );
            actions.push(Action::Log(log::Level::Warn, text));
        }
        self.kernel = kernel;
        let before = std::mem::take(&mut self.uplinks);
        self.uplinks = uplink::observe(&self.config.uplinks, &self.kernel, &before);
        self.renew_health(&before, now);
        self.assign(now, actions);
        self.set_outlets(actions);
        self.reconcile(now, actions);
    }

    /// Health belongs to a path: another address or device starts anew, a gap in it does not.
    fn renew_health(&mut self, before: &[Uplink], now: Instant) {
        let session = self.server.in_use;
        let mut kept = BTreeMap::new();
        for uplink in &self.uplinks {
            let old = before.iter().find(|old| old.slot == uplink.slot && old.name == uplink.name);
            let same = old.is_some_and(|old| {
                let (old, new) = (source(old, session), source(uplink, session));
                old == new || new.is_none()
            });
            let health = self.health.remove(&uplink.slot).filter(|_| same);
            kept.insert(uplink.slot, health.unwrap_or_else(|| new_health(session, now)));
        }
        self.health = kept;
    }

    fn healths(&self) -> Vec<&Health> {
        self.uplinks.iter().filter_map(|uplink| self.health.get(&uplink.slot)).collect()
    }

    fn assign(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let families = desired::families(self.server.in_use);
        let mut failover = std::mem::take(&mut self.failover);
        let assignments = failover.assign(&self.uplinks, &self.healths(), families, now);
        self.failover = failover;
        for assignment in &assignments {
            let before = self.assignments.iter().find(|before| before.name == assignment.name);
            if before.is_some_and(|before| before.in_force == assignment.in_force) {
                continue;
            }
            let Assignment { name, reason, .. } = assignment;
            let (level, how) = match assignment.in_force {
                InForce::Active => (log::Level::Info, "in use"),
                InForce::Backup => (log::Level::Info, "standing by"),
                InForce::Unused => (log::Level::Warn, "not used"),
            };
            actions.push(Action::Log(level, format!("uplink {name}: {how}: {reason}")));
        }
        self.assignments = assignments;
    }

    /// Where probes and connections to the server leave.
    fn set_outlets(&mut self, actions: &mut Vec<Action>) {
        let server = self.server.in_use;
        let families = desired::families(server);
        let usable = |uplink: &&Uplink| uplink.fault_in(families).is_none();
        let probers: Vec<Outlet> = match server {
            Some(_) => {
                self.uplinks.iter().filter(usable).filter_map(|u| outlet(u, server)).collect()
            }
            None => Vec::new(),
        };
        let order = failover::best(&self.assignments, &self.uplinks, &self.healths());
        let find = |slot: &u8| self.uplinks.iter().find(|uplink| uplink.slot == *slot);
        let ranked: Vec<&Uplink> = order.iter().filter_map(find).collect();
        let dial_order: Vec<Outlet> = match server {
            Some(_) => ranked.iter().filter_map(|uplink| outlet(uplink, server)).collect(),
            None => ranked.iter().flat_map(|uplink| outlets(uplink)).collect(),
        };
        if probers != self.probers {
            self.probers = probers;
            actions.push(Action::SetProbers(self.probers.clone()));
        }
        if dial_order != self.dial_order {
            self.dial_order = dial_order;
            actions.push(Action::SetDialOrder(self.dial_order.clone()));
        }
    }

    fn desired(&self) -> Desired {
        if self.config.idle_reason().is_some() {
            return Desired::default();
        }
        desired::desired(&desired::Input {
            config: &self.config,
            uplinks: &self.uplinks,
            assignments: &self.assignments,
            servers: &self.server.addresses,
            server: self.server.in_use,
            server_reachable: self.server.reachable,
            ports: self.ports,
            lan: &self.config.lan,
            kernel: &self.kernel,
        })
    }

    fn reconcile(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let desired = self.desired();
        let conflicts = reconcile::conflicts(&self.kernel, &desired);
        for conflict in conflicts.iter().filter(|conflict| !self.conflicts.contains(conflict)) {
            actions.push(Action::Log(log::Level::Warn, conflict.to_string()));
        }
        self.conflicts = conflicts;
        let plan = reconcile::reconcile(&self.kernel, &desired);
        if plan.is_empty() {
            self.failures.clear();
        } else {
            // A change of ours is a change: what it did is looked at again.
            self.look_due = self.look_due.min(now + COALESCE);
            actions.push(Action::Apply(plan));
        }
    }

    fn on_applied(
        &mut self,
        failures: Vec<(String, String)>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        if !failures.is_empty() {
            self.look_due = now + RETRY;
        }
        let mut old = std::mem::take(&mut self.failures);
        for (operation, reason) in failures {
            let known = old.remove(&operation).filter(|known| known.reason == reason);
            let failure = known.unwrap_or_else(|| {
                let text = format!("{operation}: {reason}; it is tried again");
                actions.push(Action::Log(log::Level::Warn, text));
                Failure { reason, since: now }
            });
            self.failures.insert(operation, failure);
        }
    }

    fn on_configured(&mut self, config: AgentConfig, now: Instant) {
        let place = |config: &AgentConfig| {
            config.servers.first().map(|s| (s.address.clone(), s.port, s.public_key))
        };
        if place(&config) != place(&self.config) {
            // Another server may be reached over another family and other uplinks.
            let Server { reachable, since, .. } = self.server;
            let trouble = Some("another one is configured".to_owned());
            self.server = Server { reachable, since, trouble, ..Server::default() };
        }
        self.config = config;
        self.look_soon(now);
    }

    fn on_session(&mut self, server: IpAddr, now: Instant) {
        self.server.connected = true;
        self.server.heard = Some(now);
        self.server.trouble = None;
        self.server.pinged = None;
        if !self.server.addresses.contains(&server) {
            self.server.addresses.push(server);
        }
        let works = |health: &Health| matches!(health.state(), State::Up | State::Degraded);
        let returned = !self.health.values().any(works);
        // That a server was away says nothing of the uplinks: none of them flaps for it.
        if self.server.in_use != Some(server) || returned {
            self.server.in_use = Some(server);
            for health in self.health.values_mut() {
                *health = new_health(Some(server), now);
            }
        }
        self.look_soon(now);
    }

    fn probe(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for outlet in &self.probers {
            let health = self.health.get_mut(&outlet.slot);
            if health.is_some_and(|health| health.poll(now).send) {
                actions.push(Action::Probe { slot: outlet.slot });
            }
        }
    }

    /// The server counts as lost when neither probes nor the control connection bring an answer.
    fn judge_server(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let server = &mut self.server;
        let silent = server.heard.map(|heard| now.saturating_duration_since(heard));
        let reachable = server.in_use.is_some()
            && silent.is_some_and(|silent| silent < SERVER_SILENCE)
            // Without a control connection answers to probes may be those of a dying session.
            && (server.connected || server.reachable);
        let suspicious = silent.is_some_and(|silent| silent >= SERVER_SILENCE / 3);
        let pinged_lately = server.pinged.is_some_and(|at| now < at + SERVER_SILENCE / 3);
        if server.connected && suspicious && !pinged_lately {
            server.pinged = Some(now);
            actions.push(Action::PingServer);
        }
        if reachable == server.reachable {
            return;
        }
        server.reachable = reachable;
        server.since = Some(now);
        let (level, text) = if reachable {
            (log::Level::Info, "server reachable: LAN TCP is tunnelled".to_owned())
        } else {
            let why = server.trouble.as_deref().unwrap_or("it answers on no uplink");
            (log::Level::Warn, format!("server lost: {why}; {}", self.config.on_server_loss))
        };
        actions.push(Action::Log(level, text));
        self.look_now(now);
    }

    /// A change of health changes roles at once, not with the next pass.
    fn judge_uplinks(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let families = desired::families(self.server.in_use);
        let mut failover = self.failover.clone();
        let assignments = failover.assign(&self.uplinks, &self.healths(), families, now);
        let changed = assignments
            .iter()
            .zip(&self.assignments)
            .any(|(new, old)| new.slot != old.slot || new.in_force != old.in_force);
        if changed {
            self.look_now(now);
        } else {
            self.failover = failover;
            self.assignments = assignments;
            self.set_outlets(actions);
        }
    }

    fn look_now(&mut self, now: Instant) {
        self.look_due = now;
    }

    /// The kernel's path manager never makes a subflow anew that has died: its endpoint is removed
    /// and added again, more and more rarely where that does not help.
    fn on_missing(&mut self, slots: &[u8], now: Instant, actions: &mut Vec<Action>) {
        self.refreshes.retain(|slot, _| slots.contains(slot));
        for &slot in slots {
            let refresh = self
                .refreshes
                .entry(slot)
                .and_modify(|refresh| refresh.in_vain = true)
                .or_insert(Refresh { not_before: now, wait: REFRESH_FIRST, in_vain: false });
            let endpoint = self.kernel.endpoints.iter().find(|e| e.id == EndpointId::of_slot(slot));
            let (Some(endpoint), true) = (endpoint, now >= refresh.not_before) else { continue };
            refresh.not_before = now + refresh.wait;
            refresh.wait = (refresh.wait * 2).min(REFRESH_LAST);
            actions.push(Action::Apply(refresh_plan(endpoint)));
        }
    }
}

fn refresh_plan(endpoint: &Endpoint) -> Plan {
    vec![Operation::DeleteEndpoint(endpoint.clone()), Operation::AddEndpoint(endpoint.clone())]
}

fn new_health(session: Option<IpAddr>, now: Instant) -> Health {
    match session {
        Some(_) => Health::new(Policy::default(), now),
        None => Health::unprobed(Policy::default(), now),
    }
}

/// The address and device an uplink would use towards the server.
fn source(uplink: &Uplink, server: Option<IpAddr>) -> Option<(IpAddr, u32)> {
    let device = uplink.device.as_ref()?;
    let family = server.map_or(Family::V4, Family::of);
    Some((uplink.path(family)?.address, device.index.0))
}

fn outlet(uplink: &Uplink, server: Option<IpAddr>) -> Option<Outlet> {
    let (source, _) = source(uplink, server)?;
    let device = uplink.device.as_ref()?.name.clone();
    Some(Outlet { slot: uplink.slot, source, device })
}

fn outlets(uplink: &Uplink) -> impl Iterator<Item = Outlet> {
    Family::ALL.into_iter().filter_map(|family| {
        (uplink.fault(family).is_none()).then_some(())?;
        outlet(uplink, Some(family.unspecified()))
    })
}
