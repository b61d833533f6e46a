//! The agent's configuration, resolved: nothing here means "to be found out later".

mod parse;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;

use super::keys::PublicKey;
use super::value::{self, HostPort, HttpUrl};
use crate::net::{Prefix, Transport};

/// The most `config uplink` sections: the kernel keeps at most 8 endpoints
/// (`MPTCP_PM_ADDR_MAX` in `net/mptcp/pm.c`).
pub const MAX_UPLINKS: usize = 8;

/// `/etc/config/mptcpd`, resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentConfig {
    /// `option enabled`, on unless it says otherwise; see [`AgentConfig::idle_reason`].
    pub enabled: bool,
    /// The least severe level logged.
    pub log_level: log::LevelFilter,
    /// LAN interfaces (OpenWrt) or devices.
    pub lan: Vec<String>,
    /// What happens to new LAN TCP while no server answers.
    pub on_server_loss: OnServerLoss,
    /// What happens to UDP 443 from the LAN.
    pub quic: Quic,
    /// Destination ports of LAN UDP that is tunnelled, inclusive ranges.
    pub udp_ports: Vec<(u16, u16)>,
    /// Whether each of its datagrams is sent over the two best uplinks.
    pub udp_duplicate: bool,
    /// Where the status is served over HTTP.
    pub http_listen: Option<HttpListen>,
    /// What is asked for over an uplink on which the server does not answer.
    pub check_url: Option<HttpUrl>,
    /// Servers; the first that answers is used.
    pub servers: Vec<ServerConfig>,
    /// Uplinks in order of appearance.
    pub uplinks: Vec<UplinkConfig>,
    /// Traffic that is not tunnelled.
    pub bypasses: Vec<BypassConfig>,
    /// Ports forwarded from the server to the LAN.
    pub forwards: Vec<ForwardConfig>,
}

impl AgentConfig {
    /// Whether the traffic of the uplink with this name counts against a quota.
    pub fn is_metered(&self, uplink: &str) -> bool {
        self.uplinks.iter().any(|it| it.name == uplink && it.quota.is_some())
    }

    /// Why there is nothing to do, if so. The service starts unconfigured after its installation,
    /// and then waits for a configuration.
    pub fn idle_reason(&self) -> Option<&'static str> {
        if !self.enabled {
            return Some("option 'enabled' of the agent section is 0");
        }
        if self.servers.is_empty() {
            return Some("there is no 'config server' section");
        }
        if self.uplinks.is_empty() {
            return Some("there is no 'config uplink' section");
        }
        None
    }
}

/// `option http_listen`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpListen {
    /// On this address; who asks needs a token, unless it is a loopback address.
    Address(SocketAddr),
    /// On this port of the LAN's devices, and of no other.
    Lan(u16),
}

impl fmt::Display for HttpListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HttpListen::Address(address) => address.fmt(f),
            HttpListen::Lan(port) => write!(f, "lan:{port}"),
        }
    }
}

/// `option on_server_loss`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnServerLoss {
    /// New LAN TCP goes out untunnelled.
    Direct,
    /// New LAN TCP is refused.
    Block,
}

impl fmt::Display for OnServerLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OnServerLoss::Direct => "LAN TCP goes out untunnelled",
            OnServerLoss::Block => "LAN TCP is refused",
        })
    }
}

/// `option quic`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quic {
    /// UDP 443 passes.
    Allow,
    /// UDP 443 is refused, so that browsers use TCP.
    Reject,
}

/// `option cipher`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CipherChoice {
    /// Whatever suits both ends.
    Auto,
    /// AES-128-GCM.
    Aes128Gcm,
    /// ChaCha20-Poly1305.
    ChaCha20Poly1305,
    /// Payload in the clear, header authenticated.
    None,
}

/// A `config server` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// The section's name.
    pub name: String,
    /// Host name or address literal (IPv6 without brackets).
    pub address: String,
    /// TCP and UDP port.
    pub port: u16,
    /// X25519 public key.
    pub public_key: PublicKey,
    /// Cipher asked for.
    pub cipher: CipherChoice,
}

impl ServerConfig {
    /// Where it is.
    pub fn host_port(&self) -> HostPort {
        HostPort { host: self.address.clone(), port: self.port }
    }
}

/// How an uplink is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// By OpenWrt interface, through netifd.
    Interface(String),
    /// By device, through the kernel.
    Device(String),
}

/// `option role`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Always used.
    Bond,
    /// Used while no bond uplink is up.
    Backup,
    /// Used while the bond uplinks are saturated.
    Overflow,
    /// Never used.
    Off,
}

impl Role {
    /// All roles by name.
    pub const NAMES: [(&str, Role); 4] = [
        ("bond", Role::Bond),
        ("backup", Role::Backup),
        ("overflow", Role::Overflow),
        ("off", Role::Off),
    ];

    /// What a person wants an uplink's role to be: one of the roles, or with `default` (`None`) the
    /// configured one. The error says what it must be.
    pub fn wanted(text: &str) -> Result<Option<Role>, String> {
        if text == "default" {
            return Ok(None);
        }
        let found = Role::NAMES.iter().find(|(name, _)| *name == text);
        found.map(|(_, role)| Some(*role)).ok_or_else(|| {
            let names = Role::NAMES.iter().map(|(name, _)| *name);
            let names: Vec<&str> = names.chain(["default"]).collect();
            value::one_of(&names)
        })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Role::NAMES.iter().find(|(_, role)| role == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

/// What happens at the cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaAction {
    /// The uplink becomes a backup.
    Backup,
    /// The uplink is switched off.
    Off,
}

/// A monthly cap (`quota`, `quota_reset_day`, `quota_action`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Bytes a month, sent and received; never 0. Units are decimal: 50G is 50 000 000 000.
    pub bytes: u64,
    /// Day of the month (1-31) the count starts anew.
    pub reset_day: u8,
    /// What happens at the cap.
    pub action: QuotaAction,
}

/// A `config uplink` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkConfig {
    /// The section's name.
    pub name: String,
    /// Where it is.
    pub attachment: Attachment,
    /// Role.
    pub role: Role,
    /// Cap, if any.
    pub quota: Option<Quota>,
}

/// A `config bypass` section: a connection that matches every list given is not tunnelled. At least
/// one list is not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BypassConfig {
    /// The section's name.
    pub name: String,
    /// Destinations.
    pub dest: Vec<Prefix>,
    /// Sources.
    pub src: Vec<Prefix>,
    /// Destination ports, inclusive ranges.
    pub dport: Vec<(u16, u16)>,
    /// Source MAC addresses.
    pub mac: Vec<[u8; 6]>,
}

/// A `config forward` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardConfig {
    /// The section's name.
    pub name: String,
    /// What of: a section for both is two of these.
    pub transport: Transport,
    /// Port on the server.
    pub listen: u16,
    /// Target on the LAN.
    pub target: SocketAddr,
    /// Whether the target is told who connects, by the PROXY protocol; TCP only.
    pub proxy_protocol: bool,
}
