//! The hellos inside the two handshake messages: TLVs in a payload of fixed size.
//!
//! The size is fixed so that nobody can tell from outside whether a token, a refusal or a long
//! version string is inside.

use std::fmt;

use crate::config::keys::Token;

use super::{CipherOffer, CipherSet, take};

/// Bytes of a handshake payload, zero padding included.
pub const PAYLOAD_LEN: usize = 256;
/// Bytes a software name and version may have; longer ones are cut.
pub const SOFTWARE_MAX: usize = 64;

const TLV_END: u8 = 0;
const TLV_VERSIONS: u8 = 1;
const TLV_SOFTWARE: u8 = 2;
const TLV_CIPHERS: u8 = 3;
const TLV_TOKEN: u8 = 4;
const TLV_REFUSAL: u8 = 5;

const PREFERS_AES: u8 = 1;

/// The protocol versions an end speaks, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The oldest.
    pub min: u8,
    /// The newest.
    pub max: u8,
}

impl Versions {
    /// Those of this program.
    pub const OURS: Versions = Versions { min: super::VERSION_MIN, max: super::VERSION_MAX };

    /// Whether a version is among them.
    pub fn contains(self, version: u8) -> bool {
        (self.min..=self.max).contains(&version)
    }

    /// The newest version both ends speak.
    pub fn common(self, other: Versions) -> Option<u8> {
        let version = self.max.min(other.max);
        (self.contains(version) && other.contains(version)).then_some(version)
    }
}

/// What the client says in handshake message 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// Protocol versions it speaks.
    pub versions: Versions,
    /// Name and version of the program, printable ASCII.
    pub software: String,
    /// Ciphers it accepts for its streams.
    pub ciphers: CipherOffer,
    /// Present when the router wants to enrol.
    pub token: Option<Token>,
}

/// What the server says in handshake message 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerHello {
    /// Protocol versions it speaks.
    pub versions: Versions,
    /// Name and version of the program, printable ASCII.
    pub software: String,
}

/// Why a server turns a client away, or ends its control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// The client's public key is not among the server's clients.
    UnknownKey = 1,
    /// The token is wrong, used or expired.
    BadToken = 2,
    /// No cipher in common.
    NoCommonCipher = 3,
    /// Both ends speak a newer version than the one used: somebody forged the answer that made
    /// the client fall back.
    Downgrade = 4,
    /// The server carries as many streams as it may, and none of this client's.
    Busy = 5,
    /// The server stops; another try later makes sense.
    ShuttingDown = 6,
    /// The client was revoked while connected.
    Revoked = 7,
    /// A newer control connection with the same key took over.
    Replaced = 8,
    /// The peer broke the protocol.
    ProtocolError = 9,
    /// A reason this version does not know.
    Other = 255,
}

impl Refusal {
    const KNOWN: [Refusal; 9] = [
        Refusal::UnknownKey,
        Refusal::BadToken,
        Refusal::NoCommonCipher,
        Refusal::Downgrade,
        Refusal::Busy,
        Refusal::ShuttingDown,
        Refusal::Revoked,
        Refusal::Replaced,
        Refusal::ProtocolError,
    ];

    /// The reason with a number on the wire.
    pub fn from_wire(number: u8) -> Refusal {
        Refusal::KNOWN
            .into_iter()
            .find(|reason| reason.to_wire() == number)
            .unwrap_or(Refusal::Other)
    }

    /// The number on the wire.
    pub fn to_wire(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::UnknownKey => {
                "the server does not know this router's key: pair again, or add the key there"
            }
            Refusal::BadToken => {
                "the invitation is wrong, used or expired: make a new one on the server"
            }
            Refusal::NoCommonCipher => {
                "no cipher in common with the server: change `option cipher`"
            }
            Refusal::Downgrade => "somebody on the path tried to force an older protocol version",
            Refusal::Busy => {
                "the server is full: raise its `limits.streams`, or find out who uses it"
            }
            Refusal::ShuttingDown => {
                "the server has stopped: if it does not come back, start it there"
            }
            Refusal::Revoked => "the server revoked this router's key",
            Refusal::Replaced => "another connection with this router's key took over",
            Refusal::ProtocolError => "this router broke the protocol",
            Refusal::Other => {
                "the server gave a reason this version does not know: see its log, or update"
            }
        })
    }
}

/// Why a hello cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelloError {
    /// A TLV reaches past the end.
    Truncated,
    /// A TLV's value has the wrong length.
    BadLength(u8),
    /// A TLV that must be there is not.
    Missing(u8),
    /// The range of versions is empty.
    BadVersions,
}

impl fmt::Display for HelloError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HelloError::Truncated => f.write_str("a TLV of the hello is cut off"),
            HelloError::BadLength(kind) => {
                write!(f, "TLV {kind} of the hello has a wrong length")
            }
            HelloError::Missing(kind) => write!(f, "the hello lacks TLV {kind}"),
            HelloError::BadVersions => {
                f.write_str("the hello has an empty range of protocol versions")
            }
        }
    }
}

impl std::error::Error for HelloError {}

/// A zero-padded payload that is being filled.
struct Writer {
    payload: [u8; PAYLOAD_LEN],
    used: usize,
}

impl Writer {
    fn new() -> Writer {
        Writer { payload: [0; PAYLOAD_LEN], used: 0 }
    }

    /// Appends a TLV; all of this module's together fit by construction.
    fn put(&mut self, kind: u8, value: &[u8]) {
        let Ok(length) = u16::try_from(value.len()) else { return };
        let bytes = [&[kind], length.to_be_bytes().as_slice(), value].concat();
        if let Some(room) = self.payload.get_mut(self.used..self.used + bytes.len()) {
            room.copy_from_slice(&bytes);
            self.used += bytes.len();
        }
    }

    fn versions_and_software(&mut self, versions: Versions, software: &str) {
        self.put(TLV_VERSIONS, &[versions.min, versions.max]);
        self.put(TLV_SOFTWARE, printable(software.as_bytes()).as_bytes());
    }
}

/// Printable ASCII of at most [`SOFTWARE_MAX`] bytes: it ends up in logs and status pages.
fn printable(bytes: &[u8]) -> String {
    let clean = |byte: &u8| if (b' '..=b'~').contains(byte) { char::from(*byte) } else { '?' };
    bytes.iter().take(SOFTWARE_MAX).map(clean).collect()
}

/// The TLVs of a hello of either end.
#[derive(Default)]
struct Fields {
    versions: Option<Versions>,
    software: String,
    ciphers: Option<CipherOffer>,
    token: Option<Token>,
    refusal: Option<Refusal>,
}

impl Fields {
    fn decode(mut rest: &[u8]) -> Result<Fields, HelloError> {
        let mut fields = Fields::default();
        while let Some(([kind], after)) = take::<1>(rest) {
            if kind == TLV_END {
                break;
            }
            let (length, after) = take::<2>(after).ok_or(HelloError::Truncated)?;
            let length = usize::from(u16::from_be_bytes(length));
            let (value, after) = after.split_at_checked(length).ok_or(HelloError::Truncated)?;
            rest = after;
            match kind {
                TLV_VERSIONS => {
                    let [min, max] =
                        value.try_into().map_err(|_| HelloError::BadLength(TLV_VERSIONS))?;
                    if min == 0 || min > max {
                        return Err(HelloError::BadVersions);
                    }
                    fields.versions = Some(Versions { min, max });
                }
                TLV_SOFTWARE => fields.software = printable(value),
                TLV_CIPHERS => {
                    let [ciphers, flags] =
                        value.try_into().map_err(|_| HelloError::BadLength(TLV_CIPHERS))?;
                    fields.ciphers = Some(CipherOffer {
                        ciphers: CipherSet::from_wire(ciphers),
                        prefers_aes: flags & PREFERS_AES != 0,
                    });
                }
                TLV_TOKEN => {
                    let token = value.try_into().map_err(|_| HelloError::BadLength(TLV_TOKEN))?;
                    fields.token = Some(Token::from_bytes(token));
                }
                TLV_REFUSAL => {
                    let [number] =
                        value.try_into().map_err(|_| HelloError::BadLength(TLV_REFUSAL))?;
                    fields.refusal = Some(Refusal::from_wire(number));
                }
                _ => {}
            }
        }
        Ok(fields)
    }
}

impl ClientHello {
    /// The payload of handshake message 1.
    pub fn encode(&self) -> [u8; PAYLOAD_LEN] {
        let mut writer = Writer::new();
        writer.versions_and_software(self.versions, &self.software);
        let flags = if self.ciphers.prefers_aes { PREFERS_AES } else { 0 };
        writer.put(TLV_CIPHERS, &[self.ciphers.ciphers.to_wire(), flags]);
        if let Some(token) = &self.token {
            writer.put(TLV_TOKEN, token.as_bytes());
        }
        writer.payload
    }

    /// Reads the payload of handshake message 1. Unknown TLVs are passed over.
    pub fn decode(payload: &[u8]) -> Result<ClientHello, HelloError> {
        let fields = Fields::decode(payload)?;
        Ok(ClientHello {
            versions: fields.versions.ok_or(HelloError::Missing(TLV_VERSIONS))?,
            software: fields.software,
            ciphers: fields.ciphers.ok_or(HelloError::Missing(TLV_CIPHERS))?,
            token: fields.token,
        })
    }
}

impl ServerHello {
    /// This program's hello.
    pub fn ours(software: &str) -> ServerHello {
        ServerHello { versions: Versions::OURS, software: software.to_owned() }
    }

    /// The payload of handshake message 2, with the refusal if there is one.
    pub fn encode(&self, refusal: Option<Refusal>) -> [u8; PAYLOAD_LEN] {
        let mut writer = Writer::new();
        writer.versions_and_software(self.versions, &self.software);
        if let Some(refusal) = refusal {
            writer.put(TLV_REFUSAL, &[refusal.to_wire()]);
        }
        writer.payload
    }

    /// Reads the payload of handshake message 2. Unknown TLVs are passed over.
    pub fn decode(payload: &[u8]) -> Result<(ServerHello, Option<Refusal>), HelloError> {
        let fields = Fields::decode(payload)?;
        let versions = fields.versions.ok_or(HelloError::Missing(TLV_VERSIONS))?;
        Ok((ServerHello { versions, software: fields.software }, fields.refusal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::testing::{Xorshift, mutations};

    fn client_hello() -> ClientHello {
        ClientHello {
            versions: Versions { min: 1, max: 3 },
            software: "x".repeat(SOFTWARE_MAX),
            ciphers: CipherOffer { ciphers: CipherSet::all(), prefers_aes: true },
            token: Some(Token::from_bytes([7; 32])),
        }
    }

    #[test]
    fn the_largest_hello_fits() {
        let hello = client_hello();
        assert_eq!(ClientHello::decode(&hello.encode()), Ok(hello));
        let hello = ServerHello::ours(&"y".repeat(1000));
        let (back, refusal) = ServerHello::decode(&hello.encode(Some(Refusal::Busy))).unwrap();
        assert_eq!(back.software, "y".repeat(SOFTWARE_MAX));
        assert_eq!(refusal, Some(Refusal::Busy));
    }

    #[test]
    fn unknown_tlvs_are_passed_over_and_required_ones_missed() {
        let mut newer = vec![200, 0, 3, 1, 2, 3];
        newer.extend_from_slice(&client_hello().encode());
        assert_eq!(ClientHello::decode(&newer), Ok(client_hello()));
        assert_eq!(ClientHello::decode(&[]), Err(HelloError::Missing(TLV_VERSIONS)));
        assert_eq!(ClientHello::decode(&[1, 0, 2, 1]), Err(HelloError::Truncated));
        assert_eq!(ClientHello::decode(&[1, 0, 1, 1]), Err(HelloError::BadLength(1)));
        assert_eq!(ClientHello::decode(&[1, 0, 2, 2, 1]), Err(HelloError::BadVersions));
    }

    #[test]
    fn hostile_software_names_are_made_harmless() {
        let hello = [1, 0, 2, 1, 1, 2, 0, 4, b'a', 0x1b, b'<', 0xff, 3, 0, 2, 255, 0];
        let hello = ClientHello::decode(&hello).unwrap();
        assert_eq!(hello.software, "a?<?");
        assert_eq!(hello.ciphers.ciphers, CipherSet::all());
    }

    #[test]
    fn versions_have_a_newest_in_common() {
        let range = |min, max| Versions { min, max };
        assert_eq!(range(1, 3).common(range(2, 5)), Some(3));
        assert_eq!(range(4, 5).common(range(4, 4)), Some(4));
        assert_eq!(range(1, 2).common(range(3, 4)), None);
    }

    #[test]
    fn refusals_keep_their_numbers() {
        for number in 0..=255 {
            let reason = Refusal::from_wire(number);
            assert!(reason.to_wire() == number || reason == Refusal::Other);
        }
    }

    #[test]
    fn tokens_are_masked() {
        assert!(format!("{:?}", client_hello()).contains("MASKED"));
        assert!(!format!("{:?}", client_hello()).contains("7, 7"));
    }

    #[test]
    fn mutated_hellos_do_not_panic() {
        let mut random = Xorshift::new(1);
        mutations(&mut random, &client_hello().encode(), 100_000, |bytes| {
            if let Ok(hello) = ClientHello::decode(bytes) {
                assert_eq!(ClientHello::decode(&hello.encode()), Ok(hello));
            }
            let _ = ServerHello::decode(bytes);
        });
    }
}
