//! Snapshots as other programs see them.

use super::*;

#[test]
fn json_goes_and_comes_back() {
    for snapshot in [Snapshot::Agent(agent().into()), Snapshot::Server(server().into())] {
        let json = snapshot.to_json();
        assert!(!json.contains('\n'));
        assert_eq!(Snapshot::from_json(&json).unwrap(), snapshot);
    }
    assert!(Snapshot::Agent(agent().into()).to_json().starts_with(r#"{"role":"agent","version":"#));
}

#[test]
fn json_of_other_versions_is_read_and_other_json_is_not() {
    let json = r#"{"role":"agent","new_field":[1],"uplinks":[{"name":"wan","role":"bond"}]}"#;
    let Snapshot::Agent(old) = Snapshot::from_json(json).unwrap() else { panic!() };
    assert_eq!(old.uplinks[0].name, "wan");
    for bad in ["", "[]", "{}", r#"{"role":"gateway"}"#, r#"{"role":"agent","uplinks":7}"#] {
        assert!(Snapshot::from_json(bad).is_err(), "{bad}");
    }
}

/// The names are what other programs rely on: a change here breaks them.
#[test]
fn field_names_are_stable() {
    fn names(value: &serde_json::Value, prefix: &str, into: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(fields) => {
                for (name, field) in fields {
                    names(field, &format!("{prefix}.{name}"), into);
                }
            }
            serde_json::Value::Array(items) => {
                if let Some(first) = items.first() {
                    names(first, &format!("{prefix}[]"), into);
                }
            }
            _ => into.push(prefix.trim_start_matches('.').to_owned()),
        }
    }
    let mut seen = Vec::new();
    for snapshot in [Snapshot::Agent(agent().into()), Snapshot::Server(server().into())] {
        seen.push("--".to_owned());
        names(&serde_json::to_value(snapshot).unwrap(), "", &mut seen);
    }
    compare(FIELDS, &(seen.join("\n") + "\n"));
}

const FIELDS: &str = r"
--
config_error
connections.top[].age_seconds
connections.top[].client
connections.top[].down_bps
connections.top[].down_bytes
connections.top[].subflows
connections.top[].target
connections.top[].up_bps
connections.top[].up_bytes
connections.total
datagrams.down_total
datagrams.duplicates_removed_total
datagrams.flows
datagrams.up_total
events[].age_seconds
events[].level
events[].text
events[].time_unix_seconds
failures[].errno
failures[].error
failures[].operation
failures[].since_seconds
forwards[].connections
forwards[].name
forwards[].port
forwards[].protocol
forwards[].reason
forwards[].state
forwards[].target
kernel.counters[].meaning
kernel.counters[].name
kernel.counters[].symptom
kernel.counters[].value
kernel.limits.add_addr_accepted
kernel.limits.subflows
kernel.other_path_managers[]
kernel.sysctls_not_set[].error
kernel.sysctls_not_set[].key
kernel.sysctls_not_set[].wanted
role
servers[].address
servers[].address_in_use
servers[].cipher
servers[].last_error
servers[].mptcp
servers[].name
servers[].reason
servers[].rtt_ms
servers[].session
servers[].since_seconds
servers[].state
state
streams.failed_by_cause.refused
streams.failed_by_cause.timed out
streams.failed_total
streams.open
streams.opened_total
streams.warm
summary
time_unix_seconds
uplinks[].addresses[]
uplinks[].device
uplinks[].endpoints[].address
uplinks[].endpoints[].backup
uplinks[].endpoints[].id
uplinks[].gateways[]
uplinks[].in_use
uplinks[].jitter_ms
uplinks[].loss_percent
uplinks[].mtu
uplinks[].name
uplinks[].reason
uplinks[].role
uplinks[].role_set
uplinks[].rtt_min_ms
uplinks[].rtt_ms
uplinks[].rtt_p95_ms
uplinks[].rx_bps
uplinks[].rx_bytes
uplinks[].since_seconds
uplinks[].state
uplinks[].subflows
uplinks[].table
uplinks[].tx_bps
uplinks[].tx_bytes
uplinks[].untunnelled[]
uplinks[].usage.period_bytes
uplinks[].usage.quota_bytes
uplinks[].usage.since
uplinks[].usage.until
uptime_seconds
version
--
clients[].address
clients[].connected
clients[].down_bps
clients[].down_bytes
clients[].name
clients[].sessions
clients[].since_seconds
clients[].streams
clients[].today_down_bytes
clients[].today_up_bytes
clients[].up_bps
clients[].up_bytes
config_error
connections.total
datagrams.down_total
datagrams.duplicates_removed_total
datagrams.flows
datagrams.up_total
kernel.limits
listen[]
public
refusals.replayed stream
refusals.unknown key
role
streams.failed_total
streams.open
streams.opened_total
streams.warm
time_unix_seconds
unauthenticated
uptime_seconds
version
";
