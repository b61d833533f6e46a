//! The method `pair`: makes this router known to a server while the agent runs.

use std::io;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_blocking};
use zeroize::Zeroizing;

use super::{Agent, enrol};
use crate::cli::{PairOptions, SERVER_SECTION};
use crate::config::pairing::PairingUri;
use crate::os::control::{Cause, Refusal, Request, ask};
use crate::os::runtime;
use crate::provision::{self, ProvisionError};

/// What the method takes.
#[derive(Deserialize)]
struct Params {
    /// The invitation.
    uri: String,
}

/// Where the key is, and whether a pairing is under way.
pub struct Pairing {
    /// The folder of the router's key.
    key_dir: PathBuf,
    /// The one begun last.
    last: Option<AbortHandle>,
}

impl Pairing {
    /// None yet.
    pub fn new(key_dir: PathBuf) -> Pairing {
        Pairing { key_dir, last: None }
    }
}

/// Begins to pair, which answers the request when it is done; the agent goes on meanwhile, and reads
/// its configuration again when the server is in it.
pub fn begin(agent: &mut Agent, request: Request) {
    let options = match options(agent, request.params) {
        Ok(options) => options,
        // Who asked may be gone.
        Err(refusal) => return drop(request.reply.send(Err(refusal))),
    };
    let owner = agent.owner.clone();
    let task = runtime::spawn(async move {
        let _ = request.reply.send(pair(options, &owner).await);
    });
    agent.pairing.last = Some(task.abort_handle());
}

fn options(agent: &Agent, params: Value) -> Result<PairOptions, Refusal> {
    if agent.pairing.last.as_ref().is_some_and(|last| !last.is_finished()) {
        let text = "another pairing is under way: try again in a few seconds";
        return Err(Refusal::new(Cause::Busy, text));
    }
    // The token in it must not be shown, so the error of the parser is left out.
    let Params { uri } = serde_json::from_value(params)
        .map_err(|_| Refusal::parameters("'pair' takes the text 'uri'".into()))?;
    let uri = PairingUri::parse(&Zeroizing::new(uri))
        .map_err(|error| Refusal::parameters(error.to_string()))?;
    let (config, key_dir) = (agent.config_file.clone(), agent.pairing.key_dir.clone());
    Ok(PairOptions { uri, config, key_dir, name: SERVER_SECTION.into() })
}

async fn pair(options: PairOptions, owner: &mpsc::Sender<Request>) -> Result<String, Refusal> {
    let paired = spawn_blocking(move || provision::pair(&options, enrol)).await;
    let paired = paired.map_err(|error| Refusal::new(Cause::System, error.to_string()))?;
    let report = paired.map_err(|error| Refusal::new(cause(&error), error.to_string()))?;
    ask(owner, "reload".into(), Value::Null, None).await?;
    Ok(json!({ "report": report }).to_string())
}

fn cause(error: &ProvisionError) -> Cause {
    match error {
        ProvisionError::Remote(_) => Cause::Remote,
        ProvisionError::Config(_) | ProvisionError::Content { .. } => Cause::Configuration,
        ProvisionError::Io { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => {
            Cause::Permission
        }
        ProvisionError::Io { .. } | ProvisionError::Refused(_) => Cause::System,
    }
}
