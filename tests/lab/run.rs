//! `make run`: two uplinks become one, on show.
//!
//! Builds the lab with 100 and 50 Mbit/s, runs server and agent, downloads from the target to the
//! LAN, cuts the faster uplink on the way and brings it back. Exits with 0 only if the download
//! was intact and faster than the faster uplink. With `--baseline`, plain kernel MPTCP between
//! router and server takes the place of agent and server, for comparison. `--rates 10,5` makes the
//! uplinks slower, for a machine that cannot carry more.

#[path = "mod.rs"]
mod lab;

use std::io::{IsTerminal, stdout};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use lab::traffic::{Kind, Report, TrafficServer, Transfer};
use lab::{
    AgentProgram, Direction, Lab, PlainMptcp, SERVER_V4, ServerProgram, TARGET_V4, UplinkSpec,
    command,
};
use lexopt::ValueExt;

/// Of `wan` and `wanb`, in Mbit/s.
const RATES: [u32; 2] = [100, 50];
/// Bytes downloaded for each Mbit/s of the uplinks: some 25 seconds' worth.
const BYTES_PER_MBIT: u64 = 2_400_000;
/// When the faster uplink is cut, and when it returns.
const CUT: std::ops::Range<Duration> = Duration::from_secs(8)..Duration::from_secs(13);
/// How long the download may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Characters of a bar that is as long as all uplinks together can make it.
const BAR: f64 = 38.0;

fn main() -> ExitCode {
    command("usage: lab [--baseline] [--rates MBITS,MBITS]", Options::parse, run)
}

fn run(options: Options) -> ExitCode {
    let [wan, wanb] = options.rates;
    let bytes = BYTES_PER_MBIT * u64::from(wan + wanb);
    let lab = Lab::builder("run")
        .uplink(UplinkSpec::new("wan", wan))
        .uplink(UplinkSpec::new("wanb", wanb))
        .build();
    println!("lan -- router == wan {wan} Mbit/s, wanb {wanb} Mbit/s == internet -- server, target");
    let outcome = if options.baseline {
        println!("Plain kernel MPTCP between router and server, without agent and tunnel.");
        let plain = PlainMptcp::set_up(&lab);
        Transfer::download(&plain.dialer(SERVER_V4), bytes)
            .map_err(|error| error.to_string())
            .and_then(|transfer| {
                show(&lab, transfer, "ip mptcp endpoint show", &|| {
                    lab.router.ip("mptcp endpoint show")
                })
            })
    } else {
        let begun = Instant::now();
        let server = ServerProgram::start(&lab);
        let agent = AgentProgram::start(&lab, &server);
        println!("Server and agent are paired, the tunnel is up ({:.1?}).", begun.elapsed());
        let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
        Transfer::download(&target.dialer(&lab.lan, Kind::Tcp, TARGET_V4), bytes)
            .map_err(|error| error.to_string())
            .and_then(|transfer| {
                show(&lab, transfer, "mptcp-bond status", &|| agent.status_table())
            })
    };
    match outcome {
        Ok(report) => verdict(&lab, &report),
        Err(error) => {
            println!("FAILED: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    baseline: bool,
    /// Mbit/s of `wan` and `wanb`.
    rates: [u32; 2],
}

impl Options {
    fn parse() -> Result<Options, lexopt::Error> {
        let mut options = Options { baseline: false, rates: RATES };
        let mut arguments = lexopt::Parser::from_env();
        while let Some(argument) = arguments.next()? {
            match argument {
                lexopt::Arg::Long("baseline") => options.baseline = true,
                lexopt::Arg::Long("rates") => {
                    options.rates = arguments.value()?.parse_with(rates)?;
                }
                other => return Err(other.unexpected()),
            }
        }
        Ok(options)
    }
}

fn rates(text: &str) -> Result<[u32; 2], String> {
    let parse = |rate: &str| rate.parse().ok().filter(|rate| (1..=10_000).contains(rate));
    text.split_once(',')
        .and_then(|(wan, wanb)| Some([parse(wan)?, parse(wanb)?]))
        .ok_or_else(|| "two numbers from 1 to 10000 are wanted, for instance 40,20".to_owned())
}

/// Prints a line a second until the transfer ends, and cuts an uplink meanwhile. Then shows what
/// `command` said in the download's last second.
fn show(
    lab: &Lab,
    transfer: Transfer,
    command: &str,
    status: &dyn Fn() -> String,
) -> Result<Report, String> {
    let names = lab.uplinks().iter().map(|uplink| format!("{:>9}", uplink.device()));
    println!("\n{:>6}{}{:>10}   Mbit/s", "time", names.collect::<String>(), "download");
    let begun = Instant::now();
    let received = || -> Vec<u64> { lab.uplinks().iter().map(|uplink| uplink.bytes().0).collect() };
    let mut before = (begun, received(), 0);
    let mut cut = false;
    let mut shown = String::new();
    for second in 1.. {
        let tick = begun + Duration::from_secs(second);
        while Instant::now() < tick && !transfer.is_finished() {
            std::thread::sleep(Duration::from_millis(5));
        }
        if transfer.is_finished() || begun.elapsed() > LIMIT {
            break;
        }
        let now = (Instant::now(), received(), transfer.report().bytes);
        print_rates(lab, second, &before, &now);
        before = now;
        let wanted = CUT.contains(&begun.elapsed());
        if wanted != cut {
            let uplink = lab.uplink(0);
            if wanted {
                println!("        {} is cut: it swallows every packet", uplink.device());
                uplink.blackhole(Direction::Both);
            } else {
                println!("        {} is back", uplink.device());
                uplink.restore();
            }
            cut = wanted;
        }
        shown = status();
    }
    println!("\n$ {command}    # in the last second\n{shown}");
    transfer.finish(LIMIT.saturating_sub(begun.elapsed()))
}

type Sample = (Instant, Vec<u64>, u64);

fn print_rates(lab: &Lab, second: u64, before: &Sample, now: &Sample) {
    let seconds = now.0.duration_since(before.0).as_secs_f64();
    let rate = |new: u64, old: u64| new.saturating_sub(old) as f64 * 8.0 / seconds / 1e6;
    let uplinks: Vec<f64> =
        now.1.iter().zip(&before.1).map(|(new, old)| rate(*new, *old)).collect();
    let columns: String = uplinks.iter().map(|rate| format!("{rate:9.1}")).collect();
    let mut line = format!("{columns}{:10.1}", rate(now.2, before.2));
    if stdout().is_terminal() {
        let most: u32 = lab.uplinks().iter().map(|uplink| uplink.spec().rate.down).sum();
        line += "   ";
        for (rate, symbol) in uplinks.iter().zip(["\u{2588}", "\u{2592}", "\u{2591}"]) {
            line += &symbol.repeat((rate / f64::from(most) * BAR).round() as usize);
        }
    }
    println!("{second:>4} s{line}");
}

fn verdict(lab: &Lab, report: &Report) -> ExitCode {
    let fastest = lab.uplinks().iter().map(|uplink| uplink.spec().rate.down).max().unwrap_or(0);
    println!(
        "{} MB intact in {:.1} s: {:.1} Mbit/s, cut included; before the cut {:.1} Mbit/s; \
         longest pause {:.2} s.",
        report.bytes / 1_000_000,
        report.last.as_secs_f64(),
        report.goodput(),
        report.goodput_between(Duration::from_secs(1), CUT.start),
        report.longest_pause().as_secs_f64(),
    );
    if report.goodput() > f64::from(fastest) {
        ExitCode::SUCCESS
    } else {
        println!("FAILED: not faster than the faster uplink, {fastest} Mbit/s");
        ExitCode::FAILURE
    }
}
