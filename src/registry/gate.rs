//! Who may wait at the door: a cap on connections that have not shown who they are.
//!
//! At the cap the oldest connection of the busiest source gives way, so that a flood from one
//! address pushes out its own connections and not those of others. A flood from many addresses
//! does not push out those of clients that were here before: their sources are spared as long as
//! they leave most of the room to others.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use litemap::LiteMap;
use tokio::sync::Mutex;
use tokio::task::AbortHandle;
use tokio::time::sleep_until;

/// Sources of authenticated connections remembered.
const SOURCES_KNOWN: usize = 1024;
/// Handshakes of strangers begin this far apart at least: a handshake takes some tenths of a
/// millisecond of the processor, and whoever knows the server's public key can ask for any number.
const PACE: Duration = Duration::from_millis(5);
/// A known source is spared while it has no more than this part of all places.
const SPARED_SHARE: usize = 4;

/// Connections that are not authenticated yet.
pub struct Gate {
    capacity: usize,
    waiting: RefCell<Waiting>,
    /// When a stranger's last handshake began; those who wait queue up for it.
    last_handshake: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    count: usize,
    by_source: LiteMap<IpAddr, VecDeque<Place>>,
    /// Sources of authenticated connections, with the place each had last.
    known: LiteMap<IpAddr, u64>,
}

struct Place {
    id: u64,
    since: Instant,
    task: AbortHandle,
}

/// A place at the door; given back when dropped.
pub struct Pass {
    gate: Rc<Gate>,
    source: IpAddr,
    id: u64,
}

impl Gate {
    /// A gate for `capacity` connections at once (at least one).
    pub fn new(capacity: u32) -> Rc<Gate> {
        let capacity = usize::try_from(capacity).unwrap_or(usize::MAX).max(1);
        Rc::new(Gate { capacity, waiting: RefCell::default(), last_handshake: Mutex::default() })
    }

    /// Admits a connection served by `task`; also gives the source of the one that had to give
    /// way, if any.
    pub fn admit(
        self: &Rc<Gate>,
        address: IpAddr,
        task: AbortHandle,
        now: Instant,
    ) -> (Pass, Option<IpAddr>) {
        let source = source_of(address);
        let mut waiting = self.waiting.borrow_mut();
        let full = waiting.count >= self.capacity;
        let evicted = if full { waiting.evict(self.capacity / SPARED_SHARE) } else { None };
        let id = waiting.next;
        waiting.next = waiting.next.wrapping_add(1);
        waiting.count += 1;
        waiting.by_source.entry(source).or_default().push_back(Place { id, since: now, task });
        (Pass { gate: self.clone(), source, id }, evicted)
    }

    /// Ends connections that have been waiting since before `earliest`; returns where from.
    pub fn expire(&self, earliest: Instant) -> Vec<IpAddr> {
        let mut waiting = self.waiting.borrow_mut();
        let mut expired = Vec::new();
        for (source, queue) in &mut waiting.by_source {
            while let Some(place) = queue.pop_front_if(|place| place.since < earliest) {
                place.task.abort();
                expired.push(*source);
            }
        }
        waiting.by_source.retain(|_, queue| !queue.is_empty());
        waiting.count -= expired.len();
        expired
    }

    /// Whether half of all places or more are taken.
    pub fn is_filling(&self) -> bool {
        self.waiting() >= self.capacity / 2
    }

    /// How many are waiting.
    pub fn waiting(&self) -> usize {
        self.waiting.borrow().count
    }
}

impl Waiting {
    /// Ends the oldest connection of the busiest source; of several as busy, of the one that has
    /// waited longest.
    fn evict(&mut self, spared: usize) -> Option<IpAddr> {
        let known = &self.known;
        let busiest = self.by_source.iter().max_by_key(|(source, queue)| {
            let spare = queue.len() <= spared && known.contains_key(source);
            (!spare, queue.len(), Reverse(queue.front().map(|place| place.id)))
        });
        let source = *busiest?.0;
        let queue = self.by_source.get_mut(&source)?;
        queue.pop_front()?.task.abort();
        self.count -= 1;
        if queue.is_empty() {
            self.by_source.remove(&source);
        }
        Some(source)
    }
}

impl Pass {
    /// Waits until a handshake may begin: at once for a known source, in turn for strangers. Cancel
    /// safe: who gives up holds nobody up.
    pub async fn turn(&self) {
        if self.gate.waiting.borrow().known.contains_key(&self.source) {
            return;
        }
        let mut last = self.gate.last_handshake.lock().await;
        if let Some(last) = *last {
            sleep_until((last + PACE).into()).await;
        }
        *last = Some(Instant::now());
    }

    /// Gives the place back because the connection is authenticated; its source is known now.
    pub fn vouch(self) {
        let known = &mut self.gate.waiting.borrow_mut().known;
        known.insert(self.source, self.id);
        if known.len() > SOURCES_KNOWN {
            let oldest = known.iter().min_by_key(|(_, id)| **id).map(|(source, _)| *source);
            oldest.and_then(|source| known.remove(&source));
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut waiting = self.gate.waiting.borrow_mut();
        let Some(queue) = waiting.by_source.get_mut(&self.source) else { return };
        let before = queue.len();
        queue.retain(|place| place.id != self.id);
        let left = before - queue.len();
        if queue.is_empty() {
            waiting.by_source.remove(&self.source);
        }
        waiting.count -= left;
    }
}

/// One subscriber: an IPv4 address, or the /64 of an IPv6 one.
fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn run(test: impl AsyncFnOnce()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test());
    }

    fn idle() -> tokio::task::JoinHandle<()> {
        tokio::task::spawn_local(std::future::pending())
    }

    /// Lets aborted tasks end; a LocalSet polls some sixty tasks at a time.
    async fn settle() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn a_flood_pushes_out_its_own_connections() {
        run(async || {
            let gate = Gate::new(8);
            let (honest, evil) = ("192.0.2.1".parse().unwrap(), "198.51.100.1".parse().unwrap());
            let task = idle();
            let (_pass, evicted) = gate.admit(honest, task.abort_handle(), Instant::now());
            assert_eq!(evicted, None);
            let flood: Vec<_> = (0..1000)
                .map(|_| {
                    let task = idle();
                    (gate.admit(evil, task.abort_handle(), Instant::now()).0, task)
                })
                .collect();
            assert_eq!(gate.waiting(), 8);
            settle().await;
            assert!(!task.is_finished());
            assert_eq!(flood.iter().filter(|(_, task)| !task.is_finished()).count(), 7);
        });
    }

    #[test]
    fn a_flood_from_many_sources_spares_a_known_one_and_evicts_in_order() {
        run(async || {
            let gate = Gate::new(8);
            let known = "203.0.113.1".parse().unwrap();
            let now = Instant::now();
            gate.admit(known, idle().abort_handle(), now).0.vouch();
            assert_eq!(gate.waiting(), 0);
            let task = idle();
            let (_pass, _) = gate.admit(known, task.abort_handle(), now);
            let flood: Vec<_> = (0..100)
                .map(|n| {
                    let source = Ipv6Addr::from_bits(0x2001_0db8 << 96 | n << 64);
                    let task = idle();
                    (gate.admit(source.into(), task.abort_handle(), now), task)
                })
                .collect();
            settle().await;
            assert!(!task.is_finished());
            let waiting: Vec<_> = (0..100).filter(|n| !flood[*n].1.is_finished()).collect();
            assert_eq!(waiting, (93..100).collect::<Vec<_>>(), "the oldest gave way first");
            // A known source that takes more than its share is treated as any other.
            let greedy: Vec<_> =
                (0..4).map(|_| gate.admit(known, idle().abort_handle(), now)).collect();
            assert_eq!(greedy[3].1, Some(known));
        });
    }

    #[test]
    fn who_waits_too_long_is_sent_away() {
        run(async || {
            let gate = Gate::new(8);
            let address = "192.0.2.1".parse().unwrap();
            let (old, new) = (idle(), idle());
            let start = Instant::now();
            let (_old, _) = gate.admit(address, old.abort_handle(), start);
            let later = start + std::time::Duration::from_secs(5);
            let (_new, _) = gate.admit(address, new.abort_handle(), later);
            assert_eq!(gate.expire(later), [address]);
            settle().await;
            assert!(old.is_finished() && !new.is_finished());
            assert_eq!(gate.waiting(), 1);
        });
    }

    #[test]
    fn strangers_take_turns_and_known_sources_do_not_wait() {
        run(async || {
            let gate = Gate::new(100);
            let (known, stranger) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
            let pass = |from| gate.admit(from, idle().abort_handle(), Instant::now()).0;
            pass(known).vouch();
            let start = Instant::now();
            pass(stranger).turn().await;
            let (given_up, next) = (pass(stranger), pass(stranger));
            assert!(given_up.turn().now_or_never().is_none());
            for _ in 0..50 {
                assert!(pass(known).turn().now_or_never().is_some());
            }
            next.turn().await;
            next.turn().await;
            assert!(start.elapsed() >= 2 * PACE);
        });
    }

    #[test]
    fn a_place_is_given_back_once() {
        run(async || {
            let gate = Gate::new(2);
            let address = "2001:db8::1".parse().unwrap();
            let (first, _) = gate.admit(address, idle().abort_handle(), Instant::now());
            let (second, _) = gate.admit(address, idle().abort_handle(), Instant::now());
            let (third, evicted) = gate.admit(address, idle().abort_handle(), Instant::now());
            assert_eq!(evicted, Some(source_of(address)));
            drop(first);
            assert_eq!(gate.waiting(), 2, "the evicted one's place was taken already");
            drop((second, third));
            assert_eq!(gate.waiting(), 0);
        });
    }
}
