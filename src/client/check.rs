//! `mptcp-bond check`: asks the agent, or looks by itself where none runs.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use serde::Deserialize;

use super::{Terminal, code, complain, params, print, style};
use crate::check::{Facts, MPTCP_ENABLED, ServerFacts, UplinkFacts, judge};
use crate::cli::{CheckOptions, UBUS_SOCKET, exit};
use crate::config::agent::AgentConfig;
use crate::examine;
use crate::json;
use crate::net::Kernel;
use crate::netifd::{Interface, Netifd};
use crate::os::control::{CallError, call_with};
use crate::os::kernel::{KernelHandle, Look};
use crate::os::{runtime, ubus};
use crate::provision::read_agent_config;
use crate::uplink::observe_with;

/// Checks everything and shows what was found: exit code 0 when all is well, 1 otherwise, and
/// those of `sysexits.h` when nothing can be said.
pub fn check(options: &CheckOptions) -> ExitCode {
    let params = params((!options.json).then(|| style(Terminal::of_stdout().as_ref())));
    let answer = match with_notice(|| call_with(&options.run_dir, "check", params.clone())) {
        Err(CallError::NotRunning(_)) => runtime::run(alone(options))
            .map_err(|error| (error.to_string(), exit::OSERR))
            .and_then(|facts| judge(&facts).answer(params).map_err(|e| (e, exit::PROTOCOL))),
        answer => answer.map_err(|error| (error.to_string(), code(&error))),
    };
    match answer.and_then(|answer| show(&answer)) {
        Ok(code) => code,
        Err((error, code)) => {
            complain(&error);
            ExitCode::from(code)
        }
    }
}

/// What of the answer is needed here.
#[derive(Deserialize)]
struct Outcome {
    well: bool,
    /// Not there where the answer is to be shown as it is.
    text: Option<String>,
}

fn show(answer: &str) -> Result<ExitCode, (String, u8)> {
    let outcome: Outcome = json::from_str(answer)
        .map_err(|error| (format!("the report cannot be read: {error}"), exit::PROTOCOL))?;
    let text = outcome.text.unwrap_or_else(|| format!("{answer}\n"));
    match print(&text) {
        Err(error) => Err((format!("cannot write the report: {error}"), exit::IOERR)),
        Ok(_) if outcome.well => Ok(ExitCode::from(exit::OK)),
        Ok(_) => Ok(ExitCode::from(exit::NOT_WELL)),
    }
}

/// Tells a person who waits that something is going on.
fn with_notice<T>(work: impl FnOnce() -> T) -> T {
    let mut terminal = Some(io::stderr()).filter(IsTerminal::is_terminal);
    if let Some(terminal) = &mut terminal {
        // Nothing is lost when it cannot be shown.
        let _ = write!(terminal, "trying out all uplinks, which takes a few seconds ...");
        let _ = terminal.flush();
    }
    let result = work();
    if let Some(terminal) = &mut terminal {
        let _ = write!(terminal, "\r\x1b[K");
        let _ = terminal.flush();
    }
    result
}

/// What can be seen without an agent.
async fn alone(options: &CheckOptions) -> Facts {
    let config = read_agent_config(&options.config).map_err(|error| error.to_string());
    let dump = dump().await.map_err(|error| error.to_string());
    let nothing = Kernel::default();
    let seen = dump.as_ref().unwrap_or(&nothing);
    let netifd = netifd().await;
    let uplinks = match &config {
        Ok(config) => uplinks(config, seen, &netifd),
        Err(_) => Vec::new(),
    };
    let server =
        config.as_ref().ok().and_then(|config| config.servers.first()).map(|section| ServerFacts {
            config: section.clone(),
            addresses: Vec::new(),
            address: None,
            connected: false,
            trouble: None,
            limits: None,
        });
    Facts {
        version: env!("CARGO_PKG_VERSION").into(),
        config,
        agent: None,
        kernel: examine::kernel(dump).await,
        server,
        uplinks,
    }
}

async fn dump() -> io::Result<Kernel> {
    let (mut handle, _) = KernelHandle::open().await?;
    handle.dump(&[MPTCP_ENABLED.to_owned()], Look::Thorough).await
}

/// OpenWrt's interfaces, if there are any.
async fn netifd() -> Netifd {
    let mut netifd = Netifd::default();
    if let Some(dump) = ubus::interfaces(UBUS_SOCKET.as_ref()).await {
        netifd.replace(Interface::all_from_dump(&dump));
    }
    netifd
}

fn uplinks(config: &AgentConfig, kernel: &Kernel, netifd: &Netifd) -> Vec<UplinkFacts> {
    let uplinks = observe_with(&config.uplinks, kernel, netifd, &[]).into_iter();
    uplinks
        .map(|uplink| UplinkFacts {
            uplink,
            family: None,
            assignment: None,
            first: false,
            rtt: None,
            loss: None,
            internet: None,
            untunnelled: Vec::new(),
            trial: None,
        })
        .collect()
}
