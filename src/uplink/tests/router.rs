//! What a dump shows of a router. `tests/plan_in_kernel.rs` has this module as well.

use std::net::IpAddr;

use super::net::{Address, Family, IfIndex, Link, MAIN, Prefix, Route, RouteKind};

/// A device that is up, with carrier and 1500 bytes.
pub(crate) fn link(index: u32, name: &str) -> (IfIndex, Link) {
    let link = Link {
        index: IfIndex(index),
        name: name.into(),
        up: true,
        carrier: true,
        point_to_point: false,
        mtu: 1500,
        rx_bytes: 0,
        tx_bytes: 0,
    };
    (link.index, link)
}

/// A usable global address.
pub(crate) fn address(device: u32, prefix: &str) -> Address {
    let prefix = prefix.parse().unwrap();
    Address { device: IfIndex(device), prefix, global: true, usable: true }
}

/// A foreign default route in main.
pub(crate) fn default_via(device: u32, gateway: &str, metric: u32) -> Route {
    let gateway: IpAddr = gateway.parse().unwrap();
    Route {
        table: MAIN,
        destination: Prefix::default_route(Family::of(gateway)),
        from: None,
        metric,
        kind: RouteKind::Unicast,
        gateway: Some(gateway),
        device: IfIndex(device),
        source: None,
        onlink: false,
        advmss: None,
        protocol: 3,
    }
}
