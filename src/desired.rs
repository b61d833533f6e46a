//! The wish: what of ours the kernel should hold.

mod direct;

use std::net::IpAddr;

use litemap::LiteMap;

use crate::config::agent::{AgentConfig, Role};
use crate::failover::{Assignment, InForce};
use crate::interception::{self, Interception, TproxyPorts};
use crate::net::{
    Endpoint, EndpointId, Family, IfIndex, Kernel, LOOPBACK, Limits, MAIN, MARK_MASK, Prefix,
    Priority, ROUTE_PROTOCOL, Route, RouteKind, Rule, TPROXY_MARK, TPROXY_TABLE, Table,
};
use crate::uplink::{self, Device, Path, Uplink};
pub use direct::{Direct, addresses};

/// Everything of ours that should be in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Routes, all in our tables and of our protocol.
    pub routes: Vec<Route>,
    /// Rules, all in our priorities.
    pub rules: Vec<Rule>,
    /// Endpoints, all with our ids.
    pub endpoints: Vec<Endpoint>,
    /// MPTCP limits; `None` leaves them alone.
    pub limits: Option<Limits>,
    /// Sysctls by path below `/proc/sys`.
    pub sysctls: LiteMap<String, String>,
    /// Our nft table's text; `None` means that there is none.
    pub nft: Option<String>,
}

/// What the wish is made from.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    /// The configuration.
    pub config: &'a AgentConfig,
    /// The uplinks as observed in `kernel`.
    pub uplinks: &'a [Uplink],
    /// Their roles in force.
    pub assignments: &'a [Assignment],
    /// All addresses of the server.
    pub servers: &'a [IpAddr],
    /// The address of the server in use, when there is one.
    pub server: Option<IpAddr>,
    /// Whether the server takes connections.
    pub server_reachable: bool,
    /// Whether the server has no way to IPv6 targets.
    pub server_lacks_ipv6: bool,
    /// UDP ports that the server carries, inclusive ranges.
    pub udp_ports: &'a [(u16, u16)],
    /// The agent's TPROXY listeners.
    pub ports: TproxyPorts,
    /// LAN devices.
    pub lan: &'a [String],
    /// Where untunnelled traffic leaves; a family that is missing is left to the main table.
    pub direct: &'a LiteMap<Family, Direct>,
    /// The dump: local prefixes, and which sysctls exist with what values.
    pub kernel: &'a Kernel,
}

/// Subflows beyond the first that a connection may have; the kernel's maximum through Linux 6.18.
/// ADD_ADDR is not acted upon: the endpoints say which paths there are.
pub const LIMITS: Limits = Limits { subflows: 8, add_addr_accepted: 0 };

/// Diverts what TPROXY has marked.
const PRIORITY_TPROXY: Priority = Priority(500);
/// Sockets bound to an uplink's device: subflows and probes.
const PRIORITY_DEVICE: Priority = Priority(510);
/// An uplink's address towards the LAN and other local networks: main, but for its default route.
const PRIORITY_LOCAL: Priority = Priority(600);
/// An uplink's address towards anywhere else.
const PRIORITY_SOURCE: Priority = Priority(610);

/// IPv6's metric where none is given (`IP6_RT_PRIO_USER`).
const METRIC_V6: u32 = 1024;
/// The largest `advmss` the kernel stores (`ip_metrics_convert`).
const ADVMSS_MAX: u32 = 65535 - 40;

/// Bytes a TCP socket may buffer on a router: twice 1 Gbit/s at 65 ms, 500 Mbit/s at 130 ms.
const BUFFER_AGENT: u64 = 16 << 20;
/// The same on a server, which holds many routers' far ends.
const BUFFER_SERVER: u64 = 32 << 20;

/// MPTCP sysctls of both ends.
const MPTCP_SYSCTLS: &[(&str, &str)] = &[
    ("net/mptcp/enabled", "1"),
    // After one retransmission timeout a backup path takes over: 0.3 s of gap instead of 0.9 s.
    ("net/mptcp/stale_loss_cnt", "1"),
    // Dropped MP_CAPABLE SYNs must not switch MPTCP off for an hour.
    ("net/mptcp/blackhole_timeout", "0"),
    // How long a connection survives without any subflow.
    ("net/mptcp/close_timeout", "240"),
    ("net/mptcp/allow_join_initial_addr_port", "1"),
    ("net/mptcp/checksum_enabled", "0"),
    // More than a SYN's retransmissions: a lossy uplink must not turn connections into plain TCP.
    ("net/mptcp/syn_retrans_before_tcp_fallback", "16"),
];
/// Ports of connections that have ended serve new ones after a second instead of a minute, as far as
/// timestamps tell the packets apart. All tunnelled connections of an uplink go to one address, and those
/// of all clients to a popular target come from one: looking for a free port took most of the processor at
/// 14,000 connections in a minute, and at 28,000 there would be none.
const REUSE_PORTS: (&str, &str) = ("net/ipv4/tcp_tw_reuse", "1");
/// The path manager in the kernel: by name since Linux 6.15, by number before.
const PATH_MANAGER: [(&str, &str); 2] =
    [("net/mptcp/path_manager", "kernel"), ("net/mptcp/pm_type", "0")];
/// Least, default and most bytes of TCP's socket buffers, and the least default.
///
/// The scheduler gives a subflow up to 64 KiB at a time (`MPTCP_SEND_BURST_SIZE`), and what comes over
/// a fast uplink waits in the receive buffer for what was lost, or is late, on a slow one. The kernel
/// enlarges the buffer by what arrives in order, and does so slowly while it is full: beside 20 Mbit/s
/// at 60 ms with 1 % of loss, 100 Mbit/s went at 50 for 12 s with 1 MiB.
const TCP_BUFFERS: [(&str, u64); 2] = [("net/ipv4/tcp_rmem", 4 << 20), ("net/ipv4/tcp_wmem", 0)];

/// What of ours the kernel should hold.
///
/// Routes and rules exist as far as the facts allow, also for an uplink that is down: its probes
/// need them. Endpoints exist for uplinks in force.
pub fn desired(input: &Input) -> Desired {
    let mut routes = tproxy_routes(input.ports);
    let mut rules = tproxy_rules(input.ports);
    for uplink in input.uplinks.iter().filter(|uplink| uplink.role != Role::Off) {
        let Some(device) = &uplink.device else { continue };
        for family in Family::ALL {
            let Some(path) = uplink.path(family) else { continue };
            rules.push(Rule {
                oif: Some(device.name.clone()),
                ..rule(PRIORITY_DEVICE, family, uplink.table())
            });
            // The kernel takes no routes through a device that is down.
            if device.up {
                routes.extend(uplink_routes(uplink.table(), device, path));
            }
            if path.clash.is_none() {
                rules.extend(source_rules(uplink.table(), path.address));
            }
        }
    }
    rules.extend(direct::rules(input));
    let local = local_prefixes(input.kernel, input.uplinks);
    let nft = interception::ruleset(&Interception {
        lan: input.lan,
        ports: input.ports,
        servers: input.servers,
        local: &local,
        bypasses: &input.config.bypasses,
        server_reachable: input.server_reachable,
        server_lacks_ipv6: input.server_lacks_ipv6,
        on_server_loss: input.config.on_server_loss,
        quic: input.config.quic,
        udp_ports: input.udp_ports,
        uplinks: &direct::marks(input.uplinks, input.kernel),
    });
    Desired {
        routes,
        rules,
        endpoints: endpoints(input),
        limits: Some(LIMITS),
        sysctls: agent_sysctls(input.uplinks, &input.kernel.sysctls),
        nft,
    }
}

/// The families that matter: the used server's, or both while there is none.
pub fn families(server: Option<IpAddr>) -> &'static [Family] {
    match server.map(Family::of) {
        Some(Family::V4) => &[Family::V4],
        Some(Family::V6) => &[Family::V6],
        None => &Family::ALL,
    }
}

/// The sysctls a dump should hold for an agent with these uplinks.
pub fn sysctls_needed(uplinks: &[Uplink]) -> Vec<String> {
    let mut keys = server_sysctls_needed();
    keys.extend(uplinks.iter().filter_map(rp_filter));
    keys
}

/// The sysctls a dump should hold for a server.
pub fn server_sysctls_needed() -> Vec<String> {
    let fixed = MPTCP_SYSCTLS.iter().chain(&PATH_MANAGER).chain([&REUSE_PORTS]);
    let buffers = TCP_BUFFERS.iter().map(|(key, _)| key);
    fixed.map(|(key, _)| key).chain(buffers).map(|key| key.to_string()).collect()
}

/// MPTCP sysctls that the kernel lacks, with the values they should have. Of the path manager's two
/// names one is enough.
pub fn absent_sysctls(found: &LiteMap<String, String>) -> Vec<(&'static str, &'static str)> {
    let absent = |(key, _): &(&str, &str)| !found.contains_key(*key);
    let mut sysctls: Vec<_> = MPTCP_SYSCTLS.iter().copied().filter(absent).collect();
    if PATH_MANAGER.iter().all(absent) {
        sysctls.push(PATH_MANAGER[0]);
    }
    sysctls
}

/// A server's sysctls, of those that `found` shows to exist.
pub fn server_sysctls(found: &LiteMap<String, String>) -> LiteMap<String, String> {
    common_sysctls(found, BUFFER_SERVER)
}

fn agent_sysctls(uplinks: &[Uplink], found: &LiteMap<String, String>) -> LiteMap<String, String> {
    let mut sysctls = common_sysctls(found, BUFFER_AGENT);
    let switched_on = uplinks.iter().filter(|uplink| uplink.role != Role::Off);
    for key in switched_on.filter_map(rp_filter).filter(|key| found.contains_key(key)) {
        // Loose: an answer may come in on one uplink while main's default route is another's.
        sysctls.insert(key, "2".into());
    }
    sysctls
}

fn common_sysctls(found: &LiteMap<String, String>, buffer: u64) -> LiteMap<String, String> {
    let exists = |(key, _): &&(&str, &str)| found.contains_key(*key);
    // Both name the same setting; writing the old one where the new one exists is deprecated.
    let path_manager = PATH_MANAGER.iter().find(exists);
    let mut sysctls: LiteMap<String, String> = MPTCP_SYSCTLS
        .iter()
        .chain([&REUSE_PORTS])
        .filter(exists)
        .chain(path_manager)
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect();
    for (key, default) in TCP_BUFFERS {
        if let Some(raised) = found.get(key).and_then(|value| raise_buffer(value, default, buffer))
        {
            sysctls.insert(key.to_string(), raised);
        }
    }
    sysctls
}

/// `least default most` with the last two raised to what is given, never lowered.
fn raise_buffer(value: &str, least_default: u64, least_most: u64) -> Option<String> {
    let mut fields = value.split_whitespace();
    let (least, default, most) = (fields.next()?, fields.next()?, fields.next()?);
    let default = default.parse::<u64>().ok()?.max(least_default);
    let most = most.parse::<u64>().ok()?.max(least_most);
    Some(format!("{least} {default} {most}"))
}

fn rp_filter(uplink: &Uplink) -> Option<String> {
    let device = uplink.device.as_ref()?;
    Some(format!("net/ipv4/conf/{}/rp_filter", device.name))
}

fn tproxy_families(ports: TproxyPorts) -> impl Iterator<Item = Family> {
    [(Family::V4, ports.v4), (Family::V6, ports.v6)]
        .into_iter()
        .filter_map(|(family, port)| port.map(|_| family))
}

fn tproxy_routes(ports: TproxyPorts) -> Vec<Route> {
    let route = |family| Route {
        kind: RouteKind::Local,
        ..route(TPROXY_TABLE, Prefix::default_route(family), LOOPBACK)
    };
    tproxy_families(ports).map(route).collect()
}

fn tproxy_rules(ports: TproxyPorts) -> Vec<Rule> {
    let rule = |family| Rule {
        mark: Some((TPROXY_MARK, MARK_MASK)),
        ..rule(PRIORITY_TPROXY, family, TPROXY_TABLE)
    };
    tproxy_families(ports).map(rule).collect()
}

fn route(table: Table, destination: Prefix, device: IfIndex) -> Route {
    Route {
        table,
        destination,
        from: None,
        metric: match destination.family() {
            Family::V4 => 0,
            Family::V6 => METRIC_V6,
        },
        kind: RouteKind::Unicast,
        gateway: None,
        device,
        source: None,
        onlink: false,
        advmss: None,
        protocol: ROUTE_PROTOCOL,
    }
}

fn rule(priority: Priority, family: Family, table: Table) -> Rule {
    Rule {
        priority,
        family,
        from: None,
        to: None,
        iif: None,
        oif: None,
        mark: None,
        table,
        suppress_prefix_length: None,
    }
}

/// The on-link route, which the default route's gateway is looked up in, and the default route.
fn uplink_routes(table: Table, device: &Device, path: &Path) -> Vec<Route> {
    let family = Family::of(path.address);
    let common = |destination| Route {
        source: Some(path.address),
        advmss: advmss(device.mtu, family),
        ..route(table, destination, device.index)
    };
    let mut routes = Vec::new();
    if path.onlink.length < family.bits() {
        routes.push(common(path.onlink));
    }
    if path.routable {
        let onlink = path.gateway.is_some_and(|gateway| !uplink::reaches(path.onlink, gateway));
        let default = common(Prefix::default_route(family));
        routes.push(Route { gateway: path.gateway, onlink, ..default });
    }
    routes
}

/// What an MTU leaves for TCP's payload beside the IP and TCP headers. It is always given, so that
/// the peer's segments fit the uplink although the route's own MTU may be learnt later.
fn advmss(mtu: u32, family: Family) -> Option<u32> {
    let headers = match family {
        Family::V4 => 40,
        Family::V6 => 60,
    };
    mtu.checked_sub(headers).filter(|&mss| mss > 0).map(|mss| mss.min(ADVMSS_MAX))
}

fn source_rules(table: Table, address: IpAddr) -> [Rule; 2] {
    let family = Family::of(address);
    let from = Some(Prefix::host(address));
    let local =
        Rule { from, suppress_prefix_length: Some(0), ..rule(PRIORITY_LOCAL, family, MAIN) };
    let source = Rule { from, ..rule(PRIORITY_SOURCE, family, table) };
    [local, source]
}

/// An endpoint for each uplink in force, in the family of the server in use. As far as the kernel has
/// room, another in the other family: a connection's subflows are of its server's family
/// (`mptcp_pm_addr_families_match`), and those that began in the other one live on.
fn endpoints(input: &Input) -> Vec<Endpoint> {
    let families = input.server.map_or(Family::V4, Family::of).and_other();
    let (mut endpoints, mut others) = (Vec::new(), Vec::new());
    for uplink in input.uplinks {
        let assignment = input.assignments.iter().find(|it| it.slot == uplink.slot);
        let backup = match assignment.map(|assignment| assignment.in_force) {
            Some(InForce::Active) => false,
            Some(InForce::Backup) => true,
            Some(InForce::Unused) | None => continue,
        };
        let mut usable = families.iter().filter_map(|&family| endpoint(uplink, family, backup));
        endpoints.extend(usable.next());
        others.extend(usable);
    }
    let room = input.kernel.room_for_endpoints().saturating_sub(endpoints.len());
    others.retain(|other| input.kernel.foreign_endpoint(other.address).is_none());
    endpoints.extend(others.into_iter().take(room));
    endpoints
}

fn endpoint(uplink: &Uplink, family: Family, backup: bool) -> Option<Endpoint> {
    let device = uplink.device.as_ref().filter(|_| uplink.fault(family).is_none())?;
    Some(Endpoint {
        id: EndpointId::of_slot(uplink.slot, family),
        address: uplink.path(family)?.address,
        device: Some(device.index),
        backup,
        other_flags: 0,
    })
}

/// Prefixes of networks behind other devices than uplinks: the LAN's, guests', VPNs'. Default routes
/// and halves of them do not count as networks.
fn local_prefixes(kernel: &Kernel, uplinks: &[Uplink]) -> Vec<Prefix> {
    let outside: Vec<IfIndex> =
        uplinks.iter().filter_map(|uplink| uplink.device.as_ref()).map(|d| d.index).collect();
    let inside = |device: &IfIndex| !outside.contains(device) && *device != LOOPBACK;
    let addresses = kernel
        .addresses
        .iter()
        .filter(|address| address.global && inside(&address.device))
        .map(|address| address.prefix.network());
    let routes = kernel
        .routes
        .iter()
        .filter(|route| {
            route.kind == RouteKind::Unicast && !route.is_ours() && inside(&route.device)
        })
        .map(|route| route.destination);
    let least = |family| match family {
        Family::V4 => 8,
        Family::V6 => 16,
    };
    let network = |prefix: &Prefix| prefix.length >= least(prefix.family());
    let mut prefixes: Vec<Prefix> = addresses.chain(routes).filter(network).collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    prefixes
}

#[cfg(test)]
mod tests;
