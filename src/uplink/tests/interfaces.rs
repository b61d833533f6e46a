//! Uplinks by OpenWrt interface.

use super::*;
use crate::netifd::Interface;

fn wan() -> [UplinkConfig; 1] {
    let attachment = Attachment::Interface("wan".into());
    [UplinkConfig { attachment, ..config("wan", "", Role::Bond) }]
}

fn netifd(device: Option<&str>, gateways: &[&str]) -> Netifd {
    let mut netifd = Netifd::default();
    netifd.replace(vec![Interface {
        name: "wan".into(),
        device: device.map(str::to_owned),
        gateways: gateways.iter().map(|text| ip(text)).collect(),
    }]);
    netifd
}

fn seen(kernel: &Kernel, netifd: &Netifd) -> Uplink {
    observe_with(&wan(), kernel, netifd, &[]).remove(0)
}

#[test]
fn the_device_is_the_one_that_netifd_names() {
    let kernel = same_subnet();
    let uplink = seen(&kernel, &netifd(Some("eth2"), &["192.0.2.1"]));
    assert_eq!(uplink.device.as_ref().map(|device| device.name.as_str()), Some("eth2"));
    assert_eq!(uplink.v4.as_ref().map(|path| path.address), Some(ip("192.0.2.20")));
    assert_eq!(uplink.fault(Family::V4), None);
    // Down, although a device has the name, an address and a route.
    let mut kernel = kernel;
    kernel.links.get_mut(&IfIndex(3)).unwrap().name = "wan".into();
    let down = "interface 'wan' is not up: bring it up or correct 'option interface'";
    assert_eq!(fault(&seen(&kernel, &netifd(None, &[])), Family::V4), down);
    // Without netifd that device is the uplink's.
    assert_eq!(seen(&kernel, &Netifd::default()).fault(Family::V4), None);
}

#[test]
fn a_gateway_that_is_kept_out_of_the_kernel_is_used() {
    let mut kernel = same_subnet();
    kernel.routes.clear();
    kernel.addresses.insert(0, address(3, "203.0.113.77/24"));
    let known = netifd(Some("eth1"), &["fe80::1", "192.0.2.1"]);
    let path = seen(&kernel, &known).v4.unwrap();
    assert_eq!((path.address, path.gateway), (ip("192.0.2.10"), Some(ip("192.0.2.1"))));
    assert!(path.routable && !path.remembered);
    // What the kernel has goes first, and without either there is none.
    kernel.routes.push(default_via(3, "192.0.2.254", 10));
    let path = seen(&kernel, &known).v4.unwrap();
    assert_eq!(path.gateway, Some(ip("192.0.2.254")));
    kernel.routes.clear();
    let none = "eth1 has no IPv4 default route: check its gateway";
    assert_eq!(fault(&seen(&kernel, &netifd(Some("eth1"), &[])), Family::V4), none);
}

#[test]
fn a_point_to_point_interface_needs_no_gateway() {
    let mut kernel = eth1();
    let ppp = kernel.links.get_mut(&IfIndex(3)).unwrap();
    (ppp.name, ppp.point_to_point) = ("pppoe-wan".into(), true);
    kernel.addresses = vec![address(3, "203.0.113.7")];
    let uplink = seen(&kernel, &netifd(Some("pppoe-wan"), &[]));
    assert_eq!(uplink.fault(Family::V4), None);
    assert_eq!(uplink.v4.map(|path| (path.gateway, path.routable)), Some((None, true)));
}
