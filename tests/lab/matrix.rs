//! `make bench`: what pairs of unequal uplinks are worth.
//!
//! Measures each link alone through the tunnel, then each pair of links through the tunnel and with
//! plain kernel MPTCP between router and server, down and up. Prints a Markdown table: goodput as a
//! share of the better link alone and of the sum of both, the median of some transfers.

#[path = "mod.rs"]
mod lab;

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

use lab::traffic::{Dialer, Kind, TrafficServer, Transfer};
use lab::{
    AgentProgram, Direction, Lab, PlainMptcp, SERVER_V4, ServerProgram, TARGET_V4, UplinkSpec,
    command, save, schedule_first, until,
};
use lexopt::ValueExt;

const USAGE: &str = "usage: matrix [--pair LINK,LINK]... [--equal] [--repeats N] [--seconds N] \
                     [--no-plain] [--output FILE]\na LINK is MBITS/RTT_MS or MBITS/RTT_MS/LOSS_PERCENT";

/// The links that are paired when no pairs are given.
const LINKS: [&str; 6] = ["100/10", "100/40", "50/20", "20/60/1", "5/300", "300/30"];
/// The part of a transfer that does not count: slow start.
const RAMP: Duration = Duration::from_secs(2);
/// How long a pair of uplinks is in use before transfers count: the agent finds out meanwhile whether the
/// bond is faster without one of them. What a transfer gets at first is told apart.
const LEARNING: Duration = Duration::from_secs(15);
/// The port of the lab's traffic server.
const PORT: u16 = 80;

/// A kind of uplink, the same both ways.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Link {
    /// Mbit/s.
    rate: u32,
    /// Round-trip time of an idle link, in milliseconds.
    rtt: u32,
    /// Packets lost in each direction, in percent.
    loss: f64,
}

impl FromStr for Link {
    type Err = String;

    fn from_str(text: &str) -> Result<Link, String> {
        let wrong = || format!("'{text}' is not a link such as 20/60/1");
        let mut fields = text.split('/');
        let mut next = || fields.next().and_then(|field| field.parse::<f64>().ok());
        let (Some(rate), Some(rtt), loss) = (next(), next(), next().unwrap_or(0.0)) else {
            return Err(wrong());
        };
        let sane = rate >= 1.0 && rtt >= 0.0 && (0.0..100.0).contains(&loss);
        let link = Link { rate: rate as u32, rtt: rtt as u32, loss };
        if sane && link.to_string() == text { Ok(link) } else { Err(wrong()) }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.rate, self.rtt)?;
        if self.loss > 0.0 { write!(f, "/{}", self.loss) } else { Ok(()) }
    }
}

struct Options {
    pairs: Vec<[Link; 2]>,
    repeats: usize,
    /// How long a transfer counts, after [`RAMP`].
    counted: Duration,
    plain: bool,
    output: Option<PathBuf>,
}

impl Options {
    fn parse() -> Result<Options, lexopt::Error> {
        let mut options = Options {
            pairs: Vec::new(),
            repeats: 3,
            counted: Duration::from_secs(4),
            plain: true,
            output: None,
        };
        let mut equal = false;
        let mut arguments = lexopt::Parser::from_env();
        while let Some(argument) = arguments.next()? {
            match argument {
                lexopt::Arg::Long("pair") => {
                    options.pairs.push(arguments.value()?.parse_with(pair)?);
                }
                lexopt::Arg::Long("equal") => equal = true,
                lexopt::Arg::Long("repeats") => options.repeats = arguments.value()?.parse()?,
                lexopt::Arg::Long("seconds") => {
                    options.counted = Duration::from_secs(arguments.value()?.parse()?);
                }
                lexopt::Arg::Long("no-plain") => options.plain = false,
                lexopt::Arg::Long("output") => options.output = Some(arguments.value()?.into()),
                other => return Err(other.unexpected()),
            }
        }
        if options.pairs.is_empty() {
            let links = LINKS.map(|link| link.parse().expect("the links are well-formed"));
            for (index, first) in links.iter().enumerate() {
                let others = links.iter().skip(if equal { index } else { index + 1 });
                options.pairs.extend(others.map(|second| [*first, *second]));
            }
        }
        Ok(options)
    }
}

fn pair(text: &str) -> Result<[Link; 2], String> {
    let (first, second) = text.split_once(',').ok_or("two links are wanted, LINK,LINK")?;
    Ok([first.parse()?, second.parse()?])
}

/// Goodput in Mbit/s.
#[derive(Clone, Copy, Debug)]
struct Goodput {
    down: f64,
    up: f64,
}

/// What a pair of links is worth.
struct Row {
    links: [Link; 2],
    alone: [Goodput; 2],
    /// Before the agent has learned anything about the pair.
    at_first: Goodput,
    bond: Goodput,
    plain: Option<Goodput>,
}

fn main() -> ExitCode {
    command(USAGE, Options::parse, run)
}

fn run(options: Options) -> ExitCode {
    schedule_first();
    let begun = Instant::now();
    let mut alone = BTreeMap::new();
    for link in options.pairs.iter().flatten() {
        alone.entry(link.to_string()).or_insert_with(|| {
            let (_, goodput) = through_tunnel(&[*link], Duration::ZERO, &options);
            eprintln!("{link} alone: {goodput}");
            goodput
        });
    }
    let mut rows = Vec::new();
    for (number, links) in (1..).zip(&options.pairs) {
        let alone = links.map(|link| alone[&link.to_string()]);
        let (at_first, bond) = through_tunnel(links, LEARNING, &options);
        let plain = options.plain.then(|| plain(links, &options));
        let row = Row { links: *links, alone, at_first, bond, plain };
        eprintln!("{number} of {}: {}", options.pairs.len(), row.summary());
        rows.push(row);
    }
    let table = table(&rows, &options, begun.elapsed());
    println!("{table}");
    save(&table, options.output.as_deref())
}

fn build(links: &[Link]) -> Lab {
    let devices = ["wan", "wanb"];
    let mut builder = Lab::builder("matrix");
    for (link, device) in links.iter().zip(devices) {
        let one_way = Duration::from_millis(link.rtt.into()) / 2;
        builder = builder.uplink(UplinkSpec::new(device, link.rate).delay(one_way));
    }
    let lab = builder.build();
    for (link, uplink) in links.iter().zip(lab.uplinks()) {
        uplink.loss(Direction::Both, link.loss);
    }
    lab
}

/// Between LAN and target, with server and agent: at first, and after `learning`.
fn through_tunnel(links: &[Link], learning: Duration, options: &Options) -> (Goodput, Goodput) {
    let lab = build(links);
    let server = ServerProgram::start(&lab);
    let _agent = AgentProgram::start(&lab, &server);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, PORT);
    measure(&lab, &target, &target.dialer(&lab.lan, Kind::Tcp, TARGET_V4), learning, options)
}

/// Between router and server, with nothing but the kernel as it comes.
fn plain(links: &[Link], options: &Options) -> Goodput {
    let lab = build(links);
    let plain = PlainMptcp::set_up(&lab);
    measure(&lab, plain.server(), &plain.dialer(SERVER_V4), Duration::ZERO, options).1
}

/// The first transfer down and up, which lasts `learning` longer, and the median of some more.
fn measure(
    lab: &Lab,
    server: &TrafficServer,
    dialer: &Dialer,
    learning: Duration,
    options: &Options,
) -> (Goodput, Goodput) {
    let way = |begin: &dyn Fn() -> std::io::Result<Transfer>| {
        let transfer = |more: Duration| {
            transfer(lab, begin().expect("connect to the traffic server"), more, options.counted)
        };
        let first = if learning > Duration::ZERO { transfer(learning) } else { 0.0 };
        let mut rates: Vec<f64> = (0..options.repeats).map(|_| transfer(Duration::ZERO)).collect();
        eprintln!("  {first:.0}, then {rates:.0?} Mbit/s");
        rates.sort_by(f64::total_cmp);
        (first, rates[rates.len() / 2])
    };
    let down = way(&|| Transfer::download(dialer, Transfer::ENDLESS));
    let up = way(&|| Transfer::upload(server, dialer, Transfer::ENDLESS));
    (Goodput { down: down.0, up: up.0 }, Goodput { down: down.1, up: up.1 })
}

/// Goodput after the ramp, in Mbit/s, of a transfer that goes on for `more`.
fn transfer(lab: &Lab, transfer: Transfer, more: Duration, counted: Duration) -> f64 {
    let end = RAMP + counted;
    std::thread::sleep(end + more + Duration::from_millis(50));
    let report = transfer.stop();
    assert_eq!(report.corrupt_at, None, "what arrives is what was sent");
    // What is still under way would be in the way of the next transfer.
    let moved = || lab.uplinks().iter().map(|uplink| uplink.bytes()).collect::<Vec<_>>();
    let mut before = moved();
    until("the uplinks are quiet", Duration::from_secs(120), || {
        std::thread::sleep(Duration::from_millis(400));
        let now = moved();
        let quiet = |((rx, tx), (rx_before, tx_before)): (&(u64, u64), &(u64, u64))| {
            rx - rx_before + tx - tx_before < 10_000
        };
        let still = now.iter().zip(&before).all(quiet);
        before = now;
        still.then_some(())
    });
    report.goodput_between(RAMP, end)
}

impl fmt::Display for Goodput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} down, {:.1} up", self.down, self.up)
    }
}

/// A row's goodput one way: of the pair at first, of the pair, of plain MPTCP, of the better link, of both
/// added.
struct Way {
    name: &'static str,
    at_first: f64,
    bond: f64,
    plain: Option<f64>,
    best: f64,
    sum: f64,
}

impl Row {
    fn ways(&self) -> [Way; 2] {
        let way = |name, of: fn(&Goodput) -> f64| {
            let [first, second] = self.alone.map(|goodput| of(&goodput));
            Way {
                name,
                at_first: of(&self.at_first),
                bond: of(&self.bond),
                plain: self.plain.as_ref().map(of),
                best: first.max(second),
                sum: first + second,
            }
        };
        [way("down", |goodput| goodput.down), way("up", |goodput| goodput.up)]
    }

    fn summary(&self) -> String {
        let [first, second] = self.links;
        let ways = self.ways().map(|Way { name, bond, plain, best, sum, .. }| {
            let plain = plain.map(|plain| format!(", plain {plain:.1}")).unwrap_or_default();
            format!(
                "{name} {bond:.1} ({:.2} of the best, {:.2} of the sum{plain})",
                bond / best,
                bond / sum
            )
        });
        format!("{first} + {second}: {}", ways.join("; "))
    }
}

fn table(rows: &[Row], options: &Options, taken: Duration) -> String {
    let mut text = format!(
        "Goodput in Mbit/s of pairs of uplinks (Mbit/s / RTT in ms / loss in percent), \
         medians of {} transfers of {} s, the first {} s of which do not count. A transfer of {} s each \
         way goes before, in which the agent learns what the pair is worth; \"at first\" is the beginning \
         of that.\n\n\
         | pair | way | best alone | sum | bond | of best | of sum | at first, of best | plain MPTCP \
         | of best |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
        options.repeats,
        (RAMP + options.counted).as_secs(),
        RAMP.as_secs(),
        (RAMP + options.counted + LEARNING).as_secs()
    );
    let mut shares = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    for row in rows {
        let [first, second] = row.links;
        for Way { name, at_first, bond, plain, best, sum } in row.ways() {
            let (of_best, of_sum, first_of_best) = (bond / best, bond / sum, at_first / best);
            let of_plain = plain.map(|plain| plain / best);
            shares[0].push(of_best);
            shares[1].push(of_sum);
            shares[2].push(first_of_best);
            shares[3].extend(of_plain);
            let cell = |value: Option<f64>, digits: usize| {
                value.map(|value| format!("{value:.digits$}")).unwrap_or_default()
            };
            let _ = writeln!(
                text,
                "| {first} + {second} | {name} | {best:.1} | {sum:.1} | {bond:.1} | {of_best:.2} \
                 | {of_sum:.2} | {first_of_best:.2} | {} | {} |",
                cell(plain, 1),
                cell(of_plain, 2)
            );
        }
    }
    let [best, sum, at_first, plain] = shares.map(|shares| {
        if shares.is_empty() {
            return String::new();
        }
        format!("{:.2}", shares.iter().sum::<f64>() / shares.len() as f64)
    });
    let _ = writeln!(text, "| mean | | | | | {best} | {sum} | {at_first} | | {plain} |");
    let _ = writeln!(text, "\nMeasured in {} min.", taken.as_secs().div_ceil(60));
    text
}
