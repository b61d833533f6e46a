//! What the kernel knows about an MPTCP connection: `SOL_MPTCP` of `linux/mptcp.h`.
//!
//! Kernels differ in how much of a structure they fill; what they do not fill reads as zero.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::sys;

pub(super) const SOL_MPTCP: i32 = 284;
const MPTCP_INFO: i32 = 1;
const MPTCP_TCPINFO: i32 = 2;
const MPTCP_SUBFLOW_ADDRS: i32 = 3;
pub(super) const MPTCP_FULL_INFO: i32 = 4;
/// In `linux/tcp.h`; Linux 6.1 does not have it.
const TCP_IS_MPTCP: i32 = 43;

/// Subflows reported of one connection; the kernel allows 8 additional ones up to Linux 7.1.
const MAX_SUBFLOWS: usize = 16;
/// `sizeof(struct __kernel_sockaddr_storage)`.
const ADDRESS_SIZE: usize = 128;
/// `sizeof(struct mptcp_subflow_info)`: an id, padding to the kernel's alignment of pointers (none
/// where they have 32 bits), two addresses.
const SUBFLOW_INFO_SIZE: usize = 8 + 2 * ADDRESS_SIZE;
/// As much of `struct tcp_info` as is read here: up to and with `tcpi_bytes_retrans`.
const TCP_INFO_SIZE: usize = 216;
/// `sizeof(struct mptcp_subflow_data)`, the header of the older two options.
const SUBFLOW_DATA_SIZE: usize = 16;

/// An MPTCP connection as a whole, `struct mptcp_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// The local token, by which netlink events name the connection.
    pub token: u32,
    /// Additional subflows, the initial one not counted.
    pub subflows: u8,
    /// All subflows, the initial one counted while it lives (Linux 6.6; 0 before).
    pub subflows_total: u8,
    /// The connection has fallen back to plain TCP, for good.
    pub fallback: bool,
    /// Retransmissions on another subflow (Linux 6.5).
    pub retransmits: u32,
    /// Bytes of payload sent, retransmitted ones not counted (Linux 6.5).
    pub bytes_sent: u64,
    /// Bytes of payload received (Linux 6.5).
    pub bytes_received: u64,
    /// Bytes of payload the peer has acknowledged (Linux 6.5).
    pub bytes_acked: u64,
    /// Bytes of payload retransmitted on another subflow (Linux 6.5).
    pub bytes_retransmitted: u64,
}

/// One subflow of an MPTCP connection: its addresses and what its `struct tcp_info` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subflow {
    /// The local address and port; IPv4-mapped addresses read as IPv4.
    pub local: SocketAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// The kernel's TCP state; 1 is established.
    pub state: u8,
    /// Smoothed round-trip time.
    pub srtt: Duration,
    /// The smallest round-trip time seen.
    pub min_rtt: Duration,
    /// Congestion window in segments.
    pub congestion_window: u32,
    /// Segments sent and not yet acknowledged.
    pub unacked: u32,
    /// Retransmission timeouts in a row without an acknowledgement.
    pub timeouts: u8,
    /// Time since the last acknowledgement came in.
    pub last_ack: Duration,
    /// Segments retransmitted since the subflow exists.
    pub retransmits: u32,
    /// Bytes sent, retransmitted ones counted too.
    pub bytes_sent: u64,
    /// Bytes retransmitted.
    pub bytes_retransmitted: u64,
    /// Bytes acknowledged by the peer.
    pub bytes_acked: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// Bytes a second at which the peer has lately got data.
    pub delivery_rate: u64,
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
    match connection_info(socket) {
        Ok(info) => Ok(!info.fallback),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The connection as a whole.
///
/// # Errors
/// Those of `getsockopt(2)`: `EOPNOTSUPP` on a socket that never was MPTCP.
pub fn connection_info(socket: impl AsFd) -> io::Result<ConnectionInfo> {
    const FALLBACK: u32 = 1;
    let mut bytes = [0; 96];
    let filled = sys::option(socket.as_fd(), SOL_MPTCP, MPTCP_INFO, &mut bytes)?;
    let info = Fields(bytes.get(..filled).unwrap_or_default());
    Ok(ConnectionInfo {
        subflows: info.u8(0),
        fallback: info.u32(8) & FALLBACK != 0,
        token: info.u32(12),
        retransmits: info.u32(44),
        bytes_retransmitted: info.u64(48),
        bytes_sent: info.u64(56),
        bytes_received: info.u64(64),
        bytes_acked: info.u64(72),
        subflows_total: info.u8(80),
    })
}

/// The subflows of a connection, at most 16; none after a fallback to plain TCP.
///
/// # Errors
/// Those of `getsockopt(2)`: `EOPNOTSUPP` on a socket that never was MPTCP.
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

/// The subflows by `MPTCP_SUBFLOW_ADDRS` and `MPTCP_TCPINFO`. A subflow may come or go between the
/// two looks; a different number means that they cannot be paired, and none are reported.
pub(super) fn separate_info(socket: BorrowedFd<'_>) -> io::Result<Vec<Subflow>> {
    let (addresses, address_size) = subflow_data(socket, MPTCP_SUBFLOW_ADDRS, 2 * ADDRESS_SIZE)?;
    let (infos, info_size) = subflow_data(socket, MPTCP_TCPINFO, TCP_INFO_SIZE)?;
    let count = addresses.len().checked_div(address_size).unwrap_or(0);
    if infos.len().checked_div(info_size) != Some(count) {
        return Ok(Vec::new());
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
    let info = Fields(info);
    let microseconds = |offset| Duration::from_micros(u64::from(info.u32(offset)));
    Some(Subflow {
        local: socket_address(addresses)?,
        remote: socket_address(addresses.get(ADDRESS_SIZE..)?)?,
        state: info.u8(0),
        timeouts: info.u8(2),
        unacked: info.u32(24),
        last_ack: Duration::from_millis(u64::from(info.u32(56))),
        srtt: microseconds(68),
        congestion_window: info.u32(80),
        retransmits: info.u32(100),
        bytes_acked: info.u64(120),
        bytes_received: info.u64(128),
        min_rtt: microseconds(148),
        delivery_rate: info.u64(160),
        bytes_sent: info.u64(200),
        bytes_retransmitted: info.u64(208),
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
    fn u8(&self, offset: usize) -> u8 {
        self.0.get(offset).copied().unwrap_or(0)
    }

    fn u32(&self, offset: usize) -> u32 {
        let bytes = self.0.get(offset..).and_then(|bytes| bytes.first_chunk());
        bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    }

    fn u64(&self, offset: usize) -> u64 {
        let bytes = self.0.get(offset..).and_then(|bytes| bytes.first_chunk());
        bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A xorshift generator.
    fn random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    #[test]
    fn any_bytes_of_any_length_are_read_without_a_panic() {
        let mut state = 0x2545_f491_4f6c_dd1d;
        let mut read = 0;
        for _ in 0..100_000 {
            let mut bytes = [0; 2 * ADDRESS_SIZE + TCP_INFO_SIZE];
            for chunk in bytes.chunks_mut(8) {
                chunk.copy_from_slice(&random(&mut state).to_ne_bytes()[..chunk.len()]);
            }
            // Make the families likely, or nothing behind them is reached.
            for start in [0, ADDRESS_SIZE] {
                let family = [libc::AF_INET, libc::AF_INET6, 99][(random(&mut state) % 3) as usize];
                bytes[start..start + 2].copy_from_slice(&(family as u16).to_ne_bytes());
            }
            let length = random(&mut state) as usize % (bytes.len() + 1);
            let (addresses, info) = bytes[..length].split_at(length.min(2 * ADDRESS_SIZE));
            read += usize::from(subflow(addresses, info).is_some());
        }
        assert!(read > 1000, "{read}");
    }

    #[test]
    fn addresses_of_both_families() {
        let mut bytes = [0; ADDRESS_SIZE];
        bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        bytes[2..8].copy_from_slice(&[0x01, 0xbb, 192, 0, 2, 1]);
        assert_eq!(socket_address(&bytes), Some("192.0.2.1:443".parse().unwrap()));
        bytes[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
        bytes[4..].fill(0);
        bytes[18..24].copy_from_slice(&[0xff, 0xff, 192, 0, 2, 1]);
        assert_eq!(socket_address(&bytes), Some("192.0.2.1:443".parse().unwrap()));
        bytes[8..12].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        bytes[18..24].copy_from_slice(&[0, 0, 0, 0, 0, 1]);
        assert_eq!(socket_address(&bytes), Some("[2001:db8::1]:443".parse().unwrap()));
    }

    #[test]
    fn fields_the_kernel_did_not_fill_are_zero() {
        let fields = Fields(&[1, 0, 0, 0, 2]);
        assert_eq!((fields.u8(4), fields.u8(5)), (2, 0));
        assert_eq!((fields.u32(0), fields.u32(2)), (u32::from_ne_bytes([1, 0, 0, 0]), 0));
        assert_eq!(fields.u64(0), 0);
    }
}
