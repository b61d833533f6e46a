use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A bond uplink of 50 Mbit/s (or two of 25) and an overflow uplink of 20, both ways, and a demand
/// that is spread over those in use in proportion to their rates, as MPTCP does.
struct World {
    saturation: Saturation,
    now: Instant,
    counters: LiteMap<u8, Counters>,
    rates: [(u8, f64); 3],
    bond: &'static [u8],
    /// Whether all is slower with the overflow uplink.
    harmful: bool,
}

impl World {
    fn new() -> World {
        World {
            saturation: Saturation::default(),
            now: Instant::now(),
            counters: (0..3).map(|slot| (slot, Counters::default())).collect(),
            rates: [(0, 30.0), (1, 20.0), (2, 20.0)],
            bond: &[0, 1],
            harmful: false,
        }
    }

    fn carry(&mut self, down: f64, up: f64) {
        let engaged = self.saturation.is_engaged();
        let used = |slot: u8| slot < 2 || engaged;
        let (down, up) = if engaged && self.harmful { (20.0, up) } else { (down, up) };
        let all: f64 = self.rates.iter().filter(|(slot, _)| used(*slot)).map(|(_, r)| r).sum();
        for (slot, rate) in self.rates.into_iter().filter(|(slot, _)| used(*slot)) {
            let bytes = |demand: f64| (demand.min(all) * rate / all * 1e6 / 8.0) as u64;
            let counters = self.counters.get_mut(&slot).unwrap();
            counters.rx_bytes += bytes(down);
            counters.tx_bytes += bytes(up);
        }
        self.now += SECOND;
        self.saturation.count(&self.counters, self.bond, &[2], self.now);
    }

    /// Runs with demands in Mbit/s for some seconds; gives the seconds in which it was engaged.
    fn run(&mut self, seconds: u32, down: f64, up: f64) -> u32 {
        (0..seconds)
            .map(|_| {
                self.carry(down, up);
                u32::from(self.saturation.is_engaged())
            })
            .sum()
    }

    /// Seconds until it is engaged, or released.
    fn until(&mut self, engaged: bool, down: f64, up: f64) -> u32 {
        (1..=1000)
            .find(|_| {
                self.carry(down, up);
                self.saturation.is_engaged() == engaged
            })
            .expect("it never happens")
    }
}

#[test]
fn saturated_uplinks_engage_within_seconds_and_release_when_the_demand_fits() {
    for (down, up) in [(500.0, 10.0), (10.0, 500.0), (70.0, 70.0)] {
        let mut world = World::new();
        assert_eq!(world.run(60, 0.9, 0.1), 0, "nothing to speak of");
        let time = world.until(true, down, up);
        assert!(time <= 6, "{time} s");
        assert_eq!(world.run(300, down, up), 300, "as long as there is demand");
        let [down, up] = [down, up].map(|demand| demand.min(70.0) * 0.4);
        let time = world.until(false, down, up);
        assert!((10..=16).contains(&time), "{time} s");
        assert_eq!(world.run(300, down, up), 0);
    }
}

#[test]
fn demand_just_above_what_the_bond_uplinks_can_do_does_not_flap() {
    let mut world = World::new();
    world.until(true, 500.0, 0.9);
    world.run(20, 500.0, 0.9);
    for demand in [55.0, 50.0, 45.0, 40.0] {
        assert_eq!(world.run(60, demand, 1.0), 60, "{demand}");
    }
}

#[test]
fn a_limited_demand_is_found_out_by_a_trial_and_tried_ever_more_rarely() {
    let mut world = World::new();
    // Never saw more than this, so it might be all that the uplinks can do.
    let tried = world.run(3600, 12.0, 0.3);
    assert!((6..=70).contains(&tried), "{tried} s of an hour");
    // A demand that is there is noticed, after what is left of the wait.
    assert!(world.until(true, 500.0, 0.9) <= 600);
    assert_eq!(world.run(300, 500.0, 0.9), 300);
}

#[test]
fn an_overflow_uplink_that_slows_all_down_is_released_soon() {
    let mut world = World::new();
    world.harmful = true;
    let used = world.run(3600, 500.0, 0.9);
    assert!(used < 400, "{used} s of an hour");
}

#[test]
fn known_capacity_saves_the_trial() {
    let mut world = World::new();
    world.until(true, 500.0, 0.9);
    world.run(20, 500.0, 0.9);
    world.until(false, 0.0, 0.0);
    assert_eq!(world.run(120, 25.0, 0.6), 0, "half of what was seen");
    assert_eq!(world.run(3600, 0.0, 0.0), 0);
    assert_eq!(world.run(120, 25.0, 0.6), 0, "idleness makes nothing be forgotten");
    assert!(world.until(true, 500.0, 0.9) <= 6);
}

#[test]
fn a_capacity_that_shrank_is_learnt() {
    let mut world = World::new();
    world.until(true, 500.0, 0.9);
    world.until(false, 0.0, 0.0);
    world.rates = [(0, 15.0), (1, 10.0), (2, 20.0)];
    let time = world.until(true, 500.0, 0.9);
    assert!((60..900).contains(&time), "{time} s");
    assert_eq!(world.run(60, 500.0, 0.9), 60);
}

#[test]
fn bursts_do_not_engage() {
    let mut world = World::new();
    world.until(true, 500.0, 0.9);
    world.until(false, 0.0, 0.0);
    for _ in 0..100 {
        assert_eq!(world.run(2, 500.0, 0.9) + world.run(6, 0.0, 0.0), 0);
    }
}

#[test]
fn demand_that_comes_and_goes_is_held_for_longer() {
    let mut world = World::new();
    let mut releases = Vec::new();
    for _ in 0..8 {
        world.until(true, 500.0, 0.9);
        world.run(20, 500.0, 0.9);
        releases.push(world.until(false, 5.0, 0.1));
    }
    assert!(releases.is_sorted(), "{releases:?}");
    assert!(releases[0] <= 16 && (150..=170).contains(&releases[7]), "{releases:?}");
    world.run(120, 5.0, 0.1);
    world.until(true, 500.0, 0.9);
    world.run(20, 500.0, 0.9);
    assert_eq!(world.until(false, 5.0, 0.1), releases[0]);
}

#[test]
fn acknowledgements_are_no_load() {
    let mut world = World::new();
    world.until(true, 500.0, 0.9);
    world.until(false, 0.0, 0.0);
    // The most that ever went up, and yet only 3 % of what comes down.
    assert_eq!(world.run(120, 30.0, 1.2), 0);
}

#[test]
fn without_bond_or_overflow_uplinks_there_is_no_overflow() {
    let mut world = World::new();
    world.until(true, 500.0, 0.9);
    world.bond = &[];
    assert_eq!(world.run(60, 500.0, 0.9), 0);
    world.bond = &[0];
    world.saturation.count(&world.counters, &[0], &[], world.now);
    assert!(!world.saturation.is_engaged());
}

#[test]
fn counters_that_fall_and_samples_at_once_are_harmless() {
    let mut world = World::new();
    world.until(true, 500.0, 0.9);
    for _ in 0..100 {
        world.saturation.count(&world.counters, &[0, 1], &[2], world.now);
    }
    assert!(world.saturation.is_engaged());
    world.counters.insert(0, Counters::default());
    world.counters.remove(&1);
    world.now += SECOND;
    world.saturation.count(&world.counters, &[0, 1], &[2], world.now);
    let most = Counters { rx_bytes: u64::MAX, tx_bytes: u64::MAX };
    world.counters.insert(0, most);
    world.now += SECOND;
    world.saturation.count(&world.counters, &[0, 1], &[2], world.now);
}
