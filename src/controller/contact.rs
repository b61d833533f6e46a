//! When to ask for a server's addresses, when to dial it, and which address first.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::net::Family;

/// A name is resolved again this often although nothing fails: `getaddrinfo(3)` tells no TTL.
const STALE: Duration = Duration::from_secs(300);
/// The first wait before a name that could not be resolved is asked for again; it doubles.
const RESOLVE_FIRST: Duration = Duration::from_secs(1);
/// The longest such wait, and the longest between two questions while the server does not answer.
const RESOLVE_LAST: Duration = Duration::from_secs(30);
/// The first wait before a server that is needed is dialled again; it doubles.
const DIAL_FIRST: Duration = Duration::from_millis(250);
/// The longest such wait. A connection that lasts longer shows that dialling is worth while.
const DIAL_LAST: Duration = Duration::from_secs(5);
/// The same while another server is in use.
const TRIAL_FIRST: Duration = Duration::from_secs(2);
const TRIAL_LAST: Duration = Duration::from_secs(300);
/// Addresses kept of those a name stands for.
const ADDRESSES: usize = 8;

/// How much a connection to a server is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// Not at all: an earlier server is in use.
    Rest,
    /// To see whether it answers again, while a later one is in use.
    Trial,
    /// At once.
    Need,
}

/// The schedule of one server.
#[derive(Clone, Debug)]
pub(super) struct Contact {
    /// The configured address is no name, and needs no resolving.
    literal: bool,
    addresses: Vec<IpAddr>,
    /// The address of the last session.
    worked: Option<IpAddr>,
    want: Want,
    resolving: bool,
    /// What is being asked has to be asked once more.
    again: bool,
    resolve_at: Instant,
    resolved: Option<Instant>,
    resolve_failures: u32,
    dialling: bool,
    dial_at: Instant,
    dialled: Option<Instant>,
    connected_since: Option<Instant>,
    failures: u32,
}

impl Contact {
    /// A server configured with this host name or address.
    pub(super) fn new(host: &str, now: Instant) -> Contact {
        let literal: Option<IpAddr> = host.parse().ok();
        Contact {
            literal: literal.is_some(),
            addresses: literal.into_iter().collect(),
            worked: None,
            want: Want::Rest,
            resolving: false,
            again: false,
            resolve_at: now,
            resolved: None,
            resolve_failures: 0,
            dialling: false,
            dial_at: now,
            dialled: None,
            connected_since: None,
            failures: 0,
        }
    }

    /// The addresses its name stands for, as last heard.
    pub(super) fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// When it is dialled again.
    pub(super) fn dial_at(&self) -> Instant {
        self.dial_at
    }

    /// Whether it is being dialled.
    pub(super) fn is_dialling(&self) -> bool {
        self.dialling
    }

    /// Says how much a connection is wanted.
    pub(super) fn want(&mut self, want: Want, now: Instant) {
        if want == self.want {
            return;
        }
        self.failures = 0;
        self.dial_at = match (self.want, want) {
            // It has just failed; a moment later it would again.
            (Want::Need, Want::Trial) => now + TRIAL_FIRST,
            _ => now,
        };
        if want == Want::Rest {
            self.dialling = false;
            self.connected_since = None;
        }
        self.want = want;
    }

    /// Whether to ask for the addresses now; remembers that it was asked.
    pub(super) fn resolve_due(&mut self, now: Instant) -> bool {
        let due = !self.literal && !self.resolving && now >= self.resolve_at;
        self.resolving |= due;
        due
    }

    /// The answer to that. An answer without addresses is a failure, and leaves the known ones in
    /// force. Whether other addresses than before are known.
    pub(super) fn on_resolved(&mut self, answer: &[IpAddr], now: Instant) -> bool {
        self.resolving = false;
        self.resolved = Some(now);
        let again = std::mem::take(&mut self.again);
        if answer.is_empty() {
            self.resolve_failures = self.resolve_failures.saturating_add(1);
            let wait = doubled(RESOLVE_FIRST, self.resolve_failures, RESOLVE_LAST);
            self.resolve_at = if again { now } else { now + wait };
            return false;
        }
        self.resolve_failures = 0;
        self.resolve_at = if again { now } else { now + STALE };
        let mut addresses: Vec<IpAddr> = Vec::new();
        for address in answer {
            if !addresses.contains(address) && addresses.len() < ADDRESSES {
                addresses.push(*address);
            }
        }
        let others = addresses.iter().any(|address| !self.addresses.contains(address));
        let changed = addresses != self.addresses;
        self.addresses = addresses;
        if others {
            // What is dialled now may be given up for them.
            self.dialling = false;
            self.dial_at = now;
        }
        changed
    }

    /// Resolving failed so often in a row.
    pub(super) fn resolve_failures(&self) -> u32 {
        self.resolve_failures
    }

    /// The user wants to know now: a name is resolved again at once, or as soon as the answer to an
    /// earlier question is there.
    pub(super) fn refresh(&mut self, now: Instant) {
        self.resolve_at = now;
        self.again = self.resolving;
        self.resolve_failures = 0;
    }

    /// The server does not answer: its name may stand for another address by now.
    pub(super) fn doubt(&mut self) {
        if let Some(resolved) = self.resolved {
            let wait = doubled(RESOLVE_FIRST, self.failures, RESOLVE_LAST);
            self.resolve_at = self.resolve_at.min(resolved + wait);
        }
    }

    /// The addresses to dial now, best first, if it is due; remembers that it was dialled.
    /// `prefer` is the family that more uplinks have than the other.
    pub(super) fn dial_due(&mut self, prefer: Option<Family>, now: Instant) -> Option<Vec<IpAddr>> {
        let possible = self.want != Want::Rest && !self.dialling && !self.addresses.is_empty();
        if !possible || now < self.dial_at {
            return None;
        }
        self.dialling = true;
        Some(order(&self.addresses, self.worked, prefer))
    }

    /// The attempt brought a session at this address.
    pub(super) fn on_up(&mut self, address: IpAddr, now: Instant) {
        self.dialling = false;
        self.worked = Some(address);
        self.connected_since = Some(now);
    }

    /// The attempt failed. `dice` is a random number: servers are not to be tried in step.
    pub(super) fn on_failed(&mut self, now: Instant, dice: u16) {
        self.dialling = false;
        self.dialled = Some(now);
        self.failures = self.failures.saturating_add(1);
        let wait = match self.want {
            Want::Need => doubled(DIAL_FIRST, self.failures, DIAL_LAST),
            _ => spread(doubled(TRIAL_FIRST, self.failures, TRIAL_LAST), dice),
        };
        self.dial_at = now + wait;
        self.doubt();
    }

    /// The connection ended. A server that takes a connection only to end it is not dialled
    /// without end.
    pub(super) fn on_down(&mut self, now: Instant, dice: u16) {
        let lasted = self.connected_since.take().map(|since| now.saturating_duration_since(since));
        if lasted.is_some_and(|lasted| lasted > DIAL_LAST) {
            self.failures = 0;
        }
        let dialling = self.dialling;
        self.on_failed(now, dice);
        self.dialling = dialling;
    }

    /// There is reason to believe that dialling will do now.
    pub(super) fn hurry(&mut self, now: Instant) {
        if self.want == Want::Need {
            self.failures = 0;
            let soon = self.dialled.map_or(now, |dialled| dialled + DIAL_FIRST);
            self.dial_at = self.dial_at.min(soon);
            if self.addresses.is_empty() && !self.resolving {
                // At the start DNS is there as soon as an uplink is.
                self.refresh(now);
            }
        }
    }

    /// The server is there again: an attempt under way may wait long for its next SYN.
    pub(super) fn redial(&mut self, now: Instant) {
        self.dialling = false;
        self.hurry(now);
    }

    /// When something is due by time alone.
    pub(super) fn deadlines(&self) -> [Option<Instant>; 2] {
        let resolve = (!self.literal && !self.resolving).then_some(self.resolve_at);
        let dial = (self.want != Want::Rest && !self.dialling).then_some(self.dial_at);
        [resolve, dial]
    }
}

/// The wait after so many failures: `first`, doubled with each, at most `last`.
fn doubled(first: Duration, failures: u32, last: Duration) -> Duration {
    first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(last)
}

/// A wait made up to a quarter longer or shorter.
fn spread(wait: Duration, dice: u16) -> Duration {
    wait * 3 / 4 + wait / 2 * u32::from(dice) / u32::from(u16::MAX)
}

/// The order to dial in: an address of the family that bonds more uplinks, the one that worked last
/// if it is as good, then the families in turn (RFC 8305, section 4).
fn order(addresses: &[IpAddr], worked: Option<IpAddr>, prefer: Option<Family>) -> Vec<IpAddr> {
    let good = |address: &&IpAddr| prefer.is_none_or(|family| Family::of(**address) == family);
    let first = worked.filter(|worked| addresses.contains(worked) && good(&worked));
    let first = first.or_else(|| addresses.iter().find(good).or(addresses.first()).copied());
    let mut ordered: Vec<IpAddr> = first.into_iter().collect();
    let mut rest: Vec<IpAddr> =
        addresses.iter().copied().filter(|address| Some(*address) != first).collect();
    while !rest.is_empty() {
        let last = ordered.last().map(|address| Family::of(*address));
        let next = rest.iter().position(|address| Some(Family::of(*address)) != last);
        ordered.push(rest.remove(next.unwrap_or(0)));
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// A server that is needed, and that a name of these addresses stands for.
    fn needed(texts: &[&str], now: Instant) -> Contact {
        let mut contact = Contact::new("vps.example.net", now);
        contact.want(Want::Need, now);
        assert!(contact.resolve_due(now));
        contact.on_resolved(&addresses(texts), now);
        contact
    }

    /// The waits between failing attempts, in milliseconds.
    fn waits(contact: &mut Contact, mut now: Instant, dice: u16) -> Vec<u128> {
        let mut waits = Vec::new();
        for _ in 0..10 {
            assert!(contact.dial_due(None, now).is_some());
            assert_eq!(contact.dial_due(None, now), None, "one attempt at a time");
            contact.on_failed(now, dice);
            waits.push((contact.dial_at() - now).as_millis());
            now = contact.dial_at();
        }
        waits
    }

    #[test]
    fn the_address_that_worked_comes_first_then_the_families_in_turn() {
        let all = addresses(&["2001:db8::1", "2001:db8::2", "192.0.2.1", "192.0.2.2"]);
        let in_turn = ["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2"];
        assert_eq!(order(&all, None, None), addresses(&in_turn));
        let after_one = ["192.0.2.2", "2001:db8::1", "192.0.2.1", "2001:db8::2"];
        assert_eq!(order(&all, Some(all[3]), None), addresses(&after_one));
        let gone = addresses(&["203.0.113.9"]);
        assert_eq!(order(&all, Some(gone[0]), None), addresses(&in_turn));
        assert_eq!(order(&[], None, None), addresses(&[]));

        let v4_bonds_more = ["192.0.2.1", "2001:db8::1", "192.0.2.2", "2001:db8::2"];
        assert_eq!(order(&all, Some(all[1]), Some(Family::V4)), addresses(&v4_bonds_more));
        assert_eq!(order(&all, Some(all[3]), Some(Family::V4))[0], all[3]);
        assert_eq!(order(&all[..2], None, Some(Family::V4)), all[..2]);
    }

    #[test]
    fn an_address_needs_no_resolving() {
        let now = Instant::now();
        let mut contact = Contact::new("2001:db8::1", now);
        assert!(!contact.resolve_due(now + MINUTE));
        assert_eq!(contact.dial_due(None, now), None, "nobody wants it");
        contact.want(Want::Need, now);
        assert_eq!(contact.dial_due(None, now), Some(addresses(&["2001:db8::1"])));
    }

    #[test]
    fn a_name_is_resolved_now_and_then_and_soon_after_a_failure() {
        let now = Instant::now();
        let mut contact = needed(&["192.0.2.1"], now);
        assert!(!contact.resolve_due(now + 4 * MINUTE));
        assert!(contact.resolve_due(now + 5 * MINUTE));
        assert!(!contact.resolve_due(now + 6 * MINUTE), "one question at a time");
        let now = now + 6 * MINUTE;
        contact.on_resolved(&addresses(&["192.0.2.1"]), now);
        contact.on_failed(now + MINUTE, 0);
        assert!(contact.resolve_due(now + MINUTE));
        (0..20).for_each(|_| contact.on_failed(now + MINUTE, 0));
        contact.on_resolved(&addresses(&["192.0.2.1"]), now + MINUTE);
        contact.on_failed(now + MINUTE, 0);
        assert!(!contact.resolve_due(now + MINUTE + RESOLVE_LAST / 2), "with backoff");
        assert!(contact.resolve_due(now + MINUTE + RESOLVE_LAST));
    }

    #[test]
    fn an_answer_to_an_earlier_question_is_not_enough_for_a_later_one() {
        let now = Instant::now();
        let mut contact = needed(&["192.0.2.1"], now);
        contact.on_failed(now + MINUTE, 0);
        assert!(contact.resolve_due(now + MINUTE));
        contact.refresh(now + MINUTE);
        assert!(!contact.resolve_due(now + MINUTE), "one question at a time");
        contact.on_resolved(&addresses(&["192.0.2.1"]), now + MINUTE);
        assert!(contact.resolve_due(now + MINUTE));
        contact.on_resolved(&addresses(&["192.0.2.1"]), now + MINUTE);
        assert!(!contact.resolve_due(now + 2 * MINUTE));
    }

    #[test]
    fn addresses_outlive_a_resolver_that_fails() {
        let now = Instant::now();
        let mut contact = needed(&["192.0.2.1"], now);
        let mut at = now + STALE;
        let mut waits = Vec::new();
        for _ in 0..7 {
            assert!(contact.resolve_due(at));
            assert!(!contact.on_resolved(&[], at));
            waits.push((contact.resolve_at - at).as_secs());
            at = contact.resolve_at;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(contact.dial_due(None, now), Some(addresses(&["192.0.2.1"])));
    }

    #[test]
    fn new_addresses_are_dialled_at_once() {
        let now = Instant::now();
        let mut contact = needed(&["192.0.2.1", "192.0.2.2"], now);
        assert!(contact.dial_due(None, now).is_some());
        assert!(contact.on_resolved(&addresses(&["192.0.2.2"]), now));
        assert_eq!(contact.dial_due(None, now), None, "fewer addresses are no reason");
        assert!(contact.on_resolved(&addresses(&["192.0.2.3"]), now));
        assert_eq!(contact.dial_due(None, now), Some(addresses(&["192.0.2.3"])));
        let many: Vec<IpAddr> = (0..200).map(|n| [192, 0, 2, n].into()).collect();
        contact.on_resolved(&many, now);
        assert_eq!(contact.addresses().len(), ADDRESSES);
    }

    #[test]
    fn a_server_that_is_needed_is_dialled_often_and_another_one_rarely() {
        let now = Instant::now();
        let mut contact = needed(&["192.0.2.1"], now);
        let needed = [250, 500, 1000, 2000, 4000, 5000, 5000, 5000, 5000, 5000];
        assert_eq!(waits(&mut contact, now, 0), needed);
        let now = now + MINUTE;
        contact.want(Want::Trial, now);
        assert_eq!(contact.dial_at(), now + TRIAL_FIRST);
        let start = contact.dial_at();
        let longest = waits(&mut contact, start, u16::MAX);
        assert_eq!((longest[0], longest[9]), (2500, 375_000));
        contact.want(Want::Need, now);
        contact.want(Want::Trial, now);
        let start = contact.dial_at();
        let shortest = waits(&mut contact, start, 0);
        assert_eq!((shortest[0], shortest[9]), (1500, 225_000));
    }

    #[test]
    fn a_connection_that_is_ended_at_once_counts_as_a_failure() {
        let start = Instant::now();
        let mut contact = needed(&["192.0.2.1"], start);
        let mut now = start;
        for wait in [250, 500, 1000] {
            assert!(contact.dial_due(None, now).is_some());
            contact.on_up(contact.addresses[0], now);
            contact.on_down(now, 0);
            assert_eq!(contact.dial_at() - now, Duration::from_millis(wait));
            now = contact.dial_at();
        }
        assert!(contact.dial_due(None, now).is_some());
        contact.on_up(contact.addresses[0], now);
        contact.on_down(now + MINUTE, 0);
        assert_eq!(contact.dial_at() - now, MINUTE + DIAL_FIRST);
    }
}
