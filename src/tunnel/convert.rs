//! The messages of RFC 8803, the 0-RTT TCP Convert Protocol: a fixed header and TLVs.
//!
//! They carry connect requests and answers inside a stream, and stand alone with bare Convert
//! clients.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::{is_possible, mapped, take};

/// The version of the fixed header, and so the first byte of a message.
pub const VERSION: u8 = 1;
/// The magic number of the fixed header.
pub const MAGIC: u16 = 0x2263;
/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 4;
/// Bytes a message may have: its length is a byte that counts words of 4 bytes.
pub const MESSAGE_MAX: usize = 255 * WORD;

const WORD: usize = 4;
const TLV_INFO: u8 = 1;
const TLV_CONNECT: u8 = 10;
const TLV_EXTENDED_TCP_HEADER: u8 = 20;
const TLV_SUPPORTED_TCP_EXTENSIONS: u8 = 21;
const TLV_COOKIE: u8 = 22;
const TLV_ERROR: u8 = 30;
/// Ours: none of RFC 8803.
const TLV_ACCEPT: u8 = 128;

/// ICMP codes of "destination unreachable" (RFC 792, RFC 1812), as the value of error 97.
const ICMP_NETWORK: u8 = 0;
const ICMP_HOST: u8 = 1;
const ICMP_PROHIBITED: u8 = 13;

/// An error code (RFC 8803, section 4.2.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// The version of the fixed header is not supported.
    UnsupportedVersion,
    /// The message cannot be parsed, or holds a target that cannot be.
    MalformedMessage,
    /// A TLV is not supported.
    UnsupportedMessage,
    /// A cookie is needed.
    MissingCookie,
    /// Policy forbids it.
    NotAuthorized,
    /// A TCP option in the Connect TLV is not supported.
    UnsupportedTcpOption,
    /// The server is at its limits.
    ResourceExceeded,
    /// The network failed, or the target did not answer.
    NetworkFailure,
    /// The target refused or reset the connection.
    ConnectionReset,
    /// ICMP says the target cannot be reached.
    DestinationUnreachable,
    /// A code that RFC 8803 does not assign.
    Other(u8),
}

impl ErrorCode {
    const ASSIGNED: [(u8, ErrorCode); 10] = [
        (0, ErrorCode::UnsupportedVersion),
        (1, ErrorCode::MalformedMessage),
        (2, ErrorCode::UnsupportedMessage),
        (3, ErrorCode::MissingCookie),
        (32, ErrorCode::NotAuthorized),
        (33, ErrorCode::UnsupportedTcpOption),
        (64, ErrorCode::ResourceExceeded),
        (65, ErrorCode::NetworkFailure),
        (96, ErrorCode::ConnectionReset),
        (97, ErrorCode::DestinationUnreachable),
    ];

    /// The code with a number on the wire.
    pub fn from_wire(number: u8) -> ErrorCode {
        ErrorCode::ASSIGNED
            .into_iter()
            .find(|(assigned, _)| *assigned == number)
            .map_or(ErrorCode::Other(number), |(_, code)| code)
    }

    /// The number on the wire.
    pub fn to_wire(self) -> u8 {
        match self {
            ErrorCode::Other(number) => number,
            code => ErrorCode::ASSIGNED
                .into_iter()
                .find(|(_, assigned)| *assigned == code)
                .map_or(0, |(number, _)| number),
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ErrorCode::UnsupportedVersion => "the version of Convert is not supported",
            ErrorCode::MalformedMessage => "malformed Convert message",
            ErrorCode::UnsupportedMessage => "unsupported Convert message",
            ErrorCode::MissingCookie => "a cookie is needed",
            ErrorCode::NotAuthorized => "the server's policy forbids this target",
            ErrorCode::UnsupportedTcpOption => "unsupported TCP option",
            ErrorCode::ResourceExceeded => "the server is at its limits",
            ErrorCode::NetworkFailure => "the target did not answer",
            ErrorCode::ConnectionReset => "the target refused the connection",
            ErrorCode::DestinationUnreachable => "the target is unreachable",
            ErrorCode::Other(number) => return write!(f, "Convert error {number}"),
        })
    }
}

/// Why a connect request failed: the error code and the first byte of its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The code.
    pub code: ErrorCode,
    /// For [`ErrorCode::DestinationUnreachable`] the ICMP code, otherwise 0.
    pub detail: u8,
}

impl Failure {
    /// Policy forbids the target.
    pub const NOT_AUTHORIZED: Failure = Failure { code: ErrorCode::NotAuthorized, detail: 0 };
    /// The server is at its limits.
    pub const RESOURCE_EXCEEDED: Failure = Failure { code: ErrorCode::ResourceExceeded, detail: 0 };
    /// The target did not answer in time.
    pub const TIMED_OUT: Failure = Failure { code: ErrorCode::NetworkFailure, detail: 0 };

    /// The failure that a connect(2) to a target tells of.
    pub fn from_io(error: &io::Error) -> Failure {
        let unreachable = |detail| Failure { code: ErrorCode::DestinationUnreachable, detail };
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                return Failure::RESOURCE_EXCEEDED;
            }
            // Linux turns ICMP's "administratively prohibited" into EHOSTUNREACH, and a local
            // filter's refusal into these.
            Some(libc::EACCES | libc::EPERM) => return unreachable(ICMP_PROHIBITED),
            _ => {}
        }
        match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => {
                Failure { code: ErrorCode::ConnectionReset, detail: 0 }
            }
            io::ErrorKind::NetworkUnreachable => unreachable(ICMP_NETWORK),
            io::ErrorKind::HostUnreachable => unreachable(ICMP_HOST),
            // connect(2) says EADDRNOTAVAIL when every local port is taken.
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::OutOfMemory => {
                Failure::RESOURCE_EXCEEDED
            }
            _ => Failure::TIMED_OUT,
        }
    }

    /// The failure in a word or two, as the status counts it.
    pub fn word(self) -> &'static str {
        match self.code {
            ErrorCode::ConnectionReset => "refused",
            ErrorCode::DestinationUnreachable => "unreachable",
            ErrorCode::NetworkFailure => "timed out",
            ErrorCode::NotAuthorized => "denied",
            ErrorCode::ResourceExceeded => "out of resources",
            _ => "not understood",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.code.fmt(f)
    }
}

impl std::error::Error for Failure {}

/// Why a message cannot be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvertError {
    /// The fixed header has another version.
    Version(u8),
    /// The fixed header has a wrong magic number.
    BadMagic(u16),
    /// The fixed header's length is 0, or not that of the message.
    BadLength,
    /// A TLV of this type has a length that cannot be.
    BadTlvLength(u8),
    /// A TLV of this type is there twice.
    Duplicate(u8),
    /// A request with a TLV of a type this program does not know.
    UnknownTlv(u8),
    /// The target's address is unspecified, multicast or broadcast, or its port is 0.
    BadTarget,
    /// The TCP options of a Connect TLV have lengths that cannot be.
    BadOptions,
    /// A request without a Connect TLV.
    NoConnect,
    /// The message to be written has more than [`MESSAGE_MAX`] bytes.
    TooLong,
}

impl fmt::Display for ConvertError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConvertError::Version(version) => {
                write!(f, "Convert version {version} is not supported")
            }
            ConvertError::BadMagic(magic) => write!(f, "Convert header with magic {magic:#06x}"),
            ConvertError::BadLength => f.write_str("Convert header with a wrong length"),
            ConvertError::BadTlvLength(kind) => write!(f, "Convert TLV {kind} with a wrong length"),
            ConvertError::Duplicate(kind) => write!(f, "Convert TLV {kind} is there twice"),
            ConvertError::UnknownTlv(kind) => write!(f, "Convert TLV {kind} is not supported"),
            ConvertError::BadTarget => f.write_str("Convert request to a target that cannot be"),
            ConvertError::BadOptions => f.write_str("Convert request with damaged TCP options"),
            ConvertError::NoConnect => f.write_str("Convert request without a target"),
            ConvertError::TooLong => f.write_str("Convert message longer than 1020 bytes"),
        }
    }
}

impl std::error::Error for ConvertError {}

impl ConvertError {
    /// The answer to a message that cannot be read: it echoes the message (RFC 8803, 4.2.8).
    pub fn answer(self, received: &[u8]) -> Message {
        let (code, value) = match self {
            ConvertError::Version(_) => (ErrorCode::UnsupportedVersion, &[VERSION][..]),
            ConvertError::UnknownTlv(_) => (ErrorCode::UnsupportedMessage, received),
            _ => (ErrorCode::MalformedMessage, received),
        };
        // Fixed header, TLV header and code leave this much room.
        let echo = value.get(..MESSAGE_MAX - HEADER_LEN - 3).unwrap_or(value);
        Message { tlvs: vec![Tlv::Error { code, value: echo.to_vec() }], unknown: Vec::new() }
    }
}

/// A TLV. Variable values come padded with zeros to whole words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tlv {
    /// Asks which TCP extensions the converter supports.
    Info,
    /// Asks for a connection to a target.
    Connect {
        /// The target.
        target: SocketAddr,
        /// TCP options to be used towards it, as in a TCP header.
        tcp_options: Vec<u8>,
    },
    /// The TCP options of the target's SYN+ACK.
    ExtendedTcpHeader(Vec<u8>),
    /// The kinds of the TCP options that are supported.
    SupportedTcpExtensions(Vec<u8>),
    /// A cookie, whole words.
    Cookie(Vec<u8>),
    /// What went wrong.
    Error {
        /// The code.
        code: ErrorCode,
        /// What the code says its value means.
        value: Vec<u8>,
    },
    /// Asks for a connection that waits on a forwarded port, by its number.
    Accept(u64),
}

impl Tlv {
    fn kind(&self) -> u8 {
        match self {
            Tlv::Info => TLV_INFO,
            Tlv::Connect { .. } => TLV_CONNECT,
            Tlv::ExtendedTcpHeader(_) => TLV_EXTENDED_TCP_HEADER,
            Tlv::SupportedTcpExtensions(_) => TLV_SUPPORTED_TCP_EXTENSIONS,
            Tlv::Cookie(_) => TLV_COOKIE,
            Tlv::Error { .. } => TLV_ERROR,
            Tlv::Accept(_) => TLV_ACCEPT,
        }
    }

    fn encode(&self) -> Result<Vec<u8>, ConvertError> {
        let mut bytes = vec![self.kind(), 0];
        match self {
            Tlv::Info => bytes.extend([0, 0]),
            Tlv::Connect { target, tcp_options } => {
                bytes.extend(target.port().to_be_bytes());
                bytes.extend(mapped(target.ip()).octets());
                bytes.extend(tcp_options);
            }
            Tlv::ExtendedTcpHeader(value)
            | Tlv::SupportedTcpExtensions(value)
            | Tlv::Cookie(value) => {
                bytes.extend([0, 0]);
                bytes.extend(value);
            }
            Tlv::Error { code, value } => {
                bytes.push(code.to_wire());
                bytes.extend(value);
            }
            Tlv::Accept(id) => {
                bytes.extend([0, 0]);
                bytes.extend(id.to_be_bytes());
            }
        }
        bytes.resize(bytes.len().next_multiple_of(WORD), 0);
        let words = u8::try_from(bytes.len() / WORD).map_err(|_| ConvertError::TooLong)?;
        if let Some(length) = bytes.get_mut(1) {
            *length = words;
        }
        Ok(bytes)
    }

    /// Reads a TLV's value: whole words less the two bytes of type and length.
    fn decode(kind: u8, value: &[u8]) -> Result<Option<Tlv>, ConvertError> {
        let bad = ConvertError::BadTlvLength(kind);
        // Two bytes to the next word: the port, or unassigned.
        let (head, rest) = take::<2>(value).ok_or(bad)?;
        Ok(Some(match kind {
            TLV_INFO if rest.is_empty() => Tlv::Info,
            TLV_INFO => return Err(bad),
            TLV_CONNECT => {
                let (address, tcp_options) = take::<16>(rest).ok_or(bad)?;
                let address = IpAddr::V6(Ipv6Addr::from(address)).to_canonical();
                let target = SocketAddr::new(address, u16::from_be_bytes(head));
                if !is_possible(target) {
                    return Err(ConvertError::BadTarget);
                }
                Tlv::Connect { target, tcp_options: tcp_options.to_vec() }
            }
            TLV_EXTENDED_TCP_HEADER => Tlv::ExtendedTcpHeader(rest.to_vec()),
            TLV_SUPPORTED_TCP_EXTENSIONS => {
                // Kind 0 ends a list of TCP options, so it can only be padding.
                let used = rest.iter().rposition(|kind| *kind != 0).map_or(0, |last| last + 1);
                Tlv::SupportedTcpExtensions(rest.get(..used).unwrap_or_default().to_vec())
            }
            TLV_COOKIE => Tlv::Cookie(rest.to_vec()),
            TLV_ERROR => {
                let ([code], value) = take::<1>(value).ok_or(bad)?;
                Tlv::Error { code: ErrorCode::from_wire(code), value: value.to_vec() }
            }
            TLV_ACCEPT => {
                let (id, _) = take::<8>(rest).ok_or(bad)?;
                Tlv::Accept(u64::from_be_bytes(id))
            }
            _ => return Ok(None),
        }))
    }
}

/// A message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The TLVs, no two of one type.
    pub tlvs: Vec<Tlv>,
    /// The types of TLVs read that are not known; not written.
    pub unknown: Vec<u8>,
}

/// Bytes of a whole message, told by its fixed header.
pub fn message_length(header: &[u8; HEADER_LEN]) -> Result<usize, ConvertError> {
    let [version, words, magic @ ..] = *header;
    let magic = u16::from_be_bytes(magic);
    if version != VERSION {
        Err(ConvertError::Version(version))
    } else if magic != MAGIC {
        Err(ConvertError::BadMagic(magic))
    } else if words == 0 {
        Err(ConvertError::BadLength)
    } else {
        Ok(usize::from(words) * WORD)
    }
}

impl Message {
    /// A request for a connection to a target.
    pub fn connect(target: SocketAddr) -> Message {
        let connect = Tlv::Connect { target, tcp_options: Vec::new() };
        Message { tlvs: vec![connect], unknown: Vec::new() }
    }

    /// A request for a connection that waits on a forwarded port.
    pub fn accept(id: u64) -> Message {
        Message { tlvs: vec![Tlv::Accept(id)], unknown: Vec::new() }
    }

    /// The answer to a request that succeeded.
    pub fn connected() -> Message {
        Message::default()
    }

    /// The answer to a request that failed.
    pub fn failed(failure: Failure) -> Message {
        let error = Tlv::Error { code: failure.code, value: vec![failure.detail] };
        Message { tlvs: vec![error], unknown: Vec::new() }
    }

    /// The bytes to be sent.
    pub fn encode(&self) -> Result<Vec<u8>, ConvertError> {
        let mut bytes = vec![VERSION, 0];
        bytes.extend(MAGIC.to_be_bytes());
        for tlv in &self.tlvs {
            bytes.extend(tlv.encode()?);
        }
        let words = u8::try_from(bytes.len() / WORD).map_err(|_| ConvertError::TooLong)?;
        if let Some(length) = bytes.get_mut(1) {
            *length = words;
        }
        Ok(bytes)
    }

    /// Reads a whole message, fixed header included and nothing after it.
    pub fn decode(bytes: &[u8]) -> Result<Message, ConvertError> {
        let (header, mut rest) = take::<HEADER_LEN>(bytes).ok_or(ConvertError::BadLength)?;
        if message_length(&header)? != bytes.len() {
            return Err(ConvertError::BadLength);
        }
        let (mut message, mut seen) = (Message::default(), Vec::new());
        while let Some(([kind, words], after)) = take::<2>(rest) {
            let bad = ConvertError::BadTlvLength(kind);
            let length = (usize::from(words) * WORD).checked_sub(2).ok_or(bad)?;
            let (value, after) = after.split_at_checked(length).ok_or(bad)?;
            rest = after;
            if seen.contains(&kind) {
                return Err(ConvertError::Duplicate(kind));
            }
            seen.push(kind);
            match Tlv::decode(kind, value)? {
                Some(tlv) => message.tlvs.push(tlv),
                None => message.unknown.push(kind),
            }
        }
        Ok(message)
    }

    /// The target and TCP options a request asks for.
    ///
    /// # Errors
    /// [`ConvertError::UnknownTlv`] and [`ConvertError::NoConnect`].
    pub fn target(&self) -> Result<(SocketAddr, &[u8]), ConvertError> {
        if let Some(kind) = self.unknown.first() {
            return Err(ConvertError::UnknownTlv(*kind));
        }
        self.tlvs
            .iter()
            .find_map(|tlv| match tlv {
                Tlv::Connect { target, tcp_options } => Some((*target, tcp_options.as_slice())),
                _ => None,
            })
            .ok_or(ConvertError::NoConnect)
    }

    /// The number of the connection a request accepts, if it is one that does.
    pub fn accepts(&self) -> Option<u64> {
        self.tlvs.iter().find_map(|tlv| match tlv {
            Tlv::Accept(id) => Some(*id),
            _ => None,
        })
    }

    /// What an answer says: the connection stands, or why it does not. TLVs that are not known
    /// are passed over.
    pub fn outcome(&self) -> Result<(), Failure> {
        self.tlvs.iter().try_for_each(|tlv| match tlv {
            Tlv::Error { code, value } => {
                Err(Failure { code: *code, detail: value.first().copied().unwrap_or(0) })
            }
            _ => Ok(()),
        })
    }
}

#[cfg(test)]
mod tests;
