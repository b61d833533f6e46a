//! Connections the other way round: accepted by the server on a forwarded port, for a host on the LAN.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Connection, Proxy, count};
use crate::os::socket;
use crate::relay::message;
use crate::session::Wishes;
use crate::tunnel::convert::Failure;
use crate::tunnel::forward::Incoming;

/// How long the target may take to accept: the server waits no longer.
const LIMIT: Duration = Duration::from_secs(10);
/// How many connections may be on their way to their target at once: as many as a server announces.
const REACHING_LIMIT: u32 = 64;

impl Proxy {
    /// Relays a connection that waits at the server to `target`, which is told who connects if
    /// `proxy_protocol` says so; or has the server reset it.
    pub(crate) async fn forward(
        self: Rc<Self>,
        incoming: Incoming,
        target: SocketAddr,
        proxy_protocol: bool,
        wishes: Rc<Wishes>,
    ) {
        if self.reaching.get() >= REACHING_LIMIT {
            return wishes.decline(incoming.id);
        }
        self.reaching.set(self.reaching.get().saturating_add(1));
        let header = if proxy_protocol { incoming.proxy_header() } else { Vec::new() };
        let reached = timeout(LIMIT, reach(target, &header)).await;
        self.reaching.set(self.reaching.get().saturating_sub(1));
        match reached.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(lan) => {
                let connection = Connection::new(incoming.peer, target, Some(incoming));
                Box::pin(self.serve(lan, connection)).await;
            }
            Err(error) => {
                log::debug!("{} to {target}: {error}", incoming.peer);
                count(&self.tally.opened);
                self.tally.fail(Failure::from_io(&error).word());
                wishes.decline(incoming.id);
            }
        }
    }
}

async fn reach(target: SocketAddr, header: &[u8]) -> io::Result<TcpStream> {
    let lan = socket::tcp_connect(target, None).await?;
    socket::limit_receive_buffer(&lan)?;
    message::send(&lan, header).await?;
    Ok(lan)
}
