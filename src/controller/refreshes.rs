//! Endpoints touched again because subflows are not as they should be.
//!
//! The kernel's path manager never makes a subflow anew that has died, unless its endpoint changes. And it
//! tells the peer but once that a subflow stands by: MP_PRIO goes on a single acknowledgement, which nobody
//! acknowledges (RFC 8684, section 3.3.8), and is easily lost in the full queue of a busy uplink. Both are
//! done more and more rarely where it does not help.

use std::time::{Duration, Instant};

use litemap::LiteMap;

use super::ByConnection;
use crate::net::Endpoint;
use crate::reconcile::{Operation, Plan};

/// The first wait before an endpoint's subflows join anew another time; it doubles.
const RENEWAL_WAIT: Duration = Duration::from_secs(5);
/// The same before an uplink is demoted another time.
const DEMOTION_WAIT: Duration = Duration::from_millis(900);
/// The longest such wait.
const WAIT_LAST: Duration = Duration::from_secs(600);
/// How long one endpoint's subflows have to join before another's are closed.
const RENEWAL_SPACING: Duration = Duration::from_secs(3);
/// An uplink is demoted by MP_PRIO so many times; after that its subflows are made anew, as backups
/// from their MP_JOIN on, which is sent until it is acknowledged.
const ANNOUNCEMENTS: u32 = 2;

struct Attempts {
    not_before: Instant,
    wait: Duration,
    /// How many were made.
    made: u32,
}

/// What was attempted, by slot.
#[derive(Default)]
struct BySlot(LiteMap<u8, Attempts>);

impl BySlot {
    /// The endpoints of those slots for which an attempt is due, `most` of them at most and those with the
    /// fewest attempts first, with the number of attempts made before; the slots not named are well again.
    fn due(
        &mut self,
        slots: &[u8],
        endpoints: &[Endpoint],
        most: usize,
        first_wait: Duration,
        now: Instant,
    ) -> Vec<(Endpoint, u32)> {
        self.0.retain(|slot, _| slots.contains(slot));
        let made = |slot: &u8| self.0.get(slot).map_or(0, |attempts| attempts.made);
        let mut slots = slots.to_vec();
        slots.sort_by_key(made);
        let mut due = Vec::new();
        for slot in slots {
            let Some(endpoint) = endpoints.iter().find(|it| it.is_of_slot(slot)) else { continue };
            let first = Attempts { not_before: now, wait: first_wait, made: 0 };
            let attempts = self.0.entry(slot).or_insert(first);
            if now >= attempts.not_before && due.len() < most {
                due.push((endpoint.clone(), attempts.made));
                attempts.not_before = now + attempts.wait;
                attempts.wait = (attempts.wait * 2).min(WAIT_LAST);
                attempts.made = attempts.made.saturating_add(1);
            }
        }
        due
    }
}

/// What was done for subflows that are missing, and for those that do not stand by.
#[derive(Default)]
pub(super) struct Refreshes {
    missing: BySlot,
    /// How many attempts were made for connections that have others.
    for_settled: LiteMap<u8, u32>,
    renewed: Option<Instant>,
    unheeded: BySlot,
}

impl Refreshes {
    /// The plan for slots on which subflows are missing; the others are well again. There is one at a time,
    /// so that the connections that lack nothing keep what they have elsewhere.
    pub(super) fn renew(
        &mut self,
        missing: &ByConnection<u8>,
        endpoints: &[Endpoint],
        now: Instant,
    ) -> Plan {
        self.for_settled.retain(|slot, _| missing.settled.contains(slot));
        let mut slots = [&missing.stranded[..], &missing.settled].concat();
        slots.sort_unstable();
        slots.dedup();
        let lately = |at| now.saturating_duration_since(at) < RENEWAL_SPACING;
        let most = usize::from(!self.renewed.is_some_and(lately));
        let due = self.missing.due(&slots, endpoints, most, RENEWAL_WAIT, now);
        for (endpoint, _) in &due {
            self.renewed = Some(now);
            let lacked = missing.settled.iter().filter(|&&slot| endpoint.is_of_slot(slot));
            lacked.for_each(|slot| *self.for_settled.entry(*slot).or_insert(0) += 1);
        }
        due.into_iter().flat_map(|(endpoint, _)| joined_again(endpoint)).collect()
    }

    /// An endpoint is added: what was attempted with the one before says nothing of it.
    pub(super) fn forget(&mut self, endpoint: &Endpoint) {
        self.missing.0.retain(|slot, _| !endpoint.is_of_slot(*slot));
    }

    /// The plan for slots that stand by, over which the server sends all the same.
    pub(super) fn demote(&mut self, slots: &[u8], endpoints: &[Endpoint], now: Instant) -> Plan {
        let backups: Vec<Endpoint> = endpoints.iter().filter(|e| e.backup).cloned().collect();
        let due = self.unheeded.due(slots, &backups, usize::MAX, DEMOTION_WAIT, now);
        let plan = |(endpoint, made)| match made {
            0..ANNOUNCEMENTS => announced(endpoint),
            _ => anew(endpoint),
        };
        due.into_iter().flat_map(plan).collect()
    }

    /// Whether subflows on this slot stay missing of connections that have others.
    pub(super) fn in_vain(&self, slot: u8) -> bool {
        self.for_settled.get(&slot).is_some_and(|&attempts| attempts > 1)
    }
}

/// Closes the endpoint's subflows, and has others join.
pub(super) fn anew(endpoint: Endpoint) -> [Operation; 2] {
    [Operation::DeleteEndpoint(endpoint.clone()), Operation::AddEndpoint(endpoint)]
}

/// Closes the endpoint's subflows, and has others join, without a word to the peer.
///
/// With the endpoint its address is withdrawn (RM_ADDR), also where the initial subflow, long closed, is all
/// that ever had it. Without a subflow the kernel cannot say so, keeps it for the next one, and thereby has the
/// peer close just that. `fullmesh` changes and changes back: subflows join at both (`mptcp_pm_nl_fullmesh`),
/// but where the initial one is closed, at the second alone.
pub(super) fn joined_again(endpoint: Endpoint) -> [Operation; 2] {
    let other_flags = endpoint.other_flags ^ Endpoint::FULL_MESH;
    let other = Endpoint { other_flags, ..endpoint.clone() };
    [Operation::ChangeEndpoint(other), Operation::ChangeEndpoint(endpoint)]
}

/// The kernel sends MP_PRIO for a change only, so there are two.
fn announced(endpoint: Endpoint) -> [Operation; 2] {
    let other = Endpoint { backup: !endpoint.backup, ..endpoint.clone() };
    [Operation::ChangeEndpoint(other), Operation::ChangeEndpoint(endpoint)]
}
