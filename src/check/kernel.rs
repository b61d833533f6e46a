//! The configuration, and the kernel.

use super::{Facts, Finding, Findings, Grade, sentence};
use crate::desired::LIMITS;
use crate::net::Kernel;

/// Where the kernel says whether MPTCP is switched on.
pub const MPTCP_ENABLED: &str = "net/mptcp/enabled";

/// Whether the agent runs, and what is configured.
pub(super) fn configuration(facts: &Facts) -> Vec<Finding> {
    let mut findings = Findings::on("configuration");
    match &facts.agent {
        Some(_) => findings.ok("agent", format!("runs, version {}", facts.version)),
        None => findings.fail(
            "agent",
            "agent_not_running",
            "does not run, so nothing is bonded and no uplink is tried out",
            "start it with '/etc/init.d/mptcp-bond start' or 'mptcp-bond agent', or give \
             --run-dir the directory it was started with",
        ),
    }
    let config = match &facts.config {
        Ok(config) => config,
        Err(error) => {
            findings.fail("file", "config_wrong", error, "correct it as it says");
            return findings.list;
        }
    };
    if let Some(error) = facts.agent.as_ref().and_then(|agent| agent.config_error.as_ref()) {
        let found = format!("not in force, the one before it is: {error}");
        findings.fail("file", "config_wrong", found, "correct it and reload");
    } else if let Some(reason) = config.idle_reason() {
        findings.fail("file", "idle", reason, "add it to /etc/config/mptcpd, or run 'pair'");
    } else {
        let uplinks: Vec<&str> = config.uplinks.iter().map(|it| it.name.as_str()).collect();
        let servers: Vec<&str> = config.servers.iter().map(|it| it.name.as_str()).collect();
        let found = format!("uplinks {}; server {}", uplinks.join(", "), servers.join(", "));
        findings.ok("file", found);
    }
    findings.list
}

/// What the kernel offers, and who else uses it.
pub(super) fn kernel(facts: &Facts) -> Vec<Finding> {
    let mut findings = Findings::on("kernel");
    match &facts.kernel.dump {
        Ok(kernel) => mptcp(kernel, facts, &mut findings),
        Err(error) => findings.fail("state", "unreadable", error, "run this as root"),
    }
    match &facts.kernel.tproxy {
        Ok(()) => findings.ok("TPROXY", "nft can divert connections to the agent"),
        Err(error) => findings.fail(
            "TPROXY",
            "no_tproxy",
            format!("nft cannot divert connections to the agent: {error}"),
            "install nft and its TPROXY module (OpenWrt: kmod-nft-tproxy)",
        ),
    }
    match facts.kernel.diag {
        true => findings.ok("diag", "'ss -M' can list MPTCP sockets"),
        // Nothing of ours needs it.
        false => findings.add(
            "diag",
            Grade::Ok,
            "no_diag",
            "'ss -M' cannot list MPTCP sockets, which matters to people alone",
            "",
        ),
    }
    let Some(agent) = &facts.agent else {
        let others = facts.kernel.dump.iter().flat_map(|kernel| &kernel.other_managers);
        for name in others {
            let found = format!("{name} is running and manages MPTCP endpoints as well");
            findings.fail("conflict", "conflict", found, "stop it");
        }
        return findings.list;
    };
    for conflict in &agent.conflicts {
        let (found, advice) = sentence(conflict);
        findings.fail("conflict", "conflict", found, advice);
    }
    for (operation, reason) in &agent.failures {
        let found = format!("{operation}: {reason}");
        findings.fail("operation", "operation_fails", found, "it is tried again by itself");
    }
    findings.list
}

fn mptcp(kernel: &Kernel, facts: &Facts, findings: &mut Findings) {
    let Some(limits) = kernel.limits else {
        // A running agent has it among its conflicts.
        if facts.agent.is_none() {
            let advice = "use a kernel with CONFIG_MPTCP=y";
            findings.fail("MPTCP", "no_mptcp", "not in this kernel: nothing can be bonded", advice);
        }
        return;
    };
    match kernel.sysctls.get(MPTCP_ENABLED).map(String::as_str) {
        Some("0") => findings.fail(
            "MPTCP",
            "mptcp_off",
            "switched off",
            "switch it on with 'sysctl -w net.mptcp.enabled=1', and remove what switches it off",
        ),
        _ => findings.ok("MPTCP", "in the kernel and switched on"),
    }
    let Some(agent) = &facts.agent else { return };
    let found = format!("{} subflows beside the first", limits.subflows);
    if limits.subflows < LIMITS.subflows {
        let advice = format!("find out who sets 'ip mptcp limits', and set {}", LIMITS.subflows);
        findings.warn("limits", "limit_low", found, advice);
    } else {
        findings.ok("limits", found);
    }
    for (key, wanted, error) in &agent.sysctls_not_set {
        let advice = format!("find out what sets it, and set it to {wanted}");
        findings.warn("sysctls", "sysctl", format!("{key} is not {wanted}: {error}"), advice);
    }
    match agent.sysctls_absent.is_empty() {
        true if agent.sysctls_not_set.is_empty() => findings.ok("sysctls", "as they should be"),
        true => {}
        // Nobody can do anything about it.
        false => {
            let absent = agent.sysctls_absent.join(", ");
            let found = format!("this older kernel has no {absent}");
            findings.add("sysctls", Grade::Ok, "sysctl_absent", found, "");
        }
    }
}
