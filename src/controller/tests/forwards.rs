//! Ports of the server that lead to the LAN.

use super::*;
use crate::config::agent::ForwardConfig;
use crate::net::Transport;
use crate::tunnel::forward::{Incoming, Port, Verdict};

fn forward(name: &str, listen: u16) -> ForwardConfig {
    let target = "192.168.1.10:22".parse().unwrap();
    let proxy_protocol = listen == 2222;
    ForwardConfig { name: name.into(), transport: Transport::Tcp, listen, target, proxy_protocol }
}

/// An agent with a session that wants two ports.
fn world() -> World {
    let mut world = World::settled();
    let mut config = world.controller.config().clone();
    config.forwards = vec![forward("ssh", 2222), forward("web", 80)];
    world.tell(Event::Configured(Box::new(config)));
    world
}

fn say(world: &mut World, verdicts: [Verdict; 2]) {
    let verdicts = [2222, 80].map(Port::tcp).into_iter().zip(verdicts).collect();
    world.tell(Event::Server("vps".into(), ServerNews::Forwards(verdicts)));
}

fn incoming(port: u16) -> Incoming {
    let local = (SERVER.parse::<IpAddr>().unwrap(), port).into();
    Incoming { id: 7, peer: "198.51.100.9:4000".parse().unwrap(), local }
}

fn verdicts(world: &World) -> Vec<Option<Verdict>> {
    world.controller.forwards().map(|view| view.verdict).collect()
}

#[test]
fn what_the_server_says_is_shown_and_told_once() {
    let mut world = world();
    let asked = world.done.iter().find_map(|(_, action)| match action {
        Action::SetForwards(ports) => Some(ports.clone()),
        _ => None,
    });
    assert_eq!(asked, Some(vec![Port::tcp(2222), Port::tcp(80)]));
    assert_eq!(verdicts(&world), [None, None]);
    world.forget();
    for _ in 0..2 {
        say(&mut world, [Verdict::Granted, Verdict::InUse]);
    }
    let denial = "forward web: no port 80: another program listens there: choose another port, or \
                  stop that program";
    let granted = "forward ssh: port 2222 of vps leads to 192.168.1.10:22";
    assert_eq!(world.log(), [granted, denial]);
    assert_eq!(verdicts(&world), [Some(Verdict::Granted), Some(Verdict::InUse)]);
    say(&mut world, [Verdict::Granted, Verdict::Granted]);
    let now = "forward web: port 80 of vps leads to 192.168.1.10:22";
    assert_eq!(world.log(), [granted, denial, now]);
    world.session_down("reset");
    assert_eq!(verdicts(&world), [None, None]);
}

#[test]
fn a_connection_goes_to_its_ports_target() {
    let mut world = world();
    say(&mut world, [Verdict::Granted; 2]);
    world.forget();
    for (server, port) in [("vps", 2222), ("vps", 81), ("other", 2222), ("vps", 80)] {
        world.tell(Event::Server(server.into(), ServerNews::Incoming(incoming(port))));
    }
    let target = "192.168.1.10:22".parse().unwrap();
    let relayed: Vec<Action> = world
        .done
        .iter()
        .map(|(_, action)| action.clone())
        .filter(|action| matches!(action, Action::Forward { .. }))
        .collect();
    let relay = |port, proxy_protocol| {
        let incoming = incoming(port);
        Action::Forward { incoming, target, proxy_protocol }
    };
    assert_eq!(relayed, [relay(2222, true), relay(80, false)]);
}

#[test]
fn udp_is_carried_and_asked_for_apart_from_tcp() {
    let mut world = World::settled();
    let mut config = world.controller.config().clone();
    let target = "192.168.1.11:5060".parse().unwrap();
    let udp = ForwardConfig { transport: Transport::Udp, target, ..forward("call", 80) };
    config.forwards = vec![forward("web", 80), udp];
    world.forget();
    world.tell(Event::Configured(Box::new(config.clone())));
    let ports = [Port::tcp(80), Port::udp(80)];
    let targets = vec![(80, target)];
    for action in [Action::SetForwards(ports.to_vec()), Action::SetUdpTargets(targets)] {
        assert_eq!(world.count(|done| *done == action), 1, "{action:?}");
    }
    assert!(world.count(|done| matches!(done, Action::SetDatagramWays { .. })) > 0, "no way");
    world.forget();
    let verdicts = ports.into_iter().zip([Verdict::Granted, Verdict::Unsupported]).collect();
    world.tell(Event::Server("vps".into(), ServerNews::Forwards(verdicts)));
    let said = [
        "forward web: port 80 of vps leads to 192.168.1.10:22",
        "forward call: no UDP port 80: the server does not forward this protocol: update the server",
    ];
    assert_eq!(world.log(), said);
    config.enabled = false;
    world.tell(Event::Configured(Box::new(config)));
    assert_eq!(world.count(|done| *done == Action::SetUdpTargets(Vec::new())), 1);
}

#[test]
fn another_servers_word_does_not_count() {
    let mut world = world();
    let verdicts_of_other = vec![(Port::tcp(2222), Verdict::Granted)];
    world.tell(Event::Server("other".into(), ServerNews::Forwards(verdicts_of_other)));
    assert_eq!(verdicts(&world), [None, None]);
}
