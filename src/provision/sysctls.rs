//! What a server needs of the kernel's parameters, set at once and at each boot (`sysctl.d(5)`).

use std::path::Path;

use litemap::LiteMap;

use super::{ProvisionError, files};
use crate::desired::{absent_sysctls, server_sysctls, server_sysctls_needed};
use crate::os::sysctl;

/// Read at boot, after what distributions set and before `99-sysctl.conf`, the administrator's.
pub const FILE: &str = "/etc/sysctl.d/60-mptcp-bond.conf";
/// Begins a line with what a parameter was before.
const WAS: &str = "# was ";

/// Writes `file` and sets what is in it; says in a line what was done, and what cannot be set now.
///
/// # Errors
/// The parameters cannot be read, or the file cannot be written.
pub fn set_up(file: &Path) -> Result<String, ProvisionError> {
    let mut original = LiteMap::new();
    for key in server_sysctls_needed() {
        let path = Path::new("/proc/sys").join(&key);
        let value = sysctl::get(&key).map_err(|error| ProvisionError::Io {
            doing: "cannot read",
            path,
            error,
        })?;
        original.extend(value.map(|value| (key, value)));
    }
    if let Some(before) = files::read_text_if_present(file)? {
        original.extend(values_before(&before));
    }
    files::replace(file, text(&original).as_bytes(), 0o644)?;
    let failed = changes(&original).into_iter().filter_map(|(key, value)| {
        let error = sysctl::set(&key, &value).err()?;
        Some(format!("\n  {} stays as it is until the next boot: {error}", dotted(&key)))
    });
    Ok(format!("Wrote {}{}\n", file.display(), failed.collect::<String>()))
}

/// What is to be other than it was.
fn changes(original: &LiteMap<String, String>) -> Vec<(String, String)> {
    let wanted = server_sysctls(original).into_iter();
    wanted.filter(|(key, value)| original.get(key) != Some(value)).collect()
}

fn text(original: &LiteMap<String, String>) -> String {
    let mut text =
        "# For MPTCP, by 'mptcp-bond server init'. A purge of the package removes this and \
                    puts back what was.\n"
            .to_owned();
    for (key, value) in changes(original) {
        let was = original.get(&key).map_or("", String::as_str);
        let key = dotted(&key);
        text.push_str(&format!("{key} = {value}\n{WAS}{key} = {was}\n"));
    }
    // A later kernel may have these; until then '-' keeps the boot from complaining.
    for (key, value) in absent_sysctls(original) {
        text.push_str(&format!("-{} = {value}\n", dotted(key)));
    }
    text
}

/// The values from before that a text holds.
fn values_before(text: &str) -> impl Iterator<Item = (String, String)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.strip_prefix(WAS)?.split_once(" = ")?;
        Some((key.replace('.', "/"), value.to_owned()))
    })
}

fn dotted(key: &str) -> String {
    key.replace('/', ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> LiteMap<String, String> {
        [
            ("net/mptcp/enabled", "1"),
            ("net/mptcp/stale_loss_cnt", "4"),
            ("net/mptcp/pm_type", "0"),
            ("net/ipv4/tcp_rmem", "4096 131072 6291456"),
            ("net/ipv4/tcp_wmem", "4096 16384 99999999"),
            ("net/ipv4/tcp_tw_reuse", "2"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into_iter()
        .collect()
    }

    #[test]
    fn only_what_must_change_is_set_and_what_was_can_be_put_back() {
        let text = text(&found());
        let settings: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(
            settings,
            [
                "net.ipv4.tcp_rmem = 4096 4194304 33554432",
                "# was net.ipv4.tcp_rmem = 4096 131072 6291456",
                "net.ipv4.tcp_tw_reuse = 1",
                "# was net.ipv4.tcp_tw_reuse = 2",
                "net.mptcp.stale_loss_cnt = 1",
                "# was net.mptcp.stale_loss_cnt = 4",
                "-net.mptcp.blackhole_timeout = 0",
                "-net.mptcp.close_timeout = 240",
                "-net.mptcp.allow_join_initial_addr_port = 1",
                "-net.mptcp.checksum_enabled = 0",
                "-net.mptcp.syn_retrans_before_tcp_fallback = 16",
            ]
        );
    }

    #[test]
    fn once_more_nothing_is_forgotten() {
        let first = text(&found());
        let mut later = found();
        later.extend(changes(&found()));
        later.extend(values_before(&first));
        assert_eq!(text(&later), first);
    }
}
