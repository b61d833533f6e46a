//! `mptcp-bond status`, `check`, `pair`, `rotate-key` and `uplink`: what a person asks of a running agent or server.

mod check;
mod monitor;
mod pair;
mod rotate;
mod watch;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use rustix::termios::tcgetwinsize;
use serde::Deserialize;
use serde_json::Value;

use crate::cli::{StatusFormat, StatusOptions, UplinkOptions, exit};
use crate::config::agent::Role;
use crate::json;
use crate::os::control::{CallError, call_with};
use crate::os::terminal::{has_colour, is_stdout, is_utf8, variable};
use crate::status::{Style, printable};
pub use check::check;
pub use monitor::monitor;
pub use pair::pair;
pub use rotate::rotate_key;
use watch::watch;

/// Shows the status of the process that owns the run directory, once or again and again.
pub fn run(options: &StatusOptions) -> ExitCode {
    ExitCode::from(status(&options.run_dir, options.format))
}

/// Gives an uplink of the agent that owns the run directory another role, and says what holds now.
pub fn set_role(options: &UplinkOptions) -> ExitCode {
    let role = options.role.map_or_else(|| "default".to_owned(), |role| role.to_string());
    let params = serde_json::json!({ "name": options.name, "role": role });
    let answer = match call_with(&options.run_dir, "uplink", params) {
        Ok(answer) => answer,
        Err(error) => {
            complain(&error.to_string());
            return ExitCode::from(match error {
                CallError::Refused(_) => exit::DATAERR,
                error => code(&error),
            });
        }
    };
    match json::from_str(&answer) {
        Ok(outcome) => {
            // Nothing can be done if standard output is closed.
            let _ = writeln!(io::stdout(), "{}", role_line(&outcome));
            ExitCode::from(exit::OK)
        }
        Err(error) => {
            complain(&format!("the answer cannot be read: {error}"));
            ExitCode::from(exit::PROTOCOL)
        }
    }
}

/// What the agent answers to another role.
#[derive(Deserialize)]
struct RoleOutcome {
    name: String,
    role: Role,
    configured: Role,
    /// The quota that is reached, and takes the place of the role.
    cap: Option<String>,
}

fn role_line(outcome: &RoleOutcome) -> String {
    let RoleOutcome { name, role, configured, cap } = outcome;
    let mut line = if role == configured {
        format!("{name}: role {role}, as configured")
    } else {
        format!("{name}: role {role} until the agent restarts; configured: {configured}")
    };
    if let Some(cap) = cap {
        line.push_str(&format!("; not in force: {cap}"));
    }
    printable(&line, true).into_owned()
}

/// Returns the exit code, one of `sysexits.h`.
fn status(run_dir: &Path, format: StatusFormat) -> u8 {
    let style = match format {
        StatusFormat::Watch => return watch(run_dir),
        StatusFormat::Json => None,
        StatusFormat::Table => Some(style(Terminal::of_stdout().as_ref())),
    };
    let text = match fetch(run_dir, style) {
        Ok(text) => text,
        Err((text, code)) => {
            complain(&text);
            return code;
        }
    };
    match print(&text) {
        Ok(_) => exit::OK,
        Err(error) => {
            complain(&format!("cannot write the status: {error}"));
            exit::IOERR
        }
    }
}

/// Gets the status as text of this style, or as JSON without one; an error comes with its exit code.
fn fetch(run_dir: &Path, style: Option<Style>) -> Result<String, (String, u8)> {
    let answer = call_with(run_dir, "status", params(style))
        .map_err(|error| (error.to_string(), code(&error)))?;
    if style.is_none() {
        return Ok(format!("{answer}\n"));
    }
    json::from_str(&answer)
        .map_err(|error| (format!("the status cannot be read: {error}"), exit::PROTOCOL))
}

fn code(error: &CallError) -> u8 {
    match error {
        CallError::NotRunning(_) => exit::UNAVAILABLE,
        CallError::NotPermitted(_) => exit::NOPERM,
        CallError::Io(..) => exit::IOERR,
        CallError::Protocol(_) => exit::PROTOCOL,
        CallError::Refused(_) => exit::UNAVAILABLE,
    }
}

/// The parameters of a question whose answer is to be text of this style, or JSON without one.
fn params(style: Option<Style>) -> Value {
    style.map_or(Value::Null, |style| serde_json::json!({ "style": style }))
}

/// Writes to standard output; whether anybody still reads it. Who does not has seen enough, as `head`
/// has.
fn print(text: &str) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        result => result.map(|()| true),
    }
}

fn complain(text: &str) {
    // Nothing can be done if standard error is closed.
    let _ = writeln!(io::stderr(), "mptcp-bond: {}", printable(text, true));
}

/// Standard output, when it is a terminal.
#[derive(Clone, Copy)]
struct Terminal;

impl Terminal {
    fn of_stdout() -> Option<Terminal> {
        is_stdout().then_some(Terminal)
    }

    /// Columns and rows; asked for anew each time, for windows are resized.
    fn size(&self) -> (usize, usize) {
        match tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_col > 0 => (size.ws_col.into(), size.ws_row.into()),
            _ => (variable("COLUMNS").and_then(|text| text.parse().ok()).unwrap_or(80), 0),
        }
    }

    /// A picture that overwrites the one before without flicker: the cursor goes home, each line
    /// clears what was behind it, and the end what was below. Rows beyond the window are left out,
    /// for they would scroll it.
    fn frame(&self, text: &str) -> String {
        const HOME: &str = "\x1b[H";
        const CLEAR_LINE: &str = "\x1b[K";
        const CLEAR_BELOW: &str = "\x1b[J";
        let (_, rows) = self.size();
        let rows = if rows == 0 { usize::MAX } else { rows.saturating_sub(1) };
        let mut frame = HOME.to_owned();
        for line in text.lines().take(rows) {
            frame.push_str(line);
            frame.push_str(CLEAR_LINE);
            frame.push('\n');
        }
        frame.push_str(CLEAR_BELOW);
        frame
    }
}

/// The style for standard output.
fn style(terminal: Option<&Terminal>) -> Style {
    let width = match terminal {
        Some(terminal) => terminal.size().0,
        None => variable("COLUMNS").and_then(|text| text.parse().ok()).unwrap_or(usize::MAX),
    };
    let colour = terminal.is_some() && has_colour();
    Style { width, colour, unicode: is_utf8(), graph: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_after_another_role_is_said_in_a_line() {
        let line = |json: &str| role_line(&serde_json::from_str(json).unwrap());
        let json = r#"{"name":"lte","role":"off","configured":"backup"}"#;
        let text = "lte: role off until the agent restarts; configured: backup";
        assert_eq!(line(json), text);
        let json = r#"{"name":"lte\n","role":"bond","configured":"bond","cap":"a quota"}"#;
        assert_eq!(line(json), "lte\\n: role bond, as configured; not in force: a quota");
    }

    #[test]
    fn who_is_not_running_is_unavailable() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(status(dir.path(), StatusFormat::Table), 69);
        assert_eq!(status(dir.path(), StatusFormat::Watch), 69);
    }
}
