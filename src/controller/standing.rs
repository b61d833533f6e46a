//! How an uplink does, as the status shows it.

use super::Controller;
use crate::config::agent::Role;
use crate::desired;
use crate::failover::InForce;
use crate::health::{Health, State};
use crate::status::UplinkState;
use crate::uplink::Uplink;

/// Why an uplink that answers probes carries no subflows.
const WITHOUT_MPTCP: &str = "MPTCP does not get through: a network on the way removes its options";

/// What connections show of MPTCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MptcpSeen {
    /// Whether connections that begin on this uplink lately fell back to plain TCP.
    pub falls_back: bool,
    /// Whether the server in use is reached over MPTCP, on whichever uplink.
    pub reaches_server: bool,
}

/// How an uplink does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its state in a word.
    pub state: UplinkState,
    /// Whether new data is sent over it.
    pub in_use: bool,
    /// Why, in words; empty before its role was decided.
    pub reason: String,
}

impl Controller {
    /// How an uplink does, with what connections show that the controller does not see.
    pub fn standing(&self, uplink: &Uplink, seen: MptcpSeen) -> Standing {
        let assignment = self.assignments.iter().find(|it| it.slot == uplink.slot);
        let in_use = assignment.is_some_and(|assignment| assignment.in_force == InForce::Active);
        let without_mptcp = in_use && (seen.falls_back || self.lacks_subflows(uplink.slot));
        // Where MPTCP gets through nowhere, plain TCP over the uplink is as good as it gets.
        let useless = without_mptcp && seen.reaches_server;
        Standing {
            state: match self.uplink_state(uplink) {
                _ if useless => UplinkState::Down,
                UplinkState::Up if without_mptcp => UplinkState::Degraded,
                state => state,
            },
            in_use: in_use && !useless,
            reason: match assignment {
                Some(_) if without_mptcp => WITHOUT_MPTCP.to_owned(),
                Some(assignment) => match self.opinion(uplink.slot) {
                    Some(opinion) => format!("{}; {opinion}", assignment.reason),
                    None => assignment.reason.to_string(),
                },
                None => String::new(),
            },
        }
    }

    /// The same by facts and probes alone.
    fn uplink_state(&self, uplink: &Uplink) -> UplinkState {
        let families = desired::families(self.server().in_use);
        match self.health(uplink.slot).map(Health::state) {
            _ if uplink.role == Role::Off || self.is_capped_off(uplink.slot) => UplinkState::Unused,
            _ if uplink.fault_in(families).is_some() => UplinkState::Down,
            Some(State::Down) => UplinkState::Down,
            Some(State::Degraded) => UplinkState::Degraded,
            Some(State::Up | State::Unknown) | None => UplinkState::Up,
        }
    }
}
