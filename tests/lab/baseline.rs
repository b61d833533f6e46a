//! Plain kernel MPTCP between router and server, set up by hand: what a bond is compared with.

use std::net::IpAddr;

use super::Lab;
use super::traffic::{Dialer, Iperf3, Kind, TrafficServer};

/// The first of the endpoint ids, rule priorities and tables used.
const FIRST: usize = 100;
/// Port of the server that speaks MPTCP.
const PORT: u16 = 5210;

/// Endpoints, rules and tables for each uplink; removed when dropped.
pub struct PlainMptcp<'lab> {
    lab: &'lab Lab,
    limits: [String; 2],
    server: Option<TrafficServer>,
}

impl<'lab> PlainMptcp<'lab> {
    /// Configures the router with `ip mptcp`, `ip rule` and `ip route`, and starts a server.
    pub fn set_up(lab: &'lab Lab) -> PlainMptcp<'lab> {
        let limits = [&lab.router, &lab.server].map(|namespace| {
            let limits = namespace.ip("mptcp limits show");
            namespace.ip("mptcp limits set subflows 8 add_addr_accepted 8");
            limits
        });
        for (index, uplink) in lab.uplinks().iter().enumerate() {
            let table = FIRST + index;
            let device = uplink.device();
            let v4 = uplink
                .spec()
                .ipv4
                .then(|| (IpAddr::V4(uplink.address_v4()), uplink.gateway_v4().map(IpAddr::V4)));
            let v6 = uplink
                .spec()
                .ipv6
                .then(|| (IpAddr::V6(uplink.address_v6()), uplink.gateway_v6().map(IpAddr::V6)));
            for (address, gateway) in v4.into_iter().chain(v6) {
                let family = if address.is_ipv4() { "-4" } else { "-6" };
                let id = FIRST + index + if address.is_ipv4() { 0 } else { 50 };
                let via = gateway.map(|gateway| format!("via {gateway}")).unwrap_or_default();
                lab.router.ip(&format!(
                    "{family} route replace default {via} dev {device} table {table}"
                ));
                lab.router
                    .ip(&format!("{family} rule add pref {table} from {address} lookup {table}"));
                lab.router
                    .ip(&format!("mptcp endpoint add {address} dev {device} id {id} subflow"));
            }
        }
        let server = TrafficServer::start(&lab.server, Kind::Mptcp, PORT);
        PlainMptcp { lab, limits, server: Some(server) }
    }

    /// The server's side.
    pub fn server(&self) -> &TrafficServer {
        self.server.as_ref().expect("the server runs until the drop")
    }

    /// MPTCP connections from the router to an address of the server.
    pub fn dialer(&self, address: impl Into<IpAddr>) -> Dialer {
        self.server().dialer(&self.lab.router, Kind::Mptcp, address)
    }

    /// Mbit/s that `mptcpize run iperf3` reaches between router and server.
    #[track_caller]
    pub fn iperf3(&self, address: impl Into<IpAddr>, load: Iperf3) -> f64 {
        load.run(self.lab, Kind::Mptcp, &self.lab.router, &self.lab.server, address.into())
    }
}

impl Drop for PlainMptcp<'_> {
    fn drop(&mut self) {
        self.server = None;
        let router = &self.lab.router;
        for (index, uplink) in self.lab.uplinks().iter().enumerate() {
            let table = (FIRST + index).to_string();
            for (family, present, offset) in
                [("-4", uplink.spec().ipv4, 0), ("-6", uplink.spec().ipv6, 50)]
            {
                if present {
                    // The kernel may have removed routes of its own accord.
                    let id = (FIRST + index + offset).to_string();
                    let _ = router.try_run("ip", &["mptcp", "endpoint", "delete", "id", &id]);
                    let _ = router.try_run("ip", &[family, "rule", "delete", "pref", &table]);
                    let _ = router.try_run("ip", &[family, "route", "flush", "table", &table]);
                }
            }
        }
        for (namespace, limits) in [router, &self.lab.server].into_iter().zip(&self.limits) {
            // "add_addr_accepted 0 subflows 2", in the words that "set" takes.
            let words: Vec<&str> = limits.split_whitespace().collect();
            let set: &[&str] = &["mptcp", "limits", "set"];
            let _ = namespace.try_run("ip", &[set, words.as_slice()].concat());
        }
    }
}
