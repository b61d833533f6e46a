//! Where untunnelled traffic leaves while uplinks and the server come and go.

use super::*;
use crate::config::agent::Role;
use crate::net::Family;
use crate::uplink::tests::{address as interface_address, default_via};

impl World {
    /// The device that new flows of the LAN leave over, and whether the router's own traffic is led
    /// there; `None` where it is left to the main table.
    fn direct(&self) -> Option<(&str, bool)> {
        let table = |priority| {
            let rules = self.kernel.rules.iter();
            let mut rules = rules.filter(|it| it.priority.0 == priority && it.family == Family::V4);
            let table = rules.next().map(|rule| rule.table.0);
            assert!(rules.next().is_none(), "one rule at a time");
            table
        };
        let devices = [(5001, "eth1"), (5002, "eth2")];
        let (_, device) = devices.into_iter().find(|(known, _)| table(720) == Some(*known))?;
        assert!(table(750).is_none() || table(750) == table(720));
        Some((device, table(750).is_some()))
    }

    /// The addresses whose flows were forgotten, in the order in which that happened.
    fn forgotten(&self) -> Vec<String> {
        let addresses = self.done.iter().filter_map(|(_, action)| match action {
            Action::ForgetFlows(addresses) => Some(addresses),
            _ => None,
        });
        addresses.flatten().map(ToString::to_string).collect()
    }
}

#[test]
fn an_uplink_is_left_as_soon_as_it_is_down() {
    let mut world = World::settled();
    world.rtt[0] = None;
    while world.controller.health(0).unwrap().state() != State::Down {
        world.run(20);
        // Somebody is answered, which takes its time.
        world.now += MS * 20;
        assert!(world.ms() < 5000);
    }
    assert_eq!(world.direct(), Some(("eth2", true)));
}

#[test]
fn flows_of_a_dead_uplink_are_forgotten_once_and_after_new_ones_take_another() {
    let mut world = World::settled();
    assert_eq!(world.direct(), Some(("eth1", false)));
    world.rtt[0] = None;
    world.until(5000, |world| world.direct() == Some(("eth2", true)));
    assert_eq!(world.log().last(), Some(&"untunnelled IPv4 now leaves over wanb"));
    let shown = [0, 1].map(|slot| world.controller.untunnelled(slot).collect::<Vec<_>>());
    assert_eq!(shown, [vec![], vec![Family::V4]]);
    world.run(60_000);
    assert_eq!(world.forgotten(), ["192.0.2.10"]);
    let is_switch = |action: &Action| match action {
        Action::Apply(plan) => plan.iter().any(|it| it.to_string().contains("priority 720")),
        _ => false,
    };
    let mut order = world.done.iter().map(|(_, action)| action);
    assert!(order.any(is_switch), "first the switch");
    assert!(order.any(|action| matches!(action, Action::ForgetFlows(_))), "then the flows");

    world.rtt[0] = Some(20);
    world.until(5000, |world| world.direct() == Some(("eth1", false)));
    world.run(20_000);
    assert_eq!(world.forgotten(), ["192.0.2.10"], "a return moves no flow");
}

#[test]
fn without_carrier_flows_move_at_once() {
    let mut world = World::settled();
    world.set_carrier("eth2", false);
    assert_eq!(
        (world.direct(), world.forgotten()),
        (Some(("eth1", false)), vec!["192.0.2.20".into()])
    );
}

#[test]
fn a_silent_server_moves_nothing() {
    let mut world = World::settled();
    (world.rtt, world.control) = ([None; 2], false);
    world.until(10_000, |world| !world.controller.server().reachable);
    world.run(10_000);
    (world.rtt, world.control) = ([Some(20), Some(40)], true);
    world.session_up(SERVER);
    world.run(10_000);
    assert_eq!((world.direct(), world.forgotten()), (Some(("eth1", false)), vec![]));
    assert!(world.lines().iter().all(|(_, line)| !line.contains("priority 7")));
}

#[test]
fn while_the_server_is_silent_a_second_opinion_decides() {
    let mut world = World::settled();
    (world.rtt, world.control) = ([None; 2], false);
    world.until(10_000, |world| !world.controller.server().reachable);
    let fails = Opinion::Fails("no answer".into());
    world.controller.config.check_url = "http://192.0.2.1/204".parse().ok();
    world.run(5000);
    assert_eq!(world.direct(), Some(("eth1", false)));
    world.tell(Event::InternetAsked { slot: 0, opinion: fails.clone() });
    world.tell(Event::InternetAsked { slot: 1, opinion: Opinion::Works });
    world.run(200);
    assert_eq!(world.direct(), Some(("eth2", true)));
    assert_eq!(world.forgotten(), ["192.0.2.10"]);
    world.tell(Event::InternetAsked { slot: 0, opinion: Opinion::Works });
    world.tell(Event::InternetAsked { slot: 1, opinion: fails });
    world.run(200);
    assert_eq!(world.direct(), Some(("eth1", false)));
}

#[test]
fn an_uplink_that_was_dead_before_the_server_is_not_revived_by_its_silence() {
    let mut world = World::settled();
    world.rtt[0] = None;
    world.until(5000, |world| world.direct() == Some(("eth2", true)));
    (world.rtt, world.control) = ([None; 2], false);
    world.until(20_000, |world| world.in_force() == [InForce::Active; 2]);
    world.run(20_000);
    assert_eq!(world.direct(), Some(("eth2", true)));
    // Both are back, the other one first.
    (world.rtt, world.control) = ([None, Some(40)], true);
    world.session_up(SERVER);
    world.run(1000);
    assert_eq!(world.direct(), Some(("eth2", true)));
    world.rtt[0] = Some(20);
    world.until(5000, |world| world.direct() == Some(("eth1", false)));
    assert_eq!(world.forgotten(), ["192.0.2.10"]);
}

#[test]
fn new_flows_avoid_an_uplink_that_loses_packets() {
    let mut world = World::settled();
    for _ in 0..4 {
        world.rtt[0] = None;
        world.until(5000, |world| world.controller.health(0).unwrap().failing_since().is_some());
        world.rtt[0] = Some(20);
        world.run(20_000);
    }
    assert_eq!(world.in_force(), [InForce::Active; 2]);
    assert_eq!((world.direct(), world.forgotten()), (Some(("eth2", false)), vec![]));
}

#[test]
fn a_backup_is_chosen_while_nothing_else_lives() {
    let mut world = World::settled();
    let mut config = agent_config();
    config.uplinks[0].role = Role::Backup;
    world.tell(Event::Configured(Box::new(config)));
    world.run(200);
    assert_eq!(world.direct(), Some(("eth2", false)), "although main's metric prefers the backup");
    world.rtt[1] = None;
    world.until(5000, |world| world.direct() == Some(("eth1", false)));
    assert_eq!(world.forgotten(), ["192.0.2.20"]);
}

#[test]
fn the_main_tables_choice_counts_until_another_is_far_nearer() {
    let mut world = World::settled();
    world.rtt = [Some(20), Some(11)];
    world.run(20_000);
    assert_eq!(world.direct(), Some(("eth1", false)));
    world.rtt = [Some(20), Some(4)];
    world.until(20_000, |world| world.direct() == Some(("eth2", false)));
    // Load makes round trips longer, and is no reason.
    world.rtt = [Some(20), Some(400)];
    world.run(60_000);
    assert_eq!(world.direct(), Some(("eth2", false)));
}

#[test]
fn ipv6_is_led_where_any_source_has_a_default_route() {
    let mut world = World::settled();
    let v6 = |world: &World| {
        let mut rules = world.kernel.rules.iter();
        rules.any(|rule| rule.family == Family::V6 && rule.priority.0 == 720)
    };
    world.kernel.addresses.push(interface_address(3, "2001:db8:1::2/64"));
    world.kernel.routes.push(default_via(3, "fe80::1", 512));
    world.tell(Event::Changed);
    assert!(v6(&world));
    // As netifd makes them where the router does not translate.
    world.kernel.routes.iter_mut().filter(|it| it.metric == 512).for_each(|route| {
        route.from = Some("2001:db8:1::/48".parse().unwrap());
    });
    world.run(200);
    world.tell(Event::Changed);
    assert!(!v6(&world));
}

#[test]
fn a_default_route_elsewhere_is_somebodys_wish() {
    let mut world = World::settled();
    world.kernel.routes.push(default_via(2, "192.168.1.9", 5));
    world.tell(Event::Changed);
    assert_eq!(world.direct(), None);
    world.kernel.routes.pop();
    world.run(200);
    world.tell(Event::Changed);
    assert_eq!(world.direct(), Some(("eth1", false)));
    assert_eq!(world.forgotten(), [""; 0]);
}
