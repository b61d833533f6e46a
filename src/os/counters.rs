//! The kernel's MPTCP counters (`MPTcpExt` in `/proc/net/netstat`).

use std::collections::BTreeMap;
use std::io;

/// Reads the MPTCP counters of this network namespace; empty where the kernel has no MPTCP.
///
/// # Errors
/// Those of reading the file.
pub fn mptcp_counters() -> io::Result<BTreeMap<String, u64>> {
    Ok(parse(&std::fs::read_to_string("/proc/net/netstat")?, "MPTcpExt:"))
}

/// Bytes received and sent by a device since it exists; `None` where there is no such device.
pub fn device_bytes(device: &str) -> Option<(u64, u64)> {
    let read = |counter: &str| {
        let path = format!("/sys/class/net/{device}/statistics/{counter}");
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    Some((read("rx_bytes")?, read("tx_bytes")?))
}

/// A group in `netstat` is two lines that begin alike: names, then values in the same order.
fn parse(text: &str, group: &str) -> BTreeMap<String, u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(group));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else {
        return BTreeMap::new();
    };
    names
        .split_whitespace()
        .zip(values.split_whitespace())
        .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_picked_out() {
        let text = "TcpExt: A B\nTcpExt: 1 2\nMPTcpExt: MPRstRx MPRstTx Odd\nMPTcpExt: 7 8 -1\n";
        let counters = parse(text, "MPTcpExt:");
        let seen: Vec<_> = counters.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        assert_eq!(seen, [("MPRstRx", 7), ("MPRstTx", 8)]);
        assert!(parse("TcpExt: A\nTcpExt: 1\n", "MPTcpExt:").is_empty());
        assert!(parse("MPTcpExt: A", "MPTcpExt:").is_empty());
        assert!(parse("", "MPTcpExt:").is_empty());
    }

    #[test]
    fn this_kernel_shows_what_matters() {
        let counters = mptcp_counters().unwrap();
        if std::path::Path::new("/proc/sys/net/mptcp").exists() {
            assert!(counters.contains_key("MPJoinSynTx"));
        }
    }
}
