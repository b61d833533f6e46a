//! `mptcp-bond rotate-key`: gives the router a new key, and has the agent use it.

use std::process::ExitCode;

use serde_json::Value;

use super::complain;
use crate::cli::{RotateOptions, exit};
use crate::config::agent::ServerConfig;
use crate::config::keys::{PrivateKey, PublicKey};
use crate::os::control::{CallError, call_with};
use crate::provision;

/// Makes the key known to every server with `renew`, and has a running agent connect with it.
pub fn rotate_key(
    options: &RotateOptions,
    renew: impl Fn(&ServerConfig, &PrivateKey, &PublicKey) -> Result<(), String>,
) -> ExitCode {
    let rotated = provision::rotate_key(options, renew);
    let done = rotated.is_ok();
    let code = provision::print(rotated);
    match done.then(|| call_with(&options.run_dir, "redial", Value::Null)) {
        None | Some(Ok(_) | Err(CallError::NotRunning(_))) => code,
        Some(Err(error)) => {
            complain(&format!("the agent does not use the key yet: {error}; restart it"));
            ExitCode::from(exit::UNAVAILABLE)
        }
    }
}
