//! The server: whether it can be reached, whether it wants this router, and what it lacks.

use super::{
    Contact, Datagrams, Facts, Finding, Findings, Gateway, Join, Reply, ServerFacts, ServerLimits,
    Trial, UplinkFacts,
};
use crate::tunnel::hello::Refusal;

/// A clock this far off makes times in logs and invitations confusing.
const CLOCK_TOLERANCE_MS: u64 = 60_000;

/// The findings on the server, and the one that keeps all uplinks from carrying anything.
pub(super) fn judge(facts: &Facts) -> (Vec<Finding>, Option<Finding>) {
    let Some(server) = &facts.server else { return (Vec::new(), None) };
    let mut findings = Findings::on(format!("server {}", server.config.name));
    reach(server, facts, &mut findings);
    if let (Some(limits), None) = (server.limits, findings.failed()) {
        mptcp(limits, &mut findings);
    }
    let trouble = findings.failed().cloned();
    if let (Some(limits), None) = (server.limits, &trouble) {
        room(limits, facts, &mut findings);
        rest(limits, &mut findings);
        forwards(facts, &mut findings);
        udp(facts, &mut findings);
    }
    (findings.list, trouble)
}

/// The uplinks that were tried, by name.
fn trials(facts: &Facts) -> impl Iterator<Item = (&str, &Trial)> {
    facts.uplinks.iter().filter_map(|it| Some((it.uplink.name.as_str(), it.trial.as_ref()?)))
}

fn reach(server: &ServerFacts, facts: &Facts, findings: &mut Findings) {
    let port = server.config.port;
    let at = format!("{}:{port}", server.config.address);
    if facts.agent.is_none() {
        return findings.ok("reach", format!("{at}, not tried"));
    }
    let trouble = server.trouble.as_deref().unwrap_or("no answer yet");
    if server.addresses.is_empty() {
        let advice = "check the router's DNS, or correct option 'address'";
        return findings.fail("reach", "no_address", trouble, advice);
    }
    let replies = || {
        trials(facts).filter_map(|(name, trial)| match &trial.contact {
            Contact::Made { reply, .. } => Some((name, reply)),
            _ => None,
        })
    };
    let welcomed: Vec<(&str, &str)> = replies()
        .filter_map(|(name, reply)| match reply {
            Reply::Welcome(software) => Some((name, software.as_str())),
            _ => None,
        })
        .collect();
    if let Some((_, software)) = welcomed.first() {
        let names: Vec<&str> = welcomed.iter().map(|(name, _)| *name).collect();
        findings.ok("reach", format!("{at} answers on {}", names.join(", ")));
        findings.ok("key", "both ends know each other's");
        findings.ok("version", *software);
        if !server.connected {
            let advice = "look at the server's log; the agent goes on trying";
            findings.fail("session", "no_session", trouble, advice);
        }
        return;
    }
    // The most telling answer decides.
    if let Some(refusal) = replies().find_map(|(_, reply)| match reply {
        Reply::Refused(refusal) => Some(*refusal),
        _ => None,
    }) {
        return refused(refusal, findings);
    }
    let answered = |wanted: fn(&Reply) -> bool| replies().any(|(_, reply)| wanted(reply));
    if answered(|reply| *reply == Reply::HungUp) {
        findings.fail(
            "key",
            "wrong_key",
            format!("{at} hangs up during the handshake"),
            "its key is not the one in option 'public_key', or another program listens there: \
             pair again",
        );
    } else if let Some((_, reply)) = replies().next() {
        let what = match reply {
            Reply::Other(what) => what.as_str(),
            _ => "it accepts connections and then says nothing",
        };
        let advice = "look whether 'mptcp-bond server' runs there and is well";
        findings.fail("reach", "server_mute", format!("{at}: {what}"), advice);
    } else if trials(facts).any(|(_, trial)| trial.contact == Contact::Refused) {
        findings.fail(
            "reach",
            "server_down",
            format!("{at} refuses connections: nothing listens on port {port}"),
            "start 'mptcp-bond server' there, or correct option 'port'",
        );
    } else if silent_on_all(facts) {
        findings.fail(
            "reach",
            "server_down",
            format!("{at} answers on no uplink, not even on those that seem to work"),
            format!("look whether the server is up and lets TCP and UDP port {port} in"),
        );
    } else if server.connected {
        findings.ok("reach", format!("{at} is connected"));
    }
    // Otherwise each uplink has a reason of its own.
}

fn refused(refusal: Refusal, findings: &mut Findings) {
    let (code, advice) = match refusal {
        Refusal::UnknownKey | Refusal::Revoked => {
            ("wrong_key", "run 'server invite' there and 'pair' here")
        }
        Refusal::Busy => ("server_busy", "see with 'mptcp-bond server clients' there who uses it"),
        _ => ("server_refuses", "update both ends to the same version"),
    };
    findings.fail("key", code, refusal.to_string(), advice);
}

/// Whether nothing at all came back on any of the uplinks tried, although a way to it seems open.
fn silent_on_all(facts: &Facts) -> bool {
    let silent = |trial: &Trial| {
        trial.contact == Contact::Unanswered { plain: false }
            && !matches!(trial.datagrams, Datagrams::Answered { .. })
    };
    let open = |it: &&UplinkFacts, trial: &Trial| {
        trial.gateway != Gateway::Silent && it.internet != Some(false)
    };
    let tried = facts.uplinks.iter().filter_map(|it| Some((it, it.trial.as_ref()?)));
    let mut open = tried.filter(|(it, trial)| open(it, trial)).map(|(_, trial)| trial).peekable();
    open.peek().is_some() && open.all(silent)
}

fn mptcp(limits: ServerLimits, findings: &mut Findings) {
    if limits.subflows.is_none() {
        findings.fail(
            "MPTCP",
            "server_no_mptcp",
            "not in the server's kernel: nothing is bonded",
            "use a kernel with CONFIG_MPTCP=y there",
        );
    } else if !limits.mptcp {
        findings.fail(
            "MPTCP",
            "server_mptcp_off",
            "switched off on the server: nothing is bonded",
            "run 'sysctl -w net.mptcp.enabled=1' there",
        );
    }
}

/// Whether the server takes as many subflows as there are uplinks in use. A limit that was lowered
/// does not end those that are there.
fn room(limits: ServerLimits, facts: &Facts, findings: &mut Findings) {
    let subflows = limits.subflows.unwrap_or(0);
    let found = format!("{subflows} subflows beside the first");
    if !limits.too_few_for(facts) {
        return findings.ok("limits", found);
    }
    let found = format!("{found}, fewer than there are uplinks in use");
    let advice = "run 'ip mptcp limits set subflows 8' there, or restart its server as root";
    if trials(facts).any(|(_, trial)| trial.join == Join::Rejected) {
        findings.fail("limits", "limit_reached", found, advice);
    } else {
        findings.warn("limits", "limit_low", found, advice);
    }
}

/// The ports that are to lead to the LAN.
fn forwards(facts: &Facts, findings: &mut Findings) {
    for (port, denial) in facts.agent.iter().flat_map(|agent| &agent.forwards) {
        match denial {
            None => findings.ok("forward", port.clone()),
            Some((found, advice)) => {
                findings.warn("forward", "forward_denied", found, *advice);
            }
        }
    }
}

/// The UDP that is to be tunnelled.
fn udp(facts: &Facts, findings: &mut Findings) {
    if let Some((found, advice)) = facts.agent.as_ref().and_then(|agent| agent.udp_trouble) {
        findings.warn("udp", "udp_not_carried", found, advice);
    }
}

/// What works in spite of it.
fn rest(limits: ServerLimits, findings: &mut Findings) {
    if !limits.buffers {
        findings.warn(
            "buffers",
            "server_buffers",
            "TCP's largest buffers on the server are too small for fast or far uplinks",
            "run the server as root, or raise net.ipv4.tcp_rmem and tcp_wmem there",
        );
    }
    if limits.lacks_ipv6 {
        findings.ok("IPv6", "the server has none: the LAN's is refused, and goes on over IPv4");
    }
    let off = limits.clock_ahead_ms;
    if off.unsigned_abs() > CLOCK_TOLERANCE_MS {
        let (seconds, how) = (off.unsigned_abs() / 1000, if off > 0 { "ahead" } else { "behind" });
        let found = format!("the server's clock is {seconds} s {how} of this router's");
        findings.warn("clock", "clock", found, "set both by NTP");
    } else {
        findings.ok("clock", "agrees with this router's");
    }
}
