//! Looking closer for `check`: what the kernel supports, and trying uplinks out.

use crate::check::KernelFacts;
use crate::net::Kernel;
use crate::os::{diag, nft};

/// Looks at what of the kernel a dump does not show.
pub async fn kernel(dump: Result<Kernel, String>) -> KernelFacts {
    let (tproxy, diag) = tokio::join!(nft::can_divert(), diag::lists_mptcp());
    KernelFacts { dump, tproxy: tproxy.map_err(|error| error.to_string()), diag: diag.is_ok() }
}
