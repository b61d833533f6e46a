//! What a command line says: a command and its options.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::agent::Role;
use crate::config::pairing::PairingUri;
use crate::config::value::HostPort;

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `agent`
    Agent(AgentOptions),
    /// `server`
    Server(ServerOptions),
    /// `server init`
    ServerInit(InitOptions),
    /// `server invite NAME`
    ServerInvite(ClientOptions),
    /// `server clients`
    ServerClients(ClientsOptions),
    /// `server revoke NAME`
    ServerRevoke(RevokeOptions),
    /// `pair URI`
    Pair {
        /// With whom, and where to write it.
        options: PairOptions,
        /// Folder of the agent's control socket.
        run_dir: PathBuf,
    },
    /// `server rotate-key`
    ServerRotateKey(RotateServerOptions),
    /// `rotate-key`
    RotateKey(RotateOptions),
    /// `status`
    Status(StatusOptions),
    /// `check`
    Check(CheckOptions),
    /// `uplink NAME ROLE`
    Uplink(UplinkOptions),
    /// `monitor`
    Monitor(MonitorOptions),
    /// `self-test`
    SelfTest,
    /// `version`
    Version,
    /// `help`
    Help,
}

/// Of `agent`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentOptions {
    /// UCI file.
    pub config: PathBuf,
    /// Folder of the control socket.
    pub run_dir: PathBuf,
    /// Folder of the agent's key.
    pub key_dir: PathBuf,
    /// ubusd's socket.
    pub ubus_socket: PathBuf,
    /// Log to standard error in any case; otherwise only if it is a terminal, and else to syslog.
    pub stderr: bool,
}

/// Of `server`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerOptions {
    /// TOML file.
    pub config: PathBuf,
    /// Folder of the control socket.
    pub run_dir: PathBuf,
    /// Log to standard error in any case; otherwise only if it is a terminal, and else to syslog.
    pub stderr: bool,
}

/// Of `server init`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitOptions {
    /// TOML file to write.
    pub config: PathBuf,
    /// Where to listen; empty for all addresses.
    pub listen: Vec<SocketAddr>,
    /// Where routers reach the server; `None` is to be found out.
    pub public: Option<HostPort>,
}

/// Of `server invite`, and more of `server revoke`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// TOML file.
    pub config: PathBuf,
    /// The client's name.
    pub name: String,
}

/// Of `server revoke`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevokeOptions {
    /// Who.
    pub client: ClientOptions,
    /// Folder of the server's control socket.
    pub run_dir: PathBuf,
}

/// Of `server clients`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientsOptions {
    /// TOML file.
    pub config: PathBuf,
    /// Folder of the server's control socket.
    pub run_dir: PathBuf,
    /// Print JSON.
    pub json: bool,
}

/// Of `pair`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairOptions {
    /// The invitation.
    pub uri: PairingUri,
    /// UCI file to write to.
    pub config: PathBuf,
    /// Folder of the agent's key.
    pub key_dir: PathBuf,
    /// Name of the `config server` section to write.
    pub name: String,
}

/// Of `rotate-key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotateOptions {
    /// UCI file.
    pub config: PathBuf,
    /// Folder of the agent's key.
    pub key_dir: PathBuf,
    /// Folder of the agent's control socket.
    pub run_dir: PathBuf,
}

/// Of `server rotate-key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotateServerOptions {
    /// TOML file.
    pub config: PathBuf,
    /// Folder of the server's control socket.
    pub run_dir: PathBuf,
    /// Give the old key up now.
    pub finish: bool,
}

/// How `status` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusFormat {
    /// A table, once.
    Table,
    /// JSON, once.
    Json,
    /// The table, again and again.
    Watch,
}

/// Of `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusOptions {
    /// Folder of the control socket.
    pub run_dir: PathBuf,
    /// How to print.
    pub format: StatusFormat,
}

/// Of `check`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckOptions {
    /// UCI file, read where no agent runs.
    pub config: PathBuf,
    /// Folder of the control socket.
    pub run_dir: PathBuf,
    /// Print JSON.
    pub json: bool,
}

/// Of `uplink`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkOptions {
    /// Folder of the control socket.
    pub run_dir: PathBuf,
    /// The uplink's name.
    pub name: String,
    /// Its role from now on; `None` is the configured one.
    pub role: Option<Role>,
}

/// Of `monitor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MonitorOptions {
    /// Folder of the control socket.
    pub run_dir: PathBuf,
    /// Print JSON, an object a line.
    pub json: bool,
}
