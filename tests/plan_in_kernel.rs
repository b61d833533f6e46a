//! The lines that a plan prints and the nft text, carried out by the real tools in a network
//! namespace of their own. Needs root, iproute2 and nftables.

use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use mptcp_bond::config::agent::{AgentConfig, BypassConfig, OnServerLoss, Quic};
use mptcp_bond::desired::{Desired, Direct, Input, LIMITS, desired, families};
use mptcp_bond::failover::Failover;
use mptcp_bond::interception::{Interception, TproxyPorts, ruleset};
use mptcp_bond::net::{self, Family, Kernel, Limits, Mark, Prefix};
use mptcp_bond::reconcile::{Operation, reconcile};
use mptcp_bond::uplink::observe;
use router::{address, default_via, link};

#[path = "../src/uplink/tests/router.rs"]
mod router;

/// Runs a script in a new network namespace, within 2 minutes; returns what it prints.
fn in_namespace(script: &str) -> String {
    let mut child = Command::new("timeout")
        .args(["120", "unshare", "-n", "bash", "-euo", "pipefail", "-s"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("timeout, unshare and bash are there");
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{printed}\n{errors}\n{script}", output.status);
    printed
}

fn prefixes(texts: &[&str]) -> Vec<Prefix> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn nft_takes_every_ruleset_and_replaces_it() {
    let bypasses = [
        BypassConfig {
            name: "all \"lists\"".into(),
            dest: prefixes(&["192.0.2.0/24", "192.0.2.7", "2001:db8:9::/48"]),
            src: prefixes(&["192.168.1.5", "fd00::5"]),
            dport: vec![(22, 22), (8000, 8080), (8080, 9000)],
            mac: vec![[2, 0, 0, 0, 0, 1]],
        },
        BypassConfig {
            name: "ports".into(),
            dest: Vec::new(),
            src: Vec::new(),
            dport: vec![(0, 65535)],
            mac: Vec::new(),
        },
    ];
    let lan = ["br-lan".to_string(), "wg0".to_string(), "tun-a.5@x".to_string()];
    let servers: [IpAddr; 2] = ["203.0.113.1".parse().unwrap(), "2001:db8:5::1".parse().unwrap()];
    let local = prefixes(&["0.0.0.0/8", "198.51.100.0/24", "198.51.100.128/25", "2001:db8::/32"]);
    let addresses: [IpAddr; 3] =
        ["10.1.0.2", "10.2.0.3", "fd00::2"].map(|text| text.parse().unwrap());
    let marks = addresses.into_iter().zip((0..).map(Mark::of_slot)).collect();
    let mut script = String::new();
    for server_reachable in [true, false] {
        for on_server_loss in [OnServerLoss::Direct, OnServerLoss::Block] {
            let sip = [(5060, 5061), (53, 53)];
            for (quic, udp_ports) in [(Quic::Allow, &[][..]), (Quic::Reject, &sip)] {
                for (servers, local) in [(&servers[..], &local[..]), (&[], &[])] {
                    let text = ruleset(&Interception {
                        lan: &lan,
                        ports: TproxyPorts { v4: Some(4000), v6: Some(6000) },
                        servers,
                        local,
                        bypasses: &bypasses,
                        server_reachable,
                        server_lacks_ipv6: quic == Quic::Reject,
                        on_server_loss,
                        quic,
                        udp_ports,
                        uplinks: &marks,
                    });
                    let text = text.unwrap();
                    script +=
                        &format!("nft -c -f - <<'END'\n{text}END\nnft -f - <<'END'\n{text}END\n");
                }
            }
        }
    }
    // The last is in force alone.
    script += "nft list tables; nft list ruleset | grep -c 'reject with tcp reset'";
    assert_eq!(in_namespace(&script), "table inet mptcp_bond\n1\n");
}

/// What [`SETUP`] makes, and what a plan needs to know of it.
fn kernel() -> Kernel {
    Kernel {
        links: [link(1, "lo"), link(10, "eth1"), link(11, "eth2")].into_iter().collect(),
        addresses: vec![
            address(10, "192.0.2.10/24"),
            address(10, "2001:db8::10/64"),
            address(11, "192.0.2.20/24"),
        ],
        routes: vec![
            default_via(10, "192.0.2.1", 10),
            default_via(11, "198.51.100.1", 20),
            default_via(10, "fe80::1", 10),
        ],
        limits: Some(Limits { subflows: 2, add_addr_accepted: 0 }),
        sysctls: [
            ("net/mptcp/stale_loss_cnt".to_string(), "4".to_string()),
            ("net/ipv4/tcp_rmem".to_string(), "4096\t131072\t6291456".to_string()),
            ("net/ipv4/conf/eth2/rp_filter".to_string(), "0".to_string()),
        ]
        .into_iter()
        .collect(),
        ..Kernel::default()
    }
}

/// The uplinks have the same subnet; the second one's gateway lies outside of it.
const SETUP: &str = "
ip link set lo up
# No link-local address that comes while the kernel looks for duplicates of it.
sysctl -qw net.ipv6.conf.default.addr_gen_mode=1
for n in 1 2; do
  ip link add eth$n index $((9 + n)) type veth peer name peer$n
  ip link set peer$n up
  ip link set eth$n up
done
ip address add 192.0.2.10/24 dev eth1
ip address add 192.0.2.20/24 dev eth2
ip address add 2001:db8::10/64 dev eth1 nodad
ip route add default via 192.0.2.1 dev eth1 metric 10
ip route add default via 198.51.100.1 dev eth2 metric 20 onlink
ip -6 route add default via fe80::1 dev eth1 metric 10
";

/// Everything a plan may change but sysctls, in an order of its own where the kernel has none.
const SHOW: &str = "
show() {
  ip rule; ip -6 rule
  ip route show table all; ip -6 route show table all | grep -v '^multicast\\|^ff00'
  ip mptcp endpoint
  nft list ruleset
}
";

fn wish(kernel: &Kernel) -> Desired {
    let server = "203.0.113.1".parse().unwrap();
    let text = "config agent\n list lan 'br-lan'\n\
                config uplink 'wan'\n option device 'eth1'\n\
                config uplink 'wanb'\n option device 'eth2'\n";
    let config = AgentConfig::parse(text, "mptcpd").unwrap();
    let uplinks = observe(&config.uplinks, kernel, &[]);
    let now = std::time::Instant::now();
    let assignments = Failover::default().assign(&uplinks, &[], families(Some(server)), now);
    desired(&Input {
        config: &config,
        uplinks: &uplinks,
        assignments: &assignments,
        servers: &[server],
        server: Some(server),
        server_reachable: true,
        server_lacks_ipv6: false,
        udp_ports: &[],
        ports: TproxyPorts { v4: Some(4000), v6: Some(6000) },
        lan: &config.lan,
        direct: &Family::ALL
            .map(|family| (family, Direct { slot: 1, own: true }))
            .into_iter()
            .collect(),
        kernel,
    })
}

/// The plan as a shell script.
fn script(kernel: &Kernel, desired: &Desired) -> String {
    let mut script = String::new();
    for operation in reconcile(kernel, desired) {
        match &operation {
            Operation::ReplaceNft(text) => script += &format!("nft -f - <<'END'\n{text}END\n"),
            operation => script += &format!("{}\n", operation.describe(kernel)),
        }
    }
    script
}

#[test]
fn a_plan_works_line_by_line_and_teardown_leaves_nothing() {
    let found = kernel();
    let wish = wish(&found);
    // As the kernel is once the plan is carried out.
    let after = Kernel {
        routes: found.routes.iter().chain(&wish.routes).cloned().collect(),
        rules: wish.rules.clone(),
        endpoints: wish.endpoints.clone(),
        limits: Some(LIMITS),
        nft: net::NftTable::Made(wish.nft.clone().unwrap()),
        ..found.clone()
    };
    let start = script(&found, &wish);
    let stop = script(&after, &Desired::default());
    let output = in_namespace(&format!(
        "{SETUP}{SHOW}before=$(show)\n{start}
        ip route show table 5001; ip route show table 5002; ip -6 route show table 5001
        ip mptcp endpoint; ip mptcp limits
        ip route get 203.0.113.1 from 192.0.2.20 | head -1
        ip route get 203.0.113.1 oif eth2 | head -1
        ip route get 203.0.113.1 mark 0x1000000 | head -1
        {stop}diff <(echo \"$before\") <(show)"
    ));
    let lines: Vec<String> =
        output.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        lines,
        [
            "net.ipv4.conf.eth2.rp_filter = 2",
            "net.ipv4.tcp_rmem = 4096 4194304 16777216",
            "net.mptcp.stale_loss_cnt = 1",
            "default via 192.0.2.1 dev eth1 proto 84 src 192.0.2.10 advmss 1460",
            "192.0.2.0/24 dev eth1 proto 84 scope link src 192.0.2.10 advmss 1460",
            "default via 198.51.100.1 dev eth2 proto 84 src 192.0.2.20 onlink advmss 1460",
            "192.0.2.0/24 dev eth2 proto 84 scope link src 192.0.2.20 advmss 1460",
            "2001:db8::/64 dev eth1 proto 84 src 2001:db8::10 metric 1024 advmss 1440 pref medium",
            "default via fe80::1 dev eth1 proto 84 src 2001:db8::10 metric 1024 advmss 1440 pref medium",
            "192.0.2.10 id 200 subflow dev eth1",
            "192.0.2.20 id 201 subflow dev eth2",
            "2001:db8::10 id 220 subflow dev eth1",
            "add_addr_accepted 0 subflows 8",
            "203.0.113.1 from 192.0.2.20 via 198.51.100.1 dev eth2 table 5002 uid 0",
            "203.0.113.1 via 198.51.100.1 dev eth2 table 5002 src 192.0.2.20 uid 0",
            "local 203.0.113.1 dev lo table 5000 src 203.0.113.1 mark 0x1000000 uid 0",
        ]
    );
}
