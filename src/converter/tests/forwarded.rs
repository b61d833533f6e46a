//! Connections to forwarded ports, from outside to the LAN.

use super::*;
use crate::session::Wishes;
use crate::tunnel::control::ClientMessage;
use crate::tunnel::forward::{Incoming, Port, Verdict};

/// A port that is free, as far as one can know.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A server that lets `home` have this port.
fn config_with(port: u16) -> ServerConfig {
    let mut config = config("", 10, true);
    config.clients[0].forwards = vec![port];
    config
}

/// A world with a session, whose server listens on a forwarded port.
async fn forwarding(threads: usize) -> (World, SocketAddr) {
    let port = free_port();
    let it = world(threads, config_with(port), OnServerLoss::Direct).await;
    it.give_session(1, true);
    let verdicts = it.registry.forward("home", &[Port::tcp(port)]);
    assert_eq!(verdicts, [(Port::tcp(port), Verdict::Granted)]);
    (it, SocketAddr::new([127, 0, 0, 1].into(), port))
}

/// Somebody outside connects; what the client is told.
async fn connect(it: &World, port: SocketAddr) -> (TcpStream, Incoming) {
    let outside = TcpStream::connect(port).await.unwrap();
    let incoming = loop {
        let client = it.registry.client("home");
        let arrived = client.arrived.notified();
        if let Some(incoming) = it.registry.forwards.announce("home").first() {
            break *incoming;
        }
        arrived.await;
    };
    assert_eq!((incoming.peer, incoming.local), (outside.local_addr().unwrap(), port));
    (outside, incoming)
}

#[test]
fn what_is_accepted_at_the_server_goes_to_the_lan() {
    run(async |threads| {
        let (it, port) = forwarding(threads).await;
        let target = it.target.local_addr().unwrap();
        let (mut outside, incoming) = connect(&it, port).await;
        assert_eq!(it.registry.forwards.announce("home"), [], "told twice");
        spawn_local(it.proxy.clone().forward(incoming, target, true, Rc::default()));
        let mut lan = it.accept().await;
        let mut header = vec![0; incoming.proxy_header().len()];
        lan.read_exact(&mut header).await.unwrap();
        assert_eq!(header, incoming.proxy_header());
        outside.write_all(b"ping").await.unwrap();
        lan.write_all(b"pong").await.unwrap();
        let mut bytes = [0; 4];
        lan.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"ping");
        outside.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"pong");
        let peer = it.registry.with_streams(|all| all.values().next().unwrap().target);
        assert_eq!(peer, incoming.peer);
        assert_eq!(it.proxy.connections()[0].forwarded, Some(incoming));
        lan.shutdown().await.unwrap();
        assert_eq!(timeout(SOON, outside.read(&mut bytes)).await.unwrap().unwrap(), 0);
        drop(outside);
        it.until(|it| it.proxy.connections().is_empty()).await;
    });
}

#[test]
fn without_a_target_or_a_stream_the_one_outside_is_reset() {
    run(async |threads| {
        let (it, port) = forwarding(threads).await;
        let nowhere = SocketAddr::new([127, 0, 0, 1].into(), free_port());
        let (mut outside, incoming) = connect(&it, port).await;
        let wishes = Rc::new(Wishes::default());
        it.proxy.clone().forward(incoming, nowhere, false, wishes.clone()).await;
        let ClientMessage::Decline { id } = wishes.news(&mut Vec::new()).unwrap() else { panic!() };
        it.registry.forwards.decline("office", id);
        it.registry.forwards.decline("home", id);
        assert_reset(&mut outside).await;
        assert_eq!(it.failed("refused"), (1, 0));
        // With a limit of 10, the eleventh.
        let target = it.target.local_addr().unwrap();
        let mut open = Vec::new();
        for _ in 0..10 {
            let (outside, incoming) = connect(&it, port).await;
            spawn_local(it.proxy.clone().forward(incoming, target, false, Rc::default()));
            open.push((outside, it.accept().await));
            it.until(|it| it.registry.client("home").streams.get() == open.len() as u32).await;
        }
        let (mut outside, incoming) = connect(&it, port).await;
        spawn_local(it.proxy.clone().forward(incoming, target, false, Rc::default()));
        assert_reset(&mut it.accept().await).await;
        assert_reset(&mut outside).await;
    });
}

#[test]
fn a_connection_is_its_clients_alone_and_is_taken_once() {
    run(async |threads| {
        let (it, port) = forwarding(threads).await;
        let (_outside, incoming) = connect(&it, port).await;
        assert!(it.registry.forwards.claim("office", incoming.id).is_none());
        assert_eq!(it.registry.forwards.announce("office"), []);
        assert!(it.registry.forwards.claim("home", incoming.id).is_some());
        let target = it.target.local_addr().unwrap();
        spawn_local(it.proxy.clone().forward(incoming, target, false, Rc::default()));
        assert_reset(&mut it.accept().await).await;
        assert_eq!(it.failed("refused"), (1, 1));
    });
}

#[test]
fn only_its_client_is_told_of_a_connection() {
    run(async |threads| {
        let (it, port) = forwarding(threads).await;
        let [home, office] = ["home", "office"].map(|name| it.registry.client(name));
        let mut told = [home.arrived.notified(), office.arrived.notified()].map(Box::pin);
        for told in &mut told {
            told.as_mut().enable();
        }
        let _outside = connect(&it, port).await;
        let [home, office] = told.map(|told| timeout(Duration::ZERO, told));
        assert_eq!((home.await.is_ok(), office.await.is_ok()), (true, false));
    });
}

#[test]
fn few_connections_wait_and_not_for_long() {
    run(async |threads| {
        let (it, port) = forwarding(threads).await;
        let mut waiting = Vec::new();
        for _ in 0..64 {
            waiting.push(connect(&it, port).await);
        }
        let mut outside = TcpStream::connect(port).await.unwrap();
        assert_reset(&mut outside).await;
        let now = Instant::now();
        it.registry.tidy_forwards(now);
        let [first, second] = [0, 1].map(|at| waiting[at].1.id);
        assert!(it.registry.forwards.claim("home", first).is_some());
        it.registry.tidy_forwards(now + Duration::from_secs(10));
        for (outside, _) in waiting.iter_mut().skip(1) {
            assert_reset(outside).await;
        }
        assert!(it.registry.forwards.claim("home", second).is_none());
    });
}

#[test]
fn a_port_is_open_while_it_is_wanted_and_allowed() {
    run(async |threads| {
        let (it, port) = forwarding(threads).await;
        let (registry, now) = (&it.registry, Instant::now());
        let tcp = Port::tcp(port.port());
        let is_open = async || {
            // What has been aborted is gone when others had their turn.
            tokio::task::yield_now().await;
            TcpStream::connect(port).await.is_ok()
        };
        let sctp = Port { protocol: 132, number: 53 };
        let other = Port::tcp(free_port());
        let verdicts = registry.forward("home", &[sctp, other, tcp]);
        let said = [Verdict::Unsupported, Verdict::NotAllowed, Verdict::Granted];
        assert_eq!(verdicts.iter().map(|(_, verdict)| *verdict).collect::<Vec<_>>(), said);

        let minute = Duration::from_secs(60);
        registry.forwards.linger("home", now);
        registry.tidy_forwards(now + minute / 2);
        assert!(is_open().await, "it may come back");
        registry.forward("home", &[tcp]);
        registry.tidy_forwards(now + 2 * minute);
        assert!(is_open().await, "it has come back");
        registry.forwards.linger("home", now);
        registry.tidy_forwards(now + minute);
        assert!(!is_open().await, "it has not come back");

        registry.forward("home", &[tcp]);
        assert!(is_open().await);
        registry.forward("home", &[]);
        assert!(!is_open().await, "not wanted any more");

        registry.forward("home", &[tcp]);
        registry.reconfigure(config("", 10, true));
        registry.tidy_forwards(now);
        assert!(!is_open().await, "not allowed any more");
        let taken = TcpListener::bind(port).await.unwrap();
        registry.reconfigure(config_with(port.port()));
        assert_eq!(registry.forward("home", &[tcp]), [(tcp, Verdict::InUse)]);
        drop(taken);
        assert_eq!(registry.forward("home", &[tcp]), [(tcp, Verdict::Granted)]);
    });
}
