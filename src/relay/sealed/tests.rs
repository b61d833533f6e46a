use futures_util::FutureExt;
use tokio::io::AsyncReadExt;

use super::*;
use crate::relay::tests::{keys, tcp_pair};

#[test]
fn a_torn_record_is_completed_before_the_reset() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (mut peer, tunnel) = tcp_pair().await;
        let tunnel = End { side: Side::Tunnel, stream: &tunnel };
        let [(mut sealer, _), _] = keys();
        let mut unsent = Vec::new();
        let mut outbound = Outbound { tunnel, sealer: &mut sealer, unsent: &mut unsent };
        let much: Vec<u8> = (0..64_u32 << 18).flat_map(u32::to_be_bytes).collect();
        let write = outbound.write_all(&much);
        assert!(timeout(Duration::from_millis(300), write).await.is_err());
        let torn = outbound.unsent.len();
        assert!(torn > 0 && much.ends_with(outbound.unsent));
        let mut received = vec![0; much.len() - torn];
        peer.read_exact(&mut received).await.unwrap();
        assert!(much.starts_with(&received));

        // There is no room for all of it.
        assert!(!outbound.reset());
        let [(mut sealer, _), _] = keys();
        let mut unsent = vec![0; 10];
        let (mut peer, tunnel) = tcp_pair().await;
        let tunnel = End { side: Side::Tunnel, stream: &tunnel };
        assert!(Outbound { tunnel, sealer: &mut sealer, unsent: &mut unsent }.reset());
        let mut last = Vec::new();
        peer.read_to_end(&mut last).await.unwrap();
        assert_eq!(last.len(), 10 + OVERHEAD);
    });
}

#[test]
fn who_nudges_the_tunnel_is_told_of_the_end() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (peer, lan) = tcp_pair().await;
        let (_far, tunnel) = tcp_pair().await;
        drop(peer);
        let [(mut sealer, _), _] = keys();
        let (counters, mut unsent) = (Counters::default(), Vec::new());
        let progress = Progress::new(&counters, &tunnel);
        let mut told = pin!(progress.moves.notified());
        assert!(told.as_mut().now_or_never().is_none());
        let tunnel = End { side: Side::Tunnel, stream: &tunnel };
        let mut outbound = Outbound { tunnel, sealer: &mut sealer, unsent: &mut unsent };
        seal(End { side: Side::Lan, stream: &lan }, &mut outbound, &progress).await.unwrap();
        assert!(told.now_or_never().is_some());
    });
}
