//! The kernel facade against a real kernel: what `ip`, `nft` and `/proc` say is the truth.
//!
//! Each test runs in network, mount and process namespaces of its own, and fails where it cannot
//! make them (it needs root).

mod changes;
mod conntrack;
mod endpoints;
mod nft;
mod routing;
mod saved;
mod uplinks;

use std::process::Command;

use mptcp_bond::net::IfIndex;
use mptcp_bond::os::kernel::{KernelHandle, Look};
use mptcp_bond::reconcile::{Kernel, Operation};

/// Set in the process that runs a test's body.
const INSIDE: &str = "MPTCP_BOND_TEST_INSIDE";

/// Runs `body` in namespaces of its own, within a time limit.
fn in_namespace(test: &str, body: impl Future<Output = ()>) {
    if std::env::var_os(INSIDE).is_none() {
        let output = Command::new("unshare")
            .args(["-n", "-m", "-p", "-f", "--mount-proc", "--kill-child", "timeout", "180"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        // A test that is not found by its name would pass without having run.
        let ran = output.status.success() && String::from_utf8_lossy(&said).contains("1 passed");
        assert!(ran, "{test}: {}\n{}", output.status, String::from_utf8_lossy(&said));
        return;
    }
    assert_eq!(sh("ip -o link | wc -l"), "1", "a fresh namespace has only lo");
    sh("ip link set lo up && sysctl -qw net.ipv6.conf.all.accept_dad=0 \
        net.ipv6.conf.default.accept_dad=0");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(body);
}

/// Runs a script with a time limit; its output, trimmed.
fn sh(script: &str) -> String {
    let output = Command::new("timeout").args(["60", "sh", "-ec", script]).output().unwrap();
    let (out, err) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{script}: {err}");
    out.trim().to_owned()
}

/// Two uplinks without anything behind them, with the link-local routes that the kernel adds when it comes
/// round to it.
fn uplinks() {
    sh("for i in 0 1; do
        ip link add wan$i type veth peer name isp$i; ip link set wan$i up; ip link set isp$i up
        ip addr add 192.0.2.1$i/24 dev wan$i; ip addr add 2001:db8:$i::1/64 dev wan$i nodad
    done
    for look in $(seq 1000); do
        [ $(ip -6 route show fe80::/64 | wc -l) = 4 ] && exit
        sleep 0.01
    done
    exit 1");
}

async fn dump(handle: &mut KernelHandle) -> Kernel {
    handle.dump(&[], Look::Quick).await.unwrap()
}

fn device(kernel: &Kernel, name: &str) -> IfIndex {
    kernel.links.values().find(|link| link.name == name).unwrap().index
}

async fn apply(handle: &mut KernelHandle, operation: Operation) {
    handle.apply(&operation).await.unwrap_or_else(|error| panic!("{error}"));
}

/// Applies twice: repeating an operation is fine.
async fn apply_twice(handle: &mut KernelHandle, operation: Operation) {
    apply(handle, operation.clone()).await;
    apply(handle, operation).await;
}
