//! Load whose content nobody looks at: source and sink cost as little as they can.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv};

use crate::lab::traffic::Kind;
use crate::lab::{Lab, Namespace, TARGET_V4};

/// The target's port.
pub const PORT: u16 = 80;
/// Bytes written or thrown away at a time.
const CHUNK: usize = 256 * 1024;
/// Bytes of stack of a connection's thread.
const STACK: usize = 64 * 1024;
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
        let listener = lab.target.enter(|| Kind::Tcp.listen(PORT)).expect("listen at the target");
        let arrived = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&arrived);
        spawn(move || accept(&listener, &counter));
        Target { client: lab.lan.clone(), arrived }
    }

    /// Bytes of downloads and uploads that have arrived so far.
    pub fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }

    /// Begins `count` transfers.
    pub fn transfer(&self, wish: Wish, count: usize) -> Vec<Transfer> {
        let begin = || -> io::Result<Transfer> {
            let stream = open(wish)?;
            let (own, arrived) = (stream.try_clone()?, Arc::clone(&self.arrived));
            let thread = spawn(move || match wish {
                Wish::Download => drain(&own, &arrived),
                _ => fill(&own),
            });
            Ok(Transfer { stream, thread })
        };
        let begun: io::Result<Vec<Transfer>> =
            self.client.enter(|| (0..count).map(|_| begin()).collect());
        begun.expect("connect to the target")
    }

    /// Opens `count` connections that have each echoed a byte.
    pub fn open_idle(&self, count: usize) -> Vec<TcpStream> {
        let opened: io::Result<Vec<TcpStream>> =
            self.client.enter(|| (0..count).map(|_| echo()).collect());
        opened.expect("connect to the target")
    }

    /// Opens connections for so long, `workers` at a time; each echoes a byte.
    pub fn hail(&self, workers: usize, time: Duration) -> Hails {
        let begun = Instant::now();
        let work = || {
            self.client.join();
            let mut hails = Hails::default();
            while begun.elapsed() < time {
                match echo() {
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

/// A running transfer.
pub struct Transfer {
    stream: TcpStream,
    thread: JoinHandle<()>,
}

impl Transfer {
    /// Ends transfers: all of them first, so that none waits for the others' turns.
    pub fn stop(transfers: Vec<Transfer>) {
        for transfer in &transfers {
            let _ = transfer.stream.shutdown(Shutdown::Both);
        }
        for transfer in transfers {
            let _ = transfer.thread.join();
        }
    }
}

/// Opens a connection from the calling thread's namespace.
fn open(wish: Wish) -> io::Result<TcpStream> {
    let mut stream = Kind::Tcp.connect(SocketAddr::new(TARGET_V4.into(), PORT))?;
    let letter = match wish {
        Wish::Download => DOWNLOAD,
        Wish::Upload => UPLOAD,
        Wish::Echo => ECHO,
    };
    stream.write_all(&[letter])?;
    Ok(stream)
}

/// A connection that has echoed its first byte.
fn echo() -> io::Result<TcpStream> {
    let mut stream = open(Wish::Echo)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

fn accept(listener: &TcpListener, arrived: &Arc<AtomicU64>) {
    loop {
        let Ok((stream, _)) = listener.accept() else { continue };
        let arrived = Arc::clone(arrived);
        spawn(move || serve(stream, &arrived));
    }
}

fn serve(mut stream: TcpStream, arrived: &AtomicU64) {
    let mut letter = [0];
    if stream.read_exact(&mut letter).is_err() {
        return;
    }
    match letter {
        [DOWNLOAD] => fill(&stream),
        [UPLOAD] => drain(&stream, arrived),
        _ => {
            // However it ends, it is over then.
            let _ = stream.write_all(&letter);
            let _ = io::copy(&mut &stream, &mut &stream);
        }
    }
}

fn fill(mut stream: &TcpStream) {
    let chunk = vec![0x5a; CHUNK];
    while stream.write_all(&chunk).is_ok() {}
}

/// Takes what arrives without copying it out of the kernel.
fn drain(stream: &TcpStream, arrived: &AtomicU64) {
    let mut chunk = vec![0; CHUNK];
    while let Ok((_, length @ 1..)) = recv(stream, &mut chunk[..], RecvFlags::TRUNC) {
        arrived.fetch_add(length as u64, Ordering::Relaxed);
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    thread::Builder::new().stack_size(STACK).spawn(work).expect("start a thread")
}
