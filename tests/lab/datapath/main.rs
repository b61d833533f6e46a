//! `make bench`: what relaying costs where nothing but the processor limits it, beside shadowsocks-rust
//! and a relay with nothing to it; connections a second; the time to the first byte; memory.
//!
//! Prints Markdown, a section for each of them. `--only SECTION` measures some of them.

#[path = "../mod.rs"]
mod lab;

mod bare;
mod cipher;
mod connections;
mod contenders;
mod load;
mod relaying;
mod soak;

use std::num::NonZero;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use bare::{Hop, Way};
use contenders::{CONTENDERS, Contender};
use lab::traffic::Kind;
use lab::{Lab, LabBuilder, Namespace, Only, Section, UplinkSpec, command, save};
use lexopt::ValueExt;

const USAGE: &str = "usage: datapath [--only relaying|connections|first-byte|idle|busy|soak]... [--relay NAME]... \
                     [--seconds N] [--repeats N] [--soak SECONDS] [--bytes N[M|G|T]] \
                     [--sysctl NAME=VALUE]... [--output FILE]\n\
                     SSLOCAL names the directory of sslocal and ssserver, if they are not on the path";

const SECTIONS: [Section<Options>; 6] = [
    ("relaying", relaying::measure),
    ("connections", connections::rate),
    ("first-byte", connections::first_byte),
    ("idle", connections::idle),
    ("busy", connections::busy),
    ("soak", soak::measure),
];

/// What is measured, and for how long.
struct Options {
    only: Only,
    /// Parts of the contenders' names.
    relays: Vec<String>,
    /// How long each measurement lasts.
    time: Duration,
    /// Measurements of which the median counts.
    repeats: usize,
    /// How long small requests are made.
    soak: Duration,
    /// Bytes that are transferred instead of them.
    bytes: Option<u64>,
    /// Sysctls of the router and the server.
    sysctls: Vec<(String, String)>,
    output: Option<PathBuf>,
    hop: Option<Hop>,
}

impl Options {
    fn parse() -> Result<Options, lexopt::Error> {
        let mut options = Options {
            only: Only::default(),
            relays: Vec::new(),
            time: Duration::from_secs(3),
            repeats: 3,
            soak: Duration::from_secs(60),
            bytes: None,
            sysctls: Vec::new(),
            output: None,
            hop: None,
        };
        let mut arguments = lexopt::Parser::from_env();
        while let Some(argument) = arguments.next()? {
            match argument {
                lexopt::Arg::Long("only") => options.only.parse(&mut arguments, &SECTIONS)?,
                lexopt::Arg::Long("relay") => options.relays.push(arguments.value()?.string()?),
                lexopt::Arg::Long("seconds") => {
                    options.time = Duration::from_secs(arguments.value()?.parse()?);
                }
                lexopt::Arg::Long("repeats") => options.repeats = arguments.value()?.parse()?,
                lexopt::Arg::Long("soak") => {
                    options.soak = Duration::from_secs(arguments.value()?.parse()?);
                }
                lexopt::Arg::Long("bytes") => {
                    options.bytes = Some(arguments.value()?.parse_with(bytes)?);
                }
                lexopt::Arg::Long("sysctl") => {
                    let setting = arguments.value()?.string()?;
                    let (name, value) = setting.split_once('=').ok_or("NAME=VALUE is wanted")?;
                    options.sysctls.push((name.to_owned(), value.to_owned()));
                }
                lexopt::Arg::Long("output") => options.output = Some(arguments.value()?.into()),
                lexopt::Arg::Long("hop") => options.hop = Some(hop(&mut arguments)?),
                other => return Err(other.unexpected()),
            }
        }
        Ok(options)
    }

    /// The contenders wanted whose programs are here.
    fn contenders(&self) -> Vec<Contender> {
        let wanted = CONTENDERS.into_iter().filter(|contender| {
            let name = contender.name();
            self.relays.is_empty() || self.relays.iter().any(|part| name.contains(part))
        });
        wanted.filter(|contender| contender.is_available()).collect()
    }
}

/// `20G`: so many bytes, in decimal units.
fn bytes(text: &str) -> Result<u64, String> {
    let units = [("M", 1_000_000), ("G", 1_000_000_000), ("T", 1_000_000_000_000), ("", 1)];
    let parsed = units.into_iter().find_map(|(unit, bytes)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(bytes)
    });
    parsed.ok_or_else(|| format!("'{text}' is no number of bytes such as 20G"))
}

/// `--hop WAY KIND PORT KIND ADDRESS`: this program as a bare relay.
fn hop(arguments: &mut lexopt::Parser) -> Result<Hop, lexopt::Error> {
    Ok(Hop {
        way: arguments.value()?.parse::<Way>()?,
        listen: (arguments.value()?.parse::<Kind>()?, arguments.value()?.parse()?),
        next: (arguments.value()?.parse::<Kind>()?, arguments.value()?.parse()?),
    })
}

fn main() -> ExitCode {
    command(USAGE, Options::parse, run)
}

fn run(options: Options) -> ExitCode {
    if let Some(hop) = options.hop {
        return hop.run();
    }
    let report = options.only.measure(&SECTIONS, &options);
    save(&report, options.output.as_deref())
}

/// A lab with one uplink that nothing limits, where segments stay as large as the kernel makes them.
fn unshaped(options: &Options) -> Lab {
    built(options, Lab::builder("datapath"))
}

fn built(options: &Options, lab: LabBuilder) -> Lab {
    let lab = lab.uplink(UplinkSpec::new("wan", 0).ipv4_only()).build();
    // Whatever the machine itself goes by: this is the one that any namespace may choose, and as good as
    // any where nothing is lost.
    for namespace in [&lab.lan, &lab.router, &lab.server, &lab.target] {
        namespace.sysctl("net.ipv4.tcp_congestion_control", "reno");
    }
    for (name, value) in &options.sysctls {
        for namespace in [&lab.router, &lab.server] {
            namespace.sysctl(name, value);
        }
    }
    let devices = [
        (&lab.router, "wan"),
        (lab.uplink(0).isp(), lab.uplink(0).isp_device()),
        (&lab.server, "eth0"),
        (&lab.target, "eth0"),
    ];
    for (namespace, device) in devices {
        namespace.ip(&format!("link set {device} gso_max_segs 65535"));
    }
    lab
}

/// The same for transfers: packets are steered by their flow, and router, server and hosts have the same share of
/// the processors.
///
/// With a share by threads the bare relay's 40 leave so little to the hosts that what they send never waits, and is
/// still in the processor's cache when it is copied: ten connections then cost it half.
fn steered(options: &Options) -> Lab {
    let lab = built(options, Lab::builder("datapath").equal_shares());
    for namespace in
        [&lab.lan, &lab.router, lab.uplink(0).isp(), &lab.inet, &lab.server, &lab.target]
    {
        steer_by_flow(namespace);
    }
    lab
}

/// Has a flow's packets handled by one processor, as the queues of a network card do.
///
/// Otherwise that of whoever sent them does it: packets overtake each other, and the other end's kernel runs
/// inside of the receiver's system call, which holds the MPTCP connection meanwhile. What arrives then has
/// no DATA_ACK, and once it fills the send buffer all waits for MPTCP's retransmission timer. Short
/// connections are better off without: one processor interrupts the other for nearly every packet.
fn steer_by_flow(namespace: &Namespace) {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let mask = u32::MAX >> 32_usize.saturating_sub(processors).min(31);
    let script = "for queue in /sys/class/net/*/queues/rx-*; do echo $0 >$queue/rps_cpus; done";
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace.name(), "sh", "-ec", script, &format!("{mask:x}")]);
    assert!(
        command.status().is_ok_and(|status| status.success()),
        "steer the packets of {}",
        namespace.name()
    );
}

/// The median.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
