//! This host's own addresses.

use std::io;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_ROUTE;

use super::netlink::{Listener, Requester};
use super::route;

/// `RTNLGRP_IPV4_IFADDR` and `RTNLGRP_IPV6_IFADDR` of `linux/rtnetlink.h`.
const ADDRESS_GROUPS: [u32; 2] = [5, 9];

/// Lists the addresses of this network namespace and tells when they change. Needs no privilege.
pub struct OwnAddresses {
    requester: Requester,
    changes: Listener,
}

impl OwnAddresses {
    /// Opens the sockets.
    ///
    /// # Errors
    /// Those of `socket(2)` and `bind(2)`.
    pub fn open() -> io::Result<OwnAddresses> {
        // The listener comes first, so that no change falls between it and the first list.
        let changes = Listener::open(NETLINK_ROUTE, &ADDRESS_GROUPS)?;
        Ok(OwnAddresses { requester: Requester::open(NETLINK_ROUTE)?, changes })
    }

    /// All addresses of all devices.
    ///
    /// # Errors
    /// The kernel's reason.
    pub async fn list(&mut self) -> io::Result<Vec<IpAddr>> {
        let addresses = route::addresses(&mut self.requester).await?;
        Ok(addresses.into_iter().map(|address| address.prefix.address).collect())
    }

    /// Waits for a change.
    ///
    /// # Errors
    /// Those of `recvmsg(2)`; announcements that were lost are a change.
    pub async fn changed(&mut self) -> io::Result<()> {
        match self.changes.next().await {
            Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => Err(error),
            _ => Ok(()),
        }
    }
}
