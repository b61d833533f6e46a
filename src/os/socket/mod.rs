//! Sockets as the kernel offers them: MPTCP, transparent, UDP with the destination, and pipes.

mod accept;
mod info;
mod pipe;
mod stream;
mod sys;
mod udp;

#[cfg(test)]
mod tests;

pub use accept::Acceptor;
pub use info::{Subflow, is_delivered, is_mptcp, joinable_peer, segment_size, subflows};
pub use pipe::Pipe;
pub use stream::{
    CongestionControl, abort, broken, grow_receive_window, has_room, is_datagram,
    limit_receive_buffer, local_address, mptcp_connect, mptcp_listen, reset_when_closed,
    set_congestion_control, shutdown_write, tcp_connect, tcp_connect_over, tcp_listen,
    tproxy_listen,
};
pub use sys::adopt;
pub use udp::{
    Datagram, FlowSocket, UdpServer, forbid_fragments, path_mtu, report_unreachable, udp_socket,
};

use std::io;
use std::net::SocketAddr;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::Socket;

/// Raises the soft limit of open file descriptors to the hard limit; returns the limit in force
/// (`None`: unlimited).
///
/// # Errors
/// Those of `setrlimit(2)`.
pub fn raise_file_limit() -> io::Result<Option<u64>> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    }
    Ok(limit.maximum)
}

/// Lets a socket have any address for its own, those of others too.
fn make_transparent(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
    .map_err(while_doing(
        "cannot make a transparent socket (it takes CAP_NET_ADMIN or CAP_NET_RAW)",
    ))
}

/// The same error with what was being done in front, its kind kept.
fn while_doing(what: &str) -> impl FnOnce(io::Error) -> io::Error + '_ {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}
