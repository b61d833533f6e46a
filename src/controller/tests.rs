//! The controller on a simulated clock, over a model of the kernel and of the uplinks.

mod config;
mod datagrams;
mod direct;
mod floor;
mod forwards;
mod interfaces;
mod kernel;
mod roles;
mod server;
mod servers;
mod uplinks;

use std::collections::VecDeque;
use std::net::IpAddr;

use super::*;
use crate::config::agent::{CipherChoice, ServerConfig};
use crate::config::keys::PublicKey;
use crate::net::{Endpoint, Route, Rule};
use crate::reconcile::tests::apply_to_model;
use crate::uplink::tests::{same_subnet, two_configs};

const SERVER: &str = "203.0.113.1";
const MS: Duration = Duration::from_millis(1);

/// An agent, its kernel, and two uplinks: `wan` in slot 0 and `wanb` in slot 1.
struct World {
    controller: Controller,
    kernel: Kernel,
    start: Instant,
    now: Instant,
    /// The round-trip time of each uplink in milliseconds; `None` where nothing comes back.
    rtt: [Option<u64>; 2],
    /// Whether probes leave.
    sendable: bool,
    /// Whether the control connection brings answers.
    control: bool,
    /// Answers on their way.
    answers: Vec<(Instant, Event)>,
    probes: u64,
    /// Why a dump fails, if so.
    blind: Option<&'static str>,
    /// Operations that contain this fail, with this reason.
    broken: Option<(&'static str, &'static str)>,
    /// What was done when, in milliseconds, but for probes.
    done: Vec<(u64, Action)>,
    looks: Vec<u64>,
}

impl World {
    /// An agent that has not started.
    fn new() -> World {
        let start = Instant::now();
        let ports = TproxyPorts { v4: Some(4000), v6: None };
        let mut kernel = same_subnet();
        let sysctls = [("net/mptcp/enabled", "1"), ("net/mptcp/stale_loss_cnt", "4")];
        kernel.sysctls =
            sysctls.map(|(key, value)| (key.into(), value.into())).into_iter().collect();
        World {
            controller: Controller::new(agent_config(), ports, start),
            kernel,
            start,
            now: start,
            rtt: [Some(20), Some(40)],
            sendable: true,
            control: true,
            answers: Vec::new(),
            probes: 0,
            blind: None,
            broken: None,
            done: Vec::new(),
            looks: Vec::new(),
        }
    }

    /// One with a session that has been quiet for ten seconds.
    fn settled() -> World {
        let mut world = World::new();
        world.tell(Event::Started);
        world.resolved(&[SERVER]);
        world.session_up(SERVER);
        world.run(10_000);
        assert!(world.controller.server().reachable, "{:?}", world.log());
        assert_eq!(world.in_force(), [InForce::Active; 2]);
        world.forget();
        world
    }

    /// The server's name stands for these addresses.
    fn resolved(&mut self, addresses: &[&str]) {
        let addresses = addresses.iter().map(|text| address(text)).collect();
        self.tell(Event::Server("vps".into(), ServerNews::Resolved(Ok(addresses))));
    }

    /// There is a session with the server at this address.
    fn session_up(&mut self, at: &str) {
        self.tell(Event::Server(
            "vps".into(),
            ServerNews::Up { address: address(at), datagrams: true },
        ));
    }

    /// The control connection ended.
    fn session_down(&mut self, reason: &str) {
        let news = ServerNews::Down { reason: reason.into(), dice: 0 };
        self.tell(Event::Server("vps".into(), news));
    }

    /// A device's carrier is there or lost from now on, and netlink tells.
    fn set_carrier(&mut self, device: &str, carrier: bool) {
        let mut links = self.kernel.links.iter_mut().map(|(_, link)| link);
        links.find(|link| link.name == device).unwrap().carrier = carrier;
        self.tell(Event::Changed);
    }

    /// Lets what happens from now on count from zero.
    fn forget(&mut self) {
        self.start = self.now;
        self.done.clear();
        self.looks.clear();
        self.probes = 0;
    }

    fn ms(&self) -> u64 {
        u64::try_from((self.now - self.start).as_millis()).unwrap()
    }

    /// Tells the controller, and carries out what it wants until it wants no more.
    fn tell(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        let mut count = 0;
        while let Some(event) = events.pop_front() {
            count += 1;
            assert!(count < 50, "it never comes to rest: {event:?}");
            for action in self.controller.handle(event, self.now) {
                events.extend(self.carry_out(action));
            }
        }
    }

    fn carry_out(&mut self, action: Action) -> Option<Event> {
        self.done.push((self.ms(), action.clone()));
        match action {
            Action::Look { .. } => {
                self.looks.push(self.ms());
                Some(match self.blind {
                    Some(reason) => Event::LookFailed(reason.into()),
                    None => Event::Dumped(Box::new(self.kernel.clone())),
                })
            }
            Action::Apply(plan) => Some(Event::Applied(self.apply(plan))),
            Action::Leave => {
                let plan = Controller::farewell(&self.kernel);
                assert_eq!(self.apply(plan), []);
                None
            }
            Action::Probe { slot } => {
                self.done.pop();
                self.probes += 1;
                let counter = self.probes;
                let rtt = self.rtt[usize::from(slot)].filter(|_| self.sendable);
                if let Some(rtt) = rtt {
                    let answer = Event::ProbeAnswered { slot, counter };
                    self.answers.push((self.now + MS * u32::try_from(rtt).unwrap(), answer));
                }
                Some(Event::ProbeSent { slot, counter, sent: self.sendable })
            }
            Action::PingServer(name) if self.control => {
                let heard = Event::Server(name, ServerNews::Heard { lacks_ipv6: None });
                self.answers.push((self.now + MS * 30, heard));
                None
            }
            _ => None,
        }
    }

    fn apply(&mut self, plan: Plan) -> Vec<Failed> {
        let mut failed = Vec::new();
        for operation in plan {
            let line = operation.describe(&self.kernel);
            if let Some((part, reason)) = self.broken
                && line.contains(part)
            {
                failed.push(Failed { operation, reason: reason.into(), errno: Some(22) });
            } else if let Err(error) = apply_to_model(&mut self.kernel, &operation) {
                panic!("{line}: {error}");
            }
        }
        failed
    }

    /// Lets time pass.
    fn run(&mut self, ms: u64) {
        let end = self.now + MS * u32::try_from(ms).unwrap();
        let mut wakes = 0;
        loop {
            wakes += 1;
            assert!(wakes < 200 + ms, "a busy loop");
            self.answers.sort_by_key(|(at, _)| *at);
            let answer = self.answers.first().map(|(at, _)| *at);
            let deadline = self.controller.deadline();
            let next = answer.map_or(deadline, |at| at.min(deadline)).max(self.now);
            if next > end {
                self.now = end;
                return;
            }
            self.now = next;
            let event = match answer {
                Some(at) if at <= next => self.answers.remove(0).1,
                _ => Event::Tick,
            };
            self.tell(event);
        }
    }

    /// Lets time pass until `condition` holds, within `limit` ms; the time it took.
    fn until(&mut self, limit: u64, condition: impl Fn(&World) -> bool) -> u64 {
        let start = self.ms();
        while !condition(self) {
            let log = self.log();
            assert!(self.ms() < start + limit, "not within {limit} ms: {log:#?}");
            self.run(1);
        }
        self.ms() - start
    }

    fn in_force(&self) -> Vec<InForce> {
        self.controller.assignments().iter().map(|assignment| assignment.in_force).collect()
    }

    /// Addresses of our endpoints.
    fn endpoints(&self) -> Vec<String> {
        let ours = self.kernel.endpoints.iter().filter(|endpoint| endpoint.is_ours());
        ours.map(|endpoint| endpoint.address.to_string()).collect()
    }

    /// The operations carried out, as command lines with the time in milliseconds.
    fn lines(&self) -> Vec<(u64, String)> {
        let plans = self.done.iter().filter_map(|(ms, action)| match action {
            Action::Apply(plan) => Some((*ms, plan)),
            _ => None,
        });
        plans
            .flat_map(|(ms, plan)| plan.iter().map(move |operation| (ms, operation)))
            .map(|(ms, operation)| (ms, operation.describe(&self.kernel)))
            .collect()
    }

    fn log(&self) -> Vec<&str> {
        let texts = self.done.iter().map(|(_, action)| match action {
            Action::Log(_, text) => Some(text.as_str()),
            _ => None,
        });
        texts.flatten().collect()
    }

    fn count(&self, is: impl Fn(&Action) -> bool) -> usize {
        self.done.iter().filter(|(_, action)| is(action)).count()
    }

    fn nft(&self) -> &str {
        match &self.kernel.nft {
            reconcile::NftTable::Made(text) => text,
            other => panic!("{other:?}"),
        }
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn server_config(address: &str) -> ServerConfig {
    ServerConfig {
        name: "vps".into(),
        address: address.into(),
        port: 443,
        public_key: PublicKey([7; 32]),
        cipher: CipherChoice::Auto,
    }
}

fn agent_config() -> AgentConfig {
    AgentConfig {
        lan: vec!["br-lan".into()],
        check_url: None,
        servers: vec![server_config("vps.example.net")],
        uplinks: two_configs(),
        ..AgentConfig::parse("", "mptcpd").unwrap()
    }
}

/// What of the kernel is not ours.
fn foreign(kernel: &Kernel) -> (Vec<Route>, Vec<Rule>, Vec<Endpoint>) {
    let Kernel { mut routes, mut rules, mut endpoints, .. } = kernel.clone();
    routes.retain(|route| !route.is_ours());
    rules.retain(|rule| !rule.is_ours());
    endpoints.retain(|endpoint| !endpoint.is_ours());
    (routes, rules, endpoints)
}

/// Rates in bits a second, by slot; nothing was lost.
fn rates(rates: impl IntoIterator<Item = (u8, u64)>) -> Event {
    Event::Rates { rates: rates.into_iter().collect(), lost: LiteMap::new() }
}
