//! Which targets a client may reach through the server.
//!
//! The server stands in a network of its own, beside services that trust their neighbours: what is
//! not on the public Internet is denied unless `[policy] allow` names it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::value;
use crate::net::Prefix;

/// Denied unless allowed: what IANA's special-purpose registries (RFC 6890) call not globally
/// reachable, and where clouds keep their metadata services.
const DENIED_BY_DEFAULT: [&str; 28] = [
    "0.0.0.0/8",       // this network; Linux connects 0.0.0.0 to itself
    "10.0.0.0/8",      // private
    "100.64.0.0/10",   // carrier-grade NAT; metadata at Alibaba (100.100.100.200)
    "127.0.0.0/8",     // loopback
    "168.63.129.16",   // metadata at Azure
    "169.254.0.0/16",  // link-local; metadata almost everywhere (169.254.169.254)
    "172.16.0.0/12",   // private
    "192.0.0.0/24",    // protocol assignments; metadata at Oracle (192.0.0.192)
    "192.88.99.0/24",  // 6to4 relays
    "192.168.0.0/16",  // private
    "198.18.0.0/15",   // benchmarks
    "224.0.0.0/4",     // multicast
    "240.0.0.0/4",     // reserved, broadcast
    "::/96",           // unspecified, loopback, IPv4-compatible
    "::ffff:0:0/96",   // IPv4-mapped (seen only if not canonicalised)
    "::ffff:0:0:0/96", // IPv4-translated (SIIT)
    "64:ff9b:1::/48",  // local-use NAT64
    "100::/64",        // discard
    "2001::/32",       // Teredo
    "2001:2::/48",     // benchmarks
    "2001:10::/28",    // ORCHID
    "2001:20::/28",    // ORCHIDv2
    "3fff::/20",       // documentation
    "5f00::/16",       // segment routing
    "fc00::/7",        // unique local; metadata at AWS (fd00:ec2::254)
    "fe80::/10",       // link-local
    "fec0::/10",       // site-local
    "ff00::/8",        // multicast
];

/// IPv6 prefixes that carry an IPv4 address, and the bit it begins at: NAT64 (RFC 6052), 6to4
/// (RFC 3056). The IPv4 address must be permitted too.
const EMBEDDING: [(Prefix, u32); 2] = [
    (Prefix { address: IpAddr::V6(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0)), length: 96 }, 96),
    (Prefix { address: IpAddr::V6(Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0)), length: 16 }, 16),
];

/// Every address.
const ANYWHERE: [Prefix; 2] = [
    Prefix { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), length: 0 },
    Prefix { address: IpAddr::V6(Ipv6Addr::UNSPECIFIED), length: 0 },
];

/// Targets of one entry: the addresses of a prefix, with these ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Targets {
    /// The addresses.
    pub prefix: Prefix,
    /// The first and last port; `None` for all.
    pub ports: Option<(u16, u16)>,
}

impl Targets {
    /// All ports of a prefix.
    pub fn all_of(prefix: Prefix) -> Targets {
        Targets { prefix, ports: None }
    }

    /// Reads `192.0.2.0/24`, `192.0.2.0/24 port 8000-8100`, or `port 25`, which is that of all
    /// addresses of both families.
    ///
    /// # Errors
    /// How it has to be written.
    pub fn parse(text: &str) -> Result<Vec<Targets>, String> {
        let (prefixes, ports) = match text.split_once("port ") {
            None => (vec![value::network(text)?], None),
            Some(("", ports)) => (ANYWHERE.to_vec(), Some(value::port_range(ports)?)),
            Some((prefix, ports)) => {
                (vec![value::network(prefix.trim_end())?], Some(value::port_range(ports)?))
            }
        };
        Ok(prefixes.into_iter().map(|prefix| Targets { prefix, ports }).collect())
    }

    fn contain(&self, address: IpAddr, port: u16) -> bool {
        let has_port = self.ports.is_none_or(|(first, last)| (first..=last).contains(&port));
        has_port && self.prefix.contains(address)
    }

    /// The greater, the more exact.
    fn exactness(&self) -> (u8, bool) {
        (self.prefix.length, self.ports.is_some())
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.prefix.fmt(f)?;
        match self.ports {
            None => Ok(()),
            Some((first, last)) if first == last => write!(f, " port {first}"),
            Some((first, last)) => write!(f, " port {first}-{last}"),
        }
    }
}

/// Which targets may be reached: the longest matching prefix decides, one with ports before one as
/// long without, and deny where two are as exact; none means allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Allowed in spite of a shorter denied prefix.
    pub allow: Vec<Targets>,
    /// Denied.
    pub deny: Vec<Targets>,
}

/// A target that the policy refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// The address, canonical.
    pub target: IpAddr,
    /// The denied entry it is of; of an address with an IPv4 address in it, perhaps the latter's.
    pub entry: Targets,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lies in {}, which the server's policy denies", self.target, self.entry)
    }
}

impl std::error::Error for Denied {}

impl Default for Policy {
    fn default() -> Policy {
        Policy::new(Vec::new(), Vec::new())
    }
}

impl Policy {
    /// The policy of these entries over the default denials. An allowed prefix replaces an equal
    /// default, and overrides a shorter one.
    pub fn new(allow: Vec<Targets>, mut deny: Vec<Targets>) -> Policy {
        let defaults = DENIED_BY_DEFAULT.iter().filter_map(|text| text.parse::<Prefix>().ok());
        for entry in defaults.map(Targets::all_of) {
            if !allow.contains(&entry) && !deny.contains(&entry) {
                deny.push(entry);
            }
        }
        Policy { allow, deny }
    }

    /// Denies these hosts also, unless an allowed prefix is as exact: for the server's own public
    /// addresses, on which its firewall does not see connections from itself.
    pub fn deny_hosts(&mut self, hosts: impl IntoIterator<Item = IpAddr>) {
        for host in hosts {
            let entry = Targets::all_of(Prefix::host(host.to_canonical()));
            if !self.allow.contains(&entry) && !self.deny.contains(&entry) {
                self.deny.push(entry);
            }
        }
    }

    /// Whether a client may reach the target. Connect to the same address, not to its name again:
    /// a second look-up may give another.
    pub fn permits(&self, target: SocketAddr) -> Result<(), Denied> {
        let address = target.ip().to_canonical();
        self.permits_address(address, target)?;
        if let IpAddr::V6(v6) = address {
            for (prefix, bit) in &EMBEDDING {
                if prefix.contains(address) {
                    let embedded = v6.to_bits().wrapping_shl(*bit) >> 96;
                    let embedded = Ipv4Addr::from_bits(u32::try_from(embedded).unwrap_or(0));
                    self.permits_address(embedded.into(), target)?;
                }
            }
        }
        Ok(())
    }

    fn permits_address(&self, address: IpAddr, target: SocketAddr) -> Result<(), Denied> {
        let most_exact = |list: &[Targets]| {
            let matching = list.iter().filter(|entry| entry.contain(address, target.port()));
            matching.max_by_key(|entry| entry.exactness()).copied()
        };
        match (most_exact(&self.allow), most_exact(&self.deny)) {
            (Some(allow), Some(deny)) if allow.exactness() > deny.exactness() => Ok(()),
            (_, Some(entry)) => Err(Denied { target: target.ip().to_canonical(), entry }),
            (_, None) => Ok(()),
        }
    }
}

/// Whether two lists have an entry in common, which is a contradiction.
pub(crate) fn contradiction(allow: &[Targets], deny: &[Targets]) -> Option<Targets> {
    allow.iter().find(|entry| deny.contains(entry)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixes(texts: &[&str]) -> Vec<Targets> {
        texts.iter().flat_map(|text| Targets::parse(text).unwrap()).collect()
    }

    fn permits(policy: &Policy, address: &str) -> bool {
        policy.permits(SocketAddr::new(address.parse().unwrap(), 80)).is_ok()
    }

    #[test]
    fn defaults_are_prefixes_without_host_bits() {
        for text in DENIED_BY_DEFAULT {
            let prefix: Prefix = text.parse().unwrap();
            assert_eq!(prefix.network(), prefix, "{text}");
        }
    }

    #[test]
    fn the_public_internet_is_allowed() {
        let policy = Policy::default();
        for address in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "203.0.113.7",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450::8a",
            "2001:db8::1",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
            "2002:101:101::1",
        ] {
            assert!(permits(&policy, address), "{address}");
        }
    }

    /// Every way to write an address that is not the public Internet's.
    #[test]
    fn the_forms_attackers_use_are_denied() {
        let policy = Policy::default();
        for address in [
            "127.0.0.1",
            "127.255.255.254",
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.100.100.200",
            "100.127.255.255",
            "168.63.129.16",
            "192.0.0.192",
            "198.18.0.1",
            "198.19.255.255",
            "224.0.0.251",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:0:7f00:1",
            "::ffff:0:127.0.0.1",
            "::ffff:0.0.0.0",
            "::ffff:192.0.0.192",
            "::ffff:168.63.129.16",
            "::ffff:100.100.100.200",
            "::a9fe:a9fe",
            "64:ff9b::127.0.0.1",
            "64:ff9b::0.0.0.0",
            "64:ff9b::192.168.0.1",
            "64:ff9b::224.0.0.1",
            "64:ff9b::255.255.255.255",
            "64:ff9b::100.100.100.200",
            "64:ff9b::10.1.2.3",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1.1.1.1",
            "2002:7f00:1::",
            "2002:a00:1::1",
            "2002:a9fe:a9fe::1",
            "2002:a9fe:a9fe::",
            "2002:c0a8:101::c0a8:101",
            "2002:ac10:1::1",
            "2002:0:0::1",
            "2002:e000:1::1",
            "2002:ffff:ffff::1",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            "fc00::1",
            "fd00:ec2::254",
            "fd12:3456::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "ff0e::1",
            "100::1",
        ] {
            assert!(!permits(&policy, address), "{address}");
        }
    }

    #[test]
    fn scopes_and_ports_change_nothing() {
        let policy = Policy::default();
        let scoped = std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 80, 0, 2);
        assert!(policy.permits(scoped.into()).is_err());
        for port in [0, 1, 65535] {
            assert!(policy.permits(SocketAddr::new("127.0.0.1".parse().unwrap(), port)).is_err());
        }
    }

    #[test]
    fn the_longest_prefix_decides() {
        let policy = Policy::new(
            prefixes(&["10.1.0.0/16", "192.168.0.0/16", "0.0.0.0/0", "::/0", "127.0.0.1"]),
            prefixes(&["10.1.2.0/24", "203.0.113.0/24"]),
        );
        assert!(permits(&policy, "10.1.1.1"), "longer than the default");
        assert!(!permits(&policy, "10.1.2.1"), "a denied prefix within an allowed one");
        assert!(!permits(&policy, "10.2.0.1"), "the default stays beside it");
        assert!(permits(&policy, "192.168.1.1"), "equal to the default");
        assert!(permits(&policy, "::ffff:192.168.1.1"));
        assert!(permits(&policy, "64:ff9b::192.168.1.1"));
        assert!(!permits(&policy, "203.0.113.7"));
        assert!(permits(&policy, "127.0.0.1"));
        assert!(!permits(&policy, "127.0.0.2"), "0.0.0.0/0 does not lift the defaults");
        assert!(!permits(&policy, "fe80::1"));
    }

    #[test]
    fn ports_are_allowed_and_denied_apart() {
        let policy = Policy::new(
            prefixes(&[
                "10.1.2.3 port 8000-8100",
                "203.0.113.0/24 port 25",
                "198.51.100.1 port 22",
            ]),
            prefixes(&["port 25", "203.0.113.0/24", "2001:db8::/32 port 1-1023"]),
        );
        let permits = |target: &str| policy.permits(target.parse().unwrap()).is_ok();
        for denied in [
            "1.1.1.1:25",
            "[2606:4700::1111]:25",
            "[::ffff:1.1.1.1]:25",
            "[64:ff9b::1.1.1.1]:25",
            "[2002:101:101::1]:25",
            "10.1.2.3:22",
            "10.1.2.3:8101",
            "10.1.2.4:8000",
            "203.0.113.7:80",
            "[2001:db8::1]:443",
        ] {
            assert!(!permits(denied), "{denied}");
        }
        for allowed in
            ["1.1.1.1:26", "10.1.2.3:8000", "10.1.2.3:8100", "203.0.113.7:25", "[2001:db8::1]:1024"]
        {
            assert!(permits(allowed), "{allowed}");
        }
        let mut own = policy.clone();
        own.deny_hosts(["198.51.100.1".parse().unwrap()]);
        assert!(own.permits("198.51.100.1:22".parse().unwrap()).is_ok(), "named with the port");
        let denied = own.permits("198.51.100.1:80".parse().unwrap()).unwrap_err();
        assert_eq!(denied.entry.to_string(), "198.51.100.1");
        assert_eq!(
            policy.permits("1.1.1.1:25".parse().unwrap()).unwrap_err().to_string(),
            "1.1.1.1 lies in 0.0.0.0/0 port 25, which the server's policy denies"
        );
    }

    #[test]
    fn entries_that_cannot_be_are_refused() {
        for bad in
            ["", "port", "port 0", "port x", "10.0.0.0/8 22", "10.0.0.1/8 port 22", "10.0.0.0/8:22"]
        {
            assert!(Targets::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn all_can_be_denied_but_some() {
        let policy = Policy::new(prefixes(&["198.51.100.0/24"]), prefixes(&["0.0.0.0/0", "::/0"]));
        assert!(permits(&policy, "198.51.100.1"));
        assert!(permits(&policy, "::ffff:198.51.100.1"));
        assert!(!permits(&policy, "1.1.1.1"));
        assert!(!permits(&policy, "2606:4700::1111"));
        assert!(!permits(&policy, "64:ff9b::198.51.100.1"), "the IPv6 address itself is denied");
    }

    #[test]
    fn own_addresses_are_denied_unless_named() {
        let mut policy = Policy::new(prefixes(&["198.51.100.2"]), Vec::new());
        let hosts = ["198.51.100.1", "198.51.100.2", "2001:db8::5"].map(|a| a.parse().unwrap());
        policy.deny_hosts(hosts);
        assert!(!permits(&policy, "198.51.100.1"));
        assert!(permits(&policy, "198.51.100.2"));
        assert!(!permits(&policy, "2001:db8::5"));
        assert!(!permits(&policy, "2002:c633:6401::1"), "198.51.100.1 by way of 6to4");
    }

    #[test]
    fn denials_say_why() {
        let target = "[::ffff:10.0.0.1]:22".parse().unwrap();
        assert_eq!(
            Policy::default().permits(target).unwrap_err().to_string(),
            "10.0.0.1 lies in 10.0.0.0/8, which the server's policy denies"
        );
    }
}
