//! A socket that asks, and a socket that listens.

use std::io;

use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use rustix::io::Errno;

use super::refusal::{acknowledgement, dump_end};
use super::{DONE, ERROR, Refusal, Replies, Request, messages};

/// `NLM_F_DUMP_INTR`: the objects changed while they were dumped.
const DUMP_INTERRUPTED: u16 = 0x10;
/// Bytes read at once; the kernel fills at most 32 KiB per datagram of a dump.
const DATAGRAM: usize = 64 * 1024;
/// Times an interrupted dump is begun anew before giving up.
const DUMP_ATTEMPTS: usize = 8;

/// Memory for one datagram; it is kept, as those who wait for news are asked again and again.
fn buffer() -> Vec<u8> {
    Vec::with_capacity(DATAGRAM)
}

/// A socket that asks the kernel one question at a time.
pub struct Requester {
    protocol: isize,
    socket: TokioSocket,
    datagram: Vec<u8>,
    sequence: u32,
    /// A request was dropped before its answer was read.
    unread: bool,
}

impl Requester {
    /// A socket of a netlink protocol (`netlink_sys::protocols`).
    pub fn open(protocol: isize) -> io::Result<Requester> {
        let mut socket = TokioSocket::new(protocol)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_ref().connect(&SocketAddr::new(0, 0))?;
        // Explanations in errors are a nicety that kernels before 4.12 lack.
        let _ = socket.socket_ref().set_ext_ack(true);
        let _ = socket.socket_ref().set_cap_ack(true);
        Ok(Requester { protocol, socket, datagram: buffer(), sequence: 0, unread: false })
    }

    /// Sends a request and reads the whole answer. A dump during which objects changed is begun
    /// anew, so that a dump is always consistent.
    ///
    /// # Errors
    /// The kernel's refusal, or `EINTR` when a dump never came to rest.
    pub async fn request(&mut self, request: &Request) -> Result<Replies, Refusal> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(replies) = self.attempt(request).await? {
                return Ok(replies);
            }
        }
        Err(Refusal {
            errno: Errno::INTR.raw_os_error(),
            explanation: "objects kept changing while they were read".into(),
        })
    }

    /// `None` when a dump was interrupted.
    async fn attempt(&mut self, request: &Request) -> Result<Option<Replies>, Refusal> {
        if self.unread {
            // The rest of a dropped request's answer would block the next dump with EBUSY.
            *self = Requester::open(self.protocol)?;
        }
        self.unread = true;
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(&request.finish(self.sequence)).await?;
        let mut replies = Replies::default();
        let mut interrupted = false;
        loop {
            self.datagram.clear();
            self.socket.recv(&mut self.datagram).await?;
            let mut end = None;
            for message in messages(&self.datagram).filter(|m| m.sequence == self.sequence) {
                interrupted |= message.flags & DUMP_INTERRUPTED != 0;
                match message.kind {
                    ERROR => end = Some(acknowledgement(&message)),
                    DONE => end = Some(dump_end(&message)),
                    _ => {}
                }
            }
            replies.0.extend_from_slice(&self.datagram);
            if let Some(end) = end {
                self.unread = false;
                end?;
                return Ok((!interrupted).then_some(replies));
            }
        }
    }
}

/// A socket that hears what the kernel announces to groups.
pub struct Listener {
    socket: TokioSocket,
    datagram: Vec<u8>,
}

impl Listener {
    /// A socket of a netlink protocol that has joined these groups.
    pub fn open(protocol: isize, groups: &[u32]) -> io::Result<Listener> {
        let mut socket = TokioSocket::new(protocol)?;
        socket.socket_mut().bind_auto()?;
        for group in groups {
            socket.socket_ref().add_membership(*group)?;
        }
        // Only a bound: memory is used when announcements wait.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(
            socket.socket_ref(),
            1024 * 1024,
        );
        Ok(Listener { socket, datagram: buffer() })
    }

    /// The next datagram, to be read with [`messages`]. Cancel safe.
    ///
    /// # Errors
    /// `ENOBUFS` when announcements were lost.
    pub async fn next(&mut self) -> io::Result<&[u8]> {
        self.datagram.clear();
        self.socket.recv(&mut self.datagram).await?;
        Ok(&self.datagram)
    }

    /// The next datagram, if one waits already.
    ///
    /// # Errors
    /// `ENOBUFS` when announcements were lost.
    pub fn waiting(&mut self) -> io::Result<Option<&[u8]>> {
        self.datagram.clear();
        match self.socket.socket_ref().recv(&mut self.datagram, 0) {
            Ok(_) => Ok(Some(&self.datagram)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}
