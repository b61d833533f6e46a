//! The agent's state as a snapshot.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use super::Agent;
use super::meters::subflow_addresses;
use crate::controller::{Controller, ForwardView, MptcpSeen, ServerView, Standing};
use crate::health::{Health, Rtt};
use crate::history::Span;
use crate::json;
use crate::net::{Family, Transport};
use crate::os::control::Refusal;
use crate::os::counters::mptcp_counters;
use crate::proxy::Connection;
use crate::reconcile::{Conflict, Operation};
use crate::registry::unix_seconds;
use crate::status::{
    AgentSnapshot, ConnectionStatus, Connections, EndpointStatus, Failure, ForwardStatus,
    KernelStatus, LimitsStatus, ServerState, ServerStatus, Snapshot, StreamCounts, SysctlFailure,
    UplinkStatus, UsageStatus, agent_state, kernel_counters, render_html,
};
use crate::tunnel::forward::Verdict;
use crate::uplink::Uplink;
use crate::web;

/// Bars of a sparkline, for a minute.
const SPARKS: usize = 20;

/// The agent as it is now.
pub fn snapshot(agent: &Agent) -> Snapshot {
    let now = Instant::now();
    let config = agent.controller.config();
    let (connections, subflows) = connections(agent, now);
    let uplinks: Vec<UplinkStatus> = agent
        .controller
        .uplinks()
        .iter()
        .map(|uplink| uplink_status(agent, uplink, &subflows, now))
        .collect();
    let servers = servers(agent, now);
    let (state, summary) = agent_state(config.enabled, &uplinks, &servers, config.on_server_loss);
    Snapshot::Agent(Box::new(AgentSnapshot {
        version: env!("CARGO_PKG_VERSION").into(),
        time_unix_seconds: unix_seconds(),
        uptime_seconds: seconds(agent.started, now),
        state,
        summary,
        config_error: agent.config_error.clone(),
        uplinks,
        servers,
        forwards: forwards(agent),
        streams: streams(agent, connections.total),
        datagrams: agent.link.datagrams().status(),
        connections,
        kernel: kernel(agent),
        failures: failures(&agent.controller, now),
        events: agent.events.recent(now),
    }))
}

/// The status page.
pub fn page(agent: &Agent) -> String {
    let snapshot = snapshot(agent);
    web::page(&snapshot.to_json(), &render_html(&snapshot))
}

/// The agent's connections as JSON.
pub fn connections_json(agent: &Agent) -> String {
    let (connections, _) = connections(agent, Instant::now());
    // Neither a map with keys other than strings nor a failing Serialize is among the types.
    serde_json::to_string(&connections).unwrap_or_default()
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct HistoryParams {
    /// `seconds` unless given.
    span: Option<String>,
    /// So many of the last samples; all unless given.
    last: Option<u32>,
}

/// What each uplink carried, by name, as JSON.
///
/// # Errors
/// When there is no such span.
pub fn history_json(agent: &Agent, params: Value) -> Result<String, Refusal> {
    let params = json::params(params).map_err(Refusal::parameters)?;
    let HistoryParams { span, last } = params.unwrap_or_default();
    let span = span.as_deref().unwrap_or("seconds");
    let last = last.and_then(|last| usize::try_from(last).ok()).unwrap_or(usize::MAX);
    let mut answer = json!({ "time_unix_seconds": unix_seconds(), "span": span });
    let uplinks: serde_json::Map<_, _> = match Span::of_name(span) {
        Some(wanted) => {
            answer["end"] = agent.history.end(wanted).into();
            let told = agent.history.tell(wanted, last).into_iter();
            told.map(|(name, told)| (name.to_owned(), json!(told))).collect()
        }
        None if span == "days" => {
            let uplinks = agent.controller.config().uplinks.iter();
            let days = |name: &str| {
                let days = agent.controller.days(name);
                json!({ "days": days.get(days.len().saturating_sub(last)..).unwrap_or_default() })
            };
            uplinks.map(|uplink| (uplink.name.clone(), days(&uplink.name))).collect()
        }
        None => {
            let text =
                format!("there is no span '{span}'; it must be 'seconds', 'minutes' or 'days'");
            return Err(Refusal::parameters(text));
        }
    };
    answer["uplinks"] = uplinks.into();
    Ok(answer.to_string())
}

fn seconds(since: Instant, now: Instant) -> u64 {
    now.saturating_duration_since(since).as_secs()
}

/// Milliseconds, to a hundredth.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}

/// The connections, and the local addresses of all their subflows.
fn connections(agent: &Agent, now: Instant) -> (Connections, Vec<IpAddr>) {
    let mut all_subflows = Vec::new();
    let list = agent.proxy.connections().into_iter().map(|connection| {
        let subflows = subflow_addresses(&connection);
        let count = subflows.as_ref().map(|list| u32::try_from(list.len()).unwrap_or(u32::MAX));
        all_subflows.extend(subflows.unwrap_or_default());
        ConnectionStatus {
            client: connection.client,
            target: connection.target,
            down_bps: connection.counters.to_lan_bps(),
            up_bps: connection.counters.to_tunnel_bps(),
            down_bytes: connection.counters.to_lan(),
            up_bytes: connection.counters.to_tunnel(),
            age_seconds: seconds(connection.since, now),
            subflows: count,
        }
    });
    let connections = Connections::of(list);
    (connections, all_subflows)
}

fn uplink_status(
    agent: &Agent,
    uplink: &Uplink,
    subflows: &[IpAddr],
    now: Instant,
) -> UplinkStatus {
    let controller = &agent.controller;
    let health = controller.health(uplink.slot);
    let meter = agent.meters.of(uplink.slot);
    let configured = controller.config().uplinks.iter().find(|config| config.name == uplink.name);
    let paths = || Family::ALL.into_iter().filter_map(|family| uplink.path(family));
    let own = |address: &&IpAddr| uplink.has_address(**address);
    let mptcp = MptcpSeen {
        falls_back: paths().any(|path| agent.link.falls_back(path.address)),
        reaches_server: agent.link.mptcp() == Some(true),
    };
    let Standing { state, in_use, reason } = controller.standing(uplink, mptcp);
    let endpoints = controller.kernel().endpoints.iter();
    let rtt = |of: fn(&Rtt) -> Option<Duration>| health.and_then(|h| of(h.rtt())).map(millis);
    UplinkStatus {
        name: uplink.name.clone(),
        device: uplink.device.as_ref().map(|device| device.name.clone()),
        role: configured.map_or(uplink.role, |configured| configured.role),
        role_set: controller.manual_role(&uplink.name),
        state,
        in_use,
        reason,
        since_seconds: health.map_or(0, |health| seconds(health.since(), now)),
        addresses: paths().map(|path| path.address.to_string()).collect(),
        gateways: paths().filter_map(|path| path.gateway).map(|g| g.to_string()).collect(),
        mtu: uplink.device.as_ref().map(|device| device.mtu),
        table: Some(uplink.table().0),
        endpoints: endpoints
            .filter(|endpoint| endpoint.is_of_slot(uplink.slot))
            .map(|endpoint| EndpointStatus {
                id: endpoint.id.0,
                address: endpoint.address.to_string(),
                backup: endpoint.backup,
            })
            .collect(),
        rx_bps: meter.map_or(0, |meter| meter.rx.bps()),
        tx_bps: meter.map_or(0, |meter| meter.tx.bps()),
        recent_bps: agent.history.recent(&uplink.name, SPARKS),
        rx_bytes: meter.map_or(0, |meter| meter.rx_bytes),
        tx_bytes: meter.map_or(0, |meter| meter.tx_bytes),
        subflows: u32::try_from(subflows.iter().filter(own).count()).unwrap_or(u32::MAX),
        rtt_ms: rtt(Rtt::smoothed),
        rtt_min_ms: rtt(Rtt::least),
        rtt_p95_ms: rtt(Rtt::p95),
        jitter_ms: rtt(Rtt::jitter),
        loss_percent: health.and_then(Health::loss).map(|loss| f64::from(loss * 100.0).round()),
        untunnelled: controller.untunnelled(uplink.slot).map(|it| it.to_string()).collect(),
        usage: controller.usage(&uplink.name).map(|standing| UsageStatus {
            period_bytes: standing.bytes,
            quota_bytes: configured.and_then(|config| config.quota).map(|quota| quota.bytes),
            since: standing.since.map(|day| day.to_string()),
            until: standing.until.map(|day| day.to_string()),
        }),
    }
}

fn servers(agent: &Agent, now: Instant) -> Vec<ServerStatus> {
    let known = agent.controller.servers(now).map(|server| server_status(agent, &server, now));
    let known: Vec<ServerStatus> = known.collect();
    if !known.is_empty() {
        return known;
    }
    // While there is nothing to do none is known but from the configuration.
    let configured = agent.controller.config().servers.iter().map(|config| ServerStatus {
        name: config.name.clone(),
        address: config.host_port().to_string(),
        ..ServerStatus::default()
    });
    configured.collect()
}

fn server_status(agent: &Agent, view: &ServerView, now: Instant) -> ServerStatus {
    let ServerView { config, server, used, reason, .. } = view;
    let link = agent.link.view(&config.name);
    ServerStatus {
        name: config.name.clone(),
        address: config.host_port().to_string(),
        state: match (used, server.reachable, server.in_use) {
            (false, ..) => ServerState::Standby,
            (true, true, _) => ServerState::Connected,
            (true, false, None) if server.trouble.is_none() => ServerState::Connecting,
            (true, false, _) => ServerState::Lost,
        },
        reason: match agent.controller.verdict().filter(|_| *used && !server.reachable) {
            Some(verdict) => format!("{reason}; {verdict}"),
            None => reason.clone(),
        },
        address_in_use: server.in_use.map(|address| address.to_string()),
        since_seconds: seconds(server.since.unwrap_or(agent.started), now),
        session: link.session.as_ref().map(|session| format!("{:08x}", session.id().0 >> 32)),
        cipher: link.session.as_ref().map(|session| session.cipher().to_string()),
        mptcp: link.mptcp,
        rtt_ms: link.rtt.map(millis),
        last_error: server.trouble.clone(),
    }
}

fn forwards(agent: &Agent) -> Vec<ForwardStatus> {
    let connections = agent.proxy.connections();
    let of = |port: u16, transport: Transport| {
        if transport == Transport::Udp {
            return agent.link.datagrams().forwarded(port);
        }
        let to = |connection: &&Rc<Connection>| {
            connection.forwarded.is_some_and(|incoming| incoming.local.port() == port)
        };
        connections.iter().filter(to).count() as u64
    };
    let show = |view: ForwardView<'_>| {
        let (state, reason) = match view.verdict {
            Some(Verdict::Granted) => ("forwarded", String::new()),
            Some(verdict) => ("denied", format!("{verdict}: {}", verdict.advice())),
            None if agent.controller.server().connected => {
                ("waiting", "the server says nothing of it: is it of an older version?".to_owned())
            }
            None => ("waiting", "there is no connection to the server".to_owned()),
        };
        ForwardStatus {
            name: view.config.name.clone(),
            protocol: view.config.transport.word().to_owned(),
            port: view.config.listen,
            target: view.config.target.to_string(),
            state: state.to_owned(),
            reason,
            connections: of(view.config.listen, view.config.transport),
        }
    };
    agent.controller.forwards().map(show).collect()
}

fn streams(agent: &Agent, open: u64) -> StreamCounts {
    let tally = &agent.proxy.tally;
    let failed = tally.failed.borrow();
    let mut by_cause: BTreeMap<String, u64> =
        failed.iter().map(|(cause, count)| ((*cause).to_owned(), *count)).collect();
    // Those that went on in spite of something are shown beside those that failed.
    let went_on = [
        ("untunnelled", tally.direct.get()),
        ("tried again", tally.retried.get()),
        ("fell back to TCP", agent.link.pool().fell_back()),
    ];
    let went_on = went_on.into_iter().filter(|(_, count)| *count > 0);
    by_cause.extend(went_on.map(|(cause, count)| (cause.to_owned(), count)));
    StreamCounts {
        open,
        warm: agent.link.pool().warm() as u64,
        opened_total: tally.opened.get(),
        failed_total: failed.values().sum(),
        failed_by_cause: by_cause,
    }
}

fn kernel(agent: &Agent) -> KernelStatus {
    let controller = &agent.controller;
    let kernel = controller.kernel();
    let look_failure = controller.look_failure().map(str::to_owned);
    // Other path managers have a field of their own.
    let others =
        controller.conflicts().iter().filter(|it| !matches!(it, Conflict::OtherManager(_)));
    let mut conflicts: Vec<String> =
        look_failure.into_iter().chain(others.map(ToString::to_string)).collect();
    for (found, advice) in controller.forwards().filter_map(|forward| forward.denial()) {
        conflicts.push(format!("{found}: {advice}"));
    }
    conflicts.extend(controller.udp_trouble().map(|(found, advice)| format!("{found}: {advice}")));
    KernelStatus {
        counters: kernel_counters(&mptcp_counters().unwrap_or_default()),
        limits: kernel.limits.map(|limits| LimitsStatus {
            subflows: limits.subflows,
            add_addr_accepted: limits.add_addr_accepted,
        }),
        sysctls_not_set: sysctls_not_set(controller),
        other_path_managers: kernel.other_managers.clone(),
        conflicts,
    }
}

/// Operations that fail, but for those on sysctls.
fn failures(controller: &Controller, now: Instant) -> Vec<Failure> {
    controller
        .failures()
        .filter(|failing| !matches!(failing.operation, Operation::SetSysctl { .. }))
        .map(|failing| Failure {
            operation: failing.operation.describe(controller.kernel()),
            error: failing.reason.to_owned(),
            errno: failing.errno,
            since_seconds: seconds(failing.since, now),
        })
        .collect()
}

fn sysctls_not_set(controller: &Controller) -> Vec<SysctlFailure> {
    let failing = controller.failures().filter_map(|failing| {
        let Operation::SetSysctl { key, value } = failing.operation else { return None };
        let found = controller.kernel().sysctls.get(key).map_or("", String::as_str);
        let error = format!("it stays {found}: {}", failing.reason);
        Some(SysctlFailure { key: key.clone(), wanted: value.clone(), error })
    });
    let absent = controller.absent_sysctls().into_iter().map(|(key, wanted)| SysctlFailure {
        key: key.into(),
        wanted: wanted.into(),
        error: "this kernel has none".into(),
    });
    failing.chain(absent).collect()
}
