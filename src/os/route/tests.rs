use super::super::netlink::messages;
use super::super::netlink::tests::{Noise, bytes};
use super::*;

fn read_back(bytes: &[u8]) -> Vec<Route> {
    let mut routes = Vec::new();
    for message in messages(bytes) {
        route(&message, &mut routes);
    }
    routes
}

fn any_route(noise: &mut Noise) -> Route {
    let family = Family::ALL[noise.below(2)];
    let length = noise.u8() % (family.bits() + 1);
    let destination = Prefix::new(noise.address(family), length).unwrap().network();
    let gateway_family = if noise.below(4) == 0 { Family::V6 } else { family };
    Route {
        table: Table(1 + noise.u32() % 250 + 1000 * (noise.u32() % 6)),
        destination,
        from: noise.bool().then(|| Prefix::new(noise.address(family), 1).unwrap().network()),
        metric: noise.u32() % 3000,
        kind: if noise.bool() { RouteKind::Unicast } else { RouteKind::Local },
        gateway: noise.bool().then(|| noise.address(gateway_family)),
        device: IfIndex(1 + noise.u32() % 1000),
        source: noise.bool().then(|| noise.address(family)),
        onlink: noise.bool(),
        advmss: None,
        protocol: noise.u8(),
    }
}

/// The kernel describes a route in the words in which it is asked to add one.
#[test]
fn a_route_written_reads_the_same() {
    let mut noise = Noise::new();
    for _ in 0..20_000 {
        let route = any_route(&mut noise);
        let request = encode(RTM_NEWROUTE, 0, &route, RT_SCOPE_UNIVERSE);
        assert_eq!(read_back(&bytes(&request)), [route]);
    }
}

fn header(family: u8, length: u8, table: u8, kind: u8, flags: u32) -> Vec<u8> {
    let mut header = vec![family, length, 0, 0, table, 4, 0, kind];
    header.extend(flags.to_ne_bytes());
    header
}

#[test]
fn a_multipath_route_is_one_route_per_live_next_hop() {
    let mut hops = Vec::new();
    for (device, flags, gateway) in
        [(3_u32, 0, [192, 0, 2, 1]), (4, 5, [192, 0, 2, 9]), (5, 4, [198, 51, 100, 1])]
    {
        hops.extend(16_u16.to_ne_bytes());
        hops.extend([flags, 0]);
        hops.extend(device.to_ne_bytes());
        hops.extend([8_u16, 5].map(u16::to_ne_bytes).concat());
        hops.extend(gateway);
    }
    let request = Request::new(RTM_NEWROUTE, 0, &header(2, 0, 254, RTN_UNICAST, 0))
        .u32(RTA_PRIORITY, 10)
        .attribute(RTA_MULTIPATH, &hops);
    let found = read_back(&bytes(&request));
    let found: Vec<_> = found
        .iter()
        .map(|route| (route.device.0, route.gateway.unwrap().to_string(), route.onlink))
        .collect();
    assert_eq!(found, [(3, "192.0.2.1".into(), false), (5, "198.51.100.1".into(), true)]);
}

#[test]
fn the_local_table_caches_and_other_kinds_are_left_out() {
    for (table, kind, flags) in [
        (255, RTN_UNICAST, 0),
        (254, RTN_UNICAST, RTM_F_CLONED),
        (254, RTN_UNICAST, RTNH_F_DEAD),
        (254, 6, 0),
    ] {
        let header = header(10, 0, table, kind, flags);
        let request = Request::new(RTM_NEWROUTE, 0, &header).u32(RTA_OIF, 2);
        assert_eq!(read_back(&bytes(&request)), [], "{table} {kind} {flags}");
    }
}

#[test]
fn an_address_on_a_point_to_point_device_is_ours_not_the_peers() {
    let mut header = vec![2, 32, 0x80, 0];
    header.extend(7_u32.to_ne_bytes());
    let request = |flags| {
        Request::new(RTM_NEWADDR, 0, &header)
            .address(IFA_ADDRESS, "192.0.2.2".parse().unwrap())
            .address(IFA_LOCAL, "192.0.2.1".parse().unwrap())
            .u32(IFA_FLAGS, flags)
    };
    let read = |request| address(&messages(&bytes(&request)).next().unwrap()).unwrap();
    let found = read(request(0x80));
    assert_eq!(found.prefix.to_string(), "192.0.2.1");
    assert!(found.usable && found.global && found.device == IfIndex(7));
    for flags in [IFA_F_TENTATIVE, IFA_F_DADFAILED, IFA_F_DEPRECATED] {
        assert!(!read(request(flags)).usable, "{flags:#x}");
    }
}

#[test]
fn no_message_makes_the_readers_panic() {
    let mut noise = Noise::new();
    for _ in 0..100_000 {
        let hops = [20, 0, 0, 0, 1, 0, 0, 0, 8, 0, 5, 0, 192, 0, 2, 1, 4, 0, 9, 0];
        let mut request = encode(RTM_NEWROUTE, 0, &any_route(&mut noise), 0);
        if noise.bool() {
            request = request.attribute(RTA_MULTIPATH, &hops);
        }
        let bytes = noise.mutate(&bytes(&request));
        read_back(&bytes);
        for message in messages(&bytes) {
            let _ = (link(&message), address(&message));
        }
    }
}
