//! Counters of the kernel in `/proc/net`: MPTCP (`MPTcpExt` in `netstat`) and devices (`dev`).

use std::io;

use litemap::LiteMap;

/// Reads the MPTCP counters of this network namespace; empty where the kernel has no MPTCP.
///
/// # Errors
/// Those of reading the file.
pub fn mptcp_counters() -> io::Result<LiteMap<String, u64>> {
    Ok(parse(&std::fs::read_to_string("/proc/net/netstat")?, "MPTcpExt:"))
}

/// What went over a device since it exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounters {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

/// The counters of each device of this network namespace.
///
/// Not from `/sys/class/net`, which shows the namespace that mounted it.
///
/// # Errors
/// Those of reading the file.
pub fn device_counters() -> io::Result<LiteMap<String, DeviceCounters>> {
    Ok(parse_devices(&std::fs::read_to_string("/proc/net/dev")?))
}

/// Lines of `NAME: ` and 16 numbers: eight of what was received, bytes and packets first, and the
/// same of what was sent; two lines of headings.
fn parse_devices(text: &str) -> LiteMap<String, DeviceCounters> {
    let line = |line: &str| {
        let (name, numbers) = line.rsplit_once(':')?;
        let mut numbers = numbers.split_whitespace().map(str::parse);
        let mut number = |skipped| numbers.nth(skipped)?.ok();
        let counters =
            DeviceCounters { rx_bytes: number(0)?, rx_packets: number(0)?, tx_bytes: number(6)? };
        Some((name.trim().to_owned(), counters))
    };
    text.lines().filter_map(line).collect()
}

/// A group in `netstat` is two lines that begin alike: names, then values in the same order.
fn parse(text: &str, group: &str) -> LiteMap<String, u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(group));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else {
        return LiteMap::new();
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
    fn devices_have_counters() {
        let text = "Inter-|   Receive\n face |bytes packets\n    lo: 5 1 0 0 0 0 0 0 6 1 0 0 0 0 0 0\n\
                    eth0.2:700 2 0 0 0 0 0 0 800 1 0 0 0 0 0 0\nodd: 1\n";
        let devices = parse_devices(text);
        let counters =
            |(rx_bytes, rx_packets, tx_bytes)| DeviceCounters { rx_bytes, rx_packets, tx_bytes };
        let expected = [("eth0.2".to_owned(), (700, 2, 800)), ("lo".to_owned(), (5, 1, 6))];
        assert_eq!(
            devices,
            expected.map(|(name, numbers)| (name, counters(numbers))).into_iter().collect()
        );
        assert!(device_counters().unwrap().contains_key("lo"));
    }

    #[test]
    fn this_kernel_shows_what_matters() {
        let counters = mptcp_counters().unwrap();
        if std::path::Path::new("/proc/sys/net/mptcp").exists() {
            assert!(counters.contains_key("MPJoinSynTx"));
        }
    }
}
