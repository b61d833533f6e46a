//! UCI sections to the agent's configuration, with every problem told.

use std::net::{IpAddr, SocketAddr};

use litemap::LiteMap;

use super::{
    AgentConfig, Attachment, BypassConfig, CipherChoice, ForwardConfig, HttpListen, MAX_UPLINKS,
    OnServerLoss, Quic, Quota, QuotaAction, Role, ServerConfig, UplinkConfig,
};
use crate::config::uci::{self, Item, Section, Value};
use crate::config::{ConfigError, Problems, value};
use crate::net::{Family, Prefix, Transport};

/// Answers with an empty 204; Android devices ask it whether the Internet is there.
const CHECK_URL: &str = "http://connectivitycheck.gstatic.com/generate_204";
const SECTION_TYPES: &str = "agent, server, uplink, bypass or forward";

impl AgentConfig {
    /// Parses the text of `/etc/config/mptcpd`; `file` is its name in problems. An empty text is
    /// valid: see [`AgentConfig::idle_reason`].
    pub fn parse(text: &str, file: &str) -> Result<AgentConfig, ConfigError> {
        AgentConfig::parse_bytes(text.as_bytes(), file)
    }

    /// Like [`AgentConfig::parse`], for bytes that may not be UTF-8.
    pub fn parse_bytes(text: &[u8], file: &str) -> Result<AgentConfig, ConfigError> {
        let mut problems = Problems::new(file);
        let sections = uci::parse_bytes(text).unwrap_or_else(|error| {
            problems.add(error.line, error.message);
            Vec::new()
        });
        let config = resolve(&sections, &mut problems);
        problems.finish(Some(config))
    }
}

fn resolve(sections: &[Section], problems: &mut Problems) -> AgentConfig {
    let mut config = AgentConfig {
        enabled: true,
        log_level: log::LevelFilter::Info,
        lan: vec!["lan".into()],
        on_server_loss: OnServerLoss::Direct,
        quic: Quic::Allow,
        udp_ports: Vec::new(),
        udp_duplicate: false,
        http_listen: None,
        check_url: CHECK_URL.parse().ok(),
        servers: Vec::new(),
        uplinks: Vec::new(),
        bypasses: Vec::new(),
        forwards: Vec::new(),
    };
    let mut agent: Option<&Section> = None;
    let mut uplinks = 0;
    for section in sections {
        let mut fields = Fields { section, known: Vec::new(), problems: &mut *problems };
        match section.kind.as_str() {
            "agent" => {
                if let Some(first) = agent {
                    let first = first.line;
                    fields.section_problem(format!(
                        "there is one agent section already, on line {first}; only one may be there"
                    ));
                }
                agent = agent.or(Some(section));
                read_agent(&mut fields, &mut config);
            }
            "server" => config.servers.extend(read_server(&mut fields)),
            "uplink" => {
                uplinks += 1;
                if uplinks > MAX_UPLINKS {
                    fields.section_problem(format!(
                        "is one too many: the kernel has room for {MAX_UPLINKS} MPTCP endpoints, \
                         so at most {MAX_UPLINKS} uplinks are possible"
                    ));
                }
                config.uplinks.extend(read_uplink(&mut fields));
            }
            "bypass" => config.bypasses.extend(read_bypass(&mut fields)),
            "forward" => config.forwards.extend(read_forward(&mut fields)),
            _ => {
                fields.section_problem(format!("is of no known type; it must be {SECTION_TYPES}"));
                continue;
            }
        }
        fields.finish();
    }
    report_duplicates(sections, problems);
    config
}

fn read_agent(fields: &mut Fields<'_>, config: &mut AgentConfig) {
    if let Some(enabled) = fields.boolean("enabled") {
        config.enabled = enabled;
    }
    config.log_level = fields.choice("log_level", config.log_level, &value::LOG_LEVELS);
    let lan = fields.list("lan", |text| {
        value::interface(text).or_else(|_| value::device(text)).map_err(|_| {
            "an OpenWrt interface such as lan, or a network device such as br-lan".into()
        })
    });
    if !lan.is_empty() {
        config.lan = lan;
    }
    config.on_server_loss = fields.choice(
        "on_server_loss",
        config.on_server_loss,
        &[("direct", OnServerLoss::Direct), ("block", OnServerLoss::Block)],
    );
    config.quic =
        fields.choice("quic", config.quic, &[("allow", Quic::Allow), ("reject", Quic::Reject)]);
    config.udp_ports = fields.list("udp_ports", value::port_range);
    config.udp_duplicate = fields.boolean("udp_duplicate").unwrap_or(false);
    config.http_listen = fields.parsed("http_listen", http_listen);
    // UCI cannot tell an empty value from none.
    let check_url = |text: &str| if text == "off" { Ok(None) } else { text.parse().map(Some) };
    if let Some(check_url) = fields.parsed("check_url", check_url) {
        config.check_url = check_url;
    }
}

fn http_listen(text: &str) -> Result<HttpListen, String> {
    match text.strip_prefix("lan:") {
        Some(port) => value::port(port).ok().map(HttpListen::Lan),
        None => value::socket_address(text).ok().map(HttpListen::Address),
    }
    .ok_or_else(|| {
        "lan:PORT for the LAN's devices alone, or ADDRESS:PORT such as 127.0.0.1:8484 or \
         [::1]:8484, with a port from 1 to 65535"
            .into()
    })
}

fn read_server(fields: &mut Fields<'_>) -> Option<ServerConfig> {
    let name = fields.section_name();
    let address = fields.required("address", value::host);
    let port = fields.parsed("port", value::port).unwrap_or(443);
    let public_key = fields.required("public_key", |text| text.parse());
    let ciphers = [
        ("auto", CipherChoice::Auto),
        ("aes-128-gcm", CipherChoice::Aes128Gcm),
        ("chacha20-poly1305", CipherChoice::ChaCha20Poly1305),
        ("none", CipherChoice::None),
    ];
    let cipher = fields.choice("cipher", CipherChoice::Auto, &ciphers);
    Some(ServerConfig { name: name?, address: address?, port, public_key: public_key?, cipher })
}

fn read_uplink(fields: &mut Fields<'_>) -> Option<UplinkConfig> {
    let name = fields.section_name();
    let interface = fields.parsed("interface", value::interface);
    let device = fields.parsed("device", value::device);
    let both = fields.section.option("interface").is_some();
    let attachment = match (both, fields.section.option("device").is_some()) {
        (true, true) => {
            fields.section_problem(
                "has both 'interface' and 'device'; it must have one: 'interface' for an OpenWrt \
                 interface, 'device' for a network device",
            );
            None
        }
        (false, false) => {
            fields.section_problem("has neither option 'interface' nor 'device'; one is required");
            None
        }
        _ => interface.map(Attachment::Interface).or(device.map(Attachment::Device)),
    };
    let role = fields.choice("role", Role::Bond, &Role::NAMES);
    let bytes = fields.parsed("quota", value::bytes).unwrap_or(0);
    let day = |text: &str| match text.parse::<u8>() {
        Ok(day) if (1..=31).contains(&day) => Ok(day),
        _ => Err("a day of the month from 1 to 31".to_owned()),
    };
    let reset_day = fields.parsed("quota_reset_day", day).unwrap_or(1);
    let actions = [("backup", QuotaAction::Backup), ("off", QuotaAction::Off)];
    let action = fields.choice("quota_action", QuotaAction::Backup, &actions);
    let quota = (bytes > 0).then_some(Quota { bytes, reset_day, action });
    Some(UplinkConfig { name: name?, attachment: attachment?, role, quota })
}

fn read_bypass(fields: &mut Fields<'_>) -> Option<BypassConfig> {
    let bypass = BypassConfig {
        name: fields.section.name.clone(),
        dest: fields.list("dest", value::network),
        src: fields.list("src", value::network),
        dport: fields.list("dport", value::port_range),
        mac: fields.list("mac", value::mac),
    };
    if !["dest", "src", "dport", "mac"].iter().any(|key| fields.section.option(key).is_some()) {
        fields.section_problem(
            "has no list 'dest', 'src', 'dport' or 'mac' and would match everything; one is \
             required",
        );
        return None;
    }
    let (dest, src) = (&bypass.dest, &bypass.src);
    let has = |list: &[Prefix], family| list.iter().any(|prefix| prefix.family() == family);
    let shared = Family::ALL.into_iter().any(|family| has(dest, family) && has(src, family));
    if !dest.is_empty() && !src.is_empty() && !shared {
        fields.section_problem(
            "can match nothing: its 'dest' and 'src' are of different address families",
        );
    }
    Some(bypass)
}

/// One for each protocol of the section; none where something is wrong.
fn read_forward(fields: &mut Fields<'_>) -> Vec<ForwardConfig> {
    let target = |text: &str| {
        let target: Option<SocketAddr> = value::socket_address(text).ok();
        let unicast = |ip: IpAddr| !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast();
        target.filter(|target| unicast(target.ip().to_canonical())).ok_or_else(|| {
            "ADDRESS:PORT of a host on the LAN, such as 192.168.1.10:22 or [fd00::10]:22".to_owned()
        })
    };
    let name = fields.section.name.clone();
    let listen = fields.required("listen", value::port);
    let target = fields.required("target", target);
    let mut transports = fields.list("proto", transport);
    if transports.is_empty() {
        transports.push(Transport::Tcp);
    }
    let proxy_protocol = fields.boolean("proxy_protocol").unwrap_or(false);
    if proxy_protocol && transports.contains(&Transport::Udp) {
        fields.section_problem(
            "has 'proxy_protocol', which is for TCP alone: leave it out, or 'proto' without udp",
        );
    }
    let (Some(listen), Some(target)) = (listen, target) else { return Vec::new() };
    let forward =
        |transport| ForwardConfig { name: name.clone(), transport, listen, target, proxy_protocol };
    transports.into_iter().map(forward).collect()
}

fn transport(text: &str) -> Result<Transport, String> {
    let found = Transport::ALL.into_iter().find(|transport| transport.word() == text);
    found.ok_or_else(|| value::one_of(&Transport::ALL.map(Transport::word)))
}

/// The words of an option, of whichever kind, that may be left out.
fn words<'a>(section: &'a Section, key: &str) -> Vec<&'a str> {
    match section.option(key).map(|option| &option.value) {
        None => Vec::new(),
        Some(Value::String(text)) => text.split_whitespace().collect(),
        Some(Value::List(items)) => items.iter().map(|item| item.text.as_str()).collect(),
    }
}

/// Two sections that claim the same thing.
fn report_duplicates(sections: &[Section], problems: &mut Problems) {
    let mut seen: LiteMap<(&str, String), &Section> = LiteMap::new();
    let lan: LiteMap<&str, usize> = sections
        .iter()
        .filter(|section| section.kind == "agent")
        .filter_map(|section| section.option("lan"))
        .flat_map(|option| match &option.value {
            Value::String(text) => text.split_whitespace().map(|t| (t, option.line)).collect(),
            Value::List(items) => {
                items.iter().map(|item| (item.text.as_str(), item.line)).collect::<Vec<_>>()
            }
        })
        .collect();
    for section in sections {
        let keys: &[&'static str] = match section.kind.as_str() {
            "uplink" => &["interface", "device"],
            "forward" => &["listen"],
            "server" => &["address"],
            _ => &[],
        };
        for key in keys {
            let Some(option) = section.option(key) else { continue };
            let Value::String(text) = &option.value else { continue };
            // What tells this one from others of the same text.
            let (other, usual) = match *key {
                "address" => ("port", "443"),
                "listen" => ("proto", "tcp"),
                _ => ("", ""),
            };
            let mut others = words(section, other);
            if others.is_empty() {
                others.push(usual);
            }
            let text_claimed = text.to_ascii_lowercase();
            let claims = others.iter().map(|other| (*key, format!("{text_claimed} {other}")));
            let claims: Vec<_> = claims.collect();
            let mut fields = Fields { section, known: Vec::new(), problems: &mut *problems };
            if let Some(first) = claims.iter().find_map(|claim| seen.get(claim)) {
                let (kind, name, line) = (&first.kind, &first.name, first.line);
                fields.option_problem(
                    option.line,
                    format!(
                        "option '{key}' is '{text}', as in {kind} '{name}' on line {line}; each \
                         may be used once"
                    ),
                );
            }
            if let Some(line) = lan.get(text.as_str()).filter(|_| section.kind == "uplink") {
                fields.option_problem(
                    option.line,
                    format!(
                        "option '{key}' is '{text}', which is in the agent's list 'lan' on line \
                         {line}; an uplink cannot be the LAN"
                    ),
                );
            }
            for claim in claims {
                seen.entry(claim).or_insert(section);
            }
        }
    }
}

/// The options of one section, as they are read.
struct Fields<'a> {
    section: &'a Section,
    known: Vec<&'static str>,
    problems: &'a mut Problems,
}

impl<'a> Fields<'a> {
    fn place(&self) -> String {
        if self.section.anonymous {
            format!("unnamed section ({})", self.section.kind)
        } else {
            format!("section '{}' ({})", self.section.name, self.section.kind)
        }
    }

    fn section_problem(&mut self, message: impl AsRef<str>) {
        let message = format!("{}: {}", self.place(), message.as_ref());
        self.problems.add(self.section.line, message);
    }

    fn option_problem(&mut self, line: usize, message: impl AsRef<str>) {
        let message = format!("{}: {}", self.place(), message.as_ref());
        self.problems.add(line, message);
    }

    /// The section's name, required of sections that a status or a log refers to.
    fn section_name(&mut self) -> Option<String> {
        if self.section.anonymous {
            let kind = &self.section.kind;
            self.section_problem(format!("needs a name, such as: config {kind} 'first'"));
            return None;
        }
        Some(self.section.name.clone())
    }

    /// The text of an option and its line.
    fn text(&mut self, key: &'static str) -> Option<(&'a str, usize)> {
        self.known.push(key);
        let option = self.section.option(key)?;
        match &option.value {
            Value::String(text) => Some((text, option.line)),
            Value::List(_) => {
                let message =
                    format!("'{key}' is a list; it must be one value: option {key} '...'");
                self.option_problem(option.line, message);
                None
            }
        }
    }

    fn wrong(&mut self, line: usize, what: &str, key: &str, text: &str, right: &str) {
        let text = text.escape_debug();
        self.option_problem(line, format!("{what} '{key}' is '{text}'; it must be {right}"));
    }

    fn parsed<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let (text, line) = self.text(key)?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(right) => {
                self.wrong(line, "option", key, text, &right);
                None
            }
        }
    }

    fn required<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        if self.section.option(key).is_none() {
            self.known.push(key);
            self.section_problem(format!("option '{key}' is missing; it is required"));
            return None;
        }
        self.parsed(key, parse)
    }

    fn boolean(&mut self, key: &'static str) -> Option<bool> {
        self.parsed(key, |text| uci::boolean(text).ok_or_else(|| "1 or 0".to_owned()))
    }

    fn choice<T: Copy>(&mut self, key: &'static str, default: T, choices: &[(&str, T)]) -> T {
        let find = |text: &str| {
            let found = choices.iter().find(|(name, _)| *name == text);
            found.map(|(_, value)| *value).ok_or_else(|| {
                let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
                value::one_of(&names)
            })
        };
        self.parsed(key, find).unwrap_or(default)
    }

    /// The items of a list. As in OpenWrt's own programs, an `option` counts as a list of the
    /// words in it.
    fn list<T>(&mut self, key: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        self.known.push(key);
        let Some(option) = self.section.option(key) else { return Vec::new() };
        let items: Vec<Item> = match &option.value {
            Value::List(items) => items.clone(),
            Value::String(text) => text
                .split_whitespace()
                .map(|word| Item { line: option.line, text: word.to_owned() })
                .collect(),
        };
        let mut seen = LiteMap::new_vec();
        let mut values = Vec::new();
        for item in &items {
            match parse(&item.text) {
                Ok(value) => values.push(value),
                Err(right) => self.wrong(item.line, "list", key, &item.text, &right),
            }
            if seen.insert(&item.text, ()).is_some() {
                let message = format!("list '{key}' has '{}' twice", item.text.escape_debug());
                self.option_problem(item.line, message);
            }
        }
        values
    }

    /// Tells of options that nothing has read.
    fn finish(mut self) {
        let mut known = std::mem::take(&mut self.known);
        known.dedup();
        for option in &self.section.options {
            if !known.contains(&option.name.as_str()) {
                let kind = &self.section.kind;
                self.option_problem(
                    option.line,
                    format!(
                        "unknown option '{}'; {} section has {}",
                        option.name,
                        if kind == "agent" || kind == "uplink" {
                            format!("an {kind}")
                        } else {
                            format!("a {kind}")
                        },
                        known.join(", ")
                    ),
                );
            }
        }
    }
}
