//! What becomes of uplinks that lose probes at random.

use super::*;

/// The flow of an uplink that carries data, while it loses some.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// As if nothing was lost.
    Unknown,
    /// A twentieth of what it was.
    Collapsed,
    /// It falls to that and rises again each second.
    Restless,
}

/// For a hundred uplinks that carry data and lose so many of a thousand probes at random, of which the
/// subflows hear nothing: after how many milliseconds each is out of use, and the share of ten seconds.
fn out_of_use(lost: u64, flow: Flow) -> (Vec<Option<u64>>, f64) {
    let mut total = 0;
    let lines = (1..=100_u64).map(|seed| {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state >> 11
        };
        let mut line = if flow == Flow::Unknown { Line::settled(true) } else { busy() };
        let mut first = None;
        for look in 0..200 {
            line.flow = match flow {
                Flow::Unknown | Flow::Collapsed => 0,
                Flow::Restless => u64::from(look % 20 < 16),
            };
            line.packets += if flow == Flow::Unknown { 0 } else { 5 };
            line.run(50, |_| (random() % 1000 >= lost).then_some(20));
            line.health.on_subflows(line.now, signs(line.now, 10, false));
            if line.health.state() == State::Down || line.health.is_lossy() {
                first.get_or_insert(line.ms());
                total += 1;
            }
        }
        first
    });
    (lines.collect(), f64::from(total) / 20_000.0)
}

/// How many of them are out of use within so many milliseconds.
fn within(ms: u64, first: &[Option<u64>]) -> usize {
    first.iter().flatten().filter(|at| **at <= ms).count()
}

// 30 % of packets each way are 51 % of probes, and 2 % are 4 %.
const HEAVY: u64 = 510;
const LIGHT: u64 = 40;

#[test]
fn heavy_loss_takes_an_uplink_out_of_use() {
    let (first, share) = out_of_use(HEAVY, Flow::Unknown);
    assert!(within(2500, &first) >= 90 && share > 0.8, "{share}: {first:?}");
}

#[test]
fn a_flow_that_collapses_shows_it_sooner() {
    let (first, _) = out_of_use(HEAVY, Flow::Collapsed);
    assert!(within(250, &first) >= 90 && within(400, &first) >= 95, "{first:?}");
}

#[test]
fn light_loss_does_not() {
    for flow in [Flow::Unknown, Flow::Collapsed, Flow::Restless] {
        let (first, share) = out_of_use(LIGHT, flow);
        assert!(share < 0.02, "{share}: {first:?}");
    }
}

#[test]
fn nor_does_a_short_outage() {
    for outage in (20..200).step_by(10) {
        let mut line = busy();
        line.flow = 0;
        line.run(outage, |_| None);
        line.flow = 1;
        line.run(5000, |_| Some(20));
        assert_eq!(line.log, [], "{outage} ms");
        assert!(!line.health.is_lossy(), "{outage} ms");
    }
}

#[test]
fn a_restless_flow_is_probed_at_next_to_nothing() {
    let mut line = busy();
    for look in 0..200 {
        line.flow = u64::from(look % 2 == 0) * 2;
        line.run(50, |_| Some(20));
    }
    assert!(line.sent <= 520, "{} probes in 10 s", line.sent);
}

#[test]
fn a_probe_that_a_later_one_overtook_well_is_lost_at_once_and_no_sooner() {
    let mut line = Line::settled(true);
    let ask = |line: &mut Line, ms: u32, seq: u64| line.health.on_sent(line.now + MS * ms, seq);
    for (ms, seq) in [(0, 1000), (4, 1001), (10, 1002)] {
        ask(&mut line, ms, seq);
    }
    line.health.on_reply(line.now + MS * 24, 1001);
    assert_eq!(line.health.loss(), Some(0.0), "out of order by less than a quarter of the RTT");
    line.health.on_reply(line.now + MS * 30, 1002);
    assert_eq!(line.health.loss(), Some(1.0 / 32.0));
    line.health.on_reply(line.now + MS * 40, 1000);
    assert_eq!(line.health.loss(), Some(0.0), "it was late");
}
