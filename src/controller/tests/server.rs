//! A server that falls silent, is lost and comes back.

use super::*;
use crate::config::agent::{OnServerLoss, Quota, QuotaAction};
use crate::controller::server::Expectation;
use crate::failover::Reason;

#[test]
fn a_silent_server_is_not_held_against_the_uplinks() {
    for carried in [vec![], vec![(0, 1_000_000)], vec![(0, 1_000_000), (1, 1_000_000)]] {
        let mut world = World::settled();
        world.tell(rates(carried));
        world.run(4000);
        world.forget();
        (world.rtt, world.control) = ([None; 2], false);
        world.run(60_000);
        let log = world.log();
        assert_eq!(world.in_force(), [InForce::Active; 2], "{log:?}");
        assert_eq!(world.controller.assignments()[0].reason, Reason::ServerSilent);
        assert!(!log.iter().any(|text| text.contains("not used")), "{log:?}");
        assert_eq!(world.endpoints().len(), 2, "streams under way may survive");
        let changes: Vec<String> = world.lines().into_iter().map(|(_, line)| line).collect();
        assert_eq!(changes, ["nft -f - # table inet mptcp_bond"]);
    }
}

#[test]
fn a_lost_server_ends_interception_until_it_is_back() {
    for (policy, refused) in [(OnServerLoss::Direct, false), (OnServerLoss::Block, true)] {
        let mut world = World::settled();
        world.controller.config.on_server_loss = policy;
        (world.rtt, world.control) = ([None; 2], false);
        let lost = world.until(4000, |world| !world.controller.server().reachable);
        assert!((1000..=3100).contains(&lost), "{lost} ms");
        assert!(!world.nft().contains("tproxy"), "with the change itself");
        assert_eq!(world.nft().contains("reject with tcp reset"), refused);
        let text = format!("server lost: it answers on no uplink; {policy}");
        assert!(world.log().contains(&text.as_str()), "{:?}", world.log());

        world.run(20_000);
        world.session_down("timed out");
        (world.rtt, world.control) = ([Some(20), Some(40)], true);
        world.run(3000);
        assert!(!world.controller.server().reachable, "answers to probes are no session");
        world.session_up(SERVER);
        world.run(10);
        assert!(world.nft().contains("tproxy ip to 127.0.0.1:4000"));
        assert_eq!(world.controller.server().trouble, None);
        world.run(10_000);
        assert_eq!(world.in_force(), [InForce::Active; 2]);
    }
}

#[test]
fn a_server_without_ipv6_says_so_and_when_it_has_some_again() {
    let mut world = World::settled();
    world.controller.ports.v6 = Some(6000);
    let heard = |world: &mut World, lacks_ipv6| {
        world.tell(Event::Server("vps".into(), ServerNews::Heard { lacks_ipv6 }));
        world.run(200);
        world.nft().contains("meta nfproto ipv6 tcp flags")
    };
    assert!(heard(&mut world, Some(true)));
    assert!(!heard(&mut world, Some(false)));
    assert!(heard(&mut world, Some(true)));
    assert!(!heard(&mut world, None), "an older version came back");
    let log = world.log();
    let [without, with] = ["no IPv6: the LAN's is refused", "IPv6 again"]
        .map(|text| log.contains(&format!("server vps: it has {text}").as_str()));
    assert!(without && with, "{log:?}");
}

#[test]
fn what_outlived_an_outage_gets_new_subflows_at_once() {
    let mut world = World::new();
    world.tell(Event::Started);
    world.session_up(SERVER);
    world.run(10_000);
    let anew = |world: &World| -> Vec<String> {
        let lines = world.lines().into_iter().map(|(_, line)| line);
        lines.filter(|line| line.contains("endpoint delete")).collect()
    };
    assert!(anew(&world).is_empty(), "nothing has been under way before the first session");
    (world.rtt, world.control) = ([None; 2], false);
    world.run(60_000);
    assert!(anew(&world).is_empty(), "the subflows are kept meanwhile");
    (world.rtt, world.control) = ([Some(20), Some(40)], true);
    world.forget();
    world.until(3000, |world| world.controller.server().reachable);
    let lines: Vec<String> = world.lines().into_iter().map(|(_, line)| line).collect();
    assert_eq!(
        lines.iter().filter(|line| line.starts_with("ip mptcp")).collect::<Vec<_>>(),
        [
            "ip mptcp endpoint delete id 200",
            "ip mptcp endpoint delete id 201",
            "ip mptcp endpoint add 192.0.2.10 id 200 dev eth1 subflow",
            "ip mptcp endpoint add 192.0.2.20 id 201 dev eth2 subflow",
        ]
    );
    world.run(60_000);
    assert_eq!(anew(&world).len(), 2, "once");
}

#[test]
fn what_was_about_to_join_when_an_outage_ended_joins_again() {
    let mut world = World::settled();
    (world.rtt, world.control) = ([None; 2], false);
    world.run(10_000);
    world.set_carrier("eth1", false);
    world.run(2000);
    world.forget();
    world.set_carrier("eth1", true);
    world.run(10_000);
    (world.rtt, world.control) = ([Some(20), Some(40)], true);
    world.until(5000, |world| world.controller.server().reachable);
    let lines: Vec<String> = world.lines().into_iter().map(|(_, line)| line).collect();
    assert_eq!(
        lines.iter().filter(|line| line.starts_with("ip mptcp")).collect::<Vec<_>>(),
        [
            "ip mptcp endpoint add 192.0.2.10 id 200 dev eth1 subflow",
            "ip mptcp endpoint delete id 201",
            "ip mptcp endpoint add 192.0.2.20 id 201 dev eth2 subflow",
            "ip mptcp endpoint change id 200 nobackup fullmesh",
            "ip mptcp endpoint change id 200 nobackup",
        ]
    );
}

#[test]
fn a_server_that_answers_probes_again_is_dialled_again_at_once() {
    let mut world = World::settled();
    let dials = |world: &World| world.count(|action| matches!(action, Action::Dial { .. }));
    (world.rtt, world.control) = ([None; 2], false);
    world.run(10_000);
    world.session_down("no answer for 10 s");
    world.until(2000, |world| dials(world) == 1);
    world.run(5000);
    assert_eq!(dials(&world), 1, "the attempt goes on");
    world.rtt = [Some(20), Some(40)];
    world.until(2500, |world| dials(world) == 2);
    world.run(5000);
    assert_eq!(dials(&world), 2, "and the new one is left alone");
}

#[test]
fn the_control_connection_alone_keeps_a_server_reachable() {
    let mut world = World::settled();
    world.rtt = [None; 2];
    world.run(20_000);
    assert!(world.controller.server().reachable);
    assert!((15..=21).contains(&pings(&world)), "about one a second: {}", pings(&world));
}

fn pings(world: &World) -> usize {
    world.count(|action| matches!(action, Action::PingServer(_)))
}

#[test]
fn answered_probes_make_pings_needless() {
    let mut world = World::settled();
    world.run(60_000);
    assert_eq!(pings(&world), 0);

    // One that is down says nothing of the server, and the first loss of another one raises doubt.
    world.rtt[0] = None;
    world.until(5000, |world| world.in_force()[0] == InForce::Unused);
    world.forget();
    world.run(60_000);
    assert_eq!(pings(&world), 0);
    world.rtt[1] = None;
    world.until(2500, |world| pings(world) == 1);
    world.run(10_000);
    assert!(world.controller.server().reachable, "the control connection brings answers");
}

#[test]
fn over_metered_uplinks_alone_the_server_is_asked_rarely_and_in_doubt_at_once() {
    let mut world = World::settled();
    let mut config = world.controller.config().clone();
    let quota = Quota { bytes: 50_000_000_000, reset_day: 1, action: QuotaAction::Backup };
    config.uplinks.iter_mut().for_each(|uplink| uplink.quota = Some(quota));
    world.tell(Event::Configured(Box::new(config)));
    world.run(20_000);
    world.forget();
    world.run(60_000);
    assert_eq!(pings(&world), 0);
    assert!(world.probes <= 14, "{} probes in a minute", world.probes);
    assert!(world.log().is_empty(), "{:?}", world.log());

    // Let the silence begin right after an answer.
    let heard = world.controller.server().heard;
    world.until(11_000, |world| world.controller.server().heard != heard);
    (world.rtt, world.control) = ([None; 2], false);
    world.run(4000);
    assert!(world.controller.server().reachable, "nobody asked");
    world.tell(Event::ServerSuspected);
    let lost = world.until(2000, |world| !world.controller.server().reachable);
    assert!((700..=710).contains(&lost), "{lost} ms");
}

#[test]
fn probes_alone_keep_a_server_reachable() {
    let mut world = World::settled();
    world.session_down("reset");
    world.run(10_000);
    assert!(world.controller.server().reachable, "its streams go on");
    assert_eq!(world.controller.server().trouble.as_deref(), Some("reset"));
    assert_eq!(pings(&world), 0);
}

#[test]
fn a_session_with_another_address_has_all_uplinks_measured_anew() {
    let mut world = World::settled();
    world.session_up("198.51.100.7");
    assert!((0..2).all(|slot| world.controller.health(slot).unwrap().srtt().is_none()));
    world.run(1000);
    assert!((0..2).all(|slot| world.controller.health(slot).unwrap().srtt().is_some()));
    assert!(world.nft().contains("198.51.100.7") && world.nft().contains(SERVER));

    world.resolved(&["203.0.113.9"]);
    world.run(200);
    assert!(world.nft().contains("198.51.100.7"), "the one in use stays known");
}

#[test]
fn a_lost_server_is_not_well_again_because_it_is_given_longer_to_answer() {
    let start = Instant::now();
    let mut server = Server::default();
    server.on_session(IpAddr::from([203, 0, 113, 1]), start);
    let probed = Expectation::probed(Some(200 * MS), 300 * MS);
    server.judge(probed, start);
    assert!(server.reachable);
    server.on_question(start + 3000 * MS);
    let later = start + 4500 * MS;
    server.judge(probed, later);
    assert!(!server.reachable);
    server.judge(Expectation::unprobed(), later);
    assert!(!server.reachable);
    server.on_answer(later);
    server.judge(Expectation::unprobed(), later);
    assert!(server.reachable);
}
