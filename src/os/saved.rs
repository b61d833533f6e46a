//! What sysctls and limits were before this program changed them, to be restored at a clean stop.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use litemap::LiteMap;
use serde::{Deserialize, Serialize};

use super::kernel::KernelHandle;
use super::sysctl;
use crate::net::{IfIndex, Limits, Link};
use crate::reconcile::{Kernel, Operation, Plan};

/// The file's name in the run directory.
const FILE: &str = "saved.json";

/// The original values; pure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Originals {
    sysctls: BTreeMap<String, Original>,
    limits: Option<OriginalLimits>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Original {
    value: String,
    /// The index of the device a per-device key belonged to: a device that comes back under the
    /// same name is another one, with values of its own.
    device: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OriginalLimits {
    subflows: u32,
    add_addr_accepted: u32,
}

impl Originals {
    /// Remembers what `plan` is about to change in `kernel`; a value remembered already stays.
    /// Says whether anything was new.
    pub fn remember(&mut self, plan: &[Operation], kernel: &Kernel) -> bool {
        let before = self.clone();
        for operation in plan {
            match operation {
                Operation::SetLimits(_) => {
                    let limits = kernel.limits.map(|limits| OriginalLimits {
                        subflows: limits.subflows,
                        add_addr_accepted: limits.add_addr_accepted,
                    });
                    self.limits = self.limits.or(limits);
                }
                Operation::SetSysctl { key, .. } => {
                    let Some(value) = kernel.sysctls.get(key) else { continue };
                    let device = device_index(key, &kernel.links);
                    if self.sysctls.get(key).is_none_or(|known| known.device != device) {
                        let original = Original { value: value.clone(), device };
                        self.sysctls.insert(key.clone(), original);
                    }
                }
                _ => {}
            }
        }
        *self != before
    }

    /// The sysctls remembered: those a dump must read before [`Originals::restore_plan`].
    pub fn keys(&self) -> Vec<String> {
        self.sysctls.keys().cloned().collect()
    }

    /// What brings the originals back. Devices that are gone, or were replaced, are skipped.
    pub fn restore_plan(&self, kernel: &Kernel) -> Plan {
        let mut plan = Plan::new();
        if let (Some(limits), Some(current)) = (self.limits, kernel.limits) {
            let limits =
                Limits { subflows: limits.subflows, add_addr_accepted: limits.add_addr_accepted };
            if limits != current {
                plan.push(Operation::SetLimits(limits));
            }
        }
        for (key, original) in &self.sysctls {
            let same_device = device_index(key, &kernel.links) == original.device;
            let current = kernel.sysctls.get(key);
            if same_device && current.is_some_and(|current| *current != original.value) {
                plan.push(Operation::SetSysctl { key: key.clone(), value: original.value.clone() });
            }
        }
        plan
    }
}

/// The index of the device a key belongs to; `None` for keys of no device.
fn device_index(key: &str, links: &LiteMap<IfIndex, Link>) -> Option<u32> {
    let name = sysctl::device(key)?;
    links.values().find(|link| link.name == name).map(|link| link.index.0)
}

/// The original values, kept in a file that survives a crash (but not a reboot, which
/// resets the values themselves).
#[derive(Debug)]
pub struct SavedState {
    path: PathBuf,
    originals: Originals,
}

impl SavedState {
    /// What an earlier run left in `run_dir`, or nothing.
    ///
    /// # Errors
    /// The file cannot be read, or is not one of ours.
    pub fn load(run_dir: &Path) -> io::Result<SavedState> {
        let path = run_dir.join(FILE);
        let originals = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                let text = format!(
                    "{}: {error}; delete it to give up restoring kernel settings",
                    path.display()
                );
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Originals::default(),
            Err(error) => {
                return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display())));
            }
        };
        Ok(SavedState { path, originals })
    }

    /// To be called before a plan is carried out: writes down what it is about to change.
    ///
    /// # Errors
    /// The file cannot be written; the plan's sysctls and limits should then be left alone.
    pub fn remember(&mut self, plan: &[Operation], kernel: &Kernel) -> io::Result<()> {
        let mut originals = self.originals.clone();
        if originals.remember(plan, kernel) {
            self.write(&originals)?;
            self.originals = originals;
        }
        Ok(())
    }

    /// Whether there is nothing to be put back.
    pub fn is_empty(&self) -> bool {
        self.originals == Originals::default()
    }

    /// See [`Originals::keys`].
    pub fn keys(&self) -> Vec<String> {
        self.originals.keys()
    }

    /// See [`Originals::restore_plan`].
    pub fn restore_plan(&self, kernel: &Kernel) -> Plan {
        self.originals.restore_plan(kernel)
    }

    /// Carries out a last plan, puts the originals back, and removes the file; what cannot be put
    /// back is left to the next stop. Operations that fail are logged.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub async fn leave(
        &mut self,
        plan: Plan,
        handle: &mut KernelHandle,
        kernel: &Kernel,
    ) -> io::Result<()> {
        let mut all_put_back = true;
        for operation in plan.into_iter().chain(self.restore_plan(kernel)) {
            if let Err(error) = handle.apply(&operation).await {
                all_put_back &= !operation.changes_for_good();
                log::warn!("{error}");
            }
        }
        if all_put_back { self.forget_all() } else { Ok(()) }
    }

    fn forget_all(&mut self) -> io::Result<()> {
        self.originals = Originals::default();
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Replaces the file at once, so that a crash leaves the old or the new one.
    fn write(&self, originals: &Originals) -> io::Result<()> {
        let temporary = self.path.with_extension("json.new");
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(originals)?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &self.path)
    }
}

#[cfg(test)]
mod tests;
