//! Links, addresses and routes over rtnetlink (`rtnetlink(7)`, `linux/rtnetlink.h`).

use std::net::IpAddr;

use rustix::io::Errno;

use super::netlink::{
    Attribute, CREATE, Message, REPLACE, Refusal, Request, Requester, attributes, family_number,
    read,
};
use crate::net::{Address, Family, IfIndex, Link, Prefix, Route, RouteKind, Table};

pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
pub(super) const RTM_NEWADDR: u16 = 20;
pub(super) const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
pub(super) const RTM_NEWROUTE: u16 = 24;
pub(super) const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;

/// Bytes of `struct ifinfomsg`.
const LINK_HEADER: usize = 16;
/// Bytes of `struct ifaddrmsg`.
const ADDRESS_HEADER: usize = 8;
/// Bytes of `struct rtmsg`.
const ROUTE_HEADER: usize = 12;
/// Bytes of `struct rtnexthop`.
const NEXT_HOP_HEADER: usize = 8;

const IFF_UP: u32 = 0x1;
const IFF_POINTOPOINT: u32 = 0x10;
const IFF_NOARP: u32 = 0x80;
const IFF_LOWER_UP: u32 = 0x1_0000;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_STATS64: u16 = 23;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_DEPRECATED: u32 = 0x20;
const IFA_F_TENTATIVE: u32 = 0x40;

const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTAX_ADVMSS: u16 = 8;
const RTM_F_CLONED: u32 = 0x200;
const RTNH_F_DEAD: u32 = 0x1;
const RTNH_F_ONLINK: u32 = 0x4;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RT_SCOPE_HOST: u8 = 254;
const RT_SCOPE_NOWHERE: u8 = 255;
/// The table the kernel keeps for its own addresses.
const RT_TABLE_LOCAL: Table = Table(255);

/// All devices.
pub async fn links(requester: &mut Requester) -> Result<Vec<Link>, Refusal> {
    let replies = requester.request(&Request::dump(RTM_GETLINK, &[0; LINK_HEADER])).await?;
    Ok(replies.iter().filter(|m| m.kind == RTM_NEWLINK).filter_map(|m| link(&m)).collect())
}

fn link(message: &Message<'_>) -> Option<Link> {
    let index = IfIndex(u32::from_ne_bytes(read(message.payload, 4)?));
    let flags = u32::from_ne_bytes(read(message.payload, 8)?);
    let mut link = Link {
        index,
        name: String::new(),
        up: flags & IFF_UP != 0,
        carrier: flags & IFF_LOWER_UP != 0,
        point_to_point: flags & (IFF_POINTOPOINT | IFF_NOARP) != 0,
        mtu: 0,
        rx_bytes: 0,
        tx_bytes: 0,
    };
    for attribute in message.attributes(LINK_HEADER) {
        match attribute.kind {
            IFLA_IFNAME => attribute.text()?.clone_into(&mut link.name),
            IFLA_MTU => link.mtu = attribute.u32()?,
            // struct rtnl_link_stats64: rx_packets, tx_packets, rx_bytes, tx_bytes, ...
            IFLA_STATS64 => {
                link.rx_bytes = u64::from_ne_bytes(read(attribute.value, 16)?);
                link.tx_bytes = u64::from_ne_bytes(read(attribute.value, 24)?);
            }
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

/// The addresses of all devices.
pub async fn addresses(requester: &mut Requester) -> Result<Vec<Address>, Refusal> {
    let replies = requester.request(&Request::dump(RTM_GETADDR, &[0; ADDRESS_HEADER])).await?;
    Ok(replies.iter().filter(|m| m.kind == RTM_NEWADDR).filter_map(|m| address(&m)).collect())
}

fn address(message: &Message<'_>) -> Option<Address> {
    let [_, length, flags, scope] = read(message.payload, 0)?;
    let device = IfIndex(u32::from_ne_bytes(read(message.payload, 4)?));
    let mut flags = u32::from(flags);
    // On a point-to-point device IFA_ADDRESS is the peer's and IFA_LOCAL ours.
    let (mut local, mut peer) = (None, None);
    for attribute in message.attributes(ADDRESS_HEADER) {
        match attribute.kind {
            IFA_ADDRESS => peer = attribute.address(),
            IFA_LOCAL => local = attribute.address(),
            IFA_FLAGS => flags = attribute.u32()?,
            _ => {}
        }
    }
    Some(Address {
        device,
        prefix: Prefix::new(local.or(peer)?, length)?,
        global: scope == RT_SCOPE_UNIVERSE,
        usable: flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED | IFA_F_DEPRECATED) == 0,
    })
}

/// The unicast and local routes of all tables but `local`, multipath routes split by next hop.
pub async fn routes(requester: &mut Requester) -> Result<Vec<Route>, Refusal> {
    let mut routes = Vec::new();
    for family in Family::ALL {
        let mut header = [0; ROUTE_HEADER];
        header[0] = family_number(family);
        let replies = match requester.request(&Request::dump(RTM_GETROUTE, &header)).await {
            Err(refusal) if family == Family::V6 && lacks_family(&refusal) => continue,
            replies => replies?,
        };
        // A kernel without IPv6 answers with all the families it has.
        let asked = |message: &Message<'_>| message.payload.first() == header.first();
        for message in replies.iter().filter(|m| m.kind == RTM_NEWROUTE && asked(m)) {
            route(&message, &mut routes);
        }
    }
    Ok(routes)
}

/// Whether the kernel was built without the family asked for.
pub(super) fn lacks_family(refusal: &Refusal) -> bool {
    refusal.is_one_of(&[Errno::AFNOSUPPORT, Errno::OPNOTSUPP])
}

/// Adds the routes that a message describes.
fn route(message: &Message<'_>, routes: &mut Vec<Route>) -> Option<()> {
    let [family, length, from_length, _, table, protocol, _, kind] = read(message.payload, 0)?;
    let flags = u32::from_ne_bytes(read(message.payload, 8)?);
    let family = Family::ALL.into_iter().find(|known| family_number(*known) == family)?;
    let kind = match kind {
        RTN_UNICAST => RouteKind::Unicast,
        RTN_LOCAL => RouteKind::Local,
        _ => return None,
    };
    let mut route = Route {
        table: Table(u32::from(table)),
        destination: Prefix::new(family.unspecified(), length)?,
        from: None,
        metric: 0,
        kind,
        gateway: None,
        device: IfIndex(0),
        source: None,
        onlink: flags & RTNH_F_ONLINK != 0,
        advmss: None,
        protocol,
    };
    let mut next_hops = None;
    for attribute in message.attributes(ROUTE_HEADER) {
        match attribute.kind {
            RTA_DST => route.destination = Prefix::new(attribute.address()?, length)?,
            RTA_SRC => route.from = Some(Prefix::new(attribute.address()?, from_length)?),
            RTA_TABLE => route.table = Table(attribute.u32()?),
            RTA_PRIORITY => route.metric = attribute.u32()?,
            RTA_PREFSRC => route.source = attribute.address(),
            RTA_METRICS => {
                route.advmss =
                    attribute.nested().find(|a| a.kind == RTAX_ADVMSS).and_then(|a| a.u32());
            }
            RTA_MULTIPATH => next_hops = Some(attribute.value),
            _ => next_hop_attribute(&attribute, &mut route),
        }
    }
    if route.table == RT_TABLE_LOCAL || flags & RTM_F_CLONED != 0 {
        return None;
    }
    let Some(mut rest) = next_hops else {
        // A route through a nexthop object the kernel does not spell out has no device here.
        if route.device != IfIndex(0) && flags & RTNH_F_DEAD == 0 {
            routes.push(route);
        }
        return Some(());
    };
    while let Some([low, high, flags, _]) = read(rest, 0) {
        let length = usize::from(u16::from_ne_bytes([low, high]));
        let hop = rest.get(NEXT_HOP_HEADER..length)?;
        let device = IfIndex(u32::from_ne_bytes(read(rest, 4)?));
        let flags = u32::from(flags);
        let onlink = flags & RTNH_F_ONLINK != 0;
        let mut split = Route { device, onlink, ..route.clone() };
        for attribute in attributes(hop) {
            next_hop_attribute(&attribute, &mut split);
        }
        if flags & RTNH_F_DEAD == 0 {
            routes.push(split);
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(())
}

/// What a route of one next hop and a next hop of several have in common.
fn next_hop_attribute(attribute: &Attribute<'_>, route: &mut Route) {
    match attribute.kind {
        RTA_OIF => route.device = attribute.u32().map_or(route.device, IfIndex),
        RTA_GATEWAY => route.gateway = attribute.address(),
        // struct rtvia: a u16 family, then the address.
        RTA_VIA => route.gateway = attribute.value.get(2..).and_then(super::netlink::address),
        _ => {}
    }
}

/// `ip route replace`.
pub async fn replace(requester: &mut Requester, route: &Route) -> Result<(), Refusal> {
    let scope = match (route.kind, route.gateway) {
        (RouteKind::Local, _) => RT_SCOPE_HOST,
        (RouteKind::Unicast, None) => RT_SCOPE_LINK,
        (RouteKind::Unicast, Some(_)) => RT_SCOPE_UNIVERSE,
    };
    let mut request = encode(RTM_NEWROUTE, CREATE | REPLACE, route, scope);
    if let Some(advmss) = route.advmss {
        request = request.nested(RTA_METRICS, |metrics| metrics.u32(RTAX_ADVMSS, advmss));
    }
    requester.request(&request).await.map(drop)
}

/// `ip route del`; a route that is gone already is fine.
pub async fn delete(requester: &mut Requester, route: &Route) -> Result<(), Refusal> {
    // "Nowhere" matches any scope (fib_table_delete).
    match requester.request(&encode(RTM_DELROUTE, 0, route, RT_SCOPE_NOWHERE)).await {
        Err(refusal) if refusal.is_one_of(&[Errno::SRCH, Errno::NOENT, Errno::NODEV]) => Ok(()),
        result => result.map(drop),
    }
}

fn encode(kind: u16, flags: u16, route: &Route, scope: u8) -> Request {
    let destination = route.destination.network();
    let family = destination.family();
    let kind_number = match route.kind {
        RouteKind::Unicast => RTN_UNICAST,
        RouteKind::Local => RTN_LOCAL,
    };
    let onlink = if route.onlink { RTNH_F_ONLINK } else { 0 };
    let [a, b, c, d] = onlink.to_ne_bytes();
    let header = [
        family_number(family),
        destination.length,
        route.from.map_or(0, |from| from.length),
        0,
        0, // RTA_TABLE says it: ours do not fit a byte
        route.protocol,
        scope,
        kind_number,
        a,
        b,
        c,
        d,
    ];
    let mut request = Request::new(kind, flags, &header)
        .u32(RTA_TABLE, route.table.0)
        .u32(RTA_OIF, route.device.0)
        .u32(RTA_PRIORITY, route.metric);
    if destination.length > 0 {
        request = request.address(RTA_DST, destination.address);
    }
    if let Some(from) = route.from {
        request = request.address(RTA_SRC, from.address);
    }
    if let Some(source) = route.source {
        request = request.address(RTA_PREFSRC, source);
    }
    match route.gateway {
        None => request,
        Some(gateway) if Family::of(gateway) == family => request.address(RTA_GATEWAY, gateway),
        Some(gateway) => request.attribute(RTA_VIA, &via(gateway)),
    }
}

/// `struct rtvia`.
fn via(gateway: IpAddr) -> Vec<u8> {
    let family = u16::from(family_number(Family::of(gateway)));
    let mut bytes = family.to_ne_bytes().to_vec();
    match gateway {
        IpAddr::V4(gateway) => bytes.extend(gateway.octets()),
        IpAddr::V6(gateway) => bytes.extend(gateway.octets()),
    }
    bytes
}

/// Reads anything as links, addresses and routes.
#[cfg(any(test, fuzzing))]
pub fn read_anything(bytes: &[u8]) {
    for message in super::netlink::messages(bytes) {
        let _ = (link(&message), address(&message), route(&message, &mut Vec::new()));
    }
}

#[cfg(test)]
mod tests;
