//! TOML to the server's configuration, with every problem told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::{ClientConfig, Policy, ServerConfig, ServerLimits};
use crate::config::keys::PublicKey;
use crate::config::value::{self, HostPort};
use crate::config::{ConfigError, Problems, policy};
use crate::net::Prefix;

/// The key file's name where `key_file` is not given.
pub const DEFAULT_KEY_FILE: &str = "server.key";

impl ServerConfig {
    /// Parses the text of `server.toml`; `file` is its name in problems.
    pub fn parse(text: &str, file: &str) -> Result<ServerConfig, ConfigError> {
        let mut problems = Problems::new(file);
        let lines = Lines::new(text);
        let (root, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let line = error.span().map_or(0, |span| lines.at(span.start));
            problems.add(line, format!("not TOML: {}", error.message()));
        }
        if !errors.is_empty() {
            return problems.finish(None);
        }
        let config = resolve(Table::new(root.get_ref(), "", 0, &lines, &mut problems));
        problems.finish(config)
    }
}

fn resolve(mut root: Table<'_>) -> Option<ServerConfig> {
    let listen = root.required("listen", read_listen);
    let public = root.required("public", |t, e| t.parsed(e, |text| text.parse::<HostPort>()));
    let key_file = root.optional("key_file", |t, e| t.parsed(e, read_path));
    let log_level = root.optional("log_level", |t, e| t.parsed(e, read_log_level));
    let metrics_listen =
        root.optional("metrics_listen", |t, e| t.parsed(e, value::socket_address));
    let policy = root.optional("policy", |t, e| t.table(e, read_policy));
    let limits = root.optional("limits", |t, e| t.table(e, read_limits));
    let clients = root.optional("client", read_clients).unwrap_or_default();
    report_shared_ports(&mut root, listen.as_deref().unwrap_or_default(), &clients);
    root.finish();
    Some(ServerConfig {
        listen: listen?,
        public: public?,
        key_file: key_file.unwrap_or_else(|| PathBuf::from(DEFAULT_KEY_FILE)),
        log_level: log_level.unwrap_or(log::LevelFilter::Info),
        policy: policy.unwrap_or_default(),
        limits: limits.unwrap_or_default(),
        clients: clients.into_iter().map(|(_, client)| client).collect(),
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

fn read_policy(table: &mut Table<'_>) -> Option<Policy> {
    let prefixes = |t: &mut Table<'_>, e: Entry<'_>| t.array(&e, value::network);
    let allow: Vec<Prefix> = table.optional("allow", prefixes).unwrap_or_default();
    let deny: Vec<Prefix> = table.optional("deny", prefixes).unwrap_or_default();
    if let Some(prefix) = policy::contradiction(&allow, &deny) {
        table.problem(table.line, format!("[policy] both allows and denies {prefix}"));
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
    Some(ServerLimits {
        streams_per_client: table
            .optional("streams_per_client", count)
            .unwrap_or(default.streams_per_client),
        rate_per_client: table.optional("rate_per_client", rate).unwrap_or(default.rate_per_client),
        unauthenticated: table.optional("unauthenticated", count).unwrap_or(default.unauthenticated),
    })
}

/// The clients, each with its line.
fn read_clients(table: &mut Table<'_>, entry: Entry<'_>) -> Option<Vec<(usize, ClientConfig)>> {
    let DeValue::Array(array) = entry.value else {
        table.wrong(&entry, "[[client]] blocks");
        return None;
    };
    let mut clients = Vec::new();
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    let mut keys: BTreeMap<PublicKey, usize> = BTreeMap::new();
    for element in array.iter() {
        let line = table.lines.at(element.span().start);
        let entry = Entry { key: entry.key, line, value: element.get_ref() };
        let Some(client) = table.table(entry, read_client) else { continue };
        if let Some(first) = names.get(&client.name) {
            let name = &client.name;
            table.problem(line, format!("client '{name}' is there already, on line {first}"));
        }
        if let Some(first) = keys.get(&client.public_key) {
            let name = &client.name;
            table.problem(
                line,
                format!("client '{name}' has the public key of the client on line {first}"),
            );
        }
        names.entry(client.name.clone()).or_insert(line);
        keys.entry(client.public_key).or_insert(line);
        clients.push((line, client));
    }
    Some(clients)
}

fn read_client(table: &mut Table<'_>) -> Option<ClientConfig> {
    let name = table.required("name", |t, e| t.parsed(e, value::client_name));
    let public_key = table.required("public_key", |t, e| t.parsed(e, |text| text.parse()));
    let forwards = table.optional("forwards", |t, e| {
        let DeValue::Array(array) = e.value else {
            t.wrong(&e, "a list of ports such as [2222, 8080]");
            return None;
        };
        let mut ports = Vec::new();
        for element in array.iter() {
            let line = t.lines.at(element.span().start);
            let element = Entry { key: e.key, line, value: element.get_ref() };
            let port = t.integer(&element, 1, u32::from(u16::MAX)).and_then(|p| u16::try_from(p).ok());
            ports.extend(port);
        }
        Some(ports)
    });
    Some(ClientConfig {
        name: name?,
        public_key: public_key?,
        forwards: forwards.unwrap_or_default(),
    })
}

/// A port can be forwarded to one client, and not where the server itself listens.
fn report_shared_ports(
    root: &mut Table<'_>,
    listen: &[SocketAddr],
    clients: &[(usize, ClientConfig)],
) {
    let mut owners: BTreeMap<u16, &str> = BTreeMap::new();
    for (line, client) in clients {
        for &port in &client.forwards {
            let name = &client.name;
            if listen.iter().any(|address| address.port() == port) {
                root.problem(
                    *line,
                    format!("client '{name}': forwards has {port}, where the server itself listens"),
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

/// Byte offsets to line numbers.
struct Lines {
    starts: Vec<usize>,
}

impl Lines {
    fn new(text: &str) -> Lines {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Lines { starts: [0].into_iter().chain(ends.map(|(at, _)| at + 1)).collect() }
    }

    /// The line of an offset, from 1.
    fn at(&self, offset: usize) -> usize {
        self.starts.partition_point(|&start| start <= offset)
    }
}

/// A key and its value.
#[derive(Clone, Copy)]
struct Entry<'a> {
    key: &'a str,
    line: usize,
    value: &'a DeValue<'a>,
}

/// A table, as it is read.
struct Table<'a> {
    /// Its path with a final dot: `policy.`; empty at the root.
    path: String,
    line: usize,
    entries: BTreeMap<&'a str, Entry<'a>>,
    known: Vec<&'static str>,
    lines: &'a Lines,
    problems: &'a mut Problems,
}

impl<'a> Table<'a> {
    fn new(
        table: &'a DeTable<'a>,
        path: &str,
        line: usize,
        lines: &'a Lines,
        problems: &'a mut Problems,
    ) -> Table<'a> {
        let entry = |(key, value): (&'a Spanned<_>, &'a Spanned<DeValue<'a>>)| {
            let line = lines.at(key.span().start);
            let key: &'a std::borrow::Cow<'a, str> = key.get_ref();
            (key.as_ref(), Entry { key: key.as_ref(), line, value: value.get_ref() })
        };
        let entries = table.iter().map(entry).collect();
        Table { path: path.to_owned(), line, entries, known: Vec::new(), lines, problems }
    }

    fn problem(&mut self, line: usize, message: impl Into<String>) {
        self.problems.add(line, message);
    }

    fn wrong(&mut self, entry: &Entry<'_>, right: &str) {
        let value = match entry.value {
            DeValue::String(text) => format!("'{}'", text.escape_debug()),
            DeValue::Integer(number) => number.as_str().to_owned(),
            other => format!("of type {}", other.type_str()),
        };
        let (path, key) = (&self.path, entry.key);
        let message = format!("'{path}{key}' is {value}; it must be {right}");
        self.problem(entry.line, message);
    }

    fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Table<'a>, Entry<'a>) -> Option<T>,
    ) -> Option<T> {
        self.known.push(key);
        let entry = *self.entries.get(key)?;
        read(self, entry)
    }

    fn required<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Table<'a>, Entry<'a>) -> Option<T>,
    ) -> Option<T> {
        if !self.entries.contains_key(key) {
            let message = format!("'{}{key}' is missing; it is required", self.path);
            self.problem(self.line, message);
        }
        self.optional(key, read)
    }

    fn parsed<T>(
        &mut self,
        entry: Entry<'_>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = match entry.value {
            DeValue::String(text) => text.as_ref(),
            _ => "",
        };
        match parse(text) {
            Ok(value) => Some(value),
            Err(right) => {
                self.wrong(&entry, &right);
                None
            }
        }
    }

    /// A list of strings.
    fn array<T>(
        &mut self,
        entry: &Entry<'_>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let array: &DeArray<'_> = match entry.value {
            DeValue::Array(array) => array,
            _ => {
                self.wrong(entry, "a list of strings");
                return None;
            }
        };
        let mut values = Vec::new();
        for element in array.iter() {
            let line = self.lines.at(element.span().start);
            let element = Entry { key: entry.key, line, value: element.get_ref() };
            values.extend(self.parsed(element, &parse));
        }
        Some(values)
    }

    fn integer(&mut self, entry: &Entry<'_>, low: u32, high: u32) -> Option<u32> {
        let number = match entry.value {
            DeValue::Integer(number) => {
                u32::from_str_radix(number.as_str(), number.radix()).ok()
            }
            _ => None,
        };
        let number = number.filter(|number| (low..=high).contains(number));
        if number.is_none() {
            self.wrong(entry, &format!("a number from {low} to {high}"));
        }
        number
    }

    fn table<T>(
        &mut self,
        entry: Entry<'_>,
        read: impl FnOnce(&mut Table<'_>) -> Option<T>,
    ) -> Option<T> {
        let DeValue::Table(table) = entry.value else {
            self.wrong(&entry, &format!("a table: [{}{}]", self.path, entry.key));
            return None;
        };
        let path = format!("{}{}.", self.path, entry.key);
        let mut table = Table::new(table, &path, entry.line, self.lines, self.problems);
        let value = read(&mut table);
        table.finish();
        value
    }

    /// Tells of keys that nothing has read.
    fn finish(mut self) {
        let unknown: Vec<Entry<'_>> =
            self.entries.values().filter(|entry| !self.known.contains(&entry.key)).copied().collect();
        let known = self.known.join(", ");
        for entry in unknown {
            let (path, key) = (self.path.clone(), entry.key.escape_debug());
            let place = match path.strip_suffix('.') {
                Some(table) => format!("[{table}]"),
                None => "the file".to_owned(),
            };
            self.problem(entry.line, format!("unknown key '{path}{key}'; {place} has {known}"));
        }
    }
}
