//! Datagrams: UDP of the LAN, carried over UDP, each sealed by itself.
//!
//! They may get lost, arrive in another order, or twice: a [`ReplayWindow`] takes each once. The
//! cipher is ChaCha20-Poly1305 whatever the session's streams have: any number of datagrams may be
//! sealed with one key, and their contents are never in the clear.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::record::{RecordKey, TAG_LEN};
use super::replay::ReplayWindow;
use super::session::{SessionId, SessionKeys};
use super::{is_possible, take};
use crate::crypto::aead::Aad;

/// Bytes of a datagram at most: what UDP takes over IPv4.
pub const DATAGRAM_MAX: usize = 65535 - 20 - 8;
/// Bytes that a datagram with an IPv4 flow adds to its payload.
pub const OVERHEAD_V4: usize = HEADER_LEN + 1 + 2 * (4 + 2) + TAG_LEN;
/// The same for IPv6.
pub const OVERHEAD_V6: usize = HEADER_LEN + 1 + 2 * (16 + 2) + TAG_LEN;

const HEADER_LEN: usize = 17;
const TO_SERVER: u8 = b'D';
const TO_CLIENT: u8 = b'd';
/// Added to either: the flow began at a forwarded port. No flag, for an end that does not know of such
/// flows is to drop it.
const FORWARDED: u8 = b'F' - b'D';
/// Flags: the flow's addresses are of IPv6; the datagram is sent over two uplinks.
const IPV6: u8 = 1;
const TWICE: u8 = 2;

/// What the LAN sees as one exchange of datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// The host in the LAN; where somebody outside began it, the server's address and forwarded port.
    pub host: SocketAddr,
    /// Whom it talks to, of the same address family.
    pub target: SocketAddr,
}

/// The contents of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Its flow; none where it only shows the server where to send answers to.
    pub flow: Option<Flow>,
    /// Whether the flow began at a forwarded port.
    pub forwarded: bool,
    /// Whether the client sends it over two uplinks, and wants answers over both.
    pub twice: bool,
    /// What the host or the target sent.
    pub payload: &'a [u8],
}

/// A datagram as it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    /// Its number.
    pub counter: u64,
    /// Whether it is the first of that number: others are copies, or replayed.
    pub fresh: bool,
    /// Its contents.
    pub datagram: Datagram<'a>,
}

/// Why something is no datagram of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatagramError {
    /// Shorter or longer than a datagram.
    BadLength,
    /// No datagram, or not one in this direction, or of another session.
    NotDatagram,
    /// Altered, or made with another key.
    Forged,
    /// Addresses that no flow can have, or of two families.
    BadFlow,
    /// The cryptographic library refused to work; not caused by input.
    Library,
}

impl fmt::Display for DatagramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DatagramError::BadLength => "datagram of a wrong length",
            DatagramError::NotDatagram => "no datagram of this session",
            DatagramError::Forged => "datagram that is not authentic",
            DatagramError::BadFlow => "datagram with impossible addresses",
            DatagramError::Library => "the cryptographic library failed",
        })
    }
}

impl std::error::Error for DatagramError {}

/// The session that a datagram claims to belong to; `None` for anything else than a datagram.
pub fn session_of(bytes: &[u8]) -> Option<SessionId> {
    let ([kind], rest) = take::<1>(bytes)?;
    let (session, _) = take::<8>(rest)?;
    matches!(kind & !FORWARDED, TO_SERVER | TO_CLIENT)
        .then_some(SessionId(u64::from_be_bytes(session)))
}

/// One end of a session's exchange of datagrams.
pub struct Channel {
    session: SessionId,
    sends: (u8, Box<RecordKey>),
    receives: (u8, Box<RecordKey>),
    next: u64,
    window: ReplayWindow,
}

impl Channel {
    /// The client's end; `None` if the cryptographic library fails.
    pub fn client(keys: &SessionKeys) -> Option<Channel> {
        let [to_server, to_client] = keys.datagrams();
        Some(Channel::new(keys.id(), (TO_SERVER, to_server?), (TO_CLIENT, to_client?)))
    }

    /// The server's end.
    pub fn server(keys: &SessionKeys) -> Option<Channel> {
        let [to_server, to_client] = keys.datagrams();
        Some(Channel::new(keys.id(), (TO_CLIENT, to_client?), (TO_SERVER, to_server?)))
    }

    fn new(
        session: SessionId,
        sends: (u8, Box<RecordKey>),
        receives: (u8, Box<RecordKey>),
    ) -> Channel {
        Channel { session, sends, receives, next: 0, window: ReplayWindow::new() }
    }

    /// Seals a datagram under the next number.
    ///
    /// # Errors
    /// When it is too long, or its flow's addresses are of two families.
    pub fn seal(&mut self, datagram: &Datagram) -> Result<Vec<u8>, DatagramError> {
        let (kind, key) = &self.sends;
        let counter = self.next;
        let mut bytes = Vec::with_capacity(OVERHEAD_V6 + datagram.payload.len());
        bytes.push(kind | if datagram.forwarded { FORWARDED } else { 0 });
        bytes.extend_from_slice(&self.session.0.to_be_bytes());
        bytes.extend_from_slice(&counter.to_be_bytes());
        write(datagram, &mut bytes)?;
        if bytes.len() + TAG_LEN > DATAGRAM_MAX {
            return Err(DatagramError::BadLength);
        }
        let (header, plaintext) =
            bytes.split_at_mut_checked(HEADER_LEN).ok_or(DatagramError::BadLength)?;
        let tag = key.seal(counter, Aad::from(&*header), plaintext);
        let tag = tag.ok_or(DatagramError::Library)?;
        bytes.extend_from_slice(tag.as_ref());
        // 2^64 datagrams do not fit a session's life.
        self.next = self.next.saturating_add(1);
        Ok(bytes)
    }

    /// Opens a datagram in place.
    ///
    /// # Errors
    /// Everything that can be wrong with what anybody may have sent.
    pub fn open<'a>(&mut self, bytes: &'a mut [u8]) -> Result<Opened<'a>, DatagramError> {
        let (kind, key) = &self.receives;
        let (header, sealed) =
            bytes.split_first_chunk_mut::<HEADER_LEN>().ok_or(DatagramError::BadLength)?;
        let counter = header.last_chunk().copied().map(u64::from_be_bytes);
        let counter = counter.ok_or(DatagramError::BadLength)?;
        let forwarded = match header.first() {
            Some(first) if first & !FORWARDED == *kind => first != kind,
            _ => return Err(DatagramError::NotDatagram),
        };
        if session_of(header) != Some(self.session) {
            return Err(DatagramError::NotDatagram);
        }
        let plaintext =
            key.open(counter, Aad::from(&*header), sealed).ok_or(DatagramError::Forged)?;
        let datagram = Datagram { forwarded, ..read(plaintext)? };
        Ok(Opened { counter, fresh: self.window.accept(counter), datagram })
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Channel {{ session: {}, next: {}, MASKED }}", self.session, self.next)
    }
}

/// Reads anything as the contents of a datagram; what was understood is written as it was read.
#[cfg(any(test, fuzzing))]
pub fn read_anything(bytes: &[u8]) {
    let Ok(datagram) = read(bytes) else { return };
    let mut written = Vec::new();
    assert_eq!(write(&datagram, &mut written), Ok(()));
    assert_eq!(read(&written), Ok(datagram));
}

fn write(datagram: &Datagram, out: &mut Vec<u8>) -> Result<(), DatagramError> {
    let Datagram { flow, twice, payload, .. } = datagram;
    let ipv6 = flow.is_some_and(|flow| flow.target.is_ipv6());
    out.push(if ipv6 { IPV6 } else { 0 } | if *twice { TWICE } else { 0 });
    if let Some(Flow { host, target }) = flow {
        for address in [host, target] {
            match address.ip() {
                IpAddr::V4(ip) if !ipv6 => out.extend_from_slice(&ip.octets()),
                IpAddr::V6(ip) if ipv6 => out.extend_from_slice(&ip.octets()),
                _ => return Err(DatagramError::BadFlow),
            }
            out.extend_from_slice(&address.port().to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
    Ok(())
}

fn read(plaintext: &[u8]) -> Result<Datagram<'_>, DatagramError> {
    let (flags, rest) = plaintext.split_first().ok_or(DatagramError::BadLength)?;
    let twice = flags & TWICE != 0;
    if rest.is_empty() {
        return Ok(Datagram { flow: None, forwarded: false, twice, payload: rest });
    }
    let ipv6 = flags & IPV6 != 0;
    let (host, rest) = read_address(ipv6, rest).ok_or(DatagramError::BadLength)?;
    let (target, payload) = read_address(ipv6, rest).ok_or(DatagramError::BadLength)?;
    let flow = Flow { host, target };
    // IPv4 has one way to be written.
    let canonical = target.ip().to_canonical() == target.ip();
    match canonical && is_possible(target) {
        true => Ok(Datagram { flow: Some(flow), forwarded: false, twice, payload }),
        false => Err(DatagramError::BadFlow),
    }
}

fn read_address(ipv6: bool, bytes: &[u8]) -> Option<(SocketAddr, &[u8])> {
    let (ip, rest) = if ipv6 {
        let (ip, rest) = take::<16>(bytes)?;
        (IpAddr::V6(Ipv6Addr::from(ip)), rest)
    } else {
        let (ip, rest) = take::<4>(bytes)?;
        (IpAddr::V4(Ipv4Addr::from(ip)), rest)
    };
    let (port, rest) = take::<2>(rest)?;
    Some((SocketAddr::new(ip, u16::from_be_bytes(port)), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tunnel::session::StreamSecret;
    use crate::tunnel::testing::{Xorshift, bit_flips, mutations};

    fn keys(secret: u8) -> SessionKeys {
        SessionKeys::new(SessionId(77), &StreamSecret::from_bytes([secret; 32]))
    }

    fn ends() -> (Channel, Channel) {
        (Channel::client(&keys(1)).unwrap(), Channel::server(&keys(1)).unwrap())
    }

    fn flow(host: &str, target: &str) -> Option<Flow> {
        Some(Flow { host: host.parse().unwrap(), target: target.parse().unwrap() })
    }

    fn call() -> Datagram<'static> {
        let flow = flow("192.168.1.2:5062", "192.0.2.7:5060");
        Datagram { flow, forwarded: false, twice: true, payload: b"hello" }
    }

    #[test]
    fn what_it_adds() {
        let (mut client, _) = ends();
        let v6 = flow("[fd00::2]:5062", "[2001:db8::7]:5060");
        for (datagram, overhead) in
            [(call(), OVERHEAD_V4), (Datagram { flow: v6, ..call() }, OVERHEAD_V6)]
        {
            assert_eq!(client.seal(&datagram).unwrap().len(), overhead + datagram.payload.len());
        }
        assert_eq!((OVERHEAD_V4, OVERHEAD_V6), (46, 70));
    }

    #[test]
    fn a_copy_is_told_from_the_first() {
        let (mut client, mut server) = ends();
        let first = client.seal(&call()).unwrap();
        let second = client.seal(&call()).unwrap();
        assert_eq!(session_of(&first), Some(SessionId(77)));
        let mut numbers = Vec::new();
        for bytes in [&second, &first, &second, &first] {
            let mut bytes = bytes.clone();
            let opened = server.open(&mut bytes).unwrap();
            assert_eq!(opened.datagram, call());
            numbers.push((opened.counter, opened.fresh));
        }
        assert_eq!(numbers, [(1, true), (0, true), (1, false), (0, false)]);
    }

    #[test]
    fn each_direction_and_session_has_keys_of_its_own() {
        let (mut client, mut server) = ends();
        let mut to_server = client.seal(&call()).unwrap();
        assert_eq!(client.open(&mut to_server.clone()), Err(DatagramError::NotDatagram));
        let mut reflected = to_server.clone();
        reflected[0] = TO_CLIENT;
        assert_eq!(client.open(&mut reflected), Err(DatagramError::Forged));
        let mut other = Channel::server(&keys(2)).unwrap();
        assert_eq!(other.open(&mut to_server.clone()), Err(DatagramError::Forged));
        assert!(server.open(&mut to_server).is_ok());
        let mut to_client = server.seal(&call()).unwrap();
        assert_eq!(client.open(&mut to_client).unwrap().datagram, call());
    }

    #[test]
    fn a_forwarded_ports_flow_is_told_from_others() {
        let (mut client, mut server) = ends();
        let forwarded = Datagram { forwarded: true, ..call() };
        for (first, datagram) in [(b'D', call()), (b'F', forwarded)] {
            let mut bytes = client.seal(&datagram).unwrap();
            assert_eq!((bytes[0], session_of(&bytes)), (first, Some(SessionId(77))));
            let mut other = bytes.clone();
            other[0] ^= FORWARDED;
            assert_eq!(server.open(&mut other), Err(DatagramError::Forged));
            assert_eq!(server.open(&mut bytes).unwrap().datagram, datagram);
        }
        assert_eq!(server.seal(&forwarded).unwrap()[0], b'f');
    }

    #[test]
    fn targets_that_are_nobody_are_refused() {
        let (mut client, mut server) = ends();
        for target in [
            "0.0.0.0:53",
            "255.255.255.255:53",
            "224.0.0.251:5353",
            "192.0.2.7:0",
            "[::]:53",
            "[ff02::fb]:5353",
            "[::ffff:127.0.0.1]:53",
        ] {
            let host = if target.starts_with('[') { "[fd00::2]:1" } else { "192.168.1.2:1" };
            let datagram = Datagram { flow: flow(host, target), ..call() };
            let mut bytes = client.seal(&datagram).unwrap();
            assert_eq!(server.open(&mut bytes), Err(DatagramError::BadFlow), "{target}");
        }
        let mixed = Datagram { flow: flow("192.168.1.2:1", "[2001:db8::7]:53"), ..call() };
        assert_eq!(client.seal(&mixed), Err(DatagramError::BadFlow));
    }

    #[test]
    fn the_largest_fits_and_no_larger_one() {
        let (mut client, mut server) = ends();
        let payload = vec![7; DATAGRAM_MAX - OVERHEAD_V4];
        let largest = Datagram { payload: &payload, ..call() };
        let mut bytes = client.seal(&largest).unwrap();
        assert_eq!(bytes.len(), DATAGRAM_MAX);
        assert_eq!(server.open(&mut bytes).unwrap().datagram, largest);
        let payload = vec![7; payload.len() + 1];
        let larger = Datagram { payload: &payload, ..call() };
        assert_eq!(client.seal(&larger), Err(DatagramError::BadLength));
    }

    #[test]
    fn no_flipped_bit_passes() {
        let (mut client, mut server) = ends();
        let valid = client.seal(&call()).unwrap();
        bit_flips(&valid, |bit, bytes| assert!(server.open(bytes).is_err(), "bit {bit}"));
        assert!(server.open(&mut valid.clone()).unwrap().fresh, "forgeries use up no number");
    }

    #[test]
    fn mutated_datagrams_do_not_panic() {
        let mut random = Xorshift::new(8);
        let (mut client, mut server) = ends();
        let valid = client.seal(&call()).unwrap();
        mutations(&mut random, &valid, 100_000, |bytes| {
            let genuine = *bytes == valid;
            assert_eq!(server.open(bytes).is_ok(), genuine);
        });
        let mut plaintext = Vec::new();
        write(&call(), &mut plaintext).unwrap();
        mutations(&mut random, &plaintext, 100_000, |bytes| read_anything(bytes));
    }

    fn flows() -> impl Strategy<Value = Option<Flow>> {
        let v4 = any::<([u8; 4], u16, u16)>().prop_map(|(host, from, to)| Flow {
            host: (host, from).into(),
            target: ([192, 0, 2, 7], to.max(1)).into(),
        });
        let v6 = any::<([u8; 16], u16, u16)>().prop_map(|(host, from, to)| Flow {
            host: (host, from).into(),
            target: (Ipv6Addr::LOCALHOST, to.max(1)).into(),
        });
        prop_oneof![v4.prop_map(Some), v6.prop_map(Some)]
    }

    proptest! {
        #[test]
        fn there_and_back(flow in flows(), forwarded: bool, twice: bool, payload: Vec<u8>) {
            let (mut client, mut server) = ends();
            let datagram = Datagram { flow, forwarded, twice, payload: &payload };
            let mut bytes = client.seal(&datagram).unwrap();
            prop_assert_eq!(server.open(&mut bytes).unwrap().datagram, datagram);
            let sign = Datagram { flow: None, forwarded, twice, payload: &[] };
            let mut bytes = client.seal(&sign).unwrap();
            prop_assert_eq!(server.open(&mut bytes).unwrap().datagram, sign);
        }
    }
}
