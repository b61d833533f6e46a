//! Others delete what is ours while data flows.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use super::lab::traffic::{Kind, TrafficServer, Transfer};
use super::lab::{
    AgentProgram, Lab, NetworkState, ServerProgram, TARGET_V4, TARGET_V6, UplinkSpec,
    joining_uploads, until, wait_for,
};
use super::{LIMIT, assert_goes_on, assert_intact, assert_same};

/// Everything is back within this time, also beside other tests; alone it takes less than half a second. The
/// agent's own looks, 15 seconds apart, would be too late.
const BACK: Duration = Duration::from_secs(5);

/// What others do, as shell commands, and what shows it. netifd flushes all rules and makes its own
/// anew; `firewall stop` flushes all tables of nft.
const DEEDS: [(&str, &str); 9] = [
    (
        "ip rule flush
         ip rule add priority 32766 lookup main
         ip rule add priority 32767 lookup default",
        "ip rule",
    ),
    ("ip -6 rule flush; ip -6 rule add priority 32766 lookup main", "ip -6 rule"),
    ("ip route flush table 5001", "ip route show table 5001"),
    ("ip -6 route flush table 5002", "ip -6 route show table 5002"),
    ("ip mptcp endpoint flush", "ip mptcp endpoint"),
    ("ip mptcp endpoint delete id 200", "ip mptcp endpoint"),
    ("ip mptcp limits set subflows 0 add_addr_accepted 0", "ip mptcp limits"),
    ("nft delete table inet mptcp_bond", "nft list tables"),
    ("nft flush ruleset; nft -f \"$FIREWALL\"", "nft list tables"),
];

/// Waits until everything is as it was: beside other suites an uplink's probes may starve, and the uplink be
/// out of use for a while.
#[track_caller]
fn wait_same(what: &str, running: &NetworkState, lab: &Lab) {
    let now = || NetworkState::objects(&lab.router);
    let same = || running.difference(&now()).is_empty().then_some(());
    if wait_for(3 * LIMIT, same).is_none() {
        assert_same(what, running, &now());
    }
}

#[test]
fn what_others_delete_is_back_at_once() {
    // What is untunnelled stays on the first, also while its queue is full.
    let far = UplinkSpec::new("wanb", 50).delay(Duration::from_millis(30));
    let lab =
        Lab::builder("interference").uplink(UplinkSpec::new("wan", 100).distant()).uplink(far);
    joining_uploads(lab, delete_as_others);
}

fn delete_as_others(lab: &Lab) {
    let server = ServerProgram::start(lab);
    let mut agent = AgentProgram::start(lab, &server);
    let firewall = lab.work().join("firewall.nft");
    std::fs::write(&firewall, lab.router.run("nft", &["list", "table", "inet", "fw4"])).unwrap();
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let [v4, v6] = [TARGET_V4.into(), TARGET_V6.into()]
        .map(|address: std::net::IpAddr| target.dialer(&lab.lan, Kind::Tcp, address));
    let running = NetworkState::objects(&lab.router);
    let transfers = [
        Transfer::download(&v4, Transfer::ENDLESS).expect("connect"),
        Transfer::download(&v6, Transfer::ENDLESS).expect("connect"),
        Transfer::upload(&target, &v4, Transfer::ENDLESS).expect("connect"),
        Transfer::upload(&target, &v6, Transfer::ENDLESS).expect("connect"),
    ];
    transfers.iter().for_each(assert_goes_on);
    for (deed, show) in DEEDS {
        let shell = |script: &str| {
            let script = format!("FIREWALL={}\n{script}", firewall.display());
            let output = lab.router.run("sh", &["-c", &script]);
            output.lines().map(str::to_owned).collect::<BTreeSet<String>>()
        };
        wait_same("before", &running, lab);
        let before = shell(show);
        let with_shown = format!("set -e\n{deed}\n{show}");
        let damaged = shell(&with_shown);
        let done = Instant::now();
        until(&format!("all is back after: {deed}"), BACK, || {
            (shell(show) == before).then_some(())
        });
        let was_seen = if damaged == before { "back before seen" } else { "seen missing" };
        println!("{:4} ms, {was_seen}: {deed}", done.elapsed().as_millis());
        wait_same(deed, &running, lab);
        for transfer in &transfers {
            assert!(!transfer.is_finished(), "a transfer was cut off by: {deed}");
            assert_goes_on(transfer);
        }
    }
    transfers.into_iter().for_each(assert_intact);
    assert!(agent.wait_ready()["failures"].as_array().is_some_and(Vec::is_empty));
}

#[test]
fn another_path_manager_is_named() {
    let lab = Lab::two_uplinks("other-manager");
    let program = lab.work().join("mptcpd");
    std::fs::copy("/bin/sleep", &program).expect("copy a program");
    let mut command = Command::new(&program);
    command.arg("60");
    let mut other = lab.spawn(&lab.router, "mptcpd", command);
    // One elsewhere does not matter.
    let mut command = Command::new(&program);
    command.arg("60");
    let _elsewhere = lab.spawn(&lab.lan, "mptcpd-elsewhere", command);

    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let named = |managers: &[&str]| {
        let managers = serde_json::json!(managers);
        move |status: &serde_json::Value| status["kernel"]["other_path_managers"] == managers
    };
    agent.wait_status("the other path manager is named", named(&["mptcpd"]));
    assert!(agent.process().output().contains("mptcpd is running"), "and logged");
    other.kill();
    until("it is named no more", 3 * super::LIMIT, || agent.status().filter(named(&[])));
}
