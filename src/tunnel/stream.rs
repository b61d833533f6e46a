//! The preamble that opens a stream and shows that its sender has the session:
//! `'S' | version u8 | cipher u8 | 0 u8 | session id be64 | counter be64 | tag 16`.

use ring::hmac;

use super::session::Keys;
use super::{Cipher, OLDEST_VERSION, Reader, STREAM, VERSION};

/// A preamble's length in bytes, the leading `'S'` included.
pub const PREAMBLE: usize = 20 + TAG;
const TAG: usize = 16;

/// What a preamble says; not to be believed before [`Preamble::verify`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preamble {
    /// The session.
    pub session: u64,
    /// The stream's counter, used once in a session.
    pub counter: u64,
    /// The stream's cipher.
    pub cipher: Cipher,
    signed: [u8; 20],
    tag: [u8; TAG],
}

fn key(keys: &Keys, counter: u64) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &keys.preamble_key(counter))
}

/// The preamble of the stream with this counter.
pub fn preamble(keys: &Keys, counter: u64, cipher: Cipher) -> Vec<u8> {
    let mut out = vec![STREAM, VERSION, cipher.id(), 0];
    out.extend(keys.id.to_be_bytes());
    out.extend(counter.to_be_bytes());
    let tag = hmac::sign(&key(keys, counter), &out);
    out.extend(tag.as_ref().iter().take(TAG));
    out
}

impl Preamble {
    /// Reads a preamble; `None` when it is none.
    pub fn decode(bytes: &[u8; PREAMBLE]) -> Option<Preamble> {
        let mut reader = Reader(bytes);
        let signed: [u8; 20] = reader.array()?;
        let tag = reader.array()?;
        let mut reader = Reader(&signed);
        let (kind, version) = (reader.u8()?, reader.u8()?);
        let cipher = Cipher::from_id(reader.u8()?)?;
        let flags = reader.u8()?;
        let versions = OLDEST_VERSION..=VERSION;
        if kind != STREAM || !versions.contains(&version) || flags != 0 {
            return None;
        }
        Some(Preamble { session: reader.u64()?, counter: reader.u64()?, cipher, signed, tag })
    }

    /// Whether a holder of the session's secret made it; in constant time.
    pub fn verify(&self, keys: &Keys) -> bool {
        // Comparing HMACs of the tags takes the same time wherever they differ.
        let key = key(keys, self.counter);
        let tag = hmac::sign(&key, &self.signed);
        let Some(expected) = tag.as_ref().get(..TAG) else { return false };
        let shown = hmac::sign(&key, &self.tag);
        hmac::verify(&key, expected, shown.as_ref()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::mutation::mutate;
    use crate::tunnel::session::StreamSecret;

    fn keys() -> Keys {
        Keys { id: 0x0102_0304_0506_0708, secret: StreamSecret::new([9; 32]) }
    }

    #[test]
    fn a_preamble_is_verified() {
        let bytes: [u8; PREAMBLE] =
            preamble(&keys(), 41, Cipher::Aes128Gcm).try_into().unwrap();
        let decoded = Preamble::decode(&bytes).unwrap();
        assert_eq!((decoded.session, decoded.counter), (keys().id, 41));
        assert_eq!(decoded.cipher, Cipher::Aes128Gcm);
        assert!(decoded.verify(&keys()));
        let other = Keys { secret: StreamSecret::new([8; 32]), ..keys() };
        assert!(!decoded.verify(&other));
    }

    #[test]
    fn any_flipped_bit_is_refused() {
        let bytes: [u8; PREAMBLE] = preamble(&keys(), 1, Cipher::None).try_into().unwrap();
        for bit in 0..PREAMBLE * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            let accepted = Preamble::decode(&bad).is_some_and(|preamble| preamble.verify(&keys()));
            assert!(!accepted, "bit {bit}");
        }
    }

    #[test]
    fn mutated_preambles_do_no_harm() {
        let good = preamble(&keys(), 41, Cipher::Aes128Gcm);
        mutate(&[good.clone()], |input| {
            let Ok(bytes) = <&[u8; PREAMBLE]>::try_from(input.as_slice()) else { return };
            let accepted = Preamble::decode(bytes).is_some_and(|preamble| preamble.verify(&keys()));
            assert_eq!(accepted, *input == good);
        });
    }
}
