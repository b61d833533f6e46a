//! `status --watch` on a terminal, and where there is none.

mod lab;

use std::fs;
use std::process::Command;
use std::time::Duration;

use lab::traffic::{Kind, TrafficServer, Transfer};
use lab::{AgentProgram, Lab, Process, ServerProgram, TARGET_V4, UplinkSpec, binary, until};
use rustix::process::Signal;

/// How long anything may take that should happen soon.
const LIMIT: Duration = Duration::from_secs(30);
/// The alternate screen without a cursor, and the way back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// `status --watch` on a terminal of 100 columns, made by `script`.
fn on_terminal(lab: &Lab, agent: &AgentProgram, name: &str, environment: (&str, &str)) -> Process {
    let (program, run_dir) =
        (binary().display().to_string(), agent.run_dir().display().to_string());
    let inside =
        format!("stty cols 100 rows 30; exec {program} status --watch --run-dir {run_dir}");
    let mut command = Command::new("script");
    command.args(["--quiet", "--flush", "--return", "--command", &inside, "/dev/null"]);
    command.env("TERM", "xterm").env("LC_ALL", "C.UTF-8").env(environment.0, environment.1);
    lab.spawn(&lab.router, name, command)
}

/// The last picture that is complete.
fn picture(terminal: &Process) -> Option<String> {
    let output = terminal.output();
    output.rsplit("\x1b[H").nth(1).map(|frame| frame.replace("\x1b[K", "").replace("\x1b[J", ""))
}

/// Waits for a picture that meets a condition.
#[track_caller]
fn wait_picture(terminal: &Process, what: &str, condition: impl Fn(&str) -> bool) -> String {
    until(what, LIMIT, || picture(terminal).filter(|picture| condition(picture)))
}

/// Columns that the longest line takes, colours left out.
fn width(picture: &str) -> usize {
    let columns = |line: &str| {
        let mut pieces = line.split("\x1b[");
        let first = pieces.next().unwrap_or_default().chars().count();
        let rest = pieces.map(|piece| piece.split_once('m').map_or("", |(_, text)| text));
        first + rest.map(|text| text.chars().count()).sum::<usize>()
    };
    picture.lines().map(|line| columns(line.trim_end_matches('\r'))).max().unwrap_or(0)
}

/// The process of `mptcp-bond status` that a `script` runs, and its terminal.
fn inside(terminal: &Process) -> (String, String) {
    let children = format!("/proc/{0}/task/{0}/children", terminal.id());
    let child = until("the program runs", LIMIT, || {
        let children = fs::read_to_string(&children).unwrap_or_default();
        children.split_whitespace().next().map(str::to_owned)
    });
    let device = fs::read_link(format!("/proc/{child}/fd/1")).expect("its terminal");
    (child, device.display().to_string())
}

#[test]
fn it_is_redrawn_in_place_and_gives_the_terminal_back() {
    let lab = Lab::builder("watch").uplink(UplinkSpec::new("wan", 20)).build();
    let server = ServerProgram::start(&lab);
    let agent = AgentProgram::start(&lab, &server);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let transfer = Transfer::download(&dialer, Transfer::ENDLESS).expect("connect");

    let mut terminal = on_terminal(&lab, &agent, "watch", ("COLORTERM", ""));
    // A full queue may make the uplink 'degraded' for a moment.
    let shown = wait_picture(&terminal, "the download is drawn, in colour", |it| {
        ["LAST MINUTE", "█", "\x1b[32min use"].iter().all(|part| it.contains(part))
    });
    assert!((61..=100).contains(&width(&shown)), "{}", width(&shown));
    let (process, device) = inside(&terminal);
    lab.router.run("stty", &["-F", &device, "cols", "60", "rows", "12"]);
    // `stty` sets one after the other.
    wait_picture(&terminal, "the window is smaller", |it| {
        width(it) <= 60 && it.lines().count() < 12
    });
    lab.router.run("kill", &["-INT", &process]);
    let status = terminal.wait(LIMIT).expect("it ends");
    let output = terminal.output();
    assert!(output.starts_with(ENTER) && output.ends_with(LEAVE), "{output:?}");
    assert!(status.success(), "{status}");

    let mut terminal = on_terminal(&lab, &agent, "watch-plain", ("NO_COLOR", "1"));
    let shown = wait_picture(&terminal, "the download is drawn", |it| it.contains('█'));
    assert!(!shown.contains('\x1b'), "{shown:?}");
    terminal.kill();

    let mut command = Command::new(binary());
    command.args(["status", "--watch", "--run-dir"]).arg(agent.run_dir()).env("LC_ALL", "C");
    let mut blocks = lab.spawn(&lab.router, "watch-blocks", command);
    let output = until("two pictures", LIMIT, || {
        let output = blocks.output();
        (output.matches("LAST MINUTE").count() >= 2).then_some(output)
    });
    assert!(!output.contains('\x1b') && output.is_ascii(), "{output:?}");
    assert!(output.contains("\n\nmptcp-bond ") && output.contains('@'), "{output}");
    blocks.signal(Signal::TERM);
    assert!(blocks.wait(LIMIT).is_some_and(|status| status.success()));
    assert!(!transfer.is_finished(), "the download was cut off");
}
