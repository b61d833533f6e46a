use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use std::collections::BTreeSet;

use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::net::{EndpointId, Mark, Priority, ROUTE_PROTOCOL};

// Small universes, so that wishes and what is found meet often.

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0..6u8).prop_map(|n| IpAddr::V4(Ipv4Addr::new(192, 0, 2, n))),
        (0..4u16).prop_map(|n| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n))),
    ]
}

fn prefix() -> impl Strategy<Value = Prefix> {
    (address(), any::<bool>()).prop_map(|(address, default)| match default {
        true => Prefix::default_route(Family::of(address)),
        false => Prefix::host(address),
    })
}

fn route(table: impl Strategy<Value = u32>, protocol: u8) -> impl Strategy<Value = Route> {
    (table, prefix(), 0..2u32, option::of(address()), 1..4u32).prop_map(
        move |(table, destination, metric, gateway, device)| Route {
            table: Table(table),
            destination,
            from: None,
            metric,
            kind: RouteKind::Unicast,
            gateway,
            device: IfIndex(device),
            source: None,
            onlink: false,
            advmss: None,
            protocol,
        },
    )
}

fn rule(priority: impl Strategy<Value = u32>) -> impl Strategy<Value = Rule> {
    (priority, option::of(address()), any::<bool>(), 5000..5003u32).prop_map(
        |(priority, from, marked, table)| Rule {
            priority: Priority(priority),
            family: from.map_or(Family::V4, Family::of),
            from: from.map(Prefix::host),
            to: None,
            iif: None,
            oif: None,
            mark: marked.then_some((Mark(0x0100_0000), 0x0f00_0000)),
            table: Table(table),
            suppress_prefix_length: None,
        },
    )
}

fn endpoint(flags: u32) -> impl Strategy<Value = Endpoint> {
    (address(), 1..4u32, any::<bool>()).prop_map(move |(address, device, backup)| Endpoint {
        id: EndpointId(0),
        address,
        device: Some(IfIndex(device)),
        backup,
        other_flags: flags,
    })
}

/// Endpoints with unique ids and addresses, at most as many as the kernel holds.
fn endpoints(ids: Vec<u8>, flags: u32) -> impl Strategy<Value = Vec<Endpoint>> {
    let most = ids.len().min(MAX_ENDPOINTS);
    (Just(ids).prop_shuffle(), vec(endpoint(flags), 0..=most)).prop_map(|(ids, mut endpoints)| {
        let mut seen = BTreeSet::new();
        endpoints.retain(|endpoint| seen.insert(endpoint.address));
        for (endpoint, id) in endpoints.iter_mut().zip(ids) {
            endpoint.id = EndpointId(id);
        }
        endpoints
    })
}

fn unique_keys(mut routes: Vec<Route>) -> Vec<Route> {
    let mut seen = BTreeSet::new();
    routes.retain(|route| seen.insert(key(route)));
    routes
}

prop_compose! {
    fn kernel()(
        mut foreign_routes in vec(prop_oneof![route(250..255u32, 3), route(5000..5003u32, 3)], 0..6),
        own_routes in vec(route(5000..5003u32, ROUTE_PROTOCOL), 0..8),
        mut foreign_rules in vec(rule(prop_oneof![0..2u32, 900..902u32]), 0..4),
        own_rules in vec(rule(500..503u32), 0..8),
        mut endpoints in endpoints(vec![1, 2, 7, 199, 200, 201, 202, 203, 253, 254], 1),
        own_flags in vec(any::<bool>(), 10),
        limits in option::of((0..9u32).prop_map(|subflows| Limits { subflows, add_addr_accepted: 1 })),
        sysctls in btree_map("[ab]", "[0-2]\t[0-2]", 0..3),
        nft in prop_oneof![
            Just(NftTable::Absent), Just(NftTable::Changed), Just(NftTable::Made("a".into()))
        ],
    ) -> Kernel {
        foreign_routes.extend(own_routes);
        foreign_rules.extend(own_rules);
        for (endpoint, plain) in endpoints.iter_mut().zip(own_flags) {
            if plain {
                endpoint.other_flags = 0;
            }
        }
        Kernel {
            routes: foreign_routes,
            rules: foreign_rules,
            endpoints,
            limits,
            sysctls: sysctls.into_iter().collect(),
            nft,
            ..Kernel::default()
        }
    }
}

prop_compose! {
    fn desired()(
        routes in vec(route(5000..5003u32, ROUTE_PROTOCOL), 0..8),
        rules in btree_set(rule(500..503u32), 0..8),
        endpoints in endpoints(vec![200, 201, 202, 203, 204, 205, 206, 207], 0),
        limits in option::of(Just(Limits { subflows: 8, add_addr_accepted: 0 })),
        sysctls in btree_map("[ab]", "[0-2] [0-2]", 0..3),
        nft in option::of(prop_oneof![Just("a".to_string()), Just("b".to_string())]),
    ) -> Desired {
        Desired {
            routes: unique_keys(routes),
            rules: rules.into_iter().collect(),
            endpoints,
            limits,
            sysctls: sysctls.into_iter().collect(),
            nft,
        }
    }
}

type Foreign = (Vec<Route>, Vec<Rule>, Vec<Endpoint>);

fn foreign(kernel: &Kernel) -> Foreign {
    let Kernel { mut routes, mut rules, mut endpoints, .. } = kernel.clone();
    routes.retain(|route| !route.is_ours());
    rules.retain(|rule| !rule.is_ours());
    endpoints.retain(|endpoint| !endpoint.is_ours());
    (routes, rules, endpoints)
}

fn ours(kernel: &Kernel) -> (BTreeSet<Route>, BTreeSet<Rule>, BTreeSet<Endpoint>) {
    (
        kernel.routes.iter().filter(|route| route.is_ours()).cloned().collect(),
        kernel.rules.iter().filter(|rule| rule.is_ours()).cloned().collect(),
        kernel.endpoints.iter().filter(|endpoint| endpoint.is_ours()).cloned().collect(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_carried_out_leaves_nothing_to_do(
        before in kernel(), wish in desired(), cut in 0..40usize
    ) {
        let plan = reconcile(&before, &wish);
        let mut kernel = before.clone();
        apply(&mut kernel, &plan);
        prop_assert_eq!(reconcile(&kernel, &wish), vec![]);
        prop_assert_eq!(foreign(&kernel), foreign(&before));

        // What is wished for is there, unless something foreign is in its place and named.
        if kernel.limits.is_some() && conflicts(&kernel, &wish).is_empty() {
            let wanted = (
                wish.routes.iter().cloned().collect(),
                wish.rules.iter().cloned().collect(),
                wish.endpoints.iter().cloned().collect(),
            );
            prop_assert_eq!(ours(&kernel), wanted);
        }

        // Interrupted anywhere, a second go gets to the same.
        let mut interrupted = before.clone();
        apply(&mut interrupted, plan.get(..cut.min(plan.len())).unwrap_or_default());
        let rest = reconcile(&interrupted, &wish);
        apply(&mut interrupted, &rest);
        prop_assert_eq!(reconcile(&interrupted, &wish), vec![]);
        prop_assert_eq!(ours(&interrupted), ours(&kernel));
        prop_assert_eq!(foreign(&interrupted), foreign(&before));
    }

    #[test]
    fn an_empty_wish_removes_all_of_ours(before in kernel()) {
        let mut kernel = Kernel { limits: Some(Limits { subflows: 8, add_addr_accepted: 0 }), ..before };
        let others = foreign(&kernel);
        let plan = reconcile(&kernel, &Desired::default());
        apply(&mut kernel, &plan);
        prop_assert_eq!(ours(&kernel), (BTreeSet::new(), BTreeSet::new(), BTreeSet::new()));
        prop_assert_eq!(foreign(&kernel), others);
        prop_assert_eq!(kernel.nft, NftTable::Absent);
    }
}
