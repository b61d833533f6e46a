//! The router's side: `pair`.

use std::path::Path;
use std::process::Command;

use super::{AGENT_KEY, ProvisionError, files, read_agent_config};
use crate::cli::{AGENT_CONFIG, PairOptions};
use crate::config::keys::PrivateKey;
use crate::config::pairing::PairingUri;
use crate::config::uci::edit::{EditError, set_options};

/// OpenWrt's own tool. What it writes, `uci show` and LuCI see at once.
const UCI: &str = "/sbin/uci";

/// `pair URI`: makes the router's key if there is none, enrols it at the server with `enrol`, and
/// writes the `config server` section. Nothing is written to the configuration unless the server
/// agreed.
pub fn pair(
    options: &PairOptions,
    enrol: impl FnOnce(&PairingUri, &PrivateKey) -> Result<(), String>,
) -> Result<String, ProvisionError> {
    pair_with(options, uci_for(&options.config), enrol)
}

/// OpenWrt's tool, if it is there and in charge of a configuration.
pub(super) fn uci_for(config: &Path) -> Option<&'static Path> {
    let uci = Path::new(UCI);
    (config == Path::new(AGENT_CONFIG) && uci.exists()).then_some(uci)
}

/// [`pair`], with `uci` to write the configuration, or without.
pub(super) fn pair_with(
    options: &PairOptions,
    uci: Option<&Path>,
    enrol: impl FnOnce(&PairingUri, &PrivateKey) -> Result<(), String>,
) -> Result<String, ProvisionError> {
    let (uri, path) = (&options.uri, &options.config);
    // What is wrong already should be known before the token is spent.
    read_agent_config(path)?;
    let (key, new) = files::private_key(&options.key_dir.join(AGENT_KEY))?;
    enrol(uri, &key).map_err(|why| {
        ProvisionError::Remote(format!("{} did not enrol this router: {why}", uri.server))
    })?;
    let port = uri.server.port.to_string();
    let public_key = uri.key.to_string();
    let values =
        [("address", uri.server.host.as_str()), ("port", &port), ("public_key", &public_key)];
    write_server(uci, path, &options.name, &values)?;
    let mut report = format!(
        "Paired with {}\nRouter key {} ({})\nWrote section 'server' '{}' to {}\n",
        uri.server,
        key.public().fingerprint(),
        if new { "new" } else { "as before" },
        options.name,
        path.display()
    );
    if let Some(reason) = read_agent_config(path)?.idle_reason() {
        report.push_str(&format!("\nThe agent still has nothing to do: {reason}.\n"));
    }
    Ok(report)
}

/// Writes options of the section `server` of that name, with `uci` or without.
pub(super) fn write_server(
    uci: Option<&Path>,
    path: &Path,
    name: &str,
    values: &[(&str, &str)],
) -> Result<(), ProvisionError> {
    match uci {
        Some(uci) => write_with_uci(uci, path, name, values),
        None => write_text(path, name, values),
    }
}

fn write_text(path: &Path, name: &str, values: &[(&str, &str)]) -> Result<(), ProvisionError> {
    let text = files::read_text_if_present(path)?.unwrap_or_default();
    let text = set_options(&text, "server", name, values).map_err(|error| {
        let what = match error {
            EditError::Parse(error) => error.to_string(),
            EditError::Layout => format!("section '{name}': {error}"),
        };
        ProvisionError::Content { path: path.to_owned(), what }
    })?;
    files::replace(path, text.as_bytes(), 0o644)
}

fn write_with_uci(
    uci: &Path,
    path: &Path,
    name: &str,
    values: &[(&str, &str)],
) -> Result<(), ProvisionError> {
    if files::read_if_present(path)?.is_none() {
        files::replace(path, b"", 0o644)?;
    }
    let package = path.file_name().unwrap_or_default().to_string_lossy();
    let section = format!("{package}.{name}");
    let run = |words: &[&str]| {
        let failed = |error| ProvisionError::Io { doing: "cannot run", path: uci.into(), error };
        let output = Command::new(uci).args(words).output().map_err(failed)?;
        if output.status.success() {
            return Ok(());
        }
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let what = format!("'{}' failed: {why}", words.join(" "));
        Err(ProvisionError::Content { path: uci.into(), what })
    };
    run(&["set", &format!("{section}=server")])?;
    for (key, value) in values {
        run(&["set", &format!("{section}.{key}={value}")])?;
    }
    run(&["commit", &package])
}
