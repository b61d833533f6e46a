//! Making a router's key known to a server, with the token of an invitation.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::agent::CipherChoice;
use crate::config::keys::PrivateKey;
use crate::config::pairing::PairingUri;
use crate::config::value::HostPort;
use crate::os::{runtime, socket};
use crate::session::{hello, open, read_sealed, shake_hands};
use crate::tunnel::control::ServerMessage;

/// How long the server may take.
const LIMIT: Duration = Duration::from_secs(15);

/// Enrols `key` at the server that the invitation names.
///
/// # Errors
/// What went wrong, in words: no such host, no answer, or the server's reason to refuse.
pub fn enrol(uri: &PairingUri, key: &PrivateKey) -> Result<(), String> {
    in_time(try_enrol(uri, key))
}

/// Runs an exchange with a server, apart from the agent, to its end.
pub(super) fn in_time(exchange: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let limited =
        async { timeout(LIMIT, exchange).await.unwrap_or_else(|_| Err("no answer".to_owned())) };
    runtime::run(limited).map_err(|error| error.to_string())?
}

async fn try_enrol(uri: &PairingUri, key: &PrivateKey) -> Result<(), String> {
    let mut tcp = connect(&uri.server).await.map_err(|error| error.to_string())?;
    let hello = hello(CipherChoice::Auto, Some(uri.token.clone()));
    let answer = async {
        let mut channel = shake_hands(&mut tcp, key, &uri.key, &hello).await?;
        open(&mut channel, &read_sealed(&mut tcp).await?)
    };
    // The server enrols a router when it is sure of its key, and then gives it a session.
    match answer.await.map_err(|error| error.to_string())? {
        Some(ServerMessage::Close { reason }) => Err(reason.to_string()),
        _ => Ok(()),
    }
}

/// Connects to a server, whatever way the router's own connections leave.
pub(super) async fn connect(server: &HostPort) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    let server = (server.host.as_str(), server.port);
    let found: Vec<SocketAddr> = tokio::net::lookup_host(server).await?.collect();
    for address in found {
        match socket::mptcp_connect(address, None, None).await {
            Ok(tcp) => return Ok(tcp),
            Err(error) => last = error,
        }
    }
    Err(last)
}
