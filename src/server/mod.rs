//! `mptcp-bond server`: the aggregation server that routers' tunnels end at.

mod control;
mod gate;
mod sessions;
mod state;

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};

use crate::cli::ServerOptions;
use crate::converter;
use crate::os::socket::{self, UdpServer};
use crate::tunnel::{CONVERT, CONTROL, STREAM, probe};

pub use sessions::{Refused, Sessions};
pub use state::State;

/// Connections the kernel holds until they are accepted.
const BACKLOG: i32 = 1024;
/// How long a connection may take to show who it is.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
/// Wait after the kernel could not give a connection (out of file descriptors, say).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
