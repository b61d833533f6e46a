//! What an ISP does with its customer's packets, as one nft table and two shapers.

use std::fmt::Write;
use std::net::IpAddr;

use super::forwarder::Forwarder;
use super::spec::{Direction, Strip};
use super::{Namespace, tun};

/// The ISP's device towards the customer.
pub const CUSTOMER_SIDE: &str = "cpe";
/// The ISP's device towards the rest of the internet.
pub const CORE_SIDE: &str = "core";
/// The forwarder's device that takes packets from and gives packets to the customer.
pub const FORWARDER_CUSTOMER: &str = "fwd-cpe";
/// The forwarder's device on the side of the core.
pub const FORWARDER_CORE: &str = "fwd-core";

/// The nft sets of what came from sources that are not the customer's, with a family at the end.
pub const SPOOFED: &str = "spoofed";

/// The shapers hold this much traffic, as a modem's queue does.
const QUEUE: &str = "50ms";
/// Bytes of a full Ethernet frame at the usual MTU.
const FRAME: u64 = 1514;

/// How an ISP treats its customer.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Source addresses the customer may use.
    pub assigned: Vec<IpAddr>,
    /// The prefix delegated to the customer, in nft's notation.
    pub delegated: Option<String>,
    /// Packets forwarded are swallowed silently; the ISP itself answers as before.
    pub blackhole: Option<Direction>,
    /// Packets lost, in parts per million.
    pub loss: Pair<u32>,
    /// Whether only TCP and ICMP pass.
    pub without_udp: bool,
    /// Whether acknowledgements with MP_PRIO are lost.
    pub without_priority: bool,
    /// MPTCP options removed.
    pub strip: Strip,
    /// Packets make a detour through the forwarder.
    pub forwarder: bool,
}

/// A value for each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pair<T> {
    /// From the customer.
    pub up: T,
    /// To the customer.
    pub down: T,
}

impl<T: Copy> Pair<T> {
    /// Sets one or both.
    pub fn set(&mut self, direction: Direction, value: T) {
        if direction != Direction::Down {
            self.up = value;
        }
        if direction != Direction::Up {
            self.down = value;
        }
    }
}

impl Policy {
    /// Puts the policy in force, in place of the one before. Translations of connections stay.
    pub fn apply(&self, isp: &Namespace) {
        isp.nft(&self.script());
    }

    fn script(&self) -> String {
        let mut sources = String::new();
        for family in ["ip", "ip6"] {
            let mut allowed: Vec<String> = self
                .assigned
                .iter()
                .filter(|address| address.is_ipv4() == (family == "ip"))
                .map(ToString::to_string)
                .collect();
            if family == "ip6" {
                // Multicast listener reports come from the unspecified address at first (RFC 3590).
                allowed.extend(["::".to_owned(), "fe80::/10".to_owned()]);
                allowed.extend(self.delegated.clone());
            }
            let allowed = allowed.join(", ");
            let condition = if allowed.is_empty() {
                format!("meta nfproto {}", if family == "ip" { "ipv4" } else { "ipv6" })
            } else {
                format!("{family} saddr != {{ {allowed} }}")
            };
            let spoofed = format!("iifname {CUSTOMER_SIDE} {condition}");
            let flow = format!("{family} saddr . {family} daddr . meta l4proto");
            let _ = writeln!(sources, "    {spoofed} update @{SPOOFED}_{family} {{ {flow} }}");
            let _ = writeln!(sources, "    {spoofed} drop");
        }
        let swallows =
            |way| self.blackhole.is_some_and(|hole| hole == way || hole == Direction::Both);
        let up = self.hindrances(swallows(Direction::Up), self.loss.up);
        let down = self.hindrances(swallows(Direction::Down), self.loss.down);
        // A packet passes twice when the forwarder is in: connections are tracked, and addresses
        // translated, only on the forwarder's core side.
        let untracked = if self.forwarder {
            format!("{CUSTOMER_SIDE}, {FORWARDER_CUSTOMER}")
        } else {
            FORWARDER_CUSTOMER.to_owned()
        };
        format!(
            "add table inet isp
delete table inet isp
table inet isp {{
  set {SPOOFED}_ip {{ type ipv4_addr . ipv4_addr . inet_proto; flags dynamic; size 1024; }}
  set {SPOOFED}_ip6 {{ type ipv6_addr . ipv6_addr . inet_proto; flags dynamic; size 1024; }}
  chain ingress {{
    type filter hook prerouting priority -450;
{sources}    iifname {{ {untracked} }} notrack
  }}
  chain from_customer {{
{up}  }}
  chain forward {{
    type filter hook forward priority filter;
    iifname {CUSTOMER_SIDE} jump from_customer
    oifname {CUSTOMER_SIDE} jump to_customer
  }}
  chain to_customer {{
{down}  }}
  chain nat {{
    type nat hook postrouting priority srcnat;
    oifname {CORE_SIDE} meta nfproto ipv4 masquerade
  }}
}}
"
        )
    }

    fn hindrances(&self, swallow: bool, loss: u32) -> String {
        let mut rules = String::new();
        if swallow {
            rules += "    counter drop\n";
        }
        if loss > 0 {
            let _ = writeln!(rules, "    numgen random mod 1000000 < {loss} counter drop");
        }
        if self.without_udp {
            rules += "    meta l4proto udp counter drop\n";
        }
        if self.without_priority {
            // Behind 12 bytes of timestamps and 0, 8 or 12 of the DSS option, whose subtype nft sees.
            for bit in [256, 320, 352] {
                let _ = writeln!(rules, "    meta l4proto tcp @th,{bit},20 0x1e035 counter drop");
            }
        }
        rules += match self.strip {
            Strip::Nothing => "",
            Strip::Syn => "    tcp flags & syn == syn reset tcp option mptcp\n",
            Strip::Join => "    tcp option mptcp subtype 1 reset tcp option mptcp\n",
            Strip::Everything => "    reset tcp option mptcp\n",
        };
        rules
    }
}

/// Limits the rate, in Mbit/s, at which a device sends; 0 is no limit.
pub fn shape(isp: &Namespace, device: &str, rate: u32) {
    if rate == 0 {
        // Fails when there is no shaper to remove.
        let _ = isp.try_run("tc", &["qdisc", "delete", "dev", device, "root"]);
        return;
    }
    // One millisecond's worth absorbs late timers; less than two frames could stall.
    let burst = (u64::from(rate) * 1_000_000 / 8 / 1000).max(2 * FRAME);
    let (rate, burst) = (format!("{rate}mbit"), burst.to_string());
    #[rustfmt::skip]
    let arguments = [
        "qdisc", "replace", "dev", device, "root",
        "tbf", "rate", &rate, "burst", &burst, "latency", QUEUE,
    ];
    isp.run("tc", &arguments);
}

/// Joins an ISP to the core with a public IPv4 /30 and a routed IPv6 /48.
pub fn connect_core(isp: &Namespace, inet: &Namespace, number: u8) {
    isp.sysctl("net.ipv4.ip_forward", "1");
    isp.sysctl("net.ipv6.conf.all.forwarding", "1");
    let (inet_v4, isp_v4) = (4 * number + 1, 4 * number + 2);
    let name = isp.name();
    inet.ip_batch(&format!(
        "link add {name} type veth peer name {CORE_SIDE} netns {name}\n\
         link set {name} up\n\
         address add 203.0.113.{inet_v4}/30 dev {name}\n\
         address add 2001:db8:f0:{number}::1/64 dev {name}\n"
    ));
    isp.ip_batch(&format!(
        "link set {CORE_SIDE} txqueuelen 10000 up\n\
         address add 203.0.113.{isp_v4}/30 dev {CORE_SIDE}\n\
         address add 2001:db8:f0:{number}::2/64 dev {CORE_SIDE}\n\
         route add default via 203.0.113.{inet_v4}\n\
         route add default via 2001:db8:f0:{number}::1\n"
    ));
    inet.ip(&format!("route add 2001:db8:{number}::/48 via 2001:db8:f0:{number}::2"));
}

/// Makes the forwarder's two devices in the ISP's namespace; [`detour`] sends packets there.
pub fn insert_forwarder(isp: &Namespace) -> Forwarder {
    let customer = tun::create(isp, FORWARDER_CUSTOMER).expect("make a TUN device");
    let core = tun::create(isp, FORWARDER_CORE).expect("make a TUN device");
    for (table, name) in [(100, FORWARDER_CUSTOMER), (101, FORWARDER_CORE)] {
        isp.ip_batch(&format!(
            "link set {name} addrgenmode none mtu 9000 txqueuelen 10000 up\n\
             route add 0.0.0.0/0 dev {name} table {table}\n\
             route add ::/0 dev {name} table {table}\n"
        ));
    }
    Forwarder::start(customer, core).expect("start the forwarder")
}

/// Sends packets through the forwarder (`add`) or past it again (`delete`).
pub fn detour(isp: &Namespace, verb: &str) {
    for family in ["-4", "-6"] {
        isp.ip(&format!("{family} rule {verb} pref 100 iif {CUSTOMER_SIDE} lookup 100"));
        isp.ip(&format!("{family} rule {verb} pref 101 iif {CORE_SIDE} lookup 101"));
    }
}
