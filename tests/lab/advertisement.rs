//! Router advertisements (RFC 4861, section 4.2), sent as an ISP's router does.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// ICMPv6 type of a router advertisement.
const ROUTER_ADVERTISEMENT: u8 = 134;
/// Prefix information: on-link and autonomous.
const PREFIX_FLAGS: u8 = 0xc0;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Advertises `router` as default router, and a /64 for autoconfiguration, on a device of the
/// calling thread's namespace.
pub fn send(
    device: &str,
    router: Ipv6Addr,
    prefix: Ipv6Addr,
    lifetime: Duration,
) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.bind_device(Some(device.as_bytes()))?;
    socket.set_multicast_hops_v6(255)?;
    let from = SocketAddrV6::new(router, 0, 0, interface_index(device)?);
    socket.bind(&from.into())?;
    let to = SocketAddrV6::new(ALL_NODES, 0, 0, from.scope_id());
    socket.send_to(&message(prefix, lifetime), &to.into())?;
    Ok(())
}

fn message(prefix: Ipv6Addr, lifetime: Duration) -> Vec<u8> {
    let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
    // 9000 seconds is the most a router lifetime may be.
    let router_lifetime = u16::try_from(seconds).unwrap_or(9000).min(9000);
    let mut message = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, 64, 0];
    message.extend(router_lifetime.to_be_bytes());
    message.extend([0; 8]);
    message.extend([3, 4, 64, PREFIX_FLAGS]);
    message.extend(seconds.to_be_bytes());
    message.extend(seconds.to_be_bytes());
    message.extend([0; 4]);
    message.extend(prefix.octets());
    message
}

/// The index of a device in the calling thread's namespace.
fn interface_index(name: &str) -> io::Result<u32> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET6,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    Ok(rustix::net::netdevice::name_to_index(&socket, name)?)
}
