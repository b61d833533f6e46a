//! One uplink: from the device to full-size packets, up to the first thing that fails.

use std::net::IpAddr;
use std::time::Duration;

use super::{
    Contact, Datagrams, Facts, Finding, Findings, Gateway, Grade, Join, PathMtu, Trial,
    UplinkFacts, UplinkVerdict, sentence,
};
use crate::config::agent::Role;
use crate::failover::{InForce, Reason};
use crate::net::{EndpointId, Family, IfIndex, Kernel, LOOPBACK, MAX_ENDPOINTS, Prefix};
use crate::uplink::{Fault, Path};

const OTHER_SUBNET: &str = "give the modem or the LAN another subnet";
const ASK_ISP: &str = "check the modem and the ISP's state; it is tried again by itself";

/// The findings on an uplink and what they come to. `trouble` is what keeps the server from being
/// used at all.
pub(super) fn judge(
    uplink: &UplinkFacts,
    facts: &Facts,
    trouble: Option<&Finding>,
) -> (Vec<Finding>, UplinkVerdict) {
    let mut judge = Judge {
        uplink,
        facts,
        port: facts.server.as_ref().map_or(0, |server| server.config.port),
        findings: Findings::on(format!("uplink {}", uplink.uplink.name)),
    };
    judge.look(trouble);
    let mut findings = judge.findings;
    let carries = findings.failed().is_none() && uplink.in_force() == InForce::Active;
    // Whatever keeps it from carrying is found last.
    let reason = findings.failed().or(findings.list.last()).map(|finding| finding.code.clone());
    // An uplink that carries nothing else may still carry this.
    if let [first, others @ ..] = uplink.untunnelled.as_slice() {
        let families = others.iter().fold(first.to_string(), |list, it| format!("{list}, {it}"));
        findings.ok("direct", format!("untunnelled {families} leaves over it"));
    }
    let name = uplink.uplink.name.clone();
    (findings.list, UplinkVerdict { name, carries, reason: reason.filter(|_| !carries) })
}

struct Judge<'a> {
    uplink: &'a UplinkFacts,
    facts: &'a Facts,
    port: u16,
    findings: Findings,
}

impl<'a> Judge<'a> {
    /// Looks at one thing after the other until one fails.
    fn look(&mut self, trouble: Option<&Finding>) {
        if self.fails(&[Self::device, Self::network, Self::agent, Self::kernel_objects]) {
            return;
        }
        if self.uplink.uplink.role == Role::Off {
            return self.in_use();
        }
        if self.fails(&[Self::gateway, Self::route, Self::internet]) {
            return;
        }
        // What the server lacks is no fault of the uplink's, but what is in front of it is.
        if let Some(trouble) = trouble {
            let found = format!("{} cannot be used: see there", trouble.subject);
            return self.findings.fail("server", trouble.code.clone(), found, "");
        }
        if !self.fails(&[Self::contact, Self::mptcp, Self::path]) {
            self.in_use();
        }
    }

    /// Whether one of these steps finds a failure; those behind it are not taken.
    fn fails(&mut self, steps: &[fn(&mut Self)]) -> bool {
        steps.iter().any(|step| {
            step(self);
            self.findings.failed().is_some()
        })
    }

    fn trial(&self) -> Option<&'a Trial> {
        self.uplink.trial.as_ref()
    }

    fn families(&self) -> &[Family] {
        match &self.uplink.family {
            Some(family) => std::slice::from_ref(family),
            None => &Family::ALL,
        }
    }

    fn path_in_use(&self) -> Option<&Path> {
        let uplink = &self.uplink.uplink;
        self.families().iter().find_map(|&family| uplink.path(family))
    }

    fn device(&mut self) {
        let uplink = &self.uplink.uplink;
        let fault = uplink.fault_in(self.families());
        let Some((check, code)) = fault.as_ref().and_then(fault_code) else {
            if let Some(device) = &uplink.device {
                let found = format!("{}, up, MTU {} bytes", device.name, device.mtu);
                self.findings.ok("device", found);
            }
            return;
        };
        if let (Some(Fault::NoGateway(..)), Some(clash)) = (&fault, self.clash()) {
            // The kernel takes no route by way of an address of its own.
            return self.findings.fail("address", "subnet_clash", clash, OTHER_SUBNET);
        }
        let (found, advice) = fault.map(|fault| sentence(&fault.to_string())).unwrap_or_default();
        self.findings.fail(check, code, found, advice);
    }

    fn network(&mut self) {
        let Some(path) = self.path_in_use() else { return };
        let gateway = match path.gateway {
            Some(gateway) => format!("gateway {gateway}"),
            None => "no gateway, as none is needed".to_owned(),
        };
        let found = format!("{}, {gateway}", path.address);
        match self.clash() {
            None => self.findings.ok("address", found),
            Some(clash) => self.findings.warn("address", "subnet_clash", clash, OTHER_SUBNET),
        }
    }

    /// Another network of this router with the uplink's addresses, in words.
    fn clash(&self) -> Option<String> {
        let kernel = self.facts.kernel.dump.as_ref().ok()?;
        let network = self.path_in_use()?.onlink;
        let all = self.facts.uplinks.iter().filter_map(|it| it.uplink.device.as_ref());
        let uplinks: Vec<IfIndex> = all.map(|device| device.index).collect();
        let inside = kernel.addresses.iter().find(|other| {
            let local = other.device != LOOPBACK && !uplinks.contains(&other.device);
            local && overlap(other.prefix, network)
        })?;
        let device = &kernel.links.get(&inside.device)?.name;
        Some(format!("its network {network} is also that of {device}"))
    }

    fn agent(&mut self) {
        let idle = self.facts.config.as_ref().ok().and_then(|config| config.idle_reason());
        if self.facts.agent.is_none() {
            let advice = "start the agent";
            self.findings.fail("use", "agent_not_running", "carries nothing", advice);
        } else if let Some(reason) = idle {
            let found = format!("the agent does nothing: {reason}");
            self.findings.fail("use", "idle", found, "see the configuration above");
        }
    }

    /// The route, the rules and the endpoint that the agent keeps.
    fn kernel_objects(&mut self) {
        let (Ok(kernel), Some(_)) = (&self.facts.kernel.dump, &self.facts.agent) else { return };
        let (uplink, Some(path)) = (&self.uplink.uplink, self.path_in_use()) else { return };
        if uplink.role == Role::Off {
            return;
        }
        let (table, family) = (uplink.table(), Family::of(path.address));
        let default = Prefix::default_route(family);
        let routed = kernel
            .routes
            .iter()
            .any(|route| route.is_ours() && route.table == table && route.destination == default);
        if let (false, Some(clash)) = (routed, self.clash()) {
            return self.findings.fail("address", "subnet_clash", clash, OTHER_SUBNET);
        }
        if !routed {
            let found = format!("table {} has no default route of ours", table.0);
            let advice = "see the kernel's conflicts and operations above";
            return self.findings.fail("route", "no_route", found, advice);
        }
        let from = Prefix::host(path.address);
        let ruled = kernel.rules.iter().any(|it| it.table == table && it.from == Some(from));
        if !ruled {
            let found = format!("no rule leads from {} to table {}", path.address, table.0);
            let advice = "see the kernel's conflicts and operations above";
            return self.findings.fail("route", "no_rule", found, advice);
        }
        self.findings.ok("route", format!("table {}, with its rules", table.0));
        if self.uplink.in_force() != InForce::Unused {
            self.endpoint(kernel, family);
        }
    }

    fn endpoint(&mut self, kernel: &Kernel, family: Family) {
        let id = EndpointId::of_slot(self.uplink.uplink.slot, family);
        match kernel.endpoints.iter().find(|endpoint| endpoint.id == id) {
            Some(endpoint) => {
                let backup = if endpoint.backup { ", backup" } else { "" };
                self.findings.ok("endpoint", format!("{} {}{backup}", id.0, endpoint.address));
            }
            None if kernel.limits.is_none() => {}
            None if self.uplink.first && self.facts.uplinks.len() == 1 => {}
            None if kernel.endpoints.len() >= MAX_ENDPOINTS => {
                let found = "the kernel takes no more MPTCP endpoints: other programs hold them";
                let advice = "see 'ip mptcp endpoint show', and delete those of other programs";
                self.findings.fail("endpoint", "limit_reached", found, advice);
            }
            None => {
                let advice = "see the kernel's conflicts and operations above";
                self.findings.fail("endpoint", "no_endpoint", "it has none", advice);
            }
        }
    }

    fn gateway(&mut self) {
        let Some(trial) = self.trial() else { return };
        let gateway = self.path_in_use().and_then(|path| path.gateway);
        match (trial.gateway, gateway) {
            (Gateway::Answers, _) => self.findings.ok("gateway", "answers"),
            (Gateway::Silent, Some(gateway)) if !passes(trial) => {
                let found = format!("the gateway {gateway} does not answer");
                let advice = "check the modem; switch it off and on";
                self.findings.fail("gateway", "gateway_silent", found, advice);
            }
            _ => {}
        }
    }

    fn route(&mut self) {
        let Some(trial) = self.trial() else { return };
        if !passes(trial)
            && (trial.contact == Contact::NoRoute || trial.datagrams == Datagrams::NoRoute)
        {
            let found = "a router behind it says that it has no route to the server";
            let advice = "the ISP is cut off, or wants a login: ask it";
            self.findings.fail("route", "no_route", found, advice);
        }
    }

    fn internet(&mut self) {
        let Some(trial) = self.trial() else { return };
        if !passes(trial) && self.uplink.internet == Some(false) {
            let found = "nothing answers over it, neither the server nor the Internet";
            self.findings.fail("Internet", "unanswered", found, ASK_ISP);
        }
    }

    fn contact(&mut self) {
        let Some(trial) = self.trial() else { return };
        let port = self.port;
        match (&trial.contact, trial.datagrams) {
            (Contact::Made { rtt, .. }, _) => {
                let loss = self.uplink.loss.unwrap_or(0.0) * 100.0;
                let rtt = milliseconds(self.uplink.rtt.unwrap_or(*rtt));
                let found =
                    format!("answers on port {port}, RTT {rtt}, {loss:.0} % of probes lost");
                self.findings.ok("server", found);
            }
            (Contact::Unanswered { plain: true }, _) => self.findings.fail(
                "server",
                "syn_dropped",
                format!(
                    "its network drops SYNs with MPTCP options on port {port}; plain ones pass"
                ),
                other_port(port),
            ),
            (Contact::Unanswered { .. }, Datagrams::Answered { .. }) => self.findings.fail(
                "server",
                "tcp_blocked",
                format!("its network lets no TCP to port {port} through; UDP passes"),
                other_port(port),
            ),
            (Contact::Refused, _) => self.findings.fail(
                "server",
                "tcp_blocked",
                format!("its network resets connections to port {port}"),
                other_port(port),
            ),
            (Contact::Unanswered { .. }, _) if self.uplink.internet == Some(true) => {
                let found =
                    format!("port {port} of the server does not answer over it; the Internet does");
                self.findings.fail("server", "unanswered", found, other_port(port));
            }
            (Contact::Unanswered { .. }, _) => self.findings.fail(
                "server",
                "unanswered",
                format!(
                    "the server does not answer over it on port {port}, though it does elsewhere"
                ),
                ASK_ISP,
            ),
            (Contact::Untried(error), _) => {
                let advice = "see the kernel's operations above";
                self.findings.fail("server", "untried", error, advice);
            }
            (Contact::NoRoute, _) => {}
        }
        if let (Contact::Made { .. }, Datagrams::Unanswered) = (&trial.contact, trial.datagrams) {
            self.no_udp();
        }
        if let Datagrams::Answered { observed, .. } = trial.datagrams {
            self.nat(observed.ip());
        }
    }

    /// Without answers to probes an uplink is used once a trial has shown that its subflows work.
    fn no_udp(&mut self) {
        let reason = self.uplink.assignment.as_ref().map(|assignment| &assignment.reason);
        let (grade, advice) = match reason {
            Some(Reason::Unanswered(_)) => {
                (Grade::Failed, "open UDP, or wait: it is tried by TCP alone, more and more rarely")
            }
            _ => {
                let advice = "its health shows by TCP alone, less exactly; open UDP where you can";
                (Grade::Warning, advice)
            }
        };
        let found = format!("its network lets no UDP to port {} through; TCP passes", self.port);
        self.findings.add("probes", grade, "udp_blocked", found, advice);
    }

    fn nat(&mut self, observed: IpAddr) {
        let own = self.path_in_use().map(|path| path.address);
        match own == Some(observed) {
            true => self.findings.ok("NAT", "none"),
            false => self.findings.ok("NAT", format!("the server sees {observed}")),
        }
    }

    fn mptcp(&mut self) {
        let Some(trial) = self.trial() else { return };
        let Contact::Made { mptcp, .. } = trial.contact else { return };
        let port = self.port;
        let alone = self.uplink.first && self.uplink.in_force() == InForce::Active;
        let joins = trial.join == Join::Joined;
        if !mptcp {
            let found = format!("its network removes MPTCP options (MP_CAPABLE) on port {port}");
            // Where joining works it carries data all the same.
            let grade = if joins { Grade::Warning } else { Grade::Failed };
            let code = "mp_capable_stripped";
            return self.findings.add("MPTCP", grade, code, found, other_port(port));
        }
        let (code, found, advice) = match trial.join {
            Join::Joined => {
                let found = format!("MP_CAPABLE and MP_JOIN pass on port {port}");
                return self.findings.ok("MPTCP", found);
            }
            Join::Untried => {
                return self.findings.ok("MPTCP", format!("MP_CAPABLE passes on port {port}"));
            }
            Join::Rejected if self.server_is_full() => (
                "limit_reached",
                "the server takes no more subflows".to_owned(),
                "run 'ip mptcp limits set subflows 8' on the server".to_owned(),
            ),
            Join::Rejected => (
                "mp_join_stripped",
                format!("its network removes MP_JOIN on port {port}; MP_CAPABLE passes"),
                other_port(port),
            ),
            Join::Unanswered => (
                "mp_join_dropped",
                format!("its network drops SYNs with MP_JOIN on port {port}; MP_CAPABLE passes"),
                other_port(port),
            ),
        };
        // Connections that begin on it need not join it.
        let grade = if alone { Grade::Warning } else { Grade::Failed };
        self.findings.add("MPTCP", grade, code, found, advice);
    }

    fn server_is_full(&self) -> bool {
        let limits = self.facts.server.as_ref().and_then(|server| server.limits);
        limits.is_some_and(|limits| limits.too_few_for(self.facts))
    }

    fn path(&mut self) {
        let Some(trial) = self.trial() else { return };
        match trial.path_mtu {
            PathMtu::Untried => {}
            PathMtu::Passes(size) => {
                self.findings.ok("path MTU", format!("packets of {size} bytes pass"));
            }
            PathMtu::Announced(size) => {
                let found = format!("{size} bytes, as a router on the way says");
                self.findings.ok("path MTU", found);
            }
            PathMtu::Hole { size, passes } => {
                let found = format!("packets of {size} bytes vanish on the way without a word");
                let device = self.uplink.uplink.device.as_ref().map_or("", |it| it.name.as_str());
                let advice = match passes {
                    Some(passes) => format!(
                        "set its MTU to {passes}: 'ip link set {device} mtu {passes}', and option \
                         'mtu' of its interface in /etc/config/network"
                    ),
                    None => "ask the ISP why large packets are lost".to_owned(),
                };
                self.findings.fail("path MTU", "mtu_black_hole", found, advice);
            }
        }
    }

    /// What it is used for, and why.
    fn in_use(&mut self) {
        if self.uplink.uplink.role == Role::Off {
            let advice = "set its role to 'bond' or 'backup' to use it";
            let found = "left alone, as its role is 'off'";
            return self.findings.add("use", Grade::Ok, "switched_off", found, advice);
        }
        let Some(assignment) = &self.uplink.assignment else {
            let advice = "run the check again";
            return self.findings.fail("use", "unknown", "not looked at yet", advice);
        };
        let (grade, code) =
            reason_code(&assignment.reason, assignment.in_force, self.uplink.uplink.role);
        let (found, advice) = explanation(&assignment.reason);
        let found = match assignment.in_force {
            InForce::Active => format!("carries traffic: {found}"),
            InForce::Backup => format!("stands by: {found}"),
            InForce::Unused => format!("carries nothing: {found}"),
        };
        self.findings.add("use", grade, code, found, advice);
    }
}

/// Whether anything came back over an uplink.
fn passes(trial: &Trial) -> bool {
    matches!(trial.contact, Contact::Made { .. } | Contact::Refused)
        || matches!(trial.datagrams, Datagrams::Answered { .. })
}

/// Another port may be treated otherwise by a network on the way.
fn other_port(port: u16) -> String {
    let other = if port == 443 { 8443 } else { 443 };
    format!("let the server listen on port {other} and set option 'port' to it, or ask the ISP")
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn overlap(a: Prefix, b: Prefix) -> bool {
    a.contains(b.address) || b.contains(a.address)
}

/// The check that a fault belongs to, and its code; `None` for a role that is `off`.
fn fault_code(fault: &Fault) -> Option<(&'static str, &'static str)> {
    Some(match fault {
        Fault::SwitchedOff => return None,
        Fault::NoDevice(_) => ("device", "no_device"),
        Fault::InterfaceDown(_) => ("device", "interface_down"),
        Fault::AdminDown(_) => ("device", "device_down"),
        Fault::NoCarrier(_) => ("carrier", "no_carrier"),
        Fault::NoAddress(..) => ("address", "no_address"),
        Fault::NoGateway(..) => ("gateway", "no_gateway"),
        Fault::AddressClash { .. } => ("address", "address_clash"),
    })
}

/// Why a role is in force, and what to do about it.
fn explanation(reason: &Reason) -> (String, String) {
    let advice = match reason {
        Reason::Fault(_) | Reason::TooMany => return sentence(&reason.to_string()),
        Reason::Capped(_) => "wait, or raise option 'quota'",
        Reason::Burden(_) => "nothing to do: it is used once a trial shows that it helps",
        Reason::Lossy | Reason::TooLossy | Reason::HeldDown(_) => {
            "check its cable, radio reception and modem, or ask the ISP"
        }
        Reason::Slow(_) => {
            "its modem or network queues too much: limit its rate (SQM), or ask the ISP"
        }
        Reason::ServerSilent => "look whether the server is up",
        // It was tried just now, and something came back.
        Reason::Trial | Reason::Unanswered(_) => "run the check again in a few seconds",
        _ => "",
    };
    (reason.to_string(), advice.to_owned())
}

/// How good a role in force is, and its code.
fn reason_code(reason: &Reason, in_force: InForce, role: Role) -> (Grade, &'static str) {
    match (reason, in_force) {
        (Reason::Lossy | Reason::TooLossy, _) => (Grade::Warning, "lossy"),
        (Reason::Slow(_), _) => (Grade::Warning, "slow"),
        (Reason::Trial, _) => (Grade::Warning, "on_trial"),
        (Reason::ServerSilent, _) => (Grade::Warning, "server_silent"),
        (Reason::Capped(_), _) => (Grade::Warning, "quota_reached"),
        (Reason::HeldDown(_), _) => (Grade::Warning, "held_down"),
        (Reason::Unanswered(_), _) => (Grade::Failed, "unanswered"),
        (Reason::TooMany, _) => (Grade::Failed, "limit_reached"),
        (Reason::Fault(fault), _) => {
            (Grade::Failed, fault_code(fault).map_or("switched_off", |(_, code)| code))
        }
        (_, InForce::Active) => (Grade::Ok, "in_use"),
        // Something else than its role keeps it from being used.
        (_, InForce::Backup) if role == Role::Bond => (Grade::Warning, "demoted"),
        (_, InForce::Backup) => (Grade::Ok, "standby"),
        (_, InForce::Unused) => (Grade::Failed, "not_used"),
    }
}
