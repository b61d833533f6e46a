//! Tunnelled UDP: over which uplinks it leaves, and whose flows have to be translated anew.

use super::*;

const PORTS: [(u16, u16); 1] = [(5060, 5061)];

impl World {
    /// One that tunnels UDP.
    fn with_udp(duplicate: bool) -> World {
        let mut world = World::settled();
        let config = AgentConfig {
            udp_ports: PORTS.into(),
            udp_duplicate: duplicate,
            ..world.controller.config().clone()
        };
        world.tell(Event::Configured(config.into()));
        world.run(1000);
        world
    }

    /// The ways that were chosen, in order.
    fn ways(&self) -> Vec<(Vec<u8>, bool)> {
        let ways = self.done.iter().filter_map(|(_, action)| match action {
            Action::SetDatagramWays { slots, duplicate } => Some((slots.clone(), *duplicate)),
            _ => None,
        });
        ways.collect()
    }

    /// How often flows were forgotten.
    fn forgets(&self) -> usize {
        self.count(|action| *action == Action::ForgetUdp(PORTS.into()))
    }

    /// Whether UDP is diverted, and how often flows were forgotten.
    fn diverted(&self) -> (bool, usize) {
        (self.nft().contains("udp dport"), self.forgets())
    }
}

#[test]
fn the_nearest_uplink_comes_first_and_a_doubtful_one_last() {
    let mut world = World::with_udp(true);
    assert_eq!(world.ways(), [(vec![0, 1], true)]);
    world.forget();
    world.rtt[0] = None;
    world.until(5000, |world| !world.ways().is_empty());
    assert_eq!(world.ways(), [(vec![1, 0], true)]);
    assert_eq!(world.in_force(), [InForce::Active; 2], "before it counts as down");
    world.rtt[0] = Some(20);
    world.run(60_000);
    assert_eq!(world.ways().last(), Some(&(vec![0, 1], true)));
}

#[test]
fn uplinks_that_are_about_as_near_do_not_take_turns() {
    let mut world = World::with_udp(false);
    assert_eq!(world.ways(), [(vec![0, 1], false)]);
    world.rtt = [Some(35), Some(30)];
    world.run(60_000);
    assert_eq!(world.ways().len(), 1);
    world.rtt = [Some(60), Some(30)];
    world.run(60_000);
    assert_eq!(world.ways().last(), Some(&(vec![1, 0], false)));
    assert_eq!(world.ways().len(), 2);
}

#[test]
fn an_older_server_is_sent_no_udp() {
    let mut world = World::with_udp(false);
    assert_eq!(world.diverted(), (true, 1));
    for datagrams in [false, false, true] {
        world.forget();
        let news = ServerNews::Up { address: address(SERVER), datagrams };
        world.tell(Event::Server("vps".into(), news));
        world.run(1000);
        assert_eq!(world.diverted().0, datagrams);
        assert_eq!(world.controller.udp_trouble().is_some(), !datagrams);
    }
    let mut world = World::with_udp(false);
    let news = || ServerNews::Up { address: address(SERVER), datagrams: false };
    world.forget();
    for _ in 0..2 {
        world.tell(Event::Server("vps".into(), news()));
        world.run(1000);
    }
    let told = "UDP to the ports in 'udp_ports' leaves untunnelled: the server is of a version that \
                does not carry it: update the server";
    assert_eq!((world.log(), world.forgets()), (vec![told], 1));
}

#[test]
fn flows_are_forgotten_when_they_begin_and_cease_to_be_tunnelled() {
    let world = World::settled();
    assert_eq!((world.diverted(), world.ways()), ((false, 0), vec![]), "unless it is configured");
    let mut world = World::with_udp(false);
    assert_eq!(world.diverted(), (true, 1));
    let order = |wanted: fn(&Action) -> bool| {
        world.done.iter().position(|(_, action)| wanted(action)).expect("it is done")
    };
    let (table, flows) = (
        order(|action| matches!(action, Action::Apply(_))),
        order(|action| matches!(action, Action::ForgetUdp(_))),
    );
    assert!(table < flows, "after the table is in force");
    (world.rtt, world.control) = ([None; 2], false);
    world.session_down("reset");
    world.until(20_000, |world| !world.controller.server().reachable);
    world.run(1000);
    assert_eq!(world.diverted(), (false, 2));
    (world.rtt, world.control) = ([Some(20), Some(40)], true);
    world.session_up(SERVER);
    world.run(10_000);
    assert_eq!(world.diverted(), (true, 3));
    world.tell(Event::Stopping);
    assert_eq!(world.forgets(), 4, "they go on without the agent");
}
