//! What is sent ahead of the payload.

use super::*;

const AHEAD: &[u8] = b"ahead";

/// A relay that has something to send ahead; its peer in the tunnel, and the target.
async fn relay_ahead() -> (Relay, TcpStream, TcpStream) {
    let (target, lan) = tcp_pair().await;
    let (tunnel, peer) = mptcp_pair().await;
    let [_, (sealer, opener)] = keys();
    let mut records = Records::new(sealer, opener, Vec::new());
    records.unsent = AHEAD.to_vec();
    (start_records(lan, tunnel, records, IdleLimits::default()), peer, target)
}

/// What one read of the peer gives.
async fn read_once(peer: &mut TcpStream) -> Vec<u8> {
    let mut buffer = vec![0; 1000];
    let length = timeout(SOON, peer.read(&mut buffer)).await.unwrap().unwrap();
    buffer.truncate(length);
    buffer
}

#[test]
fn it_goes_with_the_first_payload() {
    block_on(async {
        let (_relay, mut peer, mut target) = relay_ahead().await;
        target.write_all(b"payload").await.unwrap();
        let received = read_once(&mut peer).await;
        assert!(received.starts_with(AHEAD));
        assert_eq!(received.len(), AHEAD.len() + OVERHEAD + b"payload".len());
    });
}

#[test]
fn it_goes_alone_when_no_payload_comes() {
    block_on(async {
        let (_relay, mut peer, _target) = relay_ahead().await;
        assert_eq!(read_once(&mut peer).await, AHEAD);
    });
}

#[test]
fn it_goes_ahead_of_an_end_and_of_a_reset() {
    block_on(async {
        for reset in [false, true] {
            let (_relay, mut peer, target) = relay_ahead().await;
            if reset {
                socket::abort(&target);
            }
            drop(target);
            let received = read_once(&mut peer).await;
            assert!(received.starts_with(AHEAD), "{reset}: {received:?}");
            assert_eq!(received.len(), AHEAD.len() + OVERHEAD);
            let kind = if reset { Kind::Reset } else { Kind::End };
            assert_eq!(received[AHEAD.len()], kind as u8);
        }
    });
}
