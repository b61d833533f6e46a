//! Sessions: the secret a server hands out over a control connection, and the keys made from it.

use std::fmt;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::datagram::Channel;
use super::record::{RecordKey, StreamKeys, TrafficSecret};
use super::replay::ReplayWindow;
use super::stream::{PREAMBLE_LEN, Preamble, PreambleError, UnverifiedPreamble};
use super::{Cipher, Rng};
use crate::crypto::{hkdf, hmac};

/// For how long a server accepts new streams of a session after it handed out the next one.
pub const RETIREMENT: Duration = Duration::from_secs(60);
/// Bytes of a truncated HMAC-SHA256, as in RFC 4868.
pub const MAC_LEN: usize = 16;

pub(super) const SALT: &[u8] = b"mptcp-bond session v1";
pub(super) const LABEL_PREAMBLE: &[u8] = b"preamble";
pub(super) const LABEL_PROBE_REQUEST: &[u8] = b"probe request";
pub(super) const LABEL_PROBE_REPLY: &[u8] = b"probe reply";
const LABEL_CLIENT_TO_SERVER: &[u8] = b"stream c2s";
const LABEL_SERVER_TO_CLIENT: &[u8] = b"stream s2c";
const LABEL_DATAGRAMS: [&[u8]; 2] = [b"datagram c2s", b"datagram s2c"];

/// A session's number, unpredictable and never reused by a server while it knows the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The secret all keys of a session are made from.
#[derive(Clone, PartialEq, Eq)]
pub struct StreamSecret(Zeroizing<[u8; 32]>);

impl StreamSecret {
    /// A new secret.
    pub fn generate(rng: Rng<'_>) -> StreamSecret {
        let mut secret = Zeroizing::new([0; 32]);
        rng(secret.as_mut_slice());
        StreamSecret(secret)
    }

    /// A secret received from the server.
    pub fn from_bytes(bytes: [u8; 32]) -> StreamSecret {
        StreamSecret(Zeroizing::new(bytes))
    }

    /// The bytes, to be sent to the client.
    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for StreamSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MASKED")
    }
}

/// The length of key material asked of HKDF.
struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-Extract (RFC 5869), by hand: the pseudorandom key that ring would make is not wiped when dropped.
fn extract(salt: &[u8], secret: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    let mut prk = Zeroizing::new([0; 32]);
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, salt), secret);
    prk.copy_from_slice(tag.as_ref());
    prk
}

/// HKDF-Expand (RFC 5869) of the concatenated parts of `info`.
///
/// It fails only for more than 255 x 32 bytes, which is ruled out when this is compiled.
pub(super) fn expand<const N: usize>(prk: &hkdf::Prk, info: &[&[u8]]) -> [u8; N] {
    const { assert!(N <= 255 * 32) };
    let mut key = [0; N];
    let filled = prk.expand(info, Length(N)).and_then(|okm| okm.fill(&mut key));
    debug_assert!(filled.is_ok());
    key
}

/// Whether two secrets are equal, in a time that does not depend on where they differ.
pub(super) fn equal<const N: usize>(a: &[u8; N], b: &[u8; N]) -> bool {
    let difference = a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(difference) == 0
}

/// A key for messages authenticated with HMAC-SHA256 cut to [`MAC_LEN`] bytes.
#[derive(Clone)]
pub(super) struct MacKey(hmac::Key);

impl MacKey {
    fn derive(prk: &hkdf::Prk, label: &[u8], id: SessionId) -> MacKey {
        let key = Zeroizing::new(expand::<32>(prk, &[label, &id.0.to_be_bytes()]));
        MacKey(hmac::Key::new(hmac::HMAC_SHA256, key.as_slice()))
    }

    /// The authentication code of a message.
    pub(super) fn sign(&self, message: &[u8]) -> [u8; MAC_LEN] {
        let tag = hmac::sign(&self.0, message);
        let mut mac = [0; MAC_LEN];
        for (short, full) in mac.iter_mut().zip(tag.as_ref()) {
            *short = *full;
        }
        mac
    }

    /// Whether a code is that of a message.
    pub(super) fn verify(&self, message: &[u8], mac: &[u8; MAC_LEN]) -> bool {
        equal(&self.sign(message), mac)
    }
}

/// The keys of a session.
#[derive(Clone)]
pub struct SessionKeys {
    id: SessionId,
    prk: Zeroizing<[u8; 32]>,
    pub(super) preamble: MacKey,
    pub(super) probe_request: MacKey,
    pub(super) probe_reply: MacKey,
}

impl SessionKeys {
    /// Makes a session's keys from its secret.
    pub fn new(id: SessionId, secret: &StreamSecret) -> SessionKeys {
        let bytes = extract(SALT, secret.as_bytes());
        let prk = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, bytes.as_slice());
        SessionKeys {
            id,
            prk: bytes,
            preamble: MacKey::derive(&prk, LABEL_PREAMBLE, id),
            probe_request: MacKey::derive(&prk, LABEL_PROBE_REQUEST, id),
            probe_reply: MacKey::derive(&prk, LABEL_PROBE_REPLY, id),
        }
    }

    /// The session.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The keys of the stream with a counter.
    pub fn stream(&self, counter: u64, cipher: Cipher) -> StreamKeys {
        StreamKeys {
            cipher,
            client_to_server: self.direction(LABEL_CLIENT_TO_SERVER, counter, cipher),
            server_to_client: self.direction(LABEL_SERVER_TO_CLIENT, counter, cipher),
        }
    }

    /// The keys of datagrams to the server and to the client; `None` if the library fails.
    pub(super) fn datagrams(&self) -> [Option<Box<RecordKey>>; 2] {
        let cipher = Cipher::ChaCha20Poly1305;
        LABEL_DATAGRAMS.map(|label| RecordKey::derive(&self.direction(label, 0, cipher), cipher, 0))
    }

    fn direction(&self, label: &[u8], counter: u64, cipher: Cipher) -> TrafficSecret {
        let (id, counter) = (self.id.0.to_be_bytes(), counter.to_be_bytes());
        let prk = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, self.prk.as_slice());
        TrafficSecret::new(expand(&prk, &[label, &id, &counter, &[cipher.to_wire()]]))
    }
}

impl fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionKeys {{ id: {}, MASKED }}", self.id)
    }
}

/// A session as the client sees it: it numbers the streams.
#[derive(Debug)]
pub struct ClientSession {
    keys: SessionKeys,
    cipher: Cipher,
    next: u64,
    /// Made when it is needed first: most sessions carry no datagram.
    datagrams: Option<Box<Channel>>,
}

impl ClientSession {
    /// A session just received.
    pub fn new(id: SessionId, secret: &StreamSecret, cipher: Cipher) -> ClientSession {
        ClientSession { keys: SessionKeys::new(id, secret), cipher, next: 0, datagrams: None }
    }

    /// The keys.
    pub fn keys(&self) -> &SessionKeys {
        &self.keys
    }

    /// The cipher of its streams.
    pub fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// A new stream: the preamble to be sent, and its keys.
    pub fn open_stream(&mut self) -> ([u8; PREAMBLE_LEN], StreamKeys) {
        let counter = self.next;
        // A counter never returns: 2^64 streams do not happen in a session's lifetime.
        self.next = self.next.saturating_add(1);
        let preamble = Preamble { cipher: self.cipher, flags: 0, session: self.keys.id, counter };
        (preamble.encode(&self.keys), self.keys.stream(counter, self.cipher))
    }

    /// This end of the exchange of datagrams; `None` if the cryptographic library fails.
    pub fn datagrams(&mut self) -> Option<&mut Channel> {
        if self.datagrams.is_none() {
            self.datagrams = Channel::client(&self.keys).map(Box::new);
        }
        self.datagrams.as_deref_mut()
    }
}

/// A session as the server sees it: it accepts each stream once.
#[derive(Debug)]
pub struct ServerSession {
    keys: SessionKeys,
    cipher: Cipher,
    window: ReplayWindow,
    accept_until: Option<Instant>,
    /// Made when it is needed first.
    datagrams: Option<Box<Channel>>,
}

impl ServerSession {
    /// A session just handed out.
    pub fn new(id: SessionId, secret: &StreamSecret, cipher: Cipher) -> ServerSession {
        ServerSession {
            keys: SessionKeys::new(id, secret),
            cipher,
            window: ReplayWindow::new(),
            accept_until: None,
            datagrams: None,
        }
    }

    /// This end of the exchange of datagrams; `None` if the cryptographic library fails.
    pub fn datagrams(&mut self) -> Option<&mut Channel> {
        if self.datagrams.is_none() {
            self.datagrams = Channel::server(&self.keys).map(Box::new);
        }
        self.datagrams.as_deref_mut()
    }

    /// The keys.
    pub fn keys(&self) -> &SessionKeys {
        &self.keys
    }

    /// Marks the session as superseded: new streams are accepted for [`RETIREMENT`] more.
    pub fn retire(&mut self, now: Instant) {
        self.accept_until.get_or_insert(now + RETIREMENT);
    }

    /// Whether the session no longer accepts streams, so that it can be forgotten.
    pub fn expired(&self, now: Instant) -> bool {
        self.accept_until.is_some_and(|until| now >= until)
    }

    /// Accepts a stream of this session, once.
    ///
    /// # Errors
    /// Everything a forged, replayed, late or ill-fitting preamble can be; the connection is
    /// closed without an answer.
    pub fn accept(
        &mut self,
        preamble: &UnverifiedPreamble,
        now: Instant,
    ) -> Result<(Preamble, StreamKeys), PreambleError> {
        let preamble = preamble.verify(&self.keys)?;
        if self.expired(now) {
            return Err(PreambleError::Expired);
        }
        if preamble.cipher != self.cipher {
            return Err(PreambleError::CipherMismatch(preamble.cipher));
        }
        if !self.window.accept(preamble.counter) {
            return Err(PreambleError::Replayed(preamble.counter));
        }
        let keys = self.keys.stream(preamble.counter, preamble.cipher);
        Ok((preamble, keys))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> StreamSecret {
        StreamSecret::from_bytes([3; 32])
    }

    fn ends() -> (ClientSession, ServerSession) {
        let id = SessionId(7);
        (
            ClientSession::new(id, &secret(), Cipher::Aes128Gcm),
            ServerSession::new(id, &secret(), Cipher::Aes128Gcm),
        )
    }

    fn parse(preamble: &[u8; PREAMBLE_LEN]) -> UnverifiedPreamble {
        UnverifiedPreamble::parse(preamble).unwrap()
    }

    #[test]
    fn a_stream_is_accepted_once() {
        let (mut client, mut server) = ends();
        let now = Instant::now();
        let (first, _) = client.open_stream();
        let (second, _) = client.open_stream();
        let (accepted, _) = server.accept(&parse(&second), now).unwrap();
        assert_eq!((accepted.counter, accepted.session), (1, SessionId(7)));
        assert_eq!(server.accept(&parse(&first), now).unwrap().0.counter, 0);
        for preamble in [first, second] {
            let replayed = server.accept(&parse(&preamble), now).unwrap_err();
            assert!(matches!(replayed, PreambleError::Replayed(_)));
        }
    }

    #[test]
    fn a_forged_counter_does_not_use_up_a_true_one() {
        let (mut client, mut server) = ends();
        let (preamble, _) = client.open_stream();
        let mut forged = preamble;
        forged[PREAMBLE_LEN - 1] ^= 1;
        let now = Instant::now();
        assert_eq!(server.accept(&parse(&forged), now).unwrap_err(), PreambleError::Forged);
        assert!(server.accept(&parse(&preamble), now).is_ok());
    }

    #[test]
    fn a_client_cannot_choose_another_cipher() {
        let (_, mut server) = ends();
        let mut weaker = ClientSession::new(SessionId(7), &secret(), Cipher::None);
        assert_eq!(
            server.accept(&parse(&weaker.open_stream().0), Instant::now()).unwrap_err(),
            PreambleError::CipherMismatch(Cipher::None)
        );
    }

    #[test]
    fn a_retired_session_accepts_for_a_minute() {
        let (mut client, mut server) = ends();
        let start = Instant::now();
        server.retire(start);
        server.retire(start + Duration::from_secs(30));
        let late = start + RETIREMENT;
        let in_time = late - Duration::from_millis(1);
        assert!(server.accept(&parse(&client.open_stream().0), in_time).is_ok());
        assert!(!server.expired(in_time) && server.expired(late));
        assert_eq!(
            server.accept(&parse(&client.open_stream().0), late).unwrap_err(),
            PreambleError::Expired
        );
    }

    #[test]
    fn every_key_differs() {
        let keys = SessionKeys::new(SessionId(1), &secret());
        let other_session = SessionKeys::new(SessionId(2), &secret());
        let mut seen = std::collections::BTreeSet::new();
        for keys in [&keys, &other_session] {
            for mac in [&keys.preamble, &keys.probe_request, &keys.probe_reply] {
                assert!(seen.insert(mac.sign(b"").to_vec()));
            }
            for counter in [0, 1] {
                for cipher in Cipher::ALL {
                    let stream = keys.stream(counter, cipher);
                    assert!(seen.insert(stream.client_to_server.as_bytes().to_vec()));
                    assert!(seen.insert(stream.server_to_client.as_bytes().to_vec()));
                }
            }
        }
        assert_eq!(seen.len(), 2 * (3 + 2 * 3 * 2));
    }

    #[test]
    fn secrets_are_masked() {
        let (client, server) = ends();
        let keys = client.keys().stream(0, Cipher::None);
        let text = format!("{:?} {:?} {client:?} {server:?} {keys:?}", secret(), client.keys());
        assert!(text.contains("MASKED") && !text.contains("3, 3") && !text.contains("0303"));
    }
}
