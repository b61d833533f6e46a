//! Configurations that change while the agent runs.

use super::*;
use crate::config::agent::Role;
use crate::reconcile::NftTable;

fn configure(world: &mut World, change: impl FnOnce(&mut AgentConfig)) {
    let mut config = agent_config();
    change(&mut config);
    world.tell(Event::Configured(Box::new(config)));
    world.run(200);
}

#[test]
fn the_same_configuration_changes_nothing() {
    let mut world = World::settled();
    configure(&mut world, |_| {});
    assert_eq!(world.lines(), []);
    assert_eq!(world.log(), [""; 0]);
    assert!(world.controller.server().reachable);
}

#[test]
fn a_change_touches_only_what_it_is_about() {
    let mut world = World::settled();
    configure(&mut world, |config| config.uplinks[1].role = Role::Backup);
    let lines: Vec<String> = world.lines().into_iter().map(|(_, line)| line).collect();
    assert_eq!(lines, ["ip mptcp endpoint change id 201 backup"]);
    assert_eq!(world.in_force(), [InForce::Active, InForce::Backup]);

    world.forget();
    configure(&mut world, |config| {
        config.uplinks.remove(0);
    });
    assert_eq!(world.endpoints(), ["192.0.2.20"], "in its old slot");
    assert_eq!(world.controller.uplinks()[0].slot, 1);
    assert!(world.lines().iter().all(|(_, line)| !line.contains("192.0.2.20 id 201 dev")));
}

#[test]
fn another_server_ends_interception_until_there_is_a_session() {
    let mut world = World::settled();
    configure(&mut world, |config| config.servers = vec![server_config("other.example.net")]);
    let kept = world.done.iter().find_map(|(_, action)| match action {
        Action::KeepServers(servers) => Some(servers[0].address.as_str()),
        _ => None,
    });
    assert_eq!(kept, Some("other.example.net"));
    assert!(!world.nft().contains("tproxy"));
    assert!(world.controller.probers.is_empty(), "there is nothing to sign probes with");
    assert_eq!(world.in_force(), [InForce::Active; 2]);
    assert_eq!(
        world.log(),
        ["another server is configured: until it answers, LAN TCP goes out untunnelled"]
    );

    world.session_up("198.51.100.7");
    world.run(1000);
    assert!(world.nft().contains("tproxy"));
    assert!(!world.nft().contains(SERVER));
}

#[test]
fn a_disabled_agent_leaves_and_comes_back_when_enabled() {
    let mut world = World::settled();
    let (whole, others) = (world.kernel.clone(), foreign(&world.kernel));
    configure(&mut world, |config| config.enabled = false);
    assert_eq!(world.count(|action| *action == Action::Leave), 1);
    assert_eq!(world.count(|action| *action == Action::KeepServers(vec![])), 1);
    assert_eq!(foreign(&world.kernel), others);
    assert_eq!((world.endpoints().len(), &world.kernel.nft), (0, &NftTable::Absent));
    let left = world.kernel.clone();
    world.run(60_000);
    assert_eq!(world.kernel, left);
    assert_eq!(world.lines(), []);

    configure(&mut world, |_| {});
    world.session_up(SERVER);
    world.run(1000);
    assert_eq!(world.kernel.rules.len(), whole.rules.len());
    assert_eq!(world.kernel.endpoints, whole.endpoints);
}

#[test]
fn an_agent_without_configuration_cleans_up_what_a_crash_left() {
    let crashed = World::settled().kernel;
    let mut world = World::new();
    world.kernel = crashed;
    world.controller.config.servers.clear();
    world.tell(Event::Started);
    assert_eq!(world.endpoints(), [""; 0]);
    assert_eq!(foreign(&world.kernel).1.len(), world.kernel.rules.len());
    assert_eq!(world.log(), ["waiting for a configuration: there is no 'config server' section"]);
}
