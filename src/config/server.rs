//! The server's configuration.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::net::Prefix;

/// `/etc/mptcp-bond/server.toml`, resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerConfig {
    /// Where TCP and UDP are served.
    pub listen: Vec<SocketAddr>,
    /// `host:port` written into invitations.
    pub public: String,
    /// File of the server's private key.
    pub key_file: PathBuf,
    /// The least severe level logged.
    pub log_level: log::LevelFilter,
    /// Targets a client may reach.
    pub policy: Policy,
    /// Caps.
    pub limits: ServerLimits,
    /// Clients that may connect.
    pub clients: Vec<ClientConfig>,
    /// Where metrics and status are served over HTTP.
    pub metrics_listen: Option<SocketAddr>,
}

/// Which targets may be reached: the longest matching prefix decides; none means allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Allowed in spite of a shorter denied prefix.
    pub allow: Vec<Prefix>,
    /// Denied.
    pub deny: Vec<Prefix>,
}

/// Caps a server keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerLimits {
    /// Streams of one client at once.
    pub streams_per_client: u32,
    /// Bytes a second of one client, each direction; 0 is unlimited.
    pub rate_per_client: u64,
    /// Connections that have not shown who they are, at once.
    pub unauthenticated: u32,
}

/// A `[[client]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// Name in logs and metrics.
    pub name: String,
    /// X25519 public key.
    pub public_key: [u8; 32],
    /// Ports the client may have forwarded to it.
    pub forwards: Vec<u16>,
}
