//! `make bench`: one server with many clients. Streams that are idle: its memory for each, and what it
//! does with the processor when nothing happens. Downloads that share the server's uplink: how evenly,
//! and what a client that means no good takes from the others.
//!
//! Prints Markdown. `--streams N` for another number of idle streams, `--only idle` and `--only sharing`
//! for one of the two.

#[path = "../attacker/mod.rs"]
mod attacker;
#[path = "mod.rs"]
mod lab;

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use attacker::crowd::{Crowd, Shares};
use attacker::{Attacker, Control, Stream};
use lab::traffic::Kind;
use lab::{Lab, ServerProgram, TARGET_V4, command, save};
use lexopt::ValueExt;
use mptcp_bond::config::keys::PrivateKey;
use mptcp_bond::tunnel::session::ClientSession;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const USAGE: &str = "usage: scale [--streams N] [--only idle|sharing] [--output FILE]";
/// Where the target listens.
const PORT: u16 = 80;
const CLIENTS: usize = 100;
const STREAMS: usize = 9000;
/// Open files beside the two of each stream, at the server as well as here.
const OTHER_FILES: u64 = 1000;
/// How long the server is watched while nothing happens.
const IDLE: Duration = Duration::from_secs(20);
/// Mbit/s of the server's uplink, and of what is shared in it.
const UPLINK: u32 = 200;
const RATE: u32 = 180;
/// Downloads of each router, and streams of the one that means no good.
const DOWNLOADS: usize = 20;
const HOSTILE: usize = 500;
/// For how long shares settle, and are measured: thousands of streams begin at once.
const MEASURED: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(20)];

struct Options {
    streams: usize,
    only: Option<String>,
    output: Option<PathBuf>,
}

impl Options {
    fn parse() -> Result<Options, lexopt::Error> {
        let mut options = Options { streams: STREAMS, only: None, output: None };
        let mut arguments = lexopt::Parser::from_env();
        while let Some(argument) = arguments.next()? {
            match argument {
                lexopt::Arg::Long("streams") => options.streams = arguments.value()?.parse()?,
                lexopt::Arg::Long("only") => options.only = Some(arguments.value()?.parse()?),
                lexopt::Arg::Long("output") => options.output = Some(arguments.value()?.into()),
                other => return Err(other.unexpected()),
            }
        }
        Ok(options)
    }
}

fn main() -> ExitCode {
    command(USAGE, Options::parse, |options| {
        let wanted = |part| options.only.as_deref().is_none_or(|only| only == part);
        let mut report = String::new();
        if wanted("idle") {
            report += &idle(&options);
        }
        if wanted("sharing") {
            report += &sharing();
        }
        print!("{report}");
        save(&report, options.output.as_deref())
    })
}

fn idle(options: &Options) -> String {
    allow_files(2 * options.streams as u64 + OTHER_FILES);
    let lab = Lab::two_uplinks("scale");
    let mut server = ServerProgram::start(&lab);
    hold_connections(&lab);
    let before = server.process().resident_kib();
    let mut controls: Vec<Control> =
        (0..CLIENTS).map(|number| connect(&lab, &server, number)).collect();
    let with_clients = server.process().resident_kib();

    let begun = Instant::now();
    let mut sessions: Vec<ClientSession> = controls.iter().map(Control::session).collect();
    let clients = (0..options.streams).map(|number| number % CLIENTS);
    let client = Attacker::new(&lab.target, &server.invite("opener"));
    let target = (TARGET_V4, PORT).into();
    let streams: Vec<Stream> =
        clients.map(|number| client.open_stream(&mut sessions[number], target)).collect();
    let took = begun.elapsed();
    let with_streams = server.process().resident_kib();
    controls.iter_mut().for_each(Control::ping);

    let used = server.process().cpu_time();
    thread::sleep(IDLE);
    let idle = (server.process().cpu_time() - used).as_secs_f64() / IDLE.as_secs_f64();
    let asked = Instant::now();
    let status = server.status().expect("a status");
    let answered = asked.elapsed();
    assert_eq!(status["streams"]["open"], streams.len());
    let each = |more: u64, count: usize| more as f64 * 1.024 / count as f64;
    format!(
        "{CLIENTS} clients and {} idle streams on one server: {:.1} MB without, {:.1} kB for each client, \
         {:.2} kB for each stream; opened in {:.1} s; idle at {:.2} % of a core; a status in {:.0} ms.\n",
        streams.len(),
        before as f64 * 1.024 / 1e3,
        each(with_clients - before, CLIENTS),
        each(with_streams - with_clients, streams.len()),
        took.as_secs_f64(),
        idle * 100.0,
        answered.as_secs_f64() * 1e3,
    )
}

/// Downloads of all clients at once, with the rate of the server's uplink unknown to it, and known.
fn sharing() -> String {
    allow_files(2 * (CLIENTS * DOWNLOADS + HOSTILE) as u64 + OTHER_FILES);
    let mut report = format!(
        "\n{CLIENTS} clients with {DOWNLOADS} downloads each behind {UPLINK} Mbit/s of the server, then beside \
         one with {HOSTILE} streams, half of which it does not read, that floods with connections. Shares are \
         multiples of an equal part.\n\n\
         | `rate` | Hostile | Mbit/s | Least | Median | Largest | Jain's index | Hostile's Mbit/s |\n|---|---|---|---|---|---|---|---|\n"
    );
    for (rate, toml) in [("0", String::new()), ("180Mbit", format!("rate = \"{RATE}Mbit\"\n"))] {
        let lab = Lab::two_uplinks("sharing");
        lab.shape_server(UPLINK);
        let server = ServerProgram::start_with(&lab, &toml);
        let crowd = Crowd::start(&lab, &server, CLIENTS, DOWNLOADS);
        report += &row(rate, "no", crowd.measure(None, MEASURED));
        let hostile = crowd.join_hostile(&server, HOSTILE);
        report += &row(rate, "yes", crowd.measure(Some(&hostile), MEASURED));
    }
    report
}

fn row(rate: &str, hostile: &str, (shares, taken): (Shares, f64)) -> String {
    let [least, median, largest] = shares.spread();
    format!(
        "| {rate} | {hostile} | {:.1} | {least:.2} | {median:.2} | {largest:.2} | {:.4} | {:.1} |\n",
        shares.total() / 1e6,
        shares.jain(),
        taken / 1e6,
    )
}

/// Lets this process and those it starts have so many open files.
fn allow_files(count: u64) {
    if getrlimit(Resource::Nofile).maximum.is_some_and(|maximum| maximum < count) {
        let limit = Rlimit { current: Some(count), maximum: Some(count) };
        setrlimit(Resource::Nofile, limit)
            .expect("raise the limit of open files; or fewer --streams");
    }
}

/// Accepts the target's connections, and keeps them for as long as this program runs.
fn hold_connections(lab: &Lab) {
    let listener = lab.target.enter(|| Kind::Tcp.listen(PORT)).expect("listen at the target");
    thread::spawn(move || {
        let _held: Vec<TcpStream> = listener.incoming().flatten().collect();
    });
}

/// A client of its own name and key.
fn connect(lab: &Lab, server: &ServerProgram, number: usize) -> Control {
    let mut client = Attacker::new(&lab.target, &server.invite(&format!("client{number}")));
    client.key = PrivateKey::from_bytes([number as u8 + 1; 32]);
    client.connect_control(Some(client.token.clone())).expect("it is invited")
}
