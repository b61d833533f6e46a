//! Kernel parameters below `/proc/sys`.

use std::io;
use std::path::{Path, PathBuf};

const ROOT: &str = "/proc/sys";

/// A parameter's value, runs of blanks made one space; `None` where the kernel has none.
pub fn get(key: &str) -> io::Result<Option<String>> {
    match std::fs::read_to_string(path(key)?) {
        Ok(value) => Ok(Some(normalised(&value))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets a parameter.
///
/// # Errors
/// `ENOENT` where the kernel has none, `EINVAL` for a value out of range.
pub fn set(key: &str, value: &str) -> io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).open(path(key)?)?;
    // The kernel takes each write for a whole value.
    io::Write::write_all(&mut file, value.as_bytes())
}

/// The device that a per-device parameter belongs to, as in `net/ipv4/conf/eth0/rp_filter`.
pub fn device(key: &str) -> Option<&str> {
    let mut parts = key.split('/');
    let known = parts.next() == Some("net") && matches!(parts.next(), Some("ipv4" | "ipv6"));
    let known = known && matches!(parts.next(), Some("conf" | "neigh"));
    parts.next().filter(|name| known && !matches!(*name, "all" | "default"))
}

fn normalised(value: &str) -> String {
    value.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

/// The file of a key that stays below `/proc/sys`.
fn path(key: &str) -> io::Result<PathBuf> {
    let plain = key.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if plain {
        Ok(Path::new(ROOT).join(key))
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("'{key}' is not a sysctl's path")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_its_device() {
        assert_eq!(device("net/ipv4/conf/eth0.2/rp_filter"), Some("eth0.2"));
        assert_eq!(device("net/ipv6/neigh/wan/gc_stale_time"), Some("wan"));
        assert_eq!(device("net/ipv4/conf/all/rp_filter"), None);
        assert_eq!(device("net/ipv4/conf/default/rp_filter"), None);
        assert_eq!(device("net/mptcp/enabled"), None);
        assert_eq!(device("net/ipv4/tcp_rmem"), None);
    }

    #[test]
    fn keys_stay_below_proc_sys() {
        for key in ["", "/etc/passwd", "net/../../../etc/passwd", "net//x", "."] {
            assert!(path(key).is_err(), "{key}");
        }
    }

    #[test]
    fn blanks_are_normalised_and_missing_keys_absent() {
        assert_eq!(normalised("4096\t131072\t6291456\n"), "4096 131072 6291456");
        assert_eq!(get("net/ipv4/no_such_key").unwrap(), None);
        assert!(get("kernel/ostype").unwrap().is_some());
    }
}
