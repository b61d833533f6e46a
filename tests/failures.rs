//! Whatever fails on the way: what the person downloading, uploading, typing and talking notices.

mod lab;

use std::time::Duration;

use lab::failures::{FAILURES, Failure, Pauses, Users};
use lab::flapping::FLAPPINGS;
use lab::idle::Idle;
use lab::{AgentProgram, Lab, ServerProgram, two_of_three};

/// The longest pause of a download or an upload when a path fails.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest pause of a UDP flow of 50 packets a second.
const UDP_PAUSE: Duration = Duration::from_millis(1500);
/// How long a key stroke may take: a retransmission timeout, and one more.
const KEY_LIMIT: Duration = Duration::from_millis(1500);
/// The share of the other uplink's goodput that is left beside one that flaps.
const FLAPPING_SHARE: f64 = 0.9;
/// Bytes a second of IP packets on an idle uplink, both directions added.
const IDLE_BYTES: f64 = 150.0;

/// Whether all pauses are within their limits.
fn unnoticed(pauses: &Pauses, failure: &Failure) -> Result<(), String> {
    let limits = Pauses { download: PAUSE, upload: PAUSE, key: KEY_LIMIT, udp: UDP_PAUSE };
    if pauses.are_within(&limits) { Ok(()) } else { Err(format!("{}: {pauses}", failure.name)) }
}

#[test]
fn nobody_notices_a_failure_of_the_faster_uplink() {
    let lab = Lab::two_uplinks("failures");
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let mut users = Users::start(&lab);
    let mut wrong = Vec::new();
    println!("{:<16} {:>9} {:>9} {:>9} {:>9}", "", "download", "upload", "key", "UDP");
    // Those of a black hole both ways are measured in 'failover'.
    for failure in FAILURES.iter().filter(|failure| failure.name != "black hole") {
        // An agent that knows the uplink as one that flaps would hold it down for ever longer.
        assert!(agent.stop().success());
        agent.restart();
        users.log_in();
        let noticed = two_of_three(|| {
            let pauses = users.notice(failure, &mut agent);
            println!("{:<16} {pauses}", failure.name);
            unnoticed(&pauses, failure)
        });
        wrong.extend(noticed.err());
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", agent.status_table());
}

#[test]
fn an_uplink_that_flaps_takes_nothing_from_the_other_one() {
    let lab = Lab::two_uplinks("flapping");
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let mut users = Users::start(&lab);
    let flapping = &FLAPPINGS[0];
    let time = Duration::from_secs(12);
    let nothing_taken = two_of_three(|| {
        // It would hold down an uplink that has flapped before.
        assert!(agent.stop().success());
        agent.restart();
        users.log_in();
        let flapped = flapping.measure(true, time, &lab, &mut agent, &users);
        println!("{}: {flapped}", flapping.name);
        if flapped.share() >= FLAPPING_SHARE { Ok(()) } else { Err(flapped) }
    });
    nothing_taken.unwrap_or_else(|flapped| panic!("{flapped}\n{}", agent.status_table()));
}

#[test]
fn an_idle_uplink_carries_next_to_nothing() {
    let lab = Lab::two_uplinks("idle");
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let next_to_nothing = two_of_three(|| {
        let idle = Idle::watch(Duration::from_secs(10), &lab, &mut agent);
        println!("{idle:?}");
        if idle.bytes.iter().all(|bytes| *bytes < IDLE_BYTES) { Ok(()) } else { Err(idle) }
    });
    next_to_nothing.unwrap_or_else(|idle| panic!("{idle:?} bytes a second"));
}
