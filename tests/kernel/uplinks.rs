//! Uplinks as a dump shows them, and what their daemons do to them.

use std::net::IpAddr;

use mptcp_bond::config::agent::{
    AgentConfig, Attachment, OnServerLoss, Quic, Role, ServerConfig, UplinkConfig,
};
use mptcp_bond::controller::{Action, Controller, Event};
use mptcp_bond::interception::TproxyPorts;
use mptcp_bond::net::Family;
use mptcp_bond::os::kernel::{Change, KernelHandle, Look};
use mptcp_bond::uplink::{Uplink, observe};

use crate::{apply, changes::hints, dump, in_namespace, sh, uplinks};

fn config(device: &str) -> UplinkConfig {
    UplinkConfig {
        name: device.into(),
        attachment: Attachment::Device(device.into()),
        role: Role::Bond,
        quota: None,
    }
}

fn agent_config() -> AgentConfig {
    let server = ServerConfig {
        name: "vps".into(),
        address: "203.0.113.1".into(),
        port: 443,
        public_key: mptcp_bond::config::keys::PublicKey([7; 32]),
        cipher: mptcp_bond::config::agent::CipherChoice::Auto,
    };
    AgentConfig {
        enabled: true,
        log_level: log::LevelFilter::Info,
        lan: vec!["lo".into()],
        on_server_loss: OnServerLoss::Direct,
        quic: Quic::Allow,
        udp_ports: Vec::new(),
        udp_duplicate: false,
        http_listen: None,
        check_url: None,
        servers: vec![server],
        uplinks: vec![config("wan0"), config("wan1")],
        bypasses: Vec::new(),
        forwards: Vec::new(),
    }
}

async fn observed(handle: &mut KernelHandle, device: &str) -> Uplink {
    observe(&[config(device)], &dump(handle).await, &[]).remove(0)
}

/// netifd installs IPv6 default routes for the source prefixes of their interface alone.
#[test]
fn default_routes_for_a_source_prefix_show_the_gateway() {
    in_namespace("uplinks::default_routes_for_a_source_prefix_show_the_gateway", async {
        uplinks();
        sh("ip -6 route add default from 2001:db8:0::/64 via fe80::1 dev wan0 proto static metric 512
            ip -6 route add default from 2001:db8:aa00::/56 via fe80::1 dev wan0 proto static metric 512
            ip -6 route add default from 2001:db8:1::/64 via fe80::2 dev wan1 table 7 metric 1024");
        let (mut handle, _watch) = KernelHandle::open().await.unwrap();
        for (device, gateway) in [("wan0", "fe80::1"), ("wan1", "fe80::2")] {
            let uplink = observed(&mut handle, device).await;
            let gateway: IpAddr = gateway.parse().unwrap();
            assert_eq!(uplink.v6.as_ref().unwrap().gateway, Some(gateway), "{uplink:?}");
            assert_eq!(uplink.fault(Family::V6), None);
        }
    });
}

/// Looks and applies as the controller wants until it wants no more; the operations as lines.
async fn pass(handle: &mut KernelHandle, controller: &mut Controller, event: Event) -> Vec<String> {
    let (mut events, mut lines) = (vec![event], Vec::new());
    while let Some(event) = events.pop() {
        for action in controller.handle(event, std::time::Instant::now()) {
            match action {
                Action::Look { .. } => {
                    let kernel = handle.dump(&[], Look::Quick).await.unwrap();
                    events.push(Event::Dumped(Box::new(kernel)));
                }
                Action::Apply(plan) => {
                    for operation in plan {
                        lines.push(operation.describe(controller.kernel()));
                        apply(handle, operation).await;
                    }
                    events.push(Event::Applied(Vec::new()));
                }
                _ => {}
            }
        }
    }
    lines
}

/// Passes with the time between them that hints are collected for.
async fn passes(handle: &mut KernelHandle, controller: &mut Controller) -> Vec<String> {
    let mut lines = Vec::new();
    for _ in 0..3 {
        tokio::time::sleep(std::time::Duration::from_millis(110)).await;
        lines.extend(pass(handle, controller, Event::Changed).await);
    }
    lines
}

#[test]
fn a_renewed_lease_changes_nothing_of_ours() {
    in_namespace("uplinks::a_renewed_lease_changes_nothing_of_ours", async {
        uplinks();
        sh("ip addr change 192.0.2.10/24 dev wan0 valid_lft 60 preferred_lft 60
            ip route add default via 192.0.2.1 dev wan0 proto dhcp src 192.0.2.10 metric 10
            ip route add default via 192.0.2.1 dev wan1 proto dhcp src 192.0.2.11 metric 20
            ip -6 route add default via fe80::1 dev wan0 proto ra expires 600");
        let (mut handle, mut watch) = KernelHandle::open().await.unwrap();
        let ports = TproxyPorts { v4: Some(4000), v6: None };
        let now = std::time::Instant::now();
        let mut controller = Controller::new(agent_config(), ports, now);
        pass(&mut handle, &mut controller, Event::Started).await;
        passes(&mut handle, &mut controller).await;
        hints(&mut watch).await;
        let endpoints = sh("ip mptcp endpoint show | wc -l");
        assert_eq!(endpoints, "3");

        sh("ip addr change 192.0.2.10/24 dev wan0 valid_lft 3600 preferred_lft 1800
            ip addr replace 192.0.2.10/24 dev wan0 valid_lft 7200 preferred_lft 7200
            ip route replace default via 192.0.2.1 dev wan0 proto dhcp src 192.0.2.10 metric 10
            ip -6 addr change 2001:db8:0::1/64 dev wan0 valid_lft 3600 preferred_lft 1800
            ip -6 route replace default via fe80::1 dev wan0 proto ra expires 900");
        let seen = hints(&mut watch).await;
        assert!(seen.contains(&Change::Address) && seen.contains(&Change::Route), "{seen:?}");
        assert_eq!(passes(&mut handle, &mut controller).await, [""; 0]);
        assert_eq!(controller.failures().count(), 0);

        // A client that takes the address away before it gives it back: the other uplink's objects
        // are left alone, and in the end all is as before.
        let before = sh("ip route show table 5001; ip rule");
        sh("ip addr del 192.0.2.10/24 dev wan0; ip addr add 192.0.2.10/24 dev wan0
            ip route add default via 192.0.2.1 dev wan0 proto dhcp src 192.0.2.10 metric 10");
        let lines = passes(&mut handle, &mut controller).await;
        assert!(lines.iter().all(|line| !line.contains("5002") && !line.contains("192.0.2.11")));
        assert!(lines.iter().all(|line| !line.contains("endpoint")), "{lines:?}");
        assert_eq!(sh("ip route show table 5001; ip rule"), before);
    });
}
