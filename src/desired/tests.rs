use super::*;
use crate::failover::Reason;
use crate::net::Address;
use crate::reconcile::Operation;
use crate::uplink::observe;
use crate::uplink::tests::{address, default_via, same_subnet, two_configs};

fn config() -> AgentConfig {
    AgentConfig {
        lan: vec!["br-lan".into()],
        uplinks: two_configs(),
        ..AgentConfig::parse("", "mptcpd").unwrap()
    }
}

fn wish(kernel: &Kernel, server: Option<&str>, in_force: [InForce; 2]) -> Desired {
    wish_direct(kernel, server, in_force, &LiteMap::new())
}

fn wish_direct(
    kernel: &Kernel,
    server: Option<&str>,
    in_force: [InForce; 2],
    direct: &LiteMap<Family, Direct>,
) -> Desired {
    let uplinks = observe(&two_configs(), kernel, &[]);
    let assignments: Vec<Assignment> = uplinks
        .iter()
        .zip(in_force)
        .map(|(uplink, in_force)| Assignment {
            name: uplink.name.clone(),
            slot: uplink.slot,
            in_force,
            reason: Reason::Live,
        })
        .collect();
    desired(&Input {
        config: &config(),
        uplinks: &uplinks,
        assignments: &assignments,
        servers: &[],
        server: server.map(|server| server.parse().unwrap()),
        server_reachable: true,
        server_lacks_ipv6: false,
        udp_ports: &[],
        ports: TproxyPorts { v4: Some(4000), v6: None },
        lan: &["br-lan".into()],
        direct,
        kernel,
    })
}

const ACTIVE: [InForce; 2] = [InForce::Active; 2];

fn dual_stack() -> Kernel {
    let mut kernel = same_subnet();
    kernel.addresses.push(address(3, "2001:db8::2/64"));
    kernel.routes.push(default_via(3, "fe80::1", 512));
    kernel
}

fn endpoint_addresses(wish: &Desired) -> Vec<String> {
    wish.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect()
}

#[test]
fn endpoints_of_both_families_stay_the_same_when_the_server_moves() {
    let kernel = dual_stack();
    let endpoints = |server| {
        let mut endpoints = wish(&kernel, server, [InForce::Active, InForce::Backup]).endpoints;
        endpoints.sort();
        endpoints
    };
    let v4 = endpoints(Some("203.0.113.1"));
    let lines: Vec<String> =
        v4.iter().map(|it| Operation::AddEndpoint(it.clone()).describe(&kernel)).collect();
    assert_eq!(
        lines,
        [
            "ip mptcp endpoint add 192.0.2.10 id 200 dev eth1 subflow",
            "ip mptcp endpoint add 192.0.2.20 id 201 dev eth2 subflow backup",
            "ip mptcp endpoint add 2001:db8::2 id 220 dev eth1 subflow",
        ]
    );
    assert_eq!(endpoints(Some("2001:db8:5::1")), v4);
    assert_eq!(endpoints(None), v4);
}

#[test]
fn endpoints_of_the_servers_family_have_precedence() {
    let mut kernel = dual_stack();
    kernel.addresses.push(address(4, "2001:db8::3/64"));
    kernel.routes.push(default_via(4, "fe80::1", 512));
    let foreign = |id: u8| Endpoint {
        id: EndpointId(id),
        address: format!("198.51.100.{id}").parse().unwrap(),
        device: None,
        backup: false,
        other_flags: 0,
    };
    kernel.endpoints = (1..=5).map(foreign).collect();
    let v4 = wish(&kernel, Some("203.0.113.1"), ACTIVE);
    assert_eq!(endpoint_addresses(&v4), ["192.0.2.10", "192.0.2.20", "2001:db8::2"]);
    let v6 = wish(&kernel, Some("2001:db8:5::1"), ACTIVE);
    assert_eq!(endpoint_addresses(&v6), ["2001:db8::2", "2001:db8::3", "192.0.2.10"]);

    kernel.endpoints.truncate(4);
    kernel.endpoints.push(Endpoint { address: "2001:db8::2".parse().unwrap(), ..foreign(5) });
    let v4 = wish(&kernel, Some("203.0.113.1"), ACTIVE);
    assert_eq!(endpoint_addresses(&v4), ["192.0.2.10", "192.0.2.20", "2001:db8::3"]);
    assert_eq!(crate::reconcile::conflicts(&kernel, &v4), [], "none in a family nobody needs");
}

#[test]
fn routes_and_rules_are_of_both_families() {
    let kernel = dual_stack();
    let v4 = wish(&kernel, Some("203.0.113.1"), ACTIVE);
    let v6 = wish(&kernel, Some("2001:db8:5::1"), ACTIVE);
    // Routes and rules are there in either case: probes and a second server may need them.
    assert_eq!((&v4.routes, &v4.rules), (&v6.routes, &v6.rules));
}

#[test]
fn an_unused_uplink_keeps_routes_and_rules() {
    let kernel = same_subnet();
    let used = wish(&kernel, Some("203.0.113.1"), ACTIVE);
    let unused = wish(&kernel, Some("203.0.113.1"), [InForce::Unused, InForce::Backup]);
    assert_eq!((&used.routes, &used.rules), (&unused.routes, &unused.rules));
    assert_eq!(endpoint_addresses(&unused), ["192.0.2.20"]);
    assert!(unused.endpoints[0].backup);
}

#[test]
fn all_of_it_is_in_the_reserved_ranges() {
    let wish = wish(&dual_stack(), None, ACTIVE);
    assert!(!wish.routes.is_empty() && wish.routes.iter().all(Route::is_ours));
    assert!(!wish.rules.is_empty() && wish.rules.iter().all(Rule::is_ours));
    assert!(!wish.endpoints.is_empty() && wish.endpoints.iter().all(Endpoint::is_ours));
    for slot in 0..crate::net::SLOTS {
        for family in Family::ALL {
            assert!(crate::net::ENDPOINT_IDS.contains(&EndpointId::of_slot(slot, family).0));
        }
        assert!(crate::net::TABLES.contains(&Table::of_slot(slot).0));
    }
}

#[test]
fn an_address_held_twice_has_the_rules_of_one() {
    let mut kernel = same_subnet();
    kernel.addresses[3] = address(4, "192.0.2.10/24");
    let wish = wish(&kernel, None, ACTIVE);
    let from: Vec<Table> =
        wish.rules.iter().filter(|rule| rule.from.is_some()).map(|rule| rule.table).collect();
    assert_eq!(from, [MAIN, Table(5001)]);
    // Its own table can still be probed through its device.
    assert!(wish.rules.iter().any(|rule| rule.oif.as_deref() == Some("eth2")));
    assert_eq!(endpoint_addresses(&wish), ["192.0.2.10"]);
}

#[test]
fn advmss_fits_the_mtu_and_the_kernel() {
    assert_eq!(advmss(1500, Family::V4), Some(1460));
    assert_eq!(advmss(1492, Family::V6), Some(1432));
    assert_eq!(advmss(65536, Family::V4), Some(65495));
    assert_eq!(advmss(40, Family::V4), None);
    assert_eq!(advmss(0, Family::V6), None);
}

#[test]
fn local_networks_are_those_not_behind_uplinks() {
    let mut kernel = dual_stack();
    kernel.addresses.push(address(2, "2001:db8:1::1/64"));
    kernel.addresses.push(Address { global: false, ..address(2, "fe80::1/64") });
    let main = default_via(2, "192.168.1.2", 0);
    kernel.routes.push(main.clone());
    kernel.routes.push(Route { destination: "203.0.113.0/24".parse().unwrap(), ..main.clone() });
    kernel.routes.push(Route { destination: "128.0.0.0/1".parse().unwrap(), ..main });
    let uplinks = observe(&two_configs(), &kernel, &[]);
    let local: Vec<String> =
        local_prefixes(&kernel, &uplinks).iter().map(Prefix::to_string).collect();
    assert_eq!(local, ["192.168.1.0/24", "203.0.113.0/24", "2001:db8:1::/64"]);
}

#[test]
fn untunnelled_traffic_has_rules_in_families_with_a_choice() {
    let lines = |own| {
        let direct = Direct { slot: 1, own };
        let direct = Family::ALL.map(|family| (family, direct)).into_iter().collect();
        let rules = wish_direct(&dual_stack(), None, ACTIVE, &direct).rules;
        let lines = rules.into_iter().map(|rule| Operation::AddRule(rule).to_string());
        lines.filter(|line| line.contains("priority 7")).collect::<Vec<_>>()
    };
    let lan = [
        "ip rule add priority 700 iif br-lan fwmark 0x0/0xf0ffffff lookup main suppress_prefixlength 0",
        "ip rule add priority 710 fwmark 0x2000000/0xf000000 lookup 5001",
        "ip rule add priority 710 fwmark 0x3000000/0xf000000 lookup 5002",
        "ip rule add priority 720 fwmark 0xf000000/0xf000000 lookup 5002",
    ];
    let lan_v6 = [
        "ip -6 rule add priority 700 iif br-lan fwmark 0x0/0xf0ffffff lookup main suppress_prefixlength 0",
        "ip -6 rule add priority 710 fwmark 0x2000000/0xf000000 lookup 5001",
        "ip -6 rule add priority 720 fwmark 0xf000000/0xf000000 lookup 5002",
    ];
    let own = [
        "ip rule add priority 740 from 0.0.0.0 iif lo fwmark 0x0/0xffffffff lookup main suppress_prefixlength 0",
        "ip rule add priority 750 from 0.0.0.0 iif lo fwmark 0x0/0xffffffff lookup 5002",
    ];
    let own_v6 = [
        "ip -6 rule add priority 730 from 2000::/3 iif lo fwmark 0x0/0xffffffff lookup main",
        "ip -6 rule add priority 740 iif lo fwmark 0x0/0xffffffff lookup main suppress_prefixlength 0",
        "ip -6 rule add priority 750 iif lo fwmark 0x0/0xffffffff lookup 5002",
    ];
    assert_eq!(lines(false), [&lan[..], &lan_v6].concat());
    assert_eq!(lines(true), [&lan[..], &own, &lan_v6, &own_v6].concat());
}

#[test]
fn flows_are_known_by_all_addresses_of_their_device() {
    let mut kernel = dual_stack();
    kernel.addresses.push(address(3, "198.51.100.9/24"));
    let uplinks = observe(&two_configs(), &kernel, &[]);
    let marks = |kernel: &Kernel, uplinks: &[Uplink]| {
        let marks = direct::marks(uplinks, kernel).into_iter();
        marks.map(|(address, mark)| format!("{address} {:x}", mark.0)).collect::<Vec<_>>()
    };
    let both =
        ["192.0.2.10 2000000", "192.0.2.20 3000000", "198.51.100.9 2000000", "2001:db8::2 2000000"];
    assert_eq!(marks(&kernel, &uplinks), both);
    // An address held twice says nothing: it belongs to the one that is served.
    kernel.addresses[3] = address(4, "192.0.2.10/24");
    let uplinks = observe(&two_configs(), &kernel, &uplinks);
    assert_eq!(marks(&kernel, &uplinks), [both[0], both[2], both[3]]);
}

#[test]
fn buffers_are_raised_and_never_lowered() {
    let raise = |value| raise_buffer(value, 1 << 20, 1 << 24);
    assert_eq!(raise("4096\t87380\t6291456").unwrap(), "4096 1048576 16777216");
    assert_eq!(raise("4096 2097152 33554432").unwrap(), "4096 2097152 33554432");
    assert_eq!(raise("4096"), None);
    assert_eq!(raise("a b c"), None);
}

#[test]
fn only_sysctls_that_exist_are_wished_for() {
    assert_eq!(server_sysctls(&LiteMap::new()), LiteMap::new());
    let found: LiteMap<String, String> =
        server_sysctls_needed().into_iter().map(|key| (key, "1 2 3".to_string())).collect();
    let lines: Vec<String> =
        server_sysctls(&found).iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(
        lines,
        [
            "net/ipv4/tcp_rmem=1 4194304 33554432",
            "net/ipv4/tcp_tw_reuse=1",
            "net/ipv4/tcp_wmem=1 2 33554432",
            "net/mptcp/allow_join_initial_addr_port=1",
            "net/mptcp/blackhole_timeout=0",
            "net/mptcp/checksum_enabled=0",
            "net/mptcp/close_timeout=240",
            "net/mptcp/enabled=1",
            "net/mptcp/path_manager=kernel",
            "net/mptcp/stale_loss_cnt=1",
            "net/mptcp/syn_retrans_before_tcp_fallback=16",
        ]
    );
    // Linux 6.12 and older know the path manager by number.
    let old = [("net/mptcp/pm_type".to_string(), "1".to_string())].into_iter().collect();
    assert_eq!(server_sysctls(&old).get("net/mptcp/pm_type").unwrap(), "0");
}
