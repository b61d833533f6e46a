//! The system calls that neither `socket2` nor `rustix` wraps: the only unsafe code of the crate.
//!
//! Everything that leaves this module is plain bytes and numbers, parsed by safe code.

#![allow(unsafe_code)]

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_void, socklen_t};
use socket2::SockAddr;

/// Owns a file descriptor that was passed on to this process, if there is one of that number; other
/// programs that it starts do not inherit it.
///
/// To be called before the process opens any itself: a number is to have one owner.
pub fn adopt(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: fcntl takes any number, and fails where no file is open under it.
    let set = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    // SAFETY: it is open, and whoever started this process left it to us.
    (set == 0).then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

/// Reads a socket option into `value`; returns how many bytes the kernel filled, at most its
/// length (kernels older or newer than ours fill fewer or would fill more).
pub(super) fn option(
    socket: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &mut [u8],
) -> io::Result<usize> {
    let mut length = socklen_t::try_from(value.len()).unwrap_or(socklen_t::MAX);
    // SAFETY: the kernel writes at most `length` bytes to `value`, which is exclusively ours and
    // at least that long, and the final count to `length`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast::<c_void>(),
            &mut length,
        )
    };
    check(result as isize)?;
    Ok(usize::try_from(length).unwrap_or(0).min(value.len()))
}

/// Sets a socket option whose value is an integer.
pub(super) fn set_option(
    socket: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: c_int,
) -> io::Result<()> {
    // SAFETY: the kernel reads `size_of::<c_int>()` bytes from `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast::<c_void>(),
            mem::size_of::<c_int>() as socklen_t,
        )
    };
    check(result as isize).map(drop)
}

/// `struct mptcp_full_info` of `linux/mptcp.h` without the `mptcp_info` at its end.
#[repr(C, align(8))]
#[derive(Default)]
struct FullInfo {
    tcp_info_size_kernel: u32,
    tcp_info_size: u32,
    subflow_info_size_kernel: u32,
    subflow_info_size: u32,
    subflows: u32,
    array_length: u32,
    subflow_info: u64,
    tcp_info: u64,
}

/// What `MPTCP_FULL_INFO` filled.
pub(super) struct FullInfoSizes {
    /// How many elements of each array are filled.
    pub(super) count: usize,
    /// The distance between two elements of the `struct mptcp_subflow_info` array, in bytes.
    pub(super) subflow_stride: usize,
    /// The distance between two elements of the `struct tcp_info` array, in bytes.
    pub(super) tcp_stride: usize,
}

/// Reads `MPTCP_FULL_INFO` (Linux 6.5): up to `max` subflows, their `struct mptcp_subflow_info` of
/// `subflow_size` bytes each and their `struct tcp_info` of `tcp_size` bytes each. Both buffers
/// must hold `max` elements, or the call is refused with `InvalidInput`.
pub(super) fn full_info(
    socket: BorrowedFd<'_>,
    max: usize,
    subflow_info: (&mut [u8], usize),
    tcp_info: (&mut [u8], usize),
) -> io::Result<FullInfoSizes> {
    let fits = |(buffer, size): (&[u8], usize)| {
        size.checked_mul(max).is_some_and(|needed| needed <= buffer.len())
    };
    if !fits((subflow_info.0, subflow_info.1)) || !fits((tcp_info.0, tcp_info.1)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let narrow = |size: usize| u32::try_from(size).map_err(|_| io::ErrorKind::InvalidInput);
    let mut info = FullInfo {
        tcp_info_size: narrow(tcp_info.1)?,
        subflow_info_size: narrow(subflow_info.1)?,
        array_length: narrow(max)?,
        subflow_info: subflow_info.0.as_mut_ptr() as usize as u64,
        tcp_info: tcp_info.0.as_mut_ptr() as usize as u64,
        ..FullInfo::default()
    };
    let mut length = mem::size_of::<FullInfo>() as socklen_t;
    // SAFETY: the kernel reads and writes `info` within `length`. Through the two pointers in it,
    // it writes at most `array_length` elements of at most the given sizes, and both buffers,
    // which are exclusively ours during the call, were checked above to hold them.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            super::info::SOL_MPTCP,
            super::info::MPTCP_FULL_INFO,
            (&raw mut info).cast::<c_void>(),
            &mut length,
        )
    };
    check(result as isize)?;
    Ok(FullInfoSizes {
        count: (info.subflows as usize).min(max),
        subflow_stride: (info.subflow_info_size as usize).min(subflow_info.1),
        tcp_stride: (info.tcp_info_size as usize).min(tcp_info.1),
    })
}

/// Room for the control message of either family, aligned as `cmsghdr` has to be.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Receives one datagram; returns its length (cut to the buffer's), whether it was cut, its sender
/// and where it was sent to as far as the kernel told: the local address, with port 0, or what a
/// diverted one was sent to.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, bool, SockAddr, Option<SocketAddr>)> {
    let mut control = Control([0; 64]);
    let mut vector =
        libc::iovec { iov_base: buffer.as_mut_ptr().cast::<c_void>(), iov_len: buffer.len() };
    let mut local = None;
    let mut received = 0;
    let mut cut = false;
    // SAFETY: `try_init` hands out storage of `length` bytes for the sender's address; `message`
    // points to it, to `vector` (one element, over `buffer`) and to `control`, each with its true
    // length, and all of them outlive the call and the walk over the control messages. The
    // address storage is initialised by `recvmsg`, whose final length is stored back.
    let ((), sender) = unsafe {
        SockAddr::try_init(|storage, length| {
            let mut message = empty_message();
            message.msg_name = storage.cast::<c_void>();
            message.msg_namelen = *length;
            message.msg_iov = &raw mut vector;
            message.msg_iovlen = 1;
            message.msg_control = control.0.as_mut_ptr().cast::<c_void>();
            message.msg_controllen = control.0.len() as _;
            received = check(libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0))?;
            *length = message.msg_namelen;
            cut = message.msg_flags & libc::MSG_TRUNC != 0;
            local = destination(&message);
            Ok(())
        })
    }?;
    Ok((received, cut, sender, local))
}

/// The destination in the control messages of a received datagram.
///
/// # Safety
/// `message` must have been filled by `recvmsg` and its control buffer must still be alive.
unsafe fn destination(message: &libc::msghdr) -> Option<SocketAddr> {
    // SAFETY: the caller guarantees a valid control buffer; the CMSG_ functions stay within it.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: a header that the CMSG_ functions return lies within the control buffer.
        let found = unsafe { *header };
        let data = |size: usize| {
            // SAFETY: CMSG_LEN only computes.
            let needed = unsafe { libc::CMSG_LEN(size as u32) } as usize;
            // SAFETY: as for the header; the pointer is used only when the data are that long.
            (found.cmsg_len as usize >= needed).then(|| unsafe { libc::CMSG_DATA(header) })
        };
        match (found.cmsg_level, found.cmsg_type) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                let data = data(mem::size_of::<libc::in_pktinfo>())?;
                // SAFETY: the kernel put an `in_pktinfo` there, checked to be long enough; it may
                // be unaligned.
                let info = unsafe { data.cast::<libc::in_pktinfo>().read_unaligned() };
                return Some((Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()), 0).into());
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                let data = data(mem::size_of::<libc::in6_pktinfo>())?;
                // SAFETY: as above, with an `in6_pktinfo`.
                let info = unsafe { data.cast::<libc::in6_pktinfo>().read_unaligned() };
                return Some((Ipv6Addr::from(info.ipi6_addr.s6_addr), 0).into());
            }
            (libc::IPPROTO_IP, libc::IP_ORIGDSTADDR) => {
                let data = data(mem::size_of::<libc::sockaddr_in>())?;
                // SAFETY: as above, with a `sockaddr_in`.
                let address = unsafe { data.cast::<libc::sockaddr_in>().read_unaligned() };
                let ip = Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes());
                return Some((ip, u16::from_be(address.sin_port)).into());
            }
            (libc::IPPROTO_IPV6, libc::IPV6_ORIGDSTADDR) => {
                let data = data(mem::size_of::<libc::sockaddr_in6>())?;
                // SAFETY: as above, with a `sockaddr_in6`.
                let address = unsafe { data.cast::<libc::sockaddr_in6>().read_unaligned() };
                let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
                return Some((ip, u16::from_be(address.sin6_port)).into());
            }
            // SAFETY: as for the first header.
            _ => header = unsafe { libc::CMSG_NXTHDR(message, header) },
        }
    }
    None
}

/// Sends one datagram from the local address `local`, whatever the routing would choose.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    data: &[u8],
    remote: SocketAddr,
    local: IpAddr,
) -> io::Result<usize> {
    let remote = SockAddr::from(remote);
    let mut control = Control([0; 64]);
    // The kernel only reads through this pointer.
    let mut vector =
        libc::iovec { iov_base: data.as_ptr().cast_mut().cast::<c_void>(), iov_len: data.len() };
    let mut message = empty_message();
    message.msg_name = remote.as_ptr().cast_mut().cast::<c_void>();
    message.msg_namelen = remote.len();
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast::<c_void>();
    match local {
        IpAddr::V4(address) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            // SAFETY: `msg_control` points to 64 aligned bytes, enough for either structure.
            unsafe { put_control(&mut message, libc::IPPROTO_IP, libc::IP_PKTINFO, info) };
        }
        IpAddr::V6(address) => {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: address.octets() },
                ipi6_ifindex: 0,
            };
            // SAFETY: as above.
            unsafe { put_control(&mut message, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info) };
        }
    }
    // SAFETY: every pointer in `message` is to a local or argument that outlives the call, with
    // its true length; sendmsg writes to none of them.
    check(unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) })
}

/// Writes `value` as the one control message of `message`.
///
/// # Safety
/// `msg_control` must point to at least `CMSG_SPACE(size_of::<T>())` writable bytes, aligned for
/// `cmsghdr`.
unsafe fn put_control<T: Copy>(message: &mut libc::msghdr, level: c_int, kind: c_int, value: T) {
    let size = mem::size_of::<T>() as u32;
    // SAFETY: CMSG_SPACE and CMSG_LEN only compute; the caller guarantees that the header and the
    // data fit where CMSG_FIRSTHDR and CMSG_DATA point, and the data are written unaligned.
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(size) as _;
        let header = libc::CMSG_FIRSTHDR(message);
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = libc::CMSG_LEN(size) as _;
        libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
    }
}

/// A `msghdr` with nothing in it (it has private padding in some C libraries).
fn empty_message() -> libc::msghdr {
    // SAFETY: a `msghdr` is pointers and integers: all zeroes is a valid value.
    unsafe { MaybeUninit::<libc::msghdr>::zeroed().assume_init() }
}

/// Turns a system call's -1 into the error in errno.
fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
