//! Several servers, and servers whose addresses change.

use super::*;

const SECOND: &str = "198.51.100.2";

/// What the controller wants of servers, in words, and what servers do about it.
struct Net {
    world: World,
    /// Whether the server of this name answers.
    answers: [(&'static str, &'static str, bool); 2],
    seen: usize,
}

impl Net {
    /// Two servers, of which these answer.
    fn new(first: bool, second: bool) -> Net {
        let mut world = World::new();
        let named = |name: &str, at: &str| ServerConfig { name: name.into(), ..server_config(at) };
        world.controller.config.servers = vec![named("first", SERVER), named("second", SECOND)];
        let config = world.controller.config.clone();
        world.controller =
            Controller::new(config, TproxyPorts { v4: Some(4000), v6: None }, world.now);
        let mut net =
            Net { world, answers: [("first", SERVER, first), ("second", SECOND, second)], seen: 0 };
        net.world.tell(Event::Started);
        net
    }

    fn set(&mut self, rank: usize, answers: bool) {
        self.answers[rank].2 = answers;
        if !answers {
            let (name, ..) = self.answers[rank];
            let news = ServerNews::Down { reason: "reset".into(), dice: 0x8000 };
            self.world.tell(Event::Server(name.into(), news));
        }
    }

    /// Lets time pass: servers answer dials, and the one in use answers probes.
    fn run(&mut self, ms: u64) {
        for _ in 0..ms / 50 {
            self.world.run(50);
            let new: Vec<Action> =
                self.world.done.iter().skip(self.seen).map(|(_, action)| action.clone()).collect();
            self.seen = self.world.done.len();
            for action in new {
                let Action::Dial { server, .. } = action else { continue };
                let (_, at, answers) = *self.answers.iter().find(|(n, ..)| *n == server).unwrap();
                let news = match answers {
                    true => ServerNews::Up { address: address(at), datagrams: true },
                    false => ServerNews::Failed { reason: "refused".into(), dice: 0x8000 },
                };
                self.world.tell(Event::Server(server, news));
            }
            let used = self.used();
            let answers = self.answers.iter().any(|(name, _, answers)| *name == used && *answers);
            self.world.rtt = if answers { [Some(20), Some(40)] } else { [None; 2] };
        }
    }

    /// Lets time pass until this server is used; the time it took, to 50 ms.
    fn until_used(&mut self, name: &str, limit: u64) -> u64 {
        let start = self.world.ms();
        while self.used() != name {
            assert!(self.world.ms() < start + limit, "{:#?}", self.world.log());
            self.run(50);
        }
        self.world.ms() - start
    }

    /// Lets time pass until the first server, not in use, answers again.
    fn until_first_answers(&mut self) {
        let start = self.world.ms();
        while !self.reason("first").starts_with("answers again") {
            assert!(self.world.ms() < start + 100_000, "{}", self.reason("first"));
            self.run(50);
        }
    }

    fn used(&self) -> &str {
        let used = self.world.controller.servers(self.world.now).find(|view| view.used).unwrap();
        &used.config.name
    }

    fn dials(&self, name: &str) -> Vec<u64> {
        let done = self.world.done.iter();
        done.filter(|(_, action)| matches!(action, Action::Dial { server, .. } if server == name))
            .map(|(ms, _)| *ms)
            .collect()
    }

    fn reason(&self, name: &str) -> String {
        let mut views = self.world.controller.servers(self.world.now);
        views.find(|view| view.config.name == name).unwrap().reason
    }
}

#[test]
fn the_first_server_is_used_and_the_second_is_left_alone() {
    let mut net = Net::new(true, true);
    net.run(60_000);
    assert_eq!((net.used(), net.dials("first").len()), ("first", 1));
    assert_eq!(net.dials("second"), [0; 0]);
    assert_eq!(net.reason("first"), "");
    assert_eq!(net.reason("second"), "stands by for first");
    let nft = net.world.nft();
    assert!(nft.contains(SERVER) && nft.contains(SECOND), "neither's own traffic is tunnelled");
}

#[test]
fn the_second_takes_over_and_the_first_comes_back_once_it_is_steady() {
    let mut net = Net::new(true, true);
    net.run(10_000);
    net.set(0, false);
    let took_over = net.until_used("second", 10_000);
    assert!((2000..4000).contains(&took_over), "{took_over} ms");
    assert!(net.world.nft().contains("tproxy"));
    net.run(60_000);
    assert_eq!(net.reason("second"), "in use, as those before it do not answer");
    assert!(net.reason("first").starts_with("refused; tried again in "), "{}", net.reason("first"));
    let tried = net.dials("first").len();
    assert!(tried < 15, "from time to time: {tried} times");

    net.set(0, true);
    net.until_first_answers();
    assert_eq!(net.used(), "second");
    let came_back = net.until_used("first", 10_000);
    assert!((4500..5500).contains(&came_back), "{came_back} ms");
    net.run(1000);
    assert_eq!(net.world.count(|a| *a == Action::HangUp("second".into())), 1);
    assert!(net.world.controller.server().reachable);
    let log = net.world.log();
    assert!(log.contains(&"server second is in use: server first: refused"), "{log:#?}");
    assert!(log.contains(&"server first is in use: it answers steadily again"), "{log:#?}");
}

#[test]
fn a_server_that_flaps_has_to_prove_itself_for_longer() {
    let mut net = Net::new(true, true);
    net.run(10_000);
    let mut steady = Vec::new();
    for _ in 0..4 {
        net.set(0, false);
        net.until_used("second", 10_000);
        net.set(0, true);
        net.until_first_answers();
        steady.push(net.until_used("first", 100_000).div_ceil(1000));
        net.run(5000);
    }
    assert_eq!(steady, [5, 10, 20, 40]);
}

#[test]
fn a_server_that_stops_answering_before_it_is_used_starts_again() {
    let mut net = Net::new(false, true);
    let first = net.until_used("second", 10_000);
    assert!((2000..4000).contains(&first), "{first} ms");
    net.set(0, true);
    net.until_first_answers();
    net.run(3000);
    net.set(0, false);
    net.run(30_000);
    assert_eq!(net.used(), "second");
    net.set(0, true);
    net.until_used("first", 100_000);
}

#[test]
fn when_both_return_at_once_the_first_is_used() {
    let mut net = Net::new(true, true);
    net.run(10_000);
    (0..2).for_each(|rank| net.set(rank, false));
    net.run(30_000);
    assert_eq!(net.used(), "first");
    // The second is heard of a little earlier.
    net.answers[1].2 = true;
    let heard = net.dials("second").len();
    while net.dials("second").len() == heard {
        net.run(50);
    }
    net.answers[0].2 = true;
    net.world.tell(Event::Server(
        "first".into(),
        ServerNews::Up { address: address(SERVER), datagrams: true },
    ));
    net.run(20_000);
    assert_eq!(net.used(), "first");
    assert!(!net.world.log().iter().any(|text| text.contains("server second is in use")));
}

#[test]
fn a_new_address_is_dialled_while_the_session_lives() {
    let mut world = World::settled();
    let dials = |world: &World| -> Vec<Vec<IpAddr>> {
        let done = world.done.iter();
        done.filter_map(|(_, action)| match action {
            Action::Dial { addresses, .. } => Some(addresses.clone()),
            _ => None,
        })
        .collect()
    };
    world.run(300_000);
    assert_eq!(world.count(|action| *action == Action::Resolve("vps".into())), 1);
    world.resolved(&[SERVER, SECOND]);
    world.run(1000);
    assert!(dials(&world).is_empty(), "one address more is no reason to move");
    world.resolved(&[SECOND]);
    assert_eq!(dials(&world), [[address(SECOND)]]);
    assert!(world.controller.server().connected, "the session stays until there is a new one");
    let failed = ServerNews::Failed { reason: "refused".into(), dice: 0 };
    world.tell(Event::Server("vps".into(), failed));
    world.run(400);
    assert_eq!(dials(&world).len(), 2, "tried again");
    assert!(world.controller.server().reachable);
    assert!(world.nft().contains(SERVER) && world.nft().contains(SECOND));
    world.session_up(SECOND);
    world.run(60_000);
    assert_eq!(dials(&world).len(), 2);
    assert_eq!(world.controller.server().in_use, Some(address(SECOND)));
    assert!(world.log().contains(&"server vps: now at 198.51.100.2"));
    assert_eq!(world.in_force(), [InForce::Active; 2]);
}

#[test]
fn a_name_that_cannot_be_resolved_costs_no_session() {
    let mut world = World::settled();
    let unresolved = || {
        let reason = "cannot resolve server name 'vps.example.net': no answer from DNS";
        Event::Server("vps".into(), ServerNews::Resolved(Err(reason.into())))
    };
    (0..3).for_each(|_| world.tell(unresolved()));
    world.run(1000);
    assert!(world.controller.server().reachable && world.nft().contains(SERVER));
    assert_eq!(world.controller.server().addresses, [address(SERVER)]);
    let told =
        world.log().iter().filter(|text| text.contains("its last addresses are kept")).count();
    assert_eq!(told, 1, "{:?}", world.log());

    let mut world = World::new();
    world.tell(Event::Started);
    world.tell(unresolved());
    let trouble = world.controller.server().trouble.clone().unwrap();
    assert!(trouble.starts_with("cannot resolve server name"), "{trouble}");
}

#[test]
fn a_silent_server_is_dialled_at_all_its_addresses() {
    let mut world = World::settled();
    world.resolved(&[SERVER, SECOND, "2001:db8::2"]);
    world.forget();
    (world.rtt, world.control) = ([None; 2], false);
    let is_dial =
        |action: &Action| matches!(action, Action::Dial { addresses, .. } if addresses.len() == 3);
    world.until(5000, |world| world.count(is_dial) == 1);
    assert_eq!(world.count(|action| *action == Action::Resolve("vps".into())), 1, "and resolved");
}

#[test]
fn a_stream_that_breaks_has_the_server_asked_or_dialled() {
    let mut world = World::settled();
    world.tell(Event::ServerSuspected);
    assert_eq!(world.count(|action| *action == Action::PingServer("vps".into())), 1);
    world.session_down("reset");
    world.run(2000);
    for _ in 0..10 {
        world.tell(Event::Server("vps".into(), ServerNews::Failed { reason: "x".into(), dice: 0 }));
    }
    world.forget();
    let is_dial = |action: &Action| matches!(action, Action::Dial { .. });
    world.run(1000);
    assert_eq!(world.count(is_dial), 0, "with backoff");
    world.tell(Event::ServerSuspected);
    world.run(10);
    assert_eq!(world.count(is_dial), 1);
}

#[test]
fn a_key_that_a_server_names_is_adopted_unless_it_is_known() {
    let mut world = World::settled();
    let known = world.controller.config.servers[0].public_key;
    let adopts = |action: &Action| matches!(action, Action::AdoptServerKey { .. });
    world.tell(Event::Server("vps".into(), ServerNews::NewKey(known)));
    assert_eq!(world.count(adopts), 0);
    let key = PublicKey([9; 32]);
    world.tell(Event::Server("vps".into(), ServerNews::NewKey(key)));
    assert_eq!(world.count(adopts), 1);
    world.controller.set_server_key("vps", key);
    world.tell(Event::Server("vps".into(), ServerNews::NewKey(key)));
    assert_eq!(world.count(adopts), 1);
}

/// What is checked, by slot and milliseconds.
fn checks(world: &World) -> Vec<(u64, u8)> {
    let check = |(ms, action): &(u64, Action)| match action {
        Action::AskInternet { outlet, .. } => Some((*ms, outlet.slot)),
        _ => None,
    };
    world.done.iter().filter_map(check).collect()
}

#[test]
fn a_second_opinion_is_asked_for_where_the_server_does_not_answer() {
    let mut world = World::settled();
    world.controller.config.check_url = "http://192.0.2.1/204".parse().ok();
    world.run(60_000);
    assert_eq!(checks(&world), [], "there is no doubt");
    world.forget();
    world.rtt[1] = None;
    world.run(8000);
    let [(ms, 1)] = checks(&world)[..] else { panic!("{:?}", checks(&world)) };
    assert!((1500..6000).contains(&ms), "{ms}");
    let fails = Opinion::Fails("no answer".into());
    world.tell(Event::InternetAsked { slot: 1, opinion: fails.clone() });
    assert_eq!(world.controller.opinion(1), Some(&fails));
    let text = "uplink wanb: the server does not answer; nothing works over it: no answer";
    assert!(world.log().contains(&text), "{:?}", world.log());

    world.forget();
    (world.rtt, world.control) = ([None; 2], false);
    world.run(8000);
    assert_eq!(checks(&world).iter().filter(|(_, slot)| *slot == 0).count(), 1);
    world.tell(Event::InternetAsked { slot: 0, opinion: Opinion::Works });
    world.tell(Event::InternetAsked { slot: 0, opinion: Opinion::Works });
    let told =
        world.log().iter().filter(|text| text.contains("the Internet works over it")).count();
    assert_eq!(told, 1);
    assert_eq!(world.controller.verdict().unwrap(), "the Internet works over wan");
    assert_eq!(world.in_force()[0], InForce::Active);

    (world.rtt, world.control) = ([Some(20), Some(40)], true);
    world.session_up(SERVER);
    world.run(10_000);
    assert_eq!((world.controller.verdict(), world.controller.opinion(0)), (None, None));
}

#[test]
fn without_a_url_nothing_is_checked() {
    let mut world = World::settled();
    (world.rtt, world.control) = ([None; 2], false);
    world.run(60_000);
    assert_eq!(checks(&world), []);
}

#[test]
fn the_family_that_more_uplinks_have_is_dialled_first() {
    let mut world = World::new();
    world.tell(Event::Started);
    world.resolved(&["2001:db8::2", SERVER]);
    world.run(10);
    let dialled = world.done.iter().find_map(|(_, action)| match action {
        Action::Dial { addresses, .. } => Some(addresses.clone()),
        _ => None,
    });
    assert_eq!(dialled.unwrap(), [address(SERVER), address("2001:db8::2")], "no uplink has IPv6");
}

#[test]
fn a_name_is_resolved_as_soon_as_there_is_an_uplink() {
    let mut world = World::new();
    let whole = std::mem::take(&mut world.kernel.addresses);
    world.tell(Event::Started);
    let unresolved = || ServerNews::Resolved(Err("no answer from DNS".into()));
    for _ in 0..8 {
        world.tell(Event::Server("vps".into(), unresolved()));
    }
    world.run(1000);
    world.forget();
    world.kernel.addresses = whole;
    world.tell(Event::Changed);
    world.run(200);
    assert_eq!(world.count(|action| *action == Action::Resolve("vps".into())), 1);
}
