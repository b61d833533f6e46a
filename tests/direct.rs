//! What is not tunnelled: it leaves over a live uplink, moves when that dies, and stays otherwise.

mod lab;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::traffic::{Dialer, Kind, TrafficServer, UdpEcho, UdpFlow};
use lab::{
    AgentProgram, Direction, LAN_CLIENT_V4, Lab, Process, ServerProgram, TARGET_V4, TARGET_V6,
    Uplink, two_of_three, until,
};

const SECOND: Duration = Duration::from_secs(1);
/// How long anything may take that should happen soon.
const LIMIT: Duration = Duration::from_secs(10);
/// The longest pause of a UDP flow whose uplink dies.
const UDP_PAUSE: Duration = Duration::from_millis(1500);
/// Sooner than anything that was lost is tried again.
const AT_ONCE: Duration = SECOND;
/// What no person notices.
const UNNOTICED: Duration = Duration::from_millis(250);
/// The UDP echo's port.
const ECHO: u16 = 5004;
/// TCP to this port is bypassed.
const BYPASSED: u16 = 8080;
const BYPASS: &str = "config bypass 'direct'\n\tlist dport '8080'\n";

/// The LAN has unique local IPv6 addresses, which the router translates as it does IPv4.
fn translate_ipv6(lab: &Lab) {
    lab.lan.ip("address delete 2001:db8:1:77::2/64 dev eth0");
    lab.router.nft(
        "table ip6 nat66 {
           chain srcnat {
             type nat hook postrouting priority srcnat;
             ip6 saddr fd77::/64 oifname { wan, wanb } masquerade
           }
         }",
    );
}

/// How others see what leaves over an uplink: IPv4 is translated by its provider, IPv6 is not.
fn seen_over(lab: &Lab, index: usize, v6: bool) -> IpAddr {
    match v6 {
        true => lab.uplink(index).address_v6().into(),
        false => Ipv4Addr::new(203, 0, 113, if index == 0 { 6 } else { 10 }).into(),
    }
}

/// The number of the uplink that a flow leaves over.
fn uplink_of(lab: &Lab, flow: &UdpFlow) -> usize {
    let seen = flow.seen_as();
    let over = |index: &usize| seen_over(lab, *index, seen.is_ipv6()) == seen;
    [0, 1].into_iter().find(over).expect("an uplink's address")
}

fn all_up(agent: &mut AgentProgram) {
    agent.wait_status("both uplinks are up", |status| {
        status["uplinks"].as_array().is_some_and(|all| all.iter().all(|it| it["state"] == "up"))
    });
}

fn is_down(agent: &mut AgentProgram, index: usize) {
    agent.wait_status("an uplink is down", |status| status["uplinks"][index]["state"] == "down");
}

/// A bypassed connection whose other side sends back what comes.
struct Echoed(TcpStream);

impl Echoed {
    fn open(dialer: &Dialer) -> Echoed {
        let mut stream = dialer.connect().expect("connect");
        stream.set_read_timeout(Some(LIMIT)).expect("set a limit");
        stream.write_all(b"echo\n").expect("ask");
        Echoed(stream)
    }

    #[track_caller]
    fn assert_lives(&mut self) {
        self.0.write_all(b"key").expect("send");
        let mut answer = [0; 3];
        self.0.read_exact(&mut answer).expect("the connection lives");
    }
}

/// A running `ping` from the LAN.
fn ping(lab: &Lab) -> Process {
    let mut command = Command::new("ping");
    command.args(["-n", "-i", "0.1", &TARGET_V4.to_string()]);
    lab.spawn(&lab.lan, "ping", command)
}

/// How an uplink goes and comes.
struct Cut {
    name: &'static str,
    go: fn(&Uplink),
    come: fn(&Uplink),
}

const CUTS: [Cut; 4] = [
    Cut {
        name: "black hole",
        go: |uplink| uplink.blackhole(Direction::Both),
        come: Uplink::restore,
    },
    Cut { name: "no carrier", go: Uplink::carrier_down, come: Uplink::carrier_up },
    Cut { name: "link down", go: Uplink::link_down, come: Uplink::link_up },
    Cut { name: "address lost", go: Uplink::drop_address, come: Uplink::obtain_address },
];

#[test]
fn flows_leave_a_dead_uplink_and_no_other() {
    let lab = Lab::two_uplinks("direct");
    translate_ipv6(&lab);
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start_with(&lab, &server, BYPASS);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, BYPASSED);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let _echo = UdpEcho::start(&lab.target, ECHO);
    let flows = [TARGET_V4.into(), TARGET_V6.into()]
        .map(|target: IpAddr| UdpFlow::start(&lab.lan, SocketAddr::new(target, ECHO)));
    let ping = ping(&lab);
    for Cut { name, go, come } in CUTS {
        // Measured for a while, an uplink counts as carrying data and is probed densely.
        sleep(2 * SECOND);
        let used = uplink_of(&lab, &flows[0]);
        let (dying, other) = (lab.uplink(used), 1 - used);
        let on_other = || flows.iter().all(|flow| uplink_of(&lab, flow) == other);
        let pause_since = |start| {
            let pauses = flows.iter().map(|flow| flow.longest_pause_since(start));
            pauses.max().unwrap_or_default()
        };
        let cut = Instant::now();
        go(dying);
        until("the flows have moved", LIMIT, || on_other().then_some(()));
        let pause = pause_since(cut);
        let seen = dialer.seen_as().expect("connect");
        assert_eq!(seen, seen_over(&lab, other, false), "{name}: new TCP");
        let mut direct = Echoed::open(&dialer);
        direct.assert_lives();
        let replies = ping.output().lines().count();
        let more = || (ping.output().lines().count() > replies + 5).then_some(());
        until("ping goes on", LIMIT, more);
        is_down(&mut agent, used);

        let back = Instant::now();
        come(dying);
        all_up(&mut agent);
        direct.assert_lives();
        sleep(SECOND);
        direct.assert_lives();
        let at_return = pause_since(back);
        println!("{name} of uplink {used}: pause {pause:.2?}; at its return {at_return:.2?}");
        assert!(on_other(), "{name}: a live flow is not moved");
        assert!(pause <= UDP_PAUSE, "{name}: a pause of {pause:.2?}");
        assert!(at_return < AT_ONCE, "{name}: a pause of {at_return:.2?} at the return");
    }
}

#[test]
fn what_is_new_leaves_over_a_live_uplink() {
    let lab = Lab::two_uplinks("direct-new");
    let mut server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start_with(&lab, &server, BYPASS);
    let targets = [80, BYPASSED].map(|port| TrafficServer::start(&lab.target, Kind::Tcp, port));
    let from = |namespace, target: &TrafficServer| {
        target.dialer(namespace, Kind::Tcp, TARGET_V4).seen_as().expect("connect")
    };
    let bypassed = || from(&lab.lan, &targets[1]);
    let routers_own = || from(&lab.router, &targets[0]);
    let [wan, wanb] = [0, 1].map(|index| seen_over(&lab, index, false));
    assert_eq!([bypassed(), routers_own()], [wan; 2]);

    let gateway = lab.uplink(1).gateway_v4().expect("a gateway");
    lab.router.ip(&format!("route add {TARGET_V4}/32 via {gateway} dev wanb"));
    assert_eq!([bypassed(), routers_own()], [wanb; 2], "a route of one's own");
    lab.router.ip(&format!("route delete {TARGET_V4}/32"));

    lab.router.ip(&format!("route add default via {gateway} dev wanb table 77"));
    lab.router.ip("rule add priority 1001 fwmark 0x100/0x3f00 lookup 77");
    lab.router.nft(
        "table ip other {
           chain prerouting {
             type filter hook prerouting priority mangle;
             tcp dport 8080 meta mark set 0x100
           }
         }",
    );
    assert_eq!(bypassed(), wanb, "what others mark is theirs");
    lab.router.nft("delete table ip other");

    lab.uplink(0).blackhole(Direction::Both);
    is_down(&mut agent, 0);
    // Silence is not held against an uplink before another is heard; and the router's own connections do not move.
    let led = || lab.router.ip("rule").contains("\n750:").then_some(());
    until("the router's own are led elsewhere", LIMIT, led);
    assert_eq!([bypassed(), routers_own()], [wanb; 2], "over the one that is left");

    server.kill();
    agent.wait_status("the loss is noticed", |status| status["state"] == "direct");
    let begun = Instant::now();
    assert_eq!(from(&lab.lan, &targets[0]), wanb, "without its server");
    assert!(begun.elapsed() < SECOND, "{:?}", begun.elapsed());
    assert_eq!(routers_own(), wanb, "without its server");

    lab.uplink(0).restore();
    server.restart();
    agent.wait_ready();
    until("main's choice counts again", 2 * LIMIT, || (bypassed() == wan).then_some(()));
    assert_eq!(routers_own(), wan);
}

#[test]
fn a_forwarded_port_answers_over_the_uplink_it_was_asked_at() {
    let lab = Lab::two_uplinks("direct-inbound");
    let server = ServerProgram::start(&lab);
    let _agent = AgentProgram::start(&lab, &server);
    let host = TrafficServer::start(&lab.lan, Kind::Tcp, 2222);
    lab.router.nft(&format!(
        "add rule inet fw4 forward ct status dnat accept
         table ip forwards {{
           chain dstnat {{
             type nat hook prerouting priority dstnat;
             iifname {{ wan, wanb }} tcp dport 2222 dnat to {LAN_CLIENT_V4}
           }}
         }}"
    ));
    for (index, uplink) in lab.uplinks().iter().enumerate() {
        // Somebody with a public address.
        let (router, public) = (uplink.address_v4(), seen_over(&lab, index, false));
        uplink.isp().ip(&format!("route add {router}/32 dev cpe src {public}"));
        let dialer = host.dialer(uplink.isp(), Kind::Tcp, router);
        assert_eq!(dialer.seen_as().expect("connect"), public, "over {}", uplink.device());
    }
}

/// Sends a packet to a port that is said to be closed; how long the refusal took.
#[track_caller]
fn refusal(lab: &Lab, target: SocketAddr) -> Duration {
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let begun = Instant::now();
    let answer = lab.lan.enter(|| {
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.connect(target)?;
        socket.send(b"hello")?;
        socket.recv(&mut [0; 10])
    });
    let error = answer.expect_err("nobody answers");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
    begun.elapsed()
}

#[test]
fn quic_is_refused_at_once_and_what_runs_goes_on() {
    let lab = Lab::two_uplinks("quic");
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let _echo = UdpEcho::start(&lab.target, 443);
    let targets =
        [TARGET_V4.into(), TARGET_V6.into()].map(|address: IpAddr| SocketAddr::new(address, 443));
    let flows = targets.map(|target| UdpFlow::start(&lab.lan, target));
    let config = std::fs::read_to_string(agent.config()).expect("read the configuration");
    let reject = format!("{config}\nconfig agent 'agent'\n\toption quic 'reject'\n");
    std::fs::write(agent.config(), reject).expect("write the configuration");
    agent.reload();
    let in_force = || {
        let table = lab.router.run("nft", &["list", "table", "inet", "mptcp_bond"]);
        table.contains("reject").then_some(())
    };
    until("QUIC is refused", LIMIT, in_force);
    let begun = Instant::now();
    for target in targets {
        let refused = two_of_three(|| {
            let took = refusal(&lab, target);
            println!("{target}: refused after {took:.2?}");
            if took < UNNOTICED { Ok(()) } else { Err(took) }
        });
        assert_eq!(refused, Ok(()), "{target}");
    }
    sleep(2 * SECOND);
    for flow in flows {
        assert!(flow.longest_pause_since(begun) < AT_ONCE, "a call goes on");
    }
}
