//! What an administrator sets up: keys, the server's configuration, invitations, pairing.

mod clients;
pub mod files;
mod http_token;
mod init;
mod qr;
mod rotation;
mod router;
mod server;
mod sysctls;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::accounts::Accounts;
use crate::cli::{Fatal, exit};
use crate::config::ConfigError;
use crate::config::agent::AgentConfig;
use crate::config::keys::{PrivateKey, ServerKeys};
use crate::config::server::ServerConfig;

pub use clients::clients;
pub use http_token::{HTTP_TOKEN, http_token};
pub use init::init;
pub use rotation::{
    confirm_client_key, finish_server_key, has_invitations, renew_client_key, rotate_key,
    rotate_server_key, set_server_key,
};
pub use router::pair;
pub use server::{EnrolError, enrol, invite, invited, revoke};

/// The agent's private key, in its key folder.
pub const AGENT_KEY: &str = "agent.key";
/// The open invitations, beside the server's configuration.
pub const INVITES: &str = "invites.toml";
/// What the clients carried each day, beside the server's configuration.
pub const TRAFFIC: &str = "traffic.json";

/// Why something could not be set up.
#[derive(Debug)]
pub enum ProvisionError {
    /// The operating system refused.
    Io {
        /// What was being done, to be read before the path: `cannot read`.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// A configuration is wrong.
    Config(ConfigError),
    /// A file holds something else than it must.
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        what: String,
    },
    /// The wish contradicts what is there; says what to do.
    Refused(String),
    /// The other side did not agree or did not answer.
    Remote(String),
}

impl ProvisionError {
    /// The code of `sysexits.h` to exit with.
    pub fn exit_code(&self) -> u8 {
        match self {
            ProvisionError::Io { error, .. } => match error.kind() {
                io::ErrorKind::PermissionDenied => exit::NOPERM,
                io::ErrorKind::NotFound => exit::NOINPUT,
                _ => exit::IOERR,
            },
            ProvisionError::Config(_) | ProvisionError::Content { .. } => exit::CONFIG,
            ProvisionError::Refused(_) => exit::DATAERR,
            ProvisionError::Remote(_) => exit::UNAVAILABLE,
        }
    }
}

impl fmt::Display for ProvisionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProvisionError::Io { doing, path, error } => {
                write!(f, "{doing} {}: {error}", path.display())
            }
            ProvisionError::Config(error) => error.fmt(f),
            ProvisionError::Content { path, what } => write!(f, "{}: {what}", path.display()),
            ProvisionError::Refused(what) | ProvisionError::Remote(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for ProvisionError {}

impl From<ConfigError> for ProvisionError {
    fn from(error: ConfigError) -> ProvisionError {
        ProvisionError::Config(error)
    }
}

impl From<ProvisionError> for Fatal {
    fn from(error: ProvisionError) -> Fatal {
        Fatal { code: error.exit_code(), text: error.to_string() }
    }
}

/// Prints a report to standard output, or an error to standard error, and says how to exit.
pub fn print(result: Result<String, ProvisionError>) -> ExitCode {
    match result {
        Ok(report) => {
            let mut out = io::stdout().lock();
            match out.write_all(report.as_bytes()).and_then(|()| out.flush()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::from(exit::IOERR),
            }
        }
        Err(error) => Fatal::from(error).report(),
    }
}

/// Reads and resolves the agent's configuration. A file that is not there is an unconfigured agent.
pub fn read_agent_config(path: &Path) -> Result<AgentConfig, ProvisionError> {
    let bytes = files::read_if_present(path)?.unwrap_or_default();
    Ok(AgentConfig::parse_bytes(&bytes, &path.display().to_string())?)
}

/// Reads and resolves the server's configuration.
pub fn read_server_config(path: &Path) -> Result<ServerConfig, ProvisionError> {
    Ok(ServerConfig::parse(&files::read_text(path)?, &path.display().to_string())?)
}

/// Reads what the clients of a server carried, if that was ever saved.
pub fn read_accounts(path: &Path) -> Result<Accounts, ProvisionError> {
    let Some(text) = files::read_text_if_present(path)? else { return Ok(Accounts::default()) };
    let content = |what| ProvisionError::Content { path: path.to_owned(), what };
    Accounts::parse(&text).map_err(|error| content(format!("damaged: {error}")))
}

/// Reads the agent's private key.
pub fn read_agent_key(key_dir: &Path) -> Result<PrivateKey, ProvisionError> {
    files::read_private_key(&key_dir.join(AGENT_KEY))
}

/// Reads the server's private key, the newest one.
pub fn read_server_key(path: &Path, config: &ServerConfig) -> Result<PrivateKey, ProvisionError> {
    files::read_private_key(&config.key_path(path))
}

/// Reads all of the server's private keys that hold.
pub fn read_server_keys(path: &Path, config: &ServerConfig) -> Result<ServerKeys, ProvisionError> {
    let newest = read_server_key(path, config)?;
    let old = match files::read_private_key(&rotation::old_key_path(path, config)) {
        Err(ProvisionError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => None,
        read => Some(read?),
    };
    Ok(ServerKeys::new(newest, old))
}
