//! Rules for traffic that is not tunnelled: the LAN's by the marks of our nft table, and the router's
//! own while the main table would send it to a dead uplink.

use std::net::{IpAddr, Ipv6Addr};

use litemap::LiteMap;

use super::{Input, rule};
use crate::config::agent::Role;
use crate::net::{
    DIRECT_MARK, Family, Kernel, LOOPBACK_NAME, MAIN, MARK_MASK, Mark, Prefix, Priority, Rule,
    Table,
};
use crate::uplink::Uplink;

/// Networks that the main table names, other than by a default route: VPNs, other LANs, static routes.
const PRIORITY_NETWORKS: Priority = Priority(700);
/// Flows that have an uplink.
const PRIORITY_FLOWS: Priority = Priority(710);
/// New flows of the LAN.
const PRIORITY_NEW: Priority = Priority(720);
/// The router's own packets from a public IPv6 address: its provider's business, as before.
const PRIORITY_OWN_PUBLIC: Priority = Priority(730);
/// The router's own packets towards networks that the main table names.
const PRIORITY_OWN_NETWORKS: Priority = Priority(740);
/// The router's own packets towards anywhere else.
const PRIORITY_OWN: Priority = Priority(750);

/// No mark at all, and none but ours.
const UNMARKED: (Mark, u32) = (Mark(0), u32::MAX);
const UNMARKED_BY_OTHERS: (Mark, u32) = (Mark(0), !MARK_MASK);
/// Global unicast (RFC 4291, 2.4).
const PUBLIC_V6: Prefix =
    Prefix { address: IpAddr::V6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0)), length: 3 };

/// Where untunnelled traffic of one family leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direct {
    /// The best live uplink's slot.
    pub slot: u8,
    /// Whether the router's own traffic has to be led there, since the main table's default route is
    /// on an uplink that is not live.
    pub own: bool,
}

/// The addresses of an uplink's device in one family.
pub fn addresses(uplink: &Uplink, family: Family, kernel: &Kernel) -> Vec<IpAddr> {
    let Some(device) = &uplink.device else { return Vec::new() };
    let clash = uplink.path(family).is_some_and(|path| path.clash.is_some());
    let of_device = kernel.addresses.iter().filter(|address| {
        address.device == device.index && address.global && address.prefix.family() == family
    });
    of_device.map(|address| address.prefix.address).filter(|_| !clash).collect()
}

/// The marks of flows by the uplink's address that they have for theirs.
pub(super) fn marks(uplinks: &[Uplink], kernel: &Kernel) -> LiteMap<IpAddr, Mark> {
    let mut marks = LiteMap::new();
    for uplink in uplinks.iter().filter(|uplink| uplink.role != Role::Off) {
        for family in Family::ALL {
            for address in addresses(uplink, family, kernel) {
                marks.entry(address).or_insert(Mark::of_slot(uplink.slot));
            }
        }
    }
    marks
}

/// The rules of the families that are not left to the main table.
pub(super) fn rules(input: &Input) -> Vec<Rule> {
    let rules = input.direct.iter().flat_map(|(&family, direct)| {
        let own = if direct.own { own(family, direct.slot) } else { Vec::new() };
        lan(input, family, direct.slot).into_iter().chain(own)
    });
    rules.collect()
}

fn lan(input: &Input, family: Family, best: u8) -> Vec<Rule> {
    let networks = input.lan.iter().map(|device| Rule {
        iif: Some(device.clone()),
        mark: Some(UNMARKED_BY_OTHERS),
        suppress_prefix_length: Some(0),
        ..rule(PRIORITY_NETWORKS, family, MAIN)
    });
    let on = input.uplinks.iter().filter(|uplink| uplink.role != Role::Off);
    let flows = on.filter(|uplink| uplink.path(family).is_some()).map(|uplink| Rule {
        mark: Some((Mark::of_slot(uplink.slot), MARK_MASK)),
        ..rule(PRIORITY_FLOWS, family, uplink.table())
    });
    let new = Rule {
        mark: Some((DIRECT_MARK, MARK_MASK)),
        ..rule(PRIORITY_NEW, family, Table::of_slot(best))
    };
    networks.chain(flows).chain([new]).collect()
}

/// A socket that has an address goes where that belongs; only the others are led to the best. Those
/// have the source 0.0.0.0 in IPv4; no IPv6 rule tells them, so the ones with a public address are
/// sent off before.
fn own(family: Family, best: u8) -> Vec<Rule> {
    let from = match family {
        Family::V4 => Some(Prefix::host(family.unspecified())),
        Family::V6 => None,
    };
    let unmarked = |priority, table| Rule {
        from,
        iif: Some(LOOPBACK_NAME.into()),
        mark: Some(UNMARKED),
        ..rule(priority, family, table)
    };
    let public = (family == Family::V6)
        .then(|| Rule { from: Some(PUBLIC_V6), ..unmarked(PRIORITY_OWN_PUBLIC, MAIN) });
    let networks =
        Rule { suppress_prefix_length: Some(0), ..unmarked(PRIORITY_OWN_NETWORKS, MAIN) };
    let other = unmarked(PRIORITY_OWN, Table::of_slot(best));
    public.into_iter().chain([networks, other]).collect()
}
