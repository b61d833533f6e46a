//! Starts, stops, crashes, reloads, and what others do to the kernel meanwhile.

#[path = "../lab/mod.rs"]
mod lab;

mod crash;
mod handover;
mod interference;
mod last_subflow;
mod privileges;
mod reload;
mod server_loss;
mod stop;

use std::time::Duration;

use lab::traffic::{Dialer, Transfer};
use lab::{Namespace, NetworkState};

/// How long anything may take that should happen soon.
const LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a transfer that shows that transfers work.
const SOME: u64 = 2_000_000;

/// Rules, routes, endpoints, limits, sysctls and nft objects that are not the program's; those
/// close to its own ranges and names, too.
fn install_foreign_objects(namespace: &Namespace) {
    namespace.ip_batch(
        "rule add priority 499 from 10.99.0.0/16 lookup 77\n\
         rule add priority 900 fwmark 0x20/0xff lookup 77\n\
         route add 10.99.0.0/16 dev lo table 77 proto static\n\
         route add 10.98.0.0/16 dev lo table 5000 proto static\n\
         route add 10.97.0.0/16 dev lo table 5001 proto static\n\
         route add 10.96.0.0/16 dev lo table 254 proto 84\n",
    );
    namespace.ip("route add 2001:db8:99::/48 dev lo table 5001 proto static");
    namespace.ip("-6 rule add priority 900 from 2001:db8:99::/48 lookup 77");
    namespace.ip("mptcp limits set subflows 3 add_addr_accepted 1");
    namespace.ip("mptcp endpoint add 10.99.0.1 id 7 signal");
    namespace.ip("mptcp endpoint add 10.99.0.2 id 199 signal");
    namespace.sysctl("net.mptcp.stale_loss_cnt", "7");
    namespace.sysctl("net.mptcp.close_timeout", "61");
    namespace.sysctl("net.ipv4.tcp_rmem", "4096 131072 4000000");
    namespace.sysctl("net.ipv4.conf.default.rp_filter", "1");
    namespace.nft(
        "table inet mptcp_bond_2 { set lan { type ipv4_addr; elements = { 10.99.0.1 }; }; }\n\
         table ip mptcp_bond { chain first { type filter hook prerouting priority 0; }; }\n",
    );
}

#[track_caller]
fn assert_same(what: &str, before: &NetworkState, after: &NetworkState) {
    let difference = before.difference(after);
    assert!(difference.is_empty(), "{what}:\n{}", difference.join("\n"));
}

/// Foreign objects are still there when nothing but sysctls and limits has become less.
#[track_caller]
fn assert_nothing_missing(before: &NetworkState, now: &NetworkState) {
    let difference = before.difference(now);
    let ours =
        |line: &&String| line.starts_with("- sysctl") || line.starts_with("- ip mptcp limits");
    let missing: Vec<&String> =
        difference.iter().filter(|line| line.starts_with('-') && !ours(line)).collect();
    assert!(missing.is_empty(), "foreign objects are gone: {missing:#?}");
}

/// A short download and its integrity.
#[track_caller]
fn download_some(dialer: &Dialer) {
    Transfer::download(dialer, SOME).expect("connect").finish(LIMIT).expect("download");
}

/// Waits until a running transfer has made clear progress from now on.
#[track_caller]
fn assert_goes_on(transfer: &Transfer) {
    let bytes = transfer.report().bytes;
    transfer.wait_bytes(bytes + SOME, LIMIT);
}

/// Ends a transfer that must have been going on intact.
#[track_caller]
fn assert_intact(transfer: Transfer) {
    assert!(!transfer.is_finished(), "the transfer was cut off");
    assert_eq!(transfer.stop().corrupt_at, None);
}
