//! Connections that have lost their last subflow.

use std::time::{Duration, Instant};

use super::lab::traffic::{Kind, TrafficServer, Transfer};
use super::lab::{AgentProgram, Lab, ServerProgram, TARGET_V4, UplinkSpec, wait_for};
use super::{LIMIT, SOME, assert_goes_on, assert_intact};

/// How a network treats subflows that want to join.
enum Joins {
    /// It answers for the server.
    Refused,
    /// It says nothing.
    Swallowed,
}

fn hinder(lab: &Lab, joins: &Joins) {
    let verdict = match joins {
        Joins::Refused => "reject with tcp reset",
        Joins::Swallowed => "drop",
    };
    lab.inet.nft(&format!(
        "table inet joins {{
  chain forward {{
    type filter hook forward priority filter;
    tcp flags syn tcp option mptcp subtype 1 counter {verdict}
  }}
}}"
    ));
}

fn allow(lab: &Lab) {
    lab.inet.nft("delete table inet joins");
}

/// How many packets were hindered.
fn refused(lab: &Lab) -> u64 {
    let table = lab.inet.run("nft", &["list", "table", "inet", "joins"]);
    let count = table.split("counter packets ").nth(1).and_then(|rest| rest.split(' ').next());
    count.and_then(|count| count.parse().ok()).expect("a counter")
}

#[test]
fn one_whose_joins_are_refused_asks_again() {
    let lab = Lab::two_uplinks("joins-refused");
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let transfer = Transfer::download(&dialer, Transfer::ENDLESS).expect("connect");
    assert_goes_on(&transfer);
    hinder(&lab, &Joins::Refused);
    lab.uplinks().iter().for_each(|uplink| uplink.carrier_down());
    agent.wait_status("the loss is noticed", |status| status["state"] == "offline");
    lab.uplinks().iter().for_each(|uplink| uplink.carrier_up());
    agent.wait_ready();
    let mut asked = (refused(&lab), Instant::now());
    let settled = wait_for(LIMIT, || {
        if refused(&lab) > asked.0 {
            asked = (refused(&lab), Instant::now());
        }
        (asked.0 > 0 && asked.1.elapsed() > Duration::from_secs(1)).then_some(())
    });
    assert!(settled.is_some(), "{} joins refused, and still more", asked.0);
    allow(&lab);
    // The waits double.
    transfer.wait_bytes(transfer.report().bytes + SOME, 3 * LIMIT);
    assert_intact(transfer);
}

/// The kernel would send RM_ADDR for the address that goes, has no subflow to send it over, keeps it for the
/// next one, and thereby has the server close just that.
#[test]
fn one_whose_only_uplink_went_before_it_had_joined_is_joined() {
    let lab = Lab::builder("joins-swallowed").uplink(UplinkSpec::new("wan", 40)).build();
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let transfer = Transfer::download(&dialer, Transfer::ENDLESS).expect("connect");
    assert_goes_on(&transfer);
    hinder(&lab, &Joins::Swallowed);
    for carrier in [false, true, false, true] {
        if carrier {
            lab.uplink(0).carrier_up()
        } else {
            lab.uplink(0).carrier_down()
        }
        agent.wait_status("the uplink is as its carrier", |status| {
            status["uplinks"][0]["in_use"] == carrier
        });
    }
    lab.uplink(0).carrier_down();
    agent.wait_status("the uplink is gone", |status| status["uplinks"][0]["in_use"] == false);
    allow(&lab);
    lab.uplink(0).carrier_up();
    let begun = Instant::now();
    transfer.wait_bytes(transfer.report().bytes + SOME, 3 * LIMIT);
    println!("data flows again after {:?}", begun.elapsed());
    assert_intact(transfer);
}
