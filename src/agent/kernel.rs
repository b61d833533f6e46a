//! The agent's hands on the kernel: dumps, plans, and putting everything back.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use crate::controller::{Controller, Event, Failed};
use crate::desired;
use crate::net;
use crate::os::conntrack;
use crate::os::kernel::{KernelHandle, Look, Watch};
use crate::os::saved::SavedState;
use crate::reconcile::Plan;
use crate::uplink::Uplink;

/// The kernel, and what it was like before.
pub struct Kernel {
    handle: KernelHandle,
    saved: SavedState,
}

impl Kernel {
    /// Opens the kernel's interfaces and what an earlier agent saved in the run directory.
    ///
    /// # Errors
    /// What could not be opened and why.
    pub async fn open(run_dir: &Path) -> io::Result<(Kernel, Watch)> {
        let (handle, watch) = KernelHandle::open().await?;
        let saved = SavedState::load(run_dir)?;
        Ok((Kernel { handle, saved }, watch))
    }

    /// Dumps the kernel.
    pub async fn look(&mut self, uplinks: &[Uplink], thorough: bool) -> Event {
        match self.dump(uplinks, thorough).await {
            Ok(kernel) => Event::Dumped(Box::new(kernel)),
            Err(error) => Event::LookFailed(error.to_string()),
        }
    }

    async fn dump(&mut self, uplinks: &[Uplink], thorough: bool) -> io::Result<net::Kernel> {
        let mut keys = desired::sysctls_needed(uplinks);
        keys.extend(self.saved.keys());
        let look = if thorough { Look::Thorough } else { Look::Quick };
        self.handle.dump(&keys, look).await
    }

    /// Carries out a plan made from `kernel`, after saving what it changes for good.
    pub async fn apply(&mut self, plan: Plan, kernel: &net::Kernel) -> Event {
        let unsaved = self.saved.remember(&plan, kernel).err().map(|error| error.to_string());
        let mut failed = Vec::new();
        for operation in plan {
            log::debug!("{}", operation.describe(kernel));
            // What cannot be put back is not changed.
            if let (Some(error), true) = (&unsaved, operation.changes_for_good()) {
                let reason = format!("not changed, as its old value cannot be saved: {error}");
                failed.push(Failed { operation, reason, errno: None });
            } else if let Err(error) = self.handle.apply(&operation).await {
                failed.push(Failed { operation, reason: error.reason, errno: error.errno });
            }
        }
        Event::Applied(failed)
    }

    /// Whether the path manager's endpoints or limits are others than in `kernel`.
    pub async fn path_manager_differs(&mut self, kernel: &net::Kernel) -> bool {
        self.handle.endpoints().await.is_ok_and(|endpoints| endpoints != kernel.endpoints)
            || self.handle.limits().await.is_ok_and(|limits| limits != kernel.limits)
    }

    /// Removes everything of ours and puts back what was changed.
    pub async fn leave(&mut self) {
        if let Err(error) = self.try_leave().await {
            log::warn!("cannot clean up: {error}");
        }
    }

    async fn try_leave(&mut self) -> io::Result<()> {
        let kernel = self.dump(&[], false).await?;
        self.saved.leave(Controller::farewell(&kernel), &mut self.handle, &kernel).await
    }
}

/// Has UDP flows to these ports forgotten, so that their next packets are translated anew.
///
/// # Errors
/// Why not, and what to do, in words.
pub async fn forget_udp(ports: &[(u16, u16)]) -> Result<(), String> {
    if ports.is_empty() {
        return Ok(());
    }
    let count = conntrack::forget_udp(ports).await.map_err(|refusal| {
        format!(
            "UDP flows to the ports in 'udp_ports' that are under way may stall: {refusal}; the \
             kernel needs CONFIG_NF_CT_NETLINK (kmod-nf-conntrack-netlink)"
        )
    })?;
    log::debug!("conntrack -D -p udp, for the ports in 'udp_ports': {count} entries");
    Ok(())
}

/// Has untunnelled flows forgotten that are translated to one of these addresses.
///
/// # Errors
/// Whose flows stay, why, and what to do, in words.
pub async fn forget_flows(addresses: &[IpAddr]) -> Result<(), String> {
    for &address in addresses {
        let count = conntrack::forget(address).await.map_err(|refusal| {
            format!(
                "flows of {address} stay on their dead uplink: {refusal}; \
                 the kernel needs CONFIG_NF_CT_NETLINK (kmod-nf-conntrack-netlink)"
            )
        })?;
        log::debug!("conntrack -D --reply-dst {address}: {count} entries");
    }
    Ok(())
}
