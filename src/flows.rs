//! UDP flows that are carried: which there are, and which are over.
//!
//! UDP does not say when a flow ends. One is over when it was idle for long, or when there are too
//! many and no other was idle for as long.

mod ways;

use std::time::{Duration, Instant};

use litemap::LiteMap;

use crate::tunnel::datagram::Flow;
pub use ways::{Signs, Ways};

/// How long a flow may be idle; two minutes, which RFC 4787 (4.3) expects of a NAT, too.
pub const IDLE: Duration = Duration::from_secs(120);
/// The same for a flow whose host sent a single datagram, as one that asks DNS does.
pub const IDLE_SINGLE: Duration = Duration::from_secs(30);

/// Flows, each with something that belongs to it and is dropped with it.
pub struct FlowTable<V> {
    flows: LiteMap<Flow, Entry<V>>,
    capacity: usize,
}

struct Entry<V> {
    value: V,
    used: Instant,
    single: bool,
}

impl<V> FlowTable<V> {
    /// No flows yet, and never more than `capacity`.
    pub fn new(capacity: usize) -> FlowTable<V> {
        FlowTable { flows: LiteMap::new(), capacity }
    }

    /// Adds a flow whose host has sent its first datagram; where there are too many, the one that
    /// was idle the longest gives way.
    pub fn insert(&mut self, flow: Flow, value: V, now: Instant) {
        if self.flows.len() >= self.capacity {
            let oldest = self.flows.iter().min_by_key(|(_, entry)| entry.used);
            let oldest = oldest.map(|(flow, _)| *flow);
            oldest.and_then(|oldest| self.flows.remove(&oldest));
        }
        self.flows.insert(flow, Entry { value, used: now, single: true });
    }

    /// A flow whose host has sent another datagram.
    pub fn sent(&mut self, flow: &Flow, now: Instant) -> Option<&V> {
        let entry = self.flows.get_mut(flow)?;
        (entry.used, entry.single) = (now, false);
        Some(&entry.value)
    }

    /// A flow whose target has sent a datagram.
    pub fn answered(&mut self, flow: &Flow, now: Instant) -> Option<&V> {
        let entry = self.flows.get_mut(flow)?;
        entry.used = now;
        Some(&entry.value)
    }

    /// What belongs to any flow that `matches`.
    pub fn find(&self, matches: impl Fn(&Flow) -> bool) -> Option<&V> {
        self.flows.iter().find(|(flow, _)| matches(flow)).map(|(_, entry)| &entry.value)
    }

    /// Drops the flows that are over; to be called now and then.
    pub fn expire(&mut self, now: Instant) {
        self.flows.retain(|_, entry| {
            let limit = if entry.single { IDLE_SINGLE } else { IDLE };
            now.saturating_duration_since(entry.used) < limit
        });
    }

    /// Drops all flows but those that `stays` names.
    pub fn retain(&mut self, stays: impl Fn(&Flow) -> bool) {
        self.flows.retain(|flow, _| stays(flow));
    }

    /// How many there are that `matches`.
    pub fn count(&self, matches: impl Fn(&Flow) -> bool) -> usize {
        self.flows.iter().filter(|(flow, _)| matches(flow)).count()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn flow(port: u16) -> Flow {
        Flow { host: ([192, 168, 1, 2], port).into(), target: ([192, 0, 2, 7], 5060).into() }
    }

    #[test]
    fn the_documents_times_are_right() {
        let document = include_str!("../docs/protocol.md");
        for (name, limit) in
            [("a flow without datagrams", IDLE), ("a flow of a single datagram", IDLE_SINGLE)]
        {
            assert!(document.contains(&format!("| {name} | {} |", limit.as_secs())), "{name}");
        }
    }

    #[test]
    fn a_question_is_over_sooner_than_a_call() {
        let (mut flows, start) = (FlowTable::new(8), Instant::now());
        flows.insert(flow(1), "question", start);
        flows.insert(flow(2), "call", start);
        flows.answered(&flow(1), start + SECOND).unwrap();
        flows.sent(&flow(2), start + SECOND).unwrap();
        flows.expire(start + SECOND + IDLE_SINGLE - SECOND / 2);
        assert_eq!(flows.len(), 2);
        flows.expire(start + SECOND + IDLE_SINGLE);
        assert_eq!((flows.len(), flows.sent(&flow(1), start)), (1, None));
        flows.expire(start + SECOND + IDLE - SECOND / 2);
        assert_eq!(flows.len(), 1);
        flows.answered(&flow(2), start + IDLE).unwrap();
        flows.expire(start + 2 * IDLE - SECOND);
        assert_eq!(flows.len(), 1, "answers keep it, too");
        flows.expire(start + 2 * IDLE);
        assert!(flows.is_empty());
    }

    #[test]
    fn who_was_idle_the_longest_gives_way() {
        let (mut flows, start) = (FlowTable::new(3), Instant::now());
        let held = Rc::new(());
        for port in 1..=3u16 {
            flows.insert(flow(port), held.clone(), start + SECOND * port.into());
        }
        flows.answered(&flow(1), start + SECOND * 4).unwrap();
        flows.insert(flow(4), held.clone(), start + SECOND * 5);
        let left: Vec<u16> =
            (1..=4).filter(|&port| flows.find(|it| it.host.port() == port).is_some()).collect();
        assert_eq!(left, [1, 3, 4]);
        assert_eq!(Rc::strong_count(&held), 4, "what belonged to it is gone");
    }
}
