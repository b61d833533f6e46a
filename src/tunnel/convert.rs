//! The messages of the 0-RTT TCP Convert Protocol (RFC 8803, section 6).

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::Reader;

/// The protocol's version.
const VERSION: u8 = 1;
/// "Convert": marks the fixed header.
const MAGIC: u16 = 0x2263;
/// The fixed header's length in bytes.
pub const FIXED_HEADER: usize = 4;

const INFO: u8 = 1;
const CONNECT: u8 = 10;
const EXTENDED_TCP_HEADER: u8 = 20;
const SUPPORTED_TCP_EXTENSIONS: u8 = 21;
const COOKIE: u8 = 22;
const ERROR: u8 = 30;

/// Why a converter does not serve a request (section 6.2.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// The version is not served.
    UnsupportedVersion,
    /// The message breaks the format.
    MalformedMessage,
    /// A TLV has an unknown type.
    UnsupportedMessage,
    /// A cookie is required.
    MissingCookie,
    /// The policy forbids it.
    NotAuthorized,
    /// A TCP option is not served.
    UnsupportedTcpOption,
    /// A limit is reached.
    ResourceExceeded,
    /// The network failed, or the target did not answer in time.
    NetworkFailure,
    /// The target reset or refused the connection.
    ConnectionReset,
    /// No way leads to the target.
    DestinationUnreachable,
    /// Another code.
    Other(u8),
}

const CODES: [(ErrorCode, u8, &str); 10] = [
    (ErrorCode::UnsupportedVersion, 0, "the converter's version is not supported"),
    (ErrorCode::MalformedMessage, 1, "the request is malformed"),
    (ErrorCode::UnsupportedMessage, 2, "the request is not supported"),
    (ErrorCode::MissingCookie, 3, "a cookie is missing"),
    (ErrorCode::NotAuthorized, 32, "the server's policy forbids the target"),
    (ErrorCode::UnsupportedTcpOption, 33, "a TCP option is not supported"),
    (ErrorCode::ResourceExceeded, 64, "a limit of the server is reached"),
    (ErrorCode::NetworkFailure, 65, "the target did not answer"),
    (ErrorCode::ConnectionReset, 96, "the target refused the connection"),
    (ErrorCode::DestinationUnreachable, 97, "the target is unreachable"),
];

impl ErrorCode {
    fn id(self) -> u8 {
        match self {
            ErrorCode::Other(id) => id,
            code => CODES.iter().find(|(known, ..)| *known == code).map_or(0, |(_, id, _)| *id),
        }
    }

    fn from_id(id: u8) -> ErrorCode {
        let known = CODES.iter().find(|(_, known, _)| *known == id);
        known.map_or(ErrorCode::Other(id), |(code, ..)| *code)
    }

    /// The code for a failed connect(2).
    pub fn of(error: &io::Error) -> ErrorCode {
        match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => {
                ErrorCode::ConnectionReset
            }
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::AddrNotAvailable => ErrorCode::DestinationUnreachable,
            _ => ErrorCode::NetworkFailure,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match CODES.iter().find(|(code, ..)| code == self) {
            Some((_, _, text)) => f.write_str(text),
            None => write!(f, "error {}", self.id()),
        }
    }
}

/// One TLV of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tlv {
    /// Asks which TCP extensions are served.
    Info,
    /// Asks for a connection.
    Connect {
        /// To this target.
        target: SocketAddr,
        /// With these TCP options.
        options: Vec<u8>,
    },
    /// The TCP header of the target's SYN+ACK.
    ExtendedTcpHeader(Vec<u8>),
    /// TCP option kinds that are served.
    SupportedTcpExtensions(Vec<u8>),
    /// Shows that the client was here before.
    Cookie(Vec<u8>),
    /// The request is not served.
    Error {
        /// Why.
        code: ErrorCode,
        /// More about it.
        value: Vec<u8>,
    },
}

impl Tlv {
    fn encode(&self, out: &mut Vec<u8>) {
        let (kind, value) = match self {
            Tlv::Info => (INFO, vec![0, 0]),
            Tlv::Connect { target, options } => {
                let address = match target.ip() {
                    IpAddr::V4(address) => address.to_ipv6_mapped(),
                    IpAddr::V6(address) => address,
                };
                let mut value = target.port().to_be_bytes().to_vec();
                value.extend(address.octets());
                value.extend(options);
                (CONNECT, value)
            }
            Tlv::ExtendedTcpHeader(header) => (EXTENDED_TCP_HEADER, reserved(header)),
            Tlv::SupportedTcpExtensions(kinds) => (SUPPORTED_TCP_EXTENSIONS, reserved(kinds)),
            Tlv::Cookie(cookie) => (COOKIE, reserved(cookie)),
            Tlv::Error { code, value } => {
                let mut bytes = vec![code.id()];
                bytes.extend(value);
                (ERROR, bytes)
            }
        };
        let words = (value.len() + 2).div_ceil(4);
        out.push(kind);
        out.push(u8::try_from(words).unwrap_or(u8::MAX));
        let padded = value.into_iter().chain(std::iter::repeat(0));
        out.extend(padded.take((words * 4).saturating_sub(2)));
    }

    fn decode(reader: &mut Reader<'_>) -> Option<Result<Tlv, ErrorCode>> {
        let (kind, words) = (reader.u8()?, reader.u8()?);
        let mut value = Reader(reader.take((usize::from(words) * 4).checked_sub(2)?)?);
        let rest = |value: Reader<'_>| value.0.to_vec();
        Some(Ok(match kind {
            INFO => Tlv::Info,
            CONNECT => {
                let port = value.u16()?;
                let address: [u8; 16] = value.array()?;
                let address = IpAddr::V6(Ipv6Addr::from(address)).to_canonical();
                Tlv::Connect { target: SocketAddr::new(address, port), options: rest(value) }
            }
            EXTENDED_TCP_HEADER | SUPPORTED_TCP_EXTENSIONS | COOKIE => {
                value.u16()?;
                match kind {
                    EXTENDED_TCP_HEADER => Tlv::ExtendedTcpHeader(rest(value)),
                    COOKIE => Tlv::Cookie(rest(value)),
                    _ => Tlv::SupportedTcpExtensions(rest(value)),
                }
            }
            ERROR => Tlv::Error { code: ErrorCode::from_id(value.u8()?), value: rest(value) },
            _ => return Some(Err(ErrorCode::UnsupportedMessage)),
        }))
    }
}

fn reserved(value: &[u8]) -> Vec<u8> {
    let mut out = vec![0, 0];
    out.extend(value);
    out
}

/// Encodes a message; TLVs that would make it longer than 1,020 bytes are left out.
pub fn encode(tlvs: &[Tlv]) -> Vec<u8> {
    let mut body = Vec::new();
    for tlv in tlvs {
        let before = body.len();
        tlv.encode(&mut body);
        if FIXED_HEADER + body.len() > usize::from(u8::MAX) * 4 {
            body.truncate(before);
        }
    }
    let words = (FIXED_HEADER + body.len()) / 4;
    let mut out = vec![VERSION, u8::try_from(words).unwrap_or(u8::MAX)];
    out.extend(MAGIC.to_be_bytes());
    out.extend(body);
    out
}

/// A request for a connection to `target`.
pub fn encode_connect(target: SocketAddr) -> Vec<u8> {
    encode(&[Tlv::Connect { target, options: Vec::new() }])
}

/// The answer to a request: that it is served, or why it is not.
pub fn encode_answer(answer: Result<(), ErrorCode>) -> Vec<u8> {
    match answer {
        Ok(()) => encode(&[]),
        Err(code) => encode(&[Tlv::Error { code, value: Vec::new() }]),
    }
}

/// Decodes a whole message.
///
/// # Errors
/// What a converter would answer.
pub fn decode(message: &[u8]) -> Result<Vec<Tlv>, ErrorCode> {
    let malformed = ErrorCode::MalformedMessage;
    let mut reader = Reader(message);
    let version = reader.u8().ok_or(malformed)?;
    if version != VERSION {
        return Err(ErrorCode::UnsupportedVersion);
    }
    let words = reader.u8().ok_or(malformed)?;
    let magic = reader.u16().ok_or(malformed)?;
    if magic != MAGIC || usize::from(words) * 4 != message.len() {
        return Err(malformed);
    }
    let mut tlvs = Vec::new();
    while !reader.is_empty() {
        tlvs.push(Tlv::decode(&mut reader).ok_or(malformed)??);
    }
    Ok(tlvs)
}

/// The target that a request asks for.
///
/// # Errors
/// What to answer instead.
pub fn decode_connect(message: &[u8]) -> Result<SocketAddr, ErrorCode> {
    let mut connects = decode(message)?.into_iter().filter_map(|tlv| match tlv {
        Tlv::Connect { target, .. } => Some(target),
        _ => None,
    });
    match (connects.next(), connects.next()) {
        (Some(target), None) => Ok(target),
        _ => Err(ErrorCode::MalformedMessage),
    }
}

/// What an answer says.
///
/// # Errors
/// Why the request is not served; a malformed answer counts as such, too.
pub fn decode_answer(message: &[u8]) -> Result<(), ErrorCode> {
    let error = decode(message)?.into_iter().find_map(|tlv| match tlv {
        Tlv::Error { code, .. } => Some(code),
        _ => None,
    });
    error.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::mutation::mutate;

    #[test]
    fn a_request_is_as_the_rfc_draws_it() {
        let request = encode_connect("192.0.2.10:8080".parse().unwrap());
        let expected = [
            1, 6, 0x22, 0x63, 10, 5, 0x1f, 0x90, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2,
            10,
        ];
        assert_eq!(request, expected);
        assert_eq!(decode_connect(&request), Ok("192.0.2.10:8080".parse().unwrap()));
    }

    #[test]
    fn answers_say_yes_or_why_not() {
        assert_eq!(encode_answer(Ok(())), [1, 1, 0x22, 0x63]);
        let refused = encode_answer(Err(ErrorCode::ConnectionReset));
        assert_eq!(refused, [1, 2, 0x22, 0x63, 30, 1, 96, 0]);
        for (code, ..) in CODES {
            assert_eq!(decode_answer(&encode_answer(Err(code))), Err(code));
        }
        assert_eq!(decode_answer(&encode_answer(Ok(()))), Ok(()));
    }

    #[test]
    fn all_tlvs_survive_the_wire() {
        let tlvs = vec![
            Tlv::Info,
            Tlv::Connect { target: "[2001:db8::1]:443".parse().unwrap(), options: vec![1; 4] },
            Tlv::ExtendedTcpHeader(vec![2; 20]),
            Tlv::SupportedTcpExtensions(vec![30, 0, 0, 0]),
            Tlv::Cookie(vec![5; 16]),
            Tlv::Error { code: ErrorCode::Other(200), value: vec![1] },
        ];
        assert_eq!(decode(&encode(&tlvs)), Ok(tlvs));
        let long = encode(&vec![Tlv::Cookie(vec![7; 400]); 4]);
        assert_eq!(decode(&long).map(|tlvs| tlvs.len()), Ok(2));
    }

    #[test]
    fn mutated_messages_do_no_harm() {
        let connect = encode_connect("[2001:db8::1]:443".parse().unwrap());
        mutate(&[connect, encode_answer(Err(ErrorCode::NetworkFailure))], |input| {
            if let Ok(tlvs) = decode(input) {
                assert_eq!(decode(&encode(&tlvs)), Ok(tlvs));
            }
        });
    }
}
