//! Uplinks and LAN by OpenWrt interface: what netifd tells.

use super::*;
use crate::config::agent::Attachment;
use crate::net::IfIndex;
use crate::netifd::Interface;

fn interface(name: &str, device: Option<&str>) -> Interface {
    Interface { name: name.into(), device: device.map(str::to_owned), gateways: Vec::new() }
}

/// Uplinks `wan` and `wanb` and the LAN are named by interface, and all of them are up.
fn managed() -> World {
    let mut world = World::new();
    let mut config = agent_config();
    config.lan = vec!["lan".into()];
    for uplink in &mut config.uplinks {
        uplink.attachment = Attachment::Interface(uplink.name.clone());
    }
    world.controller = Controller::new(config, world.controller.ports, world.now);
    world.controller.set_interfaces(vec![
        interface("lan", Some("br-lan")),
        interface("wan", Some("eth1")),
        interface("wanb", Some("eth2")),
    ]);
    world.tell(Event::Started);
    world.resolved(&[SERVER]);
    world.session_up(SERVER);
    world.run(10_000);
    assert_eq!(world.in_force(), [InForce::Active; 2], "{:?}", world.log());
    world.forget();
    world
}

#[test]
fn interfaces_lead_to_devices() {
    let world = managed();
    assert_eq!(world.endpoints(), ["192.0.2.10", "192.0.2.20"]);
    assert!(world.nft().contains("iifname != { \"br-lan\" } accept"), "{}", world.nft());
}

#[test]
fn what_netifd_repeats_is_no_reason_to_look() {
    let mut world = managed();
    world.run(50);
    world.forget();
    for _ in 0..10 {
        world.tell(Event::Interface(interface("wan", Some("eth1"))));
    }
    assert_eq!(world.looks, [0; 0]);
    world.tell(Event::Interfaces(vec![interface("wan", None)]));
    assert_eq!(world.looks.len(), 1);
}

#[test]
fn an_interface_that_goes_down_takes_its_uplink_out_at_once() {
    let mut world = managed();
    // The kernel's state is as before: a modem that is reset keeps its device and address.
    world.tell(Event::Interface(interface("wan", None)));
    assert_eq!(world.endpoints(), ["192.0.2.20"]);
    assert!(world.controller.probers.iter().all(|outlet| outlet.slot == 1));
    world.run(2000);
    assert!(world.log().iter().any(|text| text.contains("interface 'wan' is not up")));
    world.tell(Event::Interface(interface("wan", Some("eth1"))));
    world.until(3000, |world| world.endpoints().len() == 2);
}

#[test]
fn an_interface_may_come_back_with_another_device_and_address() {
    let mut world = managed();
    world.tell(Event::Interface(interface("wan", None)));
    world.kernel.links.remove(&IfIndex(3));
    world.kernel.addresses.retain(|address| address.device != IfIndex(3));
    world.kernel.routes.retain(|route| route.device != IfIndex(3));
    world.tell(Event::Changed);
    world.run(2000);
    let (index, mut link) = crate::uplink::tests::link(9, "pppoe-wan");
    link.point_to_point = true;
    world.kernel.links.insert(index, link);
    world.kernel.addresses.push(crate::uplink::tests::address(9, "203.0.113.7"));
    world.tell(Event::Changed);
    world.tell(Event::Interface(interface("wan", Some("pppoe-wan"))));
    world.until(3000, |world| world.endpoints() == ["192.0.2.20", "203.0.113.7"]);
    let routes = world.kernel.routes.iter().filter(|route| route.is_ours());
    assert!(routes.clone().any(|route| route.device == index && route.gateway.is_none()));
}

#[test]
fn the_lan_is_intercepted_where_its_interface_is() {
    let mut world = managed();
    world.tell(Event::Interface(interface("lan", Some("br-lan.7"))));
    assert!(world.nft().contains("iifname != { \"br-lan.7\" } accept"), "{}", world.nft());
}
