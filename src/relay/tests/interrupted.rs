//! A relay that is dropped goes on where it was.

use super::*;

/// Bytes each way: interrupted often, and yet soon through.
const BYTES: usize = 16 << 20;
/// How long a relay runs at a stretch.
const STRETCH: Duration = Duration::from_millis(3);

/// Relays that are interrupted again and again, each behind one LAN side of the chain.
async fn interrupted_chain(
    mode: Mode,
) -> (TcpStream, TcpStream, [JoinHandle<(usize, Counters)>; 2]) {
    let (client, near_lan) = tcp_pair().await;
    let (near_tunnel, far_tunnel) = mptcp_pair().await;
    let (far_lan, target) = tcp_pair().await;
    let [near, far] = keys();
    let ends = [(near_lan, near_tunnel, near), (far_lan, far_tunnel, far)];
    let tasks = ends.map(|(lan, tunnel, (sealer, opener))| {
        spawn_local(async move {
            let mut records = Records::new(sealer, opener, Vec::new());
            let mut unsent = Unsent::default();
            let (counters, limits) = (Counters::default(), IdleLimits::default());
            let mut interruptions = 0;
            loop {
                let relayed = async {
                    match mode {
                        Mode::Plain => plain(&lan, &tunnel, &mut unsent, &counters, limits).await,
                        Mode::Sealed => {
                            sealed(&lan, &tunnel, &mut records, &counters, limits).await
                        }
                    }
                };
                match timeout(STRETCH, relayed).await {
                    Ok(ended) => {
                        ended.unwrap();
                        return (interruptions, counters);
                    }
                    Err(_) => interruptions += 1,
                }
            }
        })
    });
    (client, target, tasks)
}

#[test]
fn nothing_is_lost_repeated_or_miscounted() {
    block_on(async {
        for mode in MODES {
            let (client, target, tasks) = interrupted_chain(mode).await;
            let sent: Rc<[u8]> = (0..BYTES as u32 / 4).flat_map(u32::to_be_bytes).collect();
            let exchanges = [client, target].map(|end| {
                let sent = sent.clone();
                spawn_local(async move {
                    let (mut reading, mut writing) = end.into_split();
                    let mut received = Vec::new();
                    let write = async {
                        writing.write_all(&sent).await.unwrap();
                        writing.shutdown().await.unwrap();
                    };
                    // Later, so that what arrives cannot all be delivered at once.
                    let read = async {
                        sleep(Duration::from_millis(200)).await;
                        reading.read_to_end(&mut received).await.unwrap();
                    };
                    tokio::join!(write, read);
                    received == *sent
                })
            });
            for exchange in exchanges {
                assert!(exchange.await.unwrap(), "{mode:?}");
            }
            for task in tasks {
                let (interruptions, counters) = task.await.unwrap();
                assert!(interruptions > 3, "{mode:?}: {interruptions}");
                let counted = (counters.to_tunnel(), counters.to_lan());
                assert_eq!(counted, (BYTES as u64, BYTES as u64), "{mode:?}");
            }
        }
    });
}
