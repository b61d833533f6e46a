//! An uplink that goes and comes without end, and what the other one is still worth.

use std::fmt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::failures::{Users, all_well};
use super::traffic::Transfer;
use super::{AgentProgram, Direction, Lab, Uplink};

/// So long it is gone, and so long it is there.
const HALF: Duration = Duration::from_secs(2);
/// What the transfer may take to get used to a change of the uplinks.
const RAMP: Duration = Duration::from_secs(2);
/// How long the other uplink alone is measured.
const ALONE: Duration = Duration::from_secs(6);

/// How the first uplink flaps.
pub struct Flapping {
    /// What it is called.
    pub name: &'static str,
    go: fn(&Uplink),
    come: fn(&Uplink),
}

/// A path that dies silently, and a plug that is loose.
pub const FLAPPINGS: [Flapping; 2] = [
    Flapping {
        name: "black hole",
        go: |wan| wan.blackhole(Direction::Both),
        come: Uplink::restore,
    },
    Flapping { name: "link down", go: Uplink::link_down, come: Uplink::link_up },
];

/// What a transfer was worth, in Mbit/s.
#[derive(Clone, Copy, Debug)]
pub struct Flapped {
    /// Over the other uplink while the first was gone for good.
    pub alone: f64,
    /// While the first flapped.
    pub flapping: f64,
    /// In the worst four seconds of that.
    pub worst: f64,
    /// How often the agent took the flapping uplink into use.
    pub taken: usize,
    /// Lines of its log meanwhile.
    pub lines: usize,
}

impl Flapped {
    /// What is left of the other uplink's goodput.
    pub fn share(&self) -> f64 {
        self.flapping / self.alone
    }
}

impl fmt::Display for Flapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Flapped { alone, flapping, worst, taken, lines } = self;
        write!(
            f,
            "{alone:.1} Mbit/s alone, {flapping:.1} beside the flapping uplink, {worst:.1} in the \
             worst four seconds; taken into use {taken} times, {lines} lines of log"
        )
    }
}

impl Flapping {
    /// Measures one transfer: over the other uplink alone, and while the first flaps for so long.
    #[track_caller]
    pub fn measure(
        &self,
        is_download: bool,
        time: Duration,
        lab: &Lab,
        agent: &mut AgentProgram,
        users: &Users,
    ) -> Flapped {
        all_well(agent);
        let wan = lab.uplink(0);
        let transfer = users.transfer(is_download);
        (self.go)(wan);
        let begun = Instant::now();
        sleep(RAMP + ALONE);
        let between = |transfer: &Transfer, from: Instant, to: Instant| {
            let report = transfer.report();
            report.goodput_between(report.at(from), report.at(to))
        };
        let alone = between(&transfer, begun + RAMP, begun + RAMP + ALONE);
        (self.come)(wan);
        all_well(agent);

        let before = log(agent);
        let begun = Instant::now();
        let mut worst = f64::MAX;
        while begun.elapsed() < time {
            let period = Instant::now();
            (self.go)(wan);
            sleep(HALF);
            (self.come)(wan);
            sleep(HALF);
            worst = worst.min(between(&transfer, period, Instant::now()));
            assert!(!transfer.is_finished(), "the connection was lost");
        }
        let flapping = between(&transfer, begun, Instant::now());
        let after = log(agent);
        let news = after.strip_prefix(before.as_str()).unwrap_or(&after);
        let in_use = format!("uplink {}: in use", wan.device());
        let taken = news.lines().filter(|line| line.contains(&in_use)).count();
        assert_eq!(transfer.stop().corrupt_at, None);
        Flapped { alone, flapping, worst, taken, lines: news.lines().count() }
    }
}

fn log(agent: &mut AgentProgram) -> String {
    agent.process().output()
}
