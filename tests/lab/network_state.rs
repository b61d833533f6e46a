//! What a namespace's network looks like to `ip`, `nft` and `sysctl`.

use std::collections::BTreeMap;

use super::Namespace;

/// What shows the objects that programs make.
const OBJECTS: [&[&str]; 7] = [
    &["ip", "rule"],
    &["ip", "-6", "rule"],
    &["ip", "route", "show", "table", "all"],
    &["ip", "-6", "route", "show", "table", "all"],
    &["ip", "mptcp", "endpoint"],
    &["ip", "mptcp", "limits"],
    &["nft", "list", "ruleset"],
];
/// What shows the settings; some keys can only be written.
const SETTINGS: &[&str] = &["sysctl", "--all", "--ignore", "--pattern", "^net\\."];
/// A sysctl that is a counter.
const COUNTER: &str = "net.netfilter.nf_conntrack_count";

/// Rules, routes, endpoints, limits, nft tables and sysctls; lines in any order are the same state.
#[derive(Clone, Debug)]
pub struct NetworkState(BTreeMap<String, i64>);

impl NetworkState {
    /// All of it.
    #[track_caller]
    pub fn of(namespace: &Namespace) -> NetworkState {
        let mut state = NetworkState::objects(namespace);
        state.add(namespace, SETTINGS);
        state
    }

    /// All but sysctls.
    #[track_caller]
    pub fn objects(namespace: &Namespace) -> NetworkState {
        let mut state = NetworkState(BTreeMap::new());
        for command in OBJECTS {
            state.add(namespace, command);
        }
        state
    }

    #[track_caller]
    fn add(&mut self, namespace: &Namespace, command: &[&str]) {
        for line in namespace.run(command[0], &command[1..]).lines() {
            let line = line.trim();
            if !line.starts_with(COUNTER) {
                let line = format!("{}: {}", command.join(" "), without_tproxy_port(line));
                *self.0.entry(line).or_default() += 1;
            }
        }
    }

    /// The lines that `later` has more (`+`) or less (`-`) often than this state.
    pub fn difference(&self, later: &NetworkState) -> Vec<String> {
        let mut change = later.0.clone();
        for (line, count) in &self.0 {
            *change.entry(line.clone()).or_default() -= count;
        }
        let sign = |count: i64| if count > 0 { '+' } else { '-' };
        let changed = change.into_iter().filter(|(_, count)| *count != 0);
        changed.map(|(line, count)| format!("{} {line}", sign(count))).collect()
    }
}

/// Each start of an agent chooses other ports.
fn without_tproxy_port(line: &str) -> String {
    let parts = line.split_once(" tproxy ").zip(line.split_once(" meta mark set "));
    match parts {
        Some(((before, _), (_, mark))) => format!("{before} tproxy meta mark set {mark}"),
        None => line.to_owned(),
    }
}
