//! Where log lines go: syslog, or standard error.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::log::{Level, LevelFilter, Log, Metadata, Record};
use syslog::{Facility, LogFormat, Logger, LoggerBackend, Severity};

use crate::quota::Day;

/// The program's name in syslog.
const TAG: &str = "mptcp-bond";
/// Where syslog listens.
const SYSLOG_SOCKET: &str = "/dev/log";
/// Bytes of one line; OpenWrt's `logd` takes datagrams of some 4 KiB.
const LINE_LIMIT: usize = 1500;

/// Where log lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Syslog, facility `daemon`; standard error where there is no `/dev/log`.
    Syslog,
    /// Standard error.
    Stderr,
}

impl Destination {
    /// Standard error when asked for or when a person watches it, else syslog.
    pub fn choose(stderr: bool) -> Destination {
        match stderr || std::io::stderr().is_terminal() {
            true => Destination::Stderr,
            false => Destination::Syslog,
        }
    }
}

/// Sets up logging for the whole process. A second call only changes the level.
pub fn init(destination: Destination, level: LevelFilter) {
    let sink = match destination {
        Destination::Syslog => Sink::syslog(Path::new(SYSLOG_SOCKET)),
        Destination::Stderr => Sink::stderr(),
    };
    let logger = Box::leak(Box::new(OneLineLogger { sink: Mutex::new(sink) }));
    // It fails if there is a logger already, which then stays.
    let _ = ::log::set_logger(logger);
    set_level(level);
}

/// Changes the least severe level that is logged.
pub fn set_level(level: LevelFilter) {
    ::log::set_max_level(level);
}

enum Sink {
    Syslog {
        path: PathBuf,
        logger: Logger<LoggerBackend, Rfc3164>,
        /// Lines that could not be written since the last one that could.
        lost: u64,
    },
    Stderr {
        /// A person watches, rather than a supervisor that adds its own time.
        clock: bool,
    },
}

impl Sink {
    fn stderr() -> Sink {
        Sink::Stderr { clock: io::stderr().is_terminal() }
    }

    fn syslog(path: &Path) -> Sink {
        match connect(path) {
            Ok(logger) => Sink::Syslog { path: path.to_owned(), logger, lost: 0 },
            Err(_) => {
                let mut sink = Sink::stderr();
                let text = format!("no syslog at {}: logging to standard error", path.display());
                sink.write(Level::Warn, &text);
                sink
            }
        }
    }

    fn write(&mut self, level: Level, line: &str) {
        match self {
            Sink::Stderr { clock } => {
                let time = if *clock { clock_now() } else { String::new() };
                // Nothing can be done if standard error is closed.
                let _ = writeln!(io::stderr().lock(), "{time}{}: {line}", word(level));
            }
            Sink::Syslog { path, logger, lost } => {
                if send(logger, level, line, *lost).is_ok() {
                    *lost = 0;
                    return;
                }
                // The daemon may have been started anew since: its socket is another one then.
                match connect(path) {
                    Ok(fresh) => {
                        *logger = fresh;
                        let sent = send(logger, level, line, *lost).is_ok();
                        *lost = if sent { 0 } else { lost.saturating_add(1) };
                    }
                    Err(_) => *lost = lost.saturating_add(1),
                }
            }
        }
    }
}

/// Lines as RFC 3164 has them, less the host's name: `<30>Nov  1 12:34:56 mptcp-bond[99]: text`.
///
/// The time is UTC. That does no harm: logd, journald and rsyslog put their own. Without one, logd
/// would cut 16 bytes off a line that has a space in the wrong place. (Syslog's own formatter does
/// the same with 37 kB more of program.)
struct Rfc3164;

impl LogFormat<&str> for Rfc3164 {
    fn format<W: Write>(&self, to: &mut W, severity: Severity, line: &str) -> syslog::Result<()> {
        let priority = Facility::LOG_DAEMON as u8 | severity as u8;
        let seconds = unix_time().as_secs();
        let (day, time) = (Day::of_unix(seconds).month_first(), time_of_day(seconds));
        let pid = std::process::id();
        write!(to, "<{priority}>{day} {time} {TAG}[{pid}]: {line}").map_err(syslog::Error::Write)
    }
}

fn connect(path: &Path) -> syslog::Result<Logger<LoggerBackend, Rfc3164>> {
    let logger = syslog::unix_custom(Rfc3164, path)?;
    // A daemon that does not read must not stop the traffic: rather lose lines, and say how many.
    match &logger.backend {
        LoggerBackend::Unix(socket) => socket.set_nonblocking(true)?,
        LoggerBackend::UnixStream(stream) => stream.get_ref().set_nonblocking(true)?,
        LoggerBackend::Udp(..) | LoggerBackend::Tcp(_) => {}
    }
    Ok(logger)
}

fn send(
    logger: &mut Logger<LoggerBackend, Rfc3164>,
    level: Level,
    line: &str,
    lost: u64,
) -> syslog::Result<()> {
    if lost > 0 {
        logger.warning(format!("{lost} lines before this one could not be logged").as_str())?;
    }
    match level {
        Level::Error => logger.err(line),
        Level::Warn => logger.warning(line),
        Level::Info => logger.info(line),
        Level::Debug | Level::Trace => logger.debug(line),
    }
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug | Level::Trace => "debug",
    }
}

/// The time of day in UTC, for a person who compares two lines.
fn clock_now() -> String {
    let now = unix_time();
    format!("{}.{:03} ", time_of_day(now.as_secs()), now.subsec_millis())
}

fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Of a time in seconds since 1970, in UTC.
fn time_of_day(seconds: u64) -> String {
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}", seconds % 60)
}

/// Escapes whatever could begin another line or steer a terminal, and bounds the length.
fn one_line(text: &str) -> String {
    let mut line = crate::status::printable(text, true).into_owned();
    if line.len() > LINE_LIMIT {
        let mut end = LINE_LIMIT;
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        line.truncate(end);
        line.push_str("...");
    }
    line
}

struct OneLineLogger {
    sink: Mutex<Sink>,
}

impl Log for OneLineLogger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        // Libraries tell their inner life at debug and trace; a person who debugs wants ours.
        metadata.level() <= ::log::max_level()
            && (metadata.level() <= Level::Warn || metadata.target().starts_with("mptcp_bond"))
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut text = String::new();
        let _ = write!(text, "{}", record.args());
        let line = one_line(&text);
        // A thread that panicked while it logged leaves a sink that is as good as before.
        let mut sink = self.sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        sink.write(record.level(), &line);
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one_line_of_bounded_length() {
        assert_eq!(one_line("client 'a\nerror: b\x1b[2J'"), "client 'a\\nerror: b\\u{1b}[2J'");
        let long = one_line(&"é".repeat(5000));
        assert_eq!(long.len(), LINE_LIMIT + 3);
        assert!(long.ends_with("é..."));
    }

    #[test]
    fn syslog_may_be_missing_start_anew_and_get_stuck() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert!(matches!(Sink::syslog(&path), Sink::Stderr { .. }));

        let daemon = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        let receive = |daemon: &std::os::unix::net::UnixDatagram| {
            daemon.set_nonblocking(true).unwrap();
            let mut buffer = [0; 4096];
            let length = daemon.recv(&mut buffer).unwrap();
            let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
            // <PRI>Mmm dd hh:mm:ss, which logd cuts off after the 16th byte.
            let (priority, rest) = text.split_once('>').unwrap();
            assert_eq!(rest.as_bytes()[15], b' ');
            format!("{priority}>{}", &rest[16..])
        };
        let pid = std::process::id();
        let mut sink = Sink::syslog(&path);
        sink.write(Level::Info, "one");
        assert_eq!(receive(&daemon), format!("<30>mptcp-bond[{pid}]: one"));

        drop(daemon);
        std::fs::remove_file(&path).unwrap();
        sink.write(Level::Info, "lost");
        let daemon = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        sink.write(Level::Error, "two");
        let told = format!("<28>mptcp-bond[{pid}]: 1 lines before this one could not be logged");
        assert_eq!(receive(&daemon), told);
        assert_eq!(receive(&daemon), format!("<27>mptcp-bond[{pid}]: two"));

        // A daemon that never reads: the queue fills, and writing does not block.
        for _ in 0..5000 {
            sink.write(Level::Debug, "flood");
        }
        assert!(matches!(sink, Sink::Syslog { lost: 1.., .. }));
    }

    #[test]
    fn only_our_own_lines_are_logged_below_warnings() {
        let logger = OneLineLogger { sink: Mutex::new(Sink::Stderr { clock: false }) };
        let enabled = |level, target| {
            logger.enabled(&Metadata::builder().level(level).target(target).build())
        };
        ::log::set_max_level(LevelFilter::Debug);
        assert!(enabled(Level::Debug, "mptcp_bond::agent"));
        assert!(enabled(Level::Warn, "netlink_proto"));
        assert!(!enabled(Level::Debug, "netlink_proto::codecs"));
        assert!(!enabled(Level::Trace, "mptcp_bond"));
        set_level(LevelFilter::Error);
        assert!(!enabled(Level::Warn, "mptcp_bond"));
    }
}
