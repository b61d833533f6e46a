//! The agent's answer to `check`: what it knows, and what trying the uplinks out shows.

use tokio::task::spawn_local;

use super::Agent;
use crate::check::{self, AgentFacts, Facts, ServerFacts, UplinkFacts};
use crate::controller::Controller;
use crate::examine;
use crate::health::Health;
use crate::net::Family;
use crate::os::control::Request;
use crate::reconcile::Operation;
use crate::uplink::Uplink;

/// Begins a check, which answers the request when it is done; the agent goes on meanwhile.
pub fn begin(agent: &Agent, request: Request) {
    let mut facts = facts(agent);
    spawn_local(async move {
        facts.kernel = examine::kernel(facts.kernel.dump).await;
        // Who asked may be gone.
        let _ = request.reply.send(Ok(check::judge(&facts).to_json()));
    });
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

fn server(agent: &Agent) -> Option<ServerFacts> {
    let config = agent.controller.config();
    let section = config.servers.first().filter(|_| config.idle_reason().is_none())?;
    let known = agent.controller.server();
    Some(ServerFacts {
        config: section.clone(),
        addresses: known.addresses.clone(),
        address: known.in_use.or_else(|| known.addresses.first().copied()),
        connected: known.connected,
        trouble: known.trouble.clone(),
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
        trial: None,
    }
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
