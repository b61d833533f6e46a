use super::*;

const WIDE: Style = Style { width: 170, colour: false, unicode: true };

fn agent() -> AgentSnapshot {
    let wan = UplinkStatus {
        name: "wan".into(),
        device: Some("eth1".into()),
        state: UplinkState::Up,
        in_use: true,
        reason: "probes answered".into(),
        since_seconds: 4000,
        addresses: vec!["192.0.2.2/24".into(), "2001:db8::2/64".into()],
        gateways: vec!["192.0.2.1".into(), "fe80::1".into()],
        mtu: Some(1500),
        table: Some(5001),
        endpoints: vec![EndpointStatus { id: 200, address: "192.0.2.2".into(), backup: false }],
        rx_bps: 93_412_000,
        tx_bps: 1_200_400,
        rx_bytes: 1_234_567_890,
        tx_bytes: 12_345,
        subflows: 14,
        rtt_ms: Some(12.34),
        rtt_min_ms: Some(10.0),
        rtt_p95_ms: Some(21.5),
        jitter_ms: Some(1.25),
        loss_percent: Some(0.0),
        usage: Some(UsageStatus { period_bytes: 2_000_000_000, ..Default::default() }),
        ..Default::default()
    };
    let wanb = UplinkStatus {
        name: "wanb".into(),
        device: Some("pppoe-wanb".into()),
        state: UplinkState::Degraded,
        in_use: true,
        reason: "12.0 % of the probes are lost".into(),
        since_seconds: 42,
        addresses: vec!["198.51.100.7/32".into()],
        rx_bps: 40_000_000,
        rx_bytes: 5_000_000,
        subflows: 12,
        rtt_ms: Some(148.0),
        loss_percent: Some(12.0),
        ..Default::default()
    };
    let lte = UplinkStatus {
        name: "lte".into(),
        device: Some("wwan0".into()),
        role: Role::Backup,
        state: UplinkState::Up,
        reason: "stands by for the bond uplinks".into(),
        since_seconds: 90_000,
        addresses: vec!["10.64.3.2/30".into()],
        table: Some(5003),
        endpoints: vec![EndpointStatus { id: 202, address: "10.64.3.2".into(), backup: true }],
        gateways: vec!["10.64.3.1".into()],
        rtt_ms: Some(48.2),
        loss_percent: Some(0.3),
        usage: Some(UsageStatus {
            period_bytes: 31_400_000_000,
            quota_bytes: Some(50_000_000_000),
            since: Some("2026-11-01".into()),
            until: Some("2026-12-01".into()),
        }),
        ..Default::default()
    };
    let dsl = UplinkStatus {
        name: "dsl".into(),
        state: UplinkState::Down,
        reason: "no carrier on eth3".into(),
        since_seconds: 130,
        ..Default::default()
    };
    let server = ServerStatus {
        name: "vps".into(),
        address: "vps.example.net:443".into(),
        address_in_use: Some("198.51.100.1".into()),
        reason: String::new(),
        state: ServerState::Connected,
        since_seconds: 11_000,
        session: Some("3f9a1c02".into()),
        cipher: Some("aes-128-gcm".into()),
        mptcp: Some(true),
        rtt_ms: Some(14.2),
        last_error: None,
    };
    let uplinks = vec![wan, wanb, lte, dsl];
    let servers = vec![server];
    let (state, summary) =
        agent_state(true, &uplinks, &servers, crate::config::agent::OnServerLoss::Direct);
    AgentSnapshot {
        version: "0.1.0".into(),
        time_unix_seconds: 1_700_000_000,
        uptime_seconds: 273_600,
        state,
        summary,
        uplinks,
        servers,
        streams: StreamCounts {
            open: 12,
            warm: 4,
            opened_total: 1042,
            failed_total: 3,
            failed_by_cause: [("refused".into(), 2), ("timed out".into(), 1)].into(),
        },
        connections: Connections::of((0..12).map(connection)),
        kernel: KernelStatus {
            counters: kernel_counters(
                &[("MPJoinRejected".into(), 3), ("MPRstRx".into(), 7), ("DataCsumErr".into(), 0)]
                    .into(),
            ),
            limits: Some(LimitsStatus { subflows: 8, add_addr_accepted: 0 }),
            sysctls_not_set: vec![SysctlFailure {
                key: "net/mptcp/stale_loss_cnt".into(),
                wanted: "1".into(),
                error: "this kernel has none".into(),
            }],
            other_path_managers: vec!["mptcpd".into()],
            conflicts: vec![],
        },
        failures: vec![Failure {
            operation: "ip rule add from 10.64.3.2 lookup 5003 priority 610".into(),
            error: "File exists".into(),
            errno: Some(17),
            since_seconds: 3,
        }],
        events: vec![
            Event {
                time_unix_seconds: 1_699_999_870,
                age_seconds: 130,
                level: Level::Warning,
                text: "uplink dsl is down: no carrier on eth3".into(),
            },
            Event {
                time_unix_seconds: 1_699_999_958,
                age_seconds: 42,
                level: Level::Info,
                text: "uplink wanb is degraded: 12.0 % of the probes are lost".into(),
            },
        ],
        ..Default::default()
    }
}

fn connection(number: u16) -> ConnectionStatus {
    ConnectionStatus {
        client: ([192, 168, 1, 20], 50_000 + number).into(),
        target: ([203, 0, 113, 9], 443).into(),
        down_bps: u64::from(number) * 1_000_000,
        up_bps: 0,
        down_bytes: u64::from(number) * 125_000,
        up_bytes: 900,
        age_seconds: 61 + u64::from(number),
        subflows: Some(2),
    }
}

fn server() -> ServerSnapshot {
    let clients = vec![
        ClientStatus {
            name: "home".into(),
            connected: true,
            address: Some("192.0.2.2:40112".into()),
            sessions: 1,
            streams: 12,
            down_bps: 133_000_000,
            up_bps: 1_200_000,
            down_bytes: 9_870_000_000,
            up_bytes: 120_000_000,
            since_seconds: Some(11_000),
        },
        ClientStatus { name: "van".into(), ..Default::default() },
    ];
    ServerSnapshot {
        version: "0.1.0".into(),
        uptime_seconds: 90_000,
        listen: vec!["0.0.0.0:443".into(), "[::]:443".into()],
        public: "vps.example.net:443".into(),
        config_error: Some(
            "/etc/mptcp-bond/server.toml:3: 'lisen' is not a key\nthat is all".into(),
        ),
        clients,
        refusals: [("unknown key".into(), 7), ("replayed stream".into(), 1)].into(),
        unauthenticated: 2,
        ..Default::default()
    }
}

fn compare(golden: &str, shown: &str) {
    assert!(golden.trim_start_matches('\n') == shown, "shown:\n{shown}");
}

#[test]
fn an_agent_in_full() {
    compare(AGENT, &render(&Snapshot::Agent(agent().into()), WIDE));
}

const AGENT: &str = r"
mptcp-bond 0.1.0  agent, running for 3 d 4 h
bonding 2 uplinks: wan, wanb; standing by: lte

UPLINK    STATE     ROLE    DEVICE             DOWN           UP      RTT    LOSS  SUBFLOWS  RECEIVED     SENT  TABLE  ENDPOINT    ADDRESS
wan       in use    bond    eth1        93.4 Mbit/s  1.20 Mbit/s  12.3 ms   0.0 %        14   1.23 GB  12.3 kB   5001  200         192.0.2.2/24, 2001:db8::2/64 via 192.0…
wanb      degraded  bond    pppoe-wanb  40.0 Mbit/s      0 bit/s   148 ms  12.0 %        12   5.00 MB      0 B      –  –           198.51.100.7/32
lte       standby   backup  wwan0           0 bit/s      0 bit/s  48.2 ms   0.3 %         0       0 B      0 B   5003  202 backup  10.64.3.2/30 via 10.64.3.1
dsl       down      bond    –               0 bit/s      0 bit/s        –       –         0       0 B      0 B      –  –           –
together                                 133 Mbit/s  1.20 Mbit/s                         26   1.24 GB  12.3 kB
  wanb: degraded for 42 s: 12.0 % of the probes are lost
  lte: standby for 1 d 1 h: stands by for the bond uplinks
  dsl: down for 2 min 10 s: no carrier on eth3
  lte: 31.4 GB of 50.0 GB used since 2026-11-01, counted anew from 2026-12-01 on

SERVER  STATE          SINCE      RTT  CIPHER       SESSION   ADDRESS
vps     connected  3 h 3 min  14.2 ms  aes-128-gcm  3f9a1c02  vps.example.net:443

Streams  12 open, 4 warm; 1042 opened, 3 failed (refused 2, timed out 1)

CONNECTION          TO                      DOWN       UP  RECEIVED   SENT         AGE  SUBFLOWS
192.168.1.20:50011  203.0.113.9:443  11.0 Mbit/s  0 bit/s   1.38 MB  900 B  1 min 12 s         2
192.168.1.20:50010  203.0.113.9:443  10.0 Mbit/s  0 bit/s   1.25 MB  900 B  1 min 11 s         2
192.168.1.20:50009  203.0.113.9:443  9.00 Mbit/s  0 bit/s   1.12 MB  900 B  1 min 10 s         2
192.168.1.20:50008  203.0.113.9:443  8.00 Mbit/s  0 bit/s   1.00 MB  900 B   1 min 9 s         2
192.168.1.20:50007  203.0.113.9:443  7.00 Mbit/s  0 bit/s    875 kB  900 B   1 min 8 s         2
192.168.1.20:50006  203.0.113.9:443  6.00 Mbit/s  0 bit/s    750 kB  900 B   1 min 7 s         2
192.168.1.20:50005  203.0.113.9:443  5.00 Mbit/s  0 bit/s    625 kB  900 B   1 min 6 s         2
192.168.1.20:50004  203.0.113.9:443  4.00 Mbit/s  0 bit/s    500 kB  900 B   1 min 5 s         2
192.168.1.20:50003  203.0.113.9:443  3.00 Mbit/s  0 bit/s    375 kB  900 B   1 min 4 s         2
192.168.1.20:50002  203.0.113.9:443  2.00 Mbit/s  0 bit/s    250 kB  900 B   1 min 3 s         2
  and 2 more

Problems
  mptcpd is running, which manages MPTCP endpoints too: stop one of them
  ip rule add from 10.64.3.2 lookup 5003 priority 610: File exists (errno 17), tried again for 3 s
  net/mptcp/stale_loss_cnt is not 1: this kernel has none
  MPJoinRejected 3: joins refused: the limit of subflows was reached, or not allowed

       AGE           EVENT
2 min 10 s  warning  uplink dsl is down: no carrier on eth3
      42 s  info     uplink wanb is degraded: 12.0 % of the probes are lost
";

#[test]
fn an_agent_on_an_ordinary_terminal() {
    let style = Style { width: 80, colour: false, unicode: true };
    let shown = render(&Snapshot::Agent(agent().into()), style);
    compare(ORDINARY, shown.split("\n\n").nth(1).unwrap_or_default());
}

const ORDINARY: &str = r"
UPLINK    STATE     ROLE           DOWN           UP      RTT    LOSS
wan       in use    bond    93.4 Mbit/s  1.20 Mbit/s  12.3 ms   0.0 %
wanb      degraded  bond    40.0 Mbit/s      0 bit/s   148 ms  12.0 %
lte       standby   backup      0 bit/s      0 bit/s  48.2 ms   0.3 %
dsl       down      bond        0 bit/s      0 bit/s        –       –
together                     133 Mbit/s  1.20 Mbit/s
  wanb: degraded for 42 s: 12.0 % of the probes are lost
  lte: standby for 1 d 1 h: stands by for the bond uplinks
  dsl: down for 2 min 10 s: no carrier on eth3
  lte: 31.4 GB of 50.0 GB used since 2026-11-01, counted anew from 2026-12-01 on";

#[test]
fn a_role_set_by_hand_is_shown_beside_the_configured_one() {
    let mut agent = agent();
    agent.uplinks.truncate(1);
    agent.uplinks[0].role_set = Some(Role::Backup);
    agent.uplinks[0].in_use = false;
    agent.uplinks[0].reason = "stands by for the bond uplinks".into();
    let style = Style { width: 80, colour: false, unicode: true };
    let shown = render(&Snapshot::Agent(agent.into()), style);
    compare(SET_BY_HAND, shown.split("\n\n").nth(1).unwrap_or_default());
}

const SET_BY_HAND: &str = r"
UPLINK  STATE    ROLE    DEVICE         DOWN           UP      RTT   LOSS
wan     standby  backup  eth1    93.4 Mbit/s  1.20 Mbit/s  12.3 ms  0.0 %
  wan: standby for 1 h 6 min: stands by for the bond uplinks; role backup, set
    by hand; configured: bond";

#[test]
fn an_agent_on_a_narrow_ascii_terminal() {
    let style = Style { width: 60, colour: false, unicode: false };
    compare(NARROW, &render(&Snapshot::Agent(agent().into()), style));
}

const NARROW: &str = r"
mptcp-bond 0.1.0  agent, running for 3 d 4 h
bonding 2 uplinks: wan, wanb; standing by: lte

UPLINK    STATE            DOWN           UP      RTT
wan       in use    93.4 Mbit/s  1.20 Mbit/s  12.3 ms
wanb      degraded  40.0 Mbit/s      0 bit/s   148 ms
lte       standby       0 bit/s      0 bit/s  48.2 ms
dsl       down          0 bit/s      0 bit/s        -
together             133 Mbit/s  1.20 Mbit/s
  wanb: degraded for 42 s: 12.0 % of the probes are lost
  lte: standby for 1 d 1 h: stands by for the bond uplinks
  dsl: down for 2 min 10 s: no carrier on eth3
  lte: 31.4 GB of 50.0 GB used since 2026-11-01, counted
    anew from 2026-12-01 on

SERVER  STATE          SINCE      RTT  CIPHER
vps     connected  3 h 3 min  14.2 ms  aes-128-gcm

Streams  12 open, 4 warm; 1042 opened, 3 failed (refused 2,
    timed out 1)

CONNECTION          TO                      DOWN       UP
192.168.1.20:50011  203.0.113.9:443  11.0 Mbit/s  0 bit/s
192.168.1.20:50010  203.0.113.9:443  10.0 Mbit/s  0 bit/s
192.168.1.20:50009  203.0.113.9:443  9.00 Mbit/s  0 bit/s
192.168.1.20:50008  203.0.113.9:443  8.00 Mbit/s  0 bit/s
192.168.1.20:50007  203.0.113.9:443  7.00 Mbit/s  0 bit/s
192.168.1.20:50006  203.0.113.9:443  6.00 Mbit/s  0 bit/s
192.168.1.20:50005  203.0.113.9:443  5.00 Mbit/s  0 bit/s
192.168.1.20:50004  203.0.113.9:443  4.00 Mbit/s  0 bit/s
192.168.1.20:50003  203.0.113.9:443  3.00 Mbit/s  0 bit/s
192.168.1.20:50002  203.0.113.9:443  2.00 Mbit/s  0 bit/s
  and 2 more

Problems
  mptcpd is running, which manages MPTCP endpoints too: stop
    one of them
  ip rule add from 10.64.3.2 lookup 5003 priority 610: File
    exists (errno 17), tried again for 3 s
  net/mptcp/stale_loss_cnt is not 1: this kernel has none
  MPJoinRejected 3: joins refused: the limit of subflows was
    reached, or not allowed

       AGE           EVENT
2 min 10 s  warning  uplink dsl is down: no carrier on eth3
      42 s  info     uplink wanb is degraded: 12.0 % of t...
";

#[test]
fn a_server_in_full() {
    compare(SERVER, &render(&Snapshot::Server(server().into()), WIDE));
}

const SERVER: &str = r"
mptcp-bond 0.1.0  server, running for 1 d 1 h
1 of 2 clients connected; listening on 0.0.0.0:443, [::]:443, known as vps.example.net:443
The new configuration is not in force:
  /etc/mptcp-bond/server.toml:3: 'lisen' is not a key
  that is all

CLIENT  STATE           SINCE  STREAMS        DOWN           UP     SENT  RECEIVED  ADDRESS
home    connected   3 h 3 min       12  133 Mbit/s  1.20 Mbit/s  9.87 GB    120 MB  192.0.2.2:40112
van     never seen          –        0     0 bit/s      0 bit/s      0 B       0 B  –

Streams  0 open, 0 warm; 0 opened, 0 failed
Refused  replayed stream 1, unknown key 7; 2 not known yet
";

#[test]
fn no_line_is_wider_than_the_terminal() {
    let mut wide = agent();
    wide.uplinks[0].name = "東京".repeat(30);
    for snapshot in [Snapshot::Agent(wide.into()), Snapshot::Server(server().into())] {
        for width in 0..200 {
            for unicode in [true, false] {
                let shown = render(&snapshot, Style { width, colour: false, unicode });
                for line in shown.lines() {
                    assert!(text::width(line) <= width, "{width}: {line}");
                }
            }
        }
    }
}

#[test]
fn colours_change_nothing_but_the_colour() {
    let snapshot = Snapshot::Agent(agent().into());
    for width in [40, 80, 150] {
        let coloured = render(&snapshot, Style { width, colour: true, unicode: true });
        let mut bare = coloured.clone();
        for sgr in ["\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m"] {
            bare = bare.replace(sgr, "");
        }
        assert_ne!(bare, coloured);
        let lines = |text: &str| text.lines().map(|l| l.trim_end().to_owned()).collect::<Vec<_>>();
        let plain = render(&snapshot, Style { width, colour: false, unicode: true });
        assert_eq!(lines(&bare), lines(&plain));
    }
}

#[test]
fn no_string_of_others_reaches_the_terminal_raw() {
    const EVIL: &str = "\x1b]0;owned\x07\r\n\u{9b}2J\u{202e}";
    fn poison(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::String(text) => text.push_str(EVIL),
            serde_json::Value::Array(items) => items.iter_mut().for_each(poison),
            serde_json::Value::Object(fields) => {
                for (name, field) in fields.iter_mut() {
                    if !["role", "state", "level", "client", "target"].contains(&name.as_str()) {
                        poison(field);
                    }
                }
                if let Some(counts) = fields.get_mut("failed_by_cause") {
                    counts[EVIL] = 1.into();
                }
            }
            _ => {}
        }
    }
    for snapshot in [Snapshot::Agent(agent().into()), Snapshot::Server(server().into())] {
        let mut value = serde_json::to_value(&snapshot).unwrap();
        poison(&mut value);
        let poisoned = Snapshot::from_json(&value.to_string()).unwrap();
        assert_ne!(poisoned, snapshot);
        let shown = render(&poisoned, Style { width: usize::MAX, colour: false, unicode: true });
        assert!(!shown.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}'));
        assert!(shown.contains("\\u{1b}]0;owned\\u{7}"));
    }
}

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
events[].age_seconds
events[].level
events[].text
events[].time_unix_seconds
failures[].errno
failures[].error
failures[].operation
failures[].since_seconds
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
clients[].up_bps
clients[].up_bytes
config_error
connections.total
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

#[test]
fn the_fastest_connections_come_first_and_then_the_oldest() {
    let mut all: Vec<ConnectionStatus> = (0..60).map(connection).collect();
    for idle in &mut all[..30] {
        idle.down_bps = 0;
    }
    let connections = Connections::of(all);
    assert_eq!((connections.total, connections.top.len()), (60, CONNECTIONS_SHOWN));
    assert_eq!(connections.top[0].client.port(), 50_059);
    assert_eq!(connections.top[30].client.port(), 50_029);
    assert_eq!(connections.top[31].client.port(), 50_028);
}
