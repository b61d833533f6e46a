//! The difference between the kernel and a wish, as an ordered plan.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::desired::Desired;
use crate::net::{Address, Endpoint, IfIndex, Limits, Link, Route, Rule};

/// What a fresh dump of the kernel shows; foreign objects included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// Devices.
    pub links: BTreeMap<IfIndex, Link>,
    /// Addresses of all devices.
    pub addresses: Vec<Address>,
    /// Unicast and local routes of all tables but `local` (255).
    pub routes: Vec<Route>,
    /// Policy rules that look in a table; others are left out.
    pub rules: Vec<Rule>,
    /// MPTCP endpoints.
    pub endpoints: Vec<Endpoint>,
    /// MPTCP limits; `None` where the kernel has no MPTCP.
    pub limits: Option<Limits>,
    /// Values of the sysctls asked for, by path below `/proc/sys`; absent where the kernel has none.
    pub sysctls: BTreeMap<String, String>,
    /// Our nft table.
    pub nft: NftTable,
    /// Names of other path-manager programs found running.
    pub other_managers: BTreeSet<String>,
}

/// What is known of our nft table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NftTable {
    /// There is none.
    #[default]
    Absent,
    /// Exactly what this ruleset text made.
    Made(String),
    /// Something else: another version's, or changed by somebody.
    Changed,
}

/// One change of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `ip route replace`.
    ReplaceRoute(Route),
    /// `ip route del`.
    DeleteRoute(Route),
    /// `ip rule add`.
    AddRule(Rule),
    /// `ip rule del`.
    DeleteRule(Rule),
    /// `ip mptcp endpoint add`.
    AddEndpoint(Endpoint),
    /// `ip mptcp endpoint delete`.
    DeleteEndpoint(Endpoint),
    /// `ip mptcp endpoint change`.
    ChangeEndpoint(Endpoint),
    /// `ip mptcp limits set`.
    SetLimits(Limits),
    /// `sysctl -w`.
    SetSysctl {
        /// Path below `/proc/sys`.
        key: String,
        /// Value.
        value: String,
    },
    /// `nft -f -`, one transaction.
    ReplaceNft(String),
    /// `nft delete table inet mptcp_bond`.
    DeleteNft,
}

/// Operations in the order to carry them out.
pub type Plan = Vec<Operation>;

/// The plan that turns `kernel` into `desired`, touching only objects that are ours.
pub fn reconcile(_kernel: &Kernel, _desired: &Desired) -> Plan {
    Vec::new()
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}
