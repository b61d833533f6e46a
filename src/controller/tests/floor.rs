//! An uplink far behind the other one.

use super::*;

/// Some seconds with these rates of the two uplinks in Mbit/s, as long as both are used, and as long
/// as only the near one is.
fn load(world: &mut World, seconds: usize, both: [u64; 2], alone: u64) {
    for _ in 0..seconds {
        let used = world.in_force()[1] == InForce::Active;
        let [near, far] = if used { both } else { [alone, 0] };
        world.tell(Event::Rates([(0, near * 1_000_000), (1, far * 1_000_000)].into()));
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
    let (backup, active) = ("change id 201 backup", "change id 201 nobackup");
    assert_eq!(lines, [backup, active, backup].map(|line| format!("ip mptcp endpoint {line}")));
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
