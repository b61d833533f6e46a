//! The server's state as a snapshot.

use std::time::Instant;

use serde_json::{Value, json};

use crate::config::keys::Credential;
use crate::config::server::ServerConfig;
use crate::net::Limits;
use crate::os::counters::mptcp_counters;
use crate::quota::Day;
use crate::registry::{Registry, unix_seconds};
use crate::status::{
    ClientStatus, ConnectionStatus, Connections, Failure, KernelStatus, LimitsStatus,
    ServerSnapshot, Snapshot, StreamCounts, kernel_counters,
};

/// What the status needs beside the registry.
#[derive(Default)]
pub struct Facts {
    /// The addresses listened on.
    pub listen: Vec<String>,
    /// Why the last reload failed.
    pub config_error: Option<String>,
    /// The limits in force.
    pub limits: Option<Limits>,
    /// What could not be set in the kernel.
    pub failures: Vec<Failure>,
}

/// The server as it is now.
pub fn snapshot(registry: &Registry, facts: &Facts) -> Snapshot {
    let now = Instant::now();
    let config = registry.config.borrow().clone();
    let seconds = |since: Instant| now.saturating_duration_since(since).as_secs();
    let connections = registry.with_streams(|streams| {
        Connections::of(streams.values().map(|stream| ConnectionStatus {
            client: stream.peer,
            target: stream.target,
            down_bps: stream.counters.to_tunnel_bps(),
            up_bps: stream.counters.to_lan_bps(),
            down_bytes: stream.counters.to_tunnel(),
            up_bytes: stream.counters.to_lan(),
            age_seconds: seconds(stream.since),
            subflows: None,
        }))
    });
    let (refusals, failed_by_cause) = (registry.refusals(), registry.failed());
    Snapshot::Server(Box::new(ServerSnapshot {
        version: env!("CARGO_PKG_VERSION").into(),
        time_unix_seconds: unix_seconds(),
        uptime_seconds: seconds(registry.started),
        listen: facts.listen.clone(),
        public: config.public.to_string(),
        config_error: facts.config_error.clone(),
        clients: clients(registry, &config, now),
        streams: StreamCounts {
            open: connections.total,
            warm: registry.warm(),
            opened_total: registry.streams_total(),
            failed_total: failed_by_cause.values().sum(),
            failed_by_cause,
        },
        datagrams: registry.datagrams.get(),
        refusals,
        unauthenticated: registry.gate.waiting() as u64,
        connections,
        kernel: KernelStatus {
            counters: kernel_counters(&mptcp_counters().unwrap_or_default()),
            limits: facts.limits.map(|limits| LimitsStatus {
                subflows: limits.subflows,
                add_addr_accepted: limits.add_addr_accepted,
            }),
            ..KernelStatus::default()
        },
        failures: facts.failures.clone(),
        events: registry.events(),
    }))
}

fn clients(registry: &Registry, config: &ServerConfig, now: Instant) -> Vec<ClientStatus> {
    let traffic = registry.traffic();
    let (accounts, today) = (registry.accounts.borrow(), Day::of_unix(unix_seconds()));
    let status = |(name, credential): (&str, Credential)| {
        let client = registry.client(name);
        let traffic = traffic.get(name).copied().unwrap_or_default();
        let today = accounts.on(name, today);
        ClientStatus {
            name: name.to_owned(),
            connected: client.is_connected(&credential),
            address: client.address.get().map(|address| address.ip().to_canonical().to_string()),
            sessions: registry.sessions.borrow().count(name) as u64,
            streams: u64::from(client.streams.get()),
            down_bps: traffic.down_bps,
            up_bps: traffic.up_bps,
            down_bytes: traffic.down_bytes,
            up_bytes: traffic.up_bytes,
            today_down_bytes: today.down,
            today_up_bytes: today.up,
            since_seconds: client
                .since
                .get()
                .map(|since| now.saturating_duration_since(since).as_secs()),
        }
    };
    config.credentials().map(status).collect()
}

/// What `server clients` shows of each client beside its configuration.
pub fn clients_json(registry: &Registry) -> String {
    let (config, accounts) = (registry.config.borrow(), registry.accounts.borrow());
    let clients = config.credentials().map(|(name, credential)| {
        let connected = registry.client(name).is_connected(&credential);
        json!({ "name": name, "connected": connected, "days": accounts.days(name) })
    });
    clients.collect::<Value>().to_string()
}
