//! How an uplink is built, and the words for what can be done to it.

use std::time::Duration;

use super::isp::Pair;

/// Which way packets go, seen from the customer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the router to the internet.
    Up,
    /// From the internet to the router.
    Down,
    /// Either way.
    Both,
}

/// MPTCP options an ISP's middlebox removes (replaced by NOPs), in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strip {
    /// None.
    Nothing,
    /// Those of segments with SYN: MP_CAPABLE and MP_JOIN of the handshake.
    Syn,
    /// MP_JOIN only.
    Join,
    /// All, in every segment.
    Everything,
}

/// How the router is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A veth pair: Ethernet, with a gateway.
    Ethernet,
    /// A TUN device: point-to-point and without ARP or gateway, as PPP is.
    PointToPoint,
}

/// How an uplink is built. All but the device can be changed while traffic flows, or by the ISP.
#[derive(Clone, Debug)]
pub struct UplinkSpec {
    /// The router's device.
    pub device: String,
    /// Kind of link.
    pub access: Access,
    /// Mbit/s in each direction, Ethernet headers included; 0 is no limit.
    pub rate: Pair<u32>,
    /// One-way delay in each direction.
    pub delay: Pair<Duration>,
    /// MTU in bytes.
    pub mtu: u32,
    /// The IPv4 subnet is `10.SUBNET.0.0/24`; `None`: one of its own.
    pub subnet: Option<u8>,
    /// Whether there is IPv4.
    pub ipv4: bool,
    /// Whether there is IPv6.
    pub ipv6: bool,
    /// IPv6 by router advertisements instead of a static address.
    pub slaac: bool,
}

impl UplinkSpec {
    /// An Ethernet uplink of `rate` Mbit/s each way, with IPv4 and IPv6 and an MTU of 1500.
    pub fn new(device: &str, rate: u32) -> UplinkSpec {
        UplinkSpec {
            device: device.to_owned(),
            access: Access::Ethernet,
            rate: Pair { up: rate, down: rate },
            delay: Pair::default(),
            mtu: 1500,
            subnet: None,
            ipv4: true,
            ipv6: true,
            slaac: false,
        }
    }

    /// Sets the one-way delay, the same in both directions.
    pub fn delay(mut self, delay: Duration) -> UplinkSpec {
        self.delay = Pair { up: delay, down: delay };
        self
    }

    /// Sets round trips of 20 ms, with which the kernel hardly ever misplaces what comes first over an uplink
    /// that joins, see [`joining_uploads`](super::joining_uploads).
    pub fn distant(self) -> UplinkSpec {
        self.delay(Duration::from_millis(10))
    }

    /// Sets the MTU.
    pub fn mtu(mut self, mtu: u32) -> UplinkSpec {
        self.mtu = mtu;
        self
    }

    /// Makes it a link without gateway, as PPP.
    pub fn point_to_point(mut self) -> UplinkSpec {
        self.access = Access::PointToPoint;
        self
    }

    /// Gives it the IPv4 subnet and gateway `10.SUBNET.0.0/24` and `10.SUBNET.0.1`, which other
    /// uplinks may have too.
    pub fn subnet(mut self, subnet: u8) -> UplinkSpec {
        self.subnet = Some(subnet);
        self
    }

    /// Leaves IPv6 out.
    pub fn ipv4_only(mut self) -> UplinkSpec {
        self.ipv6 = false;
        self
    }

    /// Leaves IPv4 out.
    pub fn ipv6_only(mut self) -> UplinkSpec {
        self.ipv4 = false;
        self
    }

    /// Has the router configure IPv6 from router advertisements.
    pub fn slaac(mut self) -> UplinkSpec {
        self.slaac = true;
        self
    }
}
