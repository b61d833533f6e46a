//! TCP and MPTCP connections and listeners.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{Shutdown, connect_unspec, shutdown};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::{make_transparent, sys, while_doing};

/// How long a connection is silent before keepalive probes begin, and the time between them: often
/// enough for NAT state, which may be gone after two minutes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
/// Unanswered keepalive probes after which the kernel gives up a subflow: more than ten minutes,
/// so that idle connections outlive an outage.
const KEEPALIVE_PROBES: u32 = 10;

/// What a connection to a host on the LAN may hold of what the host sends, in bytes; the kernel makes it twice as
/// much with all that belongs to it, of `rmem_max` (208 KiB as a rule) at most. It suffices for 600 Mbit/s at 5 ms.
const LAN_RECEIVE_BUFFER: usize = 256 * 1024;

/// How the kernel finds the rate of a connection's subflows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CongestionControl {
    /// Goes by losses. It learns an idle uplink's rate without first flooding its queue: data sent to
    /// a thin uplink too early hold back what the others deliver.
    Cubic,
    /// Goes by measured rate and RTT, and is not slowed down by losses that have other causes.
    Bbr,
}

/// Sets the congestion control of a connection's subflows, those to come included.
///
/// # Errors
/// `ENOENT` where the kernel has no such congestion control.
pub fn set_congestion_control(stream: impl AsFd, control: CongestionControl) -> io::Result<()> {
    let name: &[u8] = match control {
        CongestionControl::Cubic => b"cubic",
        CongestionControl::Bbr => b"bbr",
    };
    SockRef::from(&stream).set_tcp_congestion(name)
}

/// Enlarges a connection's receive buffer so that its window can be `bytes`, half of the most in
/// `tcp_rmem` at most; the kernel goes on adapting it. It does nothing before Linux 6.11.
///
/// The way to that is `SO_RCVLOWAT`, for which the kernel makes room (`mptcp_set_rcvlowat`);
/// `SO_RCVBUF` would end the adapting.
///
/// # Errors
/// When the connection has ended.
pub fn grow_receive_window(stream: impl AsFd, bytes: u64) -> io::Result<()> {
    let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
    for least in [bytes, 1] {
        sys::set_option(stream.as_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, least)?;
    }
    Ok(())
}

/// Limits what a connection to a host on the LAN, or all that a listener accepts, may hold of what the host sends.
///
/// Left to itself the kernel gives 4 MB and more, in an instant: `tcp_rmem` begins with as much for the tunnel's sake.
/// Before an uplink of 5 Mbit/s all of it fills up, and what is sent last over the same connection waits 9 s.
///
/// # Errors
/// When the connection has ended.
pub fn limit_receive_buffer(socket: impl AsFd) -> io::Result<()> {
    SockRef::from(&socket).set_recv_buffer_size(LAN_RECEIVE_BUFFER)
}

/// Opens an MPTCP connection to `remote`, without Nagle's delay and with keepalive.
///
/// The first subflow leaves from the address `bind` and through `device`; later subflows are the
/// path manager's. An IPv4-mapped `remote` makes a dual-stack socket, whose subflows may be of both
/// families. Dropping the future closes the socket.
///
/// # Errors
/// Those of `connect(2)` unchanged; a socket that cannot be made or bound says what failed.
pub async fn mptcp_connect(
    remote: SocketAddr,
    bind: Option<IpAddr>,
    device: Option<&str>,
) -> io::Result<TcpStream> {
    let socket = mptcp_socket(remote)?;
    if let Some(device) = device {
        bind_device(&socket, device)?;
    }
    connect(socket, remote, bind).await
}

/// Opens a plain TCP connection to `target`, without Nagle's delay and with keepalive. It fails
/// when the kernel gives up (`tcp_syn_retries`, about 130 s), as a direct connection would.
///
/// # Errors
/// Those of `connect(2)` unchanged; a socket that cannot be made or bound says what failed.
pub async fn tcp_connect(target: SocketAddr, bind: Option<IpAddr>) -> io::Result<TcpStream> {
    connect(stream_socket(target, Protocol::TCP)?, target, bind).await
}

/// Opens a plain TCP connection to `target` from the address `bind` and through `device`.
///
/// # Errors
/// Those of [`tcp_connect`], or says that it cannot be bound to the device.
pub async fn tcp_connect_over(
    target: SocketAddr,
    bind: IpAddr,
    device: &str,
) -> io::Result<TcpStream> {
    let socket = stream_socket(target, Protocol::TCP)?;
    bind_device(&socket, device)?;
    connect(socket, target, Some(bind)).await
}

/// Listens for MPTCP connections (plain TCP ones are accepted too: see
/// [`is_mptcp`](super::is_mptcp)) with a queue of `backlog`. An IPv6 address takes IPv6 only.
///
/// # Errors
/// Says that the kernel has no MPTCP, or which address could not be had and why.
pub fn mptcp_listen(address: SocketAddr, backlog: i32) -> io::Result<TcpListener> {
    listen(mptcp_socket(address)?, address, backlog)
}

/// Listens for plain TCP connections, on one device alone where it is given. An IPv6 address takes IPv6
/// only.
///
/// # Errors
/// Which device or address could not be had and why.
pub fn tcp_listen(address: SocketAddr, device: Option<&str>) -> io::Result<TcpListener> {
    const BACKLOG: i32 = 128;
    let socket = stream_socket(address, Protocol::TCP)?;
    if let Some(device) = device {
        bind_device(&socket, device)?;
    }
    listen(socket, address, BACKLOG)
}

/// Listens for TCP connections that nft's TPROXY diverts; the local address of an accepted
/// connection is its original destination.
///
/// # Errors
/// `PermissionDenied` without CAP_NET_ADMIN and CAP_NET_RAW; otherwise which address could not be had and why.
pub fn tproxy_listen(address: SocketAddr) -> io::Result<TcpListener> {
    // As many as the kernel lets wait (`somaxconn`). Beyond that it answers with SYN cookies, which hold less of
    // what a client's TCP can do.
    const BACKLOG: i32 = 4096;
    let socket = stream_socket(address, Protocol::TCP)?;
    make_transparent(&socket, address)?;
    // Accepted sockets inherit it.
    limit_receive_buffer(&socket)?;
    listen(socket, address, BACKLOG)
}

/// Sets what every connection gets, made or accepted: no Nagle's delay, keepalive.
fn tune(stream: impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(&stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_keepalive(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_INTERVAL)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    match socket.set_tcp_keepalive(&keepalive) {
        // Older kernels know only the switch on MPTCP sockets, and probe at their own intervals.
        Err(error) if is_unsupported(&error) => Ok(()),
        result => result,
    }
}

/// Breaks a connection: its peer sees a reset at once (RST, or MP_FASTCLOSE on MPTCP), and what
/// was not yet sent or read is dropped. The socket is of no use afterwards.
pub fn abort(stream: impl AsFd) {
    // Disconnecting sends the reset even while other handles of the socket are still open.
    if connect_unspec(&stream).is_err() {
        // A close with a zero linger time does the same; on a dead socket neither is needed.
        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    }
}

/// The address a socket is bound to.
///
/// # Errors
/// When it is none of IP.
pub fn local_address(socket: impl AsFd) -> io::Result<SocketAddr> {
    let address = SockRef::from(&socket).local_addr()?.as_socket();
    address.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Whether a socket is one of UDP.
///
/// # Errors
/// Those of `getsockopt(2)`.
pub fn is_datagram(socket: impl AsFd) -> io::Result<bool> {
    Ok(SockRef::from(&socket).r#type()? == Type::DGRAM)
}

/// Whether a connection is reset, rather than ended, when its last handle is closed.
///
/// # Errors
/// When the connection has ended.
pub fn reset_when_closed(stream: impl AsFd, reset: bool) -> io::Result<()> {
    SockRef::from(&stream).set_linger(reset.then_some(Duration::ZERO))
}

/// Whether the kernel takes more now, or has something to say (`poll(2)`); if not, waiting for the stream to become
/// writable waits for that. What the runtime itself knows is what came of the last write.
///
/// # Errors
/// Those of `poll(2)`.
pub fn has_room(stream: &TcpStream) -> io::Result<bool> {
    let asked = stream.try_io(Interest::WRITABLE, || {
        if is_ready(stream, PollFlags::OUT)? {
            Ok(())
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    });
    match asked {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        result => result.map(|()| true),
    }
}

/// Whether any of these holds of a socket now, or it has ended or is broken (`poll(2)`).
pub(super) fn is_ready(socket: impl AsFd, flags: PollFlags) -> io::Result<bool> {
    const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut asked = [PollFd::new(&socket, flags)];
    Ok(rustix::io::retry_on_intr(|| poll(&mut asked, Some(&NOW)))? > 0)
}

/// Sends the end of the stream (FIN, or DATA_FIN on MPTCP); reading goes on.
///
/// # Errors
/// Those of `shutdown(2)`: `ENOTCONN` when the connection is broken already.
pub fn shutdown_write(stream: impl AsFd) -> io::Result<()> {
    shutdown(stream, Shutdown::Write).map_err(io::Error::from)
}

/// Waits until a connection breaks (a reset, a timeout of the kernel's), although nobody reads
/// from it or writes to it; returns the reason. It takes the reason from the socket.
pub async fn broken(stream: &TcpStream) -> io::Error {
    loop {
        if let Err(error) = stream.ready(Interest::ERROR).await {
            return error;
        }
        let taken = stream.try_io(Interest::ERROR, || {
            // Without an error on the socket this was a false alarm, to be waited for again.
            let error = SockRef::from(stream).take_error()?;
            error.ok_or_else(|| io::ErrorKind::WouldBlock.into())
        });
        match taken {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(error) | Err(error) => return error,
        }
    }
}

/// A non-blocking MPTCP socket of the address's family, with loss-based congestion control.
fn mptcp_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = stream_socket(address, Protocol::MPTCP);
    let socket = socket.map_err(|error| match error.raw_os_error() {
        Some(libc::EPROTONOSUPPORT | libc::EINVAL) => io::Error::new(
            io::ErrorKind::Unsupported,
            "this kernel has no MPTCP (it takes Linux 5.6 with CONFIG_MPTCP=y)",
        ),
        Some(libc::ENOPROTOOPT) => io::Error::new(
            io::ErrorKind::Unsupported,
            "MPTCP is switched off: set the sysctl net.mptcp.enabled=1",
        ),
        _ => error,
    })?;
    // A kernel without it goes by what the system uses. Accepted sockets inherit it.
    let _ = set_congestion_control(&socket, CongestionControl::Cubic);
    Ok(socket)
}

/// A non-blocking stream socket of the address's family.
fn stream_socket(address: SocketAddr, protocol: Protocol) -> io::Result<Socket> {
    Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(protocol))
}

fn bind_device(socket: &Socket, device: &str) -> io::Result<()> {
    let bound = socket.bind_device(Some(device.as_bytes()));
    bound.map_err(while_doing(&format!("cannot bind to device {device}")))
}

async fn connect(
    socket: Socket,
    remote: SocketAddr,
    bind: Option<IpAddr>,
) -> io::Result<TcpStream> {
    if let Some(address) = bind {
        // The port is chosen by connect(), which knows the remote and so finds more of them free;
        // a kernel that cannot do that for MPTCP chooses here.
        let _ = sys::set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1);
        let address = match (address, remote) {
            (IpAddr::V4(address), SocketAddr::V6(_)) => address.to_ipv6_mapped().into(),
            _ => address,
        };
        socket
            .bind(&SocketAddr::new(address, 0).into())
            .map_err(while_doing(&format!("cannot bind to address {address}")))?;
    }
    tune(&socket)?;
    TcpSocket::from_std_stream(socket.into()).connect(remote).await
}

fn listen(socket: Socket, address: SocketAddr, backlog: i32) -> io::Result<TcpListener> {
    let context = format!("cannot listen on {address}");
    let prepare = || {
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // Accepted sockets inherit it.
        tune(&socket)?;
        socket.bind(&address.into())?;
        socket.listen(backlog)
    };
    prepare().map_err(while_doing(&context))?;
    TcpListener::from_std(socket.into())
}

/// Whether a socket option is unknown to this kernel for this kind of socket.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP))
}
