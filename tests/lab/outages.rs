//! `make bench`: what people notice of outages, what a flapping uplink takes from the other one, and
//! what an agent costs that has nothing to do.
//!
//! Prints Markdown, a section for each of them. `--only SECTION` measures some of them, `--failure NAME`
//! some of the failures, and `--repeats N` says how often.

#[path = "mod.rs"]
mod lab;

use std::fmt::Write;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::failures::{FAILURES, Failure, Pauses, Users, all_well};
use lab::flapping::FLAPPINGS;
use lab::idle::Idle;
use lab::traffic::open_idle;
use lab::{
    AgentProgram, Lab, Only, SERVER_V4, Section, ServerProgram, command, save, schedule_first,
    until,
};
use lexopt::ValueExt;

const USAGE: &str = "usage: outages [--only failures|server|flapping|idle]... [--failure NAME] \
                     [--repeats N] [--output FILE]";

/// How long the server's network is cut.
const GONE: Duration = Duration::from_secs(60);
/// How long anything may take that should happen soon.
const SOON: Duration = Duration::from_secs(30);
/// How long an uplink flaps.
const FLAPPING: Duration = Duration::from_secs(120);
/// How long an idle agent is watched.
const IDLE: Duration = Duration::from_secs(60);
/// LAN connections that are open while nothing happens.
const IDLE_CONNECTIONS: usize = 200;

const SECTIONS: [Section<Wanted>; 4] =
    [("failures", failures), ("server", server), ("flapping", flapping), ("idle", idle)];

/// Which failures, and how often each.
struct Wanted {
    failure: Option<String>,
    repeats: usize,
}

impl Wanted {
    fn failures(&self) -> impl Iterator<Item = &'static Failure> {
        let all =
            FAILURES.iter().filter(|it| self.failure.as_ref().is_none_or(|name| *name == it.name));
        all.flat_map(|failure| std::iter::repeat_n(failure, self.repeats))
    }
}

struct Options {
    only: Only,
    wanted: Wanted,
    output: Option<PathBuf>,
}

impl Options {
    fn parse() -> Result<Options, lexopt::Error> {
        let wanted = Wanted { failure: None, repeats: 1 };
        let mut options = Options { only: Only::default(), wanted, output: None };
        let mut arguments = lexopt::Parser::from_env();
        while let Some(argument) = arguments.next()? {
            match argument {
                lexopt::Arg::Long("only") => options.only.parse(&mut arguments, &SECTIONS)?,
                lexopt::Arg::Long("failure") => {
                    let name = arguments.value()?.into_string()?;
                    if !FAILURES.iter().any(|failure| failure.name == name) {
                        return Err(format!("there is no failure '{name}'").into());
                    }
                    options.wanted.failure = Some(name);
                }
                lexopt::Arg::Long("repeats") => {
                    options.wanted.repeats = arguments.value()?.parse()?;
                }
                lexopt::Arg::Long("output") => options.output = Some(arguments.value()?.into()),
                other => return Err(other.unexpected()),
            }
        }
        Ok(options)
    }
}

fn main() -> ExitCode {
    command(USAGE, Options::parse, run)
}

fn run(options: Options) -> ExitCode {
    schedule_first();
    save(&options.only.measure(&SECTIONS, &options.wanted), options.output.as_deref())
}

/// The longest pauses of each failure of the faster uplink.
fn failures(wanted: &Wanted) -> String {
    let lab = Lab::two_uplinks("outages");
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let mut users = Users::start(&lab);
    let mut text =
        "Longest pauses in seconds when the faster one of two uplinks (100 and 50 Mbit/s) \
                    fails; no connection was reset.\n\n\
                    | failure | download | upload | key stroke | UDP |\n|---|---|---|---|---|\n"
            .to_owned();
    for failure in wanted.failures() {
        let Pauses { download, upload, key, udp } = users.notice(failure, &mut agent);
        let cells = [download, upload, key, udp].map(|pause| format!("{:.2}", pause.as_secs_f64()));
        let _ = writeln!(text, "| {} | {} |", failure.name, cells.join(" | "));
        eprintln!("{}: {}", failure.name, cells.join(", "));
    }
    text
}

/// What happens to connections when the server's network is cut, and when its process ends.
fn server(_: &Wanted) -> String {
    let lab = Lab::two_uplinks("outages");
    let mut server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let mut users = Users::start(&lab);
    let mut text = "Seconds while the server is away, and after its return.\n\n\
                    | | network cut for 60 s | killed | restarted by systemd |\n|---|---|---|---|\n"
        .to_owned();
    let columns = [
        server_cut(&lab, &mut agent, &mut users),
        server_killed(&mut server, &mut agent, &mut users),
        server_restarted(&mut server, &mut agent, &mut users),
    ];
    for (row, name) in ROWS.iter().enumerate() {
        let _ = writeln!(
            text,
            "| {name} | {} |",
            columns.each_ref().map(|cells| &*cells[row]).join(" | ")
        );
    }
    text
}

/// What is told of an outage of the server.
const ROWS: [&str; 6] = [
    "download and upload under way",
    "echo of an idle session's key stroke",
    "UDP flow (it is not tunnelled), longest pause",
    "new connection, before the loss is noticed",
    "loss noticed: new connections go out directly at once",
    "after the return, new connections go through the server",
];

fn seconds(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64())
}

/// The address that a new connection comes from, and how long it took.
fn dial(users: &Users) -> (io::Result<IpAddr>, Duration) {
    let begun = Instant::now();
    (users.dialer.seen_as(), begun.elapsed())
}

fn wait_direct(agent: &mut AgentProgram) {
    agent.wait_status("the loss is noticed", |status| status["state"] == "direct");
}

/// Waits until a new connection goes through the server.
fn wait_tunnelled(users: &Users) {
    until("new connections go through the server", SOON, || {
        (users.dialer.seen_as().ok()? == IpAddr::from(SERVER_V4)).then_some(())
    });
}

fn server_cut(lab: &Lab, agent: &mut AgentProgram, users: &mut Users) -> [String; 6] {
    all_well(agent);
    let transfers = [true, false].map(|is_download| users.transfer(is_download));
    let call = users.call();
    let cut = Instant::now();
    lab.cut_server();
    let (first, first_took) = dial(users);
    assert_ne!(first.expect("a connection is not refused"), IpAddr::from(SERVER_V4));
    wait_direct(agent);
    let noticed = cut.elapsed();
    sleep(GONE.saturating_sub(cut.elapsed()));
    let before = transfers.each_ref().map(|transfer| transfer.report().bytes);
    lab.restore_server();
    let back = Instant::now();
    let flows = transfers.each_ref().map(|transfer| transfer.report().bytes);
    assert_eq!(before, flows, "nothing arrived while the server was away");
    let resumed = [0, 1].map(|index| {
        transfers[index].wait_bytes(before[index] + 1, SOON);
        seconds(back.elapsed())
    });
    let key = users.key();
    wait_tunnelled(users);
    let tunnelled = back.elapsed();
    let udp = call.longest_pause_since(cut);
    for transfer in transfers {
        assert!(!transfer.is_finished(), "a connection was lost");
        assert_eq!(transfer.stop().corrupt_at, None);
    }
    [
        format!("go on {} and {} after the return", resumed[0], resumed[1]),
        format!("{} after the return", seconds(key)),
        seconds(udp),
        seconds(first_took),
        seconds(noticed),
        seconds(tunnelled),
    ]
}

fn server_killed(
    server: &mut ServerProgram,
    agent: &mut AgentProgram,
    users: &mut Users,
) -> [String; 6] {
    all_well(agent);
    let download = users.transfer(true);
    let call = users.call();
    let cut = Instant::now();
    server.kill();
    let ended = until("the server's sockets are gone", SOON, || {
        download.is_finished().then(|| cut.elapsed())
    });
    let (first, first_took) = dial(users);
    assert_ne!(first.expect("a connection is not refused"), IpAddr::from(SERVER_V4));
    wait_direct(agent);
    let noticed = cut.elapsed();
    server.restart();
    let back = Instant::now();
    wait_tunnelled(users);
    [
        format!("end after {}", seconds(ended)),
        "ends, too".to_owned(),
        seconds(call.longest_pause_since(cut)),
        seconds(first_took),
        seconds(noticed),
        seconds(back.elapsed()),
    ]
}

fn server_restarted(
    server: &mut ServerProgram,
    agent: &mut AgentProgram,
    users: &mut Users,
) -> [String; 6] {
    server.stop();
    server.make_service();
    server.restart();
    wait_tunnelled(users);
    users.log_in();
    all_well(agent);
    let transfers = [true, false].map(|is_download| users.transfer(is_download));
    let call = users.call();
    let begun = Instant::now();
    server.stop();
    server.launch();
    let key = users.key();
    let (first, first_took) = dial(users);
    assert!(first.is_ok(), "{first:?}");
    wait_tunnelled(users);
    let tunnelled = begun.elapsed();
    let flows = transfers.each_ref().map(|transfer| transfer.report().bytes);
    let pauses = [0, 1].map(|index| {
        transfers[index].wait_bytes(flows[index] + 10_000_000, SOON);
        let report = transfers[index].report();
        seconds(report.longest_pause_since(report.at(begun)))
    });
    let udp = call.longest_pause_since(begun);
    for transfer in transfers {
        assert!(!transfer.is_finished(), "a connection was lost");
        assert_eq!(transfer.stop().corrupt_at, None);
    }
    [
        format!("pause for {} and {}", pauses[0], pauses[1]),
        seconds(key),
        seconds(udp),
        seconds(first_took),
        "-".to_owned(),
        seconds(tunnelled),
    ]
}

/// What is left of the other uplink's goodput.
fn flapping(_: &Wanted) -> String {
    let mut text = format!(
        "Mbit/s over the uplink of 50 Mbit/s, alone and while the one of 100 Mbit/s is gone for 2 s \
         and there for 2 s, in turn, for {} s; no connection was reset.\n\n\
         | the other one | way | alone | flapping | share | worst 4 s | taken into use | lines of log |\n\
         |---|---|---|---|---|---|---|---|\n",
        FLAPPING.as_secs()
    );
    for flapping in &FLAPPINGS {
        for (way, is_download) in [("down", true), ("up", false)] {
            let lab = Lab::two_uplinks("outages");
            let server = ServerProgram::start(&lab);
            let mut agent = AgentProgram::start(&lab, &server);
            let users = Users::start(&lab);
            let it = flapping.measure(is_download, FLAPPING, &lab, &mut agent, &users);
            eprintln!("{}, {way}: {it}", flapping.name);
            let _ = writeln!(
                text,
                "| {} | {way} | {:.1} | {:.1} | {:.2} | {:.1} | {} | {} |",
                flapping.name,
                it.alone,
                it.flapping,
                it.share(),
                it.worst,
                it.taken,
                it.lines
            );
        }
    }
    text
}

/// What an idle agent sends, and the processor time it takes.
fn idle(_: &Wanted) -> String {
    let lab = Lab::two_uplinks("outages");
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let users = Users::start(&lab);
    let mut text = format!(
        "An idle agent, watched for {} s: bytes of IP packets a second on each uplink, both directions \
         added, and processor time.\n\n\
         | connections of the LAN | first uplink | second uplink | share of a core |\n\
         |---|---|---|---|\n",
        IDLE.as_secs()
    );
    let mut open = Vec::new();
    for connections in [0, IDLE_CONNECTIONS] {
        let more = open_idle(&users.dialer, connections - open.len());
        open.extend(more.expect("open idle connections"));
        let Idle { bytes, cpu } = Idle::watch(IDLE, &lab, &mut agent);
        let bytes: Vec<String> = bytes.iter().map(|bytes| format!("{bytes:.0}")).collect();
        let share = cpu * 100.0;
        let _ = writeln!(text, "| {connections} | {} | {share:.2} % |", bytes.join(" | "));
        eprintln!("{connections} connections: {} bytes/s, {share:.3} %", bytes.join(", "));
    }
    text
}
