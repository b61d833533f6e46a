//! The ways out to servers, and connections over them.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use litemap::LiteMap;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::Session;
use crate::controller::Outlet;
use crate::os::socket;
use crate::tunnel::session::SessionId;

/// How long one path has before the next one is tried beside it (RFC 8305, section 8).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// How long a server may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long a connection that fell back to plain TCP waits for a better one.
const BETTER_LIMIT: Duration = Duration::from_secs(1);
/// How long a way out on which MPTCP became plain TCP comes after the others.
const DEMOTION: Duration = Duration::from_secs(600);

/// What session, pool and proxy share: the ways out and the session in force.
#[derive(Default)]
pub struct Trunk {
    paths: RefCell<Vec<Outlet>>,
    /// Addresses from which a connection fell back to plain TCP, and when the last one did.
    fell_back: RefCell<LiteMap<IpAddr, Instant>>,
    session: RefCell<Option<Rc<Session>>>,
    /// Told at each change of these.
    pub changed: Notify,
    /// Told when a stream breaks before the server has answered.
    pub suspected: Notify,
}

impl Trunk {
    /// Sets the ways out, best first.
    pub fn set_paths(&self, paths: Vec<Outlet>) {
        if *self.paths.borrow() != paths {
            *self.paths.borrow_mut() = paths;
            self.changed.notify_waiters();
        }
    }

    /// The ways out, best first.
    pub fn paths(&self) -> Vec<Outlet> {
        self.paths.borrow().clone()
    }

    /// The session in force.
    pub fn session(&self) -> Option<Rc<Session>> {
        self.session.borrow().clone()
    }

    /// The session in force, as soon as there is one other than `rejected`.
    pub async fn wait_for_session(&self, rejected: Option<SessionId>) -> Rc<Session> {
        loop {
            let changed = self.changed.notified();
            if let Some(session) = self.session().filter(|s| Some(s.id()) != rejected) {
                return session;
            }
            changed.await;
        }
    }

    /// Has the control connection checked at once, or tried again if there is none.
    pub fn suspect(&self) {
        self.suspected.notify_one();
    }

    /// Puts a session in force, or none.
    pub fn set_session(&self, session: Option<Rc<Session>>) {
        *self.session.borrow_mut() = session;
        self.changed.notify_waiters();
    }

    /// Whether connections from an address lately fell back to plain TCP.
    pub fn falls_back(&self, source: IpAddr) -> bool {
        self.fell_back.borrow().get(&source).is_some_and(|at| at.elapsed() < DEMOTION)
    }

    fn note_fallback(&self, source: IpAddr) {
        let mut fell_back = self.fell_back.borrow_mut();
        fell_back.retain(|_, at| at.elapsed() < DEMOTION);
        fell_back.insert(source, Instant::now());
    }

    /// Connects to a server; see [`Trunk::dial_any`].
    ///
    /// # Errors
    /// Those of [`Trunk::dial_any`].
    pub async fn dial(&self, server: SocketAddr) -> io::Result<TcpStream> {
        self.dial_any(&[server]).await.map(|(_, tcp)| tcp)
    }

    /// Connects to a server at one of its addresses: over the best way out first, at each address in
    /// turn, then over the next way, an attempt beside the others each 250 ms; the first to be
    /// accepted wins. One that fell back to plain TCP wins only if no other way brings MPTCP: it could
    /// not be bonded.
    ///
    /// # Errors
    /// The last attempt's error, or `NetworkUnreachable` where there is no way.
    pub async fn dial_any(&self, servers: &[SocketAddr]) -> io::Result<(SocketAddr, TcpStream)> {
        let mut attempts = self.attempts(servers);
        if attempts.is_empty() {
            let text = "no uplink is up that could reach the server";
            return Err(io::Error::new(io::ErrorKind::NetworkUnreachable, text));
        }
        let mut plain = None;
        loop {
            let limit = if plain.is_some() { BETTER_LIMIT } else { CONNECT_LIMIT };
            let dialed = timeout(limit, race(attempts.clone()))
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            let (attempt, tcp) = match (dialed, plain) {
                (Ok(dialed), _) => dialed,
                (Err(_), Some(plain)) => return Ok(plain),
                (Err(error), None) => return Err(error),
            };
            let Attempt { server, path } = attempt;
            if socket::is_mptcp(&tcp).unwrap_or(true) {
                return Ok((server, tcp));
            }
            self.note_fallback(path.source);
            attempts.retain(|attempt| !self.falls_back(attempt.path.source));
            if attempts.is_empty() {
                return Ok((server, tcp));
            }
            plain = Some((server, tcp));
        }
    }

    /// The slot of the uplink that a connection to `server` begins on, if all goes well.
    pub fn first_path(&self, server: SocketAddr) -> Option<u8> {
        self.attempts(&[server]).first().map(|attempt| attempt.path.slot)
    }

    /// Each address over each way of its family, in the order to try them.
    fn attempts(&self, servers: &[SocketAddr]) -> Vec<Attempt> {
        let paths = self.paths.borrow();
        let mut attempts = Vec::new();
        for uplink in paths.chunk_by(|a, b| a.slot == b.slot) {
            for &server in servers {
                let reaches = |path: &&Outlet| path.source.is_ipv4() == server.is_ipv4();
                let ways = uplink.iter().filter(reaches).cloned();
                attempts.extend(ways.map(|path| Attempt { server, path }));
            }
        }
        attempts.sort_by_key(|attempt| self.falls_back(attempt.path.source));
        attempts
    }
}

/// An address and a way to it.
#[derive(Clone)]
struct Attempt {
    server: SocketAddr,
    path: Outlet,
}

type Dialed = io::Result<(Attempt, TcpStream)>;

/// The attempt that was accepted first.
async fn race(all: Vec<Attempt>) -> Dialed {
    let mut running = FuturesUnordered::new();
    let mut last = io::Error::from(io::ErrorKind::NetworkUnreachable);
    for attempt in all {
        running.push(Box::pin(async move {
            let Attempt { server, path } = &attempt;
            let tcp = socket::mptcp_connect(*server, Some(path.source), Some(&path.device)).await?;
            Ok((attempt, tcp))
        }) as Pin<Box<dyn Future<Output = Dialed>>>);
        match timeout(ATTEMPT_DELAY, running.next()).await {
            Ok(Some(Ok(dialed))) => return Ok(dialed),
            Ok(Some(Err(error))) => last = error,
            Ok(None) | Err(_) => {}
        }
    }
    while let Some(result) = running.next().await {
        match result {
            Ok(dialed) => return Ok(dialed),
            Err(error) => last = error,
        }
    }
    Err(last)
}
