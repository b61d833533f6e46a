//! OpenWrt's interfaces, as netifd tells of them: names for devices and their gateways.
//!
//! Addresses, carrier and the like are the kernel's to tell. Where there is no netifd, nothing is known
//! here, and an interface's name is taken for its device's.

use std::net::IpAddr;

use serde_json::Value;

use crate::net::Family;
use crate::ubus::Table;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name, as in `/etc/config/network`.
    pub name: String,
    /// Its layer 3 device (`l3_device`); none while it is not up.
    pub device: Option<String>,
    /// Next hops of its default routes, best first, also of those that `defaultroute 0` keeps out of
    /// the kernel.
    pub gateways: Vec<IpAddr>,
}

impl Interface {
    /// Reads the status of an interface (`ubus call network.interface dump`); `None` when it has no
    /// name.
    pub fn from_status(status: &Table) -> Option<Interface> {
        let up = status.get("up").and_then(Value::as_bool) == Some(true);
        let device = text(status, "l3_device").filter(|_| up);
        let inactive = status.get("inactive").and_then(Value::as_object);
        let mut gateways: Vec<(u64, IpAddr)> = Vec::new();
        for (metric, gateway) in routes(status).chain(inactive.into_iter().flat_map(routes)) {
            let better = gateways.iter().filter(|(other, _)| *other <= metric).count();
            gateways.insert(better, (metric, gateway));
        }
        Some(Interface {
            name: text(status, "interface")?,
            device,
            gateways: gateways.into_iter().map(|(_, gateway)| gateway).collect(),
        })
    }

    /// Reads a dump of all interfaces.
    pub fn all_from_dump(dump: &Table) -> Vec<Interface> {
        tables(dump, "interface").filter_map(Interface::from_status).collect()
    }
}

/// Metrics and next hops of the default routes in a status.
fn routes(status: &Table) -> impl Iterator<Item = (u64, IpAddr)> {
    tables(status, "route").filter_map(default_route)
}

/// The tables in an array.
fn tables<'a>(table: &'a Table, key: &str) -> impl Iterator<Item = &'a Table> {
    let list = table.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    list.iter().filter_map(Value::as_object)
}

/// Metric and next hop of a default route; a point-to-point link's has no next hop.
fn default_route(route: &Table) -> Option<(u64, IpAddr)> {
    let address = |key| text(route, key)?.parse::<IpAddr>().ok();
    let is_default = address("target")?.is_unspecified() && route.get("mask")?.as_u64()? == 0;
    let gateway = address("nexthop").filter(|gateway| is_default && !gateway.is_unspecified())?;
    Some((route.get("metric").and_then(Value::as_u64).unwrap_or(0), gateway))
}

fn text(table: &Table, key: &str) -> Option<String> {
    table.get(key)?.as_str().map(str::to_owned)
}

/// What netifd told last; nothing where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Netifd(Vec<Interface>);

impl Netifd {
    /// All interfaces are these; whether that is news.
    pub fn replace(&mut self, interfaces: Vec<Interface>) -> bool {
        let news = self.0 != interfaces;
        self.0 = interfaces;
        news
    }

    /// One interface is as told; whether that is news.
    pub fn update(&mut self, interface: Interface) -> bool {
        match self.0.iter_mut().find(|known| known.name == interface.name) {
            Some(known) if *known == interface => return false,
            Some(known) => *known = interface,
            None => self.0.push(interface),
        }
        true
    }

    /// The device of an interface: none while it is not up, and what has its name where netifd knows
    /// no such interface.
    pub fn device<'a>(&'a self, interface: &'a str) -> Option<&'a str> {
        match self.0.iter().find(|known| known.name == interface) {
            Some(known) => known.device.as_deref(),
            None => Some(interface),
        }
    }

    /// The next hop of a device's default route. Interfaces may share a device, as `wan` and `wan6` do.
    pub fn gateway(&self, device: &str, family: Family) -> Option<IpAddr> {
        let on_device = self.0.iter().filter(|it| it.device.as_deref() == Some(device));
        let mut gateways = on_device.flat_map(|interface| &interface.gateways);
        gateways.find(|&&gateway| Family::of(gateway) == family).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(json: Value) -> Table {
        json.as_object().unwrap().clone()
    }

    /// `wan` with an address by DHCP, as netifd shows it; `more` is added.
    fn wan(more: Value) -> Table {
        let mut status = table(serde_json::json!({
            "interface": "wan", "up": true, "pending": false, "available": true, "autostart": true,
            "dynamic": false, "uptime": 31, "l3_device": "eth1", "proto": "dhcp", "device": "eth1",
            "metric": 0, "delegation": true,
            "ipv4-address": [{ "address": "192.0.2.10", "mask": 24 }], "ipv6-address": [],
            "route": [], "dns-server": ["192.0.2.1"],
            "inactive": { "route": [], "dns-server": [] }, "data": { "leasetime": 43200 },
        }));
        status.extend(table(more));
        status
    }

    fn route(target: &str, mask: u8, nexthop: &str, metric: u32) -> Value {
        serde_json::json!({ "target": target, "mask": mask, "nexthop": nexthop, "metric": metric,
            "source": "192.0.2.10/32" })
    }

    fn read(status: Table) -> Interface {
        Interface::from_status(&status).unwrap()
    }

    #[test]
    fn the_device_is_that_of_layer_3_and_only_while_the_interface_is_up() {
        let more = serde_json::json!({ "l3_device": "pppoe-wan", "proto": "pppoe" });
        assert_eq!(read(wan(more)).device, Some("pppoe-wan".into()));
        assert_eq!(read(wan(serde_json::json!({ "up": false }))).device, None);
        assert_eq!(Interface::from_status(&Table::new()), None);
    }

    #[test]
    fn gateways_are_those_of_default_routes_active_or_not_best_first() {
        let gateways = |status: Table| -> Vec<String> {
            read(status).gateways.iter().map(ToString::to_string).collect()
        };
        let active = [
            route("0.0.0.0", 0, "192.0.2.254", 20),
            route("0.0.0.0", 0, "192.0.2.1", 10),
            route("10.0.0.0", 8, "192.0.2.3", 0),
            route("0.0.0.0", 0, "0.0.0.0", 0),
        ];
        assert_eq!(
            gateways(wan(serde_json::json!({ "route": active }))),
            ["192.0.2.1", "192.0.2.254"]
        );
        let inactive = [route("0.0.0.0", 0, "192.0.2.1", 0), route("::", 0, "fe80::1", 0)];
        let status = wan(serde_json::json!({ "inactive": { "route": inactive } }));
        assert_eq!(gateways(status), ["192.0.2.1", "fe80::1"]);
    }

    #[test]
    fn what_netifd_does_not_know_is_taken_for_a_device() {
        let mut netifd = Netifd::default();
        assert_eq!(netifd.device("wan"), Some("wan"));
        let dump =
            serde_json::json!({ "interface": [wan(serde_json::json!({})), { "up": true }, 1] });
        let all = Interface::all_from_dump(&table(dump));
        assert_eq!(all.len(), 1);
        assert!(netifd.replace(all.clone()));
        assert!(!netifd.replace(all));
        assert_eq!((netifd.device("wan"), netifd.device("br-lan")), (Some("eth1"), Some("br-lan")));
        assert!(!netifd.update(read(wan(serde_json::json!({ "uptime": 32 })))));
        assert!(netifd.update(read(wan(serde_json::json!({ "up": false })))));
        assert_eq!(netifd.device("wan"), None);
    }

    #[test]
    fn interfaces_that_share_a_device_share_its_gateways() {
        let mut netifd = Netifd::default();
        let v4 = serde_json::json!({ "route": [route("0.0.0.0", 0, "192.0.2.1", 0)] });
        netifd.update(read(wan(v4)));
        let v6 =
            serde_json::json!({ "interface": "wan6", "route": [route("::", 0, "fe80::1", 0)] });
        netifd.update(read(wan(v6)));
        let gateway = |family| netifd.gateway("eth1", family).map(|it| it.to_string());
        assert_eq!(Family::ALL.map(gateway), [Some("192.0.2.1".into()), Some("fe80::1".into())]);
        assert_eq!(netifd.gateway("eth2", Family::V4), None);
    }
}
