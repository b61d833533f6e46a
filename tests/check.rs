//! `mptcp-bond check` names what keeps an uplink from carrying traffic, whatever it is;
//! `mptcp-bond monitor` tells when that changes.

mod lab;

use std::fs;
use std::time::Duration;

use lab::{
    AgentProgram, Direction, Lab, Process, SERVER_V4, SERVER_V6, ServerProgram, Strip, Uplink,
    UplinkSpec, until, wait_for,
};
use rustix::process::Signal;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(20);

/// What is said of `wanb` while `wan` is as it should be.
struct Checked<'a, 'lab> {
    agent: &'a mut AgentProgram<'lab>,
}

impl Checked<'_, '_> {
    /// Waits until the check gives this as the only reason why `wanb` carries nothing; its text.
    #[track_caller]
    fn names(&mut self, code: &str) -> String {
        let mut last = Value::Null;
        let found = wait_for(LIMIT, || {
            let (exit, report) = self.agent.check();
            let wanb = &report["uplinks"][1];
            let named = exit == 1 && wanb["carries"] == false && wanb["reason"] == code;
            let mut flaws = flaws(&report);
            flaws.retain(|flaw| flaw.starts_with("\"uplink wanb\""));
            last = report;
            (named && flaws.len() == 1).then(|| flaws.remove(0))
        });
        let found = found.unwrap_or_else(|| panic!("not {code}: {:#?}", flaws(&last)));
        println!("{code}: {found}");
        found
    }

    /// Waits until all is well again.
    #[track_caller]
    fn is_well(&mut self) {
        self.agent.wait_ready();
        let mut last = Value::Null;
        let well = wait_for(LIMIT, || {
            let (exit, report) = self.agent.check();
            last = report;
            (exit == 0 && last["well"] == true).then_some(())
        });
        assert!(well.is_some(), "not well: {:#?}", flaws(&last));
    }
}

/// Whatever is not well: on what, what, and what to do about it.
fn flaws(report: &Value) -> Vec<String> {
    let findings = report["findings"].as_array().into_iter().flatten();
    findings
        .filter(|finding| finding["result"] != "ok")
        .map(|it| format!("{}: {} -> {}", it["subject"], it["found"], it["advice"]))
        .collect()
}

/// What an ISP does beside its policy, until it is undone.
fn hinder(uplink: &Uplink, rule: &str) {
    uplink.isp().nft(&format!(
        "table inet hindrance {{
  chain forward {{
    type filter hook forward priority -10;
    {rule}
  }}
}}"
    ));
}

fn relent(uplink: &Uplink) {
    uplink.isp().nft("delete table inet hindrance");
}

#[test]
fn what_the_network_does_is_named() {
    let lab = Lab::builder("check-network")
        .uplink(UplinkSpec::new("wan", 100))
        .uplink(UplinkSpec::new("wanb", 50).delay(Duration::from_millis(80)))
        .build();
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let mut checked = Checked { agent: &mut agent };
    let wanb = lab.uplink(1);
    checked.names("demoted");
    // Farther than the other one still: no connection begins on it.
    wanb.delay(Direction::Both, Duration::from_millis(5));
    checked.is_well();
    let status = server.status().expect("a status");
    assert_eq!(status["refusals"], json!({}), "the check leaves no trace");

    wanb.strip_mptcp(Strip::Join);
    checked.names("mp_join_stripped");
    wanb.strip_mptcp(Strip::Everything);
    let found = checked.names("mp_capable_stripped");
    assert!(found.contains("on port 443") && found.contains("port 8443"), "{found}");
    wanb.restore();

    lab.server.ip("mptcp limits set subflows 0");
    checked.names("limit_reached");
    lab.server.ip("mptcp limits set subflows 8");

    hinder(wanb, "meta length > 1400 meta l4proto { tcp, udp } drop");
    let found = checked.names("mtu_black_hole");
    assert!(found.contains("mtu 1400"), "{found}");
    relent(wanb);

    hinder(wanb, "tcp flags & syn == syn tcp option mptcp exists drop");
    checked.names("syn_dropped");
    relent(wanb);
    checked.is_well();

    // A Linux router says so about once a second, which others may hear instead.
    wanb.isp().sysctl("net.ipv4.icmp_ratelimit", "0");
    hinder(wanb, "iifname cpe reject with icmp type net-unreachable");
    checked.names("no_route");
    relent(wanb);

    wanb.isp().ip("link set cpe arp off");
    lab.router.ip("neigh flush dev wanb");
    checked.names("gateway_silent");
    wanb.isp().ip("link set cpe arp on");
    checked.is_well();
}

/// Appends UCI text to the agent's configuration and has it read.
fn configure(agent: &mut AgentProgram, uci: &str) {
    let text = fs::read_to_string(agent.config()).expect("read the configuration");
    fs::write(agent.config(), format!("{text}\n{uci}\n")).expect("write the configuration");
    agent.reload();
}

/// Sets an option of `wanb`.
fn set(agent: &mut AgentProgram, option: &str, value: &str) {
    configure(agent, &format!("config uplink 'wanb'\n\toption {option} '{value}'"));
}

fn server_option(option: &str, value: &str) -> String {
    format!("config server 'vps'\n\toption {option} '{value}'")
}

#[test]
fn what_the_router_and_the_server_lack_is_named() {
    let lab = Lab::two_uplinks("check-ends");
    let mut server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let (router, wanb) = (&lab.router, lab.uplink(1));
    let mut checked = Checked { agent: &mut agent };

    wanb.carrier_down();
    checked.names("no_carrier");
    wanb.carrier_up();
    wanb.drop_address();
    checked.names("no_address");
    wanb.obtain_address();
    router.ip("route delete default dev wanb");
    checked.names("no_gateway");
    // As if the modem had the LAN's subnet: its gateway is this router's own address.
    router.ip("address add 10.2.0.1/24 dev br-lan");
    checked.names("subnet_clash");
    router.ip("address delete 10.2.0.1/24 dev br-lan");
    wanb.obtain_address();
    checked.is_well();

    for (role, code) in [("backup", "standby"), ("off", "switched_off")] {
        set(checked.agent, "role", role);
        until("the role is told, and nothing is wrong", LIMIT, || {
            let (exit, report) = checked.agent.check();
            (exit == 0 && report["uplinks"][1]["reason"] == code).then_some(())
        });
    }
    set(checked.agent, "role", "bond");
    set(checked.agent, "quota", "1K");
    checked.names("quota_reached");
    set(checked.agent, "quota", "0");
    checked.is_well();

    configure(checked.agent, &server_option("address", &SERVER_V6.to_string()));
    until("all is well over IPv6, too", LIMIT, || {
        let (exit, report) = checked.agent.check();
        let text = report["findings"].to_string();
        (exit == 0 && text.contains("gateway fe80::1")).then_some(())
    });
    configure(checked.agent, &server_option("address", &SERVER_V4.to_string()));
    checked.is_well();

    server.stop();
    checked.names("server_down");
    server.restart();
    checked.is_well();
    let stranger = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE=";
    configure(checked.agent, &server_option("public_key", stranger));
    checked.names("wrong_key");
    agent.stop();
    let (exit, report) = agent.check();
    assert_eq!((exit, &report["agent_running"]), (1, &false.into()), "{report:#}");
    assert_eq!(report["uplinks"][1]["reason"], "agent_not_running");
}

/// Waits until a monitor has printed an object with all the members of `wanted` after `from` bytes
/// of its output.
#[track_caller]
fn printed(monitor: &Process, from: usize, wanted: Value) {
    let wanted = wanted.as_object().expect("an object").clone();
    until(&format!("{wanted:?} in:\n{}", monitor.output()), LIMIT, || {
        let output = monitor.output();
        let lines = output.get(from..)?.lines();
        let mut events = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events
            .any(|event| wanted.iter().all(|(name, value)| event.get(name) == Some(value)))
            .then_some(())
    });
}

#[test]
fn what_happens_is_told_as_it_happens() {
    let lab = Lab::two_uplinks("monitor");
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let mut monitor = agent.monitor("monitor");
    printed(&monitor, 0, json!({ "event": "uplink", "uplink": "wan", "used_as": "active" }));
    printed(&monitor, 0, json!({ "event": "server", "server": "vps", "reachable": true }));

    let from = monitor.output().len();
    lab.uplink(1).carrier_down();
    printed(&monitor, from, json!({ "event": "uplink", "uplink": "wanb", "used_as": "unused" }));
    printed(&monitor, from, json!({ "event": "subflow", "uplink": "wanb", "change": "closed" }));
    let from = monitor.output().len();
    lab.uplink(1).carrier_up();
    printed(&monitor, from, json!({ "event": "uplink", "uplink": "wanb", "used_as": "active" }));
    printed(&monitor, from, json!({ "event": "subflow", "uplink": "wanb", "change": "joined" }));

    let mut other = agent.monitor("other");
    printed(&other, 0, json!({ "event": "session", "server": "vps" }));
    other.signal(Signal::INT);
    assert_eq!(other.wait(LIMIT).and_then(|status| status.code()), Some(0));
    agent.stop();
    assert_eq!(monitor.wait(LIMIT).and_then(|status| status.code()), Some(69));
    assert!(monitor.output().contains("the agent has stopped"));
}
