//! Connection tracking over ctnetlink (`linux/netfilter/nfnetlink_conntrack.h`).

use std::io;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_NETFILTER;
use rustix::io::Errno;

use super::netlink::{Message, Refusal, Request, Requester, attributes, family_number};
use crate::net::Family;

/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_NEW`, `_GET`, `_DELETE`.
const CT_NEW: u16 = 0x100;
const CT_GET: u16 = 0x101;
const CT_DELETE: u16 = 0x102;
/// Bytes of `struct nfgenmsg`.
const HEADER: usize = 4;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;

const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// `CTA_FILTER_F_CTA_IP_DST`.
const FILTER_DESTINATION: u32 = 1 << 1;

/// `IPS_SEEN_REPLY`.
const SEEN_REPLY: u32 = 1 << 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A tracked flow.
#[derive(Debug)]
struct Flow<'a> {
    /// Who began it.
    client: IpAddr,
    /// The address that answers are sent to; another than the client's where that is translated.
    answered_at: IpAddr,
    protocol: u8,
    /// The port that the client sends to, where the protocol has any.
    port: Option<u16>,
    answered: bool,
    /// What names the entry, as the kernel wrote it.
    tuple: &'a [u8],
    id: &'a [u8],
    zone: Option<&'a [u8]>,
}

/// Deletes the entries of flows that are translated to `address` and can go on under another: the
/// next packet makes a new one. An answered TCP connection cannot; it is left, and lives on if its
/// uplink returns soon. So are the router's own flows. The number of entries deleted.
///
/// # Errors
/// The kernel's refusal; `EINVAL` where it has no ctnetlink.
pub async fn forget(address: IpAddr) -> Result<usize, Refusal> {
    forget_of(&dump(address), Family::of(address), &|flow| moves(flow, address)).await
}

/// Deletes the entries of UDP flows to these ports, inclusive ranges; the number of entries deleted.
///
/// # Errors
/// The kernel's refusal; `EINVAL` where it has no ctnetlink.
pub async fn forget_udp(ports: &[(u16, u16)]) -> Result<usize, Refusal> {
    let listed = |port| ports.iter().any(|&(first, last)| (first..=last).contains(&port));
    let mut count = 0;
    for family in Family::ALL {
        let all = Request::dump(CT_GET, &[family_number(family), 0, 0, 0]);
        let matches = |flow: &Flow| flow.protocol == UDP && flow.port.is_some_and(listed);
        count += forget_of(&all, family, &matches).await?;
    }
    Ok(count)
}

/// Deletes those entries of a dump that match.
async fn forget_of(
    dump: &Request,
    family: Family,
    matches: &dyn Fn(&Flow) -> bool,
) -> Result<usize, Refusal> {
    let mut requester = open()?;
    let replies = requester.request(dump).await?;
    let mut count = 0;
    for message in replies.iter() {
        let Some(flow) = flow(&message).filter(matches) else { continue };
        match requester.request(&delete(&flow, family)).await {
            Ok(_) => count += 1,
            // It has ended meanwhile.
            Err(refusal) if refusal.is_one_of(&[Errno::NOENT]) => {}
            Err(refusal) => return Err(refusal),
        }
    }
    Ok(count)
}

fn open() -> io::Result<Requester> {
    Requester::open(NETLINK_NETFILTER)
}

fn moves(flow: &Flow<'_>, address: IpAddr) -> bool {
    flow.answered_at == address
        && flow.client != address
        && !(flow.protocol == TCP && flow.answered)
}

/// A dump of the flows answered at an address. With IPv6 it holds all flows: there the kernel's filter
/// lets through what does not match (`ctnetlink_filter_match_tuple`, seen in 6.18).
fn dump(address: IpAddr) -> Request {
    let request = Request::dump(CT_GET, &[family_number(Family::of(address)), 0, 0, 0]);
    if address.is_ipv6() {
        return request;
    }
    request
        .nested(CTA_TUPLE_REPLY, |tuple| {
            tuple.nested(CTA_TUPLE_IP, |ip| ip.address(CTA_IP_V4_DST, address))
        })
        .nested(CTA_FILTER, |filter| {
            filter.u32(CTA_FILTER_ORIG_FLAGS, 0).u32(CTA_FILTER_REPLY_FLAGS, FILTER_DESTINATION)
        })
}

/// Without a tuple this message would delete all entries there are.
fn delete(flow: &Flow<'_>, family: Family) -> Request {
    let request = Request::new(CT_DELETE, 0, &[family_number(family), 0, 0, 0])
        .attribute(CTA_TUPLE_ORIG, flow.tuple)
        .attribute(CTA_ID, flow.id);
    match flow.zone {
        Some(zone) => request.attribute(CTA_ZONE, zone),
        None => request,
    }
}

fn flow<'a>(message: &Message<'a>) -> Option<Flow<'a>> {
    if message.kind != CT_NEW {
        return None;
    }
    let find = |kind| message.attributes(HEADER).find(|attribute| attribute.kind == kind);
    let (tuple, reply) = (find(CTA_TUPLE_ORIG)?.value, find(CTA_TUPLE_REPLY)?.value);
    let status = u32::from_be_bytes(find(CTA_STATUS)?.value.try_into().ok()?);
    Some(Flow {
        client: address(tuple, &[CTA_IP_V4_SRC, CTA_IP_V6_SRC])?,
        answered_at: address(reply, &[CTA_IP_V4_DST, CTA_IP_V6_DST])?,
        protocol: part(tuple, CTA_TUPLE_PROTO, &[CTA_PROTO_NUM])?.first().copied()?,
        port: part(tuple, CTA_TUPLE_PROTO, &[CTA_PROTO_DST_PORT])
            .and_then(|port| Some(u16::from_be_bytes(port.try_into().ok()?))),
        answered: status & SEEN_REPLY != 0,
        tuple,
        id: find(CTA_ID)?.value,
        zone: find(CTA_ZONE).map(|zone| zone.value),
    })
}

fn address(tuple: &[u8], kinds: &[u16]) -> Option<IpAddr> {
    super::netlink::address(part(tuple, CTA_TUPLE_IP, kinds)?)
}

/// The first attribute of one of these kinds within a part of a tuple.
fn part<'a>(tuple: &'a [u8], part: u16, kinds: &[u16]) -> Option<&'a [u8]> {
    let part = attributes(tuple).find(|attribute| attribute.kind == part)?;
    Some(part.nested().find(|attribute| kinds.contains(&attribute.kind))?.value)
}

/// Reads anything as flows.
#[cfg(any(test, fuzzing))]
pub fn read_anything(bytes: &[u8]) {
    for message in super::netlink::messages(bytes) {
        if let Some(flow) = flow(&message) {
            let _ = delete(&flow, Family::of(flow.client));
        }
    }
}

#[cfg(test)]
mod tests;
