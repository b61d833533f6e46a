//! Accepting connections without end.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use crate::status::Throttle;

/// Wait after the kernel could not give a connection (out of file descriptors, say).
const RETRY: Duration = Duration::from_millis(100);

/// Accepts connections, whatever happens.
pub struct Acceptor {
    listener: TcpListener,
    throttle: Throttle,
}

impl Acceptor {
    /// Accepts from `listener`.
    pub fn new(listener: TcpListener) -> Acceptor {
        Acceptor { listener, throttle: Throttle::new() }
    }

    /// The next connection and its peer. Where the kernel has none to give for want of file
    /// descriptors or memory, it is asked ten times a second, and this is logged once a minute;
    /// connections wait in the listener's queue meanwhile.
    pub async fn next(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            let error = match self.listener.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => error,
            };
            // Linux hands pending errors of the new connection to accept(2).
            if error.kind() != io::ErrorKind::ConnectionAborted {
                if self.throttle.permit(Instant::now(), &error.kind().to_string()).is_some() {
                    log::warn!("cannot accept connections: {error}");
                }
                sleep(RETRY).await;
            }
        }
    }
}
