//! The tunnel's wire format and its state, without I/O: `docs/protocol.md` describes it.
//!
//! A control connection ([`handshake`], [`control`]) authenticates a router and gives it a
//! [`session`]; each LAN connection is then one [`stream`] of [`record`]s that opens with a
//! [`convert`] request; over UDP, [`probe`]s measure the uplinks and [`datagram`]s carry UDP of the LAN.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::config::agent::CipherChoice;

pub mod control;
pub mod convert;
pub mod datagram;
pub mod forward;
pub mod handshake;
pub mod hello;
pub mod known;
pub mod probe;
pub mod record;
pub mod replay;
pub mod session;
pub mod stream;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod vectors;

/// The newest protocol version this program speaks.
pub const VERSION_MAX: u8 = 1;
/// The oldest protocol version this program speaks: one less than the newest, once there is one.
pub const VERSION_MIN: u8 = 1;

/// Fills a buffer with unpredictable bytes.
pub type Rng<'a> = &'a mut dyn FnMut(&mut [u8]);

/// What a TCP connection to the server's port is for, told by its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionKind {
    /// A bare RFC 8803 client: the byte is the version of the Convert fixed header.
    Convert,
    /// A control connection.
    Control,
    /// A stream.
    Stream,
}

impl ConnectionKind {
    /// The kind a first byte tells, `None` for a byte that starts nothing known.
    pub fn from_first_byte(byte: u8) -> Option<ConnectionKind> {
        match byte {
            convert::VERSION => Some(ConnectionKind::Convert),
            handshake::FIRST_BYTE => Some(ConnectionKind::Control),
            stream::FIRST_BYTE => Some(ConnectionKind::Stream),
            _ => None,
        }
    }
}

/// How a stream's payload is protected. The numbers are those on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Cipher {
    /// Not at all: only the preamble, the request and its answer are authenticated.
    None = 0,
    /// AES-128-GCM.
    Aes128Gcm = 1,
    /// ChaCha20-Poly1305.
    ChaCha20Poly1305 = 2,
}

impl Cipher {
    /// Every cipher.
    pub const ALL: [Cipher; 3] = [Cipher::None, Cipher::Aes128Gcm, Cipher::ChaCha20Poly1305];

    /// The cipher with a number on the wire.
    pub fn from_wire(number: u8) -> Option<Cipher> {
        Cipher::ALL.into_iter().find(|cipher| cipher.to_wire() == number)
    }

    /// The number on the wire.
    pub fn to_wire(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cipher::None => "none",
            Cipher::Aes128Gcm => "aes-128-gcm",
            Cipher::ChaCha20Poly1305 => "chacha20-poly1305",
        })
    }
}

/// A set of ciphers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CipherSet(u8);

impl CipherSet {
    /// Every cipher this program knows.
    pub fn all() -> CipherSet {
        Cipher::ALL.into_iter().collect()
    }

    /// What `option cipher` lets a router offer: `auto` means any that encrypts, never `none`.
    pub fn offered(choice: CipherChoice) -> CipherSet {
        match choice {
            CipherChoice::Auto => [Cipher::Aes128Gcm, Cipher::ChaCha20Poly1305].as_slice(),
            CipherChoice::Aes128Gcm => &[Cipher::Aes128Gcm],
            CipherChoice::ChaCha20Poly1305 => &[Cipher::ChaCha20Poly1305],
            CipherChoice::None => &[Cipher::None],
        }
        .iter()
        .copied()
        .collect()
    }

    /// Whether a cipher is in the set.
    pub fn contains(self, cipher: Cipher) -> bool {
        self.0 & CipherSet::bit(cipher) != 0
    }

    fn bit(cipher: Cipher) -> u8 {
        1 << cipher.to_wire()
    }

    /// The set as it travels: bit n stands for cipher n.
    pub(crate) fn to_wire(self) -> u8 {
        self.0
    }

    /// The known ciphers of a set that came over the wire; others are left out.
    pub(crate) fn from_wire(bits: u8) -> CipherSet {
        CipherSet(bits & CipherSet::all().0)
    }
}

impl FromIterator<Cipher> for CipherSet {
    fn from_iter<I: IntoIterator<Item = Cipher>>(ciphers: I) -> CipherSet {
        CipherSet(ciphers.into_iter().fold(0, |bits, cipher| bits | CipherSet::bit(cipher)))
    }
}

/// What one end says about ciphers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CipherOffer {
    /// Those it accepts.
    pub ciphers: CipherSet,
    /// AES is faster than ChaCha20 there: the processor has instructions for it.
    pub prefers_aes: bool,
}

/// The cipher of a session, `None` when the two ends have none in common.
///
/// AES-128-GCM where both ends prefer it, otherwise ChaCha20-Poly1305, otherwise AES-128-GCM, and
/// plaintext only where nothing else is in common, which takes a client that asked for just that.
pub fn negotiate(client: CipherOffer, server: CipherOffer) -> Option<Cipher> {
    let order = if client.prefers_aes && server.prefers_aes {
        [Cipher::Aes128Gcm, Cipher::ChaCha20Poly1305, Cipher::None]
    } else {
        [Cipher::ChaCha20Poly1305, Cipher::Aes128Gcm, Cipher::None]
    };
    order
        .into_iter()
        .find(|cipher| client.ciphers.contains(*cipher) && server.ciphers.contains(*cipher))
}

/// Splits an array off the front of a slice that may be too short.
fn take<const N: usize>(bytes: &[u8]) -> Option<([u8; N], &[u8])> {
    bytes.split_first_chunk::<N>().map(|(head, rest)| (*head, rest))
}

/// An address as IPv6 writes it.
fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// Splits an address so written, and the port after it, off the front; IPv4 as such.
fn take_address(bytes: &[u8]) -> Option<(SocketAddr, &[u8])> {
    let (address, rest) = take::<16>(bytes)?;
    let (port, rest) = take::<2>(rest)?;
    let address = IpAddr::from(address).to_canonical();
    Some((SocketAddr::new(address, u16::from_be_bytes(port)), rest))
}

/// Whether there can be a single host at a target.
fn is_possible(target: SocketAddr) -> bool {
    let ip = target.ip();
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !(ip.is_unspecified() || ip.is_multicast() || broadcast || target.port() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(ciphers: &[Cipher], prefers_aes: bool) -> CipherOffer {
        CipherOffer { ciphers: ciphers.iter().copied().collect(), prefers_aes }
    }

    #[test]
    fn ciphers_are_negotiated() {
        let auto = CipherSet::offered(CipherChoice::Auto);
        let all = CipherSet::all();
        let pick = |client_aes, server_aes| {
            negotiate(
                CipherOffer { ciphers: auto, prefers_aes: client_aes },
                CipherOffer { ciphers: all, prefers_aes: server_aes },
            )
        };
        assert_eq!(pick(true, true), Some(Cipher::Aes128Gcm));
        assert_eq!(pick(false, true), Some(Cipher::ChaCha20Poly1305));
        assert_eq!(pick(true, false), Some(Cipher::ChaCha20Poly1305));

        for (choice, cipher) in [
            (CipherChoice::Aes128Gcm, Cipher::Aes128Gcm),
            (CipherChoice::ChaCha20Poly1305, Cipher::ChaCha20Poly1305),
            (CipherChoice::None, Cipher::None),
        ] {
            let client = CipherOffer { ciphers: CipherSet::offered(choice), prefers_aes: false };
            assert_eq!(
                negotiate(client, CipherOffer { ciphers: all, prefers_aes: true }),
                Some(cipher)
            );
        }
        let plain_only = offer(&[Cipher::None], false);
        assert_eq!(negotiate(CipherOffer { ciphers: auto, prefers_aes: true }, plain_only), None);
        let all = CipherOffer { ciphers: all, prefers_aes: false };
        assert_ne!(negotiate(all, all), Some(Cipher::None));
    }

    #[test]
    fn first_bytes_tell_the_kind() {
        assert_eq!(ConnectionKind::from_first_byte(0x01), Some(ConnectionKind::Convert));
        assert_eq!(ConnectionKind::from_first_byte(b'C'), Some(ConnectionKind::Control));
        assert_eq!(ConnectionKind::from_first_byte(b'S'), Some(ConnectionKind::Stream));
        // TLS, HTTP and SSH clients that stray here.
        for byte in [0x16, b'G', b'P', 0] {
            assert_eq!(ConnectionKind::from_first_byte(byte), None);
        }
    }

    /// Every step of section 1 of `docs/protocol.md`, both ends in one place.
    #[test]
    fn a_router_reaches_a_target() {
        use std::time::Instant;

        use control::{ClientMessage, SESSION_LIFETIME, ServerMessage};
        use convert::Message;
        use handshake::{
            ClientHandshake, ClientHello, MESSAGE_HEADER_LEN, ServerHandshake, ServerHello,
            Versions,
        };
        use record::{Kind, Opened};
        use session::{ClientSession, ServerSession, SessionId, StreamSecret};
        use stream::UnverifiedPreamble;

        let mut random = testing::Xorshift::new(99);
        let mut rng = |bytes: &mut [u8]| random.fill(bytes);
        let (router_key, server_key) = ([0x11; 32], [0x22; 32]);

        let hello = ClientHello {
            versions: Versions::OURS,
            software: "router".to_owned(),
            ciphers: CipherOffer {
                ciphers: CipherSet::offered(CipherChoice::Auto),
                prefers_aes: false,
            },
            token: None,
        };
        let server_public = testing::public_key(&server_key);
        let (router, request) =
            ClientHandshake::start(&router_key, &server_public, &hello, &mut rng).unwrap();
        let (server, client, hello) =
            ServerHandshake::accept(&server_key, &request, &mut rng).unwrap();
        assert_eq!(client, testing::public_key(&router_key));
        let ours = CipherOffer { ciphers: CipherSet::all(), prefers_aes: true };
        let cipher = negotiate(hello.ciphers, ours).unwrap();
        let (answer, mut server) = server.reply(&ServerHello::ours("server")).unwrap();
        let (mut router, _) = router.finish(&answer).unwrap();

        let ready = router.seal(&ClientMessage::Ready.encode()).unwrap();
        let ready = server.open(&ready[MESSAGE_HEADER_LEN..]).unwrap();
        assert_eq!(ClientMessage::decode(&ready), Ok(Some(ClientMessage::Ready)));
        let (id, secret) = (SessionId(5), StreamSecret::generate(&mut rng));
        let mut server_session = ServerSession::new(id, &secret, cipher);
        let lifetime = SESSION_LIFETIME;
        let message = ServerMessage::Session { id, secret, cipher, lifetime, datagrams: true };
        let message = server.seal(&message.encode()).unwrap();
        let message = router.open(&message[MESSAGE_HEADER_LEN..]).unwrap();
        let Ok(Some(ServerMessage::Session { id, secret, cipher, .. })) =
            ServerMessage::decode(&message)
        else {
            panic!("no session");
        };
        let mut router_session = ClientSession::new(id, &secret, cipher);

        let (preamble, keys) = router_session.open_stream();
        let (mut router_seals, mut router_opens) = keys.client();
        let preamble = UnverifiedPreamble::parse(&preamble).unwrap();
        assert_eq!(preamble.session(), id);
        let (_, keys) = server_session.accept(&preamble, Instant::now()).unwrap();
        let (mut server_seals, mut server_opens) = keys.server();

        let target = "192.0.2.1:80".parse().unwrap();
        let request = Message::connect(target).encode().unwrap();
        let mut wire = router_seals.seal_new(Kind::Request, &request).unwrap();
        wire.extend(router_seals.seal_new(Kind::Data, b"GET /").unwrap());
        let Ok(Opened::Record { kind: Kind::Request, payload, consumed }) =
            server_opens.next(&mut wire)
        else {
            panic!("no request");
        };
        assert_eq!(Message::decode(&wire[payload]).unwrap().target().unwrap().0, target);
        let early = &mut wire[consumed..];
        let Ok(Opened::Record { kind: Kind::Data, payload, .. }) = server_opens.next(early) else {
            panic!("no early data");
        };
        assert_eq!(&early[payload], b"GET /");

        let answer = Message::connected().encode().unwrap();
        let mut answer = server_seals.seal_new(Kind::Answer, &answer).unwrap();
        let Ok(Opened::Record { kind: Kind::Answer, payload, .. }) = router_opens.next(&mut answer)
        else {
            panic!("no answer");
        };
        assert_eq!(Message::decode(&answer[payload]).unwrap().outcome(), Ok(()));
    }
}
