//! What is found out about the server.

use super::*;
use crate::tunnel::hello::Refusal;

/// What the check says of the server when all uplinks meet the same.
fn server(change: impl Fn(&mut Trial)) -> Report {
    let mut facts = well();
    facts.server.as_mut().unwrap().connected = false;
    facts.uplinks.iter_mut().for_each(|uplink| change(uplink.trial.as_mut().unwrap()));
    judge(&facts)
}

#[test]
fn what_the_server_lacks_is_the_reason_of_every_uplink() {
    let made = |reply: Reply| Contact::Made { mptcp: true, reply, rtt: Duration::ZERO };
    for (code, contact) in [
        ("wrong_key", made(Reply::HungUp)),
        ("wrong_key", made(Reply::Refused(Refusal::UnknownKey))),
        ("server_busy", made(Reply::Refused(Refusal::Busy))),
        ("server_mute", made(Reply::Silent)),
        ("server_down", Contact::Refused),
        ("server_down", Contact::Unanswered { plain: false }),
        ("no_session", made(Reply::Welcome("mptcp-bond 1".into()))),
    ] {
        let report = server(|trial| {
            trial.contact = contact.clone();
            trial.datagrams = Datagrams::Untried;
        });
        let reasons: Vec<_> = report.uplinks.iter().map(|uplink| &uplink.reason).collect();
        assert_eq!(reasons, [&Some(code.into()); 2], "{}", render(&report, WIDE));
    }
}

#[test]
fn a_lost_server_is_told_from_dead_uplinks() {
    let reasons = |internet: [Option<bool>; 2]| {
        let mut facts = well();
        facts.server.as_mut().unwrap().connected = false;
        for (uplink, internet) in facts.uplinks.iter_mut().zip(internet) {
            let trial = uplink.trial.as_mut().unwrap();
            trial.contact = Contact::Unanswered { plain: false };
            trial.datagrams = Datagrams::Unanswered;
            uplink.internet = internet;
        }
        let report = judge(&facts);
        report.uplinks.into_iter().filter_map(|uplink| uplink.reason).collect::<Vec<_>>()
    };
    assert_eq!(reasons([Some(false), Some(true)]), ["unanswered", "server_down"]);
    assert_eq!(reasons([Some(false), Some(false)]), ["unanswered", "unanswered"]);
    assert_eq!(reasons([None, None]), ["server_down", "server_down"]);
}

#[test]
fn a_server_without_room_for_subflows_is_named() {
    let mut facts = well();
    let limits = facts.server.as_mut().unwrap().limits.as_mut().unwrap();
    limits.subflows = Some(0);
    assert_eq!(judge(&facts).count(Grade::Warning), 1, "those that are there stay");
    facts.uplinks[1].trial.as_mut().unwrap().join = Join::Rejected;
    let report = judge(&facts);
    assert_eq!(report.uplinks[1].reason, Some("limit_reached".into()));
    let limits = facts.server.as_mut().unwrap().limits.as_mut().unwrap();
    limits.mptcp = false;
    assert_eq!(judge(&facts).uplinks[1].reason, Some("server_mptcp_off".into()));
}

#[test]
fn a_server_without_ipv6_is_no_fault_and_told() {
    let mut facts = well();
    facts.server.as_mut().unwrap().limits.as_mut().unwrap().lacks_ipv6 = true;
    let report = judge(&facts);
    let told = report.findings.iter().any(|it| it.found.contains("the LAN's is refused"));
    assert!(report.well && told, "{report:?}");
}
