//! Hints that the kernel changed.

use std::time::Duration;

use mptcp_bond::os::kernel::{Change, KernelHandle, Look, Watch};
use mptcp_bond::os::path_manager::PmEventKind;

use crate::endpoints::connection;
use crate::{dump, in_namespace, sh, uplinks};

/// Hints until the kernel has been quiet for a moment.
pub async fn hints(watch: &mut Watch) -> Vec<Change> {
    let mut hints = Vec::new();
    while let Ok(change) = tokio::time::timeout(Duration::from_millis(200), watch.next()).await {
        hints.push(change);
    }
    hints
}

#[test]
fn changes_give_hints() {
    in_namespace("changes::changes_give_hints", async {
        uplinks();
        let (_handle, mut watch) = KernelHandle::open().await.unwrap();
        hints(&mut watch).await;
        for (script, expected) in [
            ("ip link set wan0 mtu 1400", Change::Link),
            ("ip link set isp0 down", Change::Link),
            ("ip addr add 198.51.100.1/24 dev wan1", Change::Address),
            ("ip -6 addr add 2001:db8:5::1/64 dev wan1", Change::Address),
            ("ip route add default via 192.0.2.1 dev wan1", Change::Route),
            ("ip -6 route add default via fe80::1 dev wan1", Change::Route),
            ("ip rule add pref 5 lookup 7", Change::Rule),
            ("ip -6 rule add pref 5 lookup 7", Change::Rule),
            ("nft add table inet mptcp_bond", Change::Nft),
            ("nft add chain inet mptcp_bond c", Change::Nft),
            ("nft flush ruleset", Change::Nft),
        ] {
            sh(script);
            let hints = hints(&mut watch).await;
            assert!(hints.contains(&expected), "{script}: {hints:?}");
        }
        sh("nft add table inet other; nft add table ip mptcp_bond; nft flush ruleset");
        assert_eq!(hints(&mut watch).await, [], "other tables are none of our business");
    });
}

#[test]
fn connections_give_events() {
    in_namespace("changes::connections_give_events", async {
        let (_handle, mut watch) = KernelHandle::open().await.unwrap();
        hints(&mut watch).await;
        let (client, server) = connection("127.0.0.1:0");
        let mut events = hints(&mut watch).await;
        drop((client, server));
        events.extend(hints(&mut watch).await);
        let created = events.iter().find_map(|change| match change {
            Change::PathManager(event) if event.kind == PmEventKind::Created => {
                Some(event.clone()).filter(|event| !event.server_side)
            }
            _ => None,
        });
        let created = created.unwrap_or_else(|| panic!("{events:?}"));
        assert_eq!(created.daddr, Some("127.0.0.1".parse().unwrap()));
        assert!(events.iter().any(|change| matches!(
            change,
            Change::PathManager(event)
                if event.kind == PmEventKind::Closed && event.token == created.token
        )));
    });
}

#[test]
fn lost_hints_are_reported() {
    in_namespace("changes::lost_hints_are_reported", async {
        uplinks();
        let (mut handle, mut watch) = KernelHandle::open().await.unwrap();
        // Far more than the socket's buffer holds; each goes before those already there, which is quick.
        sh("seq 20000 -1 1 | sed 's|.*|route add 10.0.0.0/8 dev wan0 table 77 metric &|' | ip -batch -
            ip rule add pref 5 lookup 7");
        let hints = hints(&mut watch).await;
        assert!(hints.contains(&Change::Overrun), "{hints:?}");
        let kernel = dump(&mut handle).await;
        assert_eq!(kernel.routes.iter().filter(|route| route.table.0 == 77).count(), 20_000);
        sh("ip rule add pref 6 lookup 7");
        assert_eq!(watch.next().await, Change::Rule, "the watch goes on");
    });
}

#[test]
fn a_dump_that_was_given_up_does_not_disturb_the_next() {
    in_namespace("changes::a_dump_that_was_given_up_does_not_disturb_the_next", async {
        uplinks();
        // So many that no answer fits one datagram.
        sh("for i in $(seq 1 20); do ip link add isp1$i type veth peer name wan1$i; done");
        for polls in 1..8 {
            let (mut handle, _watch) = KernelHandle::open().await.unwrap();
            let mut given_up = Box::pin(handle.dump(&[], Look::Quick));
            let mut left = polls;
            std::future::poll_fn(|context| {
                left -= 1;
                let done = given_up.as_mut().poll(context).is_ready() || left == 0;
                if done { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
            })
            .await;
            drop(given_up);
            let kernel = dump(&mut handle).await;
            assert_eq!(kernel.links.len(), 45, "after {polls} polls");
            assert!(kernel.rules.len() == 5 && kernel.limits.is_some());
        }
    });
}

#[test]
fn another_path_manager_is_named_where_it_runs_here() {
    in_namespace("changes::another_path_manager_is_named_where_it_runs_here", async {
        let (mut handle, _watch) = KernelHandle::open().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("mptcpd");
        std::fs::copy("/bin/sleep", &program).unwrap();
        let spawn = |command: &mut std::process::Command| {
            let child = command.arg("60").spawn().unwrap();
            let comm = format!("/proc/{}/comm", child.id());
            while std::fs::read_to_string(&comm).unwrap() != "mptcpd\n" {
                std::thread::sleep(Duration::from_millis(5));
            }
            child
        };
        let mut elsewhere = spawn(std::process::Command::new("unshare").arg("-n").arg(&program));
        let kernel = handle.dump(&[], Look::Thorough).await.unwrap();
        assert!(kernel.other_managers.is_empty(), "it runs in another network");
        let mut here = spawn(&mut std::process::Command::new(&program));
        assert!(dump(&mut handle).await.other_managers.is_empty());
        let kernel = handle.dump(&[], Look::Thorough).await.unwrap();
        assert_eq!(kernel.other_managers, ["mptcpd"]);
        assert_eq!(dump(&mut handle).await.other_managers.len(), 1, "remembered");
        for child in [&mut here, &mut elsewhere] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let kernel = handle.dump(&[], Look::Thorough).await.unwrap();
        assert!(kernel.other_managers.is_empty());
    });
}
