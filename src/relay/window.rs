//! A receive window that never holds a transfer back.

use std::cell::Cell;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::os::socket;

/// What is received before the window grows first, in bytes.
const FIRST: u64 = 128 * 1024;
/// The window becomes so many times what was received: slow start doubles what is under way with each
/// round trip, and what one uplink lost holds up what comes over the others for another one.
const TIMES: u64 = 4;
/// It grows while what was received doubles within this time. Thus it holds what arrives in 4 s at
/// most, and a slow reader, for whom nothing doubles, does not fill the router's memory.
const SOON: Duration = Duration::from_millis(500);

/// Opens the window of a tunnel's connection as far as the transfer needs.
///
/// Linux adapts it to what arrives in a round trip, which it takes from the subflow with the longest one
/// (`mptcp_rcv_space_adjust`). On a warm connection that was idle it takes the time of idleness for the
/// round trip, and until that is over again the window stays as it began.
#[derive(Debug)]
pub(super) struct Window<'a> {
    tunnel: &'a TcpStream,
    received: Cell<u64>,
    grows_at: Cell<u64>,
    grown: Cell<Option<Instant>>,
}

impl Window<'_> {
    pub(super) fn of(tunnel: &TcpStream) -> Window<'_> {
        Window {
            tunnel,
            received: Cell::new(0),
            grows_at: Cell::new(FIRST),
            grown: Cell::new(None),
        }
    }

    /// Takes note of bytes received from the tunnel.
    pub(super) fn received(&self, bytes: usize, now: Instant) {
        let received = self.received.get().saturating_add(bytes as u64);
        self.received.set(received);
        if received < self.grows_at.get() {
            return;
        }
        self.grows_at.set(received.saturating_mul(2));
        let grown = self.grown.replace(Some(now));
        if grown.is_none_or(|grown| now.saturating_duration_since(grown) <= SOON) {
            // It fails on a connection that has ended, which the relay notices itself.
            let _ = socket::grow_receive_window(self.tunnel, received.saturating_mul(TIMES));
        }
    }
}
