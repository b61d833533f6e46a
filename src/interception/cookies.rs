//! Connections that the kernel answers with SYN cookies, because more handshakes are under way than the
//! listener's queue holds. It forgets them, so that a client's acknowledgement belongs to no socket, by which
//! other packets of diverted connections are known; the table remembers them instead.

use std::fmt::{self, Write};

use super::{Targets, keyword};
use crate::net::Family;

/// How many are remembered at once in each family: 5000 new ones a second. One takes the kernel 100 bytes.
const MOST: u32 = 16_384;
/// For how long: until a client has repeated its first data (RFC 6298), which shows the cookie as well.
const SECONDS: u32 = 3;

/// The sets of these connections, and the chain for the SYN+ACKs sent to the LAN.
pub(super) fn write_known(out: &mut String, targets: &Targets) -> fmt::Result {
    if targets.is_empty() {
        return Ok(());
    }
    for &(family, _) in targets {
        let (digit, address) = super::set_type(family);
        writeln!(out, "\tset cookies{digit} {{")?;
        writeln!(out, "\t\ttype {address} . inet_service . {address} . inet_service")?;
        writeln!(out, "\t\tsize {MOST}")?;
        writeln!(out, "\t\tflags dynamic,timeout")?;
        writeln!(out, "\t\ttimeout {SECONDS}s")?;
        writeln!(out, "\t}}")?;
    }
    writeln!(out, "\tchain cookies {{")?;
    // Without a cookie it belongs to the socket of a handshake (tcp_make_synack in the kernel).
    writeln!(out, "\t\tsocket transparent 1 accept")?;
    // The router's own services find their connections again by themselves.
    writeln!(out, "\t\tfib saddr type local accept")?;
    for &(family, _) in targets {
        let (digit, _) = super::set_type(family);
        writeln!(out, "\t\tupdate @cookies{digit} {{ {} }}", ends(family, ["d", "s"]))?;
    }
    writeln!(out, "\t}}")
}

/// In the chain of what the router sends to the LAN.
pub(super) fn write_sent(out: &mut String, targets: &Targets) -> fmt::Result {
    match targets.is_empty() {
        true => Ok(()),
        false => writeln!(out, "\t\ttcp flags & (fin|syn|rst|ack) == syn|ack jump cookies"),
    }
}

/// In the chain of what comes in from the LAN, behind what has a socket: the listener makes one of it.
pub(super) fn write_returned(out: &mut String, targets: &Targets, set_mark: &str) -> fmt::Result {
    for (family, target) in targets {
        let (digit, _) = super::set_type(*family);
        let what = format!("{} @cookies{digit}", ends(*family, ["s", "d"]));
        let flags = "tcp flags & (syn|rst|ack) == ack";
        writeln!(out, "\t\t{flags} {what} tproxy {target} {set_mark} accept")?;
    }
    Ok(())
}

/// A connection's two ends, as a packet names them.
fn ends(family: Family, [first, second]: [&str; 2]) -> String {
    let keyword = keyword(family);
    let end = |which| format!("{keyword} {which}addr . tcp {which}port");
    format!("{} . {}", end(first), end(second))
}
