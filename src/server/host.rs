//! What a server tells its clients of its host, so that they can say what is too low there.

use std::net::{Ipv6Addr, UdpSocket};

use litemap::LiteMap;

use crate::check::MPTCP_ENABLED;
use crate::desired;
use crate::os::path_manager::PathManager;
use crate::os::sysctl;
use crate::registry::unix_time;
use crate::tunnel::control::HostState;

/// The first address that is any host's on the Internet (RFC 4291, 2.4).
const GLOBAL: Ipv6Addr = Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0);

/// How the host does now: limits and sysctls may have been changed since the start.
pub async fn state() -> HostState {
    let limits = match PathManager::open().await {
        Ok(Some(mut path_manager)) => path_manager.limits().await.ok(),
        _ => None,
    };
    let found: LiteMap<String, String> = desired::server_sysctls_needed()
        .into_iter()
        .filter_map(|key| Some((key.clone(), sysctl::get(&key).ok()??)))
        .collect();
    let wanted = desired::server_sysctls(&found);
    let mut buffers = wanted.iter().filter(|(key, _)| key.starts_with("net/ipv4/tcp_"));
    HostState {
        time_unix_ms: u64::try_from(unix_time().as_millis()).unwrap_or(u64::MAX),
        subflows: limits.map(|limits| u8::try_from(limits.subflows).unwrap_or(u8::MAX - 1)),
        mptcp: found.get(MPTCP_ENABLED).is_none_or(|value| value != "0"),
        buffers: buffers.all(|(key, value)| found.get(key) == Some(value)),
        lacks_ipv6: !has_ipv6(),
    }
}

/// Whether there is a route, and an address, towards the Internet; nothing is sent.
fn has_ipv6() -> bool {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0));
    socket.and_then(|socket| socket.connect((GLOBAL, 9))).is_ok()
}
