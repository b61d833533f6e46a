//! What OpenWrt has and this machine lacks: ubusd, netifd, and a client of ubus.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]

mod client;
mod double;
mod netifd;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub use client::{Failed, UbusClient};
use double::Double;
pub use netifd::{Netifd, interface_down, interface_up};

use crate::lab::{Namespace, Process, until};

/// How long ubusd may take to start.
const LIMIT: Duration = Duration::from_secs(5);

/// Which ubusd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The double in this folder.
    Double,
    /// OpenWrt's own.
    Genuine,
}

impl Kind {
    /// The double, and the genuine one where it is installed.
    pub fn all() -> Vec<Kind> {
        let installed = Command::new("ubusd").arg("-h").output().is_ok();
        let genuine = installed.then_some(Kind::Genuine);
        [Kind::Double].into_iter().chain(genuine).collect()
    }
}

/// A running ubusd; it ends when this is dropped.
pub enum Ubusd {
    /// The double.
    Double(Double),
    /// OpenWrt's own.
    Genuine(Process),
}

impl Ubusd {
    /// Starts one that listens on `socket`.
    #[track_caller]
    pub fn start(kind: Kind, namespace: &Namespace, socket: &Path) -> Ubusd {
        // One that was killed leaves it behind.
        let _ = fs::remove_file(socket);
        let ubusd = match kind {
            Kind::Double => {
                Ubusd::Double(Double::start(socket).expect("start the double of ubusd"))
            }
            Kind::Genuine => {
                let mut command = Command::new("ubusd");
                command.arg("-s").arg(socket);
                let logs = socket.parent().expect("a folder for the socket");
                Ubusd::Genuine(Process::start(namespace, logs, "ubusd", command))
            }
        };
        until("ubusd listens", LIMIT, || UbusClient::connect(socket).ok());
        ubusd
    }
}
