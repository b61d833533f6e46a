//! The server's side: `server invite`, `revoke`, and the enrolment of a router.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::files::{self, Lock};
use super::{INVITES, ProvisionError, qr, read_server_config, read_server_key};
use crate::cli::{ClientOptions, RevokeOptions};
use crate::config::invites::Invites;
use crate::config::keys::{PublicKey, Token};
use crate::config::pairing::PairingUri;
use crate::config::server::edit::{self, EditError};
use crate::config::server::{ClientConfig, ServerConfig};
use crate::os::control::{CallError, call_with};
use crate::quota::Day;

/// Why a router was not enrolled.
#[derive(Debug)]
pub enum EnrolError {
    /// The token was never given, was used, or has lapsed. The router is told no more than that.
    Token,
    /// The name is taken by a router with another key: it must be revoked first.
    Name(String),
    /// The server's files could not be read or changed.
    Files(ProvisionError),
}

impl fmt::Display for EnrolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EnrolError::Token => f.write_str(
                "the token is unknown, used or expired; run 'mptcp-bond server invite' again",
            ),
            EnrolError::Name(name) => write!(
                f,
                "there is a client '{name}' with another key; run 'mptcp-bond server revoke {name}' \
                 first"
            ),
            EnrolError::Files(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for EnrolError {}

impl From<ProvisionError> for EnrolError {
    fn from(error: ProvisionError) -> EnrolError {
        EnrolError::Files(error)
    }
}

/// `server invite NAME`: prints a pairing URI. An earlier invitation of that name ends.
pub fn invite(options: &ClientOptions) -> Result<String, ProvisionError> {
    let (path, name) = (&options.config, &options.name);
    let config = read_server_config(path)?;
    if config.credentials().any(|(other, _)| other == name) {
        return Err(ProvisionError::Refused(format!(
            "there is a client '{name}' already; choose another name, or run \
             'mptcp-bond server revoke {name}' first"
        )));
    }
    let key = read_server_key(path, &config)?.public();
    let token = Token::from_bytes(files::random()?);
    let _lock = Lock::beside(path)?;
    let mut invites = read_invites(path)?;
    let expires = invites.add(name, &token, seconds(SystemTime::now()));
    files::replace_secret(&invites_path(path), invites.to_text().as_bytes())?;
    let uri = PairingUri { server: config.public, key, token }.to_uri();
    let picture = qr::Look::of_stdout().and_then(|look| qr::picture(&uri, look));
    Ok(format!(
        "Run this on the router by {} UTC; it works once:\n\n  mptcp-bond pair '{}'\n{}",
        date_and_time(expires),
        *uri,
        picture.map_or_else(String::new, |picture| format!("\n{picture}")),
    ))
}

/// Date, hour and minute, such as `2026-11-22 09:05`.
fn date_and_time(unix_seconds: u64) -> String {
    let minutes = unix_seconds % (24 * 3600) / 60;
    format!("{} {:02}:{:02}", Day::of_unix(unix_seconds), minutes / 60, minutes % 60)
}

/// `server revoke NAME`: takes away a client, an invitation, or both.
pub fn revoke(options: &RevokeOptions) -> Result<String, ProvisionError> {
    let ClientOptions { config: path, name } = &options.client;
    let lock = Lock::beside(path)?;
    let mut invites = read_invites(path)?;
    let invited = invites.remove(name);
    let text = files::read_text(path)?;
    let without = edit::remove_client(&text, &path.display().to_string(), name)
        .map_err(|error| edit_error(path, error))?;
    if let Some(text) = &without {
        files::replace(path, text.as_bytes(), 0o600)?;
    }
    if invited {
        files::replace_secret(&invites_path(path), invites.to_text().as_bytes())?;
    }
    drop(lock);
    match (without.is_some(), invited) {
        (true, _) => Ok(match tell_server(&options.run_dir, "the client is revoked")? {
            true => format!("Revoked '{name}'. Its session and connections have ended.\n"),
            false => format!("Revoked '{name}'. {NO_SERVER}\n"),
        }),
        (false, true) => Ok(format!("Revoked the invitation of '{name}'.\n")),
        (false, false) => Err(ProvisionError::Refused(format!(
            "there is no client and no invitation '{name}'; 'mptcp-bond server clients' lists them"
        ))),
    }
}

pub(super) const NO_SERVER: &str = "No server runs here that would have to be told.";

/// Has a running server read its files again, in which something is `done`; whether one runs.
pub(super) fn tell_server(run_dir: &Path, done: &str) -> Result<bool, ProvisionError> {
    match call_with(run_dir, "reload", Value::Null) {
        Ok(_) => Ok(true),
        Err(CallError::NotRunning(_)) => Ok(false),
        Err(error) => Err(ProvisionError::Remote(format!(
            "{done}, but the server does not know yet: {error}; restart it"
        ))),
    }
}

/// The name a token was given for, while it holds.
///
/// # Errors
/// [`EnrolError::Token`], or the file of invitations cannot be read.
pub fn invited(config: &Path, token: &Token, now: SystemTime) -> Result<String, EnrolError> {
    let invites = read_invites(config)?;
    invites.find(token, seconds(now)).map(str::to_owned).ok_or(EnrolError::Token)
}

/// Enrols a router that has shown a token and holds the private key of `client`: adds it to the
/// configuration in `config` and ends the invitation. Gives the client's name.
///
/// A key that is a client's already is welcome, so that a router whose answer was lost can ask
/// again. Reads and writes files: short, but blocking.
pub fn enrol(
    config: &Path,
    token: &Token,
    client: &PublicKey,
    now: SystemTime,
) -> Result<String, EnrolError> {
    let _lock = Lock::beside(config)?;
    let file = config.display().to_string();
    let text = files::read_text(config)?;
    let known = ServerConfig::parse(&text, &file).map_err(ProvisionError::Config)?.clients;
    if let Some(known) = known.iter().find(|known| known.has_key(client)) {
        return Ok(known.name.clone());
    }
    let mut invites = read_invites(config)?;
    let name = invites.find(token, seconds(now)).ok_or(EnrolError::Token)?.to_owned();
    if known.iter().any(|known| known.name == name) {
        return Err(EnrolError::Name(name));
    }
    let added = ClientConfig {
        name: name.clone(),
        public_key: *client,
        next_key: None,
        forwards: Vec::new(),
    };
    let text = edit::add_client(&text, &file, &added).map_err(|error| edit_error(config, error))?;
    // The client goes in first: after a crash in between, its name keeps the token from being used
    // again.
    files::replace(config, text.as_bytes(), 0o600)?;
    invites.remove(&name);
    files::replace_secret(&invites_path(config), invites.to_text().as_bytes())?;
    Ok(name)
}

fn invites_path(config: &Path) -> PathBuf {
    config.with_file_name(INVITES)
}

pub(super) fn read_invites(config: &Path) -> Result<Invites, ProvisionError> {
    let path = invites_path(config);
    let bytes = files::read_if_present(&path)?.unwrap_or_default();
    Ok(Invites::parse(&String::from_utf8_lossy(&bytes), &path.display().to_string())?)
}

pub(super) fn edit_error(path: &Path, error: EditError) -> ProvisionError {
    match error {
        EditError::Config(error) => ProvisionError::Config(error),
        EditError::Layout => {
            ProvisionError::Content { path: path.to_owned(), what: error.to_string() }
        }
    }
}

pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
