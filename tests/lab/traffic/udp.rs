//! A UDP flow as a call or a game makes it: a packet every 20 ms, echoed by the other side.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::super::{Namespace, until, wait_for};

/// Between two packets.
const INTERVAL: Duration = Duration::from_millis(20);
/// Bytes of a packet: 20 ms of telephone speech (G.711) with its RTP header.
const PACKET: usize = 172;
/// How long a thread may not notice that it is to stop.
const NAP: Duration = Duration::from_millis(100);

/// Bytes of a packet's number, with which it begins.
const NUMBER: usize = 4;

/// Sends packets back, what follows their number replaced by the address they came from.
pub struct UdpEcho(Worker);

impl UdpEcho {
    /// Listens in a namespace on all its addresses.
    pub fn start(namespace: &Namespace, port: u16) -> UdpEcho {
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        let socket = namespace.enter(|| bind(any));
        UdpEcho(Worker::start(move || {
            let mut packet = [0; PACKET];
            if let Ok((_, peer)) = socket.recv_from(&mut packet) {
                let address = peer.ip().to_canonical().to_string();
                // A peer that is gone is nobody's concern.
                let _ = socket.send_to(&[&packet[..NUMBER], address.as_bytes()].concat(), peer);
            }
        }))
    }
}

/// A running flow.
pub struct UdpFlow {
    answers: Arc<Mutex<Answers>>,
    sender: Worker,
    _receiver: Worker,
}

/// What became of a flow's packets.
#[derive(Debug, PartialEq, Eq)]
pub struct Fates {
    /// Packets sent.
    pub sent: usize,
    /// Those that were not answered.
    pub lost: usize,
    /// Answers to packets that had been answered before.
    pub repeated: usize,
}

#[derive(Default)]
struct Answers {
    last: Option<(Instant, IpAddr)>,
    /// Pauses that have ended: when they did, and how long they were.
    pauses: Vec<(Instant, Duration)>,
    /// How often each packet that was sent was answered.
    counts: Vec<usize>,
}

impl UdpFlow {
    /// Starts a flow from a namespace to an echo, and waits for its first answer.
    #[track_caller]
    pub fn start(namespace: &Namespace, target: SocketAddr) -> UdpFlow {
        let any = if target.is_ipv4() { [0; 4].into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = namespace.enter(|| {
            let socket = bind(SocketAddr::new(any, 0));
            socket.connect(target).expect("give a UDP socket its peer");
            Arc::new(socket)
        });
        let answers = Arc::new(Mutex::new(Answers::default()));
        let (sender, sent) = (Arc::clone(&socket), Arc::clone(&answers));
        let sender = Worker::start(move || {
            let mut packet = [0; PACKET];
            let number = {
                let counts = &mut lock(&sent).counts;
                counts.push(0);
                u32::try_from(counts.len() - 1).expect("a test does not last for years")
            };
            packet[..NUMBER].copy_from_slice(&number.to_be_bytes());
            // An ICMP error says what the answers will show.
            let _ = sender.send(&packet);
            thread::sleep(INTERVAL);
        });
        let heard = Arc::clone(&answers);
        let receiver = Worker::start(move || {
            let mut packet = [0; PACKET];
            let Ok(length) = socket.recv(&mut packet) else { return };
            let Some((number, address)) = packet[..length].split_first_chunk::<NUMBER>() else {
                return;
            };
            let Ok(seen_as) = std::str::from_utf8(address).unwrap_or_default().parse() else {
                return;
            };
            let now = Instant::now();
            let mut answers = lock(&heard);
            answers.counts[u32::from_be_bytes(*number) as usize] += 1;
            if let Some((last, _)) = answers.last.replace((now, seen_as)) {
                answers.pauses.push((now, now - last));
            }
        });
        let flow = UdpFlow { answers, sender, _receiver: receiver };
        until("the first answer", Duration::from_secs(5), || lock(&flow.answers).last);
        flow
    }

    /// The address that the other side sees.
    pub fn seen_as(&self) -> IpAddr {
        lock(&self.answers).last.expect("there was an answer before the start ended").1
    }

    /// The longest pause between two answers among those that ended after `since` or go on.
    pub fn longest_pause_since(&self, since: Instant) -> Duration {
        let answers = lock(&self.answers);
        let ended = answers.pauses.iter().filter(|(end, _)| *end > since).map(|(_, pause)| *pause);
        let now = answers.last.map(|(last, _)| last.elapsed());
        ended.chain(now).max().unwrap_or_default()
    }
}

impl UdpFlow {
    /// Ends it; what became of its packets.
    pub fn end(mut self) -> Fates {
        self.sender.stop();
        // What is under way arrives in less than this.
        let all_answered =
            || lock(&self.answers).counts.iter().all(|count| *count > 0).then_some(());
        wait_for(Duration::from_secs(2), all_answered);
        let counts = &lock(&self.answers).counts;
        Fates {
            sent: counts.len(),
            lost: counts.iter().filter(|count| **count == 0).count(),
            repeated: counts.iter().map(|count| count.saturating_sub(1)).sum(),
        }
    }
}

fn bind(address: SocketAddr) -> UdpSocket {
    let made = || -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind(address)?;
        socket.set_read_timeout(Some(NAP))?;
        Ok(socket)
    };
    made().unwrap_or_else(|error| panic!("open UDP socket {address}: {error}"))
}

fn lock(answers: &Mutex<Answers>) -> MutexGuard<'_, Answers> {
    answers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread that repeats something until this is dropped.
struct Worker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(mut repeat: impl FnMut() + Send + 'static) -> Worker {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                repeat();
            }
        });
        Worker { stop, thread: Some(thread) }
    }
}

impl Worker {
    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
    }
}
