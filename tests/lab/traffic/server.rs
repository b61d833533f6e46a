//! A server that sends, takes and echoes streams. A request is one line:
//!
//! | Request | What the server does |
//! |---|---|
//! | `download SEED OFFSET BYTES` | sends that part of the pattern, then closes |
//! | `upload ID` | reads to the end into the recorder `ID`, answers with the count, closes |
//! | `exchange ID SEED BYTES` | sends the pattern, meanwhile reads to the end into the recorder `ID` |
//! | `echo` | sends back what comes, to the end |
//! | `after-eof SEED BYTES` | reads to the end, then sends the pattern, then closes |
//! | `peer` | answers with the address the connection comes from, closes |
//! | `eof-first ID` | ends its own half at once, then reads to the end into the recorder `ID` |

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::super::Namespace;
use super::{Dialer, Kind, Pattern, Recorder};

/// Bytes read or written at once.
pub(super) const CHUNK: usize = 65_536;
/// Bytes of stack of a connection's thread; buffers are on the heap.
const STACK: usize = 128 * 1024;

type Recorders = Arc<Mutex<BTreeMap<u64, Arc<Recorder>>>>;

/// A running server; it stops accepting when dropped.
pub struct TrafficServer {
    kind: Kind,
    port: u16,
    recorders: Recorders,
    next_id: AtomicU64,
    stop: Arc<AtomicBool>,
    namespace: Namespace,
    thread: Option<JoinHandle<()>>,
}

impl TrafficServer {
    /// Listens in a namespace on all its addresses, IPv4 and IPv6.
    pub fn start(namespace: &Namespace, kind: Kind, port: u16) -> TrafficServer {
        let listener = namespace
            .enter(|| kind.listen(port))
            .unwrap_or_else(|error| panic!("listen on port {port}: {error}"));
        let recorders = Recorders::default();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (recorders, stop) = (Arc::clone(&recorders), Arc::clone(&stop));
            thread::spawn(move || accept(&listener, &recorders, &stop))
        };
        TrafficServer {
            kind,
            port,
            recorders,
            next_id: AtomicU64::new(1),
            stop,
            namespace: namespace.clone(),
            thread: Some(thread),
        }
    }

    /// Connections from `namespace` to this server at one of its addresses.
    pub fn dialer(&self, namespace: &Namespace, kind: Kind, address: impl Into<IpAddr>) -> Dialer {
        Dialer::new(namespace, kind, SocketAddr::new(address.into(), self.port))
    }

    /// A recorder that `upload ID` and `eof-first ID` will fill.
    pub fn expect(&self, pattern: Pattern) -> (u64, Arc<Recorder>) {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let recorder = Arc::new(Recorder::new(pattern, 0));
        self.recorders
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, Arc::clone(&recorder));
        (id, recorder)
    }
}

impl Drop for TrafficServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A connection from within the namespace wakes the thread that accepts.
        let local = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), self.port);
        let _ = Dialer::new(&self.namespace, self.kind, local).connect();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, recorders: &Recorders, stop: &AtomicBool) {
    loop {
        let accepted = listener.accept();
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let Ok((stream, _)) = accepted else { continue };
        let recorders = Arc::clone(recorders);
        // An error is the client's to notice; tests look at the client and at the recorders.
        let serve = move || drop(serve(stream, &recorders));
        if thread::Builder::new().stack_size(STACK).spawn(serve).is_err() {
            eprintln!("traffic server: no thread for a connection");
        }
    }
}

fn serve(stream: TcpStream, recorders: &Recorders) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(CHUNK, &stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |index: usize| -> io::Result<u64> {
        words.get(index).and_then(|word| word.parse().ok()).ok_or(io::ErrorKind::InvalidData.into())
    };
    let recorder = |index: usize| -> io::Result<Arc<Recorder>> {
        let recorders = recorders.lock().unwrap_or_else(PoisonError::into_inner);
        recorders.get(&number(index)?).cloned().ok_or(io::ErrorKind::NotFound.into())
    };
    match words.first().copied() {
        Some("download") => send(&stream, Pattern { seed: number(1)? }, number(2)?, number(3)?),
        Some("upload") => {
            let recorder = recorder(1)?;
            receive(&mut reader, &recorder)?;
            writeln!(&stream, "{}", recorder.bytes())
        }
        Some("exchange") => {
            let recorder = recorder(1)?;
            let (seed, bytes) = (number(2)?, number(3)?);
            thread::scope(|scope| {
                let sender = scope.spawn(|| {
                    send(&stream, Pattern { seed }, 0, bytes)?;
                    stream.shutdown(Shutdown::Write)
                });
                receive(&mut reader, &recorder)?;
                sender.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
            })
        }
        Some("echo") => io::copy(&mut reader, &mut &stream).map(drop),
        Some("peer") => writeln!(&stream, "{}", stream.peer_addr()?.ip().to_canonical()),
        Some("after-eof") => {
            io::copy(&mut reader, &mut io::sink())?;
            send(&stream, Pattern { seed: number(1)? }, 0, number(2)?)
        }
        Some("eof-first") => {
            stream.shutdown(Shutdown::Write)?;
            receive(&mut reader, &*recorder(1)?)
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Sends `bytes` bytes of a pattern from `offset` on.
pub(super) fn send(
    mut stream: &TcpStream,
    pattern: Pattern,
    mut offset: u64,
    bytes: u64,
) -> io::Result<()> {
    let end = offset.saturating_add(bytes);
    let mut chunk = vec![0; CHUNK];
    while offset < end {
        let length = usize::try_from(end - offset).unwrap_or(CHUNK).min(CHUNK);
        pattern.fill(offset, &mut chunk[..length]);
        stream.write_all(&chunk[..length])?;
        offset += length as u64;
    }
    Ok(())
}

/// Reads to the end into a recorder.
pub(super) fn receive(reader: &mut impl Read, recorder: &Recorder) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let result = loop {
        match reader.read(&mut chunk) {
            Ok(0) => break Ok(()),
            Ok(length) => recorder.take(&chunk[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
    };
    recorder.finish(result.is_err());
    result
}
