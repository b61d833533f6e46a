//! Host names to addresses.

use std::net::IpAddr;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::timeout;

/// How long the resolver may take: longer than two servers that time out (`resolv.conf(5)`).
const LIMIT: Duration = Duration::from_secs(15);

/// The addresses of a host, in the order of `getaddrinfo(3)`; the call blocks a thread of its own.
///
/// # Errors
/// In words, with the name.
pub async fn resolve(host: &str) -> Result<Vec<IpAddr>, String> {
    let failed = |why: &str| format!("cannot resolve server name '{host}': {why}");
    let found = timeout(LIMIT, lookup_host((host, 0)))
        .await
        .map_err(|_| failed("no answer from DNS"))?
        .map_err(|error| failed(&error.to_string()))?;
    let found: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    if found.is_empty() { Err(failed("it has no address")) } else { Ok(found) }
}
