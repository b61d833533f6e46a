//! The nouns: newtypes for kernel identifiers, and the kernel objects the agent cares about.
//!
//! An object here is one installed (or to be installed) in the kernel, in the kernel's own terms,
//! so that a dump can be compared with a wish by `==`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use litemap::LiteMap;

/// A network device's index, as in `ip link`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfIndex(pub u32);

/// What a device has carried since it exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

/// A routing table's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Table(pub u32);

/// A packet mark under [`MARK_MASK`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark(pub u32);

/// A policy rule's priority: lower is looked at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(pub u32);

/// An MPTCP endpoint's id, as in `ip mptcp endpoint`; 0 is never one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(pub u8);

/// Our route protocol number (`ip route ... proto 84`), unused in iproute2's `rt_protos`.
pub const ROUTE_PROTOCOL: u8 = 84;
/// The priorities of our rules.
pub const RULE_PRIORITIES: std::ops::RangeInclusive<u32> = 500..=899;
/// Our routing tables.
pub const TABLES: std::ops::RangeInclusive<u32> = 5000..=5999;
/// Our endpoint ids.
pub const ENDPOINT_IDS: std::ops::RangeInclusive<u8> = 200..=254;
/// The bits of a packet mark that are ours.
pub const MARK_MASK: u32 = 0x0f00_0000;
/// The name of our nft table, family `inet`.
pub const NFT_TABLE: &str = "mptcp_bond";
/// The mark of packets that TPROXY hands to the agent.
pub const TPROXY_MARK: Mark = Mark(0x0100_0000);
/// The table that delivers them locally.
pub const TPROXY_TABLE: Table = Table(5000);
/// The kernel's main table.
pub const MAIN: Table = Table(254);
/// The mark of packets that are not tunnelled and belong to no flow yet: they leave over the best
/// live uplink.
pub const DIRECT_MARK: Mark = Mark(0x0f00_0000);
/// How many slots there are for uplinks, each with a table, a mark, and an endpoint id in each family.
pub const SLOTS: u8 = 13;
/// How many endpoints the kernel takes (`MPTCP_PM_ADDR_MAX` through Linux 6.18).
pub const MAX_ENDPOINTS: usize = 8;
/// The loopback device's index, the same in every network namespace (`LOOPBACK_IFINDEX`).
pub const LOOPBACK: IfIndex = IfIndex(1);
/// Its name.
pub const LOOPBACK_NAME: &str = "lo";

impl Mark {
    /// The mark of untunnelled packets whose flow leaves over the uplink with this slot; slots beyond
    /// [`SLOTS`] share the last.
    pub fn of_slot(slot: u8) -> Mark {
        Mark((2 + u32::from(slot.min(SLOTS - 1))) << 24)
    }
}

impl Table {
    /// The table of the uplink with this slot.
    pub fn of_slot(slot: u8) -> Table {
        Table(5001 + u32::from(slot))
    }
}

impl EndpointId {
    /// The id of the endpoint in one family of the uplink with this slot; slots beyond [`SLOTS`] share
    /// the last.
    pub fn of_slot(slot: u8, family: Family) -> EndpointId {
        let first = match family {
            Family::V4 => 200,
            Family::V6 => 220,
        };
        EndpointId(first + slot.min(SLOTS))
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, IPv4 first.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// Both, this one first.
    pub fn and_other(self) -> [Family; 2] {
        match self {
            Family::V4 => [Family::V4, Family::V6],
            Family::V6 => [Family::V6, Family::V4],
        }
    }

    /// The family of an address.
    pub fn of(address: IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// Bits in an address of this family.
    pub fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    /// The unspecified address: the destination of a default route.
    pub fn unspecified(self) -> IpAddr {
        match self {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// An address and a prefix length, host bits kept as given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// The address.
    pub address: IpAddr,
    /// The prefix length in bits, at most the family's.
    pub length: u8,
}

impl Prefix {
    /// A prefix; `None` when `length` exceeds the family's bits.
    pub fn new(address: IpAddr, length: u8) -> Option<Prefix> {
        (length <= Family::of(address).bits()).then_some(Prefix { address, length })
    }

    /// The prefix that holds just one address.
    pub fn host(address: IpAddr) -> Prefix {
        Prefix { address, length: Family::of(address).bits() }
    }

    /// The prefix of a default route.
    pub fn default_route(family: Family) -> Prefix {
        Prefix { address: family.unspecified(), length: 0 }
    }

    /// The family.
    pub fn family(&self) -> Family {
        Family::of(self.address)
    }

    /// The same prefix with its host bits cleared.
    pub fn network(&self) -> Prefix {
        let address = match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.length)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask))
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.length)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
            }
        };
        Prefix { address, length: self.length }
    }

    /// Whether an address lies within.
    pub fn contains(&self, address: IpAddr) -> bool {
        Family::of(address) == self.family()
            && Prefix { address, length: self.length }.network() == self.network()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.length == self.family().bits() {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{}/{}", self.address, self.length)
        }
    }
}

impl FromStr for Prefix {
    type Err = String;

    /// Parses `address` or `address/length`.
    fn from_str(text: &str) -> Result<Prefix, String> {
        let bad = || format!("'{text}' is not an address or prefix such as 192.0.2.0/24");
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        match length {
            None => Ok(Prefix::host(address)),
            Some(length) => {
                Prefix::new(address, length.parse().map_err(|_| bad())?).ok_or_else(bad)
            }
        }
    }
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Index.
    pub index: IfIndex,
    /// Name, as in `ip link`.
    pub name: String,
    /// Administratively up (IFF_UP).
    pub up: bool,
    /// Carrier present (IFF_LOWER_UP; for PPP and TUN the kernel's own notion).
    pub carrier: bool,
    /// Point-to-point or without ARP: a default route needs no gateway.
    pub point_to_point: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// Bytes received since the device exists.
    pub rx_bytes: u64,
    /// Bytes sent since the device exists.
    pub tx_bytes: u64,
}

/// An address of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The device.
    pub device: IfIndex,
    /// The address and the length of its on-link prefix.
    pub prefix: Prefix,
    /// Scope is global: not link-local, not host.
    pub global: bool,
    /// Usable for new connections: neither tentative, nor failed (DAD), nor deprecated.
    pub usable: bool,
}

/// What a port is one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// Both.
    pub const ALL: [Transport; 2] = [Transport::Tcp, Transport::Udp];

    /// Its name in lower case.
    pub fn word(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        }
    }
}

/// What a route does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Forwards it.
    Unicast,
    /// Delivers it locally (`ip route add local ...`).
    Local,
}

/// A route. Multipath routes are dumped as one route per next hop.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Table.
    pub table: Table,
    /// Destination, host bits zero.
    pub destination: Prefix,
    /// Source that a packet must have, host bits zero; IPv6 alone has such routes.
    pub from: Option<Prefix>,
    /// Metric; 0 for IPv4 "none", 1024 is IPv6's default.
    pub metric: u32,
    /// Kind.
    pub kind: RouteKind,
    /// Next hop; none on a link route.
    pub gateway: Option<IpAddr>,
    /// Output device.
    pub device: IfIndex,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// The gateway is taken to be on the link even if no prefix says so.
    pub onlink: bool,
    /// Maximum segment size to announce, in bytes.
    pub advmss: Option<u32>,
    /// Who installed it (`proto`); [`ROUTE_PROTOCOL`] is us.
    pub protocol: u8,
}

/// A policy routing rule whose action is to look in a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Priority.
    pub priority: Priority,
    /// Family.
    pub family: Family,
    /// Source prefix.
    pub from: Option<Prefix>,
    /// Destination prefix.
    pub to: Option<Prefix>,
    /// Input device's name; `lo` for what the router itself sends.
    pub iif: Option<String>,
    /// Output device's name, matched on sockets bound to it.
    pub oif: Option<String>,
    /// Mark and mask.
    pub mark: Option<(Mark, u32)>,
    /// The table looked in.
    pub table: Table,
    /// Results with a prefix of at most this many bits are passed over.
    pub suppress_prefix_length: Option<u32>,
}

/// An MPTCP endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Id.
    pub id: EndpointId,
    /// Address; unique among all endpoints.
    pub address: IpAddr,
    /// Device the subflows are bound to.
    pub device: Option<IfIndex>,
    /// `backup`: used only while no other path is usable.
    pub backup: bool,
    /// How its flags but `backup` differ from ours, which is `subflow` alone: 0 on ours, and
    /// `MPTCP_PM_ADDR_FLAG_SUBFLOW` itself is set where an endpoint lacks that flag.
    pub other_flags: u32,
}

impl Endpoint {
    /// `fullmesh` among [`Endpoint::other_flags`]: a subflow to each of the peer's addresses
    /// (`MPTCP_PM_ADDR_FLAG_FULLMESH`).
    pub const FULL_MESH: u32 = 8;
}

/// The path manager's limits (`ip mptcp limits`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Additional subflows a connection may have, those joined by the peer included.
    pub subflows: u32,
    /// ADD_ADDR options a connection acts upon.
    pub add_addr_accepted: u32,
}

/// What a fresh dump of the kernel shows; foreign objects included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// Devices.
    pub links: LiteMap<IfIndex, Link>,
    /// Addresses of all devices.
    pub addresses: Vec<Address>,
    /// Unicast and local routes of all tables but `local` (255).
    pub routes: Vec<Route>,
    /// Policy rules that look in a table; others are left out.
    pub rules: Vec<Rule>,
    /// MPTCP endpoints.
    pub endpoints: Vec<Endpoint>,
    /// MPTCP limits; `None` where the kernel has no MPTCP.
    pub limits: Option<Limits>,
    /// Values of the sysctls asked for, by path below `/proc/sys`; absent where the kernel has none.
    pub sysctls: LiteMap<String, String>,
    /// Our nft table.
    pub nft: NftTable,
    /// Names of other path-manager programs found running.
    pub other_managers: Vec<String>,
}

impl Kernel {
    /// The device with this name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// An endpoint that is not ours and holds this address.
    pub fn foreign_endpoint(&self, address: IpAddr) -> Option<&Endpoint> {
        self.endpoints.iter().find(|endpoint| !endpoint.is_ours() && endpoint.address == address)
    }

    /// How many endpoints of ours fit beside the foreign ones.
    pub fn room_for_endpoints(&self) -> usize {
        let foreign = self.endpoints.iter().filter(|endpoint| !endpoint.is_ours()).count();
        MAX_ENDPOINTS.saturating_sub(foreign)
    }
}

/// What is known of our nft table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NftTable {
    /// There is none.
    #[default]
    Absent,
    /// Exactly what this ruleset text made.
    Made(String),
    /// Something else: another version's, or changed by somebody.
    Changed,
}

impl Route {
    /// Whether it is ours: in one of our tables and of our protocol.
    pub fn is_ours(&self) -> bool {
        self.protocol == ROUTE_PROTOCOL && TABLES.contains(&self.table.0)
    }
}

impl Rule {
    /// Whether it is ours, by its priority.
    pub fn is_ours(&self) -> bool {
        RULE_PRIORITIES.contains(&self.priority.0)
    }
}

impl Endpoint {
    /// Whether it is ours, by its id.
    pub fn is_ours(&self) -> bool {
        ENDPOINT_IDS.contains(&self.id.0)
    }

    /// Whether it is one of the uplink with this slot.
    pub fn is_of_slot(&self, slot: u8) -> bool {
        self.id == EndpointId::of_slot(slot, Family::of(self.address))
    }
}
