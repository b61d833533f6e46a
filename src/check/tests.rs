mod server;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::*;
use crate::config::agent::{AgentConfig, Quota, QuotaAction, Role};
use crate::desired::{self, LIMITS};
use crate::failover::{Failover, InForce, Reason};
use crate::floor::{Burden, BurdenKind};
use crate::interception::TproxyPorts;
use crate::net::{Family, Kernel};
use crate::quota::{Cap, Standing};
use crate::status::Style;
use crate::uplink::tests::{address, same_subnet, two_configs};
use crate::uplink::{Uplink, observe};

const WIDE: Style = Style { width: usize::MAX, colour: false, unicode: true, graph: false };
const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1));

fn config() -> AgentConfig {
    let text = "config server 'vps'\n option address 'vps.example.net'\n option public_key \
                'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE='\n\
                config uplink 'wan'\n option device 'eth1'\n\
                config uplink 'wanb'\n option device 'eth2'\n";
    AgentConfig::parse(text, "mptcpd").unwrap()
}

/// Everything passes, and the uplink's own address is seen.
fn good_trial(own: IpAddr) -> Trial {
    let rtt = Duration::from_millis(20);
    Trial {
        gateway: Gateway::Answers,
        contact: Contact::Made { mptcp: true, reply: Reply::Welcome("mptcp-bond 1".into()), rtt },
        join: Join::Joined,
        datagrams: Datagrams::Answered { observed: (own, 4500).into(), rtt },
        path_mtu: PathMtu::Passes(1500),
    }
}

/// The kernel as the agent would have made it.
fn settled(
    mut kernel: Kernel,
    uplinks: &[Uplink],
    facts: &[crate::failover::Assignment],
) -> Kernel {
    let config = config();
    let wish = desired::desired(&desired::Input {
        config: &config,
        uplinks,
        assignments: facts,
        servers: &[SERVER],
        server: Some(SERVER),
        server_reachable: true,
        server_lacks_ipv6: false,
        udp_ports: &[],
        ports: TproxyPorts { v4: Some(1), v6: None },
        lan: &config.lan,
        direct: &litemap::LiteMap::new(),
        kernel: &kernel,
    });
    kernel.routes.extend(wish.routes);
    kernel.rules.extend(wish.rules);
    kernel.endpoints.extend(wish.endpoints);
    kernel.limits = Some(LIMITS);
    kernel
}

/// Two uplinks, `wan` on eth1 and `wanb` on eth2, and a server, all of them well.
fn well() -> Facts {
    with_kernel(same_subnet(), two_configs())
}

fn with_kernel(kernel: Kernel, configs: Vec<crate::config::agent::UplinkConfig>) -> Facts {
    let uplinks = observe(&configs, &kernel, &[]);
    let assignments = Failover::default().assign(&uplinks, &[], &[Family::V4], Instant::now());
    let kernel = settled(kernel, &uplinks, &assignments);
    let facts = uplinks.iter().zip(assignments).map(|(uplink, assignment)| UplinkFacts {
        family: Some(Family::V4),
        first: uplink.slot == 0,
        rtt: Some(Duration::from_millis(12)),
        loss: Some(0.0),
        internet: None,
        untunnelled: Vec::new(),
        trial: uplink.v4.as_ref().map(|path| good_trial(path.address)),
        assignment: Some(assignment),
        uplink: uplink.clone(),
    });
    Facts {
        version: "1.2.3".into(),
        config: Ok(config()),
        agent: Some(AgentFacts::default()),
        server: Some(ServerFacts {
            config: config().servers.remove(0),
            addresses: vec![SERVER],
            address: Some(SERVER),
            connected: true,
            trouble: None,
            limits: Some(ServerLimits {
                subflows: Some(8),
                mptcp: true,
                buffers: true,
                lacks_ipv6: false,
                clock_ahead_ms: -20,
            }),
        }),
        uplinks: facts.collect(),
        kernel: KernelFacts { dump: Ok(kernel), tproxy: Ok(()), diag: true },
    }
}

/// What the check says of `wanb` when its trial is changed.
fn wanb(change: impl FnOnce(&mut Trial)) -> UplinkVerdict {
    let mut facts = well();
    change(facts.uplinks[1].trial.as_mut().unwrap());
    let report = judge(&facts);
    assert!(!report.well);
    assert!(report.uplinks[0].carries, "wan is well:\n{}", render(&report, WIDE));
    report.uplinks[1].clone()
}

fn verdict(reason: &'static str) -> UplinkVerdict {
    UplinkVerdict { name: "wanb".into(), carries: false, reason: Some(reason.into()) }
}

#[test]
fn where_all_is_well_nothing_is_to_be_done() {
    let report = judge(&well());
    assert!(report.well, "{}", render(&report, WIDE));
    assert!(report.findings.iter().all(|finding| finding.advice.is_empty()));
    assert!(report.uplinks.iter().all(|uplink| uplink.carries && uplink.reason.is_none()));
}

#[test]
fn each_cause_on_the_way_is_named() {
    let unanswered = Contact::Unanswered { plain: false };
    assert_eq!(
        wanb(|trial| {
            trial.gateway = Gateway::Silent;
            trial.contact = unanswered.clone();
            trial.datagrams = Datagrams::Unanswered;
        }),
        verdict("gateway_silent")
    );
    let made = |mptcp| Contact::Made {
        mptcp,
        reply: Reply::Welcome("mptcp-bond 1".into()),
        rtt: Duration::from_millis(1),
    };
    type Change<'a> = Box<dyn FnOnce(&mut Trial) + 'a>;
    let causes: [(&str, Change); 11] = [
        (
            "no_route",
            Box::new(|it| {
                it.contact = Contact::NoRoute;
                it.datagrams = Datagrams::Unanswered;
            }),
        ),
        (
            "no_route",
            Box::new(|it| {
                it.contact = unanswered.clone();
                it.datagrams = Datagrams::NoRoute;
            }),
        ),
        ("syn_dropped", Box::new(|it| it.contact = Contact::Unanswered { plain: true })),
        ("tcp_blocked", Box::new(|it| it.contact = unanswered.clone())),
        ("tcp_blocked", Box::new(|it| it.contact = Contact::Refused)),
        (
            "unanswered",
            Box::new(|it| {
                it.contact = unanswered.clone();
                it.datagrams = Datagrams::Unanswered;
            }),
        ),
        (
            "mp_capable_stripped",
            Box::new(|it| {
                it.contact = made(false);
                it.join = Join::Rejected;
            }),
        ),
        ("mp_join_stripped", Box::new(|it| it.join = Join::Rejected)),
        ("mp_join_dropped", Box::new(|it| it.join = Join::Unanswered)),
        (
            "mtu_black_hole",
            Box::new(|it| it.path_mtu = PathMtu::Hole { size: 1500, passes: Some(1400) }),
        ),
        ("untried", Box::new(|it| it.contact = Contact::Untried("no memory".into()))),
    ];
    for (code, change) in causes {
        assert_eq!(wanb(change), verdict(code));
    }
}

#[test]
fn what_still_carries_data_is_a_warning() {
    let mut facts = well();
    let trial = facts.uplinks[1].trial.as_mut().unwrap();
    trial.datagrams = Datagrams::Unanswered;
    let report = judge(&facts);
    assert_eq!((report.count(Grade::Warning), report.count(Grade::Failed)), (1, 0));
    assert!(report.uplinks[1].carries && !report.well);
    // Until TCP has shown that it works.
    let assignment = facts.uplinks[1].assignment.as_mut().unwrap();
    assignment.in_force = InForce::Unused;
    assignment.reason = Reason::Unanswered(Duration::from_secs(9));
    assert_eq!(judge(&facts).uplinks[1], verdict("udp_blocked"));
    // Connections begin on the first uplink: it need not be joined.
    let mut facts = well();
    facts.uplinks[0].trial.as_mut().unwrap().join = Join::Rejected;
    let report = judge(&facts);
    assert_eq!((report.count(Grade::Warning), report.count(Grade::Failed)), (1, 0));
    assert!(report.uplinks[0].carries);
}

#[test]
fn each_fault_of_the_router_is_named() {
    let down = |change: fn(&mut Kernel)| {
        let mut kernel = same_subnet();
        change(&mut kernel);
        let report = judge(&with_kernel(kernel, two_configs()));
        assert!(report.uplinks[0].carries);
        report.uplinks[1].clone()
    };
    let eth2 = crate::net::IfIndex(4);
    assert_eq!(down(|kernel| drop(kernel.links.remove(&crate::net::IfIndex(4)))).reason, {
        Some("no_device".into())
    });
    assert_eq!(down(|kernel| kernel.addresses.truncate(3)), verdict("no_address"));
    assert_eq!(down(|kernel| kernel.routes.truncate(1)), verdict("no_gateway"));
    let clash = |kernel: &mut Kernel| kernel.addresses[3] = address(4, "192.0.2.10/24");
    assert_eq!(down(clash), verdict("address_clash"));
    for (change, code) in [
        ((|link| link.carrier = false) as fn(&mut crate::net::Link), "no_carrier"),
        (|link| link.up = false, "device_down"),
    ] {
        let mut kernel = same_subnet();
        change(kernel.links.get_mut(&eth2).unwrap());
        let report = judge(&with_kernel(kernel, two_configs()));
        assert_eq!(report.uplinks[1], verdict(code));
    }
}

#[test]
fn another_network_with_the_same_addresses_is_named() {
    let mut kernel = same_subnet();
    kernel.addresses[1] = address(2, "192.0.2.129/25");
    let report = judge(&with_kernel(kernel.clone(), two_configs()));
    assert_eq!((report.count(Grade::Warning), report.count(Grade::Failed)), (2, 0));
    assert!(report.findings.iter().any(|finding| finding.code == "subnet_clash"));
    // Where the gateway's address is this router's, the kernel takes no route.
    kernel.routes.truncate(1);
    let report = judge(&with_kernel(kernel, two_configs()));
    assert_eq!(report.uplinks[1], verdict("subnet_clash"));
}

#[test]
fn missing_routes_and_endpoints_are_named() {
    let without = |change: fn(&mut Kernel)| {
        let mut facts = well();
        change(facts.kernel.dump.as_mut().unwrap());
        judge(&facts).uplinks[1].clone()
    };
    let table = |kernel: &mut Kernel| kernel.routes.retain(|route| route.table.0 != 5002);
    assert_eq!(without(table), verdict("no_route"));
    assert_eq!(without(|kernel| kernel.rules.clear()), verdict("no_rule"));
    assert_eq!(without(|kernel| kernel.endpoints.truncate(1)), verdict("no_endpoint"));
    assert_eq!(
        without(|kernel| {
            let foreign = |id| crate::net::Endpoint {
                id: crate::net::EndpointId(id),
                address: [203, 0, 113, id].into(),
                ..kernel.endpoints[0].clone()
            };
            let others: Vec<_> = (1..8).map(foreign).collect();
            kernel.endpoints.truncate(1);
            kernel.endpoints.extend(others);
        }),
        verdict("limit_reached")
    );
}

fn cap() -> Cap {
    let quota = Quota { bytes: 1000, reset_day: 1, action: QuotaAction::Backup };
    Cap { quota, standing: Standing { bytes: 1000, since: None, until: None } }
}

fn far() -> Burden {
    let (rtt, least) = (Duration::from_millis(300), Duration::from_millis(10));
    Burden { kind: BurdenKind::Far { rtt, least }, again: None }
}

#[test]
fn roles_explain_themselves() {
    for (in_force, reason, code, grade) in [
        // Whatever keeps a bond uplink from being used.
        (InForce::Backup, Reason::Burden(far()), "demoted", Grade::Warning),
        (InForce::Backup, Reason::Capped(cap()), "quota_reached", Grade::Warning),
        (InForce::Unused, Reason::Capped(cap()), "quota_reached", Grade::Warning),
        (InForce::Unused, Reason::Unanswered(Duration::from_secs(9)), "unanswered", Grade::Failed),
        (InForce::Backup, Reason::TooLossy, "lossy", Grade::Warning),
        (InForce::Unused, Reason::HeldDown(Duration::from_secs(9)), "held_down", Grade::Warning),
        (InForce::Unused, Reason::TooMany, "limit_reached", Grade::Failed),
    ] {
        let mut facts = well();
        let assignment = facts.uplinks[1].assignment.as_mut().unwrap();
        (assignment.in_force, assignment.reason) = (in_force, reason);
        let report = judge(&facts);
        assert_eq!(report.uplinks[1], verdict(code));
        let last = report.findings.last().unwrap();
        assert_eq!(last.result, grade);
        assert!(!last.advice.is_empty(), "{code}");
    }
    for (role, code) in [(Role::Off, "switched_off"), (Role::Backup, "standby")] {
        let mut configs = two_configs();
        configs[1].role = role;
        let report = judge(&with_kernel(same_subnet(), configs));
        assert_eq!(report.uplinks[1], verdict(code));
        assert!(report.well, "as wanted");
    }
}

#[test]
fn an_uplink_that_carries_nothing_has_one_reason() {
    let mut facts = well();
    let trial = facts.uplinks[1].trial.as_mut().unwrap();
    trial.path_mtu = PathMtu::Hole { size: 1500, passes: None };
    trial.join = Join::Rejected;
    let report = judge(&facts);
    let failed = report.findings.iter().filter(|finding| finding.result == Grade::Failed);
    assert_eq!(failed.count(), 1, "{}", render(&report, WIDE));
}

#[test]
fn without_an_agent_devices_are_looked_at() {
    let mut facts = well();
    facts.agent = None;
    for uplink in &mut facts.uplinks {
        (uplink.trial, uplink.assignment, uplink.family) = (None, None, None);
    }
    let links = &mut facts.kernel.dump.as_mut().unwrap().links;
    links.clear();
    let report = judge(&facts);
    assert!(!report.agent_running && !report.well);
    assert_eq!(report.uplinks[1], verdict("agent_not_running"));
    facts.config = Err("mptcpd:3: unknown option".into());
    assert!(render(&judge(&facts), WIDE).contains("mptcpd:3: unknown option"));
}

#[test]
fn an_agent_that_is_switched_off_is_the_reason() {
    let mut facts = well();
    facts.config.as_mut().unwrap().enabled = false;
    facts.kernel.dump.as_mut().unwrap().routes.clear();
    facts.server = None;
    assert_eq!(judge(&facts).uplinks[1], verdict("idle"));
}

#[test]
fn the_kernel_and_what_is_in_the_way() {
    let mut facts = well();
    facts.kernel.tproxy = Err("nft: no such expression".into());
    facts.kernel.diag = false;
    let kernel = facts.kernel.dump.as_mut().unwrap();
    kernel.sysctls.insert(MPTCP_ENABLED.into(), "0".into());
    kernel.limits = Some(crate::net::Limits { subflows: 2, add_addr_accepted: 0 });
    facts.agent = Some(AgentFacts {
        conflicts: vec!["mptcpd is running and manages MPTCP endpoints as well: stop it".into()],
        failures: vec![("ip rule add".into(), "EPERM".into())],
        sysctls_not_set: vec![("net.mptcp.x".into(), "1".into(), "EINVAL".into())],
        sysctls_absent: vec!["net.mptcp.y".into()],
        config_error: Some("mptcpd:1: no".into()),
        forwards: Vec::new(),
        udp_trouble: None,
    });
    let codes: Vec<String> = judge(&facts)
        .findings
        .into_iter()
        .filter(|finding| finding.subject == "kernel" || finding.subject == "configuration")
        .map(|finding| format!("{:?} {}", finding.result, finding.code))
        .collect();
    let expected = [
        "Ok ok",
        "Failed config_wrong",
        "Failed mptcp_off",
        "Warning limit_low",
        "Warning sysctl",
        "Ok sysctl_absent",
        "Failed no_tproxy",
        "Ok no_diag",
        "Failed conflict",
        "Failed operation_fails",
    ];
    assert_eq!(codes, expected);
}

#[test]
fn udp_that_is_not_carried_is_told() {
    let mut facts = well();
    facts.agent.as_mut().unwrap().udp_trouble = Some(("too old", "update the server"));
    let report = judge(&facts);
    let told = report.findings.iter().find(|finding| finding.check == "udp");
    let told = told.map(|it| (&*it.subject, &*it.code, &*it.found, &*it.advice));
    assert_eq!(told, Some(("server vps", "udp_not_carried", "too old", "update the server")));
}

#[test]
fn a_port_that_is_not_forwarded_is_told_with_what_to_do() {
    let mut facts = well();
    let denial = ("forward web: no port 80: another program listens there".into(), "stop it");
    facts.agent.as_mut().unwrap().forwards =
        vec![("port 2222".into(), None), ("port 80".into(), Some(denial))];
    let report = judge(&facts);
    let findings = report.findings.iter().filter(|finding| finding.check == "forward");
    let told: Vec<(&str, &str, &str)> =
        findings.map(|it| (&*it.code, &*it.found, &*it.advice)).collect();
    let web = "forward web: no port 80: another program listens there";
    assert_eq!(told, [("ok", "port 2222", ""), ("forward_denied", web, "stop it")]);
    assert!(!report.well && report.uplinks.iter().all(|uplink| uplink.carries));
}

#[test]
fn people_read_the_problems_first() {
    let mut facts = well();
    facts.uplinks[1].trial.as_mut().unwrap().join = Join::Rejected;
    facts.uplinks[0].untunnelled = vec![Family::V4];
    facts.uplinks[1].untunnelled = vec![Family::V6];
    let expected = "\
mptcp-bond 1.2.3  1 problem

uplink wanb: its network removes MP_JOIN on port 443; MP_CAPABLE passes
  -> let the server listen on port 8443 and set option 'port' to it, or ask the ISP

SUBJECT        CHECK     RESULT  FOUND
configuration  agent     ok      runs, version 1.2.3
               file      ok      uplinks wan, wanb; server vps
kernel         MPTCP     ok      in the kernel and switched on
               limits    ok      8 subflows beside the first
               sysctls   ok      as they should be
               TPROXY    ok      nft can divert connections to the agent
               diag      ok      'ss -M' can list MPTCP sockets
server vps     reach     ok      vps.example.net:443 answers on wan, wanb
               key       ok      both ends know each other's
               version   ok      mptcp-bond 1
               limits    ok      8 subflows beside the first
               clock     ok      agrees with this router's
uplink wan     device    ok      eth1, up, MTU 1500 bytes
               address   ok      192.0.2.10, gateway 192.0.2.1
               route     ok      table 5001, with its rules
               endpoint  ok      200 192.0.2.10
               gateway   ok      answers
               server    ok      answers on port 443, RTT 12.0 ms, 0 % of probes lost
               NAT       ok      none
               MPTCP     ok      MP_CAPABLE and MP_JOIN pass on port 443
               path MTU  ok      packets of 1500 bytes pass
               use       ok      carries traffic: not probed yet
               direct    ok      untunnelled IPv4 leaves over it
uplink wanb    device    ok      eth2, up, MTU 1500 bytes
               address   ok      192.0.2.20, gateway 192.0.2.1
               route     ok      table 5002, with its rules
               endpoint  ok      201 192.0.2.20
               gateway   ok      answers
               server    ok      answers on port 443, RTT 12.0 ms, 0 % of probes lost
               NAT       ok      none
               MPTCP     FAILED  its network removes MP_JOIN on port 443; MP_CAPABLE passes
               direct    ok      untunnelled IPv6 leaves over it
";
    assert_eq!(render(&judge(&facts), WIDE), expected);
}

#[test]
fn a_report_survives_json() {
    let report = judge(&well());
    assert_eq!(Report::from_json(&report.to_json()), Ok(report));
    assert!(Report::from_json("{").unwrap_err().contains("cannot be read"));
}
