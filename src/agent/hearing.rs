//! What subflows show of the uplinks that they leave over.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use litemap::LiteMap;

use crate::health::Signs;
use crate::os::socket::Subflow;

/// Waiting in vain for so long, and three round trips, is a stall: more than a retransmission timeout.
const STALL: Duration = Duration::from_millis(800);

/// Remembers what subflows had brought. A peer that is not heard itself sends again and again what
/// arrived long ago: on a path that has failed in one direction this shows nothing.
#[derive(Debug, Default)]
pub struct Hearing {
    by_ends: LiteMap<(SocketAddr, SocketAddr), Heard>,
}

/// What a subflow had brought when it last showed that both directions work, and when that was.
#[derive(Clone, Copy, Debug)]
struct Heard {
    moved: u64,
    segments: u32,
    data_segments: u32,
    at: Instant,
}

impl Heard {
    fn of(subflow: &Subflow, before: Option<&Heard>, now: Instant) -> Heard {
        let &Subflow { moved, segments, data_segments, unacked, .. } = subflow;
        let in_vain = |before: &&Heard| {
            // An idle subflow moves nothing, but its keepalive probes are acknowledged.
            let answered = unacked == 0
                && segments != before.segments
                && data_segments == before.data_segments;
            moved <= before.moved && !answered
        };
        let at = now.checked_sub(subflow.heard_ago).unwrap_or(now);
        *before.filter(in_vain).unwrap_or(&Heard { moved, segments, data_segments, at })
    }
}

impl Hearing {
    /// What established subflows show of the uplinks, by slot; each comes with the slot it leaves over.
    pub fn take(
        &mut self,
        subflows: impl Iterator<Item = (u8, Subflow)>,
        now: Instant,
    ) -> LiteMap<u8, Signs> {
        let before = std::mem::take(&mut self.by_ends);
        let mut by_slot: LiteMap<u8, Signs> = LiteMap::new();
        for (slot, subflow) in subflows {
            let ends = (subflow.local, subflow.remote);
            let heard = Heard::of(&subflow, before.get(&ends), now);
            self.by_ends.insert(ends, heard);
            let signs = by_slot.entry(slot).or_insert(Signs {
                heard: heard.at,
                stalled: false,
                rtt: subflow.rtt,
            });
            signs.heard = signs.heard.max(heard.at);
            signs.stalled |= subflow.unacked > 0 || subflow.segments != heard.segments;
            signs.rtt = signs.rtt.min(subflow.rtt);
        }
        for (_, signs) in &mut by_slot {
            let silence = now.saturating_duration_since(signs.heard);
            signs.stalled &= silence > STALL.max(signs.rtt * 3);
        }
        by_slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A subflow that has just received a segment.
    const SUBFLOW: Subflow = Subflow {
        local: SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 1)),
        remote: SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 2)),
        state: 1,
        unacked: 0,
        data_ago: Duration::ZERO,
        heard_ago: Duration::ZERO,
        moved: 10_000,
        segments: 20,
        data_segments: 10,
        rtt: Duration::from_millis(30),
        min_rtt: Duration::from_millis(20),
        retransmitted: 0,
        out_of_order: 0,
    };

    /// A look each 200 ms at an uplink's only subflow, which `change` has meanwhile changed so often: how
    /// long ago it was heard last, and whether it is stalled.
    fn watch(looks: u32, change: impl Fn(&mut Subflow)) -> (Duration, bool) {
        let start = Instant::now();
        let (mut hearing, mut subflow) = (Hearing::default(), SUBFLOW);
        hearing.take([(0, subflow)].into_iter(), start);
        let now = start + looks * 200 * MS;
        let mut signs = LiteMap::new();
        for look in 1..=looks {
            change(&mut subflow);
            signs = hearing.take([(0, subflow)].into_iter(), start + look * 200 * MS);
        }
        (now - signs[&0].heard, signs[&0].stalled)
    }

    #[test]
    fn data_and_acknowledgements_are_heard() {
        let received = |subflow: &mut Subflow| {
            (subflow.moved, subflow.segments) = (subflow.moved + 1000, subflow.segments + 1);
            subflow.data_segments += 1;
        };
        assert_eq!(watch(10, received), (Duration::ZERO, false));
        let acknowledged = |subflow: &mut Subflow| {
            (subflow.moved, subflow.segments) = (subflow.moved + 1000, subflow.segments + 1);
            subflow.unacked = 5;
        };
        assert_eq!(watch(10, acknowledged), (Duration::ZERO, false));
        let kept_alive = |subflow: &mut Subflow| subflow.segments += 1;
        assert_eq!(watch(10, kept_alive), (Duration::ZERO, false));
    }

    #[test]
    fn what_arrives_again_shows_nothing_and_in_the_end_a_stall() {
        let again = |subflow: &mut Subflow| {
            (subflow.segments, subflow.data_segments) =
                (subflow.segments + 1, subflow.data_segments + 1);
        };
        assert_eq!(watch(3, again), (600 * MS, false));
        assert_eq!(watch(10, again), (2000 * MS, true));
        let windows = |subflow: &mut Subflow| (subflow.segments, subflow.unacked) = (21, 5);
        assert_eq!(watch(10, windows), (2000 * MS, true));
    }

    #[test]
    fn an_idle_subflow_is_not_stalled() {
        let silent = |subflow: &mut Subflow| subflow.heard_ago += 200 * MS;
        assert_eq!(watch(10, silent), (2000 * MS, false));
        let waiting = |subflow: &mut Subflow| (silent(subflow), subflow.unacked = 1).1;
        assert_eq!(watch(10, waiting), (2000 * MS, true));
    }
}
