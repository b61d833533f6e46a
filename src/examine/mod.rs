//! Looking closer for `check`: what the kernel supports, and trying uplinks out.

mod contact;
mod packets;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use futures_util::future::join_all;
use tokio::net::TcpStream;

use crate::check::{
    Contact, Datagrams, Gateway, Join, KernelFacts, LARGEST_PACKET, PathMtu, Reply, Trial,
};
use crate::config::agent::ServerConfig;
use crate::config::keys::PrivateKey;
use crate::controller::Outlet;
use crate::net::{IfIndex, Kernel};
use crate::os::{diag, neighbour, nft, socket};
use crate::session::Session;
use contact::Subflows;

/// Looks at what of the kernel a dump does not show.
pub async fn kernel(dump: Result<Kernel, String>) -> KernelFacts {
    let (tproxy, diag) = tokio::join!(nft::can_divert(), diag::lists_mptcp());
    KernelFacts { dump, tproxy: tproxy.map_err(|error| error.to_string()), diag: diag.is_ok() }
}

/// What it takes to try an uplink out.
pub struct Means {
    /// The server's address.
    pub server: SocketAddr,
    /// Its section.
    pub config: ServerConfig,
    /// The router's key.
    pub key: PrivateKey,
    /// The session in force, to sign probes with.
    pub session: Option<Rc<Session>>,
}

/// An uplink to try out.
#[derive(Clone, Debug)]
pub struct Way {
    /// Its slot, address and device.
    pub outlet: Outlet,
    /// Its device's index.
    pub device: IfIndex,
    /// Its gateway.
    pub gateway: Option<IpAddr>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it has an endpoint, so that connections get a subflow on it.
    pub endpoint: bool,
}

/// What one uplink showed, before it is compared with the others.
struct Tried {
    trial: Trial,
    subflows: Option<Subflows>,
}

/// Tries out all uplinks side by side, within some six seconds. Connections of users are left
/// alone.
pub async fn uplinks(means: &Means, ways: &[Way]) -> Vec<Trial> {
    let tried = join_all(ways.iter().map(|way| uplink(means, way, ways))).await;
    let join = |at: usize| {
        let others = tried.iter().enumerate().filter(|(other, _)| *other != at);
        let seen: Vec<&Subflows> = others.filter_map(|(_, it)| it.subflows.as_ref()).collect();
        ways.get(at).map_or(Join::Untried, |way| join(way, &seen))
    };
    let joins: Vec<Join> = (0..tried.len()).map(join).collect();
    tried.into_iter().zip(joins).map(|(tried, join)| Trial { join, ..tried.trial }).collect()
}

/// What became of an uplink's subflows on connections that began elsewhere.
fn join(way: &Way, others: &[&Subflows]) -> Join {
    let stands = |subflows: &&Subflows| subflows.get(&way.outlet.source).copied();
    if !way.endpoint || others.is_empty() {
        return Join::Untried;
    }
    match others.iter().filter_map(stands).max() {
        Some(true) => Join::Joined,
        Some(false) => Join::Unanswered,
        None => Join::Rejected,
    }
}

async fn uplink(means: &Means, way: &Way, ways: &[Way]) -> Tried {
    let (dialed, (datagrams, pads)) =
        tokio::join!(contact::dial(means, &way.outlet), packets::probe(means, &way.outlet));
    let mut path_mtu = PathMtu::Untried;
    let mut subflows = None;
    let contact = match dialed {
        Err(contact) => contact,
        Ok((mut tcp, rtt)) => {
            let size = packet_size(&tcp, way.mtu);
            let large = async {
                match datagrams {
                    Datagrams::Answered { rtt, .. } if pads => {
                        packets::path_mtu(means, &way.outlet, size, rtt).await
                    }
                    _ => PathMtu::Untried,
                }
            };
            let small = introduce(means, &mut tcp, way, ways);
            let (mtu, (reply, mptcp, seen)) = tokio::join!(large, small);
            (path_mtu, subflows) = (mtu, seen.filter(|_| mptcp));
            Contact::Made { mptcp, reply, rtt }
        }
    };
    let gateway = gateway(way).await;
    let trial = Trial { gateway, contact, join: Join::Untried, datagrams, path_mtu };
    Tried { trial, subflows }
}

/// Introduces this router, and waits for the other uplinks' subflows.
async fn introduce(
    means: &Means,
    tcp: &mut TcpStream,
    way: &Way,
    ways: &[Way],
) -> (Reply, bool, Option<Subflows>) {
    let (reply, channel) = contact::introduction(means, tcp).await;
    // Also a network that removes the options of data makes plain TCP of it.
    let mptcp = socket::is_mptcp(&*tcp).unwrap_or(false);
    let expected: Vec<IpAddr> = ways
        .iter()
        .filter(|other| other.endpoint && other.outlet.slot != way.outlet.slot)
        .map(|other| other.outlet.source)
        .collect();
    let mut seen = None;
    if let Some(channel) = channel {
        if mptcp {
            seen = Some(contact::subflows(tcp, &expected).await);
        }
        contact::leave(tcp, channel).await;
    }
    (reply, mptcp, seen)
}

/// Bytes of the largest packets that TCP sends on a connection: the server's own network may be
/// narrower than the uplink.
fn packet_size(tcp: &TcpStream, mtu: u32) -> u16 {
    /// TCP's header and time stamps.
    const TCP: u16 = 20 + 12;
    let mtu = u16::try_from(mtu).unwrap_or(LARGEST_PACKET).min(LARGEST_PACKET);
    let ip = if tcp.peer_addr().is_ok_and(|peer| peer.is_ipv4()) { 20 } else { 40 };
    match socket::segment_size(tcp) {
        Ok(segment) => segment.saturating_add(TCP + ip).min(mtu),
        Err(_) => mtu,
    }
}

/// Whether an error is what a router without a route to the destination says.
fn is_no_route(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH))
}

async fn gateway(way: &Way) -> Gateway {
    let Some(gateway) = way.gateway else { return Gateway::None };
    match neighbour::answers(way.device, gateway).await {
        Ok(Some(false)) => Gateway::Silent,
        _ => Gateway::Answers,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(slot: u8, source: &str) -> Way {
        let outlet = Outlet { slot, source: source.parse().unwrap(), device: format!("eth{slot}") };
        Way { outlet, device: IfIndex(1), gateway: None, mtu: 1500, endpoint: true }
    }

    fn seen(subflows: &[(&str, bool)]) -> Subflows {
        subflows.iter().map(|(address, stands)| (address.parse().unwrap(), *stands)).collect()
    }

    #[test]
    fn one_connection_joined_is_enough() {
        let wan = way(0, "192.0.2.1");
        let (joined, waiting) = (seen(&[("192.0.2.1", true)]), seen(&[("192.0.2.1", false)]));
        let without = seen(&[("198.51.100.1", true)]);
        assert_eq!(join(&wan, &[&without, &waiting, &joined]), Join::Joined);
        assert_eq!(join(&wan, &[&without, &waiting]), Join::Unanswered);
        assert_eq!(join(&wan, &[&without]), Join::Rejected);
        assert_eq!(join(&wan, &[]), Join::Untried);
        assert_eq!(join(&Way { endpoint: false, ..wan }, &[&without]), Join::Untried);
    }
}
