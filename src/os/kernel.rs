//! The kernel as the agent meets it: a fresh dump, one operation at a time, and hints to look again.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use std::{fmt, io};

use netlink_sys::protocols::NETLINK_ROUTE;

use super::netlink::{Listener, Refusal, Requester, errno_text, messages};
use super::nft::{self, Nft};
use super::path_manager::{self, PathManager, PmEvent};
use super::privileges::{self, CapabilitySet};
use super::{route, rule, sysctl};
use crate::net::{Endpoint, Limits};
use crate::reconcile::{Kernel, NftTable, Operation};

/// `RTNLGRP_LINK`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV4_RULE`, `_IPV6_IFADDR`, `_IPV6_ROUTE`,
/// `_IPV6_RULE`.
const ROUTE_GROUPS: [u32; 7] = [1, 5, 7, 8, 9, 11, 19];

/// Programs that manage MPTCP endpoints, by the name in `/proc/PID/comm`.
const OTHER_MANAGERS: [&str; 2] = ["mptcpd", "omr-tracker"];

/// How long to wait after a socket failed for another reason than lost announcements.
const LISTEN_RETRY: Duration = Duration::from_secs(1);

/// How much a dump looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Everything but running programs, which are taken from the last thorough look.
    Quick,
    /// Everything: for the periodic pass.
    Thorough,
}

/// The kernel of this network namespace; owns the sockets.
pub struct KernelHandle {
    route: Requester,
    path_manager: Option<PathManager>,
    nft: Nft,
    other_managers: Vec<String>,
}

impl KernelHandle {
    /// Opens the sockets, on a Tokio runtime with I/O and time.
    ///
    /// # Errors
    /// `PermissionDenied` unless root; otherwise a socket failed. A kernel without MPTCP is no
    /// error: its dumps have no limits.
    pub async fn open() -> io::Result<(KernelHandle, Watch)> {
        if !privileges::holds(CapabilitySet::NET_ADMIN)? {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "changing routes, MPTCP endpoints and limits needs root, or CAP_NET_ADMIN",
            ));
        }
        let path_manager = PathManager::open().await.map_err(context("MPTCP path manager"))?;
        let watch = Watch {
            route: Listener::open(NETLINK_ROUTE, &ROUTE_GROUPS)?,
            path_manager: path_manager.as_ref().map(PathManager::listen).transpose()?,
            nft: nft::listen()?,
            waiting: VecDeque::new(),
        };
        let handle = KernelHandle {
            route: Requester::open(NETLINK_ROUTE)?,
            path_manager,
            nft: Nft::open()?,
            other_managers: Vec::new(),
        };
        Ok((handle, watch))
    }

    /// A fresh dump. `sysctls` are the keys to read, as paths below `/proc/sys`; one may be there
    /// twice.
    ///
    /// # Errors
    /// What could not be read, and the kernel's reason.
    pub async fn dump(&mut self, sysctls: &[String], look: Look) -> io::Result<Kernel> {
        let mut kernel = Kernel::default();
        let links = route::links(&mut self.route).await.map_err(context("devices"))?;
        kernel.links = links.into_iter().map(|link| (link.index, link)).collect();
        kernel.addresses = route::addresses(&mut self.route).await.map_err(context("addresses"))?;
        kernel.routes = route::routes(&mut self.route).await.map_err(context("routes"))?;
        kernel.rules = rule::rules(&mut self.route).await.map_err(context("rules"))?;
        kernel.endpoints = self.endpoints().await?;
        kernel.limits = self.limits().await?;
        for key in sysctls {
            if kernel.sysctls.contains_key(key) {
                continue;
            }
            // A key that cannot be read (write-only, or a device on its way out) is as good as none.
            if let Ok(Some(value)) = sysctl::get(key) {
                kernel.sysctls.insert(key.clone(), value);
            }
        }
        // A table that cannot be looked at is made again, and that operation's failure says why.
        kernel.nft = self.nft.look().await.unwrap_or(NftTable::Changed);
        if look == Look::Thorough {
            self.other_managers = other_managers();
        }
        kernel.other_managers.clone_from(&self.other_managers);
        Ok(kernel)
    }

    /// The MPTCP endpoints; none where the kernel has no MPTCP.
    ///
    /// # Errors
    /// The kernel's reason.
    pub async fn endpoints(&mut self) -> io::Result<Vec<Endpoint>> {
        match &mut self.path_manager {
            Some(path_manager) => {
                path_manager.endpoints().await.map_err(context("MPTCP endpoints"))
            }
            None => Ok(Vec::new()),
        }
    }

    /// The path manager's limits; `None` where the kernel has no MPTCP.
    ///
    /// # Errors
    /// The kernel's reason.
    pub async fn limits(&mut self) -> io::Result<Option<Limits>> {
        match &mut self.path_manager {
            Some(path_manager) => {
                path_manager.limits().await.map(Some).map_err(context("MPTCP limits"))
            }
            None => Ok(None),
        }
    }

    /// Carries out one operation. Deleting what is gone and adding what is there already succeed.
    ///
    /// # Errors
    /// The operation and the kernel's reason.
    pub async fn apply(&mut self, operation: &Operation) -> Result<(), OperationError> {
        self.carry_out(operation).await.map_err(|cause| {
            let text = operation.to_string();
            // A ruleset's text goes on for a page.
            let operation = text.lines().next().unwrap_or_default().to_owned();
            OperationError { operation, errno: cause.errno, reason: cause.reason }
        })
    }

    async fn carry_out(&mut self, operation: &Operation) -> Result<(), Cause> {
        let route = &mut self.route;
        match operation {
            Operation::ReplaceRoute(wish) => route::replace(route, wish).await?,
            Operation::DeleteRoute(found) => route::delete(route, found).await?,
            Operation::AddRule(wish) => rule::add(route, wish).await?,
            Operation::DeleteRule(found) => rule::delete(route, found).await?,
            Operation::AddEndpoint(wish) => self.path_manager()?.add(wish).await?,
            Operation::DeleteEndpoint(found) => self.path_manager()?.delete(found).await?,
            Operation::ChangeEndpoint(wish) => self.path_manager()?.set_flags(wish).await?,
            Operation::SetLimits(wish) => self.path_manager()?.set_limits(*wish).await?,
            Operation::SetSysctl { key, value } => sysctl::set(key, value)?,
            Operation::ReplaceNft(ruleset) => self.nft.replace(ruleset).await?,
            Operation::DeleteNft => self.nft.delete().await?,
        }
        Ok(())
    }

    fn path_manager(&mut self) -> Result<&mut PathManager, Refusal> {
        self.path_manager.as_mut().ok_or_else(|| Refusal {
            errno: libc::EOPNOTSUPP,
            explanation: "the kernel has no MPTCP".into(),
        })
    }
}

/// Says what was being read when the kernel refused.
fn context(what: &'static str) -> impl Fn(Refusal) -> io::Error {
    move |refusal| {
        let kind = io::Error::from_raw_os_error(refusal.errno).kind();
        io::Error::new(kind, format!("cannot read the kernel's {what}: {refusal}"))
    }
}

/// The known path-manager programs that run in this network namespace, each once.
fn other_managers() -> Vec<String> {
    let mut found = Vec::new();
    let (Some(ours), Ok(processes)) =
        (network_of(Path::new("/proc/self")), std::fs::read_dir("/proc"))
    else {
        return found;
    };
    let is_number = |name: &OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    let processes = processes.flatten().filter(|entry| is_number(&entry.file_name()));
    for process in processes.map(|entry| entry.path()) {
        let Ok(name) = std::fs::read_to_string(process.join("comm")) else { continue };
        let name = name.trim_end();
        if OTHER_MANAGERS.contains(&name) && network_of(&process) == Some(ours) {
            found.push(name.to_owned());
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// A number of the network namespace of a process. The file `ns/net` would tell only those who have all
/// the capabilities of that process; the files below `net` are as different as the namespaces are.
fn network_of(process: &Path) -> Option<u64> {
    std::fs::metadata(process.join("net/dev")).ok().map(|file| file.ino())
}

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationError {
    /// The operation as an `ip` or `nft` line.
    pub operation: String,
    /// The error number; `None` where it was a program that failed.
    pub errno: Option<i32>,
    /// The error's name and text, and the kernel's or the program's explanation.
    pub reason: String,
}

impl fmt::Display for OperationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.operation, self.reason)
    }
}

impl std::error::Error for OperationError {}

/// An [`OperationError`] that does not know its operation yet.
struct Cause {
    errno: Option<i32>,
    reason: String,
}

impl From<Refusal> for Cause {
    fn from(refusal: Refusal) -> Cause {
        Cause { errno: Some(refusal.errno), reason: refusal.to_string() }
    }
}

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Cause {
        match error.raw_os_error() {
            Some(errno) => Cause { errno: Some(errno), reason: errno_text(errno) },
            None => Cause { errno: None, reason: error.to_string() },
        }
    }
}

/// A hint that the kernel may differ from the last dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A device.
    Link,
    /// An address.
    Address,
    /// A route.
    Route,
    /// A policy rule.
    Rule,
    /// An event of the MPTCP path manager.
    PathManager(PmEvent),
    /// Our nft table.
    Nft,
    /// Hints were lost: anything may have changed.
    Overrun,
}

/// Yields hints about the kernel.
pub struct Watch {
    route: Listener,
    path_manager: Option<Listener>,
    nft: Option<Listener>,
    waiting: VecDeque<Change>,
}

impl Watch {
    /// The next hint. Equal hints that arrive together are given once. Cancel safe.
    pub async fn next(&mut self) -> Change {
        loop {
            if let Some(change) = self.waiting.pop_front() {
                return change;
            }
            let received = tokio::select! {
                datagram = self.route.next() => datagram.map(|datagram| {
                    for change in messages(datagram).filter_map(|m| route_change(m.kind)) {
                        if !self.waiting.contains(&change) {
                            self.waiting.push_back(change);
                        }
                    }
                }),
                datagram = next(self.path_manager.as_mut()) => datagram.map(|datagram| {
                    self.waiting
                        .extend(path_manager::events(datagram).map(Change::PathManager));
                }),
                datagram = next(self.nft.as_mut()) => datagram.map(|datagram| {
                    self.waiting.extend(nft::concerns_us(datagram).then_some(Change::Nft));
                }),
            };
            if let Err(error) = received {
                if error.raw_os_error() != Some(libc::ENOBUFS) {
                    tokio::time::sleep(LISTEN_RETRY).await;
                }
                return Change::Overrun;
            }
        }
    }
}

/// The next datagram; never, where there is no socket.
async fn next(listener: Option<&mut Listener>) -> io::Result<&[u8]> {
    match listener {
        Some(listener) => listener.next().await,
        None => std::future::pending().await,
    }
}

fn route_change(kind: u16) -> Option<Change> {
    match kind {
        route::RTM_NEWLINK | route::RTM_DELLINK => Some(Change::Link),
        route::RTM_NEWADDR | route::RTM_DELADDR => Some(Change::Address),
        route::RTM_NEWROUTE | route::RTM_DELROUTE => Some(Change::Route),
        rule::RTM_NEWRULE | rule::RTM_DELRULE => Some(Change::Rule),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
