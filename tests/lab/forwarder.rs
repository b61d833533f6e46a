//! A user-space forwarder between two TUN devices that delays each packet by a settable time.
//!
//! It stands in for `netem`, which many kernels do not carry. One thread a direction.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::spec::Direction;

/// The largest packet read, in bytes: an IP packet.
const PACKET_MAX: usize = 65_536;
/// Packets read before the due ones are sent.
const BATCH: usize = 256;
/// How long packets may gather before they are read: a wake-up for each would take twice the time.
const GATHER: Duration = Duration::from_micros(150);
/// How often a thread without traffic looks whether it shall end.
const IDLE: Duration = Duration::from_millis(50);

/// Both directions of a forwarder; its threads end when it is dropped.
pub struct Forwarder {
    delays: Arc<Delays>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// One-way delays in microseconds.
#[derive(Default)]
struct Delays {
    up: AtomicU32,
    down: AtomicU32,
}

impl Delays {
    fn of(&self, direction: Direction) -> &AtomicU32 {
        if direction == Direction::Up { &self.up } else { &self.down }
    }
}

impl Forwarder {
    /// Forwards between the customer's side and the network's side, at first without delay.
    pub fn start(customer: File, network: File) -> io::Result<Forwarder> {
        let customer = Arc::new(customer);
        let network = Arc::new(network);
        let mut forwarder = Forwarder {
            delays: Arc::default(),
            stop: Arc::new(AtomicBool::new(false)),
            threads: Vec::new(),
        };
        let ways = [
            (Direction::Up, Arc::clone(&customer), Arc::clone(&network)),
            (Direction::Down, network, customer),
        ];
        for (direction, from, to) in ways {
            let delays = Arc::clone(&forwarder.delays);
            let stop = Arc::clone(&forwarder.stop);
            let run = move || {
                let delay =
                    || Duration::from_micros(delays.of(direction).load(Ordering::Relaxed).into());
                while !stop.load(Ordering::Relaxed) {
                    // A device that is down refuses reads and writes; it may come back.
                    if forward(&from, &to, &delay, &stop).is_err() {
                        thread::sleep(Duration::from_millis(1));
                    }
                }
            };
            forwarder.threads.push(thread::Builder::new().name("forwarder".into()).spawn(run)?);
        }
        Ok(forwarder)
    }

    /// Sets the one-way delay of packets that arrive from now on. Order is kept.
    pub fn set_delay(&self, direction: Direction, delay: Duration) {
        let microseconds = u32::try_from(delay.as_micros()).unwrap_or(u32::MAX);
        for way in [Direction::Up, Direction::Down] {
            if direction == way || direction == Direction::Both {
                self.delays.of(way).store(microseconds, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn forward(
    mut from: &File,
    mut to: &File,
    delay: &dyn Fn() -> Duration,
    stop: &AtomicBool,
) -> io::Result<()> {
    let mut buffer = vec![0; PACKET_MAX];
    let mut waiting: VecDeque<(Instant, Box<[u8]>)> = VecDeque::new();
    let mut arrival = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let delay = delay();
        for _ in 0..BATCH {
            let length = match from.read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            let packet = &buffer[..length];
            if delay.is_zero() && waiting.is_empty() {
                // What the device does not take is lost, as on any link.
                let _ = to.write(packet);
            } else {
                waiting.push_back((arrival + delay, packet.into()));
            }
        }
        let now = Instant::now();
        while let Some((due, packet)) = waiting.front() {
            if *due > now {
                break;
            }
            let _ = to.write(packet);
            waiting.pop_front();
        }
        let pause = waiting.front().map_or(IDLE, |(due, _)| due.duration_since(now).min(IDLE));
        let pause = Timespec::try_from(pause).map_err(|_| io::ErrorKind::InvalidInput)?;
        let readable = poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&pause))? > 0;
        arrival = Instant::now();
        if readable {
            thread::sleep(GATHER);
        }
    }
    Ok(())
}
