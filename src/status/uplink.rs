//! What is shown of an uplink.

#[cfg(test)]
use serde::Deserialize;
use serde::Serialize;

use crate::config::agent::Role;

/// An uplink's health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(rename_all = "lowercase")]
pub enum UplinkState {
    /// Works.
    Up,
    /// Works, but badly.
    Degraded,
    /// Does not work.
    Down,
    /// Not looked at: its role is `off`, or there is nothing to use it for.
    #[default]
    Unused,
}

/// One uplink.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(default)]
pub struct UplinkStatus {
    /// The section's name.
    pub name: String,
    /// The network device; none while it is not known.
    pub device: Option<String>,
    /// The role configured.
    pub role: Role,
    /// The role set at run time, which takes the place of the configured one.
    pub role_set: Option<Role>,
    /// Health.
    pub state: UplinkState,
    /// Whether new data is sent over it: healthy, and no backup that merely stands by.
    pub in_use: bool,
    /// Why the state is what it is, in words; may be empty for an uplink in use.
    pub reason: String,
    /// Seconds since the state last changed.
    pub since_seconds: u64,
    /// Addresses with prefix length.
    pub addresses: Vec<String>,
    /// Gateways; none on a point-to-point link.
    pub gateways: Vec<String>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// The routing table made for it.
    pub table: Option<u32>,
    /// The MPTCP endpoints made for it.
    pub endpoints: Vec<EndpointStatus>,
    /// Bits a second received by the device.
    pub rx_bps: u64,
    /// Bits a second sent by the device.
    pub tx_bps: u64,
    /// Mean rates of the last minute, both directions added, the oldest first; for terminals alone.
    #[serde(skip)]
    pub recent_bps: Vec<u64>,
    /// Bytes received by the device since it exists.
    pub rx_bytes: u64,
    /// Bytes sent by the device since it exists.
    pub tx_bytes: u64,
    /// Subflows of the tunnel's connections over it.
    pub subflows: u32,
    /// Smoothed round-trip time to the server.
    pub rtt_ms: Option<f64>,
    /// The least round-trip time seen of late.
    pub rtt_min_ms: Option<f64>,
    /// The 95th percentile of the last round-trip times.
    pub rtt_p95_ms: Option<f64>,
    /// The mean difference of round-trip times that follow each other.
    pub jitter_ms: Option<f64>,
    /// Probes lost, in per cent.
    pub loss_percent: Option<f64>,
    /// The address families whose untunnelled traffic leaves over it: `IPv4`, `IPv6`.
    pub untunnelled: Vec<String>,
    /// What it has carried this month; none before it was counted.
    pub usage: Option<UsageStatus>,
}

impl Default for UplinkStatus {
    fn default() -> UplinkStatus {
        UplinkStatus {
            name: String::new(),
            device: None,
            role: Role::Bond,
            role_set: None,
            state: UplinkState::Unused,
            in_use: false,
            reason: String::new(),
            since_seconds: 0,
            addresses: Vec::new(),
            gateways: Vec::new(),
            mtu: None,
            table: None,
            endpoints: Vec::new(),
            rx_bps: 0,
            tx_bps: 0,
            recent_bps: Vec::new(),
            rx_bytes: 0,
            tx_bytes: 0,
            subflows: 0,
            rtt_ms: None,
            rtt_min_ms: None,
            rtt_p95_ms: None,
            jitter_ms: None,
            loss_percent: None,
            untunnelled: Vec::new(),
            usage: None,
        }
    }
}

/// What an uplink has carried in the current period of its quota; a month without one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(default)]
pub struct UsageStatus {
    /// Bytes its device has received and sent.
    pub period_bytes: u64,
    /// The quota, if it has one.
    pub quota_bytes: Option<u64>,
    /// The period's first day (UTC), such as `2026-11-01`; none until the clock is right.
    pub since: Option<String>,
    /// The day the count starts anew.
    pub until: Option<String>,
}

/// An MPTCP endpoint of an uplink.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(default)]
pub struct EndpointStatus {
    /// Id, as in `ip mptcp endpoint`.
    pub id: u8,
    /// Address.
    pub address: String,
    /// Whether it has the `backup` flag.
    pub backup: bool,
}
