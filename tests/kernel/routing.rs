//! Links, addresses, routes and rules.

use mptcp_bond::net::{
    Family, IfIndex, Mark, Prefix, Priority, ROUTE_PROTOCOL, Route, RouteKind, Rule, Table,
};
use mptcp_bond::os::kernel::KernelHandle;
use mptcp_bond::os::rule::FOREIGN_TABLE;
use mptcp_bond::reconcile::{Kernel, Operation};

use crate::{apply, apply_twice, device, dump, in_namespace, sh, uplinks};

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn default_route(family: Family, table: u32, device: IfIndex) -> Route {
    Route {
        table: Table(table),
        destination: Prefix::default_route(family),
        from: None,
        metric: if family == Family::V6 { 1024 } else { 0 },
        kind: RouteKind::Unicast,
        gateway: None,
        device,
        source: None,
        onlink: false,
        advmss: None,
        protocol: ROUTE_PROTOCOL,
    }
}

fn plain_rule(priority: u32, family: Family, table: u32) -> Rule {
    Rule {
        priority: Priority(priority),
        family,
        from: None,
        to: None,
        iif: None,
        oif: None,
        mark: None,
        table: Table(table),
        suppress_prefix_length: None,
    }
}

#[test]
fn a_dump_shows_links_and_addresses() {
    in_namespace("routing::a_dump_shows_links_and_addresses", async {
        uplinks();
        sh("ip link set wan1 mtu 1400; ip link set isp1 down
            ip tuntap add tun9 mode tun; ip link set tun9 up
            ip addr add 10.9.0.1 peer 10.9.0.2/32 dev tun9
            ip addr add 2001:db8:9::1/64 dev tun9 preferred_lft 0 nodad
            sysctl -qw net.ipv6.conf.wan0.accept_dad=1 net.ipv6.conf.wan0.dad_transmits=9
            ip addr add 2001:db8:0::9/64 dev wan0
            ping -c 1 -W 1 -I wan0 192.0.2.99 || true");
        let (mut handle, _watch) = KernelHandle::open().await.unwrap();
        let kernel = dump(&mut handle).await;
        assert_eq!(kernel.links.len(), 6);
        let link = |name| &kernel.links[&device(&kernel, name)];
        assert!(link("wan0").up && link("wan0").carrier && !link("wan0").point_to_point);
        assert!(link("wan1").up && !link("wan1").carrier && !link("isp1").up);
        assert!(link("tun9").point_to_point);
        assert_eq!((link("wan0").mtu, link("wan1").mtu), (1500, 1400));
        let bytes = |way| {
            sh(&format!(
                "ip -s -j link show wan0 | grep -o '\"{way}\":{{\"bytes\":[0-9]*' | grep -o '[0-9]*$'"
            ))
        };
        assert!(link("wan0").tx_bytes > 0 && link("wan0").tx_bytes <= bytes("tx").parse().unwrap());
        assert!(link("wan0").rx_bytes > 0 && link("wan0").rx_bytes <= bytes("rx").parse().unwrap());

        let address = |name, text| {
            let found = kernel
                .addresses
                .iter()
                .find(|a| a.device == device(&kernel, name) && a.prefix == prefix(text));
            found.map(|address| (address.global, address.usable))
        };
        assert_eq!(address("wan0", "192.0.2.10/24"), Some((true, true)));
        assert_eq!(address("wan1", "2001:db8:1::1/64"), Some((true, true)));
        assert_eq!(address("wan0", "2001:db8::9/64"), Some((true, false)), "tentative");
        assert_eq!(address("tun9", "2001:db8:9::1/64"), Some((true, false)), "deprecated");
        assert_eq!(address("tun9", "10.9.0.1"), Some((true, true)), "ours, not the peer's");
        assert_eq!(address("lo", "127.0.0.1/8"), Some((false, true)));
        assert!(kernel.addresses.iter().any(|a| !a.global && a.prefix.length == 64), "link-local");
        assert_eq!(kernel.addresses.len().to_string(), sh("ip -o addr | wc -l"));
    });
}

#[test]
fn a_dump_shows_routes() {
    in_namespace("routing::a_dump_shows_routes", async {
        uplinks();
        sh("ip route add default via 192.0.2.1 dev wan0 proto dhcp src 192.0.2.10 metric 7
            ip route add default dev wan1 table 5001 advmss 1360
            ip route add 198.51.100.0/24 via 203.0.113.1 dev wan1 onlink
            ip route add 198.51.101.0/24 via inet6 fe80::1 dev wan1
            ip route add 198.51.102.0/24 nexthop via 192.0.2.1 dev wan0 nexthop via 192.0.2.2 dev wan1
            ip route add blackhole 198.51.103.0/24
            ip route add local default dev lo table 5000
            ip -6 route add local default dev lo table 5000
            ip -6 route add default via fe80::1 dev wan0 proto ra expires 600 pref high
            ip -6 route add 2001:db8:99::/48 nexthop via fe80::1 dev wan0 nexthop via fe80::2 dev wan1");
        let (mut handle, _watch) = KernelHandle::open().await.unwrap();
        let kernel = dump(&mut handle).await;
        let [wan0, wan1, lo] = ["wan0", "wan1", "lo"].map(|name| device(&kernel, name));
        let find = |table: u32, text: &str| -> Vec<&Route> {
            let destination = match text {
                "default" => Prefix::default_route(Family::V4),
                "default6" => Prefix::default_route(Family::V6),
                text => prefix(text),
            };
            let ours = |r: &&Route| r.table == Table(table) && r.destination == destination;
            kernel.routes.iter().filter(ours).collect()
        };
        let v4 = |table, device| default_route(Family::V4, table, device);
        let v6 = |table, device| default_route(Family::V6, table, device);
        let gateway = |text: &str| Some(text.parse().unwrap());
        let expected = Route {
            metric: 7,
            gateway: gateway("192.0.2.1"),
            source: gateway("192.0.2.10"),
            protocol: 16,
            ..v4(254, wan0)
        };
        assert_eq!(find(254, "default"), [&expected]);
        let expected = Route { advmss: Some(1360), protocol: 3, ..v4(5001, wan1) };
        assert_eq!(find(5001, "default"), [&expected]);
        let [route] = find(254, "198.51.100.0/24")[..] else { panic!() };
        assert!(route.onlink && route.gateway == gateway("203.0.113.1"));
        assert_eq!(find(254, "198.51.101.0/24")[0].gateway, gateway("fe80::1"));
        let hops: Vec<_> = find(254, "198.51.102.0/24").iter().map(|r| r.device).collect();
        assert_eq!(hops, [wan0, wan1]);
        assert_eq!(find(254, "198.51.103.0/24").len(), 0);
        let local = Route { kind: RouteKind::Local, protocol: 3, ..v4(5000, lo) };
        assert_eq!(find(5000, "default"), [&local]);
        let local = Route { kind: RouteKind::Local, protocol: 3, ..v6(5000, lo) };
        assert_eq!(find(5000, "default6"), [&local]);
        let expected = Route { gateway: gateway("fe80::1"), protocol: 9, ..v6(254, wan0) };
        assert_eq!(find(254, "default6"), [&expected]);
        let hops: Vec<_> = find(254, "2001:db8:99::/48").iter().map(|r| r.gateway).collect();
        assert_eq!(hops, [gateway("fe80::1"), gateway("fe80::2")]);
        assert!(kernel.routes.iter().all(|route| route.table != Table(255)));
    });
}

#[test]
fn routes_are_replaced_and_deleted() {
    in_namespace("routing::routes_are_replaced_and_deleted", async {
        uplinks();
        let (mut handle, _watch) = KernelHandle::open().await.unwrap();
        let kernel = dump(&mut handle).await;
        let [wan0, wan1, lo] = ["wan0", "wan1", "lo"].map(|name| device(&kernel, name));
        let gateway = |text: &str| Some(text.parse().unwrap());
        let foreign = kernel.routes;
        let wishes = [
            Route {
                gateway: gateway("192.0.2.1"),
                source: gateway("192.0.2.10"),
                advmss: Some(1360),
                ..default_route(Family::V4, 5001, wan0)
            },
            Route {
                onlink: true,
                gateway: gateway("203.0.113.1"),
                ..default_route(Family::V4, 5002, wan1)
            },
            Route { gateway: gateway("fe80::1"), ..default_route(Family::V4, 5003, wan1) },
            Route {
                metric: 9,
                destination: prefix("198.51.100.0/24"),
                ..default_route(Family::V4, 5003, wan0)
            },
            Route { kind: RouteKind::Local, ..default_route(Family::V4, 5000, lo) },
            Route { kind: RouteKind::Local, ..default_route(Family::V6, 5000, lo) },
            Route {
                gateway: gateway("fe80::1"),
                advmss: Some(1340),
                ..default_route(Family::V6, 5001, wan0)
            },
            Route { source: gateway("2001:db8:1::1"), ..default_route(Family::V6, 5002, wan1) },
            Route {
                onlink: true,
                gateway: gateway("2001:db8:77::1"),
                metric: 5,
                ..default_route(Family::V6, 5003, wan1)
            },
        ];
        for wish in &wishes {
            apply_twice(&mut handle, Operation::ReplaceRoute(wish.clone())).await;
        }
        let ours = |kernel: &Kernel| {
            let mut ours = kernel.routes.clone();
            ours.retain(|route| route.protocol == ROUTE_PROTOCOL);
            ours
        };
        let mut found = ours(&dump(&mut handle).await);
        let mut expected = wishes.to_vec();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
        assert_eq!(
            sh("ip route show table 5001"),
            "default via 192.0.2.1 dev wan0 proto 84 src 192.0.2.10 advmss 1360"
        );
        assert_eq!(sh("ip route show table 5000"), "local default dev lo proto 84 scope host");
        assert!(sh("ip route show table 5003").contains("dev wan0 proto 84 scope link metric 9"));

        // A new gateway takes the old one's place, from and to a route without gateway too.
        for gateway in [gateway("fe80::7"), None, gateway("fe80::8")] {
            let wish = Route { gateway, ..default_route(Family::V6, 5001, wan0) };
            apply(&mut handle, Operation::ReplaceRoute(wish.clone())).await;
            let mut found = ours(&dump(&mut handle).await);
            found.retain(|r| r.table == Table(5001) && r.destination.family() == Family::V6);
            assert_eq!(found, [wish]);
        }
        let found = ours(&dump(&mut handle).await);
        sh("ip route add default via 192.0.2.9 dev wan0 table 5001 metric 3 proto static");
        for route in found {
            apply_twice(&mut handle, Operation::DeleteRoute(route)).await;
        }
        assert_eq!(
            sh("ip route show table 5001"),
            "default via 192.0.2.9 dev wan0 proto static metric 3"
        );
        sh("ip route flush table 5001");
        assert_eq!(dump(&mut handle).await.routes, foreign);

        let unreachable = Route { gateway: gateway("203.0.113.1"), ..wishes[0].clone() };
        let error = handle.apply(&Operation::ReplaceRoute(unreachable)).await.unwrap_err();
        assert_eq!(
            error.reason,
            "ENETUNREACH (Network is unreachable): Nexthop has invalid gateway"
        );
        let absent = default_route(Family::V4, 5001, IfIndex(999));
        let error = handle.apply(&Operation::ReplaceRoute(absent)).await.unwrap_err();
        assert!(error.reason.starts_with("ENODEV (No such device)"), "{error}");
    });
}

#[test]
fn a_default_route_for_some_sources_is_told_apart() {
    in_namespace("routing::a_default_route_for_some_sources_is_told_apart", async {
        uplinks();
        sh("ip -6 route add default from 2001:db8:77::/48 via fe80::1 dev wan0 metric 5");
        let (mut handle, _watch) = KernelHandle::open().await.unwrap();
        let routes = dump(&mut handle).await.routes;
        let route = routes.iter().find(|route| route.metric == 5).unwrap();
        assert_eq!(route.destination, prefix("::/0"));
        assert_eq!(route.from, Some(prefix("2001:db8:77::/48")));
    });
}

#[test]
fn rules_are_added_and_deleted() {
    in_namespace("routing::rules_are_added_and_deleted", async {
        let (mut handle, _watch) = KernelHandle::open().await.unwrap();
        let before = dump(&mut handle).await.rules;
        assert_eq!(before.len(), 5, "local, main and default; IPv6 has no default");
        let mut wishes = Vec::new();
        for (family, net) in [(Family::V4, "192.0.2.0/24"), (Family::V6, "2001:db8::/32")] {
            let from = Some(prefix(net));
            wishes.extend([
                Rule {
                    mark: Some((Mark(0x0100_0000), 0x0f00_0000)),
                    ..plain_rule(500, family, 5000)
                },
                Rule { oif: Some("wan0".into()), ..plain_rule(510, family, 5001) },
                Rule { from, suppress_prefix_length: Some(0), ..plain_rule(600, family, 254) },
                Rule { from, ..plain_rule(600, family, 254) },
                Rule { to: from, ..plain_rule(610, family, 5001) },
                Rule {
                    iif: Some("lo".into()),
                    mark: Some((Mark(0), 0xf0ff_ffff)),
                    ..plain_rule(700, family, 254)
                },
            ]);
        }
        // Of sockets without an address.
        let from = Some(prefix("0.0.0.0/32"));
        wishes.push(Rule { from, iif: Some("lo".into()), ..plain_rule(750, Family::V4, 5001) });
        for wish in &wishes {
            apply_twice(&mut handle, Operation::AddRule(wish.clone())).await;
        }
        let mut found = dump(&mut handle).await.rules;
        found.retain(|rule| !before.contains(rule));
        let mut expected = wishes.clone();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
        assert_eq!(
            sh("ip rule show pref 500; ip -6 rule show pref 510; ip rule show pref 750"),
            "500:\tfrom all fwmark 0x1000000/0xf000000 lookup 5000 proto 84\n\
             510:\tfrom all oif wan0 [detached] lookup 5001 proto 84\n\
             750:\tfrom 0.0.0.0 iif lo lookup 5001 proto 84"
        );
        for wish in wishes.iter().rev() {
            apply_twice(&mut handle, Operation::DeleteRule(wish.clone())).await;
        }
        assert_eq!(dump(&mut handle).await.rules, before);
    });
}

#[test]
fn foreign_rules_among_ours_can_be_deleted() {
    in_namespace("routing::foreign_rules_among_ours_can_be_deleted", async {
        let (mut handle, _watch) = KernelHandle::open().await.unwrap();
        let from = Some(prefix("10.0.0.0/8"));
        let ours = Rule { from, ..plain_rule(600, Family::V4, 5001) };
        apply(&mut handle, Operation::AddRule(ours.clone())).await;
        sh("ip rule add pref 600 from 10.0.0.0/8 ipproto udp lookup 5001
            ip rule add pref 600 from 10.0.0.0/8 ipproto tcp dport 80 lookup 5001
            ip rule add pref 600 from 10.0.0.0/8 tos 0x10 lookup 5001
            ip rule add pref 600 from 10.0.0.0/8 uidrange 1-2 lookup 5001
            ip rule add pref 600 from 10.0.0.0/8 blackhole
            ip rule add pref 601 from 10.0.0.0/8 goto 700
            ip rule add pref 100 from 10.0.0.0/8 blackhole");
        let mut found = dump(&mut handle).await.rules;
        found.retain(|rule| rule.from == from);
        assert_eq!(found.iter().filter(|rule| **rule == ours).count(), 1);
        found.retain(|rule| rule.table == FOREIGN_TABLE);
        assert_eq!(found.len(), 6, "the blackhole outside our priorities is nobody's business");
        for rule in found {
            apply(&mut handle, Operation::DeleteRule(rule)).await;
        }
        assert_eq!(
            sh("ip rule show from 10.0.0.0/8"),
            "100:\tfrom 10.0.0.0/8 blackhole\n600:\tfrom 10.0.0.0/8 lookup 5001 proto 84"
        );
    });
}
