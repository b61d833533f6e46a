mod json;
mod pages;

use super::*;
use crate::config::agent::Role;

fn forward(name: &str, port: u16, state: &str) -> ForwardStatus {
    let reason = match state {
        "waiting" => "there is no connection to the server".to_owned(),
        _ => String::new(),
    };
    let (name, target) = (name.to_owned(), format!("192.168.1.10:{port}"));
    let protocol = if port == 80 { "udp" } else { "tcp" }.to_owned();
    ForwardStatus { name, protocol, port, target, state: state.to_owned(), reason, connections: 3 }
}

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
        untunnelled: vec!["IPv4".into()],
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
        untunnelled: vec!["IPv6".into()],
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
        endpoints: vec![
            EndpointStatus { id: 202, address: "10.64.3.2".into(), backup: true },
            EndpointStatus { id: 222, address: "2001:db8:3::2".into(), backup: true },
        ],
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
        forwards: vec![forward("ssh", 2222, "forwarded"), forward("web", 80, "waiting")],
        streams: StreamCounts {
            open: 12,
            warm: 4,
            opened_total: 1042,
            failed_total: 3,
            failed_by_cause: [("refused".into(), 2), ("timed out".into(), 1)].into(),
        },
        datagrams: DatagramStatus {
            flows: 2,
            up_total: 4200,
            down_total: 4180,
            duplicates_removed_total: 4179,
        },
        connections: Connections::of((0..12).map(connection)),
        kernel: KernelStatus {
            counters: kernel_counters(
                &[("MPJoinRejected", 3), ("MPRstRx", 7), ("DataCsumErr", 0)]
                    .map(|(name, value)| (name.to_owned(), value))
                    .into_iter()
                    .collect(),
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
            today_down_bytes: 4_200_000_000,
            today_up_bytes: 40_000_000,
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
