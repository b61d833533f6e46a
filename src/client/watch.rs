//! `mptcp-bond status --watch`: the status again and again, on a terminal redrawn in place.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;

use super::monitor::interrupted;
use super::{Terminal, complain, fetch, print, style};
use crate::cli::exit;
use crate::os::runtime;
use crate::os::terminal::obeys_sequences;
use crate::status::Style;

/// Time between two pictures.
const PERIOD: Duration = Duration::from_secs(1);

/// Shows the status until it is interrupted or nobody reads it any more; returns the exit code, one of
/// `sysexits.h`. A process that stops later on is waited for.
pub fn watch(run_dir: &Path) -> u8 {
    let ended = runtime::run(async {
        let screen = Terminal::of_stdout().filter(|_| obeys_sequences()).map(Screen::enter);
        let outcome = tokio::select! {
            outcome = pictures(run_dir, screen.as_ref()) => outcome,
            () = interrupted() => Ok(()),
        };
        // The terminal is as it was before anything is said on it.
        drop(screen);
        match outcome {
            Ok(()) => exit::OK,
            Err((text, code)) => {
                complain(&text);
                code
            }
        }
    });
    ended.unwrap_or_else(|error| {
        complain(&error.to_string());
        exit::OSERR
    })
}

/// Shows pictures; an error comes with its exit code.
async fn pictures(run_dir: &Path, screen: Option<&Screen>) -> Result<(), (String, u8)> {
    let mut resized = signal(SignalKind::window_change()).ok();
    let mut seen = false;
    loop {
        let style = Style { graph: true, ..style(screen.map(|screen| &screen.terminal)) };
        let text = match fetch(run_dir, Some(style)) {
            Ok(text) => text,
            Err(error) if !seen => return Err(error),
            Err((text, _)) if screen.is_some() => format!("{text}\n"),
            Err((text, _)) => {
                complain(&text);
                String::new()
            }
        };
        let shown = match screen {
            Some(screen) => screen.terminal.frame(&text),
            // A blank line between two pictures.
            None if seen && !text.is_empty() => format!("\n{text}"),
            None => text,
        };
        seen = true;
        match print(&shown) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => return Err((format!("cannot write the status: {error}"), exit::IOERR)),
        }
        tokio::select! {
            () = sleep(PERIOD) => {}
            () = next(&mut resized) => {}
        }
    }
}

async fn next(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// The terminal's alternate screen, without a cursor; what was on the terminal comes back with the
/// end of this.
struct Screen {
    terminal: Terminal,
}

impl Screen {
    fn enter(terminal: Terminal) -> Screen {
        // xterm's private modes (DECSET 1049, DECTCEM 25), which all that matter have.
        let _: io::Result<bool> = print("\x1b[?1049h\x1b[?25l");
        Screen { terminal }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Who reads the terminal may be gone.
        let _: io::Result<bool> = print("\x1b[?25h\x1b[?1049l");
    }
}
