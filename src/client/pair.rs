//! `mptcp-bond pair`: enrols this router, has the agent use the server, and shows how the uplinks do.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;

use super::{check, complain, print};
use crate::cli::{AGENT_CONFIG, CheckOptions, Fatal, PairOptions, exit};
use crate::config::keys::PrivateKey;
use crate::config::pairing::PairingUri;
use crate::json;
use crate::os::control::{CallError, call_with};
use crate::provision::{self, read_agent_config};

/// OpenWrt's service.
const SERVICE: &str = "/etc/init.d/mptcp-bond";
/// How long the agent may take to start, to connect and to probe its uplinks.
const LIMIT: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(200);

/// Pairs, and says what was found. Exit code 0 when the router is paired, whatever its uplinks do, and
/// those of `sysexits.h` otherwise.
pub fn pair(
    options: &PairOptions,
    run_dir: &Path,
    enrol: impl FnOnce(&PairingUri, &PrivateKey) -> Result<(), String>,
) -> ExitCode {
    let report = match provision::pair(options, enrol) {
        Ok(report) => report,
        Err(error) => return Fatal::from(error).report(),
    };
    if let Err(error) = print(&report) {
        complain(&format!("cannot write the report: {error}"));
        return ExitCode::from(exit::IOERR);
    }
    let idle = read_agent_config(&options.config).is_ok_and(|it| it.idle_reason().is_some());
    match use_it(options, run_dir) {
        Ok(true) if !idle => {
            let config = options.config.clone();
            check(&CheckOptions { config, run_dir: run_dir.to_owned(), json: false });
        }
        Ok(_) => {}
        Err(error) => complain(&error),
    }
    ExitCode::from(exit::OK)
}

/// Has the agent read its configuration, starts it where OpenWrt's service can, and waits until it
/// is connected, or should be by now. False when there is no agent.
fn use_it(options: &PairOptions, run_dir: &Path) -> Result<bool, String> {
    let service = options.config == Path::new(AGENT_CONFIG) && Path::new(SERVICE).exists();
    if service {
        run_service("enable")?;
    }
    match call_with(run_dir, "reload", Value::Null) {
        Ok(_) => {}
        Err(CallError::NotRunning(_)) if service => run_service("start")?,
        Err(CallError::NotRunning(_)) => {
            let text =
                "\nNo agent runs here: start 'mptcp-bond agent', then see 'mptcp-bond check'\n";
            print(text).map_err(|error| error.to_string())?;
            return Ok(false);
        }
        Err(error) => return Err(format!("the agent does not use the server yet: {error}")),
    }
    let started = Instant::now();
    while !is_settled(run_dir, &options.name) && started.elapsed() < LIMIT {
        sleep(PAUSE);
    }
    Ok(true)
}

fn run_service(word: &str) -> Result<(), String> {
    let done = Command::new(SERVICE).arg(word).status();
    match done {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("'{SERVICE} {word}' failed: {status}")),
        Err(error) => Err(format!("cannot run {SERVICE}: {error}")),
    }
}

/// What of the agent's status is needed here.
#[derive(Deserialize)]
struct Status {
    servers: Vec<Server>,
    uplinks: Vec<Uplink>,
}

#[derive(Deserialize)]
struct Server {
    name: String,
    state: String,
}

#[derive(Deserialize)]
struct Uplink {
    state: String,
    rtt_ms: Option<f64>,
}

impl Status {
    /// Whether there is a session with the server of this name, and each uplink that seems to work has
    /// shown that it does: routes and endpoints are in place then.
    fn is_settled(&self, name: &str) -> bool {
        let connected = |server: &Server| server.name == name && server.state == "connected";
        let shown = |uplink: &Uplink| uplink.state != "up" || uplink.rtt_ms.is_some();
        self.servers.iter().any(connected) && self.uplinks.iter().all(shown)
    }
}

fn is_settled(run_dir: &Path, name: &str) -> bool {
    let status = call_with(run_dir, "status", Value::Null).ok();
    let status = status.and_then(|text| json::from_str::<Status>(&text).ok());
    status.is_some_and(|status| status.is_settled(name))
}
