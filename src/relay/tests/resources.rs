//! What relays hold of memory, file descriptors and time.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::*;

/// Runs the test `name` again, alone in a process of its own; true in that process.
fn alone(name: &str) -> bool {
    if std::env::var_os("MPTCP_BOND_ALONE").is_some() {
        return true;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("relay::tests::resources::{name}"), "--nocapture"])
        .env("MPTCP_BOND_ALONE", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn two_hundred_connections_leave_no_descriptor_and_idle_ones_hold_only_sockets() {
    const SOCKETS: usize = 6;
    let name = "two_hundred_connections_leave_no_descriptor_and_idle_ones_hold_only_sockets";
    if !alone(name) {
        return;
    }
    block_on(async {
        for mode in MODES {
            // Fills the pools.
            let mut first = chain(mode, IdleLimits::default()).await;
            exchange(&mut first.client, &mut first.target).await;
            let before = open_descriptors();
            let mut chains = Vec::new();
            for _ in 0..200 {
                let mut chain = chain(mode, IdleLimits::default()).await;
                exchange(&mut chain.client, &mut chain.target).await;
                chains.push(chain);
            }
            assert_eq!(open_descriptors(), before + 200 * SOCKETS);
            assert_eq!(pool::lent(), 0);
            for (index, chain) in chains.into_iter().enumerate() {
                if index % 2 == 0 {
                    socket::abort(&chain.client);
                }
                drop((chain.client, chain.target));
                let _ = timeout(SOON, chain.near.task).await.unwrap().unwrap();
                let _ = timeout(SOON, chain.far.task).await.unwrap().unwrap();
            }
            assert_eq!(open_descriptors(), before, "{mode:?}");
            drop((first.client, first.target));
            first.near.task.await.unwrap().unwrap();
            first.far.task.await.unwrap().unwrap();
        }
    });
}

/// Writes until nothing moves any more; how much was written, and how much of it the near relay has moved.
async fn fill_up(chain: &Chain) -> (usize, u64) {
    // On a busy machine the client may have to wait before everything is full.
    let (mut filled, mut stuck_at) = (0, 0);
    while stuck_at == filled as u64 {
        filled += fill(&chain.client).await;
        stuck_at = at_rest(&chain.near.counters).await;
    }
    (filled, stuck_at)
}

#[test]
fn a_slow_reader_holds_up_the_writer_and_one_buffer_a_direction() {
    block_on(async {
        for mode in MODES {
            let mut chain = chain(mode, IdleLimits::default()).await;
            let (filled, stuck_at) = fill_up(&chain).await;
            // Without encryption a pipe holds what goes into the tunnel.
            let lent = if mode == Mode::Sealed { 2 } else { 1 };
            assert_eq!(pool::lent(), lent, "{mode:?}");
            sleep(Duration::from_millis(100)).await;
            assert_eq!(chain.near.counters.to_tunnel(), stuck_at);
            // The other direction is not held up.
            chain.target.write_u8(1).await.unwrap();
            chain.client.read_u8().await.unwrap();
            // Nothing was lost.
            let mut target = chain.target;
            let client = chain.client;
            let reader = spawn_local(async move { rest(&mut target).await });
            drop(client);
            let (received, end) = reader.await.unwrap();
            assert!(end.is_ok(), "{mode:?} {end:?}");
            assert_eq!(received.len(), filled);
            assert_eq!(pool::lent(), 0);
        }
    });
}

#[test]
fn many_stuck_streams_get_smaller_buffers() {
    let mut buffers: Vec<_> = (0..2000).map(|_| pool::buffer()).collect();
    let of = |size: usize| buffers.iter().filter(|buffer| buffer.len() == size).count();
    assert_eq!([of(256 * 1024), of(64 * 1024), of(16 * 1024)], [16, 32, 1952]);
    buffers.truncate(8);
    assert_eq!(pool::buffer().len(), 256 * 1024);
    drop(buffers);
    assert_eq!(pool::lent(), 0);
}

#[test]
fn where_many_buffers_are_lent_a_stuck_stream_holds_none() {
    block_on(async {
        for mode in MODES {
            let others: Vec<_> = (0..16).map(|_| pool::buffer()).collect();
            let mut chain = chain(mode, IdleLimits::default()).await;
            let (filled, _) = fill_up(&chain).await;
            assert_eq!(pool::lent(), others.len(), "{mode:?}");
            drop(chain.client);
            let (received, end) = rest(&mut chain.target).await;
            assert!(end.is_ok(), "{mode:?} {end:?}");
            assert_eq!(received.len(), filled);
        }
    });
}

#[test]
fn a_large_record_comes_through_where_many_streams_are_stuck() {
    block_on(async {
        let stuck: Vec<_> = (0..100).map(|_| pool::buffer()).collect();
        let [near, (mut sealer, _)] = keys();
        let ((mut client, lan), (tunnel, mut peer)) = (tcp_pair().await, tcp_pair().await);
        let _relay = start_sealed(lan, tunnel, near, Vec::new(), IdleLimits::default());
        for length in [PLAINTEXT_MAX, 1, 16 * 1024 - OVERHEAD, PLAINTEXT_MAX] {
            let record = sealer.seal_new(Kind::Data, &vec![7; length]).unwrap();
            let mut plaintext = vec![0; length];
            tokio::try_join!(peer.write_all(&record), client.read_exact(&mut plaintext)).unwrap();
            assert!(plaintext.iter().all(|byte| *byte == 7));
        }
        drop(stuck);
    });
}

#[test]
fn a_pipe_that_is_not_empty_is_not_lent_again() {
    block_on(async {
        let (mut client, server) = tcp_pair().await;
        client.write_all(b"left over").await.unwrap();
        server.readable().await.unwrap();
        let mut pipe = pool::pipe().unwrap();
        pipe.fill(&server, 100).unwrap();
        pool::give_back(pipe);
        assert!(pool::pipe().unwrap().is_empty());
    });
}

#[test]
fn without_descriptors_for_pipes_a_buffer_does() {
    if !alone("without_descriptors_for_pipes_a_buffer_does") {
        return;
    }
    block_on(async {
        let mut chain = chain(Mode::Plain, IdleLimits::default()).await;
        let limit = Rlimit { current: Some(3), ..getrlimit(Resource::Nofile) };
        setrlimit(Resource::Nofile, limit).unwrap();
        assert!(socket::Pipe::new().is_err());
        exchange(&mut chain.client, &mut chain.target).await;
        let (mut reader, mut writer) = (chain.target, chain.client);
        let sent = block(9, 0);
        let (written, received) = tokio::join!(
            async {
                writer.write_all(&sent).await?;
                writer.shutdown().await
            },
            rest(&mut reader)
        );
        written.unwrap();
        assert!(received.0 == sent);
    });
}

#[test]
fn a_busy_stream_leaves_others_their_turn() {
    block_on(async {
        for mode in MODES {
            // Megabytes that are there already and fit where they go: nothing ever blocks.
            let (client, lan) = tcp_pair().await;
            let (tunnel, _peer) = tcp_pair().await;
            let filled = fill(&client).await;
            let limits = IdleLimits::default();
            let relay = match mode {
                Mode::Plain => start_plain(lan, tunnel, limits),
                Mode::Sealed => {
                    let [records, _] = keys();
                    start_sealed(lan, tunnel, records, Vec::new(), limits)
                }
            };
            let mut longest = 0;
            let mut before = 0;
            for _ in 0..100 {
                tokio::task::yield_now().await;
                let moved = relay.counters.to_tunnel();
                longest = longest.max(moved - before);
                before = moved;
            }
            assert!(before > 2_000_000, "{mode:?} {before} of {filled}");
            assert!(longest <= 2 * pace::TURN as u64, "{mode:?} {longest}");
        }
    });
}

#[test]
fn who_waits_for_the_pace_holds_no_buffer() {
    block_on(async {
        for mode in MODES {
            let pace = Arc::new(Pace::default());
            for to in [Side::Lan, Side::Tunnel] {
                pace.set_rate(to, 100_000);
            }
            let counters = Rc::new(Counters::paced(pace));
            let (client, lan) = tcp_pair().await;
            let (tunnel, peer) = mptcp_pair().await;
            let [(sealer, opener), (mut far, _)] = keys();
            // A turn ends in the middle of a record.
            let records = (0..8).flat_map(|_| far.seal_new(Kind::Data, &[7; 9000]).unwrap());
            let much: Vec<u8> = records.collect();
            for stream in [&client, &peer] {
                assert_eq!(stream.try_write(&much).unwrap(), much.len());
            }
            let of_task = Rc::clone(&counters);
            let _relay = spawn_local(async move {
                let limits = IdleLimits::default();
                match mode {
                    Mode::Plain => {
                        plain(&lan, &tunnel, &mut Unsent::default(), &of_task, limits).await
                    }
                    Mode::Sealed => {
                        let mut records = Records::new(sealer, opener, Vec::new());
                        sealed(&lan, &tunnel, &mut records, &of_task, limits).await
                    }
                }
            });
            let moving = async {
                while counters.to_lan().min(counters.to_tunnel()) < 50_000 {
                    sleep(Duration::from_millis(1)).await;
                    assert_eq!(pool::lent(), 0, "{mode:?}");
                    let pipes = usize::from(mode != Mode::Plain || counters.to_tunnel() > 0);
                    assert_eq!(pool::pipes_kept(), pipes, "{mode:?}");
                }
            };
            timeout(SOON, moving).await.unwrap();
        }
    });
}
