//! The text of our nft table: which LAN packets go to the agent, which are refused, and how the rest
//! are marked for the rules that say over which uplink they leave.

mod cookies;

use std::fmt::{self, Write};
use std::net::IpAddr;

use litemap::LiteMap;

use crate::config::agent::{BypassConfig, OnServerLoss, Quic};
use crate::net::{DIRECT_MARK, Family, MARK_MASK, Mark, NFT_TABLE, Prefix, TPROXY_MARK};

/// What the table is made from.
#[derive(Clone, Debug)]
pub struct Interception<'a> {
    /// LAN devices; only what comes in through them is looked at.
    pub lan: &'a [String],
    /// The agent's TPROXY listeners.
    pub ports: TproxyPorts,
    /// All addresses of the server.
    pub servers: &'a [IpAddr],
    /// Destinations that this router reaches otherwise than through an uplink.
    pub local: &'a [Prefix],
    /// Traffic that is not tunnelled.
    pub bypasses: &'a [BypassConfig],
    /// Whether the server can take connections.
    pub server_reachable: bool,
    /// Whether it can take none to IPv6 targets: these are refused at once, so that LAN hosts go on
    /// over IPv4 (RFC 8305). Once diverted, a connection would stand before the server says no.
    pub server_lacks_ipv6: bool,
    /// What happens to new connections while it cannot.
    pub on_server_loss: OnServerLoss,
    /// What happens to UDP 443 while it can.
    pub quic: Quic,
    /// Destination ports of the UDP that is tunnelled, inclusive ranges.
    pub udp_ports: &'a [(u16, u16)],
    /// The uplinks' addresses, and the marks of flows that have them for theirs.
    pub uplinks: &'a LiteMap<IpAddr, Mark>,
}

/// The ports that the agent's TPROXY sockets have, TCP and UDP alike; `None` where it does not intercept a family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TproxyPorts {
    /// On 127.0.0.1.
    pub v4: Option<u16>,
    /// On ::1.
    pub v6: Option<u16>,
}

/// Where TPROXY takes new connections of each family, in nft's words.
type Targets = Vec<(Family, String)>;

/// IPv4 destinations no server reaches for us: this network, private, shared, loopback, link-local,
/// protocol assignments, multicast, reserved (RFC 6890). Documentation and benchmarking prefixes are
/// left out: nothing real is there, and test networks are.
const SPECIAL_V4: &[&str] = &[
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// The same for IPv6: unspecified, loopback, v4-mapped, NAT64 (the translator is on our side),
/// discard, unique local, link-local, multicast.
const SPECIAL_V6: &[&str] = &[
    "::/128",
    "::1/128",
    "::ffff:0.0.0.0/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "fc00::/7",
    "fe80::/10",
    "ff00::/8",
];

/// Sources in the LAN that leave under an uplink's address, whichever it is: private (RFC 1918) and
/// shared (RFC 6598). What has a public address is routed to it by one provider alone, and stays with
/// the main table.
const TRANSLATED_V4: &str = "10.0.0.0/8, 100.64.0.0/10, 172.16.0.0/12, 192.168.0.0/16";
/// The same for IPv6: unique local (RFC 4193), where the router translates them.
const TRANSLATED_V6: &str = "fc00::/7";

impl Interception<'_> {
    fn targets(&self) -> Targets {
        let TproxyPorts { v4, v6 } = self.ports;
        let v6 = v6.filter(|_| !self.server_lacks_ipv6);
        let v4 = v4.map(|port| (Family::V4, format!("ip to 127.0.0.1:{port}")));
        let v6 = v6.map(|port| (Family::V6, format!("ip6 to [::1]:{port}")));
        v4.into_iter().chain(v6).filter(|_| self.server_reachable).collect()
    }
}

/// The ruleset for `nft -f -`: one transaction that replaces the table, whether or not it exists.
/// `None` when there is no LAN device to intercept.
pub fn ruleset(interception: &Interception) -> Option<String> {
    let lan = device_set(interception.lan)?;
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_table(&mut text, interception, &lan);
    Some(text)
}

fn write_table(out: &mut String, it: &Interception, lan: &str) -> fmt::Result {
    writeln!(out, "table inet {NFT_TABLE}")?;
    writeln!(out, "delete table inet {NFT_TABLE}")?;
    writeln!(out, "table inet {NFT_TABLE} {{")?;
    for family in Family::ALL {
        write_set(out, "special", family, &special(family))?;
        write_set(out, "local", family, it.local)?;
        let servers: Vec<Prefix> =
            it.servers.iter().map(|&address| Prefix::host(address)).collect();
        write_set(out, "server", family, &servers)?;
    }
    let targets = it.targets();
    cookies::write_known(out, &targets)?;
    write_exempt(out, it.bypasses)?;
    write_prerouting(out, it, &targets, lan)?;
    write_answers(out, it.udp_ports, &targets, lan)?;
    write_direct(out, it.uplinks, lan)?;
    write_forward(out, it, lan)?;
    writeln!(out, "}}")
}

/// What is not for the tunnel ends the hook's chain by `accept`; the rest returns to it.
fn write_exempt(out: &mut String, bypasses: &[BypassConfig]) -> fmt::Result {
    writeln!(out, "\tchain exempt {{")?;
    writeln!(out, "\t\tfib daddr type != unicast accept")?;
    for set in ["special", "local", "server"] {
        writeln!(out, "\t\tip daddr @{set}4 accept")?;
        writeln!(out, "\t\tip6 daddr @{set}6 accept")?;
    }
    for bypass in bypasses {
        write_bypass(out, bypass)?;
    }
    writeln!(out, "\t}}")
}

/// All lists given must match, so a section with addresses takes one rule per family.
fn write_bypass(out: &mut String, bypass: &BypassConfig) -> fmt::Result {
    let BypassConfig { name, dest, src, dport, mac } = bypass;
    let mut rest = String::new();
    if !dport.is_empty() {
        write!(rest, "th dport {{ {} }} ", port_set(dport))?;
    }
    if !mac.is_empty() {
        let macs: Vec<String> = mac
            .iter()
            .map(|[a, b, c, d, e, f]| format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"))
            .collect();
        write!(rest, "ether saddr {{ {} }} ", distinct(macs).join(", "))?;
    }
    if dest.is_empty() && src.is_empty() {
        // A section without any list matches nothing rather than everything.
        return match rest.is_empty() {
            true => Ok(()),
            false => writeln!(out, "\t\t{rest}accept comment \"{}\"", comment(name)),
        };
    }
    for family in Family::ALL {
        let keyword = keyword(family);
        let mut addresses = String::new();
        let mut possible = true;
        for (direction, prefixes) in [("saddr", src), ("daddr", dest)] {
            if prefixes.is_empty() {
                continue;
            }
            let elements = elements(family, prefixes);
            possible &= !elements.is_empty();
            write!(addresses, "{keyword} {direction} {{ {} }} ", elements.join(", "))?;
        }
        if possible {
            writeln!(out, "\t\t{addresses}{rest}accept comment \"{}\"", comment(name))?;
        }
    }
    Ok(())
}

fn write_prerouting(
    out: &mut String,
    it: &Interception,
    targets: &Targets,
    lan: &str,
) -> fmt::Result {
    let set_mark =
        format!("meta mark set meta mark & 0x{:08x} | 0x{:08x}", !MARK_MASK, TPROXY_MARK.0);
    writeln!(out, "\tchain prerouting {{")?;
    writeln!(out, "\t\ttype filter hook prerouting priority mangle; policy accept;")?;
    writeln!(out, "\t\tiifname != {{ {lan} }} accept")?;
    if it.server_reachable && !it.udp_ports.is_empty() {
        // A LAN host that answers from such a port to one is not opening anything.
        let what = format!("udp dport {{ {} }} ct direction original", port_set(it.udp_ports));
        writeln!(out, "\t\t{what} jump exempt")?;
        write_tproxy(out, &what, targets, &set_mark)?;
    }
    writeln!(out, "\t\tmeta l4proto != tcp accept")?;
    // What the agent has accepted goes on to it, also while the server is lost.
    writeln!(out, "\t\tsocket transparent 1 {set_mark} accept")?;
    cookies::write_returned(out, targets, &set_mark)?;
    // Only a SYN starts a connection. One already under way past the agent would be reset by it, and
    // so would the answers of a LAN host to connections from outside.
    writeln!(out, "\t\ttcp flags & (fin|syn|rst|ack) != syn accept")?;
    if it.server_reachable {
        writeln!(out, "\t\tjump exempt")?;
        write_tproxy(out, "meta l4proto tcp", targets, &set_mark)?;
    }
    writeln!(out, "\t}}")
}

/// What the router sends to the LAN.
///
/// What the agent sends in the name of UDP targets is not tracked: where the flow has just been
/// forgotten, an answer would begin it anew the other way round, and what the LAN host sends be taken
/// for replies from then on, which are not tunnelled.
fn write_answers(
    out: &mut String,
    udp_ports: &[(u16, u16)],
    targets: &Targets,
    lan: &str,
) -> fmt::Result {
    if udp_ports.is_empty() && targets.is_empty() {
        return Ok(());
    }
    writeln!(out, "\tchain answers {{")?;
    writeln!(out, "\t\ttype filter hook output priority raw; policy accept;")?;
    writeln!(out, "\t\toifname != {{ {lan} }} accept")?;
    if !udp_ports.is_empty() {
        let ports = port_set(udp_ports);
        writeln!(out, "\t\tudp sport {{ {ports} }} socket transparent 1 notrack")?;
    }
    cookies::write_sent(out, targets)?;
    writeln!(out, "\t}}")
}

/// Hands packets to the agent.
fn write_tproxy(out: &mut String, what: &str, targets: &Targets, set_mark: &str) -> fmt::Result {
    for (family, target) in targets {
        let family = match family {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        };
        writeln!(out, "\t\tmeta nfproto {family} {what} tproxy {target} {set_mark} accept")?;
    }
    Ok(())
}

/// Marks what is not tunnelled. A flow stays on the uplink whose address it was translated to, or
/// came in at, as long as that lives; what is new leaves over the best. This comes after the chains
/// of others: what they have marked is theirs to route.
fn write_direct(out: &mut String, uplinks: &LiteMap<IpAddr, Mark>, lan: &str) -> fmt::Result {
    writeln!(out, "\tchain direct {{")?;
    writeln!(out, "\t\ttype filter hook prerouting priority mangle + 1; policy accept;")?;
    writeln!(out, "\t\tiifname != {{ {lan} }} accept")?;
    writeln!(out, "\t\tmeta mark != 0x00000000 accept")?;
    for family in Family::ALL {
        let marks: Vec<String> = uplinks
            .iter()
            .filter(|(address, _)| Family::of(**address) == family)
            .map(|(address, Mark(mark))| format!("{address} : 0x{mark:08x}"))
            .collect();
        if marks.is_empty() {
            continue;
        }
        let (keyword, marks) = (keyword(family), marks.join(", "));
        for end in ["reply", "original"] {
            let address = format!("ct {end} {keyword} daddr");
            writeln!(out, "\t\tmeta mark set {address} map {{ {marks} }} accept")?;
        }
    }
    for (family, sources) in [(Family::V4, TRANSLATED_V4), (Family::V6, TRANSLATED_V6)] {
        writeln!(
            out,
            "\t\tct direction original {} saddr {{ {sources} }} meta mark set 0x{:08x}",
            keyword(family),
            DIRECT_MARK.0
        )?;
    }
    writeln!(out, "\t}}")
}

fn write_forward(out: &mut String, it: &Interception, lan: &str) -> fmt::Result {
    let mut refused = Vec::new();
    if it.server_reachable && it.quic == Quic::Reject {
        let quic = "ct state new udp dport 443".to_owned();
        refused.push((quic, "reject with icmpx type port-unreachable"));
    }
    let tcp = "tcp flags & (fin|syn|rst|ack) == syn";
    if it.server_reachable && it.server_lacks_ipv6 && it.ports.v6.is_some() {
        refused.push((format!("meta nfproto ipv6 {tcp}"), "reject with tcp reset"));
        if !it.udp_ports.is_empty() {
            let udp = format!("meta nfproto ipv6 udp dport {{ {} }}", port_set(it.udp_ports));
            refused.push((udp, "reject with icmpx type port-unreachable"));
        }
    }
    if !it.server_reachable && it.on_server_loss == OnServerLoss::Block {
        refused.push((tcp.to_owned(), "reject with tcp reset"));
        if !it.udp_ports.is_empty() {
            refused.push((format!("udp dport {{ {} }}", port_set(it.udp_ports)), "drop"));
        }
    }
    if refused.is_empty() {
        return Ok(());
    }
    writeln!(out, "\tchain forward {{")?;
    writeln!(out, "\t\ttype filter hook forward priority filter - 1; policy accept;")?;
    writeln!(out, "\t\tiifname != {{ {lan} }} accept")?;
    // A LAN host that answers from or to port 443 is not opening anything.
    writeln!(out, "\t\tct direction reply accept")?;
    for (what, verdict) in refused {
        writeln!(out, "\t\t{what} jump exempt")?;
        writeln!(out, "\t\t{what} {verdict}")?;
    }
    writeln!(out, "\t}}")
}

fn write_set(out: &mut String, name: &str, family: Family, prefixes: &[Prefix]) -> fmt::Result {
    let (digit, kind) = set_type(family);
    writeln!(out, "\tset {name}{digit} {{")?;
    writeln!(out, "\t\ttype {kind}")?;
    writeln!(out, "\t\tflags interval")?;
    let elements = elements(family, prefixes);
    if !elements.is_empty() {
        writeln!(out, "\t\telements = {{ {} }}", elements.join(", "))?;
    }
    writeln!(out, "\t}}")
}

/// How the names of a family's sets end, and what they hold.
fn set_type(family: Family) -> (char, &'static str) {
    match family {
        Family::V4 => ('4', "ipv4_addr"),
        Family::V6 => ('6', "ipv6_addr"),
    }
}

fn keyword(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn special(family: Family) -> Vec<Prefix> {
    let texts = match family {
        Family::V4 => SPECIAL_V4,
        Family::V6 => SPECIAL_V6,
    };
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// The prefixes of a family in order, without those inside another: nft refuses overlaps.
fn elements(family: Family, prefixes: &[Prefix]) -> Vec<String> {
    let mut networks: Vec<Prefix> = prefixes
        .iter()
        .filter(|prefix| prefix.family() == family)
        .map(|prefix| prefix.network())
        .collect();
    networks.sort();
    let mut kept: Vec<Prefix> = Vec::new();
    for network in networks {
        // In this order a prefix comes right after those that hold it and their other contents.
        if !kept.last().is_some_and(|last| last.contains(network.address)) {
            kept.push(network);
        }
    }
    kept.iter().map(Prefix::to_string).collect()
}

/// Inclusive port ranges, merged where they touch.
fn port_set(ranges: &[(u16, u16)]) -> String {
    let mut sorted: Vec<(u16, u16)> = ranges.iter().map(|&(a, b)| (a.min(b), a.max(b))).collect();
    sorted.sort();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (first, last) in sorted {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    let texts: Vec<String> = merged
        .iter()
        .map(|&(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        })
        .collect();
    texts.join(", ")
}

/// Quoted names for an anonymous set; those that nft's syntax cannot hold are left out.
fn device_set(names: &[String]) -> Option<String> {
    let plain = |name: &&String| {
        !name.is_empty()
            && name.len() < 16
            && name.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\\' | '*' | '/'))
    };
    let quoted = names.iter().filter(plain).map(|name| format!("\"{name}\"")).collect();
    let quoted = distinct(quoted);
    (!quoted.is_empty()).then(|| quoted.join(", "))
}

fn distinct(mut texts: Vec<String>) -> Vec<String> {
    texts.sort();
    texts.dedup();
    texts
}

/// A section's name as an nft comment holds it: at most 128 bytes, no quotes.
fn comment(name: &str) -> String {
    let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ' ');
    let name: String = name.chars().filter(plain).take(100).collect();
    format!("bypass {name}")
}

#[cfg(test)]
mod tests;
