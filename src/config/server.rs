//! The server's configuration.

pub mod edit;
mod parse;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use super::policy::{Denied, Policy};

pub use parse::DEFAULT_KEY_FILE;

use super::keys::{Credential, PublicKey, TokenHash};
use super::value::HostPort;

/// How long a session's keys serve new streams where `session_lifetime` is not given.
pub const SESSION_LIFETIME: Duration = Duration::from_secs(3600);

/// `/etc/mptcp-bond/server.toml`, resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerConfig {
    /// Where TCP and UDP are served; at least one.
    pub listen: Vec<SocketAddr>,
    /// `host:port` written into invitations.
    pub public: HostPort,
    /// File of the server's private key, as written; see [`ServerConfig::key_path`].
    pub key_file: PathBuf,
    /// The least severe level logged.
    pub log_level: log::LevelFilter,
    /// Addresses that connections to targets come from, one of each family at most; the kernel
    /// chooses for a family without one.
    pub sources: Vec<IpAddr>,
    /// Targets a client may reach.
    pub policy: Policy,
    /// Caps.
    pub limits: ServerLimits,
    /// Clients that may connect; names, keys and forwards are unique.
    pub clients: Vec<ClientConfig>,
    /// Whether bare clients of RFC 8803 are served.
    pub allow_plain_convert: bool,
    /// Those clients; names are unique, and none is a client's.
    pub bare_clients: Vec<BareClient>,
    /// Where the status is served over HTTP.
    pub metrics_listen: Option<SocketAddr>,
}

impl ServerConfig {
    /// The key file's path: a relative one is relative to the configuration file's folder.
    pub fn key_path(&self, config_file: &Path) -> PathBuf {
        config_file.parent().unwrap_or(Path::new("")).join(&self.key_file)
    }

    /// All clients' names, and what each is known by.
    pub fn credentials(&self) -> impl Iterator<Item = (&str, Credential)> {
        let paired = self.clients.iter().map(|client| {
            let key = Credential::Key(client.public_key);
            (client.name.as_str(), key)
        });
        let bare = self.bare_clients.iter().map(|client| {
            let cookie = Credential::Cookie(client.cookie);
            (client.name.as_str(), cookie)
        });
        paired.chain(bare)
    }

    /// The address to connect to a target from, where one is configured.
    pub fn source_towards(&self, target: SocketAddr) -> Option<IpAddr> {
        self.sources.iter().find(|source| source.is_ipv4() == target.is_ipv4()).copied()
    }
}

/// Caps a server keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerLimits {
    /// Streams of all clients at once.
    pub streams: u32,
    /// Streams of one client at once.
    pub streams_per_client: u32,
    /// Bytes a second of all clients together, each direction, which they share; 0 is not known.
    pub rate: u64,
    /// Bytes a second of one client, each direction; 0 is unlimited.
    pub rate_per_client: u64,
    /// Connections that have not shown who they are, at once.
    pub unauthenticated: u32,
    /// For how long a session's keys serve new streams at most.
    pub session_lifetime: Duration,
}

impl Default for ServerLimits {
    fn default() -> ServerLimits {
        ServerLimits {
            streams: 65536,
            streams_per_client: 4096,
            rate: 0,
            rate_per_client: 0,
            unauthenticated: 256,
            session_lifetime: SESSION_LIFETIME,
        }
    }
}

/// A `[[client]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// Name in logs and metrics.
    pub name: String,
    /// X25519 public key.
    pub public_key: PublicKey,
    /// The key that takes its place from its first use on.
    pub next_key: Option<PublicKey>,
    /// Ports of the server the client may have forwarded to it.
    pub forwards: Vec<u16>,
}

impl ClientConfig {
    /// Whether a key is one of this client's.
    pub fn has_key(&self, key: &PublicKey) -> bool {
        self.public_key == *key || self.next_key == Some(*key)
    }
}

/// A `[[convert]]`: a client that speaks plain TCP Convert (RFC 8803).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BareClient {
    /// Name in logs and accounts.
    pub name: String,
    /// The hash of the cookie that it shows.
    pub cookie: TokenHash,
}
