//! What a server needs of its kernel: MPTCP's limits and sysctls, restored at the end.

use std::io;
use std::path::Path;

use super::status::Facts;
use crate::config::server::ServerConfig;
use crate::desired::{self, Desired};
use crate::net::Kernel;
use crate::os::kernel::{KernelHandle, Look};
use crate::os::privileges::CapabilitySet;
use crate::os::saved::SavedState;
use crate::reconcile::{Operation, Plan, reconcile};
use crate::registry::Registry;
use crate::status::Failure;

/// The first port that anybody may listen on (`net.ipv4.ip_unprivileged_port_start`).
const UNPRIVILEGED: u16 = 1024;

/// A kernel that was tuned.
pub struct Tuned {
    handle: KernelHandle,
    saved: SavedState,
}

/// Sets limits and sysctls. A server that may not do so says what to set, and runs.
pub async fn tune(run_dir: &Path, registry: &Registry) -> (Option<Tuned>, Facts) {
    let mut facts = Facts::default();
    match try_tune(run_dir, &mut facts).await {
        Ok(tuned) => {
            for failure in &facts.failures {
                let text = format!("{}: {}", failure.operation, failure.error);
                registry.tell(log::Level::Warn, text);
            }
            (Some(tuned), facts)
        }
        Err(error) => {
            let text = format!(
                "cannot set MPTCP's limits and sysctls: {error}; without 'ip mptcp limits set \
                 subflows 8' connections have no more than two extra subflows"
            );
            registry.tell(log::Level::Warn, text);
            (None, facts)
        }
    }
}

async fn try_tune(run_dir: &Path, facts: &mut Facts) -> io::Result<Tuned> {
    let (mut handle, _) = KernelHandle::open().await?;
    let mut saved = SavedState::load(run_dir)?;
    let kernel = look(&mut handle, &saved).await?;
    let wish = Desired {
        limits: Some(desired::LIMITS),
        sysctls: desired::server_sysctls(&kernel.sysctls),
        ..Desired::default()
    };
    // Rules, routes and endpoints in our ranges may be those of an agent on the same host.
    let plan = reconcile(&kernel, &wish).into_iter().filter(Operation::changes_for_good);
    let plan: Plan = plan.collect();
    saved.remember(&plan, &kernel)?;
    facts.limits = kernel.limits.map(|_| desired::LIMITS);
    for operation in &plan {
        if let Err(error) = handle.apply(operation).await {
            facts.failures.push(Failure {
                operation: error.operation,
                error: error.reason,
                errno: error.errno,
                since_seconds: 0,
            });
        }
    }
    Ok(Tuned { handle, saved })
}

async fn look(handle: &mut KernelHandle, saved: &SavedState) -> io::Result<Kernel> {
    let mut keys = desired::server_sysctls_needed();
    keys.extend(saved.keys());
    handle.dump(&keys, Look::Quick).await
}

/// What it takes to put back what was there before, and to listen on clients' ports.
pub fn privileges(tuned: Option<&Tuned>, config: &ServerConfig) -> CapabilitySet {
    let mut needed = CapabilitySet::empty();
    needed.set(CapabilitySet::NET_ADMIN, tuned.is_some_and(|tuned| !tuned.saved.is_empty()));
    let mut forwards = config.clients.iter().flat_map(|client| &client.forwards);
    needed.set(CapabilitySet::NET_BIND_SERVICE, forwards.any(|port| *port < UNPRIVILEGED));
    needed
}

/// Puts back what was there before.
pub async fn restore(tuned: &mut Option<Tuned>) {
    let Some(Tuned { handle, saved }) = tuned else { return };
    let restored = async {
        let kernel = look(handle, saved).await?;
        saved.leave(Plan::new(), handle, &kernel).await
    };
    if let Err(error) = restored.await {
        log::warn!("cannot restore sysctls and limits: {error}");
    }
}
