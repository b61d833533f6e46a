//! A new connection to the server over one uplink: whether it comes about, as what, and who
//! answers. It ends before the server would change anything on its account.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use litemap::LiteMap;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::{Means, is_no_route};
use crate::check::{Contact, Reply};
use crate::controller::Outlet;
use crate::os::socket;
use crate::session::{hello, introduce};
use crate::tunnel::control::ClientMessage;
use crate::tunnel::handshake::{Channel, HandshakeError};

/// For two SYNs, at 0 and 1 s, of which one may be lost.
const CONNECT_LIMIT: Duration = Duration::from_millis(2500);
/// The same, for plain TCP.
const PLAIN_LIMIT: Duration = Duration::from_millis(1500);
/// How long the server may take for a handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_millis(2000);
/// How long subflows may take to join once the connection stands: two SYNs.
const JOIN_LIMIT: Duration = Duration::from_millis(1500);
/// Between two looks at the subflows.
const JOIN_LOOK: Duration = Duration::from_millis(50);

/// Subflows seen on a connection by local address, and whether each came to stand.
pub type Subflows = LiteMap<IpAddr, bool>;

/// Connects over an uplink: the connection, and how long it took to stand.
///
/// # Errors
/// What came of it instead.
pub async fn dial(means: &Means, outlet: &Outlet) -> Result<(TcpStream, Duration), Contact> {
    let begun = Instant::now();
    let connect = socket::mptcp_connect(means.server, Some(outlet.source), Some(&outlet.device));
    match timeout(CONNECT_LIMIT, connect).await {
        Ok(Ok(tcp)) => Ok((tcp, begun.elapsed())),
        Ok(Err(error)) if error.raw_os_error() != Some(libc::ETIMEDOUT) => Err(failure(&error)),
        _ => Err(plain(means, outlet).await),
    }
}

/// Whether the same without MPTCP's options is answered.
async fn plain(means: &Means, outlet: &Outlet) -> Contact {
    let connect = socket::tcp_connect(means.server, Some(outlet.source));
    let answered = timeout(PLAIN_LIMIT, connect).await;
    Contact::Unanswered { plain: matches!(answered, Ok(Ok(_))) }
}

fn failure(error: &io::Error) -> Contact {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED | libc::ECONNRESET) => Contact::Refused,
        _ if is_no_route(error) => Contact::NoRoute,
        _ => Contact::Untried(error.to_string()),
    }
}

/// Introduces this router; the channel is there where the server welcomes it.
pub async fn introduction(means: &Means, tcp: &mut TcpStream) -> (Reply, Option<Channel>) {
    let hello = hello(means.config.cipher, None);
    let introduced = introduce(tcp, &means.key, &means.config.public_key, &hello);
    match timeout(HANDSHAKE_LIMIT, introduced).await {
        Ok(Ok((channel, server))) => (Reply::Welcome(server.software), Some(channel)),
        Ok(Err(error)) => (refusal(&error), None),
        Err(_) => (Reply::Silent, None),
    }
}

/// Ends a connection on which this router was welcomed, before it counts as its control
/// connection.
pub async fn leave(tcp: &mut TcpStream, mut channel: Channel) {
    let sealed = channel.seal(&ClientMessage::Close.encode());
    // How the server takes the farewell does not matter.
    let _ = tcp.write_all(&sealed.unwrap_or_default()).await;
}

fn refusal(error: &io::Error) -> Reply {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<HandshakeError>());
    match (cause, error.kind()) {
        (Some(HandshakeError::Refused(refusal)), _) => Reply::Refused(*refusal),
        (None, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => Reply::HungUp,
        _ => Reply::Other(error.to_string()),
    }
}

/// Watches a connection until there is a subflow from each of these addresses, or long enough.
pub async fn subflows(tcp: &TcpStream, expected: &[IpAddr]) -> Subflows {
    let begun = Instant::now();
    loop {
        let seen: Subflows = socket::subflows(tcp)
            .unwrap_or_default()
            .iter()
            .map(|subflow| (subflow.local.ip().to_canonical(), subflow.is_established()))
            .collect();
        let complete = expected.iter().all(|address| seen.get(address) == Some(&true));
        if complete || begun.elapsed() >= JOIN_LIMIT {
            return seen;
        }
        sleep(JOIN_LOOK).await;
    }
}
