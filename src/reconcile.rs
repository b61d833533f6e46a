//! The difference between the kernel and a wish, as an ordered plan.

use std::fmt::{self, Write};

use litemap::LiteMap;

use crate::desired::Desired;
use crate::net::{
    Endpoint, Family, IfIndex, Limits, MAX_ENDPOINTS, NFT_TABLE, Prefix, Route, RouteKind, Rule,
    TPROXY_TABLE, Table,
};
pub use crate::net::{Kernel, NftTable};

/// One change of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `ip route replace`.
    ReplaceRoute(Route),
    /// `ip route del`.
    DeleteRoute(Route),
    /// `ip rule add`.
    AddRule(Rule),
    /// `ip rule del`.
    DeleteRule(Rule),
    /// `ip mptcp endpoint add`.
    AddEndpoint(Endpoint),
    /// `ip mptcp endpoint delete`.
    DeleteEndpoint(Endpoint),
    /// `ip mptcp endpoint change`.
    ChangeEndpoint(Endpoint),
    /// `ip mptcp limits set`.
    SetLimits(Limits),
    /// `sysctl -w`.
    SetSysctl {
        /// Path below `/proc/sys`.
        key: String,
        /// Value.
        value: String,
    },
    /// `nft -f -`, one transaction.
    ReplaceNft(String),
    /// `nft delete table inet mptcp_bond`.
    DeleteNft,
}

/// Operations in the order to carry them out.
pub type Plan = Vec<Operation>;

/// Something foreign that keeps a wish from being fulfilled, in words that say what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// The kernel has no MPTCP.
    NoMptcp,
    /// Another program manages endpoints.
    OtherManager(String),
    /// A foreign endpoint holds the address of one of ours.
    Endpoint(Endpoint),
    /// The kernel takes no further endpoint beside the foreign ones.
    NoRoom(Endpoint),
    /// A foreign route in one of our tables is where one of ours should be.
    Route(Route),
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Conflict::NoMptcp => write!(
                f,
                "the kernel has no MPTCP: uplinks cannot be bonded; use one with CONFIG_MPTCP=y"
            ),
            Conflict::OtherManager(name) => {
                write!(f, "{name} is running and manages MPTCP endpoints as well: stop it")
            }
            Conflict::Endpoint(Endpoint { id, address, .. }) => write!(
                f,
                "endpoint {} of another program holds {address}: \
                 ip mptcp endpoint delete id {}",
                id.0, id.0
            ),
            Conflict::NoRoom(Endpoint { address, .. }) => write!(
                f,
                "no endpoint for {address}: the kernel takes {MAX_ENDPOINTS}, and other programs \
                 hold too many of them; see ip mptcp endpoint show"
            ),
            Conflict::Route(Route { table, destination, .. }) => write!(
                f,
                "table {} holds another program's route to {destination}: \
                 move it to a table outside 5000-5999",
                table.0
            ),
        }
    }
}

/// The plan that turns `kernel` into `desired`, touching only objects that are ours.
///
/// What stops diverting traffic comes first. Then come additions, each after what it relies on, and
/// the deletions last, so that nothing in use is missing in between.
pub fn reconcile(kernel: &Kernel, desired: &Desired) -> Plan {
    let mut plan = Plan::new();
    if desired.nft.is_none() && kernel.nft != NftTable::Absent {
        plan.push(Operation::DeleteNft);
    }
    let (diverting, unwanted): (Vec<Rule>, Vec<Rule>) =
        unwanted_rules(kernel, desired).into_iter().partition(|rule| rule.table == TPROXY_TABLE);
    plan.extend(diverting.into_iter().map(Operation::DeleteRule));
    plan.extend(settings(kernel, desired));
    plan.extend(missing_routes(kernel, desired).into_iter().map(Operation::ReplaceRoute));
    plan.extend(missing_rules(kernel, desired).into_iter().map(Operation::AddRule));
    plan.extend(endpoint_changes(kernel, desired));
    if let Some(text) = &desired.nft
        && kernel.nft != NftTable::Made(text.clone())
    {
        plan.push(Operation::ReplaceNft(text.clone()));
    }
    plan.extend(unwanted.into_iter().map(Operation::DeleteRule));
    plan.extend(unwanted_routes(kernel, desired).into_iter().map(Operation::DeleteRoute));
    plan
}

/// What keeps `desired` from being fulfilled although the plan is empty.
pub fn conflicts(kernel: &Kernel, desired: &Desired) -> Vec<Conflict> {
    let mut conflicts = Vec::new();
    if kernel.limits.is_none() && desired.limits.is_some() {
        conflicts.push(Conflict::NoMptcp);
    }
    conflicts.extend(kernel.other_managers.iter().cloned().map(Conflict::OtherManager));
    let mut room = kernel.room_for_endpoints();
    for endpoint in &desired.endpoints {
        match kernel.foreign_endpoint(endpoint.address) {
            Some(holder) => conflicts.push(Conflict::Endpoint(holder.clone())),
            None if room == 0 => conflicts.push(Conflict::NoRoom(endpoint.clone())),
            None => room -= 1,
        }
    }
    let blocking = kernel.routes.iter().filter(|route| {
        !route.is_ours() && desired.routes.iter().any(|wanted| key(wanted) == key(route))
    });
    conflicts.extend(blocking.cloned().map(Conflict::Route));
    conflicts
}

fn settings(kernel: &Kernel, desired: &Desired) -> Plan {
    let mut plan = Plan::new();
    if let (Some(found), Some(wanted)) = (kernel.limits, desired.limits)
        && found != wanted
    {
        plan.push(Operation::SetLimits(wanted));
    }
    for (key, value) in &desired.sysctls {
        // The kernel separates fields by tabs; a key it does not have cannot be set.
        let differs = |found: &String| !found.split_whitespace().eq(value.split_whitespace());
        if kernel.sysctls.get(key).is_some_and(differs) {
            plan.push(Operation::SetSysctl { key: key.clone(), value: value.clone() });
        }
    }
    plan
}

/// What `ip route replace` takes to be the same route.
fn key(route: &Route) -> (Table, Prefix, u32) {
    (route.table, route.destination, route.metric)
}

/// Routes to put in place, those without a gateway first: gateways are looked up in them.
fn missing_routes(kernel: &Kernel, desired: &Desired) -> Vec<Route> {
    let blocked = |wanted: &Route| {
        kernel.routes.iter().any(|route| !route.is_ours() && key(route) == key(wanted))
    };
    let mut missing: Vec<Route> = desired
        .routes
        .iter()
        .filter(|route| !kernel.routes.contains(route) && !blocked(route))
        .cloned()
        .collect();
    missing.sort_by_key(|route| route.gateway.is_some());
    missing
}

/// Ours that are not wanted and that no replacement takes the place of, those with a gateway first.
fn unwanted_routes(kernel: &Kernel, desired: &Desired) -> Vec<Route> {
    // A replacement takes the place of the first route like it, and of that alone.
    let mut replaced: LiteMap<_, ()> =
        missing_routes(kernel, desired).iter().map(|route| (key(route), ())).collect();
    let mut unwanted: Vec<Route> = kernel
        .routes
        .iter()
        .filter(|route| route.is_ours() && !desired.routes.contains(route))
        .filter(|route| replaced.remove(&key(route)).is_none())
        .cloned()
        .collect();
    unwanted.sort_by_key(|route| route.gateway.is_none());
    unwanted
}

fn missing_rules(kernel: &Kernel, desired: &Desired) -> Vec<Rule> {
    let mut missing = Vec::new();
    for rule in &desired.rules {
        if !kernel.rules.contains(rule) && !missing.contains(rule) {
            missing.push(rule.clone());
        }
    }
    missing
}

/// Ours that are not wanted, and all but one of each that is.
fn unwanted_rules(kernel: &Kernel, desired: &Desired) -> Vec<Rule> {
    let (mut kept, mut unwanted) = (Vec::new(), Vec::new());
    for rule in kernel.rules.iter().filter(|rule| rule.is_ours()) {
        if desired.rules.contains(rule) && !kept.contains(&rule) {
            kept.push(rule);
        } else {
            unwanted.push(rule.clone());
        }
    }
    unwanted
}

/// First flags, then new endpoints, so that subflows join before others are closed; an old one goes
/// earlier only where its id, its address or its place among the kernel's eight is needed.
fn endpoint_changes(kernel: &Kernel, desired: &Desired) -> Plan {
    let mut plan = Plan::new();
    if kernel.limits.is_none() {
        return plan;
    }
    let wanted: Vec<&Endpoint> = desired
        .endpoints
        .iter()
        .filter(|endpoint| kernel.foreign_endpoint(endpoint.address).is_none())
        .take(kernel.room_for_endpoints())
        .collect();
    let same_path = |a: &Endpoint, b: &Endpoint| {
        a.id == b.id
            && a.address == b.address
            && a.device == b.device
            && a.other_flags == b.other_flags
    };
    let mut unwanted: Vec<&Endpoint> = Vec::new();
    for found in kernel.endpoints.iter().filter(|endpoint| endpoint.is_ours()) {
        match wanted.iter().find(|endpoint| same_path(endpoint, found)) {
            None => unwanted.push(found),
            Some(endpoint) if endpoint.backup != found.backup => {
                plan.push(Operation::ChangeEndpoint((*endpoint).clone()));
            }
            Some(_) => {}
        }
    }
    let mut held = kernel.endpoints.len();
    let mut missing: Vec<&Endpoint> = wanted
        .into_iter()
        .filter(|endpoint| !kernel.endpoints.iter().any(|found| same_path(endpoint, found)))
        .collect();
    let in_way = |endpoint: &Endpoint, old: &Endpoint| {
        old.id == endpoint.id || old.address == endpoint.address
    };
    missing.sort_by_key(|endpoint| unwanted.iter().any(|old| in_way(endpoint, old)));
    for endpoint in missing {
        let (mut first, mut later): (Vec<_>, Vec<_>) =
            unwanted.into_iter().partition(|old| in_way(endpoint, old));
        if first.is_empty() && held >= MAX_ENDPOINTS {
            first.extend(later.pop());
        }
        held = held.saturating_sub(first.len()) + 1;
        plan.extend(first.into_iter().cloned().map(Operation::DeleteEndpoint));
        plan.push(Operation::AddEndpoint(endpoint.clone()));
        unwanted = later;
    }
    plan.extend(unwanted.into_iter().cloned().map(Operation::DeleteEndpoint));
    plan
}

impl Operation {
    /// Whether it changes a value that was there before us: the limits, or a sysctl.
    pub fn changes_for_good(&self) -> bool {
        matches!(self, Operation::SetLimits(_) | Operation::SetSysctl { .. })
    }

    /// The command line that does the same, with the names of the devices in the dump.
    pub fn describe(&self, kernel: &Kernel) -> String {
        let names = kernel.links.iter().map(|(index, link)| (*index, link.name.as_str())).collect();
        let mut line = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut line, &names);
        line
    }

    fn write(&self, out: &mut dyn Write, names: &LiteMap<IfIndex, &str>) -> fmt::Result {
        match self {
            Operation::ReplaceRoute(route) => write_route(out, "replace", route, names),
            Operation::DeleteRoute(route) => write_route(out, "del", route, names),
            Operation::AddRule(rule) => write_rule(out, "add", rule),
            Operation::DeleteRule(rule) => write_rule(out, "del", rule),
            Operation::AddEndpoint(endpoint) => {
                write!(out, "ip mptcp endpoint add {} id {}", endpoint.address, endpoint.id.0)?;
                if let Some(device) = endpoint.device {
                    write!(out, " dev ")?;
                    write_device(out, device, names)?;
                }
                write!(out, " subflow{}", if endpoint.backup { " backup" } else { "" })
            }
            Operation::DeleteEndpoint(endpoint) => {
                write!(out, "ip mptcp endpoint delete id {}", endpoint.id.0)
            }
            Operation::ChangeEndpoint(endpoint) => {
                let flag = if endpoint.backup { "backup" } else { "nobackup" };
                let meshed = endpoint.other_flags & Endpoint::FULL_MESH != 0;
                let mesh = if meshed { " fullmesh" } else { "" };
                write!(out, "ip mptcp endpoint change id {} {flag}{mesh}", endpoint.id.0)
            }
            Operation::SetLimits(limits) => write!(
                out,
                "ip mptcp limits set subflows {} add_addr_accepted {}",
                limits.subflows, limits.add_addr_accepted
            ),
            Operation::SetSysctl { key, value } if value.contains(char::is_whitespace) => {
                write!(out, "sysctl -w {key}='{value}'")
            }
            Operation::SetSysctl { key, value } => write!(out, "sysctl -w {key}={value}"),
            Operation::ReplaceNft(_) => write!(out, "nft -f - # table inet {NFT_TABLE}"),
            Operation::DeleteNft => write!(out, "nft delete table inet {NFT_TABLE}"),
        }
    }
}

impl fmt::Display for Operation {
    /// As [`Operation::describe`], with numbers in place of devices' names.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, &LiteMap::new())
    }
}

fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip -6",
    }
}

fn write_device(
    out: &mut dyn Write,
    device: IfIndex,
    names: &LiteMap<IfIndex, &str>,
) -> fmt::Result {
    match names.get(&device) {
        Some(name) => write!(out, "{name}"),
        None => write!(out, "if{}", device.0),
    }
}

fn write_route(
    out: &mut dyn Write,
    verb: &str,
    route: &Route,
    names: &LiteMap<IfIndex, &str>,
) -> fmt::Result {
    let family = route.destination.family();
    write!(out, "{} route {verb} ", ip(family))?;
    if route.kind == RouteKind::Local {
        write!(out, "local ")?;
    }
    match route.destination == Prefix::default_route(family) {
        true => write!(out, "default")?,
        false => write!(out, "{}", route.destination)?,
    }
    if let Some(from) = route.from {
        write!(out, " from {from}")?;
    }
    if let Some(gateway) = route.gateway {
        write!(out, " via {gateway}")?;
    }
    write!(out, " dev ")?;
    write_device(out, route.device, names)?;
    write!(out, " table {} proto {}", route.table.0, route.protocol)?;
    if route.metric != 0 {
        write!(out, " metric {}", route.metric)?;
    }
    if let Some(source) = route.source {
        write!(out, " src {source}")?;
    }
    if let Some(advmss) = route.advmss {
        write!(out, " advmss {advmss}")?;
    }
    match route.onlink {
        true => write!(out, " onlink"),
        false => Ok(()),
    }
}

fn write_rule(out: &mut dyn Write, verb: &str, rule: &Rule) -> fmt::Result {
    write!(out, "{} rule {verb} priority {}", ip(rule.family), rule.priority.0)?;
    if let Some(from) = rule.from {
        write!(out, " from {from}")?;
    }
    if let Some(to) = rule.to {
        write!(out, " to {to}")?;
    }
    if let Some(iif) = &rule.iif {
        write!(out, " iif {iif}")?;
    }
    if let Some(oif) = &rule.oif {
        write!(out, " oif {oif}")?;
    }
    if let Some((mark, mask)) = rule.mark {
        write!(out, " fwmark {:#x}/{mask:#x}", mark.0)?;
    }
    match rule.table.0 {
        254 => write!(out, " lookup main")?,
        table => write!(out, " lookup {table}")?,
    }
    match rule.suppress_prefix_length {
        Some(length) => write!(out, " suppress_prefixlength {length}"),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
