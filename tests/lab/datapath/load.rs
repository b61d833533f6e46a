//! Load whose content nobody looks at: source and sink cost as little as they can.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest, copy, split};
use tokio::net::TcpStream as AsyncStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::task::{LocalSet, spawn_local};

use crate::lab::traffic::Kind;
use crate::lab::{Lab, Namespace, TARGET_V4};

/// The target's port.
pub const PORT: u16 = 80;
/// Further addresses of the target. New connections go to one after the other, as in life: one address has so
/// few ports for those who connect to it that at 2,000 a second all of them wait for old packets (TIME_WAIT)
/// after 14 s, and long before that looking for a free one takes most of the time.
const ADDRESSES: u32 = 64;
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 64);
/// Bytes written or thrown away at a time.
const CHUNK: usize = 256 * 1024;
/// How long an echo may take.
const SOON: Duration = Duration::from_secs(10);

/// What a client wants, by the first byte it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Bytes without end from the target.
    Download,
    /// To send bytes without end to the target.
    Upload,
    /// Each byte back.
    Echo,
}

/// The first bytes.
const DOWNLOAD: u8 = b'd';
const UPLOAD: u8 = b'u';
const ECHO: u8 = b'e';

/// The server that connections go to, in the target's namespace, for as long as the program runs.
pub struct Target {
    client: Namespace,
    /// Bytes that have arrived at either end.
    arrived: Arc<AtomicU64>,
}

impl Target {
    /// Listens in the target's namespace, for connections from the LAN.
    pub fn start(lab: &Lab) -> Target {
        lab.target.ip(&format!("route add local {FIRST_ADDRESS}/26 dev lo"));
        let listener = lab.target.enter(|| Kind::Tcp.listen(PORT)).expect("listen at the target");
        let arrived = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&arrived);
        thread::spawn(move || run(accept(listener, counter)));
        Target { client: lab.lan.clone(), arrived }
    }

    /// Bytes of downloads and uploads that have arrived so far.
    pub fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }

    /// Begins `count` transfers, which go on until the result is dropped.
    pub fn transfer(&self, wish: Wish, count: usize) -> Transfers {
        let begun: io::Result<Vec<TcpStream>> =
            self.client.enter(|| (0..count).map(|_| open(TARGET_V4, wish)).collect());
        let (streams, arrived) = (begun.expect("connect to the target"), Arc::clone(&self.arrived));
        let (running, stopped) = oneshot::channel::<()>();
        let ended = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&ended);
        thread::spawn(move || {
            run(async move {
                for stream in streams {
                    let (arrived, ended) = (Arc::clone(&arrived), Arc::clone(&counter));
                    spawn_local(async move {
                        let _ = transfer(stream, wish, arrived).await;
                        ended.fetch_add(1, Ordering::Relaxed);
                    });
                }
                let _ = stopped.await;
            })
        });
        Transfers { _running: running, ended }
    }

    /// Opens `count` connections that have each echoed a byte.
    pub fn open_idle(&self, count: usize) -> Vec<TcpStream> {
        let opened: io::Result<Vec<TcpStream>> =
            self.client.enter(|| (0..count).map(|_| echo(TARGET_V4)).collect());
        opened.expect("connect to the target")
    }

    /// Opens connections for so long, `workers` at a time; each echoes a byte.
    pub fn hail(&self, workers: usize, time: Duration) -> Hails {
        let begun = Instant::now();
        let next = AtomicU32::new(0);
        let work = || {
            self.client.join();
            let mut hails = Hails::default();
            while begun.elapsed() < time {
                let turn = next.fetch_add(1, Ordering::Relaxed) % ADDRESSES;
                match echo(Ipv4Addr::from_bits(FIRST_ADDRESS.to_bits() + turn)) {
                    Ok(_) => hails.answered += 1,
                    Err(error) => hails.failures.push(error.to_string()),
                }
            }
            hails
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            workers.into_iter().fold(Hails::default(), |mut all, worker| {
                let hails = worker.join().expect("no panic");
                all.answered += hails.answered;
                all.failures.extend(hails.failures);
                all
            })
        })
    }
}

/// What became of new connections.
#[derive(Debug, Default)]
pub struct Hails {
    /// Those whose byte came back.
    pub answered: u64,
    /// What the others failed of.
    pub failures: Vec<String>,
}

/// Running transfers; they end when it is dropped.
pub struct Transfers {
    _running: oneshot::Sender<()>,
    ended: Arc<AtomicUsize>,
}

impl Transfers {
    /// How many have ended by themselves, as none should.
    pub fn ended(&self) -> usize {
        self.ended.load(Ordering::Relaxed)
    }
}

/// Opens a connection from the calling thread's namespace.
fn open(target: Ipv4Addr, wish: Wish) -> io::Result<TcpStream> {
    let mut stream = Kind::Tcp.connect(SocketAddr::new(target.into(), PORT))?;
    let letter = match wish {
        Wish::Download => DOWNLOAD,
        Wish::Upload => UPLOAD,
        Wish::Echo => ECHO,
    };
    stream.write_all(&[letter])?;
    Ok(stream)
}

/// A connection that has echoed its first byte.
fn echo(target: Ipv4Addr) -> io::Result<TcpStream> {
    let mut stream = open(target, Wish::Echo)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// Runs on the calling thread, which all connections of one end share: a thread for each would leave
/// the relays no processor.
fn run(work: impl Future<Output = ()>) {
    let runtime: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, work);
}

async fn accept(listener: TcpListener, arrived: Arc<AtomicU64>) {
    listener.set_nonblocking(true).expect("do not block");
    let listener = tokio::net::TcpListener::from_std(listener).expect("listen at the target");
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let arrived = Arc::clone(&arrived);
        spawn_local(async move {
            // However it ends, it is over then.
            let _ = serve(stream, &arrived).await;
        });
    }
}

async fn serve(mut stream: AsyncStream, arrived: &AtomicU64) -> io::Result<()> {
    match stream.read_u8().await? {
        DOWNLOAD => fill(&mut stream).await,
        UPLOAD => drain(&stream, arrived).await,
        letter => {
            stream.write_u8(letter).await?;
            let (mut from, mut to) = split(stream);
            copy(&mut from, &mut to).await.map(drop)
        }
    }
}

/// A client's end.
async fn transfer(stream: TcpStream, wish: Wish, arrived: Arc<AtomicU64>) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let mut stream = AsyncStream::from_std(stream)?;
    match wish {
        Wish::Download => drain(&stream, &arrived).await,
        _ => fill(&mut stream).await,
    }
}

thread_local! {
    /// What is written again and again.
    static CONTENT: Rc<[u8]> = Rc::from(vec![0x5a; CHUNK]);
}

async fn fill(stream: &mut AsyncStream) -> io::Result<()> {
    let content = CONTENT.with(Rc::clone);
    loop {
        stream.write_all(&content).await?;
    }
}

/// Takes what arrives without copying it out of the kernel.
async fn drain(stream: &AsyncStream, arrived: &AtomicU64) -> io::Result<()> {
    // Never written to, so it takes no memory.
    let mut chunk = vec![0; CHUNK];
    loop {
        stream.readable().await?;
        let taken = stream.try_io(Interest::READABLE, || {
            let (_, length) = recv(stream, &mut chunk[..], RecvFlags::TRUNC)?;
            Ok(length)
        });
        match taken {
            Ok(0) => return Ok(()),
            Ok(length) => _ = arrived.fetch_add(length as u64, Ordering::Relaxed),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
