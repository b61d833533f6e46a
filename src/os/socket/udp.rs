//! UDP sockets: for probes, for flows, and for what is diverted from the LAN.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::AbortHandle;

use super::{sys, while_doing};
use crate::net::Family;

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
    /// What it was sent to: of one that was not diverted the address alone, with port 0. Replies are
    /// to leave from there.
    pub local: SocketAddr,
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
        UdpServer::telling(new_socket(address)?, address, libc::IP_PKTINFO, libc::IPV6_RECVPKTINFO)
    }

    /// Binds to `address`, to receive what nft's TPROXY diverts there and tell what it was sent to.
    ///
    /// # Errors
    /// `PermissionDenied` without CAP_NET_ADMIN and CAP_NET_RAW; otherwise which address could not be
    /// had and why.
    pub fn tproxy(address: SocketAddr) -> io::Result<UdpServer> {
        let (v4, v6) = (libc::IP_RECVORIGDSTADDR, libc::IPV6_RECVORIGDSTADDR);
        UdpServer::telling(transparent(address)?, address, v4, v6)
    }

    /// One of [`UdpServer::bind`] that another process had.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub fn adopt(socket: OwnedFd) -> io::Result<UdpServer> {
        UdpSocket::from_std(socket.into()).map(UdpServer)
    }

    /// A bound socket that tells where datagrams were sent to, by the option of its family.
    fn telling(socket: Socket, address: SocketAddr, v4: i32, v6: i32) -> io::Result<UdpServer> {
        let (level, name) = match address {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, v4),
            SocketAddr::V6(_) => {
                socket.set_only_v6(true)?;
                (libc::IPPROTO_IPV6, v6)
            }
        };
        sys::set_option(socket.as_fd(), level, name, 1)?;
        bound(socket, address).map(UdpServer)
    }

    /// Waits until there is something to receive, or an error.
    pub async fn readable(&self) {
        // The error shows again.
        let _ = self.0.readable().await;
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
        self.0.async_io(Interest::READABLE, || self.take(buffer)).await
    }

    /// The same without waiting.
    ///
    /// # Errors
    /// Those of `recvmsg(2)`: `WouldBlock` while there is none.
    pub fn receive_now(&self, buffer: &mut [u8]) -> io::Result<Datagram> {
        self.0.try_io(Interest::READABLE, || self.take(buffer))
    }

    fn take(&self, buffer: &mut [u8]) -> io::Result<Datagram> {
        let (length, truncated, remote, local) = sys::receive(self.0.as_fd(), buffer)?;
        let remote = remote.as_socket().ok_or(io::ErrorKind::InvalidData)?;
        let local = local.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Datagram { length, truncated, remote, local })
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

    /// The same for what is not worth waiting for.
    ///
    /// # Errors
    /// Those of `sendmsg(2)`: `WouldBlock` while there is no room.
    pub fn send_now(&self, data: &[u8], remote: SocketAddr, local: IpAddr) -> io::Result<()> {
        sys::send(self.0.as_fd(), data, remote, local).map(drop)
    }
}

impl AsFd for UdpServer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A socket that belongs to a flow, and what reads it.
#[derive(Debug)]
pub struct FlowSocket {
    socket: Rc<UdpSocket>,
    reader: Option<AbortHandle>,
}

impl FlowSocket {
    /// One that sends to hosts in the LAN from the address of somebody else; nobody reads it.
    ///
    /// # Errors
    /// As [`UdpServer::tproxy`].
    pub fn posing_as(address: SocketAddr) -> io::Result<FlowSocket> {
        let socket = transparent(address)?;
        // Another program may have this port on all addresses.
        socket.set_reuse_address(true)?;
        Ok(FlowSocket { socket: Rc::new(bound(socket, address)?), reader: None })
    }

    /// One that is connected to `target` from the address `source`, where one is given; `reader` is
    /// given the socket and starts a task that ends with it.
    ///
    /// # Errors
    /// Those of `connect(2)`, or which address could not be had and why.
    pub fn connect(
        target: SocketAddr,
        source: Option<IpAddr>,
        reader: impl FnOnce(Rc<UdpSocket>) -> AbortHandle,
    ) -> io::Result<FlowSocket> {
        let any = Family::of(target.ip()).unspecified();
        let socket = udp_socket((source.unwrap_or(any), 0).into(), None)?;
        SockRef::from(&socket).connect(&target.into())?;
        let socket = Rc::new(socket);
        Ok(FlowSocket { reader: Some(reader(socket.clone())), socket })
    }

    /// Sends to the target it is connected to.
    ///
    /// # Errors
    /// Those of `send(2)`: `WouldBlock` while there is no room.
    pub fn send(&self, data: &[u8]) -> io::Result<()> {
        // Not by the runtime, to which a new socket is not writable before its next look.
        let socket = SockRef::from(&*self.socket);
        // The first error may be what ICMP said of an earlier datagram; that one was not sent.
        socket.send(data).or_else(|_| socket.send(data)).map(drop)
    }

    /// Sends to a host.
    ///
    /// # Errors
    /// Those of `sendto(2)`: `WouldBlock` while there is no room.
    pub fn send_to(&self, data: &[u8], host: SocketAddr) -> io::Result<()> {
        SockRef::from(&*self.socket).send_to(data, &host.into()).map(drop)
    }
}

impl Drop for FlowSocket {
    fn drop(&mut self) {
        if let Some(reader) = &self.reader {
            reader.abort();
        }
    }
}

/// A socket that may have any address for its own.
fn transparent(address: SocketAddr) -> io::Result<Socket> {
    let socket = new_socket(address)?;
    super::make_transparent(&socket, address)?;
    Ok(socket)
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
