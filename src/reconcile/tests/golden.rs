//! Whole plans in the operator's language: configuration and dump in, command lines out.

use super::*;
use crate::config::agent::{AgentConfig, Role, UplinkConfig};
use crate::desired::{Direct, Input, desired, families, sysctls_needed};
use crate::failover::Failover;
use crate::health::{Health, Policy};
use crate::interception::TproxyPorts;
use crate::net::{Address, Mark, ROUTE_PROTOCOL};
use crate::uplink::tests::{address, config, default_via, same_subnet, two_configs};
use crate::uplink::{Uplink, observe};
use std::time::{Duration, Instant};

/// An agent with a server at 203.0.113.1, and what it made of the last dump.
struct Agent {
    uplinks: Vec<UplinkConfig>,
    observed: Vec<Uplink>,
    healths: Vec<Health>,
    start: Instant,
}

impl Agent {
    fn new(uplinks: Vec<UplinkConfig>) -> Agent {
        let start = Instant::now();
        let healths = uplinks.iter().map(|_| Health::new(Policy::default(), start)).collect();
        Agent { uplinks, observed: Vec::new(), healths, start }
    }

    fn wish(&mut self, kernel: &Kernel) -> Desired {
        let server = "203.0.113.1".parse().unwrap();
        self.observed = observe(&self.uplinks, kernel, &self.observed);
        let healths: Vec<&Health> = self.healths.iter().collect();
        let now = self.start + Duration::from_secs(30);
        let families = families(Some(server));
        let assignments = Failover::default().assign(&self.observed, &healths, families, now);
        desired(&Input {
            config: &AgentConfig {
                lan: vec!["br-lan".into()],
                uplinks: self.uplinks.clone(),
                ..AgentConfig::parse("", "mptcpd").unwrap()
            },
            uplinks: &self.observed,
            assignments: &assignments,
            servers: &[server],
            server: Some(server),
            server_reachable: true,
            server_lacks_ipv6: false,
            udp_ports: &[],
            ports: TproxyPorts { v4: Some(4000), v6: Some(6000) },
            lan: &["br-lan".into()],
            direct: &[(Family::V4, Direct { slot: 0, own: false })].into_iter().collect(),
            kernel,
        })
    }

    /// The plan in words; the dump is as it is after carrying it out.
    fn step(&mut self, kernel: &mut Kernel) -> Vec<String> {
        let plan = reconcile(kernel, &self.wish(kernel));
        let lines = plan.iter().map(|operation| operation.describe(kernel)).collect();
        apply(kernel, &plan);
        lines
    }
}

/// Two uplinks with the same subnet and gateway, and some of the kernel's sysctls.
fn kernel() -> Kernel {
    let mut kernel = same_subnet();
    let values = [
        ("net/mptcp/enabled", "1"),
        ("net/mptcp/stale_loss_cnt", "4"),
        ("net/mptcp/pm_type", "0"),
        ("net/ipv4/tcp_rmem", "4096\t131072\t6291456"),
        ("net/ipv4/tcp_wmem", "4096\t16384\t33554432"),
        ("net/ipv4/tcp_tw_reuse", "2"),
        ("net/ipv4/conf/eth1/rp_filter", "0"),
        ("net/ipv4/conf/eth2/rp_filter", "1"),
    ];
    kernel.sysctls = values.map(|(key, value)| (key.into(), value.into())).into_iter().collect();
    kernel
}

/// An agent that has nothing left to do, and the dump.
fn settled(uplinks: Vec<UplinkConfig>, mut kernel: Kernel) -> (Agent, Kernel) {
    let mut agent = Agent::new(uplinks);
    agent.step(&mut kernel);
    assert_eq!(agent.step(&mut kernel), [""; 0]);
    (agent, kernel)
}

#[test]
fn first_start_with_the_same_subnet_and_gateway_twice() {
    let mut kernel = kernel();
    let lines = Agent::new(two_configs()).step(&mut kernel);
    assert_eq!(
        lines,
        [
            "ip mptcp limits set subflows 8 add_addr_accepted 0",
            "sysctl -w net/ipv4/conf/eth1/rp_filter=2",
            "sysctl -w net/ipv4/conf/eth2/rp_filter=2",
            "sysctl -w net/ipv4/tcp_rmem='4096 4194304 16777216'",
            "sysctl -w net/ipv4/tcp_tw_reuse=1",
            "sysctl -w net/mptcp/stale_loss_cnt=1",
            "ip route replace local default dev lo table 5000 proto 84",
            "ip -6 route replace local default dev lo table 5000 proto 84 metric 1024",
            "ip route replace 192.0.2.0/24 dev eth1 table 5001 proto 84 src 192.0.2.10 advmss 1460",
            "ip route replace 192.0.2.0/24 dev eth2 table 5002 proto 84 src 192.0.2.20 advmss 1460",
            "ip route replace default via 192.0.2.1 dev eth1 table 5001 proto 84 src 192.0.2.10 advmss 1460",
            "ip route replace default via 192.0.2.1 dev eth2 table 5002 proto 84 src 192.0.2.20 advmss 1460",
            "ip rule add priority 500 fwmark 0x1000000/0xf000000 lookup 5000",
            "ip -6 rule add priority 500 fwmark 0x1000000/0xf000000 lookup 5000",
            "ip rule add priority 510 oif eth1 lookup 5001",
            "ip rule add priority 600 from 192.0.2.10 lookup main suppress_prefixlength 0",
            "ip rule add priority 610 from 192.0.2.10 lookup 5001",
            "ip rule add priority 510 oif eth2 lookup 5002",
            "ip rule add priority 600 from 192.0.2.20 lookup main suppress_prefixlength 0",
            "ip rule add priority 610 from 192.0.2.20 lookup 5002",
            "ip rule add priority 700 iif br-lan fwmark 0x0/0xf0ffffff lookup main suppress_prefixlength 0",
            "ip rule add priority 710 fwmark 0x2000000/0xf000000 lookup 5001",
            "ip rule add priority 710 fwmark 0x3000000/0xf000000 lookup 5002",
            "ip rule add priority 720 fwmark 0xf000000/0xf000000 lookup 5001",
            "ip mptcp endpoint add 192.0.2.10 id 200 dev eth1 subflow",
            "ip mptcp endpoint add 192.0.2.20 id 201 dev eth2 subflow",
            "nft -f - # table inet mptcp_bond",
        ]
    );
}

#[test]
fn another_address_changes_its_own_uplink_only() {
    let (mut agent, mut kernel) = settled(two_configs(), kernel());
    kernel.addresses[2] = address(3, "198.51.100.7/25");
    kernel.routes[0] = default_via(3, "198.51.100.1", 10);
    assert_eq!(
        agent.step(&mut kernel),
        [
            "ip route replace 198.51.100.0/25 dev eth1 table 5001 proto 84 src 198.51.100.7 advmss 1460",
            "ip route replace default via 198.51.100.1 dev eth1 table 5001 proto 84 src 198.51.100.7 advmss 1460",
            "ip rule add priority 600 from 198.51.100.7 lookup main suppress_prefixlength 0",
            "ip rule add priority 610 from 198.51.100.7 lookup 5001",
            "ip mptcp endpoint delete id 200",
            "ip mptcp endpoint add 198.51.100.7 id 200 dev eth1 subflow",
            "nft -f - # table inet mptcp_bond",
            "ip rule del priority 600 from 192.0.2.10 lookup main suppress_prefixlength 0",
            "ip rule del priority 610 from 192.0.2.10 lookup 5001",
            "ip route del 192.0.2.0/24 dev eth1 table 5001 proto 84 src 192.0.2.10 advmss 1460",
        ]
    );
}

#[test]
fn an_uplink_that_is_down_loses_its_endpoint_alone() {
    let (mut agent, mut kernel) = settled(two_configs(), kernel());
    for (index, health) in agent.healths.iter_mut().enumerate() {
        for seq in 0..40 {
            let now = agent.start + Duration::from_millis(250 * seq);
            health.poll(now);
            health.on_sent(now, seq);
            if index == 0 || seq < 10 {
                health.on_reply(now + Duration::from_millis(20), seq);
            }
        }
    }
    assert_eq!(agent.step(&mut kernel), ["ip mptcp endpoint delete id 201"]);
}

#[test]
fn carrier_loss_and_return() {
    let (mut agent, mut kernel) = settled(two_configs(), kernel());
    kernel.links.get_mut(&IfIndex(4)).unwrap().carrier = false;
    assert_eq!(agent.step(&mut kernel), ["ip mptcp endpoint delete id 201"]);
    kernel.links.get_mut(&IfIndex(4)).unwrap().carrier = true;
    assert_eq!(
        agent.step(&mut kernel),
        ["ip mptcp endpoint add 192.0.2.20 id 201 dev eth2 subflow"]
    );
}

#[test]
fn a_bounced_link_gets_its_routes_back() {
    let (mut agent, mut kernel) = settled(two_configs(), kernel());
    kernel.links.get_mut(&IfIndex(4)).unwrap().up = false;
    kernel.routes.retain(|route| route.device != IfIndex(4));
    assert_eq!(agent.step(&mut kernel), ["ip mptcp endpoint delete id 201"]);
    kernel.links.get_mut(&IfIndex(4)).unwrap().up = true;
    assert_eq!(
        agent.step(&mut kernel),
        [
            "ip route replace 192.0.2.0/24 dev eth2 table 5002 proto 84 src 192.0.2.20 advmss 1460",
            "ip route replace default via 192.0.2.1 dev eth2 table 5002 proto 84 src 192.0.2.20 advmss 1460",
            "ip mptcp endpoint add 192.0.2.20 id 201 dev eth2 subflow",
        ]
    );
    assert_eq!(agent.step(&mut kernel), [""; 0]);
}

#[test]
fn another_role_changes_the_flag_alone() {
    let (mut agent, mut kernel) = settled(two_configs(), kernel());
    agent.uplinks[1].role = Role::Backup;
    assert_eq!(agent.step(&mut kernel), ["ip mptcp endpoint change id 201 backup"]);
    agent.uplinks[1].role = Role::Bond;
    assert_eq!(agent.step(&mut kernel), ["ip mptcp endpoint change id 201 nobackup"]);
    agent.uplinks[1].role = Role::Off;
    assert_eq!(
        agent.step(&mut kernel),
        [
            "ip mptcp endpoint delete id 201",
            "nft -f - # table inet mptcp_bond",
            "ip rule del priority 510 oif eth2 lookup 5002",
            "ip rule del priority 600 from 192.0.2.20 lookup main suppress_prefixlength 0",
            "ip rule del priority 610 from 192.0.2.20 lookup 5002",
            "ip rule del priority 710 fwmark 0x3000000/0xf000000 lookup 5002",
            "ip route del default via 192.0.2.1 dev eth2 table 5002 proto 84 src 192.0.2.20 advmss 1460",
            "ip route del 192.0.2.0/24 dev eth2 table 5002 proto 84 src 192.0.2.20 advmss 1460",
        ]
    );
}

#[test]
fn flushed_rules_are_back_and_nothing_else_is_touched() {
    let (mut agent, mut kernel) = settled(vec![config("wan", "eth1", Role::Bond)], kernel());
    kernel.rules.clear();
    assert_eq!(
        agent.step(&mut kernel),
        [
            "ip rule add priority 500 fwmark 0x1000000/0xf000000 lookup 5000",
            "ip -6 rule add priority 500 fwmark 0x1000000/0xf000000 lookup 5000",
            "ip rule add priority 510 oif eth1 lookup 5001",
            "ip rule add priority 600 from 192.0.2.10 lookup main suppress_prefixlength 0",
            "ip rule add priority 610 from 192.0.2.10 lookup 5001",
            "ip rule add priority 700 iif br-lan fwmark 0x0/0xf0ffffff lookup main suppress_prefixlength 0",
            "ip rule add priority 710 fwmark 0x2000000/0xf000000 lookup 5001",
            "ip rule add priority 720 fwmark 0xf000000/0xf000000 lookup 5001",
        ]
    );
    kernel.nft = NftTable::Absent;
    assert_eq!(agent.step(&mut kernel), ["nft -f - # table inet mptcp_bond"]);
    kernel.endpoints.clear();
    assert_eq!(
        agent.step(&mut kernel),
        ["ip mptcp endpoint add 192.0.2.10 id 200 dev eth1 subflow"]
    );
}

#[test]
fn teardown_stops_diverting_first() {
    let (_, mut kernel) = settled(vec![config("wan", "eth1", Role::Bond)], kernel());
    let plan = reconcile(&kernel, &Desired::default());
    let lines: Vec<String> = plan.iter().map(|operation| operation.describe(&kernel)).collect();
    assert_eq!(
        lines,
        [
            "nft delete table inet mptcp_bond",
            "ip rule del priority 500 fwmark 0x1000000/0xf000000 lookup 5000",
            "ip -6 rule del priority 500 fwmark 0x1000000/0xf000000 lookup 5000",
            "ip mptcp endpoint delete id 200",
            "ip rule del priority 510 oif eth1 lookup 5001",
            "ip rule del priority 600 from 192.0.2.10 lookup main suppress_prefixlength 0",
            "ip rule del priority 610 from 192.0.2.10 lookup 5001",
            "ip rule del priority 700 iif br-lan fwmark 0x0/0xf0ffffff lookup main suppress_prefixlength 0",
            "ip rule del priority 710 fwmark 0x2000000/0xf000000 lookup 5001",
            "ip rule del priority 720 fwmark 0xf000000/0xf000000 lookup 5001",
            "ip route del default via 192.0.2.1 dev eth1 table 5001 proto 84 src 192.0.2.10 advmss 1460",
            "ip route del local default dev lo table 5000 proto 84",
            "ip -6 route del local default dev lo table 5000 proto 84 metric 1024",
            "ip route del 192.0.2.0/24 dev eth1 table 5001 proto 84 src 192.0.2.10 advmss 1460",
        ]
    );
    apply(&mut kernel, &plan);
    let before = same_subnet();
    assert_eq!((kernel.routes, kernel.rules), (before.routes, before.rules));
    assert_eq!((kernel.endpoints, kernel.nft), (before.endpoints, before.nft));
}

#[test]
fn leftovers_of_a_crash_are_put_right() {
    // Then `lte` had the first slot, `wan` the second; the nft table is that of another version.
    let (_, mut kernel) = settled(
        vec![config("lte", "wwan0", Role::Backup), config("wan", "eth1", Role::Bond)],
        kernel(),
    );
    kernel.nft = NftTable::Changed;
    kernel.rules.push(kernel.rules[0].clone());
    let lines = Agent::new(vec![config("wan", "eth1", Role::Bond)]).step(&mut kernel);
    assert_eq!(
        lines,
        [
            "ip rule del priority 500 fwmark 0x1000000/0xf000000 lookup 5000",
            "ip route replace 192.0.2.0/24 dev eth1 table 5001 proto 84 src 192.0.2.10 advmss 1460",
            "ip route replace default via 192.0.2.1 dev eth1 table 5001 proto 84 src 192.0.2.10 advmss 1460",
            "ip rule add priority 510 oif eth1 lookup 5001",
            "ip rule add priority 610 from 192.0.2.10 lookup 5001",
            "ip rule add priority 710 fwmark 0x2000000/0xf000000 lookup 5001",
            "ip mptcp endpoint delete id 201",
            "ip mptcp endpoint add 192.0.2.10 id 200 dev eth1 subflow",
            "nft -f - # table inet mptcp_bond",
            "ip rule del priority 510 oif eth1 lookup 5002",
            "ip rule del priority 610 from 192.0.2.10 lookup 5002",
            "ip rule del priority 710 fwmark 0x3000000/0xf000000 lookup 5002",
            "ip route del default via 192.0.2.1 dev eth1 table 5002 proto 84 src 192.0.2.10 advmss 1460",
            "ip route del 192.0.2.0/24 dev eth1 table 5002 proto 84 src 192.0.2.10 advmss 1460",
        ]
    );
}

#[test]
fn a_full_kernel_makes_room_before_it_takes_another() {
    let uplinks = |from: u8| -> Vec<UplinkConfig> {
        (from..from + 8).map(|n| config(&format!("u{n}"), &format!("e{n}"), Role::Bond)).collect()
    };
    let mut kernel = Kernel { limits: Some(crate::desired::LIMITS), ..Kernel::default() };
    for n in 0..9u32 {
        let (index, link) = crate::uplink::tests::link(10 + n, &format!("e{n}"));
        kernel.links.insert(index, link);
        kernel.addresses.push(address(10 + n, &format!("10.0.{n}.2/24")));
        kernel.routes.push(default_via(10 + n, &format!("10.0.{n}.1"), n));
    }
    let (mut agent, mut kernel) = settled(uplinks(0), kernel);
    agent.uplinks = uplinks(1);
    let mut lines = agent.step(&mut kernel);
    lines.retain(|line| line.contains("endpoint"));
    assert_eq!(
        lines,
        ["ip mptcp endpoint delete id 200", "ip mptcp endpoint add 10.0.8.2 id 200 dev e8 subflow"]
    );
}

#[test]
fn what_is_foreign_is_named_and_left_alone() {
    let mut kernel = kernel();
    kernel.endpoints.push(Endpoint {
        id: crate::net::EndpointId(3),
        address: "192.0.2.10".parse().unwrap(),
        device: None,
        backup: false,
        other_flags: 1,
    });
    kernel.routes.push(Route { table: Table(5001), ..default_via(4, "192.0.2.1", 0) });
    kernel.other_managers.push("mptcpd".into());
    let mut agent = Agent::new(two_configs());
    let wish = agent.wish(&kernel);
    let lines: Vec<String> = conflicts(&kernel, &wish).iter().map(Conflict::to_string).collect();
    assert_eq!(
        lines,
        [
            "mptcpd is running and manages MPTCP endpoints as well: stop it",
            "endpoint 3 of another program holds 192.0.2.10: ip mptcp endpoint delete id 3",
            "table 5001 holds another program's route to 0.0.0.0/0: \
             move it to a table outside 5000-5999",
        ]
    );
    let plan = agent.step(&mut kernel).join("\n");
    assert!(plan.contains("endpoint add 192.0.2.20 id 201"), "{plan}");
    assert!(!plan.contains("id 3") && !plan.contains("id 200"), "{plan}");
    assert!(!plan.contains("replace default via 192.0.2.1 dev eth1"), "{plan}");
    assert_eq!(agent.step(&mut kernel), [""; 0]);
}

#[test]
fn a_kernel_without_mptcp_gets_no_endpoints() {
    let mut kernel = Kernel { limits: None, ..kernel() };
    let mut agent = Agent::new(two_configs());
    let wish = agent.wish(&kernel);
    assert_eq!(conflicts(&kernel, &wish), [Conflict::NoMptcp]);
    assert!(!agent.step(&mut kernel).iter().any(|line| line.contains("mptcp endpoint")));
}

#[test]
fn the_keys_needed_are_the_keys_set() {
    let (agent, kernel) = settled(two_configs(), kernel());
    let needed = sysctls_needed(&agent.observed);
    assert!(kernel.sysctls.keys().all(|key| needed.contains(key)));
}

#[test]
fn ipv6_and_ppp_lines() {
    let mut kernel = kernel();
    kernel.links.get_mut(&IfIndex(4)).unwrap().point_to_point = true;
    kernel.links.get_mut(&IfIndex(4)).unwrap().mtu = 1492;
    kernel.addresses[3] = address(4, "203.0.113.7");
    kernel.addresses.push(Address { global: false, ..address(3, "fe80::2/64") });
    kernel.addresses.push(address(3, "2001:db8::2/64"));
    kernel.routes = vec![default_via(3, "fe80::1", 512), default_via(3, "198.51.100.1", 0)];
    let mut lines = Agent::new(two_configs()).step(&mut kernel);
    lines.retain(|line| line.contains("route") && !line.contains(" lo "));
    assert_eq!(
        lines,
        [
            "ip route replace 192.0.2.0/24 dev eth1 table 5001 proto 84 src 192.0.2.10 advmss 1460",
            "ip -6 route replace 2001:db8::/64 dev eth1 table 5001 proto 84 metric 1024 src 2001:db8::2 advmss 1440",
            "ip route replace default dev eth2 table 5002 proto 84 src 203.0.113.7 advmss 1452",
            "ip route replace default via 198.51.100.1 dev eth1 table 5001 proto 84 src 192.0.2.10 advmss 1460 onlink",
            "ip -6 route replace default via fe80::1 dev eth1 table 5001 proto 84 metric 1024 src 2001:db8::2 advmss 1440",
        ]
    );
}

#[test]
fn numbers_stand_for_unknown_devices() {
    let mut route = default_via(9, "192.0.2.1", 0);
    route.protocol = ROUTE_PROTOCOL;
    let mut rule = Rule {
        priority: crate::net::Priority(500),
        family: Family::V4,
        from: None,
        to: Some("192.0.2.0/24".parse().unwrap()),
        iif: None,
        oif: None,
        mark: Some((Mark(1), 15)),
        table: Table(5000),
        suppress_prefix_length: None,
    };
    assert_eq!(
        Operation::DeleteRoute(route).to_string(),
        "ip route del default via 192.0.2.1 dev if9 table 254 proto 84"
    );
    assert_eq!(
        Operation::AddRule(rule.clone()).to_string(),
        "ip rule add priority 500 to 192.0.2.0/24 fwmark 0x1/0xf lookup 5000"
    );
    rule.to = None;
    assert_eq!(
        Operation::DeleteRule(rule).to_string(),
        "ip rule del priority 500 fwmark 0x1/0xf lookup 5000"
    );
}
