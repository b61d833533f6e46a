//! A receive window that never holds a transfer back.

use std::cell::Cell;

use tokio::net::TcpStream;

use crate::os::socket;

/// What is received before the window grows, in bytes: a page's worth needs none.
const FIRST: u64 = 128 * 1024;
/// The window is so many times what was received: slow start doubles the data under way with each
/// round trip, and what is lost on one uplink holds up what comes over all for two or three.
const TIMES: u64 = 8;
/// More than the kernel allows (half of the most in `tcp_rmem`).
const LARGEST: u64 = 1 << 30;

/// Opens the window of a tunnel's connection as far as the transfer needs.
///
/// Linux adapts it to what arrives in a round trip, which it takes from the subflow with the longest one
/// (`mptcp_rcv_space_adjust`). On a warm connection that first was idle it takes the time of idleness
/// for the round trip, and until that is over again the window stays as it began.
#[derive(Debug)]
pub(super) struct Window<'a> {
    tunnel: &'a TcpStream,
    received: Cell<u64>,
    grows_at: Cell<u64>,
}

impl Window<'_> {
    pub(super) fn of(tunnel: &TcpStream) -> Window<'_> {
        Window { tunnel, received: Cell::new(0), grows_at: Cell::new(FIRST) }
    }

    /// Takes note of bytes received from the tunnel.
    pub(super) fn received(&self, bytes: usize) {
        let received = self.received.get().saturating_add(bytes as u64);
        self.received.set(received);
        if received < self.grows_at.get() || received > LARGEST {
            return;
        }
        self.grows_at.set(received.saturating_mul(2));
        // It fails on a connection that has ended, which the relay notices itself.
        let _ =
            socket::grow_receive_window(self.tunnel, received.saturating_mul(TIMES).min(LARGEST));
    }
}
