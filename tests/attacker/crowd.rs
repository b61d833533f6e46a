//! Many routers at once that download as fast as they can, and one that means no good.

use std::future::pending;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use mptcp_bond::config::keys::PrivateKey;
use mptcp_bond::tunnel::session::ClientSession;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::{Attacker, Control};
use crate::lab::traffic::Kind;
use crate::lab::{Lab, ServerProgram, TARGET_V4};

/// Where the source of the downloads listens.
const PORT: u16 = 80;

/// Routers whose downloads run.
pub struct Crowd<'lab> {
    lab: &'lab Lab,
    tasks: Handle,
    _controls: Vec<Control>,
    /// Bytes that each router has received.
    received: Vec<Arc<AtomicUsize>>,
}

impl<'lab> Crowd<'lab> {
    /// So many routers with so many streams each, which are all being read from then on.
    pub fn start(
        lab: &'lab Lab,
        server: &ServerProgram,
        routers: usize,
        streams: usize,
    ) -> Crowd<'lab> {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let tasks = runtime.handle().clone();
        thread::spawn(move || runtime.block_on(pending::<()>()));
        let begin = serve_zeros(&tasks, lab);
        let opened: Vec<Router> = (1..=routers)
            .map(|number| Router::connect(lab, server, number as u8, streams))
            .collect();
        let (mut controls, mut received) = (Vec::new(), Vec::new());
        for Router { control, streams, .. } in opened {
            let bytes = Arc::new(AtomicUsize::new(0));
            for stream in streams {
                read(&tasks, stream, bytes.clone());
            }
            controls.push(control);
            received.push(bytes);
        }
        let _ = begin.send(true);
        Crowd { lab, tasks, _controls: controls, received }
    }

    /// What each router receives, and the hostile one, in bits a second: for some time, once they have
    /// had time to settle.
    pub fn measure(
        &self,
        hostile: Option<&Hostile>,
        [settle, time]: [Duration; 2],
    ) -> (Shares, f64) {
        sleep(settle);
        let counters = || self.received.iter().chain(hostile.map(|hostile| &hostile.received));
        let received =
            || -> Vec<usize> { counters().map(|bytes| bytes.load(Ordering::Relaxed)).collect() };
        let (begun, before) = (Instant::now(), received());
        sleep(time);
        let (after, seconds) = (received(), begun.elapsed().as_secs_f64());
        let rate = |(after, before): (&usize, &usize)| (after - before) as f64 * 8.0 / seconds;
        let mut rates: Vec<f64> = after.iter().zip(&before).map(rate).collect();
        let hostile = rates.drain(self.received.len()..).sum();
        (Shares(rates), hostile)
    }

    /// A router that takes as many streams as it may get, reads half of them and leaves the others
    /// stuck, and all the while opens connections only to drop them.
    pub fn join_hostile(&self, server: &ServerProgram, streams: usize) -> Hostile {
        let router = Router::connect(self.lab, server, 0xff, streams);
        let Router { client, mut control, mut session, streams } = router;
        let (mut stuck, mut tasks, received) = (Vec::new(), Vec::new(), Arc::default());
        for (number, stream) in streams.into_iter().enumerate() {
            match number % 2 {
                0 => tasks.push(read(&self.tasks, stream, Arc::clone(&received))),
                _ => stuck.push(stream),
            }
        }
        let running = Arc::new(AtomicBool::new(true));
        let goes_on = running.clone();
        let flood = thread::spawn(move || {
            while goes_on.load(Ordering::Relaxed) {
                let (preamble, _) = session.open_stream();
                drop(client.send(&preamble));
                drop(client.send(&super::random_bytes(7, 400)));
                control.ping();
            }
        });
        Hostile { received, running, flood: Some(flood), tasks, _stuck: stuck }
    }
}

/// The one that means no good, until this is dropped.
pub struct Hostile {
    received: Arc<AtomicUsize>,
    running: Arc<AtomicBool>,
    flood: Option<JoinHandle<()>>,
    tasks: Vec<AbortHandle>,
    _stuck: Vec<TcpStream>,
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.running.store(false, Ordering::Relaxed);
        self.tasks.iter().for_each(AbortHandle::abort);
        // What went wrong in it has been printed.
        let _ = self.flood.take().map(JoinHandle::join);
    }
}

/// Rates of the routers, in bits a second.
pub struct Shares(Vec<f64>);

impl Shares {
    /// All together.
    pub fn total(&self) -> f64 {
        self.0.iter().sum()
    }

    /// The least, the median and the largest, where 1 is an equal part.
    pub fn spread(&self) -> [f64; 3] {
        let equal = self.total() / self.0.len() as f64;
        let mut shares: Vec<f64> = self.0.iter().map(|rate| rate / equal).collect();
        shares.sort_by(f64::total_cmp);
        [shares[0], shares[shares.len() / 2], shares[shares.len() - 1]]
    }

    /// Jain's index: 1 where all are equal, down to 1/n where one has everything.
    pub fn jain(&self) -> f64 {
        let squares: f64 = self.0.iter().map(|rate| rate * rate).sum();
        self.total().powi(2) / (self.0.len() as f64 * squares)
    }
}

/// Whoever connects to the target is sent zeros, once the sender that this returns says so.
fn serve_zeros(tasks: &Handle, lab: &Lab) -> watch::Sender<bool> {
    let (begin, begun) = watch::channel(false);
    let listener = lab.target.enter(|| Kind::Tcp.listen(PORT)).expect("listen at the target");
    listener.set_nonblocking(true).expect("set non-blocking");
    tasks.spawn(async move {
        let listener = TcpListener::from_std(listener).expect("a listener");
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut begun = begun.clone();
            tokio::spawn(async move {
                // Who would say so may be gone, as nobody has to wait any more.
                let _ = begun.wait_for(|begun| *begun).await;
                while stream.write_all(&[0; 16384]).await.is_ok() {}
            });
        }
    });
    begin
}

/// Reads a stream to its end, and counts.
fn read(tasks: &Handle, stream: TcpStream, received: Arc<AtomicUsize>) -> AbortHandle {
    stream.set_nonblocking(true).expect("set non-blocking");
    let reading = async move {
        let mut stream = tokio::net::TcpStream::from_std(stream).expect("a stream");
        let mut buffer = vec![0; 16384];
        while let Ok(length @ 1..) = stream.read(&mut buffer).await {
            received.fetch_add(length, Ordering::Relaxed);
        }
    };
    tasks.spawn(reading).abort_handle()
}

/// A router of its own key, and its streams.
struct Router {
    client: Attacker,
    control: Control,
    session: ClientSession,
    streams: Vec<TcpStream>,
}

impl Router {
    fn connect(lab: &Lab, server: &ServerProgram, number: u8, streams: usize) -> Router {
        let mut client = Attacker::new(&lab.target, &server.invite(&format!("client{number}")));
        client.key = PrivateKey::from_bytes([number; 32]);
        let mut control =
            client.connect_control(Some(client.token.clone())).expect("it is invited");
        let (mut session, target) = (control.session(), (TARGET_V4, PORT).into());
        let request = |_| {
            // It may take long where packets queue, and a silent client loses its session.
            control.ping();
            client.request_stream(&mut session, target).into_tcp()
        };
        let streams = (0..streams).map(request).collect();
        Router { client, control, session, streams }
    }
}
