use std::io;

use tokio::net::TcpListener;

use super::*;
use crate::controller::Outlet;

fn run(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limited = async { timeout(Duration::from_secs(30), test()).await.unwrap() };
    tokio::task::LocalSet::new().block_on(&runtime, limited);
}

#[test]
fn one_ping_is_on_its_way_at_a_time() {
    let (mut pings, start) = (Pings::default(), Instant::now());
    assert_eq!(pings.next(start), start);
    assert_eq!(pings.ping(start), Some(1));
    assert_eq!(pings.ping(start), None);
    assert_eq!(pings.next(start), start + PING_LIMIT);
    let later = start + Duration::from_millis(30);
    assert_eq!(pings.pong(7, later), None, "not the one that was sent");
    assert_eq!(pings.pong(1, later), Some(Duration::from_millis(30)));
    assert_eq!(pings.pong(1, later), None, "answered twice");
    assert_eq!(pings.next(later), later + PING_INTERVAL);
    assert_eq!(pings.ping(later), None);
    assert_eq!(pings.ping(later + PING_INTERVAL), Some(2));
    assert!(!pings.overdue(later + PING_INTERVAL));
    assert!(pings.overdue(later + PING_INTERVAL + PING_LIMIT));
}

#[test]
fn messages_are_read_however_they_are_cut() {
    run(async || {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut incoming = Incoming::new(listener.accept().await.unwrap().0.into_split().0);
        let message = |byte: u8| [&[0, 20][..], &[byte; 20]].concat();
        peer.write_all(&[message(1), message(2), message(3)[..7].to_vec()].concat()).await.unwrap();
        assert_eq!(incoming.next().await.unwrap(), [1; 20]);
        assert_eq!(incoming.next().await.unwrap(), [2; 20]);
        // Giving up loses nothing.
        let given_up = timeout(Duration::from_millis(50), incoming.next()).await;
        assert!(given_up.is_err());
        peer.write_all(&message(3)[7..]).await.unwrap();
        assert_eq!(incoming.next().await.unwrap(), [3; 20]);
        peer.write_all(&[0xff, 0xff]).await.unwrap();
        let error = incoming.next().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    });
}

#[test]
fn the_next_way_is_tried_when_the_best_one_fails() {
    run(async || {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        let outlet = |source: &str, device: &str| Outlet {
            slot: 0,
            source: source.parse().unwrap(),
            device: device.into(),
        };
        let trunk = Trunk::default();
        let error = trunk.dial(server).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NetworkUnreachable);
        trunk.set_paths(vec![outlet("127.0.0.1", "gone"), outlet("127.0.0.2", "lo")]);
        let stream = trunk.dial(server).await.unwrap();
        assert_eq!(stream.local_addr().unwrap().ip(), outlet("127.0.0.2", "lo").source);
        // Ways of the other family lead nowhere.
        trunk.set_paths(vec![outlet("::1", "lo")]);
        let error = trunk.dial(server).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NetworkUnreachable);
    });
}

#[test]
fn a_waiter_is_told_of_a_session_other_than_the_rejected_one() {
    run(async || {
        let session = |id: u64| {
            let secret = crate::tunnel::session::StreamSecret::from_bytes([1; 32]);
            let session = ClientSession::new(SessionId(id), &secret, Cipher::None);
            Some(Rc::new(Session::new(session, "127.0.0.1:443".parse().unwrap(), true)))
        };
        let trunk = Rc::new(Trunk::default());
        let (waiting, there) = (trunk.clone(), trunk.clone());
        let next = tokio::task::spawn_local(async move {
            waiting.wait_for_session(Some(SessionId(1))).await.id()
        });
        for id in [1, 1, 2] {
            tokio::task::yield_now().await;
            there.set_session(session(id));
        }
        assert_eq!(next.await.unwrap(), SessionId(2));
    });
}
