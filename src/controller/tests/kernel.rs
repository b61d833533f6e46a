//! A kernel that others change, that refuses, or that cannot be looked at.

use super::*;
use crate::net::{ROUTE_PROTOCOL, TABLES};
use crate::reconcile::NftTable;

type Deletion = fn(&mut Kernel);

#[test]
fn what_others_delete_is_back_within_a_second() {
    let deletions: [(&str, Deletion); 4] = [
        ("rules", |kernel| kernel.rules.clear()),
        ("routes", |kernel| kernel.routes.retain(|route| !TABLES.contains(&route.table.0))),
        ("endpoints", |kernel| kernel.endpoints.clear()),
        ("nft", |kernel| kernel.nft = NftTable::Absent),
    ];
    for (what, delete) in deletions {
        let mut world = World::settled();
        let whole = world.kernel.clone();
        // Once, and again as soon as it is back.
        for _ in 0..3 {
            delete(&mut world.kernel);
            world.tell(Event::Changed);
            world.run(110);
        }
        world.run(500);
        assert_eq!(world.kernel, whole, "{what}");
        assert_eq!(world.controller.failures().count(), 0);
        assert_eq!(world.log(), [""; 0], "{what}");
    }
}

#[test]
fn hints_in_a_burst_are_looked_at_together() {
    let mut world = World::settled();
    for _ in 0..100 {
        world.tell(Event::Changed);
        world.run(10);
    }
    assert!((10..=11).contains(&world.looks.len()), "{:?}", world.looks);
    assert_eq!(world.looks[0], 0, "the first at once");
}

#[test]
fn a_quiet_kernel_is_looked_at_every_fifteen_seconds() {
    let mut world = World::settled();
    world.run(300_000);
    assert_eq!(world.looks.len(), 20, "{:?}", world.looks);
    assert_eq!(world.lines(), []);
}

#[test]
fn a_busy_kernel_is_still_looked_at_thoroughly() {
    let mut world = World::settled();
    for _ in 0..60 {
        world.tell(Event::Changed);
        world.run(1000);
    }
    let thorough = world.count(|action| *action == Action::Look { thorough: true });
    assert!((3..=5).contains(&thorough), "{thorough}");
}

#[test]
fn a_look_that_fails_is_repeated_without_haste() {
    let mut world = World::settled();
    world.blind = Some("cannot read the kernel's routes: EINTR");
    world.tell(Event::Changed);
    // A wish to look at once does not make it hasty either.
    (world.rtt[0], world.control) = (None, false);
    world.run(20_000);
    assert!(world.looks.len() <= 11, "{:?}", world.looks);
    assert_eq!(world.controller.look_failure(), world.blind);
    let warnings = world.log().iter().filter(|text| text.contains("EINTR")).count();
    assert_eq!(warnings, 1);

    world.blind = None;
    world.until(2100, |world| world.endpoints() == ["192.0.2.20"]);
    assert_eq!(world.controller.look_failure(), None);
}

#[test]
fn a_failing_operation_is_shown_and_tried_ever_more_rarely() {
    let mut world = World::settled();
    world.broken = Some(("endpoint add", "EINVAL (Invalid argument)"));
    world.kernel.endpoints.clear();
    world.tell(Event::Changed);
    // Hints, also those of our own changes, do not make it hasty.
    for _ in 0..600 {
        world.tell(Event::Changed);
        world.run(100);
    }
    let tries = world.lines().iter().filter(|(_, line)| line.contains("192.0.2.10 ")).count();
    assert!((8..=12).contains(&tries), "{tries}");
    let failures: Vec<_> = world.controller.failures().collect();
    assert_eq!(failures.len(), 2);
    assert_eq!((failures[0].reason, failures[0].errno), ("EINVAL (Invalid argument)", Some(22)));
    assert_eq!(failures[0].since, world.start);
    assert_eq!(
        world.log(),
        [
            "ip mptcp endpoint add 192.0.2.10 id 200 dev eth1 subflow: \
             EINVAL (Invalid argument); it is tried again",
            "ip mptcp endpoint add 192.0.2.20 id 201 dev eth2 subflow: \
             EINVAL (Invalid argument); it is tried again",
        ]
    );

    // Meanwhile everything else goes on at once.
    world.kernel.rules.clear();
    world.tell(Event::Changed);
    world.run(110);
    assert!(!world.kernel.rules.is_empty());

    world.broken = None;
    world.until(16_000, |world| world.endpoints().len() == 2);
    world.run(200);
    assert_eq!(world.controller.failures().count(), 0);
}

#[test]
fn an_operation_without_effect_is_named_and_is_no_busy_loop() {
    let mut world = World::settled();
    for _ in 0..600 {
        // Somebody sets it back each time, faster than it can be seen.
        world.kernel.sysctls.insert("net/mptcp/stale_loss_cnt".into(), "4".into());
        world.tell(Event::Changed);
        world.kernel.sysctls.insert("net/mptcp/stale_loss_cnt".into(), "4".into());
        world.run(100);
    }
    let tries = world.lines().len();
    assert!((8..=12).contains(&tries), "{tries}");
    let failure = world.controller.failures().next().unwrap();
    assert!(failure.reason.contains("something else undoes it"));
    assert_eq!(world.log().len(), 1, "{:?}", world.log());
}

#[test]
fn sysctls_that_the_kernel_lacks_are_named() {
    let world = World::settled();
    let absent = world.controller.absent_sysctls();
    assert!(absent.contains(&("net/mptcp/close_timeout", "240")), "{absent:?}");
    assert!(!absent.iter().any(|(key, _)| *key == "net/mptcp/stale_loss_cnt"));
}

#[test]
fn other_path_managers_are_named_once() {
    let mut world = World::settled();
    world.kernel.other_managers.push("mptcpd".into());
    world.run(60_000);
    let log = world.log();
    assert_eq!(log.len(), 1, "{log:?}");
    assert!(log[0].contains("mptcpd") && log[0].contains("stop it"));
}

#[test]
fn a_stop_removes_all_of_ours_and_nothing_foreign() {
    let mut world = World::settled();
    let untouched = same_subnet();
    let mut foreign_rule = world.kernel.rules[0].clone();
    foreign_rule.priority = crate::net::Priority(1000);
    world.kernel.rules.push(foreign_rule);
    let before = foreign(&world.kernel);
    world.tell(Event::Stopping);
    assert_eq!(foreign(&world.kernel), before);
    assert_eq!(world.kernel.routes, untouched.routes);
    assert!(world.kernel.routes.iter().all(|route| route.protocol != ROUTE_PROTOCOL));
    assert_eq!((world.kernel.rules.len(), world.kernel.endpoints.len()), (1, 0));
    assert_eq!(world.kernel.nft, NftTable::Absent);
    assert_eq!(world.log(), ["stopping"]);
}
