//! Whether a connection's losses are congestion.
//!
//! A loss-based congestion control takes every loss for a full queue. Where packets are lost for
//! other reasons, as on radio links, or the queue is much shorter than the path, it leaves most of
//! the uplink unused: at 60 ms and 1 % of loss 3 of 20 Mbit/s.

use std::net::SocketAddr;
use std::time::Duration;

use litemap::LiteMap;

use crate::os::socket::Subflow;

/// Fewer segments sent again between two looks may be a coincidence.
const LEAST: u32 = 2;

/// Looks at a connection's subflows, again and again, until losses turn out to be random.
#[derive(Debug, Default)]
pub(super) struct Losses {
    found: bool,
    /// Segments sent again, of subflows whose queue was short.
    short: LiteMap<(SocketAddr, SocketAddr), u32>,
}

impl Losses {
    /// Whether a subflow has lost packets between two looks at both of which its queue was short:
    /// at most a quarter of the path's own delay. True once at most.
    pub(super) fn are_random(&mut self, subflows: &[Subflow]) -> bool {
        if self.found {
            return false;
        }
        let before = std::mem::take(&mut self.short);
        for subflow in subflows.iter().filter(|subflow| has_short_queue(subflow)) {
            let ends = (subflow.local, subflow.remote);
            self.short.insert(ends, subflow.retransmitted);
            let lost = before.get(&ends).map(|then| subflow.retransmitted.saturating_sub(*then));
            self.found |= lost.is_some_and(|lost| lost >= LEAST);
        }
        self.found
    }
}

fn has_short_queue(subflow: &Subflow) -> bool {
    subflow.is_established()
        && subflow.min_rtt > Duration::ZERO
        && subflow.rtt.saturating_sub(subflow.min_rtt) <= subflow.min_rtt / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subflow(port: u16, rtt: u64, retransmitted: u32) -> Subflow {
        Subflow {
            local: ([10, 0, 0, 1], port).into(),
            remote: ([10, 0, 0, 2], 443).into(),
            state: 1,
            unacked: 0,
            data_ago: Duration::ZERO,
            heard_ago: Duration::ZERO,
            moved: 0,
            segments: 0,
            data_segments: 0,
            rtt: Duration::from_millis(rtt),
            min_rtt: Duration::from_millis(40),
            retransmitted,
            out_of_order: 0,
        }
    }

    /// What each of some looks at a single subflow says.
    fn looks<const N: usize>(looks: [(u64, u32); N]) -> [bool; N] {
        let mut losses = Losses::default();
        looks.map(|(rtt, lost)| losses.are_random(&[subflow(1, rtt, lost)]))
    }

    #[test]
    fn losses_without_a_queue_are_random() {
        assert_eq!(looks([(41, 0), (42, 3)]), [false, true]);
        assert_eq!(looks([(41, 5), (42, 5), (44, 8), (41, 20)]), [false, false, true, false]);
    }

    #[test]
    fn losses_of_a_full_queue_are_congestion() {
        assert_eq!(looks([(41, 0), (90, 60), (41, 70), (41, 70)]), [false; 4]);
        assert_eq!(looks([(90, 0), (90, 60), (80, 70)]), [false; 3]);
    }

    #[test]
    fn a_single_loss_and_another_subflows_losses_say_nothing() {
        assert_eq!(looks([(41, 0), (41, 1), (41, 2)]), [false; 3]);
        let mut losses = Losses::default();
        assert!(!losses.are_random(&[subflow(1, 41, 0)]));
        assert!(!losses.are_random(&[subflow(2, 41, 9)]));
    }

    #[test]
    fn what_was_never_measured_has_no_short_queue() {
        let idle = |lost| Subflow { min_rtt: Duration::ZERO, ..subflow(1, 0, lost) };
        let mut losses = Losses::default();
        assert!(!losses.are_random(&[idle(0)]));
        assert!(!losses.are_random(&[idle(9)]));
    }
}
