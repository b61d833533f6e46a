//! The main promise: two lines become one. Goodput between LAN and target is compared with what plain
//! kernel MPTCP reaches between router and server in the same run.

mod lab;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use lab::traffic::{Iperf3, Kind, TrafficServer, Transfer};
use lab::{
    AgentProgram, Lab, LabBuilder, PlainMptcp, SERVER_V4, SERVER_V6, ServerProgram, TARGET_V4,
    TARGET_V6, UplinkSpec, two_of_three,
};

/// The share of plain MPTCP's goodput that has to remain.
const SHARE: f64 = 0.97;
/// Measurements of a pair, the best of which counts: the machine has other work now and then.
const ATTEMPTS: usize = 3;
/// The port of the lab's traffic server.
const PORT: u16 = 80;

/// Goodput of a tunnel and of plain MPTCP, in Mbit/s.
struct Pair {
    what: String,
    plain: f64,
    tunnel: f64,
}

impl Pair {
    fn share(&self) -> f64 {
        self.tunnel / self.plain
    }
}

/// Both directions, one connection and ten at once.
fn loads() -> impl Iterator<Item = Iperf3> {
    [(true, 1), (true, 10), (false, 1), (false, 10)]
        .into_iter()
        .map(|(download, connections)| Iperf3 { download, connections, seconds: 4 })
}

/// Compares all loads over one address family of the uplinks.
fn compare(name: &str, server_address: IpAddr, target_address: IpAddr) {
    let lab = Lab::two_uplinks(name);
    let server = ServerProgram::start_at(&lab, server_address);
    let mut agent = AgentProgram::paired(&lab, &server, "");
    let mut slow: Vec<Iperf3> = loads().collect();
    let mut best: Vec<Pair> = Vec::new();
    for _ in 0..ATTEMPTS {
        let plain: Vec<f64> = {
            let plain = PlainMptcp::set_up(&lab);
            slow.iter().map(|load| plain.iperf3(server_address, *load)).collect()
        };
        agent.restart();
        let measure =
            |load: &Iperf3| load.run(&lab, Kind::Tcp, &lab.lan, &lab.target, target_address);
        let tunnel: Vec<f64> = slow.iter().map(measure).collect();
        assert!(agent.stop().success());
        let mut again = Vec::new();
        for ((load, plain), tunnel) in slow.into_iter().zip(plain).zip(tunnel) {
            let pair = Pair { what: format!("{load:?}"), plain, tunnel };
            let share = pair.share();
            println!("{name} {}: plain {plain:.1}, tunnel {tunnel:.1}, {share:.3}", pair.what);
            if share < SHARE {
                again.push(load);
            }
            best.push(pair);
        }
        slow = again;
    }
    let failed: Vec<String> = slow.iter().map(|load| format!("{load:?}")).collect();
    assert!(failed.is_empty(), "under {SHARE} of plain MPTCP in {ATTEMPTS} attempts: {failed:?}");
    assert!(best.iter().any(|pair| pair.plain > 130.0), "plain MPTCP itself bonds here");
}

#[test]
fn lan_gets_97_percent_of_plain_mptcp_over_ipv4() {
    compare("throughput-v4", SERVER_V4.into(), TARGET_V4.into());
}

#[test]
fn lan_gets_97_percent_of_plain_mptcp_over_ipv6() {
    compare("throughput-v6", SERVER_V6.into(), TARGET_V6.into());
}

/// A scenario of the kernel's simult_flows.sh: two links, rates in Mbit/s, one-way delays in ms.
struct Scenario {
    name: &'static str,
    rates: [u32; 2],
    delays: [u64; 2],
    limit: Duration,
}

const BALANCED: Duration = Duration::from_millis(7906);
const UNBALANCED: Duration = Duration::from_millis(11921);

#[rustfmt::skip]
const SCENARIOS: [Scenario; 5] = [
    Scenario { name: "balanced", rates: [10, 10], delays: [0, 0], limit: BALANCED },
    Scenario { name: "balanced, unbalanced delay", rates: [10, 10], delays: [1, 25], limit: BALANCED },
    Scenario { name: "unbalanced", rates: [10, 3], delays: [0, 0], limit: UNBALANCED },
    Scenario { name: "unbalanced, unbalanced delay", rates: [10, 3], delays: [1, 25], limit: UNBALANCED },
    Scenario { name: "unbalanced, opposed delay", rates: [10, 3], delays: [25, 1], limit: UNBALANCED },
];

/// Bytes of the large direction and of the small one.
const LARGE: u64 = 16_777_216;
const SMALL: u64 = 81_920;

#[test]
fn the_kernels_simultaneous_flows_pass_through_the_tunnel() {
    // All at once, each in a lab of its own: they take long because the links are slow.
    let labs = Lab::together(SCENARIOS.iter().map(Scenario::lab));
    std::thread::scope(|scope| {
        for (scenario, lab) in SCENARIOS.iter().zip(labs.iter()) {
            scope.spawn(|| scenario.pass(lab));
        }
    });
}

impl Scenario {
    fn lab(&self) -> LabBuilder {
        let uplink = |index: usize, device: &str| {
            UplinkSpec::new(device, self.rates[index])
                .delay(Duration::from_millis(self.delays[index]))
        };
        let name = format!("simultaneous-flows-{}", self.name.replace(", ", "-").replace(' ', "-"));
        Lab::builder(&name).uplink(uplink(0, "wan")).uplink(uplink(1, "wanb"))
    }

    /// Passes the flows, the large one in each direction, through a tunnel.
    fn pass(&self, lab: &Lab) {
        let server = ServerProgram::start(lab);
        let _agent = AgentProgram::start(lab, &server);
        let target = TrafficServer::start(&lab.target, Kind::Tcp, PORT);
        let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
        let exchange = |(up, down)| {
            let begun = Instant::now();
            let exchange = Transfer::exchange(&target, &dialer, up, down).unwrap();
            let outcome = exchange.finish(2 * self.limit);
            let taken = begun.elapsed();
            println!("{}: {up} up, {down} down: {taken:.2?}", self.name);
            outcome.unwrap_or_else(|error| panic!("{}: {error}", self.name));
            taken
        };
        for sizes in [(LARGE, SMALL), (SMALL, LARGE)] {
            let timed = two_of_three(|| match exchange(sizes) {
                taken if taken <= self.limit => Ok(()),
                taken => Err(format!("{}: {taken:?} of {:?}", self.name, self.limit)),
            });
            timed.unwrap_or_else(|slow| panic!("{slow}"));
        }
    }
}
