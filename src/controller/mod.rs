//! The agent's mind: what happens goes in as events, what is to be done comes out as actions.
//!
//! It owns the facts of the uplinks, their health and what is in force; it never waits and never
//! touches the kernel. A wish is compared with a fresh dump each time: events only say "look again".

mod attempts;
mod contact;
mod datagrams;
mod direct;
mod event;
mod floor;
mod forwards;
mod looks;
mod opinions;
mod outlets;
mod probing;
mod refreshes;
mod revival;
mod roles;
mod server;
mod servers;
mod standing;
#[cfg(test)]
mod tests;
mod told;
mod usage;
mod view;

use std::time::{Duration, Instant};

use litemap::LiteMap;

pub use attempts::Failing;
pub use event::{Action, ByConnection, Event, Failed, ServerNews};
pub use forwards::ForwardView;
pub use opinions::Opinion;
pub use outlets::Outlet;
pub use server::Server;
pub use servers::ServerView;
pub use standing::{MptcpSeen, Standing};

use crate::config::agent::{AgentConfig, ServerConfig};
use crate::config::keys::PublicKey;
use crate::desired::{self, Desired};
use crate::failover::{self, Assignment, Failover, InForce, Reason};
use crate::floor::Floor;
use crate::health::{Health, State};
use crate::interception::TproxyPorts;
use crate::net::{Endpoint, Family, Kernel};
use crate::netifd::{Interface, Netifd};
use crate::quota::{Save, Usage};
use crate::reconcile::{self, Conflict, Operation, Plan};
use crate::saturation::Saturation;
use crate::uplink::{self, Uplink};
use attempts::Attempts;
use datagrams::Datagrams;
use direct::DirectTraffic;
use forwards::Forwards;
use looks::{COALESCE, Looks};
use opinions::Opinions;
use refreshes::Refreshes;
use revival::Revival;
use roles::ManualRoles;
use servers::Servers;
use told::{News, Told};

/// A tick at least this often keeps words such as "unanswered for 5 s" true.
const TICK: Duration = Duration::from_secs(1);

/// The state of the agent.
pub struct Controller {
    config: AgentConfig,
    roles: ManualRoles,
    ports: TproxyPorts,
    netifd: Netifd,
    uplinks: Vec<Uplink>,
    health: LiteMap<u8, Health>,
    /// Slots that show signs of failure.
    failing: Vec<u8>,
    /// Slots over which a probe was asked for that has not left yet.
    probing: Vec<u8>,
    floor: Floor,
    failover: Failover,
    assignments: Vec<Assignment>,
    /// What the user was told of the roles in force, by slot.
    told: Told<u8, InForce>,
    direct: DirectTraffic,
    datagrams: Datagrams,
    servers: Servers,
    forwards: Forwards,
    /// Whether LAN TCP is tunnelled, as last told.
    tunnelled: bool,
    revival: Revival,
    kernel: Kernel,
    conflicts: Vec<Conflict>,
    attempts: Attempts,
    refreshes: Refreshes,
    opinions: Opinions,
    probers: Vec<Outlet>,
    dial_order: Vec<Outlet>,
    looks: Looks,
    look_failure: Option<String>,
    usage: Usage,
    saturation: Saturation,
    /// When an event was taken last.
    handled: Instant,
}

impl Controller {
    /// An agent that knows nothing of the kernel yet; [`Event::Started`] sets it going.
    pub fn new(config: AgentConfig, ports: TproxyPorts, now: Instant) -> Controller {
        let mut servers = Servers::default();
        servers.configure(wanted_servers(&config), now);
        Controller {
            config,
            roles: ManualRoles::default(),
            ports,
            netifd: Netifd::default(),
            uplinks: Vec::new(),
            health: LiteMap::new(),
            failing: Vec::new(),
            probing: Vec::new(),
            floor: Floor::default(),
            failover: Failover::default(),
            assignments: Vec::new(),
            told: Told::default(),
            direct: DirectTraffic::default(),
            datagrams: Datagrams::default(),
            servers,
            forwards: Forwards::default(),
            tunnelled: false,
            revival: Revival::default(),
            kernel: Kernel::default(),
            conflicts: Vec::new(),
            attempts: Attempts::default(),
            refreshes: Refreshes::default(),
            opinions: Opinions::default(),
            probers: Vec::new(),
            dial_order: Vec::new(),
            looks: Looks::new(now),
            look_failure: None,
            usage: Usage::default(),
            saturation: Saturation::default(),
            handled: now,
        }
    }

    /// These are netifd's interfaces at the start.
    pub fn set_interfaces(&mut self, interfaces: Vec<Interface>) {
        self.netifd.replace(interfaces);
    }

    /// Takes one event; what is returned is to be carried out in its order.
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        self.handled = now;
        let mut actions = Vec::new();
        match event {
            Event::Started => self.put_in_force(&mut actions),
            Event::Configured(config) => self.on_config(*config, now, &mut actions),
            Event::RoleWanted { uplink, role } => {
                self.on_role_wanted(&uplink, role, now, &mut actions);
            }
            Event::Stopping => {
                let text = "stopping".to_owned();
                let save = self.save_usage(Save::Flash);
                let forget = self.forget_all_diverted();
                return vec![Action::Log(log::Level::Info, text), Action::Leave, forget, save];
            }
            Event::Changed => self.looks.soon(now),
            Event::Interfaces(interfaces) => {
                if self.netifd.replace(interfaces) {
                    self.looks.soon(now);
                }
            }
            Event::Interface(interface) => {
                if self.netifd.update(interface) {
                    self.looks.soon(now);
                }
            }
            Event::Dumped(kernel) => self.on_dump(*kernel, now, &mut actions),
            Event::LookFailed(reason) => self.on_look_failed(reason, now, &mut actions),
            Event::Applied(failed) => self.on_applied(&failed, &mut actions),
            Event::ProbeSent { slot, counter, sent } => {
                self.on_probe_sent(slot, counter, sent, now);
            }
            Event::ProbeAnswered { slot, counter } => self.on_reply(slot, counter, now),
            Event::SubflowFailed(address) => self.on_subflow_failed(address),
            Event::MissingSubflows(missing) => {
                let plan = self.refreshes.renew(&missing, &self.endpoints_in_use(), now);
                self.apply(plan, now, &mut actions);
            }
            Event::StandbysUsed(slots) => {
                let plan = self.refreshes.demote(&slots, &self.endpoints_in_use(), now);
                self.apply(plan, now, &mut actions);
            }
            Event::Server(name, news) => self.on_server(&name, news, now, &mut actions),
            Event::ServerSuspected => self.servers.suspect(now, &mut actions),
            Event::InternetAsked { slot, opinion } => {
                self.on_opinion(slot, opinion, now, &mut actions);
            }
            Event::Rates { rates, lost } => {
                self.on_rates(&rates);
                self.keep_floor(&rates, &lost, now);
            }
            Event::Received(packets) => self.on_received(&packets, now),
            Event::Subflows(signs) => self.on_subflows(&signs, now),
            Event::Counted { clock, counters } => {
                self.on_counted(clock, &counters, now, &mut actions);
                self.judge_saturation(&counters, now);
            }
            Event::Tick => {}
        }
        self.probe(now, &mut actions);
        self.judge_server(now, &mut actions);
        self.judge_uplinks(now, &mut actions);
        self.choose_ways(now, &mut actions);
        self.tell_udp_trouble(&mut actions);
        self.ask_internet(now, &mut actions);
        if let Some(thorough) = self.looks.begin(now) {
            actions.push(Action::Look { thorough });
        }
        actions
    }

    /// When to call [`Controller::handle`] with a tick at the latest; what has fallen due since the last call
    /// is in the past.
    pub fn deadline(&self) -> Instant {
        let handled = self.handled;
        let probed = self.probers.iter().filter_map(|outlet| self.health.get(&outlet.slot));
        let probes = probed.filter_map(|health| health.deadline(handled));
        let others = [self.failover.deadline(), self.opinions.deadline()].into_iter().flatten();
        let servers = self.servers.deadlines(self.expectation(handled), handled);
        let later = probes.chain(others).chain(servers).filter(|&at| at > handled);
        later.chain(self.looks.deadline()).fold(handled + TICK, Instant::min)
    }

    /// What removes everything of ours from the kernel, and nothing else.
    pub fn farewell(kernel: &Kernel) -> Plan {
        reconcile::reconcile(kernel, &Desired::default())
    }

    fn on_new_key(&self, name: &str, key: PublicKey, actions: &mut Vec<Action>) {
        let mut servers = self.config.servers.iter();
        let server = servers.find(|config| config.name == name && config.public_key != key);
        actions.extend(server.cloned().map(|server| Action::AdoptServerKey { server, key }));
    }

    /// Knows a server by another key from now on, of which it has told itself.
    pub fn set_server_key(&mut self, name: &str, key: PublicKey) {
        let named = self.config.servers.iter_mut().filter(|config| config.name == name);
        named.for_each(|config| config.public_key = key);
        self.servers.set_key(name, key);
    }

    fn on_config(&mut self, config: AgentConfig, now: Instant, actions: &mut Vec<Action>) {
        self.config = config;
        self.roles.configure(&self.config.uplinks);
        self.set_policies();
        if !self.servers.configure(wanted_servers(&self.config), now) {
            self.forget_server(now, actions);
        }
        self.put_in_force(actions);
        self.looks.soon(now);
    }

    fn put_in_force(&mut self, actions: &mut Vec<Action>) {
        let idle = self.config.idle_reason();
        actions.push(Action::KeepServers(wanted_servers(&self.config).to_vec()));
        actions.extend(self.servers.used_name().map(|name| Action::UseServer(name.into())));
        actions.push(Action::SetForwards(self.wanted_ports()));
        actions.push(Action::SetUdpTargets(self.udp_targets()));
        if let Some(reason) = idle {
            let text = format!("waiting for a configuration: {reason}");
            actions.push(Action::Log(log::Level::Info, text));
            actions.push(Action::Leave);
        }
    }

    /// Another server is to be used, or none.
    fn forget_server(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.tunnelled {
            self.tunnelled = false;
            let text = format!("another server is configured: until it answers, {}", self.loss());
            actions.push(Action::Log(log::Level::Info, text));
        }
        self.renew_all_health(now);
        self.set_outlets(now, actions);
    }

    fn loss(&self) -> String {
        self.config.on_server_loss.to_string()
    }

    fn on_server(&mut self, name: &str, news: ServerNews, now: Instant, actions: &mut Vec<Action>) {
        let news = match news {
            ServerNews::Forwards(verdicts) => return self.on_forwards(name, verdicts, actions),
            ServerNews::Incoming(incoming) => return self.on_incoming(name, incoming, actions),
            ServerNews::NewKey(key) => return self.on_new_key(name, key, actions),
            news => news,
        };
        let (addresses, at) = (self.servers.all_addresses(), self.servers.used().in_use);
        let lacked_ipv6 = self.servers.used().lacks_ipv6;
        if self.servers.take(name, news, now, actions) {
            self.on_session(self.servers.used().in_use != at, now);
        }
        let lacks_ipv6 = self.servers.used().lacks_ipv6;
        if lacks_ipv6 != lacked_ipv6 {
            let meaning = if lacks_ipv6 { "no IPv6: the LAN's is refused" } else { "IPv6 again" };
            let text = format!("server {name}: it has {meaning}");
            actions.push(Action::Log(log::Level::Info, text));
        }
        if self.servers.all_addresses() != addresses || lacks_ipv6 != lacked_ipv6 {
            self.looks.soon(now);
        }
    }

    /// There is a session to use, perhaps at `another` address than before.
    fn on_session(&mut self, another: bool, now: Instant) {
        let works = |health: &Health| matches!(health.state(), State::Up | State::Degraded);
        // That a server was away says nothing of the uplinks: none of them flaps for it.
        if another || !self.health.values().any(works) {
            self.renew_all_health(now);
        }
        self.looks.soon(now);
    }

    fn on_look_failed(&mut self, reason: String, now: Instant, actions: &mut Vec<Action>) {
        self.looks.fail(now);
        if self.look_failure.as_ref() != Some(&reason) {
            let text = format!("{reason}; it is tried again");
            actions.push(Action::Log(log::Level::Warn, text));
        }
        self.look_failure = Some(reason);
    }

    fn on_dump(&mut self, kernel: Kernel, now: Instant, actions: &mut Vec<Action>) {
        self.looks.end();
        self.look_failure = None;
        self.kernel = kernel;
        let before = std::mem::take(&mut self.uplinks);
        let configs = self.roles.apply(&self.config.uplinks);
        self.uplinks = uplink::observe_with(&configs, &self.kernel, &self.netifd, &before);
        self.renew_health(&before, now);
        self.assign(now, actions);
        self.set_outlets(now, actions);
        self.choose_direct(now, actions);
        self.reconcile(now, actions);
        self.leave_dead_uplinks(actions);
    }

    fn assign(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let families = desired::families(self.servers.used().in_use);
        let mut failover = std::mem::take(&mut self.failover);
        let assignments = failover.assign(&self.uplinks, &self.healths(), families, now);
        self.failover = failover;
        for assignment in &assignments {
            let Assignment { name, slot, in_force, reason } = assignment;
            // A trial is worth a word only if it succeeds.
            if *reason == Reason::Trial || self.config.idle_reason().is_some() {
                continue;
            }
            let (level, how) = match in_force {
                InForce::Active => (log::Level::Info, "in use"),
                InForce::Backup => (log::Level::Info, "standing by"),
                InForce::Unused => (log::Level::Warn, "not used"),
            };
            let text = match self.told.note(*slot, *in_force, now) {
                Some(News::Now) => format!("{how}: {reason}"),
                Some(News::Flaps) => "goes and comes: changes are logged again when it has been \
                                      steady for a minute"
                    .to_owned(),
                None => continue,
            };
            actions.push(Action::Log(level, format!("uplink {name}: {text}")));
        }
        self.assignments = assignments;
    }

    /// Where probes and connections to the server leave.
    fn set_outlets(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let mut probers = outlets::probers(&self.uplinks, self.servers.used().in_use);
        probers.retain(|outlet| !self.is_capped_off(outlet.slot));
        let ranked = failover::best(&self.assignments, &self.uplinks, &self.healths());
        let dial_order = outlets::dial_order(&ranked, &self.uplinks);
        if probers != self.probers {
            self.set_probers(probers, actions);
        }
        if dial_order != self.dial_order {
            self.dial_order = dial_order;
            self.servers.hurry(now);
            actions.push(Action::SetDialOrder(self.dial_order.clone()));
        }
    }

    fn desired(&self) -> Desired {
        if self.config.idle_reason().is_some() {
            return Desired::default();
        }
        let lan = self.lan_devices();
        desired::desired(&desired::Input {
            config: &self.config,
            uplinks: &self.uplinks,
            assignments: &self.assignments,
            servers: &self.servers.all_addresses(),
            server: self.servers.used().in_use,
            server_reachable: self.servers.used().reachable,
            server_lacks_ipv6: self.servers.used().lacks_ipv6,
            udp_ports: self.udp_ports(),
            ports: self.ports,
            lan: &lan,
            direct: self.direct.paths(),
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
        let plan = self.attempts.due(reconcile::reconcile(&self.kernel, &desired), now);
        self.apply(self.withdraw(plan), now, actions);
        self.forget_diverted(actions);
        if let Some(next) = self.attempts.next() {
            self.looks.by(next);
        }
    }

    /// Has a plan carried out; what it did is looked at soon.
    fn apply(&mut self, plan: Plan, now: Instant, actions: &mut Vec<Action>) {
        if !plan.is_empty() {
            self.looks.by(now + COALESCE);
            for operation in &plan {
                if let Operation::AddEndpoint(endpoint) = operation {
                    self.revival.note(endpoint.id, now);
                    self.refreshes.forget(endpoint);
                }
            }
            actions.push(Action::Apply(plan));
        }
    }

    /// The endpoints in the family of the server in use.
    fn endpoints_in_use(&self) -> Vec<Endpoint> {
        let families = desired::families(self.servers.used().in_use);
        let used = self.kernel.endpoints.iter();
        used.filter(|it| families.contains(&Family::of(it.address))).cloned().collect()
    }

    fn on_applied(&mut self, failed: &[Failed], actions: &mut Vec<Action>) {
        for failing in self.attempts.note(failed) {
            let line = failing.operation.describe(&self.kernel);
            let text = format!("{line}: {}; it is tried again", failing.reason);
            actions.push(Action::Log(log::Level::Warn, text));
        }
    }

    fn judge_server(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let prefer = outlets::commoner_family(&self.uplinks);
        if self.servers.poll(self.expectation(now), prefer, now, actions) {
            self.on_session(true, now);
        }
        let server = self.servers.used();
        if server.reachable == self.tunnelled {
            return;
        }
        self.tunnelled = server.reachable;
        let (level, text) = if self.tunnelled {
            (log::Level::Info, "server reachable: LAN TCP is tunnelled".to_owned())
        } else {
            (log::Level::Warn, format!("server lost: {}; {}", server.why_lost(), self.loss()))
        };
        actions.push(Action::Log(level, text));
        self.looks.by(now);
        if self.tunnelled {
            self.revive(now, actions);
        } else {
            self.revival.begin(now);
        }
    }

    /// A change of health changes roles at once, not with the next pass.
    fn judge_uplinks(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let families = desired::families(self.servers.used().in_use);
        let mut failover = self.failover.clone();
        let assignments = failover.assign(&self.uplinks, &self.healths(), families, now);
        let changed = assignments
            .iter()
            .zip(&self.assignments)
            .any(|(new, old)| new.slot != old.slot || new.in_force != old.in_force);
        if changed {
            self.looks.by(now);
        } else {
            self.failover = failover;
            self.assignments = assignments;
            self.set_outlets(now, actions);
            if self.direct_differs() {
                self.looks.by(now);
            }
        }
    }
}

/// The servers to know: none while there is nothing to do.
fn wanted_servers(config: &AgentConfig) -> &[ServerConfig] {
    if config.idle_reason().is_some() { &[] } else { &config.servers }
}
