//! A session's secret and the keys derived from it (HKDF-SHA256, RFC 5869).

use std::fmt;

use ring::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use zeroize::Zeroize;

use super::Cipher;
use super::record::{KEY_MATERIAL, Opener, Sealer};

/// Names this use of HKDF.
const SALT: &[u8] = b"mptcp-bond session v1";

/// What the keys of a session's streams and probes are derived from.
#[derive(Clone, PartialEq, Eq)]
pub struct StreamSecret([u8; 32]);

impl StreamSecret {
    /// A secret of 32 random bytes.
    pub fn new(bytes: [u8; 32]) -> StreamSecret {
        StreamSecret(bytes)
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for StreamSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MASKED")
    }
}

impl Drop for StreamSecret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Which end of the tunnel one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The router.
    Client,
    /// The aggregation server.
    Server,
}

/// A session: its id and its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// The id.
    pub id: u64,
    /// The secret.
    pub secret: StreamSecret,
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl Keys {
    /// `HKDF(salt, secret, label | context)`; zeros only if HKDF's limits were exceeded, which these
    /// lengths do not.
    fn derive<const N: usize>(&self, label: &[u8], context: &[&[u8]]) -> [u8; N] {
        let prk: Prk = Salt::new(HKDF_SHA256, SALT).extract(self.secret.bytes());
        let id = self.id.to_be_bytes();
        let mut info = vec![label, &id];
        info.extend(context);
        let mut out = [0; N];
        if let Ok(material) = prk.expand(&info, Length(N)) {
            // The lengths agree by construction.
            let _ = material.fill(&mut out);
        }
        out
    }

    /// The key that authenticates a stream's preamble.
    pub(super) fn preamble_key(&self, counter: u64) -> [u8; 32] {
        self.derive(b"preamble", &[&counter.to_be_bytes()])
    }

    /// The two halves of a stream's record layer; `None` never in practice.
    pub fn stream(&self, cipher: Cipher, counter: u64, end: End) -> Option<(Sealer, Opener)> {
        let direction = |label: &[u8]| -> [u8; KEY_MATERIAL] {
            self.derive(label, &[&[cipher.id()], &counter.to_be_bytes()])
        };
        let (mut up, mut down) = (direction(b"client to server"), direction(b"server to client"));
        let halves = match end {
            End::Client => Sealer::new(cipher, &up).zip(Opener::new(cipher, &down)),
            End::Server => Sealer::new(cipher, &down).zip(Opener::new(cipher, &up)),
        };
        up.zeroize();
        down.zeroize();
        halves
    }

    /// Key and IV of one direction's probes.
    pub(super) fn probe_material(&self, from: End) -> [u8; 44] {
        match from {
            End::Client => self.derive(b"probe client to server", &[]),
            End::Server => self.derive(b"probe server to client", &[]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::record::{Kind, Opened};

    fn keys() -> Keys {
        Keys { id: 7, secret: StreamSecret::new([3; 32]) }
    }

    #[test]
    fn a_secret_is_not_printed() {
        assert_eq!(format!("{:?}", keys()), "Keys { id: 7, secret: MASKED }");
    }

    #[test]
    fn both_ends_derive_the_same_keys_and_no_two_streams_share_one() {
        let (mut client, _) = keys().stream(Cipher::Aes128Gcm, 1, End::Client).unwrap();
        let mut record = Vec::new();
        client.append(Kind::Data, b"hello", &mut record).unwrap();
        let open = |keys: Keys, cipher, counter, end| {
            let (_, mut opener) = keys.stream(cipher, counter, end).unwrap();
            matches!(opener.next(&mut record.clone()), Ok(Opened::Record { .. }))
        };
        assert!(open(keys(), Cipher::Aes128Gcm, 1, End::Server));
        assert!(!open(keys(), Cipher::Aes128Gcm, 2, End::Server));
        assert!(!open(keys(), Cipher::ChaCha20Poly1305, 1, End::Server));
        assert!(!open(keys(), Cipher::Aes128Gcm, 1, End::Client));
        assert!(!open(Keys { id: 8, ..keys() }, Cipher::Aes128Gcm, 1, End::Server));
    }
}
