//! Which thread a relay runs on.
//!
//! With several processors there is a thread of relays for each, beside the program's own one, which
//! accepts, authenticates and decides. Most connections are too short to be worth the way to another thread:
//! each begins on the program's own, and stays there unless it moves more than a few bytes. From then on it
//! stays on its thread of relays, whose pool its buffers are of.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::sync::Arc;
use std::task::Poll;

use futures_util::FutureExt;
use rustix::thread::sched_getaffinity;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::{Counters, Failure, IdleLimits, Records, Side, Unsent, plain, sealed};
use crate::os::socket;
use crate::os::worker::Worker;

/// Payload bytes that a connection may move, in both directions together, before it goes to a thread of
/// relays: two wake-ups and ten system calls, which is a fifth of what a short connection costs in all.
const FEW: u64 = 128 * 1024;
/// The most threads: each may keep or lend a few MB of buffers.
const MOST: usize = 8;

/// The threads that relays run on.
pub struct Workers(Vec<Place>);

struct Place {
    worker: Worker,
    relays: Cell<usize>,
}

/// A relay's place on a thread; it is counted until this is dropped.
struct Seat<'a>(&'a Place);

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

    /// Relays until both directions have ended or the sender of `interruption` is gone. Dropping the future
    /// ends the relay.
    ///
    /// `show` gets the tunnel, for whoever looks at it meanwhile, and `None` when it has to be let go of at once.
    pub async fn relay(
        &self,
        relay: Relay,
        mut interruption: oneshot::Receiver<()>,
        show: impl Fn(Option<Arc<TcpStream>>),
    ) -> Ended {
        show(Some(relay.tunnel.clone()));
        let few = if self.0.is_empty() { u64::MAX } else { FEW };
        // In a frame of its own, which is given back before there is one on another thread.
        let begun = Box::pin(relay.run(&mut interruption, few));
        let relay = match begun.await {
            Ok(ended) => return ended,
            Err(relay) => relay,
        };
        let Some(seat) = self.seat() else { return Ended::Interrupted(relay) };
        show(None);
        match seat.adopt(relay) {
            Ok(relay) => {
                show(Some(relay.tunnel.clone()));
                seat.relay(relay, interruption).await
            }
            Err(failure) => Ended::Done(Err(failure)),
        }
    }

    /// A place on the thread that has the fewest relays; `None` where there are no threads.
    fn seat(&self) -> Option<Seat<'_>> {
        let place = self.0.iter().min_by_key(|place| place.relays.get())?;
        place.relays.set(place.relays.get().saturating_add(1));
        Some(Seat(place))
    }
}

impl Seat<'_> {
    /// Moves a relay's streams to the thread. When that fails both are reset.
    fn adopt(&self, Relay { lan, tunnel, state, counters }: Relay) -> Result<Relay, Failure> {
        let worker = &self.0.worker;
        // Out of memory, or somebody else has kept the tunnel.
        let broken = |side| move |error| Failure::Broken { side, error };
        let lan = worker
            .adopt(lan)
            .map_err(broken(Side::Lan))
            .inspect_err(|_| socket::abort(&*tunnel))?;
        let tunnel = Arc::try_unwrap(tunnel).map_err(|tunnel| {
            socket::abort(&*tunnel);
            io::ErrorKind::ResourceBusy.into()
        });
        let tunnel = tunnel.and_then(|tunnel| worker.adopt(tunnel)).map_err(broken(Side::Tunnel));
        let tunnel = tunnel.inspect_err(|_| socket::abort(&lan))?.into();
        Ok(Relay { lan, tunnel, state, counters })
    }

    fn relay(
        &self,
        relay: Relay,
        interruption: oneshot::Receiver<()>,
    ) -> impl Future<Output = Ended> {
        let relayed = self.0.worker.run(|| Box::pin(relay.run(interruption, u64::MAX)));
        relayed.map(|relayed| {
            let panicked = || {
                let error = io::Error::other("its relay panicked: please report this");
                Ended::Done(Err(Failure::Broken { side: Side::Lan, error }))
            };
            relayed.map_or_else(panicked, |relayed| relayed.unwrap_or_else(Ended::Interrupted))
        })
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let relays = &self.0.relays;
        relays.set(relays.get().saturating_sub(1));
    }
}

impl Relay {
    /// Relays to the end, or until `interruption`; gives itself back when it has moved more than `few` bytes.
    async fn run(mut self, interruption: impl Future, few: u64) -> Result<Ended, Relay> {
        let Relay { lan, tunnel, state, counters } = &mut self;
        let limits = IdleLimits::default();
        // Looked at whenever the relay has paused.
        let much = poll_fn(|_| match counters.to_tunnel().saturating_add(counters.to_lan()) {
            moved if moved > few => Poll::Ready(()),
            _ => Poll::Pending,
        });
        let relayed = async {
            match state {
                State::Plain(unsent) => plain(lan, tunnel, unsent, counters, limits).await,
                State::Sealed(records) => sealed(lan, tunnel, records, counters, limits).await,
            }
        };
        let interrupted = tokio::select! {
            biased;
            result = relayed => return Ok(Ended::Done(result)),
            _ = interruption => true,
            () = much => false,
        };
        if interrupted { Ok(Ended::Interrupted(self)) } else { Err(self) }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::relay::tests::{block_on, keys, mptcp_pair, tcp_pair};

    fn relays(workers: &Workers) -> Vec<usize> {
        workers.0.iter().map(|place| place.relays.get()).collect()
    }

    fn plain_relay(lan: TcpStream, tunnel: TcpStream) -> Relay {
        let state = State::Plain(Unsent::default());
        Relay { lan, tunnel: tunnel.into(), state, counters: Arc::default() }
    }

    #[test]
    fn relays_are_spread_and_give_their_places_back() {
        let workers = Workers::with_threads(2).unwrap();
        let seats = [workers.seat(), workers.seat(), workers.seat(), workers.seat()];
        assert_eq!(relays(&workers), [2, 2]);
        let [first, _second, third, _fourth] = seats;
        drop((first, third));
        assert_eq!(relays(&workers), [0, 2]);
        let _next = [workers.seat(), workers.seat()];
        assert_eq!(relays(&workers), [2, 2]);
    }

    #[test]
    fn only_what_moves_much_goes_to_another_thread() {
        block_on(async {
            let workers = Workers::with_threads(1).unwrap();
            let (mut client, lan) = tcp_pair().await;
            let (tunnel, mut peer) = mptcp_pair().await;
            let shown = Rc::new(RefCell::new(Vec::new()));
            let show = {
                let shown = shown.clone();
                move |tunnel: Option<Arc<TcpStream>>| shown.borrow_mut().push(tunnel.is_some())
            };
            let (_uninterrupted, interruption) = oneshot::channel();
            let relay = workers.relay(plain_relay(lan, tunnel), interruption, show);
            let few = vec![1; 100_000];
            let much = vec![2; 3_000_000];
            let exchange = async {
                client.write_all(&few).await.unwrap();
                peer.read_exact(&mut vec![0; few.len()]).await.unwrap();
                assert_eq!(relays(&workers), [0]);
                let (mut received, mut back) = (vec![0; much.len()], vec![0; much.len()]);
                let sent = async { client.write_all(&much).await };
                let (sent, arrived) = tokio::join!(sent, peer.read_exact(&mut received));
                assert!(sent.is_ok() && arrived.is_ok() && received == much);
                assert_eq!(relays(&workers), [1]);
                let sent = async { peer.write_all(&much).await };
                let (sent, arrived) = tokio::join!(sent, client.read_exact(&mut back));
                assert!(sent.is_ok() && arrived.is_ok() && back == much);
                drop((client, peer));
            };
            let (ended, ()) = tokio::join!(relay, exchange);
            assert!(matches!(ended, Ended::Done(Ok(()))));
            assert_eq!(relays(&workers), [0]);
            assert_eq!(*shown.borrow(), [true, false, true]);
        });
    }

    #[test]
    fn both_sides_are_reset_when_a_relay_cannot_go_to_another_thread() {
        block_on(async {
            let workers = Workers::with_threads(1).unwrap();
            let (mut client, lan) = tcp_pair().await;
            let (tunnel, mut peer) = mptcp_pair().await;
            let kept = RefCell::new(None);
            let show = |tunnel: Option<Arc<TcpStream>>| {
                kept.borrow_mut().get_or_insert(tunnel);
            };
            let (_uninterrupted, interruption) = oneshot::channel();
            let relay = workers.relay(plain_relay(lan, tunnel), interruption, show);
            let much = vec![2; 300_000];
            let (ended, _) = tokio::join!(relay, client.write_all(&much));
            assert!(matches!(ended, Ended::Done(Err(Failure::Broken { side: Side::Tunnel, .. }))));
            assert!(client.read_u8().await.is_err());
            let mut received = Vec::new();
            assert!(peer.read_to_end(&mut received).await.is_err());
        });
    }

    #[test]
    fn what_waits_for_data_is_small() {
        block_on(async {
            let [(sealer, opener), _] = keys();
            let (lan, tunnel) = tcp_pair().await;
            let state = State::Sealed(Records::new(sealer, opener, Vec::new()).into());
            let relay = Relay { lan, tunnel: tunnel.into(), state, counters: Arc::default() };
            let size = size_of_val(&relay.run(oneshot::channel::<()>().1, FEW));
            assert!(size <= 2664, "{size} bytes");
        });
    }

    #[test]
    fn one_processor_has_no_threads_of_relays() {
        assert!(Workers::with_threads(0).unwrap().seat().is_none());
    }
}
