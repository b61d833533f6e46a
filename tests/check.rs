//! `mptcp-bond check` names what keeps an uplink from carrying traffic, whatever it is.

mod lab;

use std::fs;
use std::time::Duration;

use lab::{AgentProgram, Lab, ServerProgram, Strip, Uplink, until, wait_for};
use serde_json::Value;

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
            let failed = failed(&report, "uplink wanb");
            last = report;
            (named && failed.len() == 1).then(|| failed[0].clone())
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

/// Whatever is not well, a line each.
fn flaws(report: &Value) -> Vec<String> {
    let findings = report["findings"].as_array().into_iter().flatten();
    findings.filter(|finding| finding["result"] != "ok").map(Value::to_string).collect()
}

/// What failed of a subject, and what to do about it.
fn failed(report: &Value, subject: &str) -> Vec<String> {
    let findings = report["findings"].as_array().expect("findings");
    findings
        .iter()
        .filter(|finding| finding["subject"] == subject && finding["result"] == "failed")
        .map(|finding| format!("{} -> {}", finding["found"], finding["advice"]))
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
    let lab = Lab::two_uplinks("check-network");
    let quick = std::env::var_os("QUICK").is_some();
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let mut checked = Checked { agent: &mut agent };
    let wanb = lab.uplink(1);
    checked.is_well();

    if !quick {
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
    }

    wanb.isp().ip("route delete default");
    checked.names("no_route");
    wanb.isp().ip("route add default via 203.0.113.5");

    wanb.isp().ip("link set cpe arp off");
    lab.router.ip("neigh flush dev wanb");
    checked.names("gateway_silent");
    wanb.isp().ip("link set cpe arp on");
    checked.is_well();
}

/// Changes the agent's configuration and has it read.
fn reconfigure(agent: &mut AgentProgram, change: impl FnOnce(&str) -> String) {
    let text = fs::read_to_string(agent.config()).expect("read the configuration");
    fs::write(agent.config(), change(&text)).expect("write the configuration");
    agent.reload();
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
        let uci = format!("\nconfig uplink 'wanb'\n\toption role '{role}'\n");
        reconfigure(checked.agent, |text| format!("{text}{uci}"));
        until("the role is told, and nothing is wrong", LIMIT, || {
            let (exit, report) = checked.agent.check();
            (exit == 0 && report["uplinks"][1]["reason"] == code).then_some(())
        });
    }
    let bond = "\nconfig uplink 'wanb'\n\toption role 'bond'\n";
    reconfigure(checked.agent, |text| format!("{text}{bond}"));
    checked.is_well();

    server.stop();
    checked.names("server_down");
    server.restart();
    checked.is_well();
    let stranger = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE=";
    let other_key = format!("\nconfig server 'vps'\n\toption public_key '{stranger}'\n");
    reconfigure(checked.agent, |text| format!("{text}{other_key}"));
    checked.names("wrong_key");
    agent.stop();
    let (exit, report) = agent.check();
    assert_eq!((exit, &report["agent_running"]), (1, &false.into()), "{report:#}");
    assert_eq!(report["uplinks"][1]["reason"], "agent_not_running");
}
