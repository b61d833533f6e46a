//! Uplinks that slow the others down.

use super::*;

/// Some seconds with these rates of the two uplinks in Mbit/s, as long as both are used, and as long
/// as only the near one is.
fn load(world: &mut World, seconds: usize, both: [u64; 2], alone: u64) {
    for _ in 0..seconds {
        let used = world.in_force()[1] == InForce::Active;
        let [near, far] = if used { both } else { [alone, 0] };
        world.tell(rates([(0, near * 1_000_000), (1, far * 1_000_000)]));
        world.run(1000);
    }
}

fn far_behind() -> World {
    let mut world = World::settled();
    world.rtt = [Some(10), Some(10)];
    world.run(5000);
    // The path of `wanb` becomes another one.
    let unknown = world.controller.new_health("wanb", world.now);
    world.controller.health.insert(1, unknown);
    world.rtt[1] = Some(300);
    world.run(10_000);
    world.forget();
    world
}

#[test]
fn a_far_uplink_that_makes_the_bond_slower_stands_by_again_after_a_trial() {
    let mut world = far_behind();
    load(&mut world, 1, [0, 0], 0);
    assert_eq!(world.in_force(), [InForce::Active, InForce::Backup]);
    load(&mut world, 20, [20, 5], 100);
    let lines: Vec<String> = world.lines().into_iter().map(|(_, line)| line).collect();
    // What is on its way over it is not waited for.
    let backup = ["delete id 201", "add 192.0.2.20 id 201 dev eth2 subflow backup"];
    let expected = [&backup[..], &["change id 201 nobackup"], &backup].concat();
    assert_eq!(
        lines,
        expected.iter().map(|line| format!("ip mptcp endpoint {line}")).collect::<Vec<_>>()
    );
    assert_eq!(
        world.log(),
        [
            "uplink wanb: standing by: may make the bond slower: 300 ms behind 10 ms; tried under \
             the next load",
            "uplink wanb: in use: probes answered",
            "uplink wanb: standing by: makes the bond no faster: 300 ms behind 10 ms; tried again \
             in 4 min",
        ]
    );
}

#[test]
fn a_far_uplink_that_makes_the_bond_faster_stays() {
    let mut world = far_behind();
    load(&mut world, 20, [8, 40], 10);
    assert_eq!(world.in_force(), [InForce::Active; 2]);
}

#[test]
fn a_far_uplink_takes_over_when_the_near_one_fails() {
    let mut world = far_behind();
    load(&mut world, 1, [0, 0], 0);
    world.rtt[0] = None;
    world.until(10_000, |world| world.in_force() == [InForce::Unused, InForce::Active]);
}

/// Some seconds in which these uplinks lose every second probe or so.
fn lose(world: &mut World, slots: &[usize]) {
    for n in 0..300 {
        for &slot in slots {
            world.rtt[slot] = (n % 5 < 2).then_some(20);
        }
        world.run(60);
    }
    world.rtt = [Some(20); 2];
}

#[test]
fn an_uplink_that_loses_heavily_stands_by_until_it_has_done_well_for_a_while() {
    let mut world = World::settled();
    world.forget();
    lose(&mut world, &[0]);
    assert_eq!(world.in_force(), [InForce::Backup, InForce::Active], "{:?}", world.log());
    let well = world.until(90_000, |world| world.in_force() == [InForce::Active; 2]);
    assert!((8000..40_000).contains(&well), "{well}");
    let log = world.log().join("\n");
    let reason = "standing by: loses so many probes that it would slow the other uplinks down";
    assert!(log.contains(&format!("uplink wan: {reason}")), "{log}");
}

#[test]
fn where_all_uplinks_lose_heavily_all_are_used() {
    let mut world = World::settled();
    lose(&mut world, &[0, 1]);
    assert_eq!(world.in_force(), [InForce::Active; 2], "{:?}", world.log());
}
