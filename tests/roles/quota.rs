//! A monthly quota that is reached while data flows, and what is left of it after a crash.

use std::fs;
use std::time::Instant;

use serde_json::Value;

use super::lab::traffic::{Kind, TrafficServer, Transfer, open_idle};
use super::lab::{AgentProgram, Lab, ServerProgram, TARGET_V4, UplinkSpec, joining_uploads};
use super::{carries, goes_on, key_stroke, stands_by, wait_load};

/// The quota of `wanb`.
const QUOTA: u64 = 20_000_000;

/// What the status says of `wanb`.
fn reason(status: &Value) -> &str {
    status["uplinks"][1]["reason"].as_str().unwrap_or_default()
}

fn used(status: &Value) -> u64 {
    status["uplinks"][1]["usage"]["period_bytes"].as_u64().unwrap_or_default()
}

fn is_backup(status: &Value) -> bool {
    status["uplinks"][1]["in_use"] == false && reason(status).contains("): backup until 1 ")
}

/// Puts other options of `wanb` in force.
fn configure(agent: &mut AgentProgram, options: &str) {
    let text = fs::read_to_string(agent.config()).expect("read the configuration");
    let (before, _) = text.split_once("\n# quota\n").expect("the section is there");
    let section = format!("{before}\n# quota\nconfig uplink 'wanb'\n{options}");
    fs::write(agent.config(), section).expect("write the configuration");
}

#[test]
fn a_quota_demotes_live_connections_without_a_reset_and_outlives_the_agent() {
    let lab = Lab::builder("quota")
        .uplink(UplinkSpec::new("wan", 60))
        .uplink(UplinkSpec::new("wanb", 40));
    joining_uploads(lab, exceed_quota);
}

fn exceed_quota(lab: &Lab) {
    let wanb = lab.uplink(1);
    let server = ServerProgram::start(lab);
    let mut agent = AgentProgram::paired(lab, &server, "\n# quota\n");
    configure(&mut agent, &format!("\toption quota '{QUOTA}'\n"));
    agent.launch();
    let first = agent.wait_status("it answers", |_| true);
    let usage = &first["uplinks"][1]["usage"];
    assert!(usage["quota_bytes"] == QUOTA && usage["until"].is_string(), "{usage}");
    agent.wait_ready();
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let shell = open_idle(&dialer, 1).expect("connect").remove(0);
    let transfers = [
        Transfer::download(&dialer, Transfer::ENDLESS).expect("connect"),
        Transfer::upload(&target, &dialer, Transfer::ENDLESS).expect("connect"),
    ];
    let status = agent.wait_status("the quota is reached", is_backup);
    wait_load("quota reached", wanb, Instant::now(), stands_by);
    assert!(reason(&status).starts_with("quota of 20.0 MB reached (2"), "{}", reason(&status));
    goes_on(&transfers);
    key_stroke(&shell);
    let told = agent.set_role("wanb", "bond").expect("a role");
    assert!(told.contains("as configured; not in force: quota of 20.0 MB"), "{told}");

    configure(&mut agent, "\toption quota '1G'\n");
    agent.reload();
    wait_load("a higher quota", wanb, Instant::now(), carries);
    let routes = lab.router.ip("route show dev wanb");
    configure(&mut agent, &format!("\toption quota '{QUOTA}'\n\toption quota_action 'off'\n"));
    agent.reload();
    wait_load("switched off", wanb, Instant::now(), stands_by);
    agent.wait_status("it is unused", |status| {
        let wanb = &status["uplinks"][1];
        wanb["state"] == "unused" && wanb["endpoints"].as_array().is_some_and(Vec::is_empty)
    });
    assert_eq!(lab.router.ip("route show dev wanb"), routes);
    goes_on(&transfers);
    key_stroke(&shell);
    for transfer in transfers {
        assert_eq!(transfer.stop().corrupt_at, None);
    }

    configure(&mut agent, &format!("\toption quota '{QUOTA}'\n"));
    let before = used(&agent.status().expect("status"));
    assert!(before > QUOTA);
    agent.kill();
    agent.restart();
    let status = agent.wait_status("the quota is known after SIGKILL", is_backup);
    assert!(used(&status) >= before, "{} of {before}", used(&status));

    // What a power cut leaves: memory is empty, and a part of a file may be on flash.
    agent.kill();
    fs::remove_file(agent.run_dir().join("usage.json")).expect("what a reboot does");
    agent.restart();
    agent.wait_status("the quota is known after a reboot", is_backup);
    agent.stop();
    for directory in [agent.run_dir(), agent.key_dir()] {
        fs::write(directory.join("usage.json"), "{\"boot\":").expect("write");
    }
    agent.restart();
    let status = agent.wait_status("it counts anew", |status| used(status) > 0);
    assert!(used(&status) < QUOTA && !is_backup(&status));
    assert!(agent.key_dir().join("usage.json.bad").exists());
    assert!(agent.process().output().contains("usage.json: damaged"), "and says so");
}
