//! Many connections: short ones in quick succession, and idle ones at once.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{Dialer, Pattern};

/// Connections under way at once, at most.
const WORKERS: usize = 32;
/// Bytes fetched over each connection.
const BYTES: usize = 1000;
/// How long one exchange may take.
const LIMIT: Duration = Duration::from_secs(10);

/// What became of the connections.
#[derive(Clone, Debug, Default)]
pub struct ChurnReport {
    /// Connections opened, used and closed.
    pub done: u64,
    /// Connections that failed, with the reason.
    pub failures: Vec<String>,
    /// The longest time from the start of a connection to its end.
    pub slowest: Duration,
    /// The longest time a connection began after it was due: the load generator's own lag.
    pub lag: Duration,
}

/// Opens `rate` connections a second for `duration`, fetches a little over each and closes it.
pub fn churn(dialer: &Dialer, rate: u32, duration: Duration) -> ChurnReport {
    let total = (f64::from(rate) * duration.as_secs_f64()) as u64;
    let interval = Duration::from_secs(1) / rate;
    let start = Instant::now();
    let next = AtomicU64::new(0);
    let report = Mutex::new(ChurnReport::default());
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                dialer.namespace().join();
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    if turn >= total {
                        return;
                    }
                    let due = start + interval * u32::try_from(turn).unwrap_or(u32::MAX);
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    let began = Instant::now();
                    let result = dialer.connect_here().and_then(|stream| fetch(stream, turn));
                    let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
                    report.slowest = report.slowest.max(began.elapsed());
                    report.lag = report.lag.max(began.duration_since(due));
                    match result {
                        Ok(()) => report.done += 1,
                        Err(error) => report.failures.push(format!("connection {turn}: {error}")),
                    }
                }
            });
        }
    });
    report.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Opens `count` connections, checks each with one echoed byte, and leaves them open.
pub fn open_idle(dialer: &Dialer, count: usize) -> io::Result<Vec<TcpStream>> {
    dialer.namespace().enter(|| {
        (0..count)
            .map(|_| {
                let mut stream = dialer.connect_here()?;
                stream.set_read_timeout(Some(LIMIT))?;
                stream.write_all(b"echo\n!")?;
                stream.read_exact(&mut [0])?;
                Ok(stream)
            })
            .collect()
    })
}

fn fetch(mut stream: TcpStream, seed: u64) -> io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    writeln!(stream, "download {seed} 0 {BYTES}")?;
    let mut received = Vec::with_capacity(BYTES);
    stream.read_to_end(&mut received)?;
    let intact = Pattern { seed }.first_difference(0, &received).is_none();
    if received.len() == BYTES && intact {
        Ok(())
    } else {
        Err(io::Error::other(format!("{} of {BYTES} bytes, intact: {intact}", received.len())))
    }
}
