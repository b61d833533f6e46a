//! Warm streams: connections to the server that are authenticated and have their subflows joined
//! before anybody needs them, so that the first bytes of a new connection leave at once.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use crate::os::runtime;
use crate::os::socket::{self, Subflow};
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
/// Streams being opened at a time. Until a server has read who comes it is a stranger there, of whom 256 are
/// let wait, and no more than a quarter of these from one address without a risk.
const OPENING: usize = 64;
/// What the demand is taken over.
const DEMAND_WINDOW: Duration = Duration::from_secs(2);
/// One stream is kept warm for so many taken in the window: twice what is taken in a tenth of a
/// second, which is more than opening one lasts.
const STREAMS_PER_WARM: usize = 10;
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
    /// The session it belongs to.
    pub session: SessionId,
    /// To be dropped once the preamble is sent.
    pub opening: Option<OwnedSemaphorePermit>,
}

/// Why there is no stream.
#[derive(Debug)]
pub enum NoStream {
    /// There is no session with the server.
    NoSession,
    /// The server could not be reached.
    Unreachable(io::Error),
    /// The server does not answer on any uplink.
    ServerLost,
}

impl fmt::Display for NoStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoStream::NoSession => f.write_str("there is no session with the server"),
            NoStream::ServerLost => f.write_str("the server is lost"),
            NoStream::Unreachable(error) => write!(f, "the server cannot be reached: {error}"),
        }
    }
}

struct Warm {
    stream: Stream,
    since: Instant,
}

/// Keeps streams warm, as many as were lately asked for in the time it takes to open one.
pub struct Pool {
    trunk: Rc<Trunk>,
    warm: RefCell<VecDeque<Warm>>,
    opening: Cell<usize>,
    places: Arc<Semaphore>,
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
            places: Arc::new(Semaphore::new(OPENING)),
            taken: RefCell::default(),
            wake: Notify::new(),
            fell_back: Cell::new(0),
        })
    }

    /// How many streams are warm.
    pub fn warm(&self) -> usize {
        self.warm.borrow().len()
    }

    /// The subflows of the warm streams.
    pub fn subflows(&self) -> Vec<Subflow> {
        let warm = self.warm.borrow();
        let of = |warm: &Warm| socket::subflows(&warm.stream.tcp).unwrap_or_default();
        warm.iter().flat_map(of).collect()
    }

    /// Connections to the server that fell back from MPTCP to TCP.
    pub fn fell_back(&self) -> u64 {
        self.fell_back.get()
    }

    /// A warm stream, or a new one where none is left; of another session than `rejected`.
    ///
    /// # Errors
    /// When there is no such session within two seconds, or no way leads to the server.
    pub async fn take(&self, rejected: Option<SessionId>) -> Result<Stream, NoStream> {
        self.note_demand();
        let session = timeout(SESSION_LIMIT, self.trunk.wait_for_session(rejected))
            .await
            .map_err(|_| NoStream::NoSession)?;
        let warm = self.take_warm(&session);
        self.wake.notify_one();
        match warm {
            Some(stream) => Ok(stream),
            None => self.open(&session).await.map_err(NoStream::Unreachable),
        }
    }

    /// Tells that a stream broke before the server answered: the server may have been started
    /// anew, and the session with it.
    pub fn suspect(&self) {
        self.trunk.suspect();
    }

    fn take_warm(&self, session: &Session) -> Option<Stream> {
        loop {
            let warm = self.warm.borrow_mut().pop_front()?;
            if warm.stream.session == session.id() && is_alive(&warm.stream.tcp) {
                return Some(warm.stream);
            }
        }
    }

    fn note_demand(&self) {
        let mut taken = self.taken.borrow_mut();
        if taken.len() >= MOST * STREAMS_PER_WARM {
            taken.pop_front();
        }
        taken.push_back(Instant::now());
    }

    /// How many streams to keep warm.
    fn target(&self) -> usize {
        let mut taken = self.taken.borrow_mut();
        while taken.front().is_some_and(|at| at.elapsed() > DEMAND_WINDOW) {
            taken.pop_front();
        }
        (LEAST + taken.len() / STREAMS_PER_WARM).min(MOST)
    }

    async fn open(&self, session: &Session) -> io::Result<Stream> {
        // It is never closed.
        let opening = self.places.clone().acquire_owned().await.ok();
        let tcp = self.trunk.dial(session.server).await?;
        if !socket::is_mptcp(&tcp).unwrap_or(true) {
            self.fell_back.set(self.fell_back.get() + 1);
        }
        let (preamble, sealer, opener) = session.open_stream();
        let (cipher, session) = (session.cipher(), session.id());
        Ok(Stream { tcp, cipher, sealer, opener, preamble, session, opening })
    }

    async fn open_warm(&self) -> io::Result<()> {
        let Some(session) = self.trunk.session() else { return Ok(()) };
        let mut stream = self.open(&session).await?;
        stream.tcp.write_all(&std::mem::take(&mut stream.preamble)).await?;
        stream.opening = None;
        self.warm.borrow_mut().push_back(Warm { stream, since: Instant::now() });
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
                runtime::spawn(async move {
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
            Some(warm.stream.session) == session
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;
    use tokio::task::{LocalSet, spawn_local};

    use super::*;
    use crate::controller::Outlet;
    use crate::tunnel::session::{ClientSession, StreamSecret};
    use crate::tunnel::stream::{PREAMBLE_LEN, UnverifiedPreamble};

    const SOON: Duration = Duration::from_secs(10);

    fn run(test: impl AsyncFnOnce()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, test());
    }

    fn session(id: u64, server: SocketAddr) -> Rc<Session> {
        let secret = StreamSecret::from_bytes([1; 32]);
        let session = ClientSession::new(SessionId(id), &secret, Cipher::ChaCha20Poly1305);
        Rc::new(Session::new(session, server, true))
    }

    /// A pool that runs, and the streams that arrive at its server, each with its session.
    struct Running {
        pool: Rc<Pool>,
        trunk: Rc<Trunk>,
        server: SocketAddr,
        arrived: mpsc::UnboundedReceiver<(SessionId, TcpStream)>,
    }

    async fn running() -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        let (tell, arrived) = mpsc::unbounded_channel();
        spawn_local(async move {
            loop {
                let (mut tcp, _) = listener.accept().await.unwrap();
                let tell = tell.clone();
                spawn_local(async move {
                    let mut preamble = [0; PREAMBLE_LEN];
                    if tcp.read_exact(&mut preamble).await.is_ok() {
                        let session = UnverifiedPreamble::parse(&preamble).unwrap().session();
                        let _ = tell.send((session, tcp));
                    }
                });
            }
        });
        let trunk = Rc::new(Trunk::default());
        let lo = Outlet { slot: 0, source: server.ip(), device: "lo".into() };
        trunk.set_paths(vec![lo]);
        let pool = Pool::new(trunk.clone());
        spawn_local(pool.clone().run());
        Running { pool, trunk, server, arrived }
    }

    impl Running {
        async fn next(&mut self) -> (SessionId, TcpStream) {
            timeout(SOON, self.arrived.recv()).await.unwrap().unwrap()
        }

        async fn until(&self, condition: impl Fn(&Pool) -> bool) {
            let met = async {
                while !condition(&self.pool) {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(SOON, met).await.unwrap();
        }
    }

    #[test]
    fn streams_are_warm_before_they_are_asked_for_and_are_replaced() {
        run(async || {
            let mut it = running().await;
            assert_eq!(it.pool.warm(), 0, "without a session");
            it.trunk.set_session(Some(session(1, it.server)));
            it.until(|pool| pool.warm() == LEAST).await;
            let stream = it.pool.take(None).await.unwrap();
            assert!(stream.preamble.is_empty() && stream.session == SessionId(1));
            it.until(|pool| pool.warm() == LEAST).await;
            assert_eq!(it.pool.fell_back(), 1 + LEAST as u64, "this server speaks no MPTCP");
            for _ in 0..=LEAST {
                assert_eq!(it.next().await.0, SessionId(1));
            }
        });
    }

    #[test]
    fn a_new_session_retires_the_streams_of_the_old_one() {
        run(async || {
            let mut it = running().await;
            it.trunk.set_session(Some(session(1, it.server)));
            let mut old = [it.next().await.1, it.next().await.1];
            it.trunk.set_session(Some(session(2, it.server)));
            for tcp in &mut old {
                assert_eq!(timeout(SOON, tcp.read(&mut [0])).await.unwrap().unwrap(), 0);
            }
            assert_eq!(it.next().await.0, SessionId(2));
            assert_eq!(it.pool.take(None).await.unwrap().session, SessionId(2));
            it.trunk.set_session(None);
            it.until(|pool| pool.warm() == 0).await;
        });
    }

    #[test]
    fn a_stream_that_the_server_closed_is_not_handed_out() {
        run(async || {
            let mut it = running().await;
            it.trunk.set_session(Some(session(1, it.server)));
            let first = [it.next().await.1, it.next().await.1];
            it.until(|pool| pool.warm() == LEAST).await;
            for tcp in first {
                socket::abort(&tcp);
            }
            it.until(|pool| pool.warm.borrow().iter().all(|warm| !is_alive(&warm.stream.tcp)))
                .await;
            let stream = it.pool.take(None).await.unwrap();
            assert!(is_alive(&stream.tcp));
        });
    }

    #[test]
    fn a_rejected_session_is_not_used_again() {
        run(async || {
            let it = running().await;
            it.trunk.set_session(Some(session(1, it.server)));
            let (pool, trunk, server) = (it.pool.clone(), it.trunk.clone(), it.server);
            let next = spawn_local(async move { pool.take(Some(SessionId(1))).await });
            sleep(Duration::from_millis(100)).await;
            assert!(!next.is_finished());
            trunk.set_session(Some(session(2, server)));
            assert_eq!(next.await.unwrap().unwrap().session, SessionId(2));
            let refused = it.pool.take(Some(SessionId(2))).await;
            assert!(matches!(refused, Err(NoStream::NoSession)));
        });
    }

    #[test]
    fn the_pool_grows_with_the_demand_up_to_a_limit() {
        run(async || {
            let pool = Pool::new(Rc::default());
            assert_eq!(pool.target(), LEAST);
            (0..100).for_each(|_| pool.note_demand());
            assert_eq!(pool.target(), LEAST + 10);
            (0..10_000).for_each(|_| pool.note_demand());
            assert_eq!(pool.target(), MOST);
            let long_ago = Instant::now() - 2 * DEMAND_WINDOW;
            pool.taken.borrow_mut().iter_mut().for_each(|at| *at = long_ago);
            assert_eq!(pool.target(), LEAST);
        });
    }

    #[test]
    fn without_a_way_there_is_no_stream() {
        run(async || {
            let it = running().await;
            it.trunk.set_paths(Vec::new());
            it.trunk.set_session(Some(session(1, it.server)));
            let Err(NoStream::Unreachable(error)) = it.pool.take(None).await else { panic!() };
            assert_eq!(error.kind(), io::ErrorKind::NetworkUnreachable);
        });
    }
}
