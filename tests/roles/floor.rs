//! An uplink far behind the other one stands by unless it makes the bond faster.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::lab::traffic::{Kind, TrafficServer, Transfer};
use super::lab::{AgentProgram, Direction, Lab, ServerProgram, TARGET_V4, UplinkSpec, until};
use super::{load, stands_by};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// The share of an uplink's rate that is payload.
const PAYLOAD: f64 = 0.93;
/// Longer than a trial.
const TRIED: Duration = Duration::from_secs(7);
/// How long a transfer may take to have its full rate.
const LIMIT: Duration = Duration::from_secs(20);

/// Two uplinks of so many Mbit/s, with round trips of 10 and 300 ms.
fn near_and_far(near: u32, far: u32) -> Lab {
    Lab::builder("floor")
        .uplink(UplinkSpec::new("wan", near).delay(5 * MS))
        .uplink(UplinkSpec::new("wanb", far).delay(150 * MS))
        .build()
}

/// Why the far uplink is used or stands by, and whether it is used.
fn far(status: &Value) -> (&str, bool) {
    let far = &status["uplinks"][1];
    (far["reason"].as_str().unwrap_or_default(), far["in_use"] == true)
}

fn is_untried(status: &Value) -> bool {
    let (reason, in_use) = far(status);
    reason.starts_with("may make the bond slower: ") && !in_use
}

/// Waits until a transfer's goodput of the last two seconds is more than so many Mbit/s.
#[track_caller]
fn wait_goodput(transfer: &Transfer, least: f64) {
    until("the download has its full rate", LIMIT, || {
        let now = Instant::now();
        let report = transfer.report();
        let goodput = report.goodput_between(report.at(now) - 2 * SECOND, report.at(now));
        (goodput > least).then_some(())
    });
}

/// A download while the far uplink is tried for the first time, and what becomes of both.
#[track_caller]
fn at_its_trial(near: u32, far_rate: u32, watch: impl FnOnce(&Lab, &mut AgentProgram, &Transfer)) {
    let lab = near_and_far(near, far_rate);
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    agent.wait_status("the far uplink stands by untried", is_untried);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let download = Transfer::download(&dialer, Transfer::ENDLESS).expect("connect");
    agent.wait_status("the far uplink is tried", |status| far(status).1);
    watch(&lab, &mut agent, &download);
    assert_eq!(download.stop().corrupt_at, None);
}

#[test]
fn a_far_uplink_that_would_slow_a_download_down_stands_by() {
    at_its_trial(40, 3, |lab, agent, download| {
        agent.wait_status("the far uplink stands by after the trial", |status| {
            let (reason, in_use) = far(status);
            reason.starts_with("makes the bond no faster: ") && !in_use
        });
        std::thread::sleep(2 * SECOND);
        wait_goodput(download, 0.9 * PAYLOAD * 40.0);
        assert!(stands_by(load(lab.uplink(1))), "the far uplink still carries data");
    });
}

#[test]
fn a_far_uplink_that_makes_a_download_faster_stays() {
    at_its_trial(5, 20, |_, agent, download| {
        std::thread::sleep(TRIED);
        wait_goodput(download, 1.5 * 5.0);
        assert_eq!(far(&agent.status().expect("status")), ("probes answered", true));
    });
}

#[test]
fn a_thin_uplink_that_loses_packets_is_put_to_the_test() {
    let lab = Lab::builder("floor")
        .uplink(UplinkSpec::new("wan", 60).delay(15 * MS))
        .uplink(UplinkSpec::new("wanb", 5).delay(30 * MS))
        .build();
    lab.uplink(1).loss(Direction::Both, 2.0);
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let download = Transfer::download(&dialer, Transfer::ENDLESS).expect("connect");
    agent.wait_status("the others are measured without the lossy uplink", |status| {
        let (reason, in_use) = far(status);
        reason.starts_with("may make the bond slower: it carries little") && !in_use
    });
    agent.wait_status("the lossy uplink is tried", |status| far(status).1);
    wait_goodput(&download, 0.8 * PAYLOAD * 60.0);
    assert_eq!(download.stop().corrupt_at, None);
}
