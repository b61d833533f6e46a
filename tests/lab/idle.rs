//! What an agent costs that has nothing to do.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{AgentProgram, Lab, Uplink};

/// Warm streams are opened and neighbours found within this time.
const SETTLING: Duration = Duration::from_secs(5);

/// The cost of an idle agent.
#[derive(Clone, Debug)]
pub struct Idle {
    /// Bytes a second of IP packets on each uplink, both directions added.
    pub bytes: Vec<f64>,
    /// The share of a processor core.
    pub cpu: f64,
}

impl Idle {
    /// Watches an agent for so long.
    #[track_caller]
    pub fn watch(time: Duration, lab: &Lab, agent: &mut AgentProgram) -> Idle {
        sleep(SETTLING);
        let total = || -> Vec<u64> { lab.uplinks().iter().map(Uplink::ip_bytes).collect() };
        let (bytes, cpu, begun) = (total(), agent.process().cpu_time(), Instant::now());
        sleep(time);
        let (after, used) = (total(), agent.process().cpu_time() - cpu);
        let seconds = begun.elapsed().as_secs_f64();
        let rate = |(after, before): (&u64, &u64)| (after - before) as f64 / seconds;
        let bytes = after.iter().zip(&bytes).map(rate).collect();
        Idle { bytes, cpu: used.as_secs_f64() / seconds }
    }
}
