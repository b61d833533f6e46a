//! Both halves of a connection, from the LAN client to the target, with the session given by hand.

mod forwarded;

use std::cell::Cell;
use std::path::PathBuf;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep;

use super::*;
use crate::config::agent::OnServerLoss;
use crate::config::keys::{PrivateKey, PublicKey, ServerKeys};
use crate::config::server::ServerConfig;
use crate::controller::Outlet;
use crate::pool::Pool;
use crate::proxy::{Connection, Proxy};
use crate::session::{Session, Trunk};
use crate::tunnel::session::{ClientSession, RETIREMENT, ServerSession, SessionId, StreamSecret};

const SOON: Duration = Duration::from_secs(10);
const KEY: PublicKey = PublicKey([8; 32]);

/// Runs a test with relays on the test's own thread and on others.
fn run(test: impl AsyncFn(usize)) {
    for threads in [0, 2] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let limited = async { timeout(Duration::from_secs(60), test(threads)).await.unwrap() };
        LocalSet::new().block_on(&runtime, limited);
    }
}

fn config(allow: &str, streams: u32, with_client: bool) -> ServerConfig {
    let client = format!("[[client]]\nname = \"home\"\npublic_key = \"{KEY}\"\n");
    let text = format!(
        "listen = \"127.0.0.1:443\"\npublic = \"192.0.2.1:443\"\n[policy]\nallow = [{allow}]\n\
         [limits]\nstreams_per_client = {streams}\n{}",
        if with_client { client.as_str() } else { "" }
    );
    ServerConfig::parse(&text, "server.toml").unwrap()
}

/// A server, an agent's half, and a listener that stands for the LAN side and for the target: the
/// first connection to it is the client's, the second the server's.
struct World {
    registry: Rc<Registry>,
    trunk: Rc<Trunk>,
    proxy: Rc<Proxy>,
    server: SocketAddr,
    target: TcpListener,
    /// How many streams the server shall break before it answers on one.
    breaks: Rc<Cell<u32>>,
    workers: Rc<Workers>,
}

async fn world(threads: usize, config: ServerConfig, on_server_loss: OnServerLoss) -> World {
    let keys = ServerKeys::new(PrivateKey::from_bytes([7; 32]), None);
    let registry = Registry::new(PathBuf::new(), config, keys);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    let breaks = Rc::new(Cell::new(0));
    let workers = Rc::new(Workers::with_threads(threads).unwrap());
    let (there, relaying, left) = (registry.clone(), workers.clone(), breaks.clone());
    spawn_local(async move {
        loop {
            let (mut tcp, peer) = listener.accept().await.unwrap();
            let (registry, workers, left) = (there.clone(), relaying.clone(), left.clone());
            let place = spawn_local(std::future::pending::<()>()).abort_handle();
            let (pass, _) = registry.gate.admit(peer.ip(), place, Instant::now());
            spawn_local(async move {
                if tcp.read_u8().await.is_err() {
                    return;
                }
                if left.get() > 0 {
                    // With the request, so that the agent has sent all it had.
                    let _ = tcp.read_exact(&mut [0; PREAMBLE_LEN + 40]).await;
                    left.set(left.get() - 1);
                    return socket::abort(&tcp);
                }
                serve(registry, workers, tcp, peer, pass, FIRST_BYTE).await;
            });
        }
    });
    let trunk = Rc::new(Trunk::default());
    trunk.set_paths(vec![Outlet { slot: 0, source: server.ip(), device: "lo".into() }]);
    let of_agent = Workers::with_threads(threads).unwrap();
    let proxy = Proxy::new(Pool::new(trunk.clone()), of_agent, on_server_loss);
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    World { registry, trunk, proxy, server, target, breaks, workers }
}

impl World {
    /// Gives the agent a session that the server knows, or one that it does not.
    fn give_session(&self, id: u64, known: bool) {
        let (id, secret) = (SessionId(id), StreamSecret::from_bytes([3; 32]));
        let cipher = Cipher::ChaCha20Poly1305;
        if known {
            let state = ServerSession::new(id, &secret, cipher);
            assert!(self.registry.sessions.borrow_mut().add("home", KEY, state));
        }
        let session = Session::new(ClientSession::new(id, &secret, cipher), self.server, true);
        self.trunk.set_session(Some(Rc::new(session)));
    }

    /// A LAN client, whose connection the proxy has.
    async fn client(&self) -> TcpStream {
        let client = TcpStream::connect(self.target.local_addr().unwrap()).await.unwrap();
        let (lan, address) = self.target.accept().await.unwrap();
        let connection = Connection::diverted(address, &lan).unwrap();
        spawn_local(self.proxy.clone().serve(lan, connection));
        client
    }

    async fn accept(&self) -> TcpStream {
        timeout(SOON, self.target.accept()).await.unwrap().unwrap().0
    }

    fn failed(&self, cause: &str) -> (u64, u64) {
        let agent = self.proxy.tally.failed.borrow().get(cause).copied().unwrap_or(0);
        (agent, self.registry.failed().get(cause).copied().unwrap_or(0))
    }

    async fn until(&self, condition: impl Fn(&World) -> bool) {
        let met = async {
            while !condition(self) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, met).await.unwrap();
    }
}

async fn assert_reset(client: &mut TcpStream) {
    let error = timeout(SOON, client.read(&mut [0])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn what_waits_for_a_relay_to_end_is_small() {
    run(async |threads| {
        let it = world(threads, config("", 10, true), OnServerLoss::Block).await;
        let address = it.target.local_addr().unwrap();
        let connect = async || TcpStream::connect(address).await.unwrap();
        let place = spawn_local(std::future::pending::<()>()).abort_handle();
        let (pass, _) = it.registry.gate.admit(address.ip(), place, Instant::now());
        let (registry, workers) = (it.registry.clone(), it.workers.clone());
        let at_server = serve(registry, workers, connect().await, address, pass, FIRST_BYTE);
        assert!(size_of_val(&at_server) <= 1024, "{} bytes", size_of_val(&at_server));
        let lan = connect().await;
        let connection = Connection::diverted(address, &lan).unwrap();
        let at_agent = it.proxy.clone().serve(lan, connection);
        assert!(size_of_val(&at_agent) <= 1280, "{} bytes", size_of_val(&at_agent));
    });
}

#[test]
fn a_connection_is_carried_and_counted() {
    run(async |threads| {
        let it = world(threads, config("\"127.0.0.1\"", 9, true), OnServerLoss::Block).await;
        it.give_session(1, true);
        let mut client = it.client().await;
        let mut target = it.accept().await;
        it.registry.measure(Instant::now());
        it.proxy.measure(Instant::now());
        sleep(Duration::from_millis(60)).await;
        client.write_all(&[1; 1000]).await.unwrap();
        target.read_exact(&mut [0; 1000]).await.unwrap();
        target.write_all(&[2; 5000]).await.unwrap();
        client.read_exact(&mut [0; 5000]).await.unwrap();
        // What is written is counted next, perhaps on another thread.
        let traffic = |it: &World| it.registry.traffic().get("home").copied().unwrap();
        it.until(|it| (traffic(it).down_bytes, traffic(it).up_bytes) == (5000, 1000)).await;
        let counters = |it: &World| it.proxy.connections()[0].counters.clone();
        it.until(|it| (counters(it).to_lan(), counters(it).to_tunnel()) == (5000, 1000)).await;
        it.registry.measure(Instant::now());
        it.proxy.measure(Instant::now());
        let (traffic, counters) = (traffic(&it), counters(&it));
        assert!(traffic.down_bps > traffic.up_bps && traffic.up_bps > 0, "{traffic:?}");
        assert!(counters.to_lan_bps() > counters.to_tunnel_bps() && counters.to_tunnel_bps() > 0);
        assert_eq!(it.registry.client("home").streams.get(), 1);

        drop((client, target));
        it.until(|it| it.proxy.connections().is_empty()).await;
        it.until(|it| it.registry.client("home").streams.get() == 0).await;
        let traffic = it.registry.traffic().get("home").copied().unwrap();
        assert_eq!((traffic.down_bytes, traffic.up_bytes), (5000, 1000), "ended ones count on");
        assert_eq!(it.proxy.tally.opened.get(), 1);
        assert!(it.proxy.tally.failed.borrow().is_empty() && it.registry.failed().is_empty());
    });
}

#[test]
fn all_streams_of_a_client_share_its_rate_until_that_is_changed() {
    const RATE: usize = 1_000_000;
    run(async |threads| {
        let mut config = config("\"127.0.0.1\"", 9, true);
        config.limits.rate_per_client = RATE as u64;
        let unlimited = || ServerConfig { limits: Default::default(), ..config.clone() };
        let it = world(threads, config.clone(), OnServerLoss::Block).await;
        it.give_session(1, true);
        let mut streams =
            [(it.client().await, it.accept().await), (it.client().await, it.accept().await)];
        // As much on each of both streams, and the other way at the same time.
        let transfer = async |streams: &mut [(TcpStream, TcpStream)], bytes: usize| {
            let begun = Instant::now();
            let each = streams.iter_mut().map(|(client, target)| async move {
                let (mut from_client, mut to_client) = client.split();
                let (mut from_target, mut to_target) = target.split();
                let payload = vec![1; bytes];
                let mut arrived = [payload.clone(), payload.clone()];
                let [down, up] = &mut arrived;
                let all = tokio::try_join!(
                    to_client.write_all(&payload),
                    to_target.write_all(&payload),
                    from_client.read_exact(down),
                    from_target.read_exact(up),
                );
                all.unwrap();
            });
            futures_util::future::join_all(each).await;
            begun.elapsed()
        };
        let took = transfer(&mut streams, RATE / 4).await;
        assert!(took >= Duration::from_millis(400), "{took:?}");
        it.registry.reconfigure(unlimited());
        let took = transfer(&mut streams, 8 * RATE).await;
        assert!(took < Duration::from_secs(8), "{took:?}");
    });
}

#[test]
fn what_a_client_says_early_arrives_once_although_streams_break() {
    run(async |threads| {
        let it = world(threads, config("\"127.0.0.1\"", 9, true), OnServerLoss::Block).await;
        it.give_session(1, true);
        it.breaks.set(1);
        let mut client = it.client().await;
        client.write_all(b"early").await.unwrap();
        it.until(|it| it.breaks.get() == 0).await;
        // The session may be what the server does not know: another one is waited for.
        it.give_session(2, true);
        let mut target = it.accept().await;
        client.write_all(b" and late").await.unwrap();
        client.shutdown().await.unwrap();
        let mut received = String::new();
        timeout(SOON, target.read_to_string(&mut received)).await.unwrap().unwrap();
        assert_eq!(received, "early and late");
        assert_eq!(it.proxy.tally.retried.get(), 1);
        assert!(it.proxy.tally.failed.borrow().is_empty());
        assert_eq!(it.proxy.connections()[0].counters.to_tunnel(), 14);
    });
}

#[test]
fn a_session_the_server_does_not_know_is_replaced_or_given_up() {
    run(async |threads| {
        let it = world(threads, config("\"127.0.0.1\"", 9, true), OnServerLoss::Block).await;
        it.give_session(1, false);
        let mut client = it.client().await;
        it.until(|it| it.proxy.tally.retried.get() == 1).await;
        assert_reset(&mut client).await;
        assert_eq!(it.failed("no tunnel"), (1, 0));
        assert_eq!(it.registry.refusals().get("no session"), Some(&1));
    });
}

#[test]
fn refusals_of_target_policy_and_limits_are_told_apart() {
    run(async |threads| {
        let it = world(threads, config("\"127.0.0.1\"", 1, true), OnServerLoss::Block).await;
        it.give_session(1, true);
        let _first = it.client().await;
        let _target = it.accept().await;
        assert_reset(&mut it.client().await).await;
        assert_eq!(it.failed("out of resources"), (1, 1));

        it.registry.reconfigure(config("", 9, true));
        assert_reset(&mut it.client().await).await;
        assert_eq!(it.failed("denied"), (1, 1));
        assert_eq!(it.registry.refusals().get("denied by policy"), Some(&1));

        it.registry.reconfigure(config("\"127.0.0.1\"", 9, true));
        let mut client = it.client().await;
        // The client's own connection stands; the server's finds nobody listening.
        let World { target, proxy, registry, .. } = it;
        drop(target);
        assert_reset(&mut client).await;
        let refused = proxy.tally.failed.borrow().get("refused").copied();
        assert_eq!((refused, registry.failed().get("refused").copied()), (Some(1), Some(1)));
    });
}

#[test]
fn own_addresses_are_denied_also_after_a_reload() {
    run(async |threads| {
        let it = world(threads, config("", 9, true), OnServerLoss::Block).await;
        let [own, public, other] = ["198.51.100.9:80", "192.0.2.1:22", "198.51.100.10:80"]
            .map(|text| text.parse().unwrap());
        assert!(it.registry.permits(public).is_err(), "where routers reach the server");
        assert!(it.registry.permits(own).is_ok());
        it.registry.set_own_addresses(vec!["198.51.100.9".parse().unwrap()]);
        assert!(it.registry.permits(own).is_err() && it.registry.permits(other).is_ok());
        it.registry.reconfigure(config("\"198.51.100.9\"", 9, true));
        assert!(it.registry.permits(own).is_ok(), "allowed by name");
        it.registry.reconfigure(config("", 9, true));
        assert!(it.registry.permits(own).is_err());
        it.registry.set_own_addresses(Vec::new());
        assert!(it.registry.permits(own).is_ok());
    });
}

#[test]
fn a_revoked_client_is_cut_off_at_once() {
    run(async |threads| {
        let it = world(threads, config("\"127.0.0.1\"", 9, true), OnServerLoss::Block).await;
        it.give_session(1, true);
        let mut client = it.client().await;
        let mut target = it.accept().await;
        client.write_all(b"x").await.unwrap();
        target.read_exact(&mut [0]).await.unwrap();
        it.registry.reconfigure(config("\"127.0.0.1\"", 9, false));
        assert_reset(&mut client).await;
        assert_reset(&mut target).await;
        it.until(|it| it.registry.client("home").streams.get() == 0).await;
    });
}

#[test]
fn without_a_tunnel_connections_go_untunnelled_or_are_reset() {
    run(async |threads| {
        let it = world(threads, config("", 9, true), OnServerLoss::Direct).await;
        let mut client = it.client().await;
        let mut target = it.accept().await;
        target.write_all(b"direct").await.unwrap();
        client.read_exact(&mut [0; 6]).await.unwrap();
        assert_eq!(it.proxy.tally.direct.get(), 1);
        it.proxy.set_on_server_loss(OnServerLoss::Block);
        assert_reset(&mut it.client().await).await;
        assert_eq!(it.failed("no tunnel"), (1, 0));
    });
}

#[test]
fn no_connection_waits_for_a_server_that_is_lost() {
    for on_server_loss in [OnServerLoss::Direct, OnServerLoss::Block] {
        run(async |threads| {
            let mut it = world(threads, config("", 9, true), on_server_loss).await;
            // It accepts, and says nothing.
            let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
            it.server = silent.local_addr().unwrap();
            it.give_session(1, true);
            let mut client = it.client().await;
            client.write_all(b"hello").await.unwrap();
            let (mut stream, _) = timeout(SOON, silent.accept()).await.unwrap().unwrap();
            stream.read_exact(&mut [0; PREAMBLE_LEN]).await.unwrap();
            it.proxy.set_server_answers(false);
            if on_server_loss == OnServerLoss::Direct {
                let mut said = [0; 5];
                it.accept().await.read_exact(&mut said).await.unwrap();
                assert_eq!(&said, b"hello");
            } else {
                assert_reset(&mut client).await;
            }
            let ended = timeout(SOON, stream.read_to_end(&mut Vec::new())).await.unwrap();
            assert!(ended.is_err(), "the request shall not be carried out later");
        });
    }
}

#[test]
fn what_a_client_says_early_reaches_the_target_untunnelled_too() {
    run(async |threads| {
        let it = world(threads, config("\"127.0.0.1\"", 9, true), OnServerLoss::Direct).await;
        it.give_session(1, true);
        it.breaks.set(1);
        let mut client = it.client().await;
        client.write_all(b"early").await.unwrap();
        // No other session comes.
        let mut target = it.accept().await;
        client.write_all(b" and late").await.unwrap();
        client.shutdown().await.unwrap();
        let mut received = String::new();
        timeout(SOON, target.read_to_string(&mut received)).await.unwrap().unwrap();
        assert_eq!(received, "early and late");
        assert_eq!((it.proxy.tally.retried.get(), it.proxy.tally.direct.get()), (1, 1));
        let connection = &it.proxy.connections()[0];
        assert_eq!(connection.counters.to_tunnel(), 14);
        assert!(connection.tunnel().is_none(), "the broken stream is let go");
    });
}

#[test]
fn a_client_that_only_opens_streams_is_stopped() {
    run(async |threads| {
        let it = world(threads, config("\"127.0.0.1\"", 9, true), OnServerLoss::Block).await;
        it.give_session(1, true);
        let warm = &it.registry.client("home").warm;
        warm.set(WARM_LIMIT - 1);
        let _first = it.client().await;
        let _target = it.accept().await;
        assert_eq!(warm.get(), WARM_LIMIT - 1, "it waits no more");
        warm.set(WARM_LIMIT);
        assert_reset(&mut it.client().await).await;
        assert_eq!(it.registry.refusals().get("too many streams"), Some(&1));
        assert_eq!(warm.get(), WARM_LIMIT);
    });
}

#[test]
fn a_session_that_was_replaced_serves_what_it_opened() {
    run(async |threads| {
        let it = world(threads, config("\"127.0.0.1\"", 9, true), OnServerLoss::Block).await;
        it.give_session(1, true);
        let mut client = it.client().await;
        let mut target = it.accept().await;
        let old = it.trunk.session().unwrap();
        it.give_session(2, true);
        let retired = Instant::now().checked_sub(RETIREMENT).unwrap();
        it.registry.sessions.borrow_mut().retire(SessionId(1), retired);
        it.registry.sessions.borrow_mut().forget_expired(Instant::now());
        let mut received = [0; 5];
        for text in [b"still", b"there"] {
            client.write_all(text).await.unwrap();
            timeout(SOON, target.read_exact(&mut received)).await.unwrap().unwrap();
            assert_eq!(received, *text);
        }
        // It opens no more.
        let (preamble, ..) = old.open_stream();
        let mut late = TcpStream::connect(it.server).await.unwrap();
        late.write_all(&preamble).await.unwrap();
        assert_reset(&mut late).await;
        assert_eq!(it.registry.refusals().get("no session"), Some(&1));
    });
}

#[test]
fn all_clients_together_have_a_limit() {
    run(async |threads| {
        let mut config = config("\"127.0.0.1\"", 9, true);
        config.limits.streams = 1;
        let it = world(threads, config, OnServerLoss::Block).await;
        it.give_session(1, true);
        let first = (it.client().await, it.accept().await);
        assert_reset(&mut it.client().await).await;
        assert_eq!(it.registry.refusals().get("too many streams of all clients"), Some(&1));
        drop(first);
        it.until(|it| it.registry.client("home").streams.get() == 0).await;
        let _second = it.client().await;
        it.accept().await;
    });
}
