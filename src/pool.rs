//! Warm streams: connections to the server that are authenticated and have their subflows joined
//! before anybody needs them, so that the first bytes of a new connection leave at once.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::os::socket;
use crate::session::{Session, Trunk};
use crate::tunnel::Cipher;
use crate::tunnel::record::{Opener, Sealer};
use crate::tunnel::session::SessionId;

/// Warm streams kept while nobody asks for any.
const LEAST: usize = 2;
/// The most that are kept.
const MOST: usize = 64;
/// A warm stream is replaced at this age, before the server's limit and most NATs' give it up.
const MAX_AGE: Duration = Duration::from_secs(230);
/// What the demand is taken over.
const DEMAND_WINDOW: Duration = Duration::from_secs(2);
/// Wait after a stream could not be opened.
const RETRY: Duration = Duration::from_millis(500);
/// How long a connection waits for a session before it is given up.
const SESSION_LIMIT: Duration = Duration::from_secs(2);

/// An authenticated stream to the server whose request is still to be sent.
pub struct Stream {
    /// The connection.
    pub tcp: TcpStream,
    /// Its cipher.
    pub cipher: Cipher,
    /// Seals what goes to the server.
    pub sealer: Sealer,
    /// Opens what comes from it.
    pub opener: Opener,
    /// What has to be sent ahead of the request; empty on a warm stream.
    pub preamble: Vec<u8>,
}

/// Why there is no stream.
#[derive(Debug)]
pub enum NoStream {
    /// There is no session with the server.
    NoSession,
    /// The server could not be reached.
    Unreachable(io::Error),
}

impl fmt::Display for NoStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoStream::NoSession => f.write_str("there is no session with the server"),
            NoStream::Unreachable(error) => write!(f, "the server cannot be reached: {error}"),
        }
    }
}

struct Warm {
    stream: Stream,
    session: SessionId,
    since: Instant,
}

/// Keeps streams warm, as many as were lately asked for in the time it takes to open one.
pub struct Pool {
    trunk: Rc<Trunk>,
    warm: RefCell<VecDeque<Warm>>,
    opening: Cell<usize>,
    taken: RefCell<VecDeque<Instant>>,
    wake: Notify,
    fell_back: Cell<u64>,
}

impl Pool {
    /// An empty pool; [`Pool::run`] fills it.
    pub fn new(trunk: Rc<Trunk>) -> Rc<Pool> {
        Rc::new(Pool {
            trunk,
            warm: RefCell::default(),
            opening: Cell::new(0),
            taken: RefCell::default(),
            wake: Notify::new(),
            fell_back: Cell::new(0),
        })
    }

    /// How many streams are warm.
    pub fn warm(&self) -> usize {
        self.warm.borrow().len()
    }

    /// Connections to the server that fell back from MPTCP to TCP.
    pub fn fell_back(&self) -> u64 {
        self.fell_back.get()
    }

    /// A warm stream, or a new one where none is left.
    ///
    /// # Errors
    /// When there is no session, or no way leads to the server.
    pub async fn take(&self) -> Result<Stream, NoStream> {
        self.note_demand();
        let session = match self.trunk.session() {
            Some(session) => session,
            None => timeout(SESSION_LIMIT, self.trunk.wait_for_session())
                .await
                .map_err(|_| NoStream::NoSession)?,
        };
        let warm = self.take_warm(&session);
        self.wake.notify_one();
        match warm {
            Some(stream) => Ok(stream),
            None => {
                let opened = self.open(session.server).await;
                opened.map(|(_, stream)| stream).map_err(NoStream::Unreachable)
            }
        }
    }

    fn take_warm(&self, session: &Session) -> Option<Stream> {
        loop {
            let warm = self.warm.borrow_mut().pop_front()?;
            if warm.session == session.id() && is_alive(&warm.stream.tcp) {
                return Some(warm.stream);
            }
        }
    }

    fn note_demand(&self) {
        let mut taken = self.taken.borrow_mut();
        if taken.len() >= MOST * 8 {
            taken.pop_front();
        }
        taken.push_back(Instant::now());
    }

    /// Twice what was taken in a tenth of a second, which is more than opening one lasts.
    fn target(&self) -> usize {
        let mut taken = self.taken.borrow_mut();
        while taken.front().is_some_and(|at| at.elapsed() > DEMAND_WINDOW) {
            taken.pop_front();
        }
        (LEAST + taken.len() / 10).min(MOST)
    }

    /// A new stream and the session it belongs to.
    async fn open(&self, server: SocketAddr) -> io::Result<(SessionId, Stream)> {
        let tcp = self.trunk.dial(server).await?;
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        let session = self.trunk.confirmed_session(SESSION_LIMIT).await.ok_or_else(gone)?;
        if !socket::is_mptcp(&tcp).unwrap_or(true) {
            self.fell_back.set(self.fell_back.get() + 1);
        }
        let (preamble, sealer, opener) = session.open_stream();
        let stream = Stream { tcp, cipher: session.cipher(), sealer, opener, preamble };
        Ok((session.id(), stream))
    }

    async fn open_warm(&self) -> io::Result<()> {
        let Some(session) = self.trunk.session() else { return Ok(()) };
        let (session, mut stream) = self.open(session.server).await?;
        stream.tcp.write_all(&std::mem::take(&mut stream.preamble)).await?;
        let warm = Warm { stream, session, since: Instant::now() };
        self.warm.borrow_mut().push_back(warm);
        Ok(())
    }

    /// Fills the pool, for ever.
    pub async fn run(self: Rc<Self>) {
        loop {
            self.discard_stale();
            while self.trunk.session().is_some() && self.warm() + self.opening.get() < self.target()
            {
                self.opening.set(self.opening.get() + 1);
                let pool = self.clone();
                tokio::task::spawn_local(async move {
                    if pool.open_warm().await.is_err() {
                        sleep(RETRY).await;
                    }
                    pool.opening.set(pool.opening.get() - 1);
                    pool.wake.notify_one();
                });
            }
            let _ = tokio::select! {
                () = self.wake.notified() => Ok(()),
                result = timeout(Duration::from_secs(5), self.trunk.changed.notified()) => result,
            };
        }
    }

    fn discard_stale(&self) {
        let session = self.trunk.session().map(|session| session.id());
        self.warm.borrow_mut().retain(|warm| {
            Some(warm.session) == session
                && warm.since.elapsed() < MAX_AGE
                && is_alive(&warm.stream.tcp)
        });
    }
}

/// A warm stream says nothing: one that can be read has been closed.
fn is_alive(tcp: &TcpStream) -> bool {
    let read = tcp.try_read(&mut [0]);
    matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}
