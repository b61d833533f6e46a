//! Uplinks as they come: who carries what, and what the status says of each.

mod lab;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use lab::traffic::{Dialer, Kind, TrafficServer, Transfer};
use lab::{
    AgentProgram, Direction, Lab, SERVER_V6, ServerProgram, Strip, TARGET_V4, TARGET_V6,
    UplinkSpec, joining_uploads, until,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a transfer whose distribution over the uplinks is looked at.
const BYTES: u64 = 16_000_000;
/// An uplink that carries less than this much of such a transfer carries nothing of it.
const IDLE: u64 = BYTES / 50;
/// An uplink that carries at least this much of it does its share.
const SHARE: u64 = BYTES / 10;

/// The status of one uplink.
#[track_caller]
fn uplink<'a>(status: &'a Value, name: &str) -> &'a Value {
    let all = status["uplinks"].as_array().expect("a list of uplinks");
    all.iter().find(|uplink| uplink["name"] == name).unwrap_or_else(|| panic!("no {name}"))
}

/// Whether an uplink is in this state, in use or not, and its reason contains a text.
fn is(status: &Value, name: &str, state: &str, in_use: bool, reason: &str) -> bool {
    let uplink = uplink(status, name);
    uplink["state"] == state
        && uplink["in_use"] == in_use
        && uplink["reason"].as_str().is_some_and(|text| text.contains(reason))
}

/// Downloads and uploads, and asserts which uplinks carry the data: those listed, and no others.
#[track_caller]
fn assert_carried_by(lab: &Lab, server: &TrafficServer, dialer: &Dialer, carriers: &[&str]) {
    for upload in [false, true] {
        let count = |index: usize| {
            let (received, sent) = lab.uplink(index).bytes();
            if upload { sent } else { received }
        };
        let before: Vec<u64> = (0..lab.uplinks().len()).map(count).collect();
        let transfer = match upload {
            true => Transfer::upload(server, dialer, BYTES),
            false => Transfer::download(dialer, BYTES),
        };
        let report = transfer.expect("connect").finish(2 * LIMIT).expect("the transfer succeeds");
        let what = if upload { "upload" } else { "download" };
        for (index, uplink) in lab.uplinks().iter().enumerate() {
            let carried = count(index).saturating_sub(before[index]);
            let name = uplink.device();
            println!("{what}: {name} carried {carried}, {:.0} Mbit/s in all", report.goodput());
            if carriers.contains(&name) {
                assert!(carried > SHARE, "{what}: {name} carried {carried} bytes only");
            } else {
                assert!(carried < IDLE, "{what}: {name} carried {carried} bytes");
            }
        }
    }
}

/// A target in the world, and connections from the LAN to it.
fn target(lab: &Lab) -> (TrafficServer, Dialer, Dialer) {
    let server = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let v4 = server.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let v6 = server.dialer(&lab.lan, Kind::Tcp, TARGET_V6);
    (server, v4, v6)
}

#[track_caller]
fn assert_goes_on(transfer: &Transfer) {
    let bytes = transfer.report().bytes;
    transfer.wait_bytes(bytes + 2_000_000, LIMIT);
}

#[track_caller]
fn assert_intact(transfer: Transfer) {
    assert!(!transfer.is_finished(), "the transfer was cut off");
    assert_eq!(transfer.stop().corrupt_at, None);
}

/// UCI text that has the agent reach its server over IPv6.
fn over_v6() -> String {
    format!("config server 'vps'\n\toption address '{SERVER_V6}'\n")
}

/// Appends UCI text to the configuration and has it read.
fn reload_with(agent: &mut AgentProgram, uci: &str) {
    let text = std::fs::read_to_string(agent.config()).expect("read the configuration");
    std::fs::write(agent.config(), format!("{text}\n{uci}")).expect("write the configuration");
    agent.reload();
}

#[test]
fn the_same_subnet_and_gateway_twice() {
    let lab = Lab::builder("same-subnet")
        .uplink(UplinkSpec::new("wan", 60).subnet(9))
        .uplink(UplinkSpec::new("wanb", 40).subnet(9))
        .build();
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let (target, v4, v6) = target(&lab);
    assert_carried_by(&lab, &target, &v4, &["wan", "wanb"]);
    assert_carried_by(&lab, &target, &v6, &["wan", "wanb"]);
    let status = agent.wait_ready();
    for (index, name) in ["wan", "wanb"].into_iter().enumerate() {
        assert!(is(&status, name, "up", true, "answered"), "{status:#}");
        assert_eq!(uplink(&status, name)["gateways"][0], "10.9.0.1");
        assert_eq!(lab.uplink(index).spoofed(), [""; 0], "{name} saw another's address");
    }
}

#[test]
fn a_point_to_point_uplink_and_a_small_mtu() {
    let lab = Lab::builder("ppp")
        .uplink(UplinkSpec::new("wan", 60))
        .uplink(UplinkSpec::new("dsl", 40).point_to_point().mtu(1492))
        .build();
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let (target, v4, _) = target(&lab);
    assert_carried_by(&lab, &target, &v4, &["wan", "dsl"]);
    let status = agent.wait_ready();
    assert!(is(&status, "dsl", "up", true, "answered"), "{status:#}");
    let dsl = uplink(&status, "dsl");
    assert_eq!((&dsl["mtu"], &dsl["gateways"]), (&1492.into(), &serde_json::json!([])));
    let routes = lab.router.ip("route show table 5002");
    assert!(routes.contains("advmss 1452"), "{routes}");

    // The same with IPv6 to the server.
    reload_with(&mut agent, &over_v6());
    let routes = "-6 route show table 5002";
    agent.wait_status("IPv6 is in use", |status| {
        status["servers"][0]["address_in_use"] == SERVER_V6.to_string()
    });
    assert!(lab.router.ip(routes).contains("advmss 1432"), "{}", lab.router.ip(routes));
    assert!(is(&agent.wait_ready(), "dsl", "up", true, "answered"));
    assert_carried_by(&lab, &target, &v4, &["wan", "dsl"]);
}

#[test]
fn an_autoconfigured_uplink() {
    let lab = Lab::builder("slaac")
        .uplink(UplinkSpec::new("wan", 60))
        .uplink(UplinkSpec::new("cable", 40).ipv6_only().slaac())
        .build();
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start_with(&lab, &server, &over_v6());
    let (target, v4, v6) = target(&lab);
    assert_carried_by(&lab, &target, &v6, &["wan", "cable"]);
    assert_carried_by(&lab, &target, &v4, &["wan", "cable"]);
    let status = agent.wait_ready();
    assert!(is(&status, "cable", "up", true, "answered"), "{status:#}");

    let transfer = Transfer::download(&v6, Transfer::ENDLESS).expect("connect");
    lab.uplink(1).advertise_router(Duration::ZERO);
    agent.wait_status("the router is withdrawn", |status| {
        is(status, "cable", "down", false, "no usable IPv6 address")
    });
    assert_goes_on(&transfer);
    lab.uplink(1).advertise_router(Duration::from_secs(1800));
    agent.wait_ready();
    let before = lab.uplink(1).bytes().0;
    until("the running download uses it again", LIMIT, || {
        (lab.uplink(1).bytes().0 > before + SHARE).then_some(())
    });
    assert_intact(transfer);
}

#[test]
fn renumbering_in_mid_transfer() {
    joining_uploads(Lab::two_distant_uplinks("renumbering"), renumber);
}

fn renumber(lab: &Lab) {
    let server = ServerProgram::start(lab);
    let mut agent = AgentProgram::start(lab, &server);
    let (target, v4, _) = target(lab);
    let transfers = [
        Transfer::download(&v4, Transfer::ENDLESS).expect("connect"),
        Transfer::upload(&target, &v4, Transfer::ENDLESS).expect("connect"),
    ];
    transfers.iter().for_each(assert_goes_on);
    for (index, name) in [(0, "wan"), (1, "wanb"), (0, "wan")] {
        lab.uplink(index).renumber();
        let address = lab.uplink(index).address_v4().to_string();
        agent.wait_status("the new address is in use", |status| {
            is(status, name, "up", true, "answered")
                && uplink(status, name)["addresses"][0] == address.as_str()
                && uplink(status, name)["endpoints"][0]["address"] == address.as_str()
        });
        let before = lab.uplink(index).bytes();
        until("running transfers use the new address", LIMIT, || {
            let now = lab.uplink(index).bytes();
            (now.0 > before.0 + SHARE && now.1 > before.1 + SHARE).then_some(())
        });
        transfers.iter().for_each(assert_goes_on);
        assert!(!lab.router.ip("rule").contains("10.1.0.2 "), "no rule for the old address");
    }
    transfers.into_iter().for_each(assert_intact);
}

#[test]
fn an_uplink_comes_and_goes_and_one_never_comes() {
    let lab = Lab::builder("hotplug")
        .uplink(UplinkSpec::new("wan", 60))
        .uplink(UplinkSpec::new("wanb", 40))
        .uplink(UplinkSpec::new("usb0", 40))
        .build();
    lab.uplink(2).unplug();
    let server = ServerProgram::start(&lab);
    let uci = "config uplink 'lte'\n\toption device 'wwan7'\n";
    let mut agent = AgentProgram::paired(&lab, &server, uci);
    agent.launch();
    agent.wait_status("two uplinks are up, two have no device", |status| {
        status["state"] == "bonding"
            && ["wan", "wanb"].iter().all(|name| is(status, name, "up", true, "answered"))
            && is(status, "usb0", "down", false, "no device 'usb0'")
            && is(status, "lte", "down", false, "no device 'wwan7'")
    });
    let (target, v4, _) = target(&lab);
    assert_carried_by(&lab, &target, &v4, &["wan", "wanb"]);

    let transfer = Transfer::download(&v4, Transfer::ENDLESS).expect("connect");
    assert_goes_on(&transfer);
    lab.uplink(2).plug_in();
    agent.wait_status("usb0 is in use", |status| is(status, "usb0", "up", true, "answered"));
    until("the running download uses it", LIMIT, || {
        (lab.uplink(2).bytes().0 > SHARE).then_some(())
    });
    assert_carried_by(&lab, &target, &v4, &["wan", "wanb", "usb0"]);
    lab.uplink(2).unplug();
    agent.wait_status("usb0 is gone", |status| {
        is(status, "usb0", "down", false, "no device 'usb0'")
            && uplink(status, "usb0")["endpoints"] == serde_json::json!([])
    });
    assert_goes_on(&transfer);
    assert_intact(transfer);
    let status = agent.status().expect("a status");
    assert_eq!(status["failures"], serde_json::json!([]), "nothing is tried in vain");
}

#[test]
fn uplinks_with_one_family_each() {
    let lab = Lab::builder("families")
        .uplink(UplinkSpec::new("both", 60))
        .uplink(UplinkSpec::new("old", 40).ipv4_only())
        .uplink(UplinkSpec::new("new", 40).ipv6_only())
        .build();
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::paired(&lab, &server, "");
    agent.launch();
    agent.wait_status("IPv4 uplinks are in use", |status| {
        ["both", "old"].iter().all(|name| is(status, name, "up", true, "answered"))
            && is(status, "new", "down", false, "new has no usable IPv4 address")
    });
    let (target, v4, v6) = target(&lab);
    assert_carried_by(&lab, &target, &v4, &["both", "old"]);
    // What the uplinks speak does not matter to the LAN.
    assert_carried_by(&lab, &target, &v6, &["both", "old"]);

    reload_with(&mut agent, &over_v6());
    agent.wait_status("IPv6 uplinks are in use", |status| {
        ["both", "new"].iter().all(|name| is(status, name, "up", true, "answered"))
            && is(status, "old", "down", false, "old has no usable IPv6 address")
    });
    assert_carried_by(&lab, &target, &v4, &["both", "new"]);
    assert_carried_by(&lab, &target, &v6, &["both", "new"]);
}

#[test]
fn several_addresses_on_one_device() {
    let lab = Lab::two_uplinks("addresses");
    let more: [(IpAddr, u8); 2] = [
        (Ipv4Addr::new(10, 1, 0, 77).into(), 24),
        (Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x77).into(), 64),
    ];
    lab.uplink(0).add_address(more[0].0, more[0].1);
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let (target, v4, _) = target(&lab);
    assert_carried_by(&lab, &target, &v4, &["wan", "wanb"]);
    let transfer = Transfer::download(&v4, Transfer::ENDLESS).expect("connect");
    assert_goes_on(&transfer);
    let endpoints = lab.router.ip("mptcp endpoint");
    assert!(endpoints.contains("10.1.0.2 "), "{endpoints}");
    // Others come and go: what is in use stays in use.
    for (address, length) in more {
        lab.uplink(0).add_address(address, length);
        assert_goes_on(&transfer);
        lab.uplink(0).remove_address(address, length);
        assert_goes_on(&transfer);
    }
    assert_eq!(lab.router.ip("mptcp endpoint"), endpoints);
    // The address in use goes, another takes over.
    lab.uplink(0).add_address(more[0].0, more[0].1);
    let first = format!("address delete {}/24 dev wan", lab.uplink(0).address_v4());
    lab.router.sysctl("net.ipv4.conf.wan.promote_secondaries", "1");
    lab.router.ip(&first);
    lab.router.ip("route replace default via 10.1.0.1 dev wan metric 10");
    agent.wait_status("the other address is in use", |status| {
        is(status, "wan", "up", true, "answered")
            && uplink(status, "wan")["endpoints"][0]["address"] == "10.1.0.77"
    });
    assert_goes_on(&transfer);
    assert_intact(transfer);
    assert_carried_by(&lab, &target, &v4, &["wan", "wanb"]);
}

#[test]
fn mptcp_is_stripped_on_one_uplink() {
    let lab = Lab::two_uplinks("stripped");
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::paired(&lab, &server, "");
    let (target, v4, _) = target(&lab);
    // The uplink that connections to the server prefer, by its shorter round-trip time, or the other.
    lab.uplink(0).delay(Direction::Both, Duration::from_millis(5));
    for stripped in [1, 0] {
        lab.uplink(stripped).strip_mptcp(Strip::Everything);
        let [carrier, name] = [1 - stripped, stripped].map(|index| lab.uplink(index).device());
        agent.launch();
        agent.wait_status("the tunnel is up", |status| {
            status["servers"][0]["state"] == "connected"
                && is(status, carrier, "up", true, "answered")
        });
        let transfer = Transfer::download(&v4, Transfer::ENDLESS).expect("connect");
        let status = until("the status tells which uplink is of no use", 3 * LIMIT, || {
            agent.status().filter(|status| {
                is(status, carrier, "up", true, "answered")
                    && is(status, name, "down", false, "MPTCP does not get through")
            })
        });
        let summary = format!("using one uplink: {carrier}");
        assert_eq!((&status["state"], &status["summary"]), (&"single".into(), &summary.into()));
        assert_intact(transfer);
        assert_carried_by(&lab, &target, &v4, &[carrier]);
        agent.stop();
        lab.uplink(stripped).restore();
    }
}

#[test]
fn mptcp_is_stripped_everywhere() {
    let lab = Lab::two_uplinks("stripped-everywhere");
    lab.uplinks().iter().for_each(|uplink| uplink.strip_mptcp(Strip::Everything));
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::paired(&lab, &server, "");
    agent.launch();
    let status = agent.wait_status("the status tells it", |status| status["state"] == "fallback");
    assert_eq!(status["servers"][0]["mptcp"], false);
    let summary = status["summary"].as_str().expect("a text");
    assert!(summary.contains("plain TCP"), "{summary}");
    let (target, v4, _) = target(&lab);
    let down = Transfer::download(&v4, BYTES).expect("connect").finish(LIMIT).expect("download");
    println!("{:.0} Mbit/s over plain TCP", down.goodput());
    Transfer::upload(&target, &v4, BYTES).expect("connect").finish(LIMIT).expect("upload");
    assert_eq!(agent.status().expect("a status")["state"], "fallback");
}

#[test]
fn a_network_without_udp_is_judged_by_its_subflows() {
    joining_uploads(Lab::two_distant_uplinks("without-udp"), judge_without_udp);
}

fn judge_without_udp(lab: &Lab) {
    let wanb = lab.uplink(1);
    wanb.drop_udp();
    let server = ServerProgram::start(lab);
    let mut agent = AgentProgram::start(lab, &server);
    let (target, v4, _) = target(lab);
    let transfer = Transfer::upload(&target, &v4, Transfer::ENDLESS).expect("connect");
    let uses = |status: &Value| is(status, "wanb", "up", true, "UDP does not");
    agent.wait_status("wanb is in use although no probe is answered", uses);
    assert_carried_by(lab, &target, &v4, &["wan", "wanb"]);
    // Told by unacknowledged data alone.
    wanb.blackhole(Direction::Both);
    agent.wait_status("wanb is not used", |status| !uses(status));
    assert_goes_on(&transfer);
    wanb.restore();
    wanb.drop_udp();
    let trial = || agent.status().filter(uses);
    // On a busy machine the first one may fail; the next comes after twice the time.
    until("wanb has proved itself in a trial", 8 * LIMIT, trial);
    // Probes that get through again count again.
    wanb.restore();
    agent.wait_status("probes are answered", |status| is(status, "wanb", "up", true, "answered"));
    assert_intact(transfer);
}
