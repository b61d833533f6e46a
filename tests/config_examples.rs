//! Every configuration under `files/` is one that the programs accept.

use std::fs;
use std::path::{Path, PathBuf};

use mptcp_bond::config::agent::{AgentConfig, Attachment, Role};
use mptcp_bond::config::server::ServerConfig;
use mptcp_bond::net::Transport;

fn files_under(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_under(&path));
        } else {
            found.push(path);
        }
    }
    found
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("files")
}

fn agent(text: &str, file: &str) -> AgentConfig {
    AgentConfig::parse(text, file).unwrap_or_else(|error| panic!("{error}"))
}

fn server(text: &str, file: &str) -> ServerConfig {
    ServerConfig::parse(text, file).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn all_are_accepted() {
    let mut parsed = 0;
    for path in files_under(&root()) {
        let file = path.display().to_string();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("config") => drop(agent(&fs::read_to_string(&path).unwrap(), &file)),
            Some("toml") => drop(server(&fs::read_to_string(&path).unwrap(), &file)),
            _ => continue,
        }
        parsed += 1;
    }
    assert!(parsed >= 2);
}

#[test]
fn the_shipped_file_waits_and_its_comments_work() {
    let text = fs::read_to_string(root().join("etc/config/mptcpd")).unwrap();
    let config = agent(&text, "mptcpd");
    assert!(config.enabled && config.servers.is_empty() && config.uplinks.is_empty());

    let section = |line: &str| line.starts_with("#config") || line.starts_with("#\t");
    let uncommented: Vec<&str> = text
        .lines()
        .map(|line| if section(line) { line.strip_prefix('#').unwrap() } else { line })
        .collect();
    let config = agent(&uncommented.join("\n"), "mptcpd");
    assert_eq!(config.idle_reason(), None);
    assert_eq!((config.servers.len(), config.uplinks.len()), (1, 2));
    assert_eq!((config.bypasses.len(), config.forwards.len()), (1, 1));
}

#[test]
fn the_full_example_says_what_it_seems_to() {
    let text = fs::read_to_string(root().join("examples/two-uplinks.config")).unwrap();
    let config = agent(&text, "two-uplinks.config");
    assert_eq!(config.idle_reason(), None);
    assert_eq!(config.lan, ["lan", "guest"]);
    assert_eq!(config.uplinks[0].attachment, Attachment::Interface("wan".into()));
    assert_eq!(config.uplinks[1].attachment, Attachment::Device("wwan0".into()));
    assert!(config.uplinks.iter().all(|uplink| uplink.role == Role::Bond));
    assert_eq!(config.uplinks[1].quota.unwrap().bytes, 50_000_000_000);
    assert_eq!(config.bypasses[1].dport, [(3478, 3480), (9308, 9308)]);
    assert_eq!(config.forwards[1].target, "[fd00:1::10]:80".parse().unwrap());
    assert!(config.forwards[1].proxy_protocol && !config.forwards[0].proxy_protocol);
    assert_eq!(config.forwards[2].transport, Transport::Udp);
}

#[test]
fn the_server_example_says_what_it_seems_to() {
    let text = fs::read_to_string(root().join("examples/server.toml")).unwrap();
    let config = server(&text, "server.toml");
    assert_eq!(config.limits.rate_per_client, 25_000_000);
    assert!(config.policy.permits("10.20.1.1:80".parse().unwrap()).is_ok());
    assert!(config.policy.permits("10.21.1.1:80".parse().unwrap()).is_err());
    assert!(config.policy.permits("203.0.113.1:80".parse().unwrap()).is_err());
    assert_eq!(config.clients[0].forwards, [2222, 8080, 51820]);
}
