//! The life of our nft table.

use mptcp_bond::os::kernel::KernelHandle;
use mptcp_bond::reconcile::{NftTable, Operation};

use crate::{apply, apply_twice, dump, in_namespace, sh};

/// A ruleset with what the real one has: sets, one of them filled by packets, counters, a chain on a hook.
const RULESET: &str = "table inet mptcp_bond {
    set local { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.168.0.0/16 } }
    set seen { type ipv4_addr; size 16; flags dynamic,timeout; timeout 1m; }
    chain prerouting {
        type filter hook prerouting priority mangle; policy accept;
        ip protocol icmp update @seen { ip saddr }
        ip daddr @local return
        iifname \"lo\" counter meta mark set 0x1000000
    }
}";

fn made(ruleset: &str) -> NftTable {
    NftTable::Made(ruleset.to_owned())
}

#[test]
fn our_table_is_known_from_anything_else() {
    in_namespace("nft::our_table_is_known_from_anything_else", async {
        let (mut handle, _watch) = KernelHandle::open().await.unwrap();
        assert_eq!(dump(&mut handle).await.nft, NftTable::Absent);
        sh("nft add table inet other");
        apply_twice(&mut handle, Operation::ReplaceNft(RULESET.into())).await;
        assert_eq!(dump(&mut handle).await.nft, made(RULESET));
        let listing = sh("nft list table inet mptcp_bond");
        assert!(listing.contains("192.168.0.0/16") && listing.contains("hook prerouting"));

        // Counters that count are no change, nor sets that packets fill.
        sh("ping -c 2 -i 0.1 127.0.0.1; nft list table inet mptcp_bond | grep 'packets [1-9]'");
        sh("nft list set inet mptcp_bond seen | grep 'elements = { 127.0.0.1 '");
        assert_eq!(dump(&mut handle).await.nft, made(RULESET));
        // Neither is one that is undone.
        sh("nft add chain inet mptcp_bond extra; nft delete chain inet mptcp_bond extra");
        assert_eq!(dump(&mut handle).await.nft, made(RULESET));

        sh("nft add element inet mptcp_bond local { 172.16.0.0/12 }");
        assert_eq!(dump(&mut handle).await.nft, NftTable::Changed);
        apply(&mut handle, Operation::ReplaceNft(RULESET.into())).await;
        assert_eq!(dump(&mut handle).await.nft, made(RULESET));
        assert!(!sh("nft list table inet mptcp_bond").contains("172.16.0.0/12"));

        sh("nft flush ruleset");
        assert_eq!(dump(&mut handle).await.nft, NftTable::Absent);
        let smaller = "table inet mptcp_bond {\nchain empty {\n}\n}";
        apply(&mut handle, Operation::ReplaceNft(smaller.into())).await;
        assert_eq!(dump(&mut handle).await.nft, made(smaller));

        let (mut restarted, _watch) = KernelHandle::open().await.unwrap();
        assert_eq!(dump(&mut restarted).await.nft, NftTable::Changed, "made by whom?");

        apply_twice(&mut restarted, Operation::DeleteNft).await;
        assert_eq!(dump(&mut restarted).await.nft, NftTable::Absent);
        assert_eq!(dump(&mut handle).await.nft, NftTable::Absent);
        assert_eq!(sh("nft list tables"), "", "flushed with the ruleset");
    });
}

#[test]
fn a_ruleset_that_is_refused_changes_nothing() {
    in_namespace("nft::a_ruleset_that_is_refused_changes_nothing", async {
        let (mut handle, _watch) = KernelHandle::open().await.unwrap();
        apply(&mut handle, Operation::ReplaceNft(RULESET.into())).await;
        let before = sh("nft list ruleset");
        let bad = RULESET.replace("@local", "@absent");
        let error = handle.apply(&Operation::ReplaceNft(bad)).await.unwrap_err();
        assert!(error.reason.starts_with("nft: ") && error.reason.contains("absent"), "{error}");
        assert_eq!(error.errno, None);
        assert_eq!(error.to_string().lines().count(), 1);
        assert_eq!(sh("nft list ruleset"), before);
    });
}

#[test]
fn nft_runs_only_when_the_table_may_have_changed() {
    in_namespace("nft::nft_runs_only_when_the_table_may_have_changed", async {
        // A stand-in that counts its runs, mounted for this namespace alone.
        let dir = tempfile::tempdir().unwrap();
        let (runs, nft) = (dir.path().join("runs"), sh("command -v nft"));
        let (real, counting) = (dir.path().join("real"), dir.path().join("counting"));
        std::fs::copy(&nft, &real).unwrap();
        let script =
            format!("#!/bin/sh\necho >> {}\nexec {} \"$@\"\n", runs.display(), real.display());
        std::fs::write(&counting, script).unwrap();
        sh(&format!("chmod +x {0}; mount --bind {0} {nft}", counting.display()));
        let count = || std::fs::read_to_string(&runs).unwrap_or_default().len();
        let (mut handle, _watch) = KernelHandle::open().await.unwrap();
        apply(&mut handle, Operation::ReplaceNft(RULESET.into())).await;
        let after_making = count();
        assert!(after_making >= 2, "made and listed");
        for _ in 0..5 {
            assert_eq!(dump(&mut handle).await.nft, made(RULESET));
        }
        assert_eq!(count(), after_making);
        sh("nft add table inet other; nft delete table inet other");
        let before = count();
        dump(&mut handle).await;
        assert_eq!(count(), before, "another table");
        sh("nft add chain inet mptcp_bond extra");
        assert_eq!(dump(&mut handle).await.nft, NftTable::Changed);
        assert_eq!(count(), before + 2);
        sh(&format!("umount {nft}"));
    });
}
