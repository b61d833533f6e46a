//! `mptcp-bond uplink NAME ROLE` while data flows.

use std::time::Instant;

use super::lab::traffic::{Kind, TrafficServer, Transfer, open_idle};
use super::lab::{AgentProgram, Lab, ServerProgram, TARGET_V4, UplinkSpec, joining_uploads};
use super::{carries, goes_on, key_stroke, stands_by, wait_load};

/// Transfers in each direction at once.
const TRANSFERS: usize = 8;

/// Uplinks and the roles they get, one after the other. Each is switched off once, so that the first
/// subflow of every connection is another than it began with, and demoted after that.
const CHANGES: [(usize, &str); 11] = [
    (1, "backup"),
    (1, "bond"),
    (0, "backup"),
    (0, "default"),
    (0, "off"),
    (0, "bond"),
    (1, "off"),
    (1, "bond"),
    (0, "backup"),
    (0, "bond"),
    (1, "overflow"),
];

#[test]
fn another_role_moves_live_connections_without_a_reset() {
    let lab = Lab::builder("role-by-hand")
        .uplink(UplinkSpec::new("wan", 60))
        .uplink(UplinkSpec::new("wanb", 40));
    joining_uploads(lab, change_roles);
}

fn change_roles(lab: &Lab) {
    let server = ServerProgram::start(lab);
    let mut agent = AgentProgram::start(lab, &server);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let shell = open_idle(&dialer, 1).expect("connect").remove(0);
    let transfers: Vec<Transfer> = (0..TRANSFERS)
        .flat_map(|_| {
            let down = Transfer::download(&dialer, Transfer::ENDLESS);
            [down, Transfer::upload(&target, &dialer, Transfer::ENDLESS)]
        })
        .map(|transfer| transfer.expect("connect"))
        .collect();
    lab.uplinks().iter().for_each(|uplink| {
        wait_load("at first", uplink, Instant::now(), carries);
    });
    for (index, role) in CHANGES {
        let uplink = lab.uplink(index);
        let start = Instant::now();
        agent.set_role(uplink.device(), role).expect("another role");
        let condition = if ["bond", "default"].contains(&role) { carries } else { stands_by };
        let time = wait_load(role, uplink, start, condition);
        println!("{} {role}: {time:.2?}", uplink.device());
        key_stroke(&shell);
        goes_on(&transfers);
    }
    for transfer in transfers {
        assert_eq!(transfer.stop().corrupt_at, None);
    }

    let told = agent.set_role("wanb", "backup").expect("another role");
    assert_eq!(told, "wanb: role backup until the agent restarts; configured: bond");
    let table = agent.status_table();
    assert!(table.contains("role backup, set by hand; configured: bond"), "{table}");
    let error = agent.set_role("wanc", "bond").expect_err("there is none");
    assert_eq!(error, "mptcp-bond: there is no uplink 'wanc'; configured: wan, wanb");
    agent.reload();
    agent.wait_status("reloaded", |status| status["events"].to_string().contains("reloaded"));
    agent.wait_status("its role stays", |status| status["uplinks"][1]["role_set"] == "backup");
    agent.stop();
    agent.restart();
    agent.wait_status("its role is the configured one", |status| {
        status["uplinks"][1]["role_set"].is_null() && status["uplinks"][1]["in_use"] == true
    });
}

#[test]
fn an_uplink_stands_by_though_the_server_is_not_told_by_mp_prio() {
    let lab = Lab::builder("prio-lost")
        .uplink(UplinkSpec::new("wan", 60))
        .uplink(UplinkSpec::new("wanb", 40))
        .build();
    let server = ServerProgram::start(&lab);
    let agent = AgentProgram::start(&lab, &server);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let download = Transfer::download(&dialer, Transfer::ENDLESS).expect("connect");
    let wanb = lab.uplink(1);
    wait_load("at first", wanb, Instant::now(), |(rx, _)| rx > 0.3);

    wanb.drop_priority();
    let start = Instant::now();
    agent.set_role("wanb", "backup").expect("another role");
    let time = wait_load("backup", wanb, start, stands_by);
    println!("without MP_PRIO: {time:.2?}");
    goes_on(&[download]);
}
