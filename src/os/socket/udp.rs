//! UDP sockets for probes.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::{sys, while_doing};

/// A UDP socket that sends from `bind` (port 0: any) and through `device`.
///
/// # Errors
/// Says which address or device could not be had and why.
pub fn udp_socket(bind: SocketAddr, device: Option<&str>) -> io::Result<UdpSocket> {
    let socket = new_socket(bind)?;
    if let Some(device) = device {
        socket
            .bind_device(Some(device.as_bytes()))
            .map_err(while_doing(&format!("cannot bind to device {device}")))?;
    }
    bound(socket, bind)
}

/// Has datagrams that are too large for the way dropped instead of taken apart: routers say so by
/// ICMP, and the next call fails with `EMSGSIZE`.
///
/// # Errors
/// Those of `setsockopt(2)`.
pub fn forbid_fragments(socket: &UdpSocket) -> io::Result<()> {
    let (level, name, value) = match socket.local_addr()? {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO),
    };
    sys::set_option(socket.as_fd(), level, name, value)
}

/// Has a connected socket fail also with what routers say of a destination for the time being, such
/// as `ENETUNREACH`, not only with what is final.
///
/// # Errors
/// Those of `setsockopt(2)`.
pub fn report_unreachable(socket: &UdpSocket) -> io::Result<()> {
    let (level, name) = match socket.local_addr()? {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVERR),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    };
    sys::set_option(socket.as_fd(), level, name, 1)
}

/// Bytes of the largest packet that the way of a connected socket is known to take.
///
/// # Errors
/// Those of `getsockopt(2)`.
pub fn path_mtu(socket: &UdpSocket) -> io::Result<u16> {
    let (level, name) = match socket.local_addr()? {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let mut value = [0; 4];
    sys::option(socket.as_fd(), level, name, &mut value)?;
    u16::try_from(i32::from_ne_bytes(value)).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// A datagram received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Bytes of the buffer that are filled.
    pub length: usize,
    /// The datagram was longer than the buffer, and its rest is lost.
    pub truncated: bool,
    /// Where it came from.
    pub remote: SocketAddr,
    /// The local address it was sent to: replies are to leave from there.
    pub local: IpAddr,
}

/// A UDP socket that tells to which of the host's addresses a datagram was sent, and can answer
/// from there: on a host with several addresses the routing might choose another, which a NAT on
/// the way would drop.
#[derive(Debug)]
pub struct UdpServer(UdpSocket);

impl UdpServer {
    /// Binds to `address`. An IPv6 address takes IPv6 only.
    ///
    /// # Errors
    /// Says which address could not be had and why.
    pub fn bind(address: SocketAddr) -> io::Result<UdpServer> {
        let socket = new_socket(address)?;
        let (level, name) = match address {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_PKTINFO),
            SocketAddr::V6(_) => {
                socket.set_only_v6(true)?;
                (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)
            }
        };
        sys::set_option(socket.as_fd(), level, name, 1)?;
        bound(socket, address).map(UdpServer)
    }

    /// The address it is bound to.
    ///
    /// # Errors
    /// Those of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Waits for a datagram and puts it in `buffer`.
    ///
    /// # Errors
    /// Those of `recvmsg(2)`.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<Datagram> {
        self.0
            .async_io(Interest::READABLE, || {
                let (length, truncated, remote, local) = sys::receive(self.0.as_fd(), buffer)?;
                let remote = remote.as_socket().ok_or(io::ErrorKind::InvalidData)?;
                let local = local.ok_or(io::ErrorKind::InvalidData)?;
                Ok(Datagram { length, truncated, remote, local })
            })
            .await
    }

    /// Sends `data` to `remote` from the address `local` and the port bound to.
    ///
    /// # Errors
    /// Those of `sendmsg(2)`.
    pub async fn send(&self, data: &[u8], remote: SocketAddr, local: IpAddr) -> io::Result<()> {
        self.0
            .async_io(Interest::WRITABLE, || sys::send(self.0.as_fd(), data, remote, local))
            .await
            .map(drop)
    }
}

fn new_socket(address: SocketAddr) -> io::Result<Socket> {
    let kind = Type::DGRAM.nonblocking().cloexec();
    Socket::new(Domain::for_address(address), kind, Some(Protocol::UDP))
}

fn bound(socket: Socket, address: SocketAddr) -> io::Result<UdpSocket> {
    socket
        .bind(&address.into())
        .map_err(while_doing(&format!("cannot bind to address {address}")))?;
    UdpSocket::from_std(socket.into())
}
