//! What a program leaves to its next start: systemd's file descriptor store keeps sockets from the end
//! of a service to its restart (`FDSTORE` in sd_notify(3), `FileDescriptorStoreMax` in
//! systemd.service(5)), and connections do not notice.
//!
//! The store holds one file descriptor: the reading end of a socket pair, in which messages with all
//! others wait. Stored one by one, systemd would compare each of them with each.

use std::env;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg,
    sendmsg_addr, socket_with, socketpair,
};
use zeroize::Zeroizing;

use super::socket::adopt;

/// The name of our file descriptor in the store.
const NAME: &str = "streams";
/// File descriptors in one message; the kernel takes 253 (`SCM_MAX_FD`).
const PER_MESSAGE: usize = 250;

/// What was left to this start.
pub struct Inheritance {
    /// What describes the sockets.
    pub state: Zeroizing<Vec<u8>>,
    /// The sockets, in the order in which they were left.
    pub sockets: Vec<OwnedFd>,
}

/// Tells the service manager something, `READY=1` for instance; where there is none it does nothing.
///
/// # Errors
/// Why it could not be told.
pub fn notify(state: &str) -> io::Result<()> {
    send_to_manager(state, &[]).map(drop)
}

/// Leaves sockets and what describes them to the next start; false where there is no service manager
/// that could keep them. One that keeps none does not say so.
///
/// # Errors
/// Why they could not be left.
pub fn leave(state: &[u8], sockets: &[BorrowedFd<'_>]) -> io::Result<bool> {
    if env::var_os("NOTIFY_SOCKET").is_none() {
        return Ok(false);
    }
    let mut memory = std::fs::File::from(memfd_create(NAME, MemfdFlags::CLOEXEC)?);
    memory.write_all(state)?;
    memory.rewind()?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (reading, writing) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let all: Vec<_> = [memory.as_fd()].into_iter().chain(sockets.iter().copied()).collect();
    for some in all.chunks(PER_MESSAGE) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PER_MESSAGE))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(some));
        sendmsg(&writing, &[IoSlice::new(b"S")], &mut ancillary, SendFlags::NOSIGNAL)?;
    }
    // Not watched: that its writing end is closed would be taken for its end.
    let text = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={NAME}");
    send_to_manager(&text, &[reading.as_fd()])
}

/// Takes what was left to this start, which the manager then keeps no longer.
///
/// To be called before anything else is opened.
///
/// # Errors
/// Why it could not be taken; the sockets are closed then.
pub fn take() -> io::Result<Option<Inheritance>> {
    let mut newest = None;
    for reading in passed() {
        newest = receive(&reading)?.or(newest);
    }
    if newest.is_some() {
        notify(&format!("FDSTOREREMOVE=1\nFDNAME={NAME}"))?;
    }
    Ok(newest)
}

/// The file descriptors that were passed on to this process, as sd_listen_fds(3) finds them.
fn passed() -> Vec<OwnedFd> {
    let number = |name| env::var(name).ok()?.parse::<i32>().ok();
    let ours = number("LISTEN_PID") == Some(rustix::process::getpid().as_raw_nonzero().get());
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    if !ours {
        return Vec::new();
    }
    let all = (3..).zip(names.split(':')).take(number("LISTEN_FDS").unwrap_or(0) as usize);
    all.filter(|(_, name)| *name == NAME).filter_map(|(fd, _)| adopt(fd)).collect()
}

/// Reads all messages of a socket pair.
fn receive(reading: &OwnedFd) -> io::Result<Option<Inheritance>> {
    let mut all = Vec::new();
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PER_MESSAGE))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let buffers = &mut [IoSliceMut::new(&mut byte)];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        if recvmsg(reading, buffers, &mut ancillary, flags)?.bytes == 0 {
            break;
        }
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                all.extend(some);
            }
        }
    }
    let mut all = all.into_iter();
    let Some(memory) = all.next() else { return Ok(None) };
    let mut state = Zeroizing::new(Vec::new());
    std::fs::File::from(memory).read_to_end(&mut state)?;
    Ok(Some(Inheritance { state, sockets: all.collect() }))
}

/// Sends to the service manager; false where there is none.
fn send_to_manager(state: &str, fds: &[BorrowedFd<'_>]) -> io::Result<bool> {
    let Ok(path) = env::var("NOTIFY_SOCKET") else { return Ok(false) };
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
        None => SocketAddrUnix::new(path.as_str())?,
    };
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    let data = [IoSlice::new(state.as_bytes())];
    sendmsg_addr(&socket, &address, &data, &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(true)
}
