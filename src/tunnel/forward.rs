//! Ports of the server that lead to a client's LAN: what both ends say of them over the control
//! connection.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::{mapped, take, take_address};
use crate::net::Transport;

/// The most ports a client may ask for.
pub const PORTS_MAX: usize = 256;

/// `PROXY` header, version 2: its signature, version and command
/// (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>, section 2.2).
const PROXY: &[u8; 13] = b"\r\n\r\n\0\r\nQUIT\n\x21";
const PROXY_TCP4: u8 = 0x11;
const PROXY_TCP6: u8 = 0x21;

/// A port of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// The number of its protocol (IANA).
    pub protocol: u8,
    /// Its number.
    pub number: u16,
}

impl Port {
    /// The number of TCP.
    pub const TCP: u8 = 6;

    /// The number of UDP.
    pub const UDP: u8 = 17;

    /// A port of TCP.
    pub fn tcp(number: u16) -> Port {
        Port { protocol: Port::TCP, number }
    }

    /// A port of UDP.
    pub fn udp(number: u16) -> Port {
        Port { protocol: Port::UDP, number }
    }

    /// A port of either.
    pub fn of(transport: Transport, number: u16) -> Port {
        match transport {
            Transport::Tcp => Port::tcp(number),
            Transport::Udp => Port::udp(number),
        }
    }

    /// Which of the two it is of, if any.
    pub fn transport(self) -> Option<Transport> {
        Transport::ALL.into_iter().find(|transport| Port::of(*transport, self.number) == self)
    }

    fn encode(self) -> [u8; 3] {
        let [high, low] = self.number.to_be_bytes();
        [self.protocol, high, low]
    }

    fn decode([protocol, high, low]: [u8; 3]) -> Port {
        Port { protocol, number: u16::from_be_bytes([high, low]) }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.transport() {
            Some(Transport::Tcp) => write!(f, "port {}", self.number),
            Some(Transport::Udp) => write!(f, "UDP port {}", self.number),
            None => write!(f, "port {} of protocol {}", self.number, self.protocol),
        }
    }
}

/// What becomes of a port asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The server listens there.
    Granted,
    /// The server's configuration does not let this client have it.
    NotAllowed,
    /// Something else listens there.
    InUse,
    /// The server lacks the right to listen below 1024.
    Privileged,
    /// The server does not forward this protocol.
    Unsupported,
    /// It could not, for the reason in its log; also what an older client does not know.
    Failed,
}

impl Verdict {
    const ALL: [Verdict; 6] = [
        Verdict::Granted,
        Verdict::NotAllowed,
        Verdict::InUse,
        Verdict::Privileged,
        Verdict::Unsupported,
        Verdict::Failed,
    ];

    fn from_wire(number: u8) -> Verdict {
        Verdict::ALL.get(usize::from(number)).copied().unwrap_or(Verdict::Failed)
    }

    /// What to do about it; nothing where the port is granted.
    pub fn advice(self) -> &'static str {
        match self {
            Verdict::Granted => "",
            Verdict::NotAllowed => {
                "add it to 'forwards' of this router's [[client]] in server.toml there, and reload"
            }
            Verdict::InUse => "choose another port, or stop that program",
            Verdict::Privileged => "restart the server, or choose a port above 1023",
            Verdict::Unsupported => "update the server",
            Verdict::Failed => "look at the server's log",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Granted => "the server listens there",
            Verdict::NotAllowed => "the server does not allow it to this router",
            Verdict::InUse => "another program listens there",
            Verdict::Privileged => "the server may not listen on ports below 1024",
            Verdict::Unsupported => "the server does not forward this protocol",
            Verdict::Failed => "the server could not listen there",
        })
    }
}

/// A message of this type that asks for ports.
pub(super) fn encode_ports(kind: u8, ports: &[Port]) -> Vec<u8> {
    let mut message = vec![kind];
    for port in ports.iter().take(PORTS_MAX) {
        message.extend(port.encode());
    }
    message
}

/// The ports that its value has.
pub(super) fn decode_ports(value: &[u8]) -> Vec<Port> {
    let (ports, _) = value.as_chunks();
    ports.iter().take(PORTS_MAX).map(|port| Port::decode(*port)).collect()
}

/// A message of this type that answers it.
pub(super) fn encode_verdicts(kind: u8, verdicts: &[(Port, Verdict)]) -> Vec<u8> {
    let mut message = vec![kind];
    for (port, verdict) in verdicts.iter().take(PORTS_MAX) {
        message.extend(port.encode());
        message.push(*verdict as u8);
    }
    message
}

/// The verdicts that its value has.
pub(super) fn decode_verdicts(value: &[u8]) -> Vec<(Port, Verdict)> {
    let (verdicts, _) = value.as_chunks();
    let read = |&[protocol, high, low, verdict]: &[u8; 4]| {
        (Port::decode([protocol, high, low]), Verdict::from_wire(verdict))
    };
    verdicts.iter().take(PORTS_MAX).map(read).collect()
}

/// A connection accepted on a port that is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// What the client accepts it by.
    pub id: u64,
    /// Who connected.
    pub peer: SocketAddr,
    /// The server's address and port.
    pub local: SocketAddr,
}

impl Incoming {
    /// A message of this type that announces it.
    pub(super) fn encode(&self, kind: u8) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend(self.id.to_be_bytes());
        for address in [self.peer, self.local] {
            bytes.extend(mapped(address.ip()).octets());
            bytes.extend(address.port().to_be_bytes());
        }
        bytes
    }

    /// What the message's value says.
    pub(super) fn decode(value: &[u8]) -> Option<Incoming> {
        let (id, rest) = take::<8>(value)?;
        let (peer, rest) = take_address(rest)?;
        let (local, _) = take_address(rest)?;
        Some(Incoming { id: u64::from_be_bytes(id), peer, local })
    }

    /// What tells a program that speaks the PROXY protocol, version 2, who connected: ahead of all
    /// else.
    pub fn proxy_header(&self) -> Vec<u8> {
        let Incoming { peer, local, .. } = self;
        let (family, addresses) = match (peer.ip(), local.ip()) {
            (IpAddr::V4(peer), IpAddr::V4(local)) => {
                (PROXY_TCP4, [peer.octets(), local.octets()].concat())
            }
            (peer, local) => (PROXY_TCP6, [mapped(peer).octets(), mapped(local).octets()].concat()),
        };
        let ports = [peer.port().to_be_bytes(), local.port().to_be_bytes()].concat();
        // 12 or 36 bytes.
        let length = (addresses.len() + ports.len()) as u8;
        [PROXY.as_slice(), &[family, 0, length], &addresses, &ports].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incoming(peer: &str, local: &str) -> Incoming {
        Incoming { id: 7, peer: peer.parse().unwrap(), local: local.parse().unwrap() }
    }

    #[test]
    fn more_ports_than_may_be_asked_for_are_left_out() {
        let ports: Vec<Port> = (1..=300).map(Port::tcp).collect();
        assert_eq!(decode_ports(&encode_ports(4, &ports)[1..]), ports[..PORTS_MAX]);
        let bytes: Vec<u8> = ports.iter().flat_map(|port| port.encode()).collect();
        assert_eq!(decode_ports(&bytes), ports[..PORTS_MAX]);
        assert_eq!(decode_ports(&[6, 8]), []);
    }

    #[test]
    fn a_verdict_that_is_not_known_is_a_failure() {
        for verdict in Verdict::ALL {
            let verdicts = [(Port::tcp(2222), verdict)];
            assert_eq!(decode_verdicts(&encode_verdicts(4, &verdicts)[1..]), verdicts);
        }
        let newer = [(Port { protocol: 17, number: 0x0102 }, Verdict::Failed)];
        assert_eq!(decode_verdicts(&[17, 1, 2, 99]), newer);
    }

    /// The bytes of the specification's section 2.2.
    #[test]
    fn the_header_is_that_of_the_proxy_protocol() {
        let v4 = incoming("192.0.2.1:40000", "203.0.113.1:2222");
        let signature = [0x0d, 0x0a, 0x0d, 0x0a, 0, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];
        let rest = [0x21, 0x11, 0, 12, 192, 0, 2, 1, 203, 0, 113, 1, 0x9c, 0x40, 0x08, 0xae];
        assert_eq!(v4.proxy_header(), [&signature[..], &rest].concat());
        let v6 = incoming("[2001:db8::1]:40000", "[2001:db8::2]:2222").proxy_header();
        assert_eq!(v6[12..16], [0x21, 0x21, 0, 36]);
        assert_eq!(v6[16..22], [0x20, 0x01, 0x0d, 0xb8, 0, 0]);
        assert_eq!((v6[31], v6[47], &v6[48..]), (1, 2, &[0x9c, 0x40, 0x08, 0xae][..]));
    }

    #[test]
    fn addresses_are_of_the_family_they_were() {
        for peer in ["192.0.2.1:40000", "[2001:db8::1]:40000"] {
            let incoming = incoming(peer, "203.0.113.1:2222");
            let value = &incoming.encode(4)[1..];
            assert_eq!(Incoming::decode(value), Some(incoming));
            assert_eq!(Incoming::decode(&value[1..]), None);
        }
    }
}
