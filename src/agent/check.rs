//! The agent's answer to `check`: what it knows, and what trying the uplinks out shows.

use std::time::Instant;

use super::Agent;
use crate::check::{self, AgentFacts, Facts, ServerFacts, UplinkFacts};
use crate::controller::{Controller, ForwardView, Opinion, Outlet, ServerView};
use crate::examine::{self, Means, Way};
use crate::failover::InForce;
use crate::health::Health;
use crate::net::Family;
use crate::os::control::{Cause, Refusal, Request};
use crate::os::runtime;
use crate::reconcile::Operation;
use crate::uplink::Uplink;

/// Begins a check, which answers the request when it is done; the agent goes on meanwhile.
pub fn begin(agent: &mut Agent, request: Request) {
    if agent.check.as_ref().is_some_and(|check| !check.is_finished()) {
        let text = "another check is under way: try again in a few seconds";
        // Who asked may be gone.
        return drop(request.reply.send(Err(Refusal::new(Cause::Busy, text))));
    }
    let mut facts = facts(agent);
    let tried = means(agent, &facts).map(|means| (means, ways(&facts)));
    let name = facts.server.as_ref().map_or("", |server| server.config.name.as_str());
    let limits = agent.link.view(name).limits;
    // The server's answer is there before the uplinks are tried out.
    agent.link.ping(name);
    let check = runtime::spawn(async move {
        let trials = async {
            match &tried {
                Some((means, ways)) => examine::uplinks(means, ways).await,
                None => Vec::new(),
            }
        };
        let (kernel, trials) = tokio::join!(examine::kernel(facts.kernel.dump), trials);
        facts.kernel = kernel;
        let ways = tried.into_iter().flat_map(|(_, ways)| ways);
        for (way, trial) in ways.zip(trials) {
            let slot = way.outlet.slot;
            let mut uplinks = facts.uplinks.iter_mut();
            if let Some(uplink) = uplinks.find(|uplink| uplink.uplink.slot == slot) {
                uplink.trial = Some(trial);
            }
        }
        if let Some(server) = &mut facts.server {
            server.limits = limits.get();
        }
        let answer = check::judge(&facts).answer(request.params).map_err(Refusal::parameters);
        // Who asked may be gone.
        let _ = request.reply.send(answer);
    });
    agent.check = Some(check.abort_handle());
}

fn means(agent: &Agent, facts: &Facts) -> Option<Means> {
    let server = facts.server.as_ref()?;
    agent.link.means(&server.config, server.address?)
}

/// The uplinks that can be tried out: those without a fault.
fn ways(facts: &Facts) -> Vec<Way> {
    let way = |facts: &UplinkFacts| {
        let uplink = &facts.uplink;
        let family = facts.family.filter(|&family| uplink.fault(family).is_none())?;
        let (path, device) = (uplink.path(family)?, uplink.device.as_ref()?);
        Some(Way {
            outlet: Outlet { slot: uplink.slot, source: path.address, device: device.name.clone() },
            device: device.index,
            gateway: path.gateway,
            mtu: device.mtu,
            endpoint: facts.in_force() != InForce::Unused,
        })
    };
    facts.uplinks.iter().filter_map(way).collect()
}

fn facts(agent: &Agent) -> Facts {
    let controller = &agent.controller;
    let server = server(agent);
    let address = server.as_ref().and_then(|server| server.address);
    let first = address.and_then(|address| agent.link.first_path(address));
    let uplinks = controller
        .uplinks()
        .iter()
        .map(|uplink| UplinkFacts {
            family: address.map(Family::of),
            first: first == Some(uplink.slot),
            ..uplink_facts(controller, uplink)
        })
        .collect();
    Facts {
        version: env!("CARGO_PKG_VERSION").into(),
        config: Ok(controller.config().clone()),
        agent: Some(agent_facts(agent)),
        kernel: check::KernelFacts {
            dump: match controller.look_failure() {
                Some(error) => Err(error.to_owned()),
                None => Ok(controller.kernel().clone()),
            },
            tproxy: Ok(()),
            diag: true,
        },
        server,
        uplinks,
    }
}

/// The server in use, or the first that is tried.
fn server(agent: &Agent) -> Option<ServerFacts> {
    let mut servers = agent.controller.servers(Instant::now());
    let ServerView { config, server, .. } = servers.find(|view| view.used)?;
    Some(ServerFacts {
        config: config.clone(),
        addresses: server.addresses.clone(),
        address: server.in_use.or_else(|| server.addresses.first().copied()),
        connected: server.connected,
        trouble: server.trouble.clone(),
        limits: None,
    })
}

fn uplink_facts(controller: &Controller, uplink: &Uplink) -> UplinkFacts {
    let health = controller.health(uplink.slot);
    let assignments = controller.assignments();
    UplinkFacts {
        uplink: uplink.clone(),
        family: None,
        assignment: assignments.iter().find(|it| it.slot == uplink.slot).cloned(),
        first: false,
        rtt: health.and_then(Health::srtt),
        loss: health.and_then(Health::loss),
        internet: controller.opinion(uplink.slot).map(|opinion| *opinion == Opinion::Works),
        untunnelled: controller.untunnelled(uplink.slot).collect(),
        trial: None,
    }
}

/// What is the matter with a forwarded port, and what to do.
fn forward_trouble(view: &ForwardView) -> Option<(String, &'static str)> {
    if view.verdict.is_some() {
        return view.denial();
    }
    let found = format!("the server says nothing of {}", view.port());
    Some((found, "update the server if it is of an older version"))
}

fn agent_facts(agent: &Agent) -> AgentFacts {
    let controller = &agent.controller;
    let mut facts = AgentFacts {
        config_error: agent.config_error.clone(),
        conflicts: controller.conflicts().iter().map(ToString::to_string).collect(),
        sysctls_absent: controller
            .absent_sysctls()
            .into_iter()
            .map(|(key, _)| key.replace('/', "."))
            .collect(),
        forwards: controller
            .forwards()
            .map(|it| (it.port().to_string(), forward_trouble(&it)))
            .collect(),
        udp_trouble: controller.udp_trouble(),
        ..AgentFacts::default()
    };
    for failing in controller.failures() {
        let reason = failing.reason.to_owned();
        match failing.operation {
            Operation::SetSysctl { key, value } => {
                facts.sysctls_not_set.push((key.replace('/', "."), value.clone(), reason));
            }
            operation => {
                facts.failures.push((operation.describe(controller.kernel()), reason));
            }
        }
    }
    facts
}
