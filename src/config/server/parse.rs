//! TOML to the server's configuration, with every problem told.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use litemap::LiteMap;
use toml::de::DeValue;

use super::{BareClient, ClientConfig, Policy, ServerConfig, ServerLimits};
use crate::config::ConfigError;
use crate::config::keys::{PublicKey, TokenHash};
use crate::config::policy::{self, Targets};
use crate::config::reader::{self, Entry, Table};
use crate::config::value::{self, HostPort};

/// The key file's name where `key_file` is not given.
pub const DEFAULT_KEY_FILE: &str = "server.key";

impl ServerConfig {
    /// Parses the text of `server.toml`; `file` is its name in problems.
    pub fn parse(text: &str, file: &str) -> Result<ServerConfig, ConfigError> {
        reader::parse(text, file, resolve)
    }
}

fn resolve(root: &mut Table<'_>) -> Option<ServerConfig> {
    let listen = root.required("listen", read_listen);
    let public = root.required("public", |t, e| t.parsed(e, |text| text.parse::<HostPort>()));
    let key_file = root.optional("key_file", |t, e| t.parsed(e, read_path));
    let log_level = root.optional("log_level", |t, e| t.parsed(e, read_log_level));
    let metrics_listen = root.optional("metrics_listen", |t, e| t.parsed(e, value::socket_address));
    let sources = root.optional("source", read_sources).unwrap_or_default();
    let policy = root.optional("policy", |t, e| t.table(e, read_policy));
    let limits = root.optional("limits", |t, e| t.table(e, read_limits));
    let clients = root.optional("client", read_clients).unwrap_or_default();
    let allow_plain_convert = root.optional("allow_plain_convert", |t, e| t.boolean(&e));
    let bare_clients = root.optional("convert", read_bare_clients).unwrap_or_default();
    report_bare_clients(root, &bare_clients, &clients);
    report_shared_ports(root, listen.as_deref().unwrap_or_default(), &clients);
    Some(ServerConfig {
        listen: listen?,
        public: public?,
        key_file: key_file.unwrap_or_else(|| PathBuf::from(DEFAULT_KEY_FILE)),
        log_level: log_level.unwrap_or(log::LevelFilter::Info),
        sources,
        policy: policy.unwrap_or_default(),
        limits: limits.unwrap_or_default(),
        clients: clients.into_iter().map(|(_, client)| client).collect(),
        allow_plain_convert: allow_plain_convert.unwrap_or(false),
        bare_clients: bare_clients.into_iter().map(|(_, client)| client).collect(),
        metrics_listen,
    })
}

fn read_path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err("the path of a file, such as server.key".into());
    }
    Ok(PathBuf::from(text))
}

fn read_log_level(text: &str) -> Result<log::LevelFilter, String> {
    let found = value::LOG_LEVELS.iter().find(|(name, _)| *name == text);
    found.map(|(_, level)| *level).ok_or_else(|| "error, warn, info or debug".into())
}

fn read_listen(table: &mut Table<'_>, entry: Entry<'_>) -> Option<Vec<SocketAddr>> {
    let listen = match entry.value {
        DeValue::String(_) => vec![table.parsed(entry, value::socket_address)?],
        _ => table.array(&entry, value::socket_address)?,
    };
    if listen.is_empty() {
        table.wrong(&entry, "at least one ADDRESS:PORT such as \"0.0.0.0:443\"");
        return None;
    }
    Some(listen)
}

fn read_sources(table: &mut Table<'_>, entry: Entry<'_>) -> Option<Vec<IpAddr>> {
    let right = "an address of this host, or a list of one IPv4 and one IPv6 address";
    let address = |text: &str| text.parse::<IpAddr>().map_err(|_| right.to_owned());
    let sources = match entry.value {
        DeValue::String(_) => vec![table.parsed(entry, address)?],
        _ => table.array(&entry, address)?,
    };
    if let [one, other] = sources.as_slice()
        && one.is_ipv4() != other.is_ipv4()
    {
        return Some(sources);
    }
    if sources.len() > 1 {
        table.wrong(&entry, right);
        return None;
    }
    Some(sources)
}

fn read_policy(table: &mut Table<'_>) -> Option<Policy> {
    let entries = |t: &mut Table<'_>, e: Entry<'_>| t.array(&e, Targets::parse);
    let allow: Vec<Targets> = table.optional("allow", entries).unwrap_or_default().concat();
    let deny: Vec<Targets> = table.optional("deny", entries).unwrap_or_default().concat();
    if let Some(entry) = policy::contradiction(&allow, &deny) {
        table.problem(table.line, format!("[policy] both allows and denies {entry}"));
    }
    Some(Policy::new(allow, deny))
}

fn read_limits(table: &mut Table<'_>) -> Option<ServerLimits> {
    let default = ServerLimits::default();
    let count = |t: &mut Table<'_>, e: Entry<'_>| t.integer(&e, 1, 1_000_000);
    let rate = |t: &mut Table<'_>, e: Entry<'_>| match e.value {
        DeValue::Integer(number) if number.as_str() == "0" => Some(0),
        _ => t.parsed(e, value::rate),
    };
    let lifetime = |t: &mut Table<'_>, e: Entry<'_>| t.integer(&e, 4, 86_400);
    Some(ServerLimits {
        streams: table.optional("streams", count).unwrap_or(default.streams),
        streams_per_client: table
            .optional("streams_per_client", count)
            .unwrap_or(default.streams_per_client),
        rate: table.optional("rate", rate).unwrap_or(default.rate),
        rate_per_client: table.optional("rate_per_client", rate).unwrap_or(default.rate_per_client),
        unauthenticated: table
            .optional("unauthenticated", count)
            .unwrap_or(default.unauthenticated),
        session_lifetime: table
            .optional("session_lifetime", lifetime)
            .map_or(default.session_lifetime, |seconds| Duration::from_secs(seconds.into())),
    })
}

/// Reads blocks of a kind, each with its line; `check` sees them one after the other.
fn read_blocks<T>(
    table: &mut Table<'_>,
    entry: &Entry<'_>,
    read: fn(&mut Table<'_>) -> Option<T>,
    mut check: impl FnMut(&mut Table<'_>, usize, &T),
) -> Option<Vec<(usize, T)>> {
    let DeValue::Array(array) = entry.value else {
        table.wrong(entry, &format!("[[{}]] blocks", entry.key));
        return None;
    };
    let mut blocks = Vec::new();
    for element in array.iter() {
        let line = table.lines.at(element.span().start);
        let element = Entry { key: entry.key, line, value: element.get_ref() };
        if let Some(block) = table.table(element, read) {
            check(table, line, &block);
            blocks.push((line, block));
        }
    }
    Some(blocks)
}

/// The clients, each with its line.
fn read_clients(table: &mut Table<'_>, entry: Entry<'_>) -> Option<Vec<(usize, ClientConfig)>> {
    let mut names: LiteMap<String, usize> = LiteMap::new();
    let mut keys: LiteMap<PublicKey, usize> = LiteMap::new();
    read_blocks(table, &entry, read_client, |table, line, client| {
        if let Some(first) = names.get(&client.name) {
            let name = &client.name;
            table.problem(line, format!("client '{name}' is there already, on line {first}"));
        }
        for key in [Some(client.public_key), client.next_key].into_iter().flatten() {
            if let Some(first) = keys.get(&key) {
                let name = &client.name;
                table.problem(
                    line,
                    format!("client '{name}' has the public key of the client on line {first}"),
                );
            }
            keys.entry(key).or_insert(line);
        }
        names.entry(client.name.clone()).or_insert(line);
    })
}

fn read_client(table: &mut Table<'_>) -> Option<ClientConfig> {
    let name = table.required("name", |t, e| t.parsed(e, value::client_name));
    let public_key = table.required("public_key", |t, e| t.parsed(e, |text| text.parse()));
    let next_key = table.optional("next_key", |t, e| t.parsed(e, |text| text.parse()));
    let forwards = table.optional("forwards", |t, e| {
        let DeValue::Array(array) = e.value else {
            t.wrong(&e, "a list of ports such as [2222, 8080]");
            return None;
        };
        let mut ports = Vec::new();
        for element in array.iter() {
            let line = t.lines.at(element.span().start);
            let element = Entry { key: e.key, line, value: element.get_ref() };
            let port =
                t.integer(&element, 1, u32::from(u16::MAX)).and_then(|p| u16::try_from(p).ok());
            ports.extend(port);
        }
        Some(ports)
    });
    Some(ClientConfig {
        name: name?,
        public_key: public_key?,
        next_key,
        forwards: forwards.unwrap_or_default(),
    })
}

/// The bare clients, each with its line.
fn read_bare_clients(table: &mut Table<'_>, entry: Entry<'_>) -> Option<Vec<(usize, BareClient)>> {
    read_blocks(table, &entry, read_bare_client, |_, _, _| {})
}

fn read_bare_client(table: &mut Table<'_>) -> Option<BareClient> {
    let name = table.required("name", |t, e| t.parsed(e, value::client_name));
    let cookie = table.required("cookie", |t, e| {
        let text = if let DeValue::String(text) = e.value { text.as_ref() } else { "" };
        let cookie = TokenHash::of_cookie(text);
        // A secret, even if it is a wrong one.
        cookie.map_err(|right| t.problem(e.line, format!("'convert.cookie' must be {right}"))).ok()
    });
    Some(BareClient { name: name?, cookie: cookie? })
}

/// Names and cookies tell clients apart.
fn report_bare_clients(
    root: &mut Table<'_>,
    bare_clients: &[(usize, BareClient)],
    clients: &[(usize, ClientConfig)],
) {
    for (index, (line, client)) in bare_clients.iter().enumerate() {
        let name = &client.name;
        let before = bare_clients.get(..index).unwrap_or_default();
        let taken = clients.iter().any(|(_, other)| other.name == *name)
            || before.iter().any(|(_, other)| other.name == *name);
        if taken {
            root.problem(*line, format!("[[convert]]: there is a client '{name}' already"));
        }
        if before.iter().any(|(_, other)| other.cookie == client.cookie) {
            root.problem(*line, format!("[[convert]]: '{name}' has the cookie of another client"));
        }
    }
}

/// A port can be forwarded to one client, and not where the server itself listens.
fn report_shared_ports(
    root: &mut Table<'_>,
    listen: &[SocketAddr],
    clients: &[(usize, ClientConfig)],
) {
    let mut owners: LiteMap<u16, &str> = LiteMap::new();
    for (line, client) in clients {
        for &port in &client.forwards {
            let name = &client.name;
            if listen.iter().any(|address| address.port() == port) {
                root.problem(
                    *line,
                    format!(
                        "client '{name}': forwards has {port}, where the server itself listens"
                    ),
                );
            }
            if let Some(owner) = owners.insert(port, name) {
                root.problem(
                    *line,
                    format!("client '{name}': forwards has {port}, which client '{owner}' has"),
                );
            }
        }
    }
}
