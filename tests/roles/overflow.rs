//! An overflow uplink comes in when the bond uplink is saturated, and stands by again afterwards.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::lab::traffic::{Kind, TrafficServer, Transfer, open_idle};
use super::lab::{AgentProgram, Lab, ServerProgram, TARGET_V4, UplinkSpec};
use super::{key_stroke, load, stands_by};

/// An overflow uplink must not carry anything for so long before and after.
const QUIET: Duration = Duration::from_secs(1);
/// A trial that showed nothing would have ended after this time.
const TRIED: Duration = Duration::from_secs(8);

fn lte(status: &Value) -> (&str, bool) {
    let lte = &status["uplinks"][1];
    (lte["reason"].as_str().unwrap_or_default(), lte["in_use"] == true)
}

#[test]
fn an_overflow_uplink_is_used_while_the_bond_uplink_is_saturated() {
    let lab = Lab::builder("overflow")
        .uplink(UplinkSpec::new("wan", 40))
        .uplink(UplinkSpec::new("lte", 30))
        .build();
    let server = ServerProgram::start(&lab);
    let uci = "config uplink 'lte'\n\toption role 'overflow'\n";
    let mut agent = AgentProgram::start_with(&lab, &server, uci);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let shell = open_idle(&dialer, 1).expect("connect").remove(0);
    let download = Transfer::download(&dialer, Transfer::ENDLESS).expect("connect");
    let began = Instant::now();
    agent.wait_status("the bond uplink is saturated", |status| {
        lte(status) == ("the bond uplinks are saturated", true)
    });
    println!("in use after {:.1?}", began.elapsed());
    let in_use = download.report().at(Instant::now());
    std::thread::sleep(TRIED);
    let report = download.stop();
    let (before, after) = (
        report.goodput_between(Duration::ZERO, in_use),
        report.goodput_between(in_use + QUIET, in_use + TRIED),
    );
    println!("{before:.1} Mbit/s before, {after:.1} Mbit/s after");
    assert!(lte(&agent.status().expect("status")).1, "it helps, and yet is not used any more");
    assert!(before < 40.0 && after > 55.0, "{before:.1} and {after:.1} Mbit/s");
    assert_eq!(report.corrupt_at, None);
    let ended = Instant::now();
    agent.wait_status("it stands by", |status| {
        lte(status) == ("stands by until the bond uplinks are saturated", false)
    });
    println!("released after {:.1?}", ended.elapsed());
    key_stroke(&shell);
    let wan_alone = Transfer::download(&dialer, Transfer::ENDLESS).expect("connect");
    wan_alone.wait_bytes(1_000_000, super::LIMIT);
    assert!(stands_by(load(lab.uplink(1))), "new connections leave it alone, too");
    assert_eq!(wan_alone.stop().corrupt_at, None);
}
