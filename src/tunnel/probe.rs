//! Probes: UDP datagrams that an uplink's health is judged by.
//!
//! `kind u8 | 0 u8 | 0 be16 | session id be64 | counter be64 | sealed payload 18 | tag 16`. A request's
//! payload is zeros; a reply's is the address and port the request came from, so that a reply is as
//! long as its request and serves no amplification.

use std::net::{IpAddr, SocketAddr};

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use super::Reader;
use super::session::{End, Keys};

/// A probe's length in bytes, request and reply alike.
pub const LENGTH: usize = HEADER + PAYLOAD + 16;
const HEADER: usize = 20;
const PAYLOAD: usize = 18;
const REQUEST: u8 = b'P';
const REPLY: u8 = b'p';

/// Seals and opens the probes of one session.
pub struct Prober {
    id: u64,
    client: Direction,
    server: Direction,
}

struct Direction {
    key: LessSafeKey,
    iv: [u8; 12],
}

impl Direction {
    fn new(material: [u8; 44]) -> Option<Direction> {
        let key = UnboundKey::new(&CHACHA20_POLY1305, material.first_chunk::<32>()?).ok()?;
        Some(Direction { key: LessSafeKey::new(key), iv: *material.last_chunk()? })
    }

    fn nonce(&self, counter: u64) -> Nonce {
        let mut nonce = self.iv;
        for (byte, count) in nonce.iter_mut().skip(4).zip(counter.to_be_bytes()) {
            *byte ^= count;
        }
        Nonce::assume_unique_for_key(nonce)
    }

    fn seal(&self, kind: u8, id: u64, counter: u64, payload: [u8; PAYLOAD]) -> Vec<u8> {
        let mut out = vec![kind, 0, 0, 0];
        out.extend(id.to_be_bytes());
        out.extend(counter.to_be_bytes());
        let aad = Aad::from(out.clone());
        let mut sealed = payload;
        let tag = self.key.seal_in_place_separate_tag(self.nonce(counter), aad, &mut sealed);
        out.extend(sealed);
        // Sealing 18 bytes cannot fail; were it to, the probe would be too short and so lost.
        out.extend(tag.iter().flat_map(|tag| tag.as_ref()));
        out
    }

    fn open(&self, datagram: &[u8], counter: u64) -> Option<[u8; PAYLOAD]> {
        let (header, sealed) = datagram.split_at_checked(HEADER)?;
        let mut sealed = sealed.to_vec();
        let nonce = self.nonce(counter);
        let plain = self.key.open_in_place(nonce, Aad::from(header), &mut sealed).ok()?;
        plain.try_into().ok()
    }
}

/// The session and counter of a probe of this kind, not verified.
fn header(datagram: &[u8], kind: u8) -> Option<(u64, u64)> {
    let mut reader = Reader(datagram);
    let right = datagram.len() == LENGTH && reader.u32()? == u32::from(kind) << 24;
    right.then_some(())?;
    Some((reader.u64()?, reader.u64()?))
}

/// The session that a request names; it is verified by [`Prober::answer`].
pub fn session_of(datagram: &[u8]) -> Option<u64> {
    header(datagram, REQUEST).map(|(session, _)| session)
}

impl Prober {
    /// The prober of a session; `None` never in practice.
    pub fn new(keys: &Keys) -> Option<Prober> {
        Some(Prober {
            id: keys.id,
            client: Direction::new(keys.probe_material(End::Client))?,
            server: Direction::new(keys.probe_material(End::Server))?,
        })
    }

    /// A client's request; each counter is used once in a session.
    pub fn request(&self, counter: u64) -> Vec<u8> {
        self.client.seal(REQUEST, self.id, counter, [0; PAYLOAD])
    }

    /// A server's answer to an authentic request that came from `source`.
    ///
    /// A replayed request is answered once more: the reply is no longer than it, and its client no
    /// longer waits for it.
    pub fn answer(&self, request: &[u8], source: SocketAddr) -> Option<Vec<u8>> {
        let (_, counter) = header(request, REQUEST).filter(|(session, _)| *session == self.id)?;
        self.client.open(request, counter)?;
        let address = match source.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let mut payload = [0; PAYLOAD];
        let fields = address.octets().into_iter().chain(source.port().to_be_bytes());
        payload.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
        Some(self.server.seal(REPLY, self.id, counter, payload))
    }

    /// The counter that an authentic reply answers, and where the server saw its request come from.
    pub fn reply(&self, datagram: &[u8]) -> Option<(u64, SocketAddr)> {
        let (_, counter) = header(datagram, REPLY).filter(|(session, _)| *session == self.id)?;
        let payload = self.server.open(datagram, counter)?;
        let mut reader = Reader(&payload);
        let address: [u8; 16] = reader.array()?;
        let address = IpAddr::from(address).to_canonical();
        Some((counter, SocketAddr::new(address, reader.u16()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::mutation::mutate;
    use crate::tunnel::session::StreamSecret;

    fn prober(secret: u8) -> Prober {
        Prober::new(&Keys { id: 5, secret: StreamSecret::new([secret; 32]) }).unwrap()
    }

    #[test]
    fn a_reply_tells_where_the_request_came_from() {
        for source in ["192.0.2.1:4000", "[2001:db8::1]:5000"] {
            let source: SocketAddr = source.parse().unwrap();
            let request = prober(1).request(9);
            assert_eq!(session_of(&request), Some(5));
            let reply = prober(1).answer(&request, source).unwrap();
            assert_eq!((request.len(), reply.len()), (LENGTH, LENGTH));
            assert_eq!(prober(1).reply(&reply), Some((9, source)));
            assert_eq!(prober(2).reply(&reply), None);
            assert_eq!(prober(1).reply(&request), None);
            assert_eq!(prober(1).answer(&reply, source), None);
        }
        assert!(prober(2).answer(&prober(1).request(1), "192.0.2.1:1".parse().unwrap()).is_none());
    }

    #[test]
    fn mutated_probes_do_no_harm() {
        let source = "192.0.2.1:4000".parse().unwrap();
        let (prober, request) = (prober(1), prober(1).request(9));
        let reply = prober.answer(&request, source).unwrap();
        mutate(&[request.clone(), reply.clone()], |input| {
            session_of(input);
            assert_eq!(prober.answer(input, source).is_some(), *input == request);
            assert_eq!(prober.reply(input).is_some(), *input == reply);
        });
    }
}
