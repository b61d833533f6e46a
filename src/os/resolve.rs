//! Host names to addresses.

use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::controller::Outlet;
use crate::os::dns;

/// How long the system's resolver has before DNS servers are asked beside it over each uplink.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it may take: longer than two servers that time out (`resolv.conf(5)`).
const LIMIT: Duration = Duration::from_secs(12);

/// The addresses of a host, as the system's resolver knows it (`hosts(5)`, the router's own DNS
/// server); where that has no answer, as DNS servers say that are asked over these outlets.
///
/// # Errors
/// In words, with the name.
pub async fn resolve(host: &str, outlets: &[Outlet]) -> Result<Vec<IpAddr>, String> {
    let mut system = pin!(of_system(host));
    let found = match timeout(PATIENCE, &mut system).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => over_uplinks(host, outlets).await.ok_or(error),
        Err(_) => tokio::select! {
            Ok(found) = system => Ok(found),
            Some(found) = over_uplinks(host, outlets) => Ok(found),
            else => Err("no answer from DNS".to_owned()),
        },
    };
    found.map_err(|error| format!("cannot resolve server name '{host}': {error}"))
}

/// What `getaddrinfo(3)` says; it blocks a thread of its own, which goes on when nobody waits for it
/// any longer.
///
/// # Errors
/// Why there is no address, in words.
pub async fn of_system(host: &str) -> Result<Vec<IpAddr>, String> {
    let found = timeout(LIMIT, lookup_host((host, 0)))
        .await
        .map_err(|_| "no answer from DNS".to_owned())?
        .map_err(|error| error.to_string())?;
    let found: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    if found.is_empty() { Err("it has no address".to_owned()) } else { Ok(found) }
}

/// What DNS servers say that are asked over all outlets at once; the first answer counts.
async fn over_uplinks(host: &str, outlets: &[Outlet]) -> Option<Vec<IpAddr>> {
    let servers = dns::servers();
    let mut asked: FuturesUnordered<_> =
        outlets.iter().map(|outlet| dns::lookup(host, &servers, outlet)).collect();
    while let Some(answer) = asked.next().await {
        if let Ok(found) = answer {
            return Some(found);
        }
    }
    None
}
