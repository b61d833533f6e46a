//! Where packets of our own leave: probes, and connections to the server.

use std::cmp::Ordering;
use std::net::IpAddr;

use crate::desired;
use crate::net::{Family, IfIndex};
use crate::uplink::Uplink;

/// Where packets of our own leave an uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlet {
    /// The uplink's slot.
    pub slot: u8,
    /// Its address.
    pub source: IpAddr,
    /// Its device.
    pub device: String,
}

/// An outlet of each uplink that can reach the server; none without a session, as there is nothing
/// to sign probes with.
pub(super) fn probers(uplinks: &[Uplink], session: Option<IpAddr>) -> Vec<Outlet> {
    let Some(server) = session else { return Vec::new() };
    let families = desired::families(session);
    uplinks
        .iter()
        .filter(|uplink| uplink.fault_in(families).is_none())
        .filter_map(|uplink| outlet(uplink, Family::of(server)))
        .collect()
}

/// The outlets of the uplinks with these slots in their order, in each family that works: the
/// server's next session may be over another family than its last.
pub(super) fn dial_order(slots: &[u8], uplinks: &[Uplink]) -> Vec<Outlet> {
    let find = |slot: &u8| uplinks.iter().find(|uplink| uplink.slot == *slot);
    let working = |uplink: &&Uplink, family: Family| uplink.fault(family).is_none();
    slots
        .iter()
        .filter_map(find)
        .flat_map(|uplink| {
            let families = Family::ALL.into_iter().filter(move |&family| working(&uplink, family));
            families.filter_map(|family| outlet(uplink, family))
        })
        .collect()
}

/// The family in which more uplinks work than in the other: a session in it bonds more of them.
pub(super) fn commoner_family(uplinks: &[Uplink]) -> Option<Family> {
    let working = |family| uplinks.iter().filter(|uplink| uplink.fault(family).is_none()).count();
    match working(Family::V4).cmp(&working(Family::V6)) {
        Ordering::Less => Some(Family::V6),
        Ordering::Greater => Some(Family::V4),
        Ordering::Equal => None,
    }
}

/// The address and device an uplink uses in a family.
pub(super) fn source(uplink: &Uplink, family: Family) -> Option<(IpAddr, IfIndex)> {
    Some((uplink.path(family)?.address, uplink.device.as_ref()?.index))
}

fn outlet(uplink: &Uplink, family: Family) -> Option<Outlet> {
    let (source, _) = source(uplink, family)?;
    let device = uplink.device.as_ref()?.name.clone();
    Some(Outlet { slot: uplink.slot, source, device })
}
