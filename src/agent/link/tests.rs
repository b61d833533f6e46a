use tokio::task::LocalSet;

use super::*;
use crate::config::agent::AgentConfig;
use crate::tunnel::Cipher;
use crate::tunnel::probe::{ProbeReply, UnverifiedProbe};
use crate::tunnel::session::{ClientSession, SessionId, SessionKeys, StreamSecret};

/// A link that uses the one server it knows.
fn run(test: impl AsyncFnOnce(Link)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let (mut link, _inputs) = Link::new(Path::new("/nonexistent"));
        assert!(link.keep_servers(&[server("vps")]).is_err(), "there is no key");
        link.use_server("vps".into());
        test(link).await;
    });
}

fn server(name: &str) -> ServerConfig {
    let text = format!(
        "config server '{name}'\n option address '{name}.example.net'\n option public_key \
         'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE='\n"
    );
    AgentConfig::parse(&text, "mptcpd").unwrap().servers.remove(0)
}

/// A keeper that dials this server.
fn dial(link: &mut Link, server: &str) -> u64 {
    link.keepers += 1;
    let handle = runtime::spawn(std::future::pending::<()>()).abort_handle();
    let attempt = Task { id: link.keepers, handle };
    link.lines.get_mut(server).unwrap().attempt = Some(attempt);
    link.keepers
}

fn secret(id: u64) -> (SessionId, StreamSecret) {
    (SessionId(id), StreamSecret::from_bytes([4; 32]))
}

fn up(keeper: u64, id: u64) -> News {
    let (id, secret) = secret(id);
    let session = ClientSession::new(id, &secret, Cipher::None);
    let session = Rc::new(Session::new(session, "127.0.0.1:443".parse().unwrap(), true));
    News::Session(keeper, session::Event::Up { session, mptcp: true })
}

fn down(keeper: u64) -> News {
    News::Session(keeper, session::Event::Down { reason: "reset".into() })
}

/// The server's reply to a probe of a session.
fn reply(id: u64, counter: u64) -> News {
    let (id, secret) = secret(id);
    let observed = "192.0.2.1:1".parse().unwrap();
    let reply = ProbeReply { counter, observed, pads: true }.encode(&SessionKeys::new(id, &secret));
    assert!(UnverifiedProbe::parse(&reply).is_ok());
    News::Probe(3, reply.to_vec())
}

fn in_force(link: &Link) -> Option<u64> {
    link.trunk.session().map(|session| session.id().0)
}

#[test]
fn only_replies_of_the_latest_session_count() {
    run(async |mut link| {
        assert!(link.take(reply(1, 5)).is_none(), "before there is a session");
        let keeper = dial(&mut link, "vps");
        let taken = link.take(up(keeper, 1));
        assert!(matches!(taken, Some(Event::Server(_, ServerNews::Up { .. }))));
        let taken = link.take(reply(1, 5));
        assert!(matches!(taken, Some(Event::ProbeAnswered { slot: 3, counter: 5 })));
        link.take(up(keeper, 2));
        assert!(link.take(reply(1, 6)).is_none());
        assert!(link.take(reply(2, 6)).is_some());
        assert!(link.take(News::Probe(3, vec![0; 5])).is_none());
    });
}

#[test]
fn probes_are_numbered_anew_in_each_session() {
    run(async |mut link| {
        assert!(link.probe(0).is_none());
        let keeper = dial(&mut link, "vps");
        let mut counters = Vec::new();
        for id in [1, 1, 2] {
            if counters.len() != 1 {
                link.take(up(keeper, id));
            }
            // There is no such outlet: it is told that the probe did not leave.
            let Some(Event::ProbeSent { counter, sent: false, .. }) = link.probe(0) else {
                panic!("no probe");
            };
            counters.push(counter);
        }
        assert_eq!(counters, [0, 1, 0]);
    });
}

#[test]
fn a_socket_that_could_not_be_made_is_made_later() {
    run(async |mut link| {
        let keeper = dial(&mut link, "vps");
        link.take(up(keeper, 1));
        link.outlets = vec![Outlet { slot: 3, source: [127, 0, 0, 1].into(), device: "lo".into() }];
        let sent = |event| matches!(event, Some(Event::ProbeSent { sent: true, .. }));
        assert!(!sent(link.probe(3)));
        assert!(sent(link.probe(3)));
    });
}

#[test]
fn the_round_trip_time_is_smoothed() {
    run(async |mut link| {
        let keeper = dial(&mut link, "vps");
        let heard = |ms| {
            News::Session(
                keeper,
                session::Event::Heard { rtt: Duration::from_millis(ms), host: None },
            )
        };
        link.take(up(keeper, 1));
        link.take(heard(80));
        link.take(heard(160));
        assert_eq!(link.view("vps").rtt, Some(Duration::from_millis(90)));
    });
}

#[test]
fn a_connection_stays_until_the_next_one_is_there() {
    run(async |mut link| {
        let first = dial(&mut link, "vps");
        link.take(up(first, 1));
        let second = dial(&mut link, "vps");
        assert!(
            link.take(down(second)).is_some_and(|event| {
                matches!(event, Event::Server(_, ServerNews::Failed { .. }))
            })
        );
        assert_eq!(in_force(&link), Some(1), "an attempt in vain");
        let third = dial(&mut link, "vps");
        link.take(up(third, 3));
        assert_eq!(in_force(&link), Some(3));
        assert!(link.take(down(first)).is_none(), "it was given up");
        assert!(
            link.take(down(third)).is_some_and(|event| {
                matches!(event, Event::Server(_, ServerNews::Down { .. }))
            })
        );
        assert_eq!(in_force(&link), Some(3), "the server may know it a while");
    });
}

#[test]
fn the_session_in_force_is_that_of_the_server_in_use() {
    run(async |mut link| {
        let _ = link.keep_servers(&[server("vps"), server("second")]);
        let (first, second) = (dial(&mut link, "vps"), dial(&mut link, "second"));
        link.take(up(first, 1));
        link.take(up(second, 2));
        assert_eq!(in_force(&link), Some(1));
        link.use_server("second".into());
        assert_eq!(in_force(&link), Some(2));
        assert!(link.take(reply(1, 1)).is_none());
        assert!(link.take(reply(2, 1)).is_some());
        let _ = link.keep_servers(&[server("second")]);
        assert_eq!(in_force(&link), Some(2), "the one in use stays");
        link.hang_up("second");
        assert!(link.take(up(second, 4)).is_none());
        assert_eq!(link.keep_servers(&[]), Ok(()));
        assert_eq!(in_force(&link), None);
    });
}

#[test]
fn an_answer_for_another_host_is_dropped() {
    run(async |mut link| {
        let resolved = |server: &str, host: &str| {
            let (server, host) = (server.to_owned(), host.to_owned());
            News::Resolved(Resolved { server, host, answer: Ok(Vec::new()) })
        };
        assert!(link.take(resolved("vps", "vps.example.net")).is_some());
        assert!(link.take(resolved("vps", "before.example.net")).is_none());
        assert!(link.take(resolved("gone", "vps.example.net")).is_none());
    });
}
