//! Answers of an agent, as one in the lab has given them.

use serde_json::{Value, json};

fn uplink(name: &str, state: &str, in_use: bool, reason: &str) -> Value {
    json!({
        "name": name, "device": name, "role": "bond", "role_set": null, "state": state,
        "in_use": in_use, "reason": reason, "since_seconds": 71, "addresses": ["10.1.0.2"],
        "gateways": ["10.1.0.1"], "mtu": 1500, "table": 5001, "endpoints": [], "rx_bps": 90_000_000,
        "tx_bps": 2_000_000, "rx_bytes": 1_000_000, "tx_bytes": 10_000, "subflows": 2, "rtt_ms": 12.5,
        "rtt_min_ms": 10.0, "rtt_p95_ms": 20.0, "jitter_ms": 1.0, "loss_percent": 0.0,
        "untunnelled": [], "usage": { "period_bytes": 3_360_000_000u64, "quota_bytes": null,
        "since": "2026-11-01", "until": "2026-12-01" },
    })
}

/// Two uplinks in use, one that stands by, and one that is down.
pub fn status() -> Value {
    let mut lte = uplink("lte", "up", false, "stands by for the bond uplinks");
    lte["role"] = "backup".into();
    lte["usage"]["quota_bytes"] = 50_000_000_000u64.into();
    let mut dsl = uplink("dsl", "down", false, "no carrier on eth3");
    for unknown in ["device", "rtt_ms", "loss_percent", "usage"] {
        dsl[unknown] = Value::Null;
    }
    for none in [&mut lte, &mut dsl] {
        none["rx_bps"] = 0.into();
        none["tx_bps"] = 0.into();
    }
    json!({
        "role": "agent", "version": "0.1.0", "time_unix_seconds": 1_795_317_665u64,
        "uptime_seconds": 3700, "state": "bonding", "config_error": null,
        "summary": "bonding 2 uplinks: wan, wanb; standing by: lte",
        "uplinks": [uplink("wan", "up", true, "probes answered"),
            uplink("wanb", "degraded", true, "12.0 % of the probes are lost"), lte, dsl],
        "servers": [{ "name": "vps", "address": "vps.example.net:443", "state": "connected",
            "address_in_use": "198.51.100.1", "reason": "", "since_seconds": 3699, "session": "1e054133",
            "cipher": "aes-128-gcm", "mptcp": true, "rtt_ms": 12.8, "last_error": null }],
        "forwards": [
            { "name": "ssh", "protocol": "tcp", "port": 2222, "target": "192.168.77.2:22", "state": "forwarded",
                "reason": "", "connections": 3 },
            { "name": "call", "protocol": "udp", "port": 5060, "target": "192.168.77.3:5060", "state": "denied",
                "reason": "another program listens there: choose another port", "connections": 0 },
        ],
        "streams": { "open": 1, "warm": 2, "opened_total": 41, "failed_total": 1,
            "failed_by_cause": { "refused": 1 } },
        "connections": { "total": 1, "top": [{ "client": "192.168.77.2:35798", "target": "192.0.2.1:80",
            "down_bps": 137_000_000, "up_bps": 0, "down_bytes": 351_000_000, "up_bytes": 31,
            "age_seconds": 24, "subflows": 2 }] },
        "kernel": { "conflicts": [], "counters": [], "limits": { "subflows": 8, "add_addr_accepted": 0 },
            "other_path_managers": [], "sysctls_not_set": [] },
        "failures": [],
        "events": [
            { "age_seconds": 3700, "level": "info", "time_unix_seconds": 1_795_313_965u64,
                "text": "server reachable: LAN TCP is tunnelled" },
            { "age_seconds": 71, "level": "warning", "time_unix_seconds": 1_795_317_594u64,
                "text": "uplink dsl: not used: no carrier on eth3" },
        ],
    })
}

/// Ten minutes in which the first two uplinks were busy and the others were not.
pub fn history() -> Value {
    let told = |peak: u64| {
        let rates = |share: u64| (0..600).map(move |second| (second % 120) * peak / 120 / share);
        let [rx, tx] = [rates(1), rates(40)].map(Iterator::collect::<Vec<u64>>);
        json!({ "rx_bps": rx, "tx_bps": tx })
    };
    json!({
        "time_unix_seconds": 1_795_317_665u64, "span": "seconds",
        "uplinks": { "wan": told(100_000_000), "wanb": told(50_000_000), "lte": told(0), "dsl": told(0) },
    })
}

/// A check that found one problem.
pub fn report() -> Value {
    let finding = |subject: &str, check: &str, result: &str, found: &str, advice: &str| {
        json!({ "subject": subject, "check": check, "result": result, "code": result, "found": found,
            "advice": advice })
    };
    json!({
        "version": "0.1.0", "agent_running": true, "well": false, "uplinks": [],
        "findings": [
            finding("kernel", "MPTCP", "ok", "in the kernel and switched on", ""),
            finding("uplink wanb", "MPTCP", "failed", "its network removes MP_JOIN on port 443",
                "let the server listen on port 8443"),
        ],
    })
}
