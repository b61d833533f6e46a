//! `server clients`.

use std::time::SystemTime;

use serde::Deserialize;
use serde_json::{Value, json};

use super::server::{read_invites, seconds};
use super::{ProvisionError, TRAFFIC, read_accounts, read_server_config};
use crate::accounts::{DAYS, DayTraffic};
use crate::cli::ClientsOptions;
use crate::config::invites::Invite;
use crate::config::keys::{Credential, PublicKey};
use crate::config::server::ServerConfig;
use crate::config::value::show_bytes;
use crate::json;
use crate::os::control::{CallError, call_with};
use crate::quota::Day;

/// What is known of a client beside its configuration.
#[derive(Default, Deserialize)]
struct Known {
    name: String,
    /// None where no server runs.
    connected: Option<bool>,
    days: Vec<DayTraffic>,
}

/// A client as it is listed.
struct Listed<'a> {
    name: &'a str,
    credential: Credential,
    forwards: &'a [u16],
    known: Known,
}

impl Listed<'_> {
    /// The public key, unless it has a cookie.
    fn key(&self) -> Option<PublicKey> {
        match self.credential {
            Credential::Key(key) => Some(key),
            Credential::Cookie(_) => None,
        }
    }
}

/// Lists clients and open invitations, as a table or as JSON.
///
/// # Errors
/// Configuration, invitations or accounts cannot be read, or a running server does not answer.
pub fn clients(options: &ClientsOptions) -> Result<String, ProvisionError> {
    let config = read_server_config(&options.config)?;
    let now = seconds(SystemTime::now());
    let mut invites = read_invites(&options.config)?.list;
    invites.retain(|invite| invite.expires > now);
    let mut known: Vec<Known> = match call_with(&options.run_dir, "clients", Value::Null) {
        Ok(answer) => json::from_str(&answer)
            .map_err(|error| ProvisionError::Remote(format!("the server's answer: {error}")))?,
        Err(CallError::NotRunning(_)) => saved(options, &config)?,
        Err(error) => return Err(ProvisionError::Remote(error.to_string())),
    };
    let clients: Vec<Listed<'_>> = config
        .credentials()
        .map(|(name, credential)| {
            let place = known.iter().position(|known| known.name == name);
            let known = place.map(|place| known.swap_remove(place)).unwrap_or_default();
            let paired = config.clients.iter().find(|client| client.name == name);
            let forwards = paired.map_or(&[][..], |client| &client.forwards);
            Listed { name, credential, forwards, known }
        })
        .collect();
    match options.json {
        true => Ok(format!("{}\n", to_json(&clients, &invites))),
        false => Ok(to_table(&clients, &invites, now)),
    }
}

/// What the file says where no server runs.
fn saved(options: &ClientsOptions, config: &ServerConfig) -> Result<Vec<Known>, ProvisionError> {
    let accounts = read_accounts(&options.config.with_file_name(TRAFFIC))?;
    let known = config.credentials().map(|(name, _)| Known {
        name: name.to_owned(),
        connected: None,
        days: accounts.days(name).to_vec(),
    });
    Ok(known.collect())
}

fn to_json(clients: &[Listed<'_>], invites: &[Invite]) -> Value {
    let clients = clients.iter().map(|client| {
        json!({
            "name": client.name,
            "public_key": client.key().map(|key| key.to_string()),
            "forwards": client.forwards,
            "connected": client.known.connected,
            "days": client.known.days,
        })
    });
    let invites = invites
        .iter()
        .map(|invite| json!({ "name": invite.name, "expires_unix_seconds": invite.expires }));
    json!({ "clients": clients.collect::<Value>(), "invitations": invites.collect::<Value>() })
}

fn to_table(clients: &[Listed<'_>], invites: &[Invite], now: u64) -> String {
    let month = format!("{DAYS} DAYS");
    let mut rows = vec![["NAME", "KEY", "STATE", "TODAY", &month, "FORWARDS"].map(str::to_owned)];
    for client in clients {
        let known = &client.known;
        let carried = |from: Option<Day>| {
            let days = known.days.iter().filter(|day| from.is_none_or(|from| day.date >= from));
            show_bytes(days.map(|day| day.down_bytes.saturating_add(day.up_bytes)).sum())
        };
        let state = match known.connected {
            Some(true) => "connected",
            Some(false) => "away",
            None => "no server",
        };
        let ports: Vec<String> = client.forwards.iter().map(u16::to_string).collect();
        rows.push([
            client.name.to_owned(),
            client.key().map_or_else(|| "cookie".to_owned(), |key| key.fingerprint()),
            state.to_owned(),
            carried(Some(Day::of_unix(now))),
            carried(None),
            if ports.is_empty() { "-".to_owned() } else { ports.join(" ") },
        ]);
    }
    for invite in invites {
        let left = (invite.expires - now) / 60;
        let open = format!("invited, {} h {} min left", left / 60, left % 60);
        rows.push([&invite.name, &open, "-", "-", "-", "-"].map(str::to_owned));
    }
    if rows.len() == 1 {
        return "No clients yet; 'mptcp-bond server invite NAME' invites one.\n".into();
    }
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    let mut table = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        table.push_str(line.trim_end());
        table.push('\n');
    }
    table
}
