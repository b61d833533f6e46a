//! Connections that have lost their last subflow.

use std::time::{Duration, Instant};

use super::lab::traffic::{Kind, TrafficServer, Transfer};
use super::lab::{AgentProgram, Lab, ServerProgram, TARGET_V4, UplinkSpec, wait_for};
use super::{LIMIT, SOME, assert_goes_on, assert_intact};

/// The network answers for the server.
const REFUSED: &str = "reject with tcp reset";
/// It says nothing.
const SWALLOWED: &str = "drop";

/// Lets no subflow join.
fn hinder(lab: &Lab, verdict: &str) {
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

/// A download goes on when all that hinders it is over.
fn outlive(lab: &Lab, joins: &str, hindrances: impl FnOnce(&mut AgentProgram)) {
    let server = ServerProgram::start(lab);
    let mut agent = AgentProgram::start(lab, &server);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let transfer = Transfer::download(&dialer, Transfer::ENDLESS).expect("connect");
    assert_goes_on(&transfer);
    hinder(lab, joins);
    hindrances(&mut agent);
    let begun = Instant::now();
    // The waits between attempts double.
    transfer.wait_bytes(transfer.report().bytes + SOME, 3 * LIMIT);
    println!("data flows again after {:?}", begun.elapsed());
    assert_intact(transfer);
}

#[test]
fn one_whose_joins_are_refused_asks_again() {
    let lab = Lab::two_uplinks("joins-refused");
    outlive(&lab, REFUSED, |agent| {
        lab.uplinks().iter().for_each(|uplink| uplink.carrier_down());
        agent.wait_status("the loss is noticed", |status| status["state"] == "offline");
        lab.uplinks().iter().for_each(|uplink| uplink.carrier_up());
        agent.wait_ready();
        let mut asked = (refused(&lab), Instant::now());
        let settled = wait_for(LIMIT, || {
            let count = refused(&lab);
            if count > asked.0 {
                asked = (count, Instant::now());
            }
            (asked.0 > 0 && asked.1.elapsed() > Duration::from_secs(1)).then_some(())
        });
        assert!(settled.is_some(), "{} joins refused, and still more", asked.0);
        allow(&lab);
    });
}

/// The kernel would send RM_ADDR for the address that goes, has no subflow to send it over, keeps it for the
/// next one, and thereby has the server close just that.
#[test]
fn one_whose_only_uplink_went_before_it_had_joined_is_joined() {
    let lab = Lab::builder("joins-swallowed").uplink(UplinkSpec::new("wan", 40)).build();
    let wan = lab.uplink(0);
    outlive(&lab, SWALLOWED, |agent| {
        let mut set_carrier = |carrier| {
            if carrier {
                wan.carrier_up()
            } else {
                wan.carrier_down()
            }
            agent.wait_status("the uplink is as its carrier", |status| {
                status["uplinks"][0]["in_use"] == carrier
            });
        };
        [false, true, false, true, false].into_iter().for_each(&mut set_carrier);
        allow(&lab);
        wan.carrier_up();
    });
}
