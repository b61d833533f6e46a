//! Which targets a client may reach through the server.
//!
//! The server stands in a network of its own, beside services that trust their neighbours: what is
//! not on the public Internet is denied unless `[policy] allow` names it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

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

/// Which targets may be reached: the longest matching prefix decides, deny where two are as long;
/// none means allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Allowed in spite of a shorter denied prefix.
    pub allow: Vec<Prefix>,
    /// Denied.
    pub deny: Vec<Prefix>,
}

/// A target that the policy refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// The address, canonical.
    pub target: IpAddr,
    /// The denied prefix it lies in; of an address with an IPv4 address in it, perhaps the latter's.
    pub prefix: Prefix,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lies in {}, which the server's policy denies", self.target, self.prefix)
    }
}

impl std::error::Error for Denied {}

impl Default for Policy {
    fn default() -> Policy {
        Policy::new(Vec::new(), Vec::new())
    }
}

impl Policy {
    /// The policy of these prefixes over the default denials. An allowed prefix replaces an equal
    /// default, and overrides a shorter one.
    pub fn new(allow: Vec<Prefix>, mut deny: Vec<Prefix>) -> Policy {
        let defaults = DENIED_BY_DEFAULT.iter().filter_map(|text| text.parse::<Prefix>().ok());
        for prefix in defaults {
            if !allow.contains(&prefix) && !deny.contains(&prefix) {
                deny.push(prefix);
            }
        }
        Policy { allow, deny }
    }

    /// Denies these hosts also, unless an allowed prefix is as exact: for the server's own public
    /// addresses, on which its firewall does not see connections from itself.
    pub fn deny_hosts(&mut self, hosts: impl IntoIterator<Item = IpAddr>) {
        for host in hosts {
            let prefix = Prefix::host(host.to_canonical());
            if !self.allow.contains(&prefix) && !self.deny.contains(&prefix) {
                self.deny.push(prefix);
            }
        }
    }

    /// Whether a client may reach the target. Connect to the same address, not to its name again:
    /// a second look-up may give another.
    pub fn permits(&self, target: SocketAddr) -> Result<(), Denied> {
        let address = target.ip().to_canonical();
        self.permits_address(address, address)?;
        if let IpAddr::V6(v6) = address {
            for (prefix, bit) in &EMBEDDING {
                if prefix.contains(address) {
                    let embedded = v6.to_bits().wrapping_shl(*bit) >> 96;
                    let embedded = Ipv4Addr::from_bits(u32::try_from(embedded).unwrap_or(0));
                    self.permits_address(embedded.into(), address)?;
                }
            }
        }
        Ok(())
    }

    fn permits_address(&self, address: IpAddr, target: IpAddr) -> Result<(), Denied> {
        let longest = |list: &[Prefix]| {
            list.iter().filter(|p| p.contains(address)).max_by_key(|prefix| prefix.length).copied()
        };
        match (longest(&self.allow), longest(&self.deny)) {
            (Some(allow), Some(deny)) if allow.length > deny.length => Ok(()),
            (_, Some(prefix)) => Err(Denied { target, prefix }),
            (_, None) => Ok(()),
        }
    }
}

/// Whether two lists have a prefix in common, which is a contradiction.
pub(crate) fn contradiction(allow: &[Prefix], deny: &[Prefix]) -> Option<Prefix> {
    allow.iter().find(|prefix| deny.contains(prefix)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixes(texts: &[&str]) -> Vec<Prefix> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
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
            "64:ff9b::127.0.0.1",
            "64:ff9b::10.1.2.3",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1.1.1.1",
            "2002:7f00:1::",
            "2002:a00:1::1",
            "2002:a9fe:a9fe::1",
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
