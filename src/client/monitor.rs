//! `mptcp-bond monitor`: prints what happens in a running agent, as it happens.

use std::future::Future;
use std::path::Path;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use super::{Terminal, code, complain, params, print, style};
use crate::cli::{MonitorOptions, exit};
use crate::os::control::{CallError, Lines};
use crate::os::runtime;

/// Prints events until it is interrupted or nobody reads them any more (exit code 0), or the agent
/// stops (69).
pub fn monitor(options: &MonitorOptions) -> ExitCode {
    let ended = runtime::run(async {
        tokio::select! {
            code = follow(&options.run_dir, options.json) => code,
            () = interrupted() => exit::OK,
        }
    });
    ExitCode::from(ended.unwrap_or_else(|error| {
        complain(&error.to_string());
        exit::OSERR
    }))
}

/// Ends with the first signal that asks to; never, where signals cannot be had.
pub(super) fn interrupted() -> impl Future<Output = ()> {
    // Caught from now on, not from the first wait on.
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    async move {
        let (Ok(mut interrupt), Ok(mut terminate)) = signals else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}

async fn follow(run_dir: &Path, json: bool) -> u8 {
    let params = params((!json).then(|| style(Terminal::of_stdout().as_ref())));
    let failed = |error: CallError| {
        complain(&error.to_string());
        code(&error)
    };
    let mut lines = match Lines::follow(run_dir, params).await {
        Ok(lines) => lines,
        Err(error) => return failed(error),
    };
    loop {
        let line = match lines.next().await {
            Ok(Some(line)) => line,
            Ok(None) => {
                complain("the agent has stopped");
                return exit::UNAVAILABLE;
            }
            Err(error) => return failed(error),
        };
        match print(&format!("{line}\n")) {
            Ok(true) => {}
            Ok(false) => return exit::OK,
            Err(error) => {
                complain(&format!("cannot write an event: {error}"));
                return exit::IOERR;
            }
        }
    }
}
