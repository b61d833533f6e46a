//! The wish: what of ours the kernel should hold.

use std::collections::BTreeMap;

use crate::net::{Endpoint, Limits, Route, Rule};

/// Everything of ours that should be in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Routes, all in our tables and of our protocol.
    pub routes: Vec<Route>,
    /// Rules, all in our priorities.
    pub rules: Vec<Rule>,
    /// Endpoints, all with our ids.
    pub endpoints: Vec<Endpoint>,
    /// MPTCP limits; `None` leaves them alone.
    pub limits: Option<Limits>,
    /// Sysctls by path below `/proc/sys`.
    pub sysctls: BTreeMap<String, String>,
    /// Our nft table's text; `None` means that there is none.
    pub nft: Option<String>,
}
