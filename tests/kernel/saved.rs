//! Sysctls, and bringing back what was there before.

use mptcp_bond::net::Limits;
use mptcp_bond::os::kernel::{KernelHandle, Look};
use mptcp_bond::os::saved::SavedState;
use mptcp_bond::reconcile::{Kernel, Operation};

use crate::{in_namespace, sh, uplinks};

const KEYS: [&str; 4] = [
    "net/mptcp/stale_loss_cnt",
    "net/ipv4/conf/wan0/rp_filter",
    "net/ipv4/conf/wan1/rp_filter",
    "net/ipv4/tcp_rmem",
];

async fn dump(handle: &mut KernelHandle, state: &SavedState) -> Kernel {
    let keys: Vec<String> = KEYS.iter().map(|key| (*key).to_owned()).chain(state.keys()).collect();
    handle.dump(&keys, Look::Quick).await.unwrap()
}

fn values() -> String {
    sh("sysctl net.mptcp.stale_loss_cnt net.ipv4.conf.wan0.rp_filter net.ipv4.tcp_rmem
        ip mptcp limits show")
}

async fn carry_out(handle: &mut KernelHandle, plan: &[Operation]) {
    for operation in plan {
        handle.apply(operation).await.unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn a_clean_stop_after_a_crash_restores_the_originals() {
    in_namespace("saved::a_clean_stop_after_a_crash_restores_the_originals", async {
        uplinks();
        sh("sysctl -qw net.ipv4.conf.wan0.rp_filter=1 net.ipv4.conf.wan1.rp_filter=1");
        let before = values();
        let set = |key: &str, value: &str| Operation::SetSysctl {
            key: key.to_owned(),
            value: value.to_owned(),
        };
        let plan = [
            set(KEYS[0], "1"),
            set(KEYS[1], "2"),
            set(KEYS[2], "2"),
            set(KEYS[3], "4096 131072 8388608"),
            Operation::SetLimits(Limits { subflows: 8, add_addr_accepted: 8 }),
        ];
        let dir = tempfile::tempdir().unwrap();

        let mut state = SavedState::load(dir.path()).unwrap();
        let (mut handle, watch) = KernelHandle::open().await.unwrap();
        let kernel = dump(&mut handle, &state).await;
        assert_eq!(kernel.sysctls.get(KEYS[1]).unwrap(), "1");
        state.remember(&plan, &kernel).unwrap();
        carry_out(&mut handle, &plan).await;
        let kernel = dump(&mut handle, &state).await;
        assert_eq!(kernel.sysctls.get(KEYS[3]).unwrap(), "4096 131072 8388608");
        assert_ne!(values(), before);
        // Killed: nothing runs any more, not even destructors.
        std::mem::forget((state, handle, watch));

        sh("ip link del wan1; ip link add wan1 type veth peer name isp1");
        let fresh_device = sh("sysctl net.ipv4.conf.wan1.rp_filter");
        let mut state = SavedState::load(dir.path()).unwrap();
        let (mut handle, _watch) = KernelHandle::open().await.unwrap();
        let kernel = dump(&mut handle, &state).await;
        state.remember(&plan, &kernel).unwrap();
        carry_out(&mut handle, &plan).await;
        assert_ne!(sh("sysctl net.ipv4.conf.wan1.rp_filter"), fresh_device);

        let kernel = dump(&mut handle, &state).await;
        state.leave(Vec::new(), &mut handle, &kernel).await.unwrap();
        assert_eq!(values(), before);
        assert_eq!(sh("sysctl net.ipv4.conf.wan1.rp_filter"), fresh_device);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    });
}

#[test]
fn a_device_that_vanished_is_skipped() {
    in_namespace("saved::a_device_that_vanished_is_skipped", async {
        uplinks();
        let dir = tempfile::tempdir().unwrap();
        let mut state = SavedState::load(dir.path()).unwrap();
        let (mut handle, _watch) = KernelHandle::open().await.unwrap();
        let wish = Operation::SetSysctl { key: KEYS[1].into(), value: "2".into() };
        state.remember(std::slice::from_ref(&wish), &dump(&mut handle, &state).await).unwrap();
        carry_out(&mut handle, std::slice::from_ref(&wish)).await;
        sh("ip link del wan0");
        let kernel = dump(&mut handle, &state).await;
        assert!(!kernel.sysctls.contains_key(KEYS[1]));
        assert_eq!(state.restore_plan(&kernel), []);
        let error = handle.apply(&wish).await.unwrap_err();
        assert_eq!(error.reason, "ENOENT (No such file or directory)");
    });
}

#[test]
fn a_value_the_kernel_refuses_says_so() {
    in_namespace("saved::a_value_the_kernel_refuses_says_so", async {
        let (mut handle, _watch) = KernelHandle::open().await.unwrap();
        let wish = Operation::SetSysctl { key: KEYS[0].into(), value: "many".into() };
        let error = handle.apply(&wish).await.unwrap_err();
        assert_eq!(error.reason, "EINVAL (Invalid argument)");
        let wish = Operation::SetSysctl { key: "../etc/passwd".into(), value: String::new() };
        let error = handle.apply(&wish).await.unwrap_err();
        assert_eq!(error.reason, "'../etc/passwd' is not a sysctl's path");
    });
}
