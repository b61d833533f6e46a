//! One uplink's facts, as a dump of the kernel shows them: device, addresses, gateways, MTU.

use std::fmt;
use std::net::IpAddr;

use litemap::LiteMap;

use crate::config::agent::{Attachment, Role, UplinkConfig};
use crate::net::{
    Address, Family, IfIndex, Kernel, Link, Prefix, Route, RouteKind, SLOTS, TABLES, Table,
};
use crate::netifd::Netifd;

/// An uplink as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// The configuration section's name.
    pub name: String,
    /// Decides its table and endpoint id; kept as long as the name stays configured.
    pub slot: u8,
    /// The role configured, or set at run time.
    pub role: Role,
    /// Where it is.
    pub attachment: Attachment,
    /// Its device, when there is one.
    pub device: Option<Device>,
    /// Its IPv4 path, when it has an address.
    pub v4: Option<Path>,
    /// Its IPv6 path, when it has an address.
    pub v6: Option<Path>,
}

/// What of a [`Link`] matters to an uplink; its counters do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Index.
    pub index: IfIndex,
    /// Name.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Carrier present.
    pub carrier: bool,
    /// A default route needs no gateway.
    pub point_to_point: bool,
}

/// How packets of one family leave through an uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// Source address.
    pub address: IpAddr,
    /// The prefix the address is in, host bits zero.
    pub onlink: Prefix,
    /// Next hop of the default route, where it has one.
    pub gateway: Option<IpAddr>,
    /// Whether a default route can be made: there is a gateway, or none is needed.
    pub routable: bool,
    /// The gateway is remembered from before the kernel flushed the device's routes.
    pub remembered: bool,
    /// Another uplink that holds the same address and is served first.
    pub clash: Option<String>,
}

/// Why an uplink cannot be used in a family, in words that say what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its role is `off`.
    SwitchedOff,
    /// No device of that name.
    NoDevice(String),
    /// The OpenWrt interface is not up.
    InterfaceDown(String),
    /// The device is administratively down.
    AdminDown(String),
    /// The device has no carrier.
    NoCarrier(String),
    /// The device has no usable global address.
    NoAddress(String, Family),
    /// No default route leads through the device.
    NoGateway(String, Family),
    /// Another uplink holds the same address.
    AddressClash {
        /// The address.
        address: IpAddr,
        /// The other uplink.
        other: String,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::SwitchedOff => write!(f, "switched off: its role is 'off'"),
            Fault::NoDevice(device) => {
                write!(f, "no device '{device}': plug it in or correct 'option device'")
            }
            Fault::InterfaceDown(interface) => write!(
                f,
                "interface '{interface}' is not up: bring it up or correct 'option interface'"
            ),
            Fault::AdminDown(device) => {
                write!(f, "{device} is switched off: ip link set {device} up")
            }
            Fault::NoCarrier(device) => {
                write!(f, "{device} has no carrier: check cable, modem or signal")
            }
            Fault::NoAddress(device, family) => {
                let how = match family {
                    Family::V4 => "DHCP or PPP",
                    Family::V6 => "router advertisements or DHCPv6",
                };
                write!(f, "{device} has no usable {family} address: check {how}")
            }
            Fault::NoGateway(device, family) => {
                write!(f, "{device} has no {family} default route: check its gateway")
            }
            Fault::AddressClash { address, other } => write!(
                f,
                "{address} is also the address of uplink '{other}': \
                 give one of the two modems another subnet"
            ),
        }
    }
}

impl Uplink {
    /// Its path in a family, whether or not it can be used now.
    pub fn path(&self, family: Family) -> Option<&Path> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// Whether its path in the address's family has this address.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.path(Family::of(address)).is_some_and(|path| path.address == address)
    }

    /// Its routing table.
    pub fn table(&self) -> Table {
        Table::of_slot(self.slot)
    }

    /// Why it cannot be used in a family; `None` when it can.
    pub fn fault(&self, family: Family) -> Option<Fault> {
        if self.role == Role::Off {
            return Some(Fault::SwitchedOff);
        }
        if let Some(fault) = self.link_fault(family) {
            return Some(fault);
        }
        let path = self.path(family)?;
        path.clash.clone().map(|other| Fault::AddressClash { address: path.address, other })
    }

    /// Why it cannot be used in any of these families: the fault of the first of them, `None` when
    /// one of them can be used.
    pub fn fault_in(&self, families: &[Family]) -> Option<Fault> {
        let mut first = None;
        for &family in families {
            let fault = self.fault(family)?;
            first.get_or_insert(fault);
        }
        first
    }

    fn link_fault(&self, family: Family) -> Option<Fault> {
        let Some(device) = &self.device else {
            return Some(match &self.attachment {
                Attachment::Device(name) => Fault::NoDevice(name.clone()),
                Attachment::Interface(name) => Fault::InterfaceDown(name.clone()),
            });
        };
        let name = || device.name.clone();
        if !device.up {
            return Some(Fault::AdminDown(name()));
        }
        if !device.carrier {
            return Some(Fault::NoCarrier(name()));
        }
        match self.path(family) {
            None => Some(Fault::NoAddress(name(), family)),
            Some(path) if !path.routable => Some(Fault::NoGateway(name(), family)),
            Some(_) => None,
        }
    }
}

/// The uplinks as a dump shows them, in the order of their configuration.
///
/// `previous` is the last result: it keeps slots, and choices that are still valid. Uplinks beyond
/// [`SLOTS`] are left out.
///
/// Without netifd, as on plain Linux: an interface's name is taken for its device's.
pub fn observe(configs: &[UplinkConfig], kernel: &Kernel, previous: &[Uplink]) -> Vec<Uplink> {
    observe_with(configs, kernel, &Netifd::default(), previous)
}

/// [`observe`], with the interfaces' devices and gateways as netifd tells them.
pub fn observe_with(
    configs: &[UplinkConfig],
    kernel: &Kernel,
    netifd: &Netifd,
    previous: &[Uplink],
) -> Vec<Uplink> {
    let slots = assign_slots(configs, previous);
    let mut uplinks: Vec<Uplink> = configs
        .iter()
        .filter_map(|config| {
            let slot = *slots.get(config.name.as_str())?;
            let before = previous.iter().find(|uplink| uplink.name == config.name);
            Some(observe_one(config, slot, kernel, netifd, before))
        })
        .collect();
    for family in Family::ALL {
        mark_clashes(&mut uplinks, family, previous);
    }
    uplinks
}

/// Names that had a slot keep it; the others get the lowest free ones in configuration order.
fn assign_slots<'a>(configs: &'a [UplinkConfig], previous: &[Uplink]) -> LiteMap<&'a str, u8> {
    let mut slots = LiteMap::new();
    for config in configs {
        if let Some(before) = previous.iter().find(|uplink| uplink.name == config.name) {
            slots.insert(config.name.as_str(), before.slot);
        }
    }
    for config in configs {
        let free = (0..SLOTS).find(|slot| !slots.values().any(|taken| taken == slot));
        if let (false, Some(slot)) = (slots.contains_key(config.name.as_str()), free) {
            slots.insert(config.name.as_str(), slot);
        }
    }
    slots
}

fn observe_one(
    config: &UplinkConfig,
    slot: u8,
    kernel: &Kernel,
    netifd: &Netifd,
    before: Option<&Uplink>,
) -> Uplink {
    let device = match &config.attachment {
        Attachment::Device(name) => Some(name.as_str()),
        Attachment::Interface(name) => netifd.device(name),
    };
    let link = device.and_then(|name| kernel.link(name));
    let path = |family| {
        let before = before.and_then(|uplink| uplink.path(family));
        let link = link?;
        find_path(link, netifd.gateway(&link.name, family), family, slot, kernel, before)
    };
    Uplink {
        name: config.name.clone(),
        slot,
        role: config.role,
        attachment: config.attachment.clone(),
        v4: path(Family::V4),
        v6: path(Family::V6),
        device: link.map(|link| Device {
            index: link.index,
            name: link.name.clone(),
            mtu: link.mtu,
            up: link.up,
            carrier: link.carrier,
            point_to_point: link.point_to_point,
        }),
    }
}

/// `leased` is the gateway that netifd knows, which need not be in the kernel.
fn find_path(
    link: &Link,
    leased: Option<IpAddr>,
    family: Family,
    slot: u8,
    kernel: &Kernel,
    before: Option<&Path>,
) -> Option<Path> {
    let default = default_route(kernel, link.index, family, before);
    let gateway = default.map_or(leased, |route| route.gateway);
    let named = default.and_then(|route| route.source);
    let address = choose_address(kernel, link.index, family, named, gateway, before)?;
    let onlink = address.prefix.network();
    let path = |gateway, routable, remembered| Path {
        address: address.prefix.address,
        onlink,
        gateway,
        routable,
        remembered,
        clash: None,
    };
    if let Some(route) = default {
        return Some(path(route.gateway, true, false));
    }
    if leased.is_some() || link.point_to_point {
        return Some(path(leased, true, false));
    }
    // When a link goes down the kernel flushes its routes, ours as well; whoever made the foreign
    // one may not do so again until the next DHCP lease. If only the foreign one is gone, somebody
    // took it away on purpose.
    let ours_remains = kernel.routes.iter().any(|route| {
        route.is_ours()
            && route.table == Table::of_slot(slot)
            && route.device == link.index
            && route.destination == Prefix::default_route(family)
    });
    if let Some(before) = before {
        let gateway = before.gateway.filter(|&gateway| reaches(onlink, gateway));
        let same = before.address == address.prefix.address;
        if same && gateway.is_some() && (before.remembered || !ours_remains) {
            return Some(path(gateway, true, true));
        }
    }
    Some(path(None, false, false))
}

/// Whether a gateway is on the link of an address with this prefix.
pub(crate) fn reaches(onlink: Prefix, gateway: IpAddr) -> bool {
    match gateway {
        IpAddr::V6(gateway) if gateway.is_unicast_link_local() => true,
        gateway => onlink.contains(gateway),
    }
}

/// The device's best default route that is not ours; the gateway in use wins among equals.
fn default_route<'a>(
    kernel: &'a Kernel,
    device: IfIndex,
    family: Family,
    before: Option<&Path>,
) -> Option<&'a Route> {
    let used = before.and_then(|path| path.gateway);
    kernel
        .routes
        .iter()
        .filter(|route| {
            route.device == device
                && route.destination == Prefix::default_route(family)
                && route.kind == RouteKind::Unicast
                && route.protocol != crate::net::ROUTE_PROTOCOL
                && !TABLES.contains(&route.table.0)
        })
        .min_by_key(|route| (route.metric, route.gateway != used || used.is_none()))
}

/// The source address: the one the default route names, else one the gateway is on the link of,
/// else any; unique local ones (RFC 4193) after global ones; the one in use wins among equals.
fn choose_address<'a>(
    kernel: &'a Kernel,
    device: IfIndex,
    family: Family,
    named: Option<IpAddr>,
    gateway: Option<IpAddr>,
    before: Option<&Path>,
) -> Option<&'a Address> {
    kernel
        .addresses
        .iter()
        .filter(|address| {
            address.device == device
                && address.prefix.family() == family
                && address.global
                && address.usable
        })
        .min_by_key(|address| {
            let ip = address.prefix.address;
            let fit = if Some(ip) == named {
                0
            } else if gateway.is_some_and(|gateway| address.prefix.contains(gateway)) {
                1
            } else {
                2
            };
            let unique_local = matches!(ip, IpAddr::V6(ip) if ip.is_unique_local());
            (fit, unique_local, before.is_none_or(|path| path.address != ip))
        })
}

/// Endpoints are unique by address, so of several uplinks with the same one only one is served: one
/// without other faults, preferably the one served before, else the first configured.
fn mark_clashes(uplinks: &mut [Uplink], family: Family, previous: &[Uplink]) {
    let served_before = |uplink: &Uplink, address: IpAddr| {
        previous.iter().any(|before| {
            before.name == uplink.name
                && before
                    .path(family)
                    .is_some_and(|path| path.address == address && path.clash.is_none())
        })
    };
    let mut owners: LiteMap<IpAddr, ((bool, bool), String)> = LiteMap::new();
    for uplink in uplinks.iter() {
        let Some(path) = uplink.path(family) else { continue };
        let unfit = uplink.role == Role::Off || uplink.link_fault(family).is_some();
        let rank = (unfit, !served_before(uplink, path.address));
        match owners.get(&path.address) {
            Some((best, _)) if *best <= rank => {}
            _ => {
                owners.insert(path.address, (rank, uplink.name.clone()));
            }
        }
    }
    for uplink in uplinks {
        let name = uplink.name.clone();
        let path = match family {
            Family::V4 => uplink.v4.as_mut(),
            Family::V6 => uplink.v6.as_mut(),
        };
        if let Some(path) = path {
            path.clash = owners
                .get(&path.address)
                .map(|(_, owner)| owner.clone())
                .filter(|owner| *owner != name);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
