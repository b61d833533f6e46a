mod interfaces;
mod router;

use super::*;
use crate::net::{self, Limits, ROUTE_PROTOCOL};
pub(crate) use router::{address, default_via, link};

/// `config uplink` with `option device`.
pub(crate) fn config(name: &str, device: &str, role: Role) -> UplinkConfig {
    UplinkConfig {
        name: name.into(),
        attachment: Attachment::Device(device.into()),
        role,
        quota: None,
    }
}

/// Two uplinks with the same subnet and gateway, `wan` on eth1 and `wanb` on eth2, and a LAN on
/// br-lan.
pub(crate) fn same_subnet() -> Kernel {
    Kernel {
        links: [link(1, "lo"), link(2, "br-lan"), link(3, "eth1"), link(4, "eth2")]
            .into_iter()
            .collect(),
        addresses: vec![
            Address { global: false, ..address(1, "127.0.0.1/8") },
            address(2, "192.168.1.1/24"),
            address(3, "192.0.2.10/24"),
            address(4, "192.0.2.20/24"),
        ],
        routes: vec![default_via(3, "192.0.2.1", 10), default_via(4, "192.0.2.1", 20)],
        limits: Some(Limits { subflows: 2, add_addr_accepted: 0 }),
        ..Kernel::default()
    }
}

pub(crate) fn two_configs() -> Vec<UplinkConfig> {
    vec![config("wan", "eth1", Role::Bond), config("wanb", "eth2", Role::Bond)]
}

/// The only uplink, on eth1.
fn one(kernel: &Kernel, previous: &[Uplink]) -> Uplink {
    observe(&[config("wan", "eth1", Role::Bond)], kernel, previous).remove(0)
}

fn eth1() -> Kernel {
    Kernel { links: [link(3, "eth1")].into_iter().collect(), ..Kernel::default() }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn fault(uplink: &Uplink, family: Family) -> String {
    uplink.fault(family).map(|fault| fault.to_string()).unwrap_or_default()
}

#[test]
fn same_subnet_and_gateway_work() {
    let uplinks = observe(&two_configs(), &same_subnet(), &[]);
    let facts: Vec<_> = uplinks
        .iter()
        .map(|u| (u.slot, u.v4.as_ref().map(|p| (p.address, p.gateway)), u.fault(Family::V4)))
        .collect();
    let gateway = Some(ip("192.0.2.1"));
    assert_eq!(
        facts,
        [
            (0, Some((ip("192.0.2.10"), gateway)), None),
            (1, Some((ip("192.0.2.20"), gateway)), None),
        ]
    );
    assert_eq!(
        fault(&uplinks[0], Family::V6),
        "eth1 has no usable IPv6 address: check router advertisements or DHCPv6"
    );
    assert_eq!(uplinks[0].fault_in(&Family::ALL), None);
    assert!(uplinks[0].fault_in(&[Family::V6]).is_some());
}

#[test]
fn slots_stay_with_their_names() {
    let kernel = same_subnet();
    let before = observe(&two_configs(), &kernel, &[]);
    let configs = [
        config("lte", "wwan0", Role::Backup),
        config("wanb", "eth2", Role::Bond),
        config("wan2", "eth3", Role::Bond),
    ];
    let after = observe(&configs, &kernel, &before);
    let slots: Vec<_> = after.iter().map(|uplink| (uplink.name.as_str(), uplink.slot)).collect();
    assert_eq!(slots, [("lte", 0), ("wanb", 1), ("wan2", 2)]);
}

#[test]
fn no_more_uplinks_than_slots() {
    let configs: Vec<_> = (0..60).map(|n| config(&format!("wan{n}"), "eth1", Role::Bond)).collect();
    let uplinks = observe(&configs, &eth1(), &[]);
    assert_eq!(uplinks.len(), usize::from(SLOTS));
    assert_eq!(uplinks.last().map(|uplink| uplink.slot), Some(SLOTS - 1));
}

#[test]
fn faults_say_what_to_do() {
    let mut kernel = Kernel::default();
    assert_eq!(
        fault(&one(&kernel, &[]), Family::V4),
        "no device 'eth1': plug it in or correct 'option device'"
    );
    let by_interface = UplinkConfig {
        attachment: Attachment::Interface("wan".into()),
        ..config("wan", "", Role::Bond)
    };
    let uplink = observe(&[by_interface], &kernel, &[]).remove(0);
    assert_eq!(
        fault(&uplink, Family::V4),
        "interface 'wan' is not up: bring it up or correct 'option interface'"
    );
    kernel = eth1();
    assert_eq!(
        fault(&one(&kernel, &[]), Family::V4),
        "eth1 has no usable IPv4 address: check DHCP or PPP"
    );
    kernel.addresses.push(address(3, "192.0.2.10/24"));
    assert_eq!(
        fault(&one(&kernel, &[]), Family::V4),
        "eth1 has no IPv4 default route: check its gateway"
    );
    kernel.routes.push(default_via(3, "192.0.2.1", 0));
    assert_eq!(fault(&one(&kernel, &[]), Family::V4), "");
    kernel.links.get_mut(&IfIndex(3)).unwrap().carrier = false;
    assert_eq!(
        fault(&one(&kernel, &[]), Family::V4),
        "eth1 has no carrier: check cable, modem or signal"
    );
    kernel.links.get_mut(&IfIndex(3)).unwrap().up = false;
    assert_eq!(fault(&one(&kernel, &[]), Family::V4), "eth1 is switched off: ip link set eth1 up");
    let off = observe(&[config("wan", "eth1", Role::Off)], &kernel, &[]).remove(0);
    assert_eq!(fault(&off, Family::V4), "switched off: its role is 'off'");
}

#[test]
fn the_cheapest_foreign_default_route_names_gateway_and_address() {
    let mut kernel = eth1();
    kernel.addresses = vec![
        address(3, "198.51.100.5/24"),
        address(3, "192.0.2.10/24"),
        address(3, "192.0.2.11/24"),
    ];
    kernel.routes = vec![default_via(3, "198.51.100.1", 20), default_via(3, "192.0.2.1", 10)];
    let path = one(&kernel, &[]).v4.unwrap();
    assert_eq!((path.address, path.gateway), (ip("192.0.2.10"), Some(ip("192.0.2.1"))));
    assert_eq!(path.onlink.to_string(), "192.0.2.0/24");

    kernel.routes[1].source = Some(ip("192.0.2.11"));
    assert_eq!(one(&kernel, &[]).v4.unwrap().address, ip("192.0.2.11"));

    // Ours are no evidence, neither by table nor by protocol.
    let ours = Route { metric: 1, protocol: ROUTE_PROTOCOL, ..default_via(3, "198.51.100.1", 1) };
    kernel.routes.push(ours);
    kernel.routes.push(Route { table: Table(5001), ..default_via(3, "198.51.100.1", 1) });
    assert_eq!(one(&kernel, &[]).v4.unwrap().gateway, Some(ip("192.0.2.1")));
}

#[test]
fn an_address_in_use_stays_while_it_is_as_good() {
    let mut kernel = eth1();
    kernel.addresses = vec![address(3, "192.0.2.10/24")];
    kernel.routes = vec![default_via(3, "192.0.2.1", 0)];
    let before = vec![one(&kernel, &[])];
    kernel.addresses.insert(0, address(3, "192.0.2.9/24"));
    assert_eq!(one(&kernel, &before).v4.unwrap().address, ip("192.0.2.10"));
    kernel.addresses[1].usable = false;
    assert_eq!(one(&kernel, &before).v4.unwrap().address, ip("192.0.2.9"));
}

#[test]
fn ipv6_prefers_global_over_unique_local_addresses() {
    let mut kernel = eth1();
    kernel.addresses = vec![
        Address { global: false, ..address(3, "fe80::2/64") },
        address(3, "fd00::2/64"),
        Address { usable: false, ..address(3, "2001:db8::1/64") },
        address(3, "2001:db8::2/64"),
        address(3, "2001:db8::3/64"),
    ];
    kernel.routes = vec![default_via(3, "fe80::1", 512)];
    let before = vec![one(&kernel, &[])];
    let path = before[0].v6.clone().unwrap();
    assert_eq!((path.address, path.gateway), (ip("2001:db8::2"), Some(ip("fe80::1"))));

    // A second router of the same metric does not take over from the one in use.
    kernel.routes.insert(0, default_via(3, "fe80::99", 512));
    assert_eq!(one(&kernel, &before).v6.unwrap().gateway, Some(ip("fe80::1")));
}

#[test]
fn ppp_needs_no_gateway() {
    let mut kernel = eth1();
    kernel.links.get_mut(&IfIndex(3)).unwrap().point_to_point = true;
    kernel.addresses = vec![address(3, "203.0.113.7")];
    let uplink = one(&kernel, &[]);
    assert_eq!(uplink.fault(Family::V4), None);
    assert_eq!(uplink.v4.unwrap().gateway, None);
}

#[test]
fn a_flushed_gateway_is_remembered_and_a_removed_one_is_not() {
    let kernel = same_subnet();
    let before = observe(&two_configs(), &kernel, &[]);
    let ours =
        Route { table: Table(5001), protocol: ROUTE_PROTOCOL, ..default_via(3, "192.0.2.1", 0) };

    // The link bounced: the foreign route and ours are gone.
    let flushed = Kernel { routes: vec![default_via(4, "192.0.2.1", 20)], ..kernel.clone() };
    let remembered = observe(&two_configs(), &flushed, &before);
    assert_eq!(remembered[0].v4.as_ref().unwrap().gateway, Some(ip("192.0.2.1")));
    assert_eq!(remembered[0].fault(Family::V4), None);

    // Ours is back by the next look, and the memory holds.
    let mut restored = flushed.clone();
    restored.routes.push(ours.clone());
    let still = observe(&two_configs(), &restored, &remembered);
    assert!(still[0].v4.as_ref().unwrap().remembered);
    assert_eq!(still[0].fault(Family::V4), None);

    // Another address: what was remembered says nothing about it.
    let mut renumbered = restored.clone();
    renumbered.addresses[2] = address(3, "192.0.2.77/24");
    assert!(observe(&two_configs(), &renumbered, &still)[0].fault(Family::V4).is_some());

    // The foreign route returns, with another gateway.
    let mut returned = restored.clone();
    returned.routes.push(default_via(3, "192.0.2.254", 10));
    let path = observe(&two_configs(), &returned, &still)[0].v4.clone().unwrap();
    assert_eq!((path.gateway, path.remembered), (Some(ip("192.0.2.254")), false));

    // Only the foreign route went: somebody removed it.
    let removed = observe(&two_configs(), &restored, &before);
    assert_eq!(fault(&removed[0], Family::V4), "eth1 has no IPv4 default route: check its gateway");
}

#[test]
fn of_two_uplinks_with_one_address_one_is_served() {
    let mut kernel = same_subnet();
    kernel.addresses[3] = address(4, "192.0.2.10/24");
    let uplinks = observe(&two_configs(), &kernel, &[]);
    assert_eq!(uplinks[0].fault(Family::V4), None);
    assert_eq!(
        fault(&uplinks[1], Family::V4),
        "192.0.2.10 is also the address of uplink 'wan': give one of the two modems another subnet"
    );

    // Without carrier the first gives way; when it returns the second keeps what it has.
    let mut cut = kernel.clone();
    cut.links.get_mut(&IfIndex(3)).unwrap().carrier = false;
    let cut = observe(&two_configs(), &cut, &uplinks);
    assert_eq!(cut[1].fault(Family::V4), None);
    let back = observe(&two_configs(), &kernel, &cut);
    assert!(matches!(back[0].fault(Family::V4), Some(Fault::AddressClash { .. })));
    assert_eq!(back[1].fault(Family::V4), None);
}
