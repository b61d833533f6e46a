//! Which thread a relay runs on.
//!
//! With several processors there is a thread of relays for each, beside the program's own one, which
//! accepts, authenticates and decides. A connection stays on its thread, whose pool its buffers are of.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::FutureExt;
use rustix::thread::sched_getaffinity;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::{Counters, Failure, IdleLimits, Records, Side, Unsent, plain, sealed};
use crate::os::worker::Worker;

/// The most threads: each may keep or lend a few MB of buffers.
const MOST: usize = 8;

/// The threads that relays run on.
pub struct Workers(Vec<Place>);

struct Place {
    worker: Worker,
    relays: Cell<usize>,
}

/// A relay's place on the thread that has the fewest; it is counted until this is dropped.
pub struct Seat<'a>(Option<&'a Place>);

/// A relay that runs, apart from the frame of who waits for it.
pub type Relaying<'a> = Pin<Box<dyn Future<Output = Ended> + 'a>>;

/// What is relayed.
pub struct Relay {
    /// The LAN side.
    pub lan: TcpStream,
    /// The tunnel.
    pub tunnel: Arc<TcpStream>,
    /// What is under way.
    pub state: State,
    /// Counts what is moved.
    pub counters: Arc<Counters>,
}

/// What a relay needs, and leaves when it is interrupted.
pub enum State {
    /// Without encryption.
    Plain(Unsent),
    /// With it.
    Sealed(Box<Records>),
}

/// How a relay ended.
pub enum Ended {
    /// Both directions have ended, or both streams have been reset.
    Done(Result<(), Failure>),
    /// It was interrupted, and can go on.
    Interrupted(Relay),
}

impl Workers {
    /// Starts a thread for each processor that this process may use, if that is more than one.
    ///
    /// # Errors
    /// When the kernel has no thread to give.
    pub fn start() -> io::Result<Workers> {
        Workers::with_threads(match sched_getaffinity(None)?.count() {
            0 | 1 => 0,
            several => MOST.min(several as usize),
        })
    }

    /// Starts so many threads; without any, relays run where they are started.
    ///
    /// # Errors
    /// When the kernel has no thread to give.
    pub fn with_threads(count: usize) -> io::Result<Workers> {
        let place = |number| {
            let worker = Worker::start(&format!("relay-{number}"))?;
            Ok(Place { worker, relays: Cell::new(0) })
        };
        (0..count).map(place).collect::<io::Result<_>>().map(Workers)
    }

    /// A place for one more relay.
    pub fn seat(&self) -> Seat<'_> {
        let place = self.0.iter().min_by_key(|place| place.relays.get());
        if let Some(Place { relays, .. }) = place {
            relays.set(relays.get().saturating_add(1));
        }
        Seat(place)
    }
}

impl Seat<'_> {
    /// Moves a stream to the relay's thread.
    ///
    /// # Errors
    /// When the kernel refuses to watch it there: out of memory.
    pub fn adopt(&self, stream: TcpStream) -> io::Result<TcpStream> {
        match self.0 {
            Some(place) => place.worker.adopt(stream),
            None => Ok(stream),
        }
    }

    /// Relays between streams that were moved to this thread, until both directions have ended or the
    /// sender of `interruption` is gone. Dropping the future ends the relay.
    pub fn relay(&self, relay: Relay, interruption: oneshot::Receiver<()>) -> Relaying<'_> {
        match self.0 {
            None => Box::pin(relay.run(interruption)),
            Some(place) => {
                let ended = place.worker.run(|| Box::pin(relay.run(interruption)));
                Box::pin(ended.map(|ended| {
                    ended.unwrap_or_else(|| {
                        let error = io::Error::other("its relay panicked: please report this");
                        Ended::Done(Err(Failure::Broken { side: Side::Lan, error }))
                    })
                }))
            }
        }
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        if let Some(Place { relays, .. }) = self.0 {
            relays.set(relays.get().saturating_sub(1));
        }
    }
}

impl Relay {
    async fn run(mut self, interruption: oneshot::Receiver<()>) -> Ended {
        let Relay { lan, tunnel, state, counters } = &mut self;
        let limits = IdleLimits::default();
        let relayed = async {
            match state {
                State::Plain(unsent) => plain(lan, tunnel, unsent, counters, limits).await,
                State::Sealed(records) => sealed(lan, tunnel, records, counters, limits).await,
            }
        };
        tokio::select! {
            result = relayed => return Ended::Done(result),
            _ = interruption => {}
        }
        Ended::Interrupted(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::tests::{block_on, keys, tcp_pair};

    #[test]
    fn relays_are_spread_and_give_their_places_back() {
        let workers = Workers::with_threads(2).unwrap();
        let relays = || workers.0.iter().map(|place| place.relays.get()).collect::<Vec<_>>();
        let seats = [workers.seat(), workers.seat(), workers.seat(), workers.seat()];
        assert_eq!(relays(), [2, 2]);
        let [first, _second, third, _fourth] = seats;
        drop((first, third));
        assert_eq!(relays(), [0, 2]);
        let _next = [workers.seat(), workers.seat()];
        assert_eq!(relays(), [2, 2]);
    }

    #[test]
    fn what_waits_for_data_is_small() {
        block_on(async {
            let [(sealer, opener), _] = keys();
            let (lan, tunnel) = tcp_pair().await;
            let state = State::Sealed(Records::new(sealer, opener, Vec::new()).into());
            let relay = Relay { lan, tunnel: tunnel.into(), state, counters: Arc::default() };
            let size = size_of_val(&relay.run(oneshot::channel().1));
            assert!(size <= 2624, "{size} bytes");
        });
    }

    #[test]
    fn one_processor_has_no_threads_of_relays() {
        assert!(Workers::with_threads(0).unwrap().seat().0.is_none());
    }
}
