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
    let standard = options.config == Path::new(AGENT_CONFIG);
    let uci = Path::new(UCI);
    pair_with(options, (standard && uci.exists()).then_some(uci), enrol)
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
    match uci {
        Some(uci) => write_with_uci(uci, options, &values)?,
        None => write_text(options, &values)?,
    }
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

fn write_text(options: &PairOptions, values: &[(&str, &str)]) -> Result<(), ProvisionError> {
    let path = &options.config;
    let text = files::read_text_if_present(path)?.unwrap_or_default();
    let text = set_options(&text, "server", &options.name, values).map_err(|error| {
        let what = match error {
            EditError::Parse(error) => error.to_string(),
            EditError::Layout => format!("section '{}': {error}", options.name),
        };
        ProvisionError::Content { path: path.clone(), what }
    })?;
    files::replace(path, text.as_bytes(), 0o644)
}

fn write_with_uci(
    uci: &Path,
    options: &PairOptions,
    values: &[(&str, &str)],
) -> Result<(), ProvisionError> {
    if files::read_if_present(&options.config)?.is_none() {
        files::replace(&options.config, b"", 0o644)?;
    }
    let package = options.config.file_name().unwrap_or_default().to_string_lossy();
    let section = format!("{package}.{}", options.name);
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
