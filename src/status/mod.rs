//! The one serialisable snapshot of a running agent or server, and how people see it.
//!
//! The same JSON goes over the control socket and HTTP. Field names are stable: a field may be
//! added, never renamed; a unit is the end of the name (`_bytes`, `_bps` for bits a second, `_ms`,
//! `_seconds`). Strings come from configuration and peers as they are: whoever shows them escapes
//! them, as [`render`] does. No secret is ever part of a snapshot.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

mod counters;
mod events;
pub(crate) mod page;
mod rate;
mod render;
mod summary;
mod text;
mod uplink;

pub use counters::{Counter, kernel_counters};
pub use events::{Event, EventLog, Level, Throttle, Trouble};
pub use rate::RateMeter;
pub use render::{Style, render, render_html};
pub use summary::agent_state;
pub use text::printable;
pub use uplink::{EndpointStatus, UplinkState, UplinkStatus, UsageStatus};

use crate::json;

/// Connections listed at most.
pub const CONNECTIONS_SHOWN: usize = 50;
/// Events listed at most.
pub const EVENTS_SHOWN: usize = 50;

/// A snapshot; in JSON one object whose `role` is `agent` or `server`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "role", rename_all = "lowercase")]
pub enum Snapshot {
    /// Of an agent.
    Agent(Box<AgentSnapshot>),
    /// Of a server.
    Server(Box<ServerSnapshot>),
}

impl Snapshot {
    /// The snapshot as one line of JSON.
    pub fn to_json(&self) -> String {
        // Neither a map with keys other than strings nor a failing Serialize is among the types.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The answer to a question for the status with these parameters: JSON, or a JSON string with the
    /// table for a terminal of the style asked for.
    ///
    /// # Errors
    /// What is wrong with the parameters.
    pub fn answer(&self, params: Value) -> Result<String, String> {
        Ok(match wanted_style(params)? {
            None => self.to_json(),
            Some(style) => Value::from(render(self, style)).to_string(),
        })
    }

    /// Reads what [`Snapshot::to_json`] wrote, of this version or another: fields not known are
    /// passed over, and missing ones have their defaults.
    ///
    /// # Errors
    /// A sentence for people when the text is not such JSON.
    #[cfg(test)]
    pub fn from_json(json: &str) -> Result<Snapshot, String> {
        #[derive(Deserialize)]
        struct Tag {
            role: String,
        }
        let bad = |error: serde_json::Error| format!("the status cannot be read: {error}");
        let tag: Tag = serde_json::from_str(json).map_err(bad)?;
        match tag.role.as_str() {
            "agent" => serde_json::from_str(json).map(Snapshot::Agent).map_err(bad),
            "server" => serde_json::from_str(json).map(Snapshot::Server).map_err(bad),
            other => Err(format!("the status is of a '{other}', neither agent nor server")),
        }
    }
}

/// The style in the parameters of a question whose answer is to be text for people; none where it is
/// to be JSON. People's text is made here and not where it is shown: the reading half of all this
/// would be a tenth of the program.
///
/// # Errors
/// What is wrong with the parameters.
pub fn wanted_style(params: Value) -> Result<Option<Style>, String> {
    #[derive(Deserialize)]
    struct Params {
        style: Style,
    }
    Ok(json::params(params)?.map(|Params { style }| style))
}

/// What an agent shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(default)]
pub struct AgentSnapshot {
    /// The program's version.
    pub version: String,
    /// When the snapshot was made, in seconds since 1970 (UTC).
    pub time_unix_seconds: u64,
    /// Seconds since the agent started.
    pub uptime_seconds: u64,
    /// What the agent does, in a word.
    pub state: AgentState,
    /// The same in a sentence.
    pub summary: String,
    /// Why the last reload failed, in full; the configuration before it is in force.
    pub config_error: Option<String>,
    /// Uplinks in order of configuration.
    pub uplinks: Vec<UplinkStatus>,
    /// Servers in order of configuration.
    pub servers: Vec<ServerStatus>,
    /// Ports of the server that lead to the LAN, in order of configuration.
    pub forwards: Vec<ForwardStatus>,
    /// Streams: LAN connections carried to the server.
    pub streams: StreamCounts,
    /// Tunnelled UDP.
    pub datagrams: DatagramStatus,
    /// The connections that matter most.
    pub connections: Connections,
    /// The kernel's side.
    pub kernel: KernelStatus,
    /// Operations that failed and are tried again.
    pub failures: Vec<Failure>,
    /// The last events, oldest first.
    pub events: Vec<Event>,
}

/// What an agent does, in a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(rename_all = "lowercase")]
pub enum AgentState {
    /// Started, and no server has answered yet.
    #[default]
    Connecting,
    /// Two or more uplinks are in use.
    Bonding,
    /// One uplink is in use.
    Single,
    /// The server is reached over plain TCP: a single uplink carries each connection.
    Fallback,
    /// No uplink is usable.
    Offline,
    /// No server answers: LAN TCP goes out untunnelled.
    Direct,
    /// No server answers: LAN TCP is refused.
    Blocked,
    /// No server or no uplink is configured.
    Unconfigured,
    /// `option enabled '0'`.
    Disabled,
}

impl AgentState {
    /// All of them.
    pub const ALL: [AgentState; 9] = [
        AgentState::Connecting,
        AgentState::Bonding,
        AgentState::Single,
        AgentState::Fallback,
        AgentState::Offline,
        AgentState::Direct,
        AgentState::Blocked,
        AgentState::Unconfigured,
        AgentState::Disabled,
    ];

    /// The word itself.
    pub fn word(self) -> &'static str {
        match self {
            AgentState::Connecting => "connecting",
            AgentState::Bonding => "bonding",
            AgentState::Single => "single",
            AgentState::Fallback => "fallback",
            AgentState::Offline => "offline",
            AgentState::Direct => "direct",
            AgentState::Blocked => "blocked",
            AgentState::Unconfigured => "unconfigured",
            AgentState::Disabled => "disabled",
        }
    }
}

/// How a server is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(rename_all = "lowercase")]
pub enum ServerState {
    /// Being reached for the first time.
    #[default]
    Connecting,
    /// In use.
    Connected,
    /// Does not answer; tried again with backoff.
    Lost,
    /// Another one is in use.
    Standby,
}

/// One server, as an agent sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(default)]
pub struct ServerStatus {
    /// The section's name.
    pub name: String,
    /// `host:port` as configured.
    pub address: String,
    /// The address in use, or used last.
    pub address_in_use: Option<String>,
    /// How it is doing.
    pub state: ServerState,
    /// Why the state is what it is, in words; empty for the first server in use.
    pub reason: String,
    /// Seconds since the state last changed.
    pub since_seconds: u64,
    /// The first eight hexadecimal digits of the session id.
    pub session: Option<String>,
    /// The cipher agreed upon.
    pub cipher: Option<String>,
    /// Whether it is reached over MPTCP; `false` after a fallback to plain TCP.
    pub mptcp: Option<bool>,
    /// Smoothed round-trip time of the control connection.
    pub rtt_ms: Option<f64>,
    /// The last error, also while connected.
    pub last_error: Option<String>,
}

/// A port of the server that leads to the LAN.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(default)]
pub struct ForwardStatus {
    /// The section's name.
    pub name: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The server's port.
    pub port: u16,
    /// Where it leads to.
    pub target: String,
    /// `forwarded`, `denied`, or `waiting` for the server's word.
    pub state: String,
    /// Why it is denied or waits.
    pub reason: String,
    /// Connections open, or flows of UDP.
    pub connections: u64,
}

/// Tunnelled UDP, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(default)]
pub struct DatagramStatus {
    /// Flows there are now.
    pub flows: u64,
    /// Datagrams from hosts in a LAN to their targets, since the start.
    pub up_total: u64,
    /// Datagrams from targets to hosts in a LAN, since the start.
    pub down_total: u64,
    /// Duplicates removed at this end, since the start.
    pub duplicates_removed_total: u64,
}

impl DatagramStatus {
    /// Adds one to a count.
    pub fn count(counts: &Cell<DatagramStatus>, which: fn(&mut DatagramStatus) -> &mut u64) {
        let mut new = counts.get();
        let count = which(&mut new);
        *count = count.saturating_add(1);
        counts.set(new);
    }
}

/// Streams, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(default)]
pub struct StreamCounts {
    /// Open now.
    pub open: u64,
    /// Connections kept ready for the next stream.
    pub warm: u64,
    /// Opened since the start.
    pub opened_total: u64,
    /// Failed since the start.
    pub failed_total: u64,
    /// Those failed, by cause (`refused`, `unreachable`, `timed out`, `denied`, ...).
    pub failed_by_cause: BTreeMap<String, u64>,
}

/// The connections that matter most, and how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(default)]
pub struct Connections {
    /// All of them.
    pub total: u64,
    /// The fastest first, then the oldest; at most [`CONNECTIONS_SHOWN`].
    pub top: Vec<ConnectionStatus>,
}

impl Connections {
    /// Keeps the fastest, then the oldest, of all connections.
    pub fn of(all: impl IntoIterator<Item = ConnectionStatus>) -> Connections {
        let mut top: Vec<ConnectionStatus> = all.into_iter().collect();
        let total = top.len() as u64;
        let rate =
            |connection: &ConnectionStatus| connection.down_bps.saturating_add(connection.up_bps);
        top.sort_by(|a, b| {
            (rate(b), b.age_seconds, a.client).cmp(&(rate(a), a.age_seconds, b.client))
        });
        top.truncate(CONNECTIONS_SHOWN);
        Connections { total, top }
    }
}

/// One intercepted or relayed connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
pub struct ConnectionStatus {
    /// Who opened it: the LAN client; on a server, the agent's address.
    pub client: SocketAddr,
    /// Where it goes.
    pub target: SocketAddr,
    /// Bits a second from the target.
    #[serde(default)]
    pub down_bps: u64,
    /// Bits a second to the target.
    #[serde(default)]
    pub up_bps: u64,
    /// Bytes from the target.
    #[serde(default)]
    pub down_bytes: u64,
    /// Bytes to the target.
    #[serde(default)]
    pub up_bytes: u64,
    /// Seconds since it was opened.
    #[serde(default)]
    pub age_seconds: u64,
    /// MPTCP subflows; none where it is not known.
    #[serde(default)]
    pub subflows: Option<u32>,
}

/// What the kernel contributes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(default)]
pub struct KernelStatus {
    /// MPTCP counters that matter; see [`kernel_counters`].
    pub counters: Vec<Counter>,
    /// The path manager's limits; none where the kernel has no MPTCP.
    pub limits: Option<LimitsStatus>,
    /// Sysctls that could not be set.
    pub sysctls_not_set: Vec<SysctlFailure>,
    /// Other path-manager programs that run, by name.
    pub other_path_managers: Vec<String>,
    /// What else stands in the way, a sentence each.
    pub conflicts: Vec<String>,
}

/// The path manager's limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(default)]
pub struct LimitsStatus {
    /// Additional subflows a connection may have.
    pub subflows: u32,
    /// ADD_ADDR options a connection acts upon.
    pub add_addr_accepted: u32,
}

/// A sysctl that could not be set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(default)]
pub struct SysctlFailure {
    /// Path below `/proc/sys`.
    pub key: String,
    /// The value wanted.
    pub wanted: String,
    /// Why not.
    pub error: String,
}

/// An operation that failed and is tried again by the next pass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(default)]
pub struct Failure {
    /// The operation, as the `ip` or `nft` command that would do it.
    pub operation: String,
    /// The error in words.
    pub error: String,
    /// The kernel's error number, if it gave one.
    pub errno: Option<i32>,
    /// Seconds since it failed first.
    pub since_seconds: u64,
}

/// What a server shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(default)]
pub struct ServerSnapshot {
    /// The program's version.
    pub version: String,
    /// When the snapshot was made, in seconds since 1970 (UTC).
    pub time_unix_seconds: u64,
    /// Seconds since the server started.
    pub uptime_seconds: u64,
    /// Addresses listened on.
    pub listen: Vec<String>,
    /// `host:port` written into invitations.
    pub public: String,
    /// Why the last reload failed, in full; the configuration before it is in force.
    pub config_error: Option<String>,
    /// Clients by name.
    pub clients: Vec<ClientStatus>,
    /// Streams of all clients.
    pub streams: StreamCounts,
    /// Tunnelled UDP of all clients.
    pub datagrams: DatagramStatus,
    /// Connections and streams refused since the start, by cause.
    pub refusals: BTreeMap<String, u64>,
    /// Connections that have not shown yet who they are.
    pub unauthenticated: u64,
    /// The connections that matter most.
    pub connections: Connections,
    /// The kernel's side.
    pub kernel: KernelStatus,
    /// Operations that failed and are tried again.
    pub failures: Vec<Failure>,
    /// The last events, oldest first.
    pub events: Vec<Event>,
}

/// One client of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(default)]
pub struct ClientStatus {
    /// The client's name.
    pub name: String,
    /// Whether it has a session, or, of one that speaks plain TCP Convert, a stream.
    pub connected: bool,
    /// Where its control connection comes from, or its newest stream.
    pub address: Option<String>,
    /// Sessions.
    pub sessions: u64,
    /// Streams open.
    pub streams: u64,
    /// Bits a second sent to it.
    pub down_bps: u64,
    /// Bits a second received from it.
    pub up_bps: u64,
    /// Bytes sent to it since the start.
    pub down_bytes: u64,
    /// Bytes received from it since the start.
    pub up_bytes: u64,
    /// Bytes sent to it today (UTC), over restarts.
    pub today_down_bytes: u64,
    /// Bytes received from it today (UTC), over restarts.
    pub today_up_bytes: u64,
    /// Seconds since it connected or was lost, or since the newest stream of one that speaks plain TCP
    /// Convert; none if it never connected.
    pub since_seconds: Option<u64>,
}

#[cfg(test)]
mod tests;
