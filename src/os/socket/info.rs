//! What the kernel knows about an MPTCP connection: `SOL_MPTCP` of `linux/mptcp.h`.
//!
//! Kernels differ in how much of a structure they fill; what they do not fill reads as zero.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::event::PollFlags;
use socket2::SockRef;

use super::{stream, sys};

pub(super) const SOL_MPTCP: i32 = 284;
const MPTCP_INFO: i32 = 1;
const MPTCP_TCPINFO: i32 = 2;
const MPTCP_SUBFLOW_ADDRS: i32 = 3;
pub(super) const MPTCP_FULL_INFO: i32 = 4;
/// In `linux/tcp.h`; Linux 6.1 does not have it.
const TCP_IS_MPTCP: i32 = 43;

/// Where fields of `struct mptcp_info` are.
const FLAGS: usize = 8;
const WRITE_SEQUENCE: usize = 16;
const SEND_UNACKNOWLEDGED: usize = 24;

/// Subflows reported of one connection; the kernel allows 8 additional ones up to Linux 7.1.
const MAX_SUBFLOWS: usize = 16;
/// `sizeof(struct __kernel_sockaddr_storage)`.
const ADDRESS_SIZE: usize = 128;
/// `sizeof(struct mptcp_subflow_info)`: an id, padding to the kernel's alignment of pointers (none
/// where they have 32 bits), two addresses.
const SUBFLOW_INFO_SIZE: usize = 8 + 2 * ADDRESS_SIZE;
/// As much of `struct tcp_info` as is asked for, and where its fields are; `tcpi_state` is its first
/// byte.
const TCP_INFO_SIZE: usize = 228;
const UNACKED: usize = 24;
const LAST_DATA_RECEIVED: usize = 52;
const LAST_ACK_RECEIVED: usize = 56;
const RTT: usize = 68;
const RETRANSMITTED: usize = 100;
const BYTES_ACKNOWLEDGED: usize = 120;
const BYTES_RECEIVED: usize = 128;
const SEGMENTS_RECEIVED: usize = 140;
const MIN_RTT: usize = 148;
const DATA_SEGMENTS_RECEIVED: usize = 152;
const OUT_OF_ORDER: usize = 224;
/// `sizeof(struct mptcp_subflow_data)`, the header of the older two options.
const SUBFLOW_DATA_SIZE: usize = 16;

/// One subflow of an MPTCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subflow {
    /// The local address and port; IPv4-mapped addresses read as IPv4.
    pub local: SocketAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// The kernel's TCP state; 1 is established.
    pub state: u8,
    /// Segments sent and not acknowledged.
    pub unacked: u32,
    /// How long ago data arrived; counted from its beginning where none ever did.
    pub data_ago: Duration,
    /// How long ago the peer was heard: data, new or not, or an acknowledgement.
    pub heard_ago: Duration,
    /// Bytes acknowledged and bytes received, each once, since the subflow exists.
    pub moved: u64,
    /// Segments received since then.
    pub segments: u32,
    /// Those of them that carried data, new or not.
    pub data_segments: u32,
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// The least round-trip time of the last minutes.
    pub min_rtt: Duration,
    /// Segments sent again since the subflow exists.
    pub retransmitted: u32,
    /// Segments received out of order since then: those after one that was lost (Linux 5.4).
    pub out_of_order: u32,
}

impl Subflow {
    /// Whether it can carry data: not on its way up or down.
    pub fn is_established(&self) -> bool {
        const TCP_ESTABLISHED: u8 = 1;
        self.state == TCP_ESTABLISHED
    }
}

/// Whether a connection speaks MPTCP: false for plain TCP and after a fallback to it.
///
/// # Errors
/// Those of `getsockopt(2)`.
pub fn is_mptcp(socket: impl AsFd) -> io::Result<bool> {
    let mut value = [0; 4];
    match sys::option(socket.as_fd(), libc::IPPROTO_TCP, TCP_IS_MPTCP, &mut value) {
        Ok(_) => Ok(i32::from_ne_bytes(value) != 0),
        // An older kernel does not know the option: on MPTCP the one error, on plain TCP the other.
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOPROTOOPT)) =>
        {
            is_mptcp_by_info(socket.as_fd())
        }
        Err(error) => Err(error),
    }
}

/// The same by `MPTCP_INFO` (Linux 5.16), which a connection without MPTCP does not have.
pub(super) fn is_mptcp_by_info(socket: BorrowedFd<'_>) -> io::Result<bool> {
    const FALLBACK: u32 = 1;
    let mut info = [0; 16];
    match sys::option(socket, SOL_MPTCP, MPTCP_INFO, &mut info) {
        Ok(_) => Ok(Fields(&info).u32(FLAGS) & FALLBACK == 0),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The peer of a connection that subflows may join, also when it has none; `None` for plain TCP and after a
/// fallback to it, and when the connection has ended, as one that is closed by half does with its last subflow
/// (`__mptcp_close_ssk()` in `net/mptcp/protocol.c`).
pub fn joinable_peer(socket: impl AsFd) -> Option<IpAddr> {
    let socket = socket.as_fd();
    let ended = stream::is_ready(socket, PollFlags::empty()).ok()?;
    if ended || !is_mptcp(socket).ok()? {
        return None;
    }
    let peer = SockRef::from(&socket).peer_addr().ok()?.as_socket()?;
    Some(peer.ip().to_canonical())
}

/// Whether the peer's MPTCP has acknowledged all that was written to a connection, by `MPTCP_INFO`.
///
/// # Errors
/// Those of `getsockopt(2)`, for instance on a connection that is not MPTCP.
pub fn is_delivered(socket: impl AsFd) -> io::Result<bool> {
    let mut info = [0; 32];
    sys::option(socket.as_fd(), SOL_MPTCP, MPTCP_INFO, &mut info)?;
    let sequence = |offset| Fields(&info).u64(offset);
    Ok(sequence(WRITE_SEQUENCE) == sequence(SEND_UNACKNOWLEDGED))
}

/// The subflows of a connection, at most 16; none after a fallback to plain TCP.
///
/// # Errors
/// Those of `getsockopt(2)`: `EOPNOTSUPP` on a socket that never was MPTCP. Before Linux 6.5 also when one came
/// or went meanwhile.
pub fn subflows(socket: impl AsFd) -> io::Result<Vec<Subflow>> {
    match full_info(socket.as_fd()) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            separate_info(socket.as_fd())
        }
        result => result,
    }
}

/// The subflows by `MPTCP_FULL_INFO`, in one consistent look (Linux 6.5).
fn full_info(socket: BorrowedFd<'_>) -> io::Result<Vec<Subflow>> {
    let mut addresses = vec![0; MAX_SUBFLOWS * SUBFLOW_INFO_SIZE];
    let mut infos = vec![0; MAX_SUBFLOWS * TCP_INFO_SIZE];
    let sizes = sys::full_info(
        socket,
        MAX_SUBFLOWS,
        (&mut addresses, SUBFLOW_INFO_SIZE),
        (&mut infos, TCP_INFO_SIZE),
    )?;
    let elements = (0..sizes.count).filter_map(|index| {
        let addresses = element(&addresses, index, sizes.subflow_stride)?;
        let info = element(&infos, index, sizes.tcp_stride)?;
        subflow(addresses.get(addresses.len().checked_sub(2 * ADDRESS_SIZE)?..)?, info)
    });
    Ok(elements.collect())
}

/// Bytes of data in the largest segments that a connection sends (`TCP_MAXSEG`).
///
/// # Errors
/// Those of `getsockopt(2)`.
pub fn segment_size(socket: impl AsFd) -> io::Result<u16> {
    let mut value = [0; 4];
    sys::option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_MAXSEG, &mut value)?;
    u16::try_from(i32::from_ne_bytes(value)).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// The subflows by `MPTCP_SUBFLOW_ADDRS` and `MPTCP_TCPINFO`. A subflow may come or go between the
/// two looks; a different number means that they cannot be paired.
pub(super) fn separate_info(socket: BorrowedFd<'_>) -> io::Result<Vec<Subflow>> {
    let (addresses, address_size) = subflow_data(socket, MPTCP_SUBFLOW_ADDRS, 2 * ADDRESS_SIZE)?;
    let (infos, info_size) = subflow_data(socket, MPTCP_TCPINFO, TCP_INFO_SIZE)?;
    let count = addresses.len().checked_div(address_size).unwrap_or(0);
    if infos.len().checked_div(info_size) != Some(count) {
        return Err(io::ErrorKind::Interrupted.into());
    }
    let elements = (0..count).filter_map(|index| {
        subflow(element(&addresses, index, address_size)?, element(&infos, index, info_size)?)
    });
    Ok(elements.collect())
}

/// The elements behind a `struct mptcp_subflow_data`, and the size of one.
fn subflow_data(socket: BorrowedFd<'_>, name: i32, size: usize) -> io::Result<(Vec<u8>, usize)> {
    let mut bytes = vec![0; SUBFLOW_DATA_SIZE + MAX_SUBFLOWS * size];
    let header = [SUBFLOW_DATA_SIZE, 0, 0, size];
    for (field, value) in bytes.chunks_exact_mut(4).zip(header) {
        field.copy_from_slice(&u32::try_from(value).unwrap_or(0).to_ne_bytes());
    }
    let filled = sys::option(socket, SOL_MPTCP, name, &mut bytes)?;
    bytes.truncate(filled);
    let size = Fields(&bytes).u32(12) as usize;
    Ok((bytes.split_off(SUBFLOW_DATA_SIZE.min(filled)), size))
}

/// The `index`th element of `size` bytes.
fn element(bytes: &[u8], index: usize, size: usize) -> Option<&[u8]> {
    let start = index.checked_mul(size)?;
    bytes.get(start..start.checked_add(size)?)
}

/// A subflow from its two addresses and its `struct tcp_info`.
fn subflow(addresses: &[u8], info: &[u8]) -> Option<Subflow> {
    let field = |offset| Fields(info).u32(offset);
    let long = |offset| Fields(info).u64(offset);
    let data_ago = Duration::from_millis(field(LAST_DATA_RECEIVED).into());
    let ack_ago = Duration::from_millis(field(LAST_ACK_RECEIVED).into());
    Some(Subflow {
        local: socket_address(addresses)?,
        remote: socket_address(addresses.get(ADDRESS_SIZE..)?)?,
        state: *info.first()?,
        unacked: field(UNACKED),
        data_ago,
        heard_ago: data_ago.min(ack_ago),
        moved: long(BYTES_ACKNOWLEDGED).saturating_add(long(BYTES_RECEIVED)),
        segments: field(SEGMENTS_RECEIVED),
        data_segments: field(DATA_SEGMENTS_RECEIVED),
        rtt: Duration::from_micros(field(RTT).into()),
        min_rtt: Duration::from_micros(field(MIN_RTT).into()),
        retransmitted: field(RETRANSMITTED),
        out_of_order: field(OUT_OF_ORDER),
    })
}

/// A `struct sockaddr_in` or `sockaddr_in6`.
fn socket_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(bytes.first_chunk().copied()?));
    let port = u16::from_be_bytes(bytes.get(2..)?.first_chunk().copied()?);
    match family {
        libc::AF_INET => {
            let octets: [u8; 4] = bytes.get(4..)?.first_chunk().copied()?;
            Some((Ipv4Addr::from(octets), port).into())
        }
        libc::AF_INET6 => {
            let octets: [u8; 16] = bytes.get(8..)?.first_chunk().copied()?;
            let address = Ipv6Addr::from(octets);
            let scope = Fields(bytes).u32(24);
            Some(match address.to_ipv4_mapped() {
                Some(address) => (address, port).into(),
                None => SocketAddrV6::new(address, port, 0, scope).into(),
            })
        }
        _ => None,
    }
}

/// A kernel structure's fields by offset, in native byte order; zero where it is not filled.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&self, offset: usize) -> u32 {
        self.bytes(offset).map_or(0, u32::from_ne_bytes)
    }

    fn u64(&self, offset: usize) -> u64 {
        self.bytes(offset).map_or(0, u64::from_ne_bytes)
    }

    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..)?.first_chunk().copied()
    }
}
