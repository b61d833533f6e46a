//! New keys in the place of old ones, while both hold: the router's (`rotate-key`) and the server's
//! (`server rotate-key`). What is under way stands in files, so that a crash between two steps shuts
//! nobody out: until the last step the old key holds on both ends.

use std::path::{Path, PathBuf};

use super::files::{self, Lock};
use super::router::{uci_for, write_server};
use super::server::{NO_SERVER, edit_error, read_invites, seconds, tell_server};
use super::{AGENT_KEY, ProvisionError, read_agent_config, read_server_config, read_server_keys};
use crate::cli::{RotateOptions, RotateServerOptions};
use crate::config::agent;
use crate::config::keys::{PrivateKey, PublicKey};
use crate::config::server::{ClientConfig, ServerConfig, edit};

/// The router's key to be, in the folder of its key.
const NEXT_AGENT_KEY: &str = "agent.key.next";

/// `rotate-key`: makes a new key for the router, has every server write it down beside the old one with
/// `renew`, and only then puts it in the old one's place. With the first connection that uses it, the
/// old one is worth nothing any more.
///
/// # Errors
/// No server is configured, or one of them did not agree: the old key stays in use, and the new one is
/// kept for the next try.
pub fn rotate_key(
    options: &RotateOptions,
    renew: impl Fn(&agent::ServerConfig, &PrivateKey, &PublicKey) -> Result<(), String>,
) -> Result<String, ProvisionError> {
    let config = read_agent_config(&options.config)?;
    if config.servers.is_empty() {
        let text =
            "this router has no server that would have to know its key; see 'mptcp-bond pair'";
        return Err(ProvisionError::Refused(text.into()));
    }
    let path = options.key_dir.join(AGENT_KEY);
    let next_path = options.key_dir.join(NEXT_AGENT_KEY);
    let old = files::read_private_key(&path)?;
    let (next, _) = files::private_key(&next_path)?;
    for server in &config.servers {
        renew(server, &old, &next.public()).map_err(|why| {
            ProvisionError::Remote(format!(
                "server {}: {why}; the old key stays in use: try again, or remove the section \
                 'server' '{}' if there is no such server any more",
                server.name, server.name
            ))
        })?;
    }
    files::rename(&next_path, &path)?;
    Ok(format!("New router key {}\n", next.public().fingerprint()))
}

/// Writes a client's other key down beside the one it has shown; it is in force with its first use.
///
/// Reads and writes files: short, but blocking.
pub fn renew_client_key(
    config: &Path,
    shown: &PublicKey,
    next: &PublicKey,
) -> Result<ServerConfig, ProvisionError> {
    change_keys(config, |client| {
        let is_known = client.has_key(next);
        (client.has_key(shown) && !is_known).then_some((client.public_key, Some(*next)))
    })
}

/// Puts a client's other key, which it has used, in the place of the one before.
///
/// Reads and writes files: short, but blocking.
pub fn confirm_client_key(config: &Path, used: &PublicKey) -> Result<ServerConfig, ProvisionError> {
    change_keys(config, |client| (client.next_key == Some(*used)).then_some((*used, None)))
}

/// Changes the keys of the client for which `change` gives others; the configuration after it.
fn change_keys(
    path: &Path,
    change: impl Fn(&ClientConfig) -> Option<(PublicKey, Option<PublicKey>)>,
) -> Result<ServerConfig, ProvisionError> {
    let _lock = Lock::beside(path)?;
    let file = path.display().to_string();
    let text = files::read_text(path)?;
    let config = ServerConfig::parse(&text, &file)?;
    let changed = config.clients.iter().find_map(|client| Some((&client.name, change(client)?)));
    let Some((name, (key, next))) = changed else { return Ok(config) };
    let text =
        edit::set_keys(&text, &file, name, key, next).map_err(|error| edit_error(path, error))?;
    files::replace(path, text.as_bytes(), 0o600)?;
    Ok(ServerConfig::parse(&text, &file)?)
}

/// `server rotate-key`: makes a new key for the server; the old one holds until every client has come
/// with the new one, or `--finish`.
///
/// # Errors
/// The old key of an earlier rotation still holds, or none does with `--finish`.
pub fn rotate_server_key(options: &RotateServerOptions) -> Result<String, ProvisionError> {
    let path = &options.config;
    let config = read_server_config(path)?;
    let keys = read_server_keys(path, &config)?;
    if options.finish {
        if !finish_server_key(path, &config)? {
            let text = "no old key holds: there is nothing to finish";
            return Err(ProvisionError::Refused(text.into()));
        }
        let told = tell_server(&options.run_dir, "the old key is removed")?;
        let rest = if told { "" } else { NO_SERVER };
        return Ok(format!(
            "The old key holds no more: routers that have not learned the new one have to be paired \
             again. {rest}\n"
        ));
    }
    let new = {
        let _lock = Lock::beside(path)?;
        let old_path = old_key_path(path, &config);
        match keys.old {
            // After a crash between the two steps below.
            Some(old) if old == keys.newest => {}
            Some(_) => {
                let text = "the key before this one still holds, as not every router has come with \
                            the new one; 'mptcp-bond server rotate-key --finish' ends that";
                return Err(ProvisionError::Refused(text.into()));
            }
            None => files::create_secret(&old_path, keys.newest.to_file().as_bytes())?,
        }
        let new = PrivateKey::from_bytes(files::random()?);
        files::replace_secret(&config.key_path(path), new.to_file().as_bytes())?;
        new
    };
    let told = tell_server(&options.run_dir, "there is a new key")?;
    Ok(format!(
        "New server key {}\nRouters learn of it while they are connected, and invitations name it. Until \
         all {} routers have come with it, the old one holds, too.\n{}",
        new.public().fingerprint(),
        config.clients.len(),
        if told { String::new() } else { format!("{NO_SERVER}\n") },
    ))
}

/// Removes the server's old key; whether there was one.
pub fn finish_server_key(path: &Path, config: &ServerConfig) -> Result<bool, ProvisionError> {
    let _lock = Lock::beside(path)?;
    files::remove(&old_key_path(path, config))
}

/// Whether invitations are open at this time, some of which may name the old key.
pub fn has_invitations(path: &Path, now: std::time::SystemTime) -> Result<bool, ProvisionError> {
    Ok(read_invites(path)?.list.iter().any(|invite| invite.expires > seconds(now)))
}

/// Where the server's old key is while it holds.
pub(super) fn old_key_path(path: &Path, config: &ServerConfig) -> PathBuf {
    let mut name = config.key_path(path).into_os_string();
    name.push(".old");
    name.into()
}

/// Writes a server's new key into the agent's configuration, in the place of the one known before.
///
/// Reads and writes files, and may run `uci`: short, but blocking.
///
/// # Errors
/// The section is not there any more, or names another key.
pub fn set_server_key(
    path: &Path,
    server: &agent::ServerConfig,
    key: &PublicKey,
) -> Result<(), ProvisionError> {
    let config = read_agent_config(path)?;
    if !config.servers.contains(server) {
        let text = format!("{}: section '{}' was changed meanwhile", path.display(), server.name);
        return Err(ProvisionError::Refused(text));
    }
    write_server(uci_for(path), path, &server.name, &[("public_key", &key.to_string())])
}
