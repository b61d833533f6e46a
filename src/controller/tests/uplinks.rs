//! Uplinks that answer, fall silent and change.

use super::*;
use crate::config::agent::{Quota, QuotaAction, Role};
use crate::failover::Reason;
use crate::health::State;
use crate::status::UplinkState::{Degraded, Down, Up};
use crate::uplink::tests::address as interface_address;

#[test]
fn a_start_configures_the_kernel_and_a_session_starts_probes() {
    let mut world = World::new();
    world.tell(Event::Started);
    world.run(1000);
    assert_eq!(world.count(|a| matches!(a, Action::KeepServers(_))), 1);
    let slots: Vec<u8> = world.controller.dial_order.iter().map(|outlet| outlet.slot).collect();
    assert_eq!(slots, [0, 1]);
    assert_eq!(world.endpoints(), ["192.0.2.10", "192.0.2.20"]);
    assert!(!world.nft().contains("tproxy"), "nothing is tunnelled without a session");
    assert_eq!(world.probes, 0, "there is nothing to sign probes with");

    world.session_up(SERVER);
    world.run(1000);
    assert!(world.nft().contains("tproxy ip to 127.0.0.1:4000"));
    assert!(world.nft().contains(SERVER), "what is for the server itself is not tunnelled");
    let health = |slot| world.controller.health(slot).unwrap();
    assert_eq!([health(0).state(), health(1).state()], [State::Up; 2]);
    assert_eq!(health(1).srtt(), Some(40 * MS));
    let ours = reconcile::reconcile(&world.kernel, &world.controller.desired());
    assert_eq!(ours, [], "the kernel is as wished");
}

#[test]
fn each_probe_due_is_sent_once() {
    let mut world = World::settled();
    world.tell(rates([(0, 1_000_000), (1, 1_000_000)]));
    world.run(10_000);
    assert!((78..=84).contains(&world.probes), "every 250 ms on both: {}", world.probes);
}

#[test]
fn a_silent_uplink_loses_its_endpoint_and_nothing_else_changes() {
    for active in [true, false] {
        let mut world = World::settled();
        let carried = if active { vec![(0, 1_000_000)] } else { vec![] };
        world.tell(rates(carried));
        world.run(5000);
        world.forget();
        world.rtt[0] = None;
        let limit = if active { 1000 } else { 3000 };
        world.until(limit, |world| world.endpoints() == ["192.0.2.20"]);
        world.run(3000);
        let mut lines: Vec<String> = world.lines().into_iter().map(|(_, line)| line).collect();
        // Untunnelled traffic moves, see `direct`.
        lines.retain(|line| !line.contains(" rule ") || !line.contains("priority 7"));
        assert_eq!(lines, ["ip mptcp endpoint delete id 200"], "{:?}", world.log());
        assert!(matches!(world.controller.assignments()[0].reason, Reason::Unanswered(_)));
        assert!(world.controller.server().reachable);

        world.rtt[0] = Some(20);
        world.until(3000, |world| world.endpoints().len() == 2);
        let added = "ip mptcp endpoint add 192.0.2.10 id 200 dev eth1 subflow";
        assert!(world.lines().iter().any(|(_, line)| line == added));
    }
}

/// When an uplink goes down although nothing but its first loss and the suspicion that it raised
/// could have the others probed.
#[test]
fn the_first_loss_has_the_other_uplinks_probed_at_once() {
    let mut world = World::settled();
    world.tell(rates([(0, 1_000_000)]));
    world.run(4000);
    // Let the idle uplink's last probe be recent, so that its next is nearly two seconds away.
    let answered = |world: &World| world.controller.health(1).unwrap().last_reply();
    let before = answered(&world);
    world.until(3000, |world| answered(world) != before);
    world.forget();
    world.rtt[0] = None;
    let loses = |world: &World| world.controller.health(0).unwrap().failing_since().is_some();
    let lost = world.until(1000, loses);
    let before = answered(&world);
    let told_apart = world.until(1000, |world| answered(world) != before);
    assert!(lost + told_apart < 1000, "{lost} + {told_apart} ms");
}

#[test]
fn a_subflow_that_fails_has_its_uplink_probed_densely() {
    let mut world = World::settled();
    world.run(500);
    world.forget();
    world.rtt = [None; 2];
    world.tell(Event::SubflowFailed(address("192.0.2.20")));
    world.tell(Event::SubflowFailed(address("198.51.100.9")));
    assert!(world.probes <= 1);
    world.until(260, |world| world.probes == 1);
}

#[test]
fn probes_that_cannot_leave_count_as_lost() {
    let mut world = World::settled();
    world.sendable = false;
    world.until(5000, |world| world.controller.health(0).unwrap().state() == State::Down);
    assert!(world.probes < 60, "{} attempts", world.probes);
}

#[test]
fn another_address_changes_that_uplink_alone_and_its_health_starts_anew() {
    let mut world = World::settled();
    let other = world.controller.health(1).unwrap().since();
    world.kernel.addresses[2] = interface_address(3, "192.0.2.99/24");
    world.tell(Event::Changed);
    world.run(150);
    assert_eq!(world.endpoints(), ["192.0.2.20", "192.0.2.99"]);
    assert!(world.lines().iter().all(|(_, line)| !line.contains("192.0.2.20")));
    assert_eq!(world.controller.health(1).unwrap().since(), other);
    assert!(world.controller.health(0).unwrap().since() > other);
    let source = |world: &World| world.controller.probers[0].source;
    assert_eq!(source(&world), address("192.0.2.99"));
    assert_eq!(world.count(|action| matches!(action, Action::SetProbers(_))), 1);
}

#[test]
fn a_renewed_lease_changes_nothing() {
    let mut world = World::settled();
    // The address goes and comes back: netlink says that it changed, a dump shows it the same.
    for _ in 0..5 {
        world.tell(Event::Changed);
        world.run(200);
    }
    assert_eq!(world.lines(), []);
    assert_eq!(world.log(), [""; 0]);
    assert_eq!(world.count(|action| matches!(action, Action::SetProbers(_))), 0);
}

#[test]
fn carrier_loss_takes_an_uplink_out_at_once_and_its_return_brings_it_back() {
    let mut world = World::settled();
    world.set_carrier("eth1", false);
    assert_eq!(world.endpoints(), ["192.0.2.20"]);
    let slots: Vec<u8> = world.controller.probers.iter().map(|outlet| outlet.slot).collect();
    assert_eq!(slots, [1]);
    world.run(5000);
    world.set_carrier("eth1", true);
    world.until(3000, |world| world.endpoints().len() == 2);
    let expected = |world: &World| {
        let ByConnection { settled, stranded } = world.controller.expected_subflows(world.now);
        (settled.len(), stranded.len())
    };
    assert_eq!(expected(&world), (1, 1), "subflows are about to join");
    world.run(2000);
    assert_eq!(expected(&world), (1, 2));
    world.run(4000);
    assert_eq!(expected(&world), (2, 2));
}

/// The uplink's packets are counted as the agent does; none arrive without carrier.
#[test]
fn what_is_missing_without_carrier_says_nothing_of_the_path_afterwards() {
    for probe_on_its_way in [true, false] {
        let mut world = World::settled();
        let mut packets = 0;
        let mut flow = |world: &mut World, ms: u64, rate: u64| {
            for _ in 0..ms / 50 {
                packets += rate / 20;
                world.tell(rates([(0, 1_000_000)]));
                world.tell(Event::Received(LiteMap::from_iter([(0, packets)])));
                world.run(50);
            }
        };
        flow(&mut world, 2000, 1000);
        // The link is dead some moments before its carrier is.
        world.rtt[0] = None;
        flow(&mut world, if probe_on_its_way { 100 } else { 0 }, 0);
        world.set_carrier("eth1", false);
        flow(&mut world, 2000, 0);
        world.forget();
        world.rtt[0] = Some(200);
        world.set_carrier("eth1", true);
        world.until(100, |world| world.endpoints().len() == 2);
        flow(&mut world, 150, 0);
        flow(&mut world, 2000, 1000);
        assert_eq!(world.endpoints().len(), 2);
        let log = world.log();
        assert_eq!(log[0], "uplink wan: in use: probes answered");
        assert!(!log.concat().contains("not used"), "{log:?}");
    }
}

#[test]
fn missing_subflows_join_again_more_and_more_rarely() {
    let mut world = World::settled();
    let expected = world.controller.expected_subflows(world.now);
    assert_eq!(expected.settled, [(0, address("192.0.2.10")), (1, address("192.0.2.20"))]);
    assert_eq!(expected.stranded, expected.settled);
    let missing = |slots: &[u8]| {
        Event::MissingSubflows(ByConnection { settled: slots.to_vec(), stranded: Vec::new() })
    };
    for _ in 0..60 {
        world.tell(missing(&[1]));
        world.run(1000);
    }
    let lines = world.lines();
    let attempts: Vec<u64> = lines
        .iter()
        .filter(|(_, line)| line == "ip mptcp endpoint change id 201 nobackup fullmesh")
        .map(|(ms, _)| ms / 1000)
        .collect();
    assert_eq!(attempts, [0, 5, 15, 35]);
    let back = lines.iter().filter(|(_, line)| line == "ip mptcp endpoint change id 201 nobackup");
    assert_eq!((back.count(), lines.len()), (4, 8), "each is taken back: {lines:?}");
    assert_eq!(world.endpoints(), ["192.0.2.10", "192.0.2.20"]);

    let standing = |slot: usize, reaches_server| {
        let seen = MptcpSeen { falls_back: false, reaches_server };
        let Standing { state, in_use, .. } =
            world.controller.standing(&world.controller.uplinks()[slot], seen);
        (state, in_use)
    };
    assert_eq!([0, 1].map(|slot| standing(slot, true)), [(Up, true), (Down, false)]);
    // Where MPTCP gets through on no uplink, this one is no worse than the other.
    assert_eq!(standing(1, false), (Degraded, true));

    world.tell(missing(&[]));
    world.forget();
    world.tell(missing(&[1]));
    assert!(!world.controller.lacks_subflows(1));
    assert_eq!(world.lines().len(), 2, "well in between: begun anew");

    world.rtt[1] = None;
    world.until(5000, |world| world.in_force()[1] == InForce::Unused);
    assert_eq!(world.controller.expected_subflows(world.now).settled.len(), 1);
}

#[test]
fn uplinks_on_which_subflows_are_missing_take_turns() {
    let mut world = World::settled();
    for _ in 0..10 {
        let missing = ByConnection { settled: vec![1], stranded: vec![0, 1] };
        world.tell(Event::MissingSubflows(missing));
        world.run(1000);
    }
    let attempts: Vec<String> = world
        .lines()
        .iter()
        .filter(|(_, line)| line.ends_with("fullmesh"))
        .map(|(ms, line)| format!("{} s: {line}", ms / 1000))
        .collect();
    assert_eq!(
        attempts,
        [
            "0 s: ip mptcp endpoint change id 200 nobackup fullmesh",
            "3 s: ip mptcp endpoint change id 201 nobackup fullmesh",
            "6 s: ip mptcp endpoint change id 200 nobackup fullmesh",
            "9 s: ip mptcp endpoint change id 201 nobackup fullmesh",
        ]
    );
    // What a connection without any lacks says nothing of the uplink.
    assert_eq!([0, 1].map(|slot| world.controller.lacks_subflows(slot)), [false, true]);
}

#[test]
fn an_uplink_over_which_the_server_still_sends_is_demoted_again_and_then_made_anew() {
    let mut world = World::settled();
    world.tell(rates([(0, 8_000_000), (1, 8_000_000)]));
    assert_eq!(world.controller.busy_standbys(), []);
    world.tell(Event::RoleWanted { uplink: "wanb".into(), role: Some(Role::Backup) });
    assert_eq!(world.controller.busy_standbys(), [(1, address("192.0.2.20"))]);
    world.forget();
    for _ in 0..10 {
        world.tell(Event::StandbysUsed(vec![1]));
        world.run(1000);
    }
    let lines = world.lines();
    let lines: Vec<String> =
        lines.iter().map(|(ms, line)| format!("{} s: {line}", ms / 1000)).collect();
    assert_eq!(
        lines,
        [
            "1 s: ip mptcp endpoint change id 201 nobackup",
            "1 s: ip mptcp endpoint change id 201 backup",
            "2 s: ip mptcp endpoint change id 201 nobackup",
            "2 s: ip mptcp endpoint change id 201 backup",
            "4 s: ip mptcp endpoint delete id 201",
            "4 s: ip mptcp endpoint add 192.0.2.20 id 201 dev eth2 subflow backup",
            "8 s: ip mptcp endpoint delete id 201",
            "8 s: ip mptcp endpoint add 192.0.2.20 id 201 dev eth2 subflow backup",
        ]
    );
}

#[test]
fn a_metered_uplink_is_probed_rarely_while_it_is_idle() {
    let mut world = World::settled();
    let mut config = world.controller.config().clone();
    config.uplinks[1].quota =
        Some(Quota { bytes: 50_000_000_000, reset_day: 1, action: QuotaAction::Backup });
    world.tell(Event::Configured(Box::new(config)));
    world.run(20_000);
    world.forget();
    world.run(60_000);
    // One each two seconds, and one each ten.
    assert!((34..=38).contains(&world.probes), "{} probes in a minute", world.probes);
}

#[test]
fn a_plug_that_is_loose_does_not_flood_the_log() {
    let mut world = World::settled();
    for _ in 0..30 {
        for carrier in [false, true] {
            world.set_carrier("eth1", carrier);
            world.run(2000);
        }
    }
    assert!(world.log().len() <= 20, "{:#?}", world.log());
    let flaps = |text: &&&str| text.starts_with("uplink wan: goes and comes");
    assert_eq!(world.log().iter().filter(flaps).count(), 1);
    world.forget();
    world.set_carrier("eth1", false);
    world.run(80_000);
    let text = "uplink wan: not used: eth1 has no carrier: check cable, modem or signal";
    assert_eq!(world.log(), [text, "untunnelled IPv4 now leaves over wanb"]);
}
