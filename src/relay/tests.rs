use std::process::Command;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::sleep;

use super::*;
use crate::os::socket::{mptcp_connect, mptcp_listen, tcp_connect};
use crate::tunnel::Cipher;
use crate::tunnel::record::{HEADER_LEN, Kind, OVERHEAD, Opened, Opener, PLAINTEXT_MAX, Sealer};
use crate::tunnel::session::{SessionId, SessionKeys, StreamSecret};

mod ahead;
mod hostile;
mod interrupted;
mod resources;

const SOON: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Plain,
    Sealed,
}

const MODES: [Mode; 2] = [Mode::Plain, Mode::Sealed];

pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limited = async { timeout(Duration::from_secs(100), future).await.unwrap() };
    LocalSet::new().block_on(&runtime, limited)
}

/// What the two ends of a stream seal and open with, the request and its answer behind them.
pub(super) fn keys() -> [(Sealer, Opener); 2] {
    let session = SessionKeys::new(SessionId(1), &StreamSecret::from_bytes([1; 32]));
    let keys = session.stream(0, Cipher::Aes128Gcm);
    let (mut client, mut server) = (keys.client(), keys.server());
    let mut request = client.0.seal_new(Kind::Request, &[0; 8]).unwrap();
    server.1.next(&mut request).unwrap();
    let mut answer = server.0.seal_new(Kind::Answer, &[0; 8]).unwrap();
    client.1.next(&mut answer).unwrap();
    [client, server]
}

pub(super) async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = tcp_connect(listener.local_addr().unwrap(), None).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

pub(super) async fn mptcp_pair() -> (TcpStream, TcpStream) {
    let listener = mptcp_listen("127.0.0.1:0".parse().unwrap(), 8).unwrap();
    let client = mptcp_connect(listener.local_addr().unwrap(), None, None).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

/// A relay under test, which owns its streams as a program's task does.
struct Relay {
    task: JoinHandle<Result<(), Failure>>,
    counters: Rc<Counters>,
}

fn start_plain(lan: TcpStream, tunnel: TcpStream, limits: IdleLimits) -> Relay {
    let counters = Rc::new(Counters::default());
    let of_task = Rc::clone(&counters);
    let task =
        spawn_local(
            async move { plain(&lan, &tunnel, &mut Unsent::default(), &of_task, limits).await },
        );
    Relay { task, counters }
}

fn start_sealed(
    lan: TcpStream,
    tunnel: TcpStream,
    (sealer, opener): (Sealer, Opener),
    carried: Vec<u8>,
    limits: IdleLimits,
) -> Relay {
    start_records(lan, tunnel, Records::new(sealer, opener, carried), limits)
}

fn start_records(
    lan: TcpStream,
    tunnel: TcpStream,
    mut records: Records,
    limits: IdleLimits,
) -> Relay {
    let counters = Rc::new(Counters::default());
    let of_task = Rc::clone(&counters);
    let task =
        spawn_local(async move { sealed(&lan, &tunnel, &mut records, &of_task, limits).await });
    Relay { task, counters }
}

/// A client, a relay at each end of an MPTCP connection, and a target.
struct Chain {
    client: TcpStream,
    near: Relay,
    far: Relay,
    target: TcpStream,
}

async fn chain(mode: Mode, limits: IdleLimits) -> Chain {
    let (client, near_lan) = tcp_pair().await;
    let (near_tunnel, far_tunnel) = mptcp_pair().await;
    let (far_lan, target) = tcp_pair().await;
    let (near, far) = match mode {
        Mode::Plain => {
            (start_plain(near_lan, near_tunnel, limits), start_plain(far_lan, far_tunnel, limits))
        }
        Mode::Sealed => {
            let [near, far] = keys();
            (
                start_sealed(near_lan, near_tunnel, near, Vec::new(), limits),
                start_sealed(far_lan, far_tunnel, far, Vec::new(), limits),
            )
        }
    };
    Chain { client, near, far, target }
}

/// Sends a few bytes each way.
async fn exchange(one: &mut TcpStream, other: &mut TcpStream) {
    let mut buffer = [0; 5];
    one.write_all(b"hello").await.unwrap();
    other.read_exact(&mut buffer).await.unwrap();
    other.write_all(b"HELLO").await.unwrap();
    one.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"HELLO");
}

/// What comes until the end, and how it ends.
async fn rest(stream: &mut TcpStream) -> (Vec<u8>, io::Result<usize>) {
    let mut bytes = Vec::new();
    let result =
        timeout(SOON, stream.read_to_end(&mut bytes)).await.expect("neither end nor reset");
    (bytes, result)
}

async fn assert_reset(stream: &mut TcpStream, context: impl fmt::Debug) {
    let kind = rest(stream).await.1.map_err(|error| error.kind());
    assert_eq!(kind, Err(io::ErrorKind::ConnectionReset), "{context:?}");
}

/// Writes until nothing more fits anywhere on the way.
async fn fill(stream: &TcpStream) -> usize {
    let mut filled = 0;
    while timeout(Duration::from_millis(300), stream.writable()).await.is_ok() {
        filled += stream.try_write(&[b'x'; 65536]).unwrap_or(0);
    }
    filled
}

/// What has gone into the tunnel, once that is no longer growing.
async fn at_rest(counters: &Counters) -> u64 {
    loop {
        let before = counters.to_tunnel();
        sleep(Duration::from_millis(300)).await;
        if counters.to_tunnel() == before {
            return before;
        }
    }
}

async fn failure(relay: &mut Relay) -> (Side, io::ErrorKind) {
    match timeout(SOON, &mut relay.task).await.unwrap().unwrap() {
        Err(Failure::Broken { side, error }) => (side, error.kind()),
        other => panic!("{other:?}"),
    }
}

/// 64 KiB that differ from block to block and from seed to seed.
fn block(seed: u64, index: usize) -> Vec<u8> {
    let mut state = seed ^ (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let words = (0..8192).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_ne_bytes()
    });
    words.collect()
}

async fn send_blocks(stream: &mut (impl AsyncWriteExt + Unpin), seed: u64, count: usize) {
    for index in 0..count {
        stream.write_all(&block(seed, index)).await.unwrap();
    }
    stream.shutdown().await.unwrap();
}

async fn receive_blocks(stream: &mut (impl AsyncReadExt + Unpin), seed: u64, count: usize) {
    let mut received = vec![0; 65536];
    for index in 0..count {
        stream.read_exact(&mut received).await.unwrap();
        assert!(received == block(seed, index), "block {index} differs");
    }
    assert_eq!(stream.read(&mut received).await.unwrap(), 0);
}

#[test]
fn each_direction_ends_by_itself() {
    block_on(async {
        for mode in MODES {
            for client_first in [true, false] {
                let mut chain = chain(mode, IdleLimits::default()).await;
                let (first, second) = if client_first {
                    (&mut chain.client, &mut chain.target)
                } else {
                    (&mut chain.target, &mut chain.client)
                };
                first.write_all(b"request").await.unwrap();
                first.shutdown().await.unwrap();
                let (request, end) = rest(second).await;
                assert!(end.is_ok(), "{mode:?} {client_first} {end:?}");
                assert_eq!(request, b"request");
                let response = vec![b'r'; 500_000];
                let (sent, received) = tokio::join!(
                    async {
                        second.write_all(&response).await?;
                        second.shutdown().await
                    },
                    rest(first)
                );
                sent.unwrap();
                assert!(received.1.is_ok() && received.0 == response, "{mode:?} {client_first}");
                timeout(SOON, chain.near.task).await.unwrap().unwrap().unwrap();
                timeout(SOON, chain.far.task).await.unwrap().unwrap().unwrap();
                let (up, down) = if client_first { (7, 500_000) } else { (500_000, 7) };
                for counters in [chain.near.counters, chain.far.counters] {
                    assert_eq!((counters.to_tunnel(), counters.to_lan()), {
                        let is_near = counters.to_tunnel() == up;
                        if is_near { (up, down) } else { (down, up) }
                    });
                }
            }
        }
    });
}

#[test]
fn both_directions_carry_much_at_the_same_time_unchanged() {
    const BLOCKS: usize = 400;
    block_on(async {
        for mode in MODES {
            let Chain { mut client, near, far, mut target } =
                chain(mode, IdleLimits::default()).await;
            let (mut client_in, mut client_out) = client.split();
            let (mut target_in, mut target_out) = target.split();
            tokio::join!(
                send_blocks(&mut client_out, 1, BLOCKS),
                receive_blocks(&mut target_in, 1, BLOCKS),
                send_blocks(&mut target_out, 2, BLOCKS),
                receive_blocks(&mut client_in, 2, BLOCKS),
            );
            near.task.await.unwrap().unwrap();
            far.task.await.unwrap().unwrap();
            assert_eq!(near.counters.to_tunnel(), 65536 * BLOCKS as u64);
            assert_eq!(near.counters.to_lan(), 65536 * BLOCKS as u64);
            assert_eq!(pool::lent(), 0);
        }
    });
}

#[test]
fn single_bytes_pass_at_once() {
    block_on(async {
        for mode in MODES {
            let mut chain = chain(mode, IdleLimits::default()).await;
            for byte in 0..=255 {
                chain.client.write_u8(byte).await.unwrap();
                assert_eq!(chain.target.read_u8().await.unwrap(), byte);
                chain.target.write_u8(!byte).await.unwrap();
                assert_eq!(chain.client.read_u8().await.unwrap(), !byte);
            }
        }
    });
}

#[test]
fn a_reset_of_either_side_resets_the_other() {
    block_on(async {
        for mode in MODES {
            for by_client in [true, false] {
                for blocked in [false, true] {
                    let context = (mode, by_client, blocked);
                    let mut chain = chain(mode, IdleLimits::default()).await;
                    exchange(&mut chain.client, &mut chain.target).await;
                    let (one, other) = if by_client {
                        (chain.client, &mut chain.target)
                    } else {
                        (chain.target, &mut chain.client)
                    };
                    if blocked {
                        fill(&one).await;
                    }
                    socket::abort(&one);
                    assert_reset(other, context).await;
                    let (mut here, mut there) =
                        if by_client { (chain.near, chain.far) } else { (chain.far, chain.near) };
                    assert_eq!(failure(&mut here).await.0, Side::Lan, "{context:?}");
                    assert_eq!(failure(&mut there).await.0, Side::Tunnel, "{context:?}");
                    assert_eq!(pool::lent(), 0);
                }
            }
        }
    });
}

#[test]
fn a_reset_of_a_half_closed_connection_is_passed_on() {
    block_on(async {
        for mode in MODES {
            let mut chain = chain(mode, IdleLimits::default()).await;
            exchange(&mut chain.client, &mut chain.target).await;
            chain.target.shutdown().await.unwrap();
            assert_eq!(rest(&mut chain.client).await.1.unwrap(), 0);
            socket::abort(&chain.client);
            let error = timeout(SOON, socket::broken(&chain.target)).await.unwrap();
            assert!(
                matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe),
                "{mode:?} {error}"
            );
        }
    });
}

#[test]
fn what_a_relay_that_is_gone_leaves_does_not_look_complete() {
    block_on(async {
        for mode in MODES {
            for nearest in [true, false] {
                let mut chain = chain(mode, IdleLimits::default()).await;
                exchange(&mut chain.client, &mut chain.target).await;
                let (relay, end) = if nearest {
                    (chain.near, &mut chain.client)
                } else {
                    (chain.far, &mut chain.target)
                };
                relay.task.abort();
                assert_reset(end, (mode, nearest)).await;
            }
        }
    });
}

#[test]
fn what_is_complete_outlives_the_relay() {
    block_on(async {
        for mode in MODES {
            let mut chain = chain(mode, IdleLimits::default()).await;
            exchange(&mut chain.client, &mut chain.target).await;
            chain.target.write_all(&[b'r'; 50_000]).await.unwrap();
            chain.target.shutdown().await.unwrap();
            let ended = async {
                while !chain.client.ready(Interest::READABLE).await.unwrap().is_read_closed() {
                    sleep(Duration::from_millis(1)).await;
                }
            };
            timeout(SOON, ended).await.unwrap();
            chain.near.task.abort();
            let (received, end) = rest(&mut chain.client).await;
            assert!(end.is_ok() && received.len() == 50_000, "{mode:?} {end:?}");
        }
    });
}

#[test]
fn what_was_sent_before_a_reset_is_delivered() {
    block_on(async {
        let mut chain = chain(Mode::Sealed, IdleLimits::default()).await;
        fill(&chain.client).await;
        let stuck_at = chain.near.counters.to_tunnel();
        socket::abort(&chain.client);
        sleep(Duration::from_millis(200)).await;
        assert_reset(&mut chain.target, "target").await;
        assert_eq!(failure(&mut chain.near).await, (Side::Lan, io::ErrorKind::ConnectionReset));
        assert_eq!(failure(&mut chain.far).await, (Side::Tunnel, io::ErrorKind::ConnectionReset));
        let delivered = chain.far.counters.to_lan();
        assert_eq!(delivered, chain.near.counters.to_tunnel());
        assert!(delivered > stuck_at, "{delivered} {stuck_at}");
    });
}

#[test]
fn a_silent_connection_is_reset_after_the_idle_limit() {
    let limit = Duration::from_millis(400);
    let never = Duration::from_secs(3600);
    block_on(async {
        for mode in MODES {
            for half_closed in [false, true] {
                let limits = if half_closed {
                    IdleLimits { open: never, half_closed: limit }
                } else {
                    IdleLimits { open: limit, half_closed: never }
                };
                let mut chain = chain(mode, limits).await;
                exchange(&mut chain.client, &mut chain.target).await;
                if half_closed {
                    chain.client.shutdown().await.unwrap();
                }
                // Whatever moves puts it off.
                for _ in 0..8 {
                    sleep(limit / 4).await;
                    chain.target.write_u8(1).await.unwrap();
                    chain.client.read_u8().await.unwrap();
                }
                let started = Instant::now();
                match timeout(SOON, chain.near.task).await.unwrap().unwrap() {
                    Err(Failure::Idle(reached)) => assert_eq!(reached, limit),
                    Err(Failure::Broken { side: Side::Tunnel, .. }) => {
                        // The other end was first.
                        let far = chain.far.task.await.unwrap();
                        assert!(matches!(far, Err(Failure::Idle(_))), "{far:?}");
                    }
                    other => panic!("{other:?}"),
                }
                assert!(started.elapsed() >= limit / 2, "{:?}", started.elapsed());
                assert_reset(&mut chain.client, (mode, half_closed)).await;
            }
        }
    });
}

#[test]
fn what_was_read_along_with_an_answer_comes_first() {
    block_on(async {
        let (mut client, lan) = tcp_pair().await;
        let (tunnel, mut peer) = mptcp_pair().await;
        peer.write_all(b", rest").await.unwrap();
        let mut unsent = Unsent { to_lan: b"carried".to_vec(), ..Unsent::default() };
        let task = spawn_local(async move {
            plain(&lan, &tunnel, &mut unsent, &Counters::default(), IdleLimits::default()).await
        });
        let mut buffer = [0; 13];
        client.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"carried, rest");
        drop((client, peer));
        task.await.unwrap().unwrap();
    });
}
