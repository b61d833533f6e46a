//! Roles set at run time, quotas and saturation.

use super::*;

fn want(world: &mut World, uplink: &str, role: Option<Role>) {
    world.tell(Event::RoleWanted { uplink: uplink.into(), role });
    world.run(200);
}

fn configure(world: &mut World, change: impl FnOnce(&mut AgentConfig)) {
    let mut config = agent_config();
    change(&mut config);
    world.tell(Event::Configured(Box::new(config)));
    world.run(200);
}

/// The operations since the last [`World::forget`].
fn lines(world: &World) -> Vec<String> {
    world.lines().into_iter().map(|(_, line)| line).collect()
}

#[test]
fn a_role_set_by_hand_holds_at_once_and_changes_nothing_else() {
    let mut world = World::settled();
    want(&mut world, "wanb", Some(Role::Backup));
    assert_eq!(lines(&world), ["ip mptcp endpoint change id 201 backup"]);
    assert!(world.lines()[0].0 < 50, "{:?}", world.lines());
    assert_eq!(
        world.log(),
        [
            "uplink wanb: role backup, set by hand; configured: bond",
            "uplink wanb: standing by: stands by for the bond uplinks"
        ]
    );
    world.forget();
    want(&mut world, "wanb", None);
    assert_eq!(lines(&world), ["ip mptcp endpoint change id 201 nobackup"]);
    assert_eq!(world.log()[0], "uplink wanb: role bond, as configured");
}

#[test]
fn an_uplink_switched_off_by_hand_is_left_alone_until_it_is_wanted_again() {
    let mut world = World::settled();
    want(&mut world, "wanb", Some(Role::Off));
    assert_eq!(world.endpoints(), ["192.0.2.10"]);
    world.forget();
    world.run(10_000);
    assert!(world.probes <= 6, "the other uplink's alone: {}", world.probes);

    world.forget();
    want(&mut world, "wanb", Some(Role::Bond));
    assert_eq!(world.endpoints().len(), 2);
    assert_eq!(world.in_force(), [InForce::Active; 2]);
}

#[test]
fn probes_under_way_when_an_uplink_is_switched_off_are_not_held_against_it() {
    let mut world = World::settled();
    world.rtt[1] = Some(2000);
    world.tell(Event::Rates([(1, 1_000_000)].into()));
    world.run(1000);
    want(&mut world, "wanb", Some(Role::Off));
    world.answers.clear();
    world.run(5000);
    want(&mut world, "wanb", None);
    assert_eq!(world.in_force(), [InForce::Active; 2]);
}

#[test]
fn a_role_set_by_hand_lasts_until_another_one_is_configured() {
    let mut world = World::settled();
    want(&mut world, "wanb", Some(Role::Backup));
    configure(&mut world, |config| config.quic = Quic::Reject);
    assert_eq!(world.controller.manual_role("wanb"), Some(Role::Backup));
    assert_eq!(world.in_force(), [InForce::Active, InForce::Backup]);

    configure(&mut world, |config| config.uplinks[1].role = Role::Off);
    assert_eq!(world.in_force(), [InForce::Active, InForce::Unused]);
    configure(&mut world, |_| {});
    assert_eq!(world.controller.manual_role("wanb"), None);
    assert_eq!(world.in_force(), [InForce::Active; 2]);
}

#[test]
fn the_configured_role_set_by_hand_is_as_configured() {
    let mut world = World::settled();
    want(&mut world, "wanb", Some(Role::Bond));
    assert_eq!(world.controller.manual_role("wanb"), None);
    want(&mut world, "no such uplink", Some(Role::Off));
    assert_eq!(lines(&world), [""; 0]);
}
