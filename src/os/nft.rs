//! Our nft table, through the `nft` program.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::netlink::{Listener, messages};
use crate::net::NFT_TABLE;
use crate::reconcile::NftTable;

/// How long one run of `nft` may take; a slow router with a huge ruleset needs about a second.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES`, the high byte of a message's type.
const SUBSYSTEM: u16 = 10;
/// `NFPROTO_INET`.
const INET: u8 = 1;
/// Bytes of `struct nfgenmsg`.
const HEADER: usize = 4;
/// The attribute that names the table, the same in messages about tables, chains, rules, sets,
/// elements and objects.
const TABLE_NAME: u16 = 1;

/// A socket that hears of changes of the ruleset; `None` where the kernel has no nftables.
pub fn listen() -> io::Result<Option<Listener>> {
    match Listener::open(NETLINK_NETFILTER, &[GROUP]) {
        Ok(listener) => Ok(Some(listener)),
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EPROTONOSUPPORT | libc::ENOENT | libc::EINVAL)
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Whether a datagram from [`listen`] tells of a change in our table.
pub fn concerns_us(datagram: &[u8]) -> bool {
    messages(datagram).any(|message| {
        message.kind >> 8 == SUBSYSTEM
            && message.payload.first() == Some(&INET)
            && message
                .attributes(HEADER)
                .any(|a| a.kind == TABLE_NAME && a.text() == Some(NFT_TABLE))
    })
}

/// What is known of our table.
pub struct Nft {
    listener: Option<Listener>,
    /// The ruleset made by this process, and the table as listed right afterwards.
    made: Option<(String, String)>,
    /// What the last look showed; `None` once the table may have changed since.
    seen: Option<NftTable>,
}

impl Nft {
    /// Knows nothing yet: a table that exists is taken for another program's work.
    pub fn open() -> io::Result<Nft> {
        Ok(Nft { listener: listen()?, made: None, seen: None })
    }

    /// The table's state. Runs `nft` only when the table changed since the last look.
    ///
    /// # Errors
    /// `nft` fails or takes too long.
    pub async fn look(&mut self) -> io::Result<NftTable> {
        if let (Some(seen), false) = (self.seen.take(), self.changed()) {
            return Ok(self.seen.insert(seen).clone());
        }
        let table = match (list().await?, &self.made) {
            (None, _) => NftTable::Absent,
            (Some(now), Some((ruleset, then))) if now == *then => NftTable::Made(ruleset.clone()),
            (Some(_), _) => NftTable::Changed,
        };
        Ok(self.seen.insert(table).clone())
    }

    /// Puts a ruleset, the text of whole table definitions, in the place of the table in one
    /// transaction.
    ///
    /// # Errors
    /// `nft` refuses the text (its first complaint), fails or takes too long.
    pub async fn replace(&mut self, ruleset: &str) -> io::Result<()> {
        (self.made, self.seen) = (None, None);
        run(&["-f", "-"], &format!("{}{ruleset}\n", delete_text())).await?;
        self.changed();
        let listing = list().await?;
        // A change by somebody else before the listing must not pass for our work.
        if let (Some(listing), false) = (listing, self.changed()) {
            self.made = Some((ruleset.to_owned(), listing));
            self.seen = Some(NftTable::Made(ruleset.to_owned()));
        }
        Ok(())
    }

    /// Deletes the table, if there is one.
    ///
    /// # Errors
    /// `nft` fails or takes too long.
    pub async fn delete(&mut self) -> io::Result<()> {
        (self.made, self.seen) = (None, None);
        run(&["-f", "-"], &delete_text()).await.map(drop)
    }

    /// Whether the table may have changed since the last call. The kernel announces within the
    /// commit, so no change made before this call is missed.
    fn changed(&mut self) -> bool {
        let Some(listener) = &mut self.listener else { return true };
        let mut changed = false;
        loop {
            match listener.waiting() {
                Ok(None) => return changed,
                Ok(Some(datagram)) => changed |= concerns_us(datagram),
                // Announcements were lost; the next read goes on behind them.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changed = true,
                Err(_) => return true,
            }
        }
    }
}

/// Whether the kernel takes rules that divert connections to a local listener. Nothing is changed:
/// `nft -c` has the kernel look at everything and then drop it.
///
/// # Errors
/// What is missing: the program, or a part of the kernel.
pub async fn can_divert() -> io::Result<()> {
    const RULES: &str = "table inet mptcp_bond_check {
  chain divert {
    type filter hook prerouting priority mangle;
    meta l4proto tcp tproxy ip to 127.0.0.1:1
  }
}
";
    run(&["-c", "-f", "-"], RULES).await.map(drop)
}

/// Deletes the table whether or not it exists: `delete table` alone fails where there is none.
fn delete_text() -> String {
    format!("table inet {NFT_TABLE}\ndelete table inet {NFT_TABLE}\n")
}

/// The table without its counters and what packets put into sets, blanks normalised; `None` when there is
/// none.
async fn list() -> io::Result<Option<String>> {
    match run(&["-s", "list", "table", "inet", NFT_TABLE], "").await {
        Ok(listing) => Ok(Some(lasting(&listing))),
        // Without the program nothing can have made the table; making it will say what is missing.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.to_string().contains("No such file or directory") => Ok(None),
        Err(error) => Err(error),
    }
}

/// A listing, blanks normalised, without what packets put into sets.
fn lasting(listing: &str) -> String {
    let (mut dynamic, mut elements) = (false, false);
    let lines = listing.lines().map(str::trim).filter(|line| {
        match line.strip_prefix("flags ") {
            Some(flags) => dynamic = flags.contains("dynamic"),
            None => dynamic &= *line != "}",
        }
        elements |= dynamic && line.starts_with("elements = ");
        let lasts = !elements;
        elements &= !line.ends_with('}');
        lasts
    });
    lines.flat_map(str::split_ascii_whitespace).collect::<Vec<_>>().join(" ")
}

/// Runs `nft` with `input`; its output, or an error with its first complaint.
async fn run(arguments: &[&str], input: &str) -> io::Result<String> {
    let mut child = Command::new("nft")
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                io::Error::new(error.kind(), "the nft program is not installed (package nftables)")
            }
            kind => io::Error::new(kind, format!("nft: {error}")),
        })?;
    let stdin = child.stdin.take();
    let feed = async move {
        if let Some(mut stdin) = stdin {
            // A program that stops reading says why on stderr.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = tokio::time::timeout(TIME_LIMIT, both).await.map_err(|_| {
        let text = format!("nft gave no answer within {} s", TIME_LIMIT.as_secs());
        io::Error::new(io::ErrorKind::TimedOut, text)
    })??;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    // The first line says what is wrong, the second repeats the text it is about.
    let mut lines = complaint.lines().map(str::trim).filter(|line| !line.is_empty());
    Err(io::Error::other(match (lines.next(), lines.next()) {
        (Some(what), Some(text)) => format!("nft: {what}: {text}"),
        (Some(what), None) => format!("nft: {what}"),
        (None, _) => format!("nft: {}", output.status),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A datagram with one announcement.
    fn announcement(kind: u16, family: u8, table: &str) -> Vec<u8> {
        let value = [table.as_bytes(), &[0]].concat();
        let mut payload = vec![family, 0, 0, 0];
        payload.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
        payload.extend(TABLE_NAME.to_ne_bytes());
        payload.extend(&value);
        payload.resize(payload.len().next_multiple_of(4), 0);
        let mut datagram = u32::try_from(payload.len() + 16).unwrap().to_ne_bytes().to_vec();
        datagram.extend(kind.to_ne_bytes());
        datagram.extend([0; 10]);
        datagram.extend(payload);
        datagram
    }

    #[test]
    fn only_our_table_concerns_us() {
        let kind = SUBSYSTEM << 8 | 6;
        assert!(concerns_us(&announcement(kind, INET, "mptcp_bond")));
        assert!(!concerns_us(&announcement(kind, INET, "fw4")));
        assert!(!concerns_us(&announcement(kind, 2, "mptcp_bond")));
        assert!(!concerns_us(&announcement(6, INET, "mptcp_bond")));
        let two = [announcement(kind, INET, "fw4"), announcement(kind, INET, "mptcp_bond")];
        assert!(concerns_us(&two.concat()));
    }

    #[test]
    fn what_packets_put_into_sets_is_no_change() {
        let listing = "table inet mptcp_bond {
\tset known {
\t\ttype ipv4_addr . inet_service
\t\tflags dynamic,timeout
\t\ttimeout 5s
\t\telements = { 10.0.0.1 . 80 expires 4s100ms,
\t\t             10.0.0.2 . 80 }
\t}

\tset local {
\t\ttype ipv4_addr
\t\tflags interval
\t\telements = { 10.0.0.0/8,
\t\t             192.168.0.0/16 }
\t}
}
";
        assert_eq!(
            lasting(listing),
            "table inet mptcp_bond { set known { type ipv4_addr . inet_service flags dynamic,timeout \
             timeout 5s } set local { type ipv4_addr flags interval elements = { 10.0.0.0/8, \
             192.168.0.0/16 } } }"
        );
    }

    #[test]
    fn no_datagram_is_too_broken_to_look_at() {
        let whole = announcement(SUBSYSTEM << 8, INET, "mptcp_bond");
        for length in 0..whole.len() {
            assert!(!concerns_us(&whole[..length]), "{length}");
        }
    }
}
