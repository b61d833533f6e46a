//! One uplink: the router's device, the ISP behind it, and everything that can go wrong there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::forwarder::Forwarder;
use super::isp::{self, CORE_SIDE, CUSTOMER_SIDE, Pair, Policy, SPOOFED};
use super::spec::{Access, Direction, Strip, UplinkSpec};
use super::{Namespace, advertisement, tun};

/// A running uplink.
pub struct Uplink {
    spec: UplinkSpec,
    /// 1 for the first.
    number: u8,
    router: Namespace,
    isp: Namespace,
    state: Mutex<State>,
}

struct State {
    policy: Policy,
    delay: Pair<Duration>,
    /// The last byte of the customer's address.
    host: u8,
    extra: Vec<IpAddr>,
    forwarder: Option<Forwarder>,
}

/// The ISP's link-local address, the same on every uplink as it often is.
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Bytes that a device counts for each packet besides the packet.
const ETHERNET_HEADER: u64 = 14;

impl Uplink {
    pub(super) fn build(
        spec: UplinkSpec,
        index: usize,
        prefix: &str,
        router: &Namespace,
        inet: &Namespace,
    ) -> Uplink {
        let number = u8::try_from(index + 1).expect("fewer than 256 uplinks");
        let isp = Namespace::create(&format!("{prefix}isp-{}", spec.device));
        isp::connect_core(&isp, inet, number);
        // The first uplink's ISP delegates a prefix for the LAN.
        let delegated = (number == 1 && spec.ipv6).then(|| "2001:db8:1:77::/64".to_owned());
        let uplink = Uplink {
            number,
            router: router.clone(),
            isp,
            state: Mutex::new(State {
                policy: Policy {
                    assigned: Vec::new(),
                    delegated,
                    blackhole: None,
                    loss: Pair::default(),
                    without_udp: false,
                    without_priority: false,
                    strip: Strip::Nothing,
                    forwarder: false,
                },
                delay: Pair::default(),
                host: number + 1,
                extra: Vec::new(),
                forwarder: None,
            }),
            spec,
        };
        uplink.assign();
        uplink.plug_in();
        uplink.delay(Direction::Up, uplink.spec.delay.up);
        uplink.delay(Direction::Down, uplink.spec.delay.down);
        uplink
    }

    /// Makes the link and configures both its ends.
    pub fn plug_in(&self) {
        let Uplink { spec, router, isp, .. } = self;
        let device = &spec.device;
        match spec.access {
            Access::Ethernet => router.ip_batch(&format!(
                "link add {device} type veth peer name {CUSTOMER_SIDE} netns {}",
                isp.name()
            )),
            Access::PointToPoint => {
                let customer = tun::create(router, device).expect("make the router's TUN device");
                let network = tun::create(isp, CUSTOMER_SIDE).expect("make the ISP's TUN device");
                let forwarder = Forwarder::start(customer, network).expect("start the forwarder");
                self.state().forwarder = Some(forwarder);
            }
        }
        for (namespace, name) in [(router, device.as_str()), (isp, CUSTOMER_SIDE)] {
            // Segments of one packet each, so that shaper and loss see what a wire would carry.
            namespace.ip_batch(&format!(
                "link set {name} addrgenmode none mtu {} gso_max_segs 1 txqueuelen 10000",
                spec.mtu
            ));
        }
        if spec.slaac {
            router.sysctl(&format!("net.ipv6.conf.{device}.accept_ra"), "2");
        }
        isp.ip(&format!("link set {CUSTOMER_SIDE} up"));
        self.configure_isp();
        self.rate(Direction::Up, spec.rate.up);
        self.rate(Direction::Down, spec.rate.down);
        self.link_up();
    }

    /// The router's device is gone, as when a USB modem is pulled out.
    pub fn unplug(&self) {
        assert_eq!(self.spec.access, Access::Ethernet, "only Ethernet can be plugged in again");
        self.router.ip(&format!("link delete {}", self.spec.device));
    }

    /// The router's device.
    pub fn device(&self) -> &str {
        &self.spec.device
    }

    /// How the uplink was built.
    pub fn spec(&self) -> &UplinkSpec {
        &self.spec
    }

    /// The ISP's namespace.
    pub fn isp(&self) -> &Namespace {
        &self.isp
    }

    /// The ISP's device towards the router.
    pub fn isp_device(&self) -> &'static str {
        CUSTOMER_SIDE
    }

    /// The router's IPv4 address.
    pub fn address_v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.subnet(), 0, self.state().host)
    }

    /// The router's IPv6 address, unless it comes by SLAAC.
    pub fn address_v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, self.number.into(), 0, 0, 0, 0, self.state().host.into())
    }

    /// The IPv4 gateway; none on a point-to-point link.
    pub fn gateway_v4(&self) -> Option<Ipv4Addr> {
        (self.spec.access == Access::Ethernet).then(|| Ipv4Addr::new(10, self.subnet(), 0, 1))
    }

    /// The IPv6 gateway; none on a point-to-point link.
    pub fn gateway_v6(&self) -> Option<Ipv6Addr> {
        (self.spec.access == Access::Ethernet).then_some(GATEWAY_V6)
    }

    /// The metric of the default route in the router's main table: 10, 20, ...
    pub fn metric(&self) -> u32 {
        u32::from(self.number) * 10
    }

    /// Bytes the router has received and sent on its device.
    pub fn bytes(&self) -> (u64, u64) {
        self.router.device_bytes(&self.spec.device)
    }

    /// Bytes of IP packets that have passed the router's device, both directions added.
    pub fn ip_bytes(&self) -> u64 {
        let [received, arrived, sent, left] = self.router.device_counters(&self.spec.device);
        received + sent - ETHERNET_HEADER * (arrived + left)
    }

    /// Limits the rate, in Mbit/s; 0 is no limit.
    pub fn rate(&self, direction: Direction, rate: u32) {
        if direction != Direction::Down {
            isp::shape(&self.isp, CORE_SIDE, rate);
        }
        if direction != Direction::Up {
            isp::shape(&self.isp, CUSTOMER_SIDE, rate);
        }
    }

    /// Delays each packet one way by so much (within about a millisecond); order is kept.
    pub fn delay(&self, direction: Direction, delay: Duration) {
        let mut state = self.state();
        state.delay.set(direction, delay);
        let wanted = state.delay != Pair::default();
        if self.spec.access == Access::Ethernet && wanted != state.policy.forwarder {
            if wanted && state.forwarder.is_none() {
                state.forwarder = Some(isp::insert_forwarder(&self.isp));
            }
            state.policy.forwarder = wanted;
            state.policy.apply(&self.isp);
            isp::detour(&self.isp, if wanted { "add" } else { "delete" });
        }
        if let Some(forwarder) = &state.forwarder {
            forwarder.set_delay(direction, delay);
        }
    }

    /// Loses this share of the packets, in percent, at random.
    pub fn loss(&self, direction: Direction, percent: f64) {
        let per_million = (percent * 10_000.0).round() as u32;
        self.change_policy(|policy| policy.loss.set(direction, per_million));
    }

    /// Swallows all packets silently. Link and gateway look as healthy as before.
    pub fn blackhole(&self, direction: Direction) {
        self.change_policy(|policy| policy.blackhole = Some(direction));
    }

    /// Lets no UDP through.
    pub fn drop_udp(&self) {
        self.change_policy(|policy| policy.without_udp = true);
    }

    /// Removes MPTCP options from what passes.
    pub fn strip_mptcp(&self, strip: Strip) {
        self.change_policy(|policy| policy.strip = strip);
    }

    /// Loses the acknowledgements that say by MP_PRIO which subflows stand by.
    pub fn drop_priority(&self) {
        self.change_policy(|policy| policy.without_priority = true);
    }

    /// Ends blackhole, loss, stripping and the lack of UDP and MP_PRIO.
    pub fn restore(&self) {
        self.change_policy(|policy| {
            policy.blackhole = None;
            policy.loss = Pair::default();
            policy.without_udp = false;
            policy.without_priority = false;
            policy.strip = Strip::Nothing;
        });
    }

    /// `ip link set DEVICE down` on the router: the kernel flushes the device's routes.
    pub fn link_down(&self) {
        self.router.ip(&format!("link set {} down", self.spec.device));
    }

    /// Brings the device up and configures it as a DHCP client and netifd would.
    pub fn link_up(&self) {
        self.router.ip(&format!("link set {} up", self.spec.device));
        self.configure_router();
    }

    /// The cable is pulled: the router's device stays up, but has no carrier.
    pub fn carrier_down(&self) {
        assert_eq!(self.spec.access, Access::Ethernet, "only Ethernet has a cable");
        self.isp.ip(&format!("link set {CUSTOMER_SIDE} down"));
    }

    /// The cable is back.
    pub fn carrier_up(&self) {
        self.isp.ip(&format!("link set {CUSTOMER_SIDE} up"));
        self.configure_isp();
        self.configure_router();
    }

    /// The gateway is gone: nothing answers for its addresses, while the link stays up.
    pub fn gateway_down(&self) {
        self.isp.ip(&format!("link set {CUSTOMER_SIDE} arp off"));
        self.isp.ip(&format!("-6 address flush dev {CUSTOMER_SIDE}"));
        self.isp.ip(&format!("-4 address flush dev {CUSTOMER_SIDE}"));
        self.router.ip(&format!("neighbour flush dev {}", self.spec.device));
    }

    /// The gateway is back.
    pub fn gateway_up(&self) {
        self.isp.ip(&format!("link set {CUSTOMER_SIDE} arp on"));
        self.configure_isp();
    }

    /// The lease ends: addresses and default routes go, the link stays up.
    pub fn drop_address(&self) {
        let device = &self.spec.device;
        self.router.ip(&format!("address flush dev {device} scope global"));
        for family in ["-4", "-6"] {
            // There may be none left: the kernel removes some by itself.
            let arguments = [family, "route", "flush", "default", "dev", device];
            let _ = self.router.try_run("ip", &arguments);
        }
    }

    /// A lease as before: the addresses and default routes of [`Uplink::drop_address`] return.
    pub fn obtain_address(&self) {
        self.configure_router();
    }

    /// The ISP assigns other addresses; the router takes them at once. Packets from the old
    /// addresses are dropped from then on.
    pub fn renumber(&self) {
        self.drop_address();
        {
            let mut state = self.state();
            state.host = state.host.checked_add(50).unwrap_or(2);
        }
        self.assign();
        self.configure_isp();
        self.configure_router();
    }

    /// The ISP assigns one more address, which the router's device gets with prefix length `length`.
    pub fn add_address(&self, address: IpAddr, length: u8) {
        self.state().extra.push(address);
        self.assign();
        self.router.ip(&format!("address replace {address}/{length} dev {}", self.spec.device));
    }

    /// Takes an address of [`Uplink::add_address`] away.
    pub fn remove_address(&self, address: IpAddr, length: u8) {
        self.state().extra.retain(|extra| *extra != address);
        self.router.ip(&format!("address delete {address}/{length} dev {}", self.spec.device));
        self.assign();
    }

    /// Sends one router advertisement with the uplink's /64; a lifetime of zero withdraws the
    /// default route and deprecates the addresses.
    pub fn advertise_router(&self, lifetime: Duration) {
        let prefix = Ipv6Addr::new(0x2001, 0xdb8, self.number.into(), 0, 0, 0, 0, 0);
        let sent =
            self.isp.enter(|| advertisement::send(CUSTOMER_SIDE, GATEWAY_V6, prefix, lifetime));
        sent.unwrap_or_else(|error| panic!("send a router advertisement: {error}"));
    }

    /// What the ISP has dropped since its last change because it did not assign the source: source,
    /// destination and protocol.
    pub fn spoofed(&self) -> Vec<String> {
        let elements = |family| {
            let set = format!("{SPOOFED}_{family}");
            let listing = self.isp.run("nft", &["list", "set", "inet", "isp", &set]);
            let elements = listing.split_once("elements = {").map_or("", |(_, elements)| elements);
            let elements = elements.split('}').next().unwrap_or_default().split(',');
            elements.map(|e| e.trim().to_owned()).filter(|e| !e.is_empty()).collect::<Vec<_>>()
        };
        [elements("ip"), elements("ip6")].concat()
    }

    fn subnet(&self) -> u8 {
        self.spec.subnet.unwrap_or(self.number)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change_policy(&self, change: impl FnOnce(&mut Policy)) {
        let mut state = self.state();
        change(&mut state.policy);
        state.policy.apply(&self.isp);
    }

    /// Tells the ISP's ingress filter which addresses are the customer's.
    fn assign(&self) {
        let addresses = [IpAddr::V4(self.address_v4()), IpAddr::V6(self.address_v6())];
        let extra = self.state().extra.clone();
        let slaac = self.spec.slaac;
        let prefix = format!("2001:db8:{}::/64", self.number);
        self.change_policy(|policy| {
            policy.assigned = [&addresses[..], &extra].concat();
            if slaac {
                // The prefix holds the static address too; nft refuses overlapping intervals.
                policy.assigned.retain(IpAddr::is_ipv4);
                policy.delegated = Some(prefix);
            }
        });
    }

    fn configure_isp(&self) {
        let subnet = self.subnet();
        let host = self.state().host;
        let mut commands = String::new();
        if self.spec.ipv4 {
            commands += &match self.spec.access {
                Access::Ethernet => {
                    format!("address replace 10.{subnet}.0.1/24 dev {CUSTOMER_SIDE}\n")
                }
                Access::PointToPoint => format!(
                    "address flush dev {CUSTOMER_SIDE} scope global\n\
                     address replace 10.{subnet}.0.1 peer 10.{subnet}.0.{host} dev {CUSTOMER_SIDE}\n"
                ),
            };
        }
        if self.spec.ipv6 {
            let number = self.number;
            commands += &format!(
                "address replace {GATEWAY_V6}/64 dev {CUSTOMER_SIDE}\n\
                 route replace 2001:db8:{number}::/64 dev {CUSTOMER_SIDE}\n\
                 route replace 2001:db8:{number}:77::/64 via fe80::2 dev {CUSTOMER_SIDE}\n"
            );
        }
        self.isp.ip_batch(&commands);
    }

    fn configure_router(&self) {
        let device = &self.spec.device;
        let metric = self.metric();
        let subnet = self.subnet();
        let mut commands = String::new();
        if self.spec.ipv4 {
            let address = self.address_v4();
            let (local, via) = match self.gateway_v4() {
                Some(gateway) => (format!("{address}/24"), format!("via {gateway}")),
                None => (format!("{address} peer 10.{subnet}.0.1"), String::new()),
            };
            commands += &format!(
                "address replace {local} dev {device} metric {metric}\n\
                 route replace default {via} dev {device} proto static src {address} metric {metric}\n"
            );
        }
        if self.spec.ipv6 {
            commands += &format!("address replace fe80::2/64 dev {device}\n");
            if !self.spec.slaac {
                let via = self.gateway_v6().map(|gateway| format!("via {gateway}"));
                commands += &format!(
                    "address replace {}/64 dev {device} metric {metric}\n\
                     route replace ::/0 {} dev {device} proto static metric {metric}\n",
                    self.address_v6(),
                    via.unwrap_or_default(),
                );
            }
        }
        for address in self.state().extra.iter() {
            let length = if address.is_ipv4() { 24 } else { 64 };
            commands += &format!("address replace {address}/{length} dev {device}\n");
        }
        self.router.ip_batch(&commands);
        if self.spec.slaac {
            self.advertise_router(Duration::from_secs(1800));
        }
    }
}
