use proptest::prelude::*;

use super::*;
use crate::config::agent::Role;
use crate::uplink::tests::config;

const GB: u64 = 1_000_000_000;
const HOUR: Duration = Duration::from_secs(3600);

/// Noon of a day, in seconds since 1970.
fn noon(date: &str) -> u64 {
    let day: Day = date.parse().unwrap();
    (0..).map(|day| day * 86_400 + 43_200).find(|&seconds| Day::of_unix(seconds) == day).unwrap()
}

/// An uplink `lte` with a quota of 50 GB that is reset on the first, and what becomes of it.
struct World {
    uplinks: Vec<UplinkConfig>,
    usage: Usage,
    now: Instant,
    clock: u64,
    reading: Reading,
}

impl World {
    fn new(date: &str) -> World {
        let quota = Quota { bytes: 50 * GB, reset_day: 1, action: QuotaAction::Backup };
        let mut lte = config("lte", "wwan0", Role::Bond);
        lte.quota = Some(quota);
        let mut world = World {
            uplinks: vec![lte],
            usage: Usage::new("boot 1"),
            now: Instant::now(),
            clock: noon(date),
            reading: Reading { device: "wwan0".into(), index: 3, bytes: 7 * GB },
        };
        world.count();
        world
    }

    fn quota(&mut self) -> &mut Quota {
        self.uplinks[0].quota.as_mut().unwrap()
    }

    fn count(&mut self) {
        let readings = [("lte".to_owned(), self.reading.clone())].into_iter().collect();
        self.usage.count(&self.uplinks, &readings, self.clock, self.now);
    }

    /// Carries bytes on a day.
    fn carry(&mut self, bytes: u64, date: &str) {
        self.clock = noon(date);
        self.reading.bytes += bytes;
        self.count();
    }

    /// For instance `3 GB since 2026-11-01 until 2026-12-01`.
    fn standing(&self) -> String {
        let Standing { bytes, since, until } = self.usage.standing("lte").unwrap();
        let date = |day: Option<Day>| day.map_or("?".to_owned(), |day| day.to_string());
        format!("{} GB since {} until {}", bytes / GB, date(since), date(until))
    }

    /// The agent ends and starts again, with what it wrote.
    fn restart(&mut self, boot: &str) {
        self.usage = Usage::from_json(self.usage.to_json().as_bytes(), boot).unwrap();
    }

    fn save_due(&mut self) -> Option<Save> {
        self.usage.save_due(&self.uplinks, self.now)
    }
}

#[test]
fn bytes_count_from_the_first_reading_on_and_anew_each_period() {
    let mut world = World::new("2026-11-20");
    assert_eq!(world.standing(), "0 GB since 2026-11-01 until 2026-12-01");
    world.carry(3 * GB, "2026-11-30");
    assert_eq!(world.standing(), "3 GB since 2026-11-01 until 2026-12-01");
    world.carry(GB, "2026-12-01");
    assert_eq!(world.standing(), "1 GB since 2026-12-01 until 2027-01-01");
}

#[test]
fn a_device_made_anew_counts_from_zero_and_another_one_from_where_it_is() {
    let mut world = World::new("2026-11-20");
    world.reading = Reading { index: 4, bytes: 2 * GB, ..world.reading };
    world.count();
    assert_eq!(world.standing(), "2 GB since 2026-11-01 until 2026-12-01");
    world.reading = Reading { index: 5, bytes: 90 * GB, ..world.reading };
    world.count();
    assert_eq!(world.standing(), "92 GB since 2026-11-01 until 2026-12-01", "although it is more");
    world.reading.bytes = GB;
    world.count();
    assert_eq!(world.standing(), "93 GB since 2026-11-01 until 2026-12-01", "its counter fell");
    world.reading = Reading { device: "eth7".into(), index: 1, bytes: 300 * GB };
    world.count();
    assert_eq!(world.standing(), "93 GB since 2026-11-01 until 2026-12-01");
}

#[test]
fn a_restart_loses_nothing_and_counts_nothing_twice() {
    let mut world = World::new("2026-11-20");
    world.carry(3 * GB, "2026-11-20");
    world.restart("boot 1");
    // What went over the device while there was no agent.
    world.carry(2 * GB, "2026-11-20");
    assert_eq!(world.standing(), "5 GB since 2026-11-01 until 2026-12-01");

    world.restart("boot 2");
    world.reading.bytes = 20 * GB;
    world.count();
    assert_eq!(world.standing(), "25 GB since 2026-11-01 until 2026-12-01", "all since the boot");
}

#[test]
fn a_clock_that_is_wrong_at_boot_resets_nothing() {
    let mut world = World::new("2026-11-20");
    world.carry(60 * GB, "2026-11-20");
    for wrong in ["1970-01-01", "2000-01-01", "2026-10-31"] {
        world.restart("boot 1");
        world.carry(GB, wrong);
        assert!(!world.usage.caps(&world.uplinks).is_empty(), "{wrong}");
    }
    world.carry(0, "2026-11-21");
    assert_eq!(world.standing(), "63 GB since 2026-11-01 until 2026-12-01");
    world.carry(0, "2026-12-02");
    assert_eq!(world.standing(), "0 GB since 2026-12-01 until 2027-01-01");
}

#[test]
fn bytes_before_the_clock_was_ever_right_belong_to_the_first_period() {
    let mut world = World::new("1970-01-01");
    world.carry(51 * GB, "1970-01-01");
    assert_eq!(world.standing(), "51 GB since ? until ?");
    let cap = *world.usage.caps(&world.uplinks).get("lte").unwrap();
    assert_eq!(cap.to_string(), "quota of 50.0 GB reached (51.0 GB): backup");
    world.carry(GB, "2026-11-20");
    assert_eq!(world.standing(), "52 GB since 2026-11-01 until 2026-12-01");
}

#[test]
fn a_clock_from_the_future_is_recovered_from() {
    let mut world = World::new("2026-11-20");
    world.carry(10 * GB, "2026-11-20");
    world.carry(GB, "2099-05-05");
    assert_eq!(world.standing(), "1 GB since 2099-05-01 until 2099-06-01");
    world.carry(GB, "2026-11-20");
    assert_eq!(world.standing(), "2 GB since 2099-05-01 until 2099-06-01", "it may be wrong now");
    world.now += HOUR;
    world.carry(GB, "2026-11-20");
    assert_eq!(world.standing(), "11 GB since 2026-11-01 until 2026-12-01");
}

#[test]
fn another_reset_day_keeps_the_bytes() {
    for (reset_day, standing) in [
        (15, "3 GB since 2026-11-15 until 2026-12-15"),
        (25, "3 GB since 2026-10-25 until 2026-11-25"),
    ] {
        let mut world = World::new("2026-11-20");
        world.carry(3 * GB, "2026-11-20");
        world.quota().reset_day = reset_day;
        world.count();
        assert_eq!(world.standing(), standing);
        world.quota().reset_day = 1;
        world.count();
        assert_eq!(world.standing(), "3 GB since 2026-11-01 until 2026-12-01");
    }
}

#[test]
fn a_quota_is_reached_and_says_so() {
    let mut world = World::new("2026-11-20");
    world.carry(50 * GB - 1, "2026-11-20");
    assert!(world.usage.caps(&world.uplinks).is_empty());
    world.carry(100_000_001, "2026-11-20");
    let caps = world.usage.caps(&world.uplinks);
    let text = "quota of 50.0 GB reached (50.1 GB since 1 Nov): backup until 1 Dec";
    assert_eq!(caps.get("lte").unwrap().to_string(), text);
    world.quota().action = QuotaAction::Off;
    world.quota().bytes = 20 * GB;
    let caps = world.usage.caps(&world.uplinks);
    let text = "quota of 20.0 GB reached (50.1 GB since 1 Nov): off until 1 Dec";
    assert_eq!(caps.get("lte").unwrap().to_string(), text);
    world.uplinks[0].quota = None;
    assert!(world.usage.caps(&world.uplinks).is_empty());
}

#[test]
fn flash_is_written_at_the_cap_each_twentieth_and_otherwise_rarely() {
    let mut world = World::new("2026-11-20");
    assert_eq!(world.save_due(), Some(Save::Flash), "at first");
    assert_eq!(world.save_due(), None);
    world.carry(2 * GB, "2026-11-20");
    assert_eq!(world.save_due(), None);
    world.now += Duration::from_secs(60);
    assert_eq!(world.save_due(), Some(Save::Memory));
    world.carry(GB, "2026-11-20");
    assert_eq!(world.save_due(), Some(Save::Flash), "5 % more");
    world.carry(1, "2026-11-20");
    world.now += 6 * HOUR;
    assert_eq!(world.save_due(), Some(Save::Flash), "after a while");
    world.now += 6 * HOUR;
    assert_eq!(world.save_due(), Some(Save::Memory), "nothing is new");
    for bytes in [46 * GB, GB] {
        world.carry(bytes, "2026-11-20");
        assert_eq!(world.save_due(), Some(Save::Flash), "before the cap, and at it");
    }
    world.carry(0, "2026-12-01");
    assert_eq!(world.save_due(), Some(Save::Flash), "another period");
}

#[test]
fn flash_is_written_once_a_day_for_uplinks_without_quota() {
    let mut world = World::new("2026-11-20");
    world.uplinks[0].quota = None;
    let mut flashed = 0;
    for _ in 0..10 * 24 {
        world.now += HOUR;
        world.carry(30 * GB, "2026-11-20");
        flashed += u32::from(world.save_due() == Some(Save::Flash));
    }
    assert!((9..=10).contains(&flashed), "{flashed}");
}

#[test]
fn a_start_writes_no_flash_for_what_is_there_already() {
    let mut world = World::new("2026-11-20");
    world.carry(3 * GB, "2026-11-20");
    world.restart("boot 1");
    world.carry(1, "2026-11-20");
    assert_eq!(world.save_due(), Some(Save::Memory));
}

#[test]
fn uplinks_that_are_not_configured_for_a_while_keep_their_counts() {
    let mut world = World::new("2026-11-20");
    world.carry(3 * GB, "2026-11-20");
    let configured = std::mem::take(&mut world.uplinks);
    world.count();
    world.uplinks = configured;
    world.carry(GB, "2026-11-20");
    assert_eq!(world.standing(), "4 GB since 2026-11-01 until 2026-12-01");
    for n in 0..=STRANGERS {
        world.uplinks[0].name = format!("u{n}");
        world.count();
    }
    assert!(world.usage.accounts.len() <= STRANGERS + 1, "but there is an end to them");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever the clock does, each byte is counted once.
    #[test]
    fn no_byte_is_lost_or_counted_twice(
        steps in prop::collection::vec((0..200_000_000u64, 0..5000u64, 0..3u8), 1..30),
        days in prop::collection::vec(0..40u64, 1..4),
    ) {
        let mut world = World::new("2026-11-20");
        let mut total = 0;
        for (step, &(bytes, seconds, deed)) in steps.iter().enumerate() {
            world.now += Duration::from_secs(seconds);
            match deed {
                0 => world.restart("boot 1"),
                1 => world.reading = Reading {
                    index: world.reading.index + 1,
                    bytes: 0,
                    ..world.reading
                },
                // Three periods at most: more are not remembered.
                _ => world.clock = noon("2026-11-10") + days[step % days.len()] * 86_400,
            }
            total += bytes;
            world.reading.bytes += bytes;
            world.count();
            let counts = &world.usage.accounts["lte"].counts;
            prop_assert_eq!(counts.iter().map(|count| count.bytes).sum::<u64>(), total);
        }
    }

    #[test]
    fn no_file_makes_it_panic(
        text in "\\PC{0,200}",
        reading in any::<u64>(),
        bytes in any::<u64>(),
        clock in any::<u64>(),
        cut in 0..400usize,
    ) {
        let mut world = World::new("2026-11-20");
        let mut json = world.usage.to_json().replace("7000000000", &bytes.to_string());
        prop_assert!(Usage::from_json(text.as_bytes(), "").is_err());
        if let Ok(usage) = Usage::from_json(json.as_bytes(), "boot 1") {
            world.usage = usage;
        }
        json.truncate(cut.min(json.len() - 2));
        prop_assert!(Usage::from_json(json.as_bytes(), "").is_err());
        world.reading.bytes = reading;
        world.clock = clock;
        world.count();
        world.now += 2 * HOUR;
        world.count();
        world.usage.caps(&world.uplinks);
        world.save_due();
    }
}

#[test]
fn each_day_has_its_bytes_also_after_a_restart() {
    let mut world = World::new("2026-11-29");
    world.carry(3 * GB, "2026-11-30");
    world.carry(GB, "2026-12-01");
    world.restart("boot 1");
    world.carry(2 * GB, "2026-12-01");
    let days = |world: &World| -> Vec<(String, u64)> {
        let days = world.usage.days("lte").iter();
        days.map(|count| (count.day.to_string(), count.bytes / GB)).collect()
    };
    let expected = [("2026-11-29", 0), ("2026-11-30", 3), ("2026-12-01", 3)];
    assert_eq!(days(&world), expected.map(|(day, bytes)| (day.to_owned(), bytes)));
    world.clock = 0;
    world.reading.bytes += GB;
    world.count();
    assert_eq!(days(&world).len(), 3, "a clock that is wrong makes no day");
    let last = noon("2026-12-01");
    for day in 1..200 {
        world.clock = last + day * 86_400;
        world.count();
    }
    assert_eq!(world.usage.days("lte").len(), DAYS);
    assert_eq!(world.usage.days("wan"), []);
}
