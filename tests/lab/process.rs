//! A program running in a namespace, its output kept in a log file.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::{Namespace, wait_for};

/// Lines of a log shown when a test fails.
const TAIL: usize = 40;

/// A running program; it and its children are killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program; standard output and error are appended to `LOGS/NAME.log`.
    #[track_caller]
    pub fn start(namespace: &Namespace, logs: &Path, name: &str, mut command: Command) -> Process {
        command.process_group(0);
        Process::run(namespace, logs, name, command)
    }

    /// The same with a share of the processors of its own, however many threads it has: the kernel gives
    /// each session the same (`sched(7)`, "The autogroup feature").
    #[track_caller]
    pub fn start_apart(
        namespace: &Namespace,
        logs: &Path,
        name: &str,
        command: Command,
    ) -> Process {
        Process::run(namespace, logs, name, in_session(&command))
    }

    #[track_caller]
    fn run(namespace: &Namespace, logs: &Path, name: &str, mut command: Command) -> Process {
        let log = logs.join(format!("{name}.log"));
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap_or_else(|error| panic!("open {}: {error}", log.display()));
        let error = output.try_clone().expect("duplicate a descriptor");
        command.stdin(Stdio::null()).stdout(output).stderr(error);
        // A child belongs to the network namespace of the thread that started it.
        let child = namespace
            .enter(|| command.spawn())
            .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        Process { name: name.to_owned(), child, log }
    }

    /// Process id, as seen in the sandbox.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub fn output(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        // It may have ended already.
        let _ = kill_process(self.pid(), signal);
    }

    /// Waits for its end; `None` when it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        wait_for(limit, || self.child.try_wait().ok().flatten())
    }

    /// Asks it to end (SIGTERM) and waits; panics when it does not within `limit`.
    #[track_caller]
    pub fn stop(&mut self, limit: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        match self.wait(limit) {
            Some(status) => status,
            None => panic!("{} still runs {limit:?} after SIGTERM\n{}", self.name, self.tail()),
        }
    }

    /// Kills it and its process group (SIGKILL), and waits.
    pub fn kill(&mut self) {
        let _ = kill_process_group(self.pid(), Signal::KILL);
        // It may not have become its group's leader yet.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Open file descriptors.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.id())).map_or(0, Iterator::count)
    }

    /// Resident memory in KiB (`VmRSS`).
    pub fn resident_kib(&self) -> u64 {
        self.memory_kib("VmRSS:")
    }

    /// The most resident memory there ever was, in KiB (`VmHWM`).
    pub fn peak_kib(&self) -> u64 {
        self.memory_kib("VmHWM:")
    }

    fn memory_kib(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap_or_default();
        let value = |line: &str| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok();
        status.lines().find_map(value).unwrap_or(0)
    }

    /// Processor time used so far, by user and system together; that of children that have ended, too.
    pub fn cpu_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap_or_default();
        // The name in parentheses may hold blanks; utime, stime, cutime and cstime come 12th after it.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks: u64 =
            fields.split_whitespace().skip(11).take(4).filter_map(|f| f.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn tail(&self) -> String {
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }
}

/// The same command in a session of its own. It keeps its process id: setsid(1) forks only for the leader of a
/// group.
fn in_session(command: &Command) -> Command {
    let mut session = Command::new("setsid");
    session.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => session.env(name, value),
            None => session.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        session.current_dir(directory);
    }
    session
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- the end of {} ---\n{}", self.log.display(), self.tail());
        }
        if self.is_running() {
            self.kill();
        }
    }
}
