//! Probes: small authenticated UDP datagrams that measure one uplink.
//!
//! A server keeps nothing for a probe: a replayed request only earns the replayer a reply of the
//! same size. The address in a reply is authenticated, not encrypted, for a reply to a replay
//! from elsewhere would use a nonce twice.

use std::fmt;
use std::net::SocketAddr;

use super::session::{MAC_LEN, SessionId, SessionKeys};
use super::{mapped, take, take_address};

/// Bytes of a request and of a reply, as UDP payload.
pub const PROBE_LEN: usize = SIGNED_LEN + MAC_LEN;
/// Bytes of a request or reply with its padding, at most: what fits an IPv4 packet of 1500 bytes.
pub const PROBE_MAX: usize = 1500 - 20 - 8;

const HEADER_LEN: usize = 20;
const BODY_LEN: usize = 20;
const SIGNED_LEN: usize = HEADER_LEN + BODY_LEN;
const REQUEST: u8 = b'P';
const REPLY: u8 = b'p';
/// A flag of replies: the server answers requests that are padded, by replies of the same size.
const PADS: u8 = 1;

/// Why a datagram is not a probe of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeError {
    /// Shorter or longer than a probe.
    BadLength,
    /// Neither request nor reply, or not the one expected.
    NotProbe,
    /// Not made with the session's key.
    Forged,
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProbeError::BadLength => "datagram that is not as long as a probe",
            ProbeError::NotProbe => "datagram that is no probe",
            ProbeError::Forged => "probe that is not authentic",
        })
    }
}

impl std::error::Error for ProbeError {}

/// A request: which session's, and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeRequest {
    /// Its number, which the client never uses twice in a session.
    pub counter: u64,
}

/// A reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeReply {
    /// The request's: the client matches it to those it awaits, each once.
    pub counter: u64,
    /// Where the server saw the request come from.
    pub observed: SocketAddr,
    /// Whether the server answers requests that are padded.
    pub pads: bool,
}

/// A datagram as read: whose it is has to be looked up before it can be verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnverifiedProbe {
    kind: u8,
    flags: u8,
    session: SessionId,
    counter: u64,
    body: [u8; BODY_LEN],
    signed: [u8; SIGNED_LEN],
    mac: [u8; MAC_LEN],
}

fn encode(
    kind: u8,
    flags: u8,
    counter: u64,
    body: [u8; BODY_LEN],
    keys: &SessionKeys,
) -> [u8; PROBE_LEN] {
    let mut bytes = [0; PROBE_LEN];
    let (signed, mac) = bytes.split_at_mut(SIGNED_LEN);
    let parts =
        [&[kind, flags, 0, 0], keys.id().0.to_be_bytes().as_slice(), &counter.to_be_bytes(), &body]
            .concat();
    for (place, byte) in signed.iter_mut().zip(parts) {
        *place = byte;
    }
    let key = if kind == REQUEST { &keys.probe_request } else { &keys.probe_reply };
    mac.copy_from_slice(&key.sign(signed));
    bytes
}

impl ProbeRequest {
    /// The datagram.
    pub fn encode(&self, keys: &SessionKeys) -> [u8; PROBE_LEN] {
        encode(REQUEST, 0, self.counter, [0; BODY_LEN], keys)
    }

    /// The reply to this request, which came from `observed`.
    pub fn reply(&self, observed: SocketAddr) -> ProbeReply {
        ProbeReply { counter: self.counter, observed: canonical(observed), pads: true }
    }
}

/// The address and port alone, IPv4 as such.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl ProbeReply {
    /// The datagram.
    pub fn encode(&self, keys: &SessionKeys) -> [u8; PROBE_LEN] {
        let address = mapped(self.observed.ip()).octets();
        let mut body = [0; BODY_LEN];
        let observed = address.into_iter().chain(self.observed.port().to_be_bytes());
        for (place, byte) in body.iter_mut().zip(observed) {
            *place = byte;
        }
        encode(REPLY, if self.pads { PADS } else { 0 }, self.counter, body, keys)
    }
}

impl UnverifiedProbe {
    /// Reads a datagram, passing over its padding.
    pub fn parse(datagram: &[u8]) -> Result<UnverifiedProbe, ProbeError> {
        let fits = datagram.len() <= PROBE_MAX;
        let (bytes, _) =
            take::<PROBE_LEN>(datagram).filter(|_| fits).ok_or(ProbeError::BadLength)?;
        let (signed, mac) = take::<SIGNED_LEN>(&bytes).ok_or(ProbeError::BadLength)?;
        let ([kind, flags, ..], rest) = take::<4>(&signed).ok_or(ProbeError::BadLength)?;
        let (session, rest) = take::<8>(rest).ok_or(ProbeError::BadLength)?;
        let (counter, body) = take::<8>(rest).ok_or(ProbeError::BadLength)?;
        if kind != REQUEST && kind != REPLY {
            return Err(ProbeError::NotProbe);
        }
        Ok(UnverifiedProbe {
            kind,
            flags,
            session: SessionId(u64::from_be_bytes(session)),
            counter: u64::from_be_bytes(counter),
            body: body.try_into().map_err(|_| ProbeError::BadLength)?,
            signed,
            mac: mac.try_into().map_err(|_| ProbeError::BadLength)?,
        })
    }

    /// The session it claims to belong to.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The request, if it is one and was made with a session's key.
    pub fn request(&self, keys: &SessionKeys) -> Result<ProbeRequest, ProbeError> {
        if self.kind != REQUEST {
            return Err(ProbeError::NotProbe);
        }
        if !keys.probe_request.verify(&self.signed, &self.mac) {
            return Err(ProbeError::Forged);
        }
        Ok(ProbeRequest { counter: self.counter })
    }

    /// The reply, if it is one and was made with a session's key.
    pub fn reply(&self, keys: &SessionKeys) -> Result<ProbeReply, ProbeError> {
        if self.kind != REPLY {
            return Err(ProbeError::NotProbe);
        }
        if !keys.probe_reply.verify(&self.signed, &self.mac) {
            return Err(ProbeError::Forged);
        }
        let (observed, _) = take_address(&self.body).ok_or(ProbeError::BadLength)?;
        let pads = self.flags & PADS != 0;
        Ok(ProbeReply { counter: self.counter, observed, pads })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::session::StreamSecret;
    use crate::tunnel::testing::{Xorshift, bit_flips, mutations};

    fn keys() -> SessionKeys {
        SessionKeys::new(SessionId(77), &StreamSecret::from_bytes([1; 32]))
    }

    fn request(datagram: &[u8]) -> Result<ProbeRequest, ProbeError> {
        UnverifiedProbe::parse(datagram)?.request(&keys())
    }

    fn reply(datagram: &[u8]) -> Result<ProbeReply, ProbeError> {
        UnverifiedProbe::parse(datagram)?.reply(&keys())
    }

    #[test]
    fn there_and_back() {
        let sent = ProbeRequest { counter: 9 };
        let datagram = sent.encode(&keys());
        assert_eq!(UnverifiedProbe::parse(&datagram).unwrap().session(), SessionId(77));
        assert_eq!(request(&datagram), Ok(sent));
        for (seen, expected) in [
            ("198.51.100.7:4242", "198.51.100.7:4242"),
            ("[::ffff:198.51.100.7]:4242", "198.51.100.7:4242"),
            ("[2001:db8::9]:65535", "[2001:db8::9]:65535"),
        ] {
            let answer = sent.reply(seen.parse().unwrap()).encode(&keys());
            assert_eq!(answer.len(), datagram.len(), "no amplification");
            assert_eq!(
                reply(&answer),
                Ok(ProbeReply { counter: 9, observed: expected.parse().unwrap(), pads: true })
            );
        }
    }

    #[test]
    fn padding_is_passed_over_up_to_a_full_packet() {
        let sent = ProbeRequest { counter: 9 };
        let mut padded = sent.encode(&keys()).to_vec();
        padded.resize(PROBE_MAX, 7);
        assert_eq!(request(&padded), Ok(sent));
        padded.push(0);
        assert_eq!(request(&padded), Err(ProbeError::BadLength));
    }

    #[test]
    fn a_server_that_does_not_pad_is_recognised() {
        let old = ProbeReply { counter: 1, observed: "192.0.2.1:5".parse().unwrap(), pads: false };
        let datagram = old.encode(&keys());
        assert_eq!((datagram[1], reply(&datagram)), (0, Ok(old)));
    }

    #[test]
    fn a_request_is_no_reply() {
        let mut datagram = ProbeRequest { counter: 9 }.encode(&keys());
        assert_eq!(reply(&datagram), Err(ProbeError::NotProbe));
        datagram[0] = REPLY;
        assert_eq!(reply(&datagram), Err(ProbeError::Forged), "reflected");
    }

    #[test]
    fn no_flipped_bit_passes() {
        let answer =
            ProbeReply { counter: 1, observed: "192.0.2.1:5".parse().unwrap(), pads: true };
        bit_flips(&answer.encode(&keys()), |bit, bytes| assert!(reply(bytes).is_err(), "{bit}"));
        let ask = ProbeRequest { counter: 1 };
        bit_flips(&ask.encode(&keys()), |bit, bytes| assert!(request(bytes).is_err(), "{bit}"));
        let other = SessionKeys::new(SessionId(77), &StreamSecret::from_bytes([2; 32]));
        assert_eq!(request(&ask.encode(&other)), Err(ProbeError::Forged));
    }

    #[test]
    fn mutated_probes_do_not_panic() {
        let mut random = Xorshift::new(7);
        let valid = ProbeRequest { counter: 3 }.encode(&keys());
        mutations(&mut random, &valid, 100_000, |bytes| {
            assert!(request(bytes).is_err() || bytes.starts_with(&valid));
            assert!(reply(bytes).is_err());
        });
    }
}
