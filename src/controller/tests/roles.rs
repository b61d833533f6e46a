//! Roles set at run time, quotas and saturation.

use super::*;
use crate::config::agent::{Quic, Quota, QuotaAction, Role};
use crate::net::Counters;

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
    world.tell(rates([(1, 1_000_000)]));
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

/// Both uplinks have a quota of 1 MB; a second later these bytes have gone over their devices.
fn carried(world: &mut World, bytes: [u64; 2]) {
    const NOVEMBER: u64 = 1_795_219_200;
    world.run(1000);
    let counters = |rx_bytes| Counters { rx_bytes, tx_bytes: 0 };
    let counters = [(0, counters(bytes[0])), (1, counters(bytes[1]))].into_iter().collect();
    world.tell(Event::Counted { clock: NOVEMBER, counters });
    world.run(200);
}

fn with_quotas(action: QuotaAction) -> World {
    let mut world = World::settled();
    configure(&mut world, |config| {
        for uplink in &mut config.uplinks {
            uplink.quota = Some(Quota { bytes: 1_000_000, reset_day: 1, action });
        }
    });
    carried(&mut world, [0, 0]);
    world.forget();
    world
}

fn saved(world: &World) -> Vec<Save> {
    let saves = world.done.iter().filter_map(|(_, action)| match action {
        Action::SaveUsage { save, .. } => Some(*save),
        _ => None,
    });
    saves.collect()
}

#[test]
fn a_quota_that_is_reached_makes_a_backup_of_the_uplink() {
    let mut world = with_quotas(QuotaAction::Backup);
    carried(&mut world, [900_000, 999_999]);
    assert_eq!(lines(&world), [""; 0]);
    world.forget();
    carried(&mut world, [900_000, 1_000_000]);
    assert_eq!(lines(&world), ["ip mptcp endpoint change id 201 backup"]);
    let text = "quota of 1.00 MB reached (1.00 MB since 1 Nov): backup until 1 Dec";
    assert_eq!(world.log(), [format!("uplink wanb: standing by: {text}")]);
    assert_eq!(saved(&world), [Save::Flash]);
    assert_eq!(world.controller.usage("wanb").unwrap().bytes, 1_000_000);
}

#[test]
fn an_uplink_switched_off_by_its_quota_loses_its_endpoint_and_its_probes_alone() {
    let mut world = with_quotas(QuotaAction::Off);
    carried(&mut world, [0, 1_000_000]);
    assert_eq!(lines(&world), ["ip mptcp endpoint delete id 201"]);
    world.forget();
    world.run(10_000);
    assert!(world.probes <= 6, "the other uplink's alone: {}", world.probes);
    assert_eq!(lines(&world), [""; 0], "its rules and routes stay");

    world.forget();
    configure(&mut world, |config| config.uplinks[1].quota = None);
    carried(&mut world, [0, 1_000_000]);
    assert_eq!(world.in_force(), [InForce::Active; 2]);
    assert_eq!(world.endpoints().len(), 2);
}

#[test]
fn what_was_carried_is_saved_at_the_end_and_resumed() {
    let mut world = with_quotas(QuotaAction::Backup);
    carried(&mut world, [0, 2_000_000]);
    world.forget();
    world.tell(Event::Stopping);
    assert_eq!(saved(&world), [Save::Flash]);
    let Some((_, Action::SaveUsage { text, .. })) = world.done.last() else { panic!() };
    let usage = Usage::from_json(text.as_bytes(), "").unwrap();

    let mut world = with_quotas(QuotaAction::Backup);
    world.controller.resume_usage(usage);
    carried(&mut world, [0, 2_000_000]);
    assert_eq!(world.in_force(), [InForce::Active, InForce::Backup]);
    assert_eq!(world.controller.usage("wanb").unwrap().bytes, 2_000_000);
}

#[test]
fn an_overflow_uplink_comes_in_while_the_others_are_saturated() {
    let mut world = World::settled();
    configure(&mut world, |config| config.uplinks[1].role = Role::Overflow);
    let mut bytes = [0, 0];
    // 40 Mbit/s on either uplink, as long as both are in use.
    let mut seconds = |world: &mut World, seconds: u32, demand: u64| {
        for _ in 0..seconds {
            bytes[0] += demand.min(5_000_000);
            bytes[1] += match world.in_force()[1] {
                InForce::Active => demand.min(5_000_000),
                _ => 0,
            };
            carried(world, bytes);
        }
    };
    world.forget();
    seconds(&mut world, 20, 5_000_000);
    assert_eq!(world.in_force(), [InForce::Active; 2]);
    seconds(&mut world, 20, 100);
    assert_eq!(world.in_force(), [InForce::Active, InForce::Backup]);
    assert_eq!(
        lines(&world),
        ["ip mptcp endpoint change id 201 nobackup", "ip mptcp endpoint change id 201 backup"]
    );
    assert_eq!(
        world.log(),
        [
            "uplink wanb: in use: the bond uplinks are saturated",
            "uplink wanb: standing by: stands by until the bond uplinks are saturated"
        ]
    );
}
