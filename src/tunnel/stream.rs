//! The preamble that opens a stream: sent when a warm connection is made, before there is a
//! request, so that the server knows whose connection it is.

use std::fmt;
use std::time::Duration;

use super::session::{MAC_LEN, SessionId, SessionKeys};
use super::{Cipher, VERSION_MAX, VERSION_MIN, take};

/// The first byte of a stream.
pub const FIRST_BYTE: u8 = b'S';
/// Bytes of a preamble.
pub const PREAMBLE_LEN: usize = SIGNED_LEN + MAC_LEN;

/// For how long a server waits for a whole preamble.
pub const PREAMBLE_TIMEOUT: Duration = Duration::from_secs(10);
/// For how long a server keeps a stream that sends no request; a client gives it up well before.
pub const WARM_TIMEOUT: Duration = Duration::from_secs(600);

const SIGNED_LEN: usize = 20;

/// What a stream says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preamble {
    /// The cipher of its records.
    pub cipher: Cipher,
    /// Reserved: sent as 0; bits a server does not know are ignored.
    pub flags: u8,
    /// The session it belongs to.
    pub session: SessionId,
    /// Its number within the session, accepted once.
    pub counter: u64,
}

/// Why a stream is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreambleError {
    /// The connection does not start as a stream does.
    NotStream,
    /// A protocol version this program does not speak.
    Version(u8),
    /// A cipher this program does not know.
    UnknownCipher(u8),
    /// Not made with the session's key.
    Forged,
    /// The session was superseded too long ago.
    Expired,
    /// Another cipher than the one the session was given.
    CipherMismatch(Cipher),
    /// A counter accepted before, or too old to tell.
    Replayed(u64),
}

impl fmt::Display for PreambleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PreambleError::NotStream => f.write_str("not a stream of this tunnel"),
            PreambleError::Version(version) => {
                write!(f, "stream in protocol version {version}, which is not supported")
            }
            PreambleError::UnknownCipher(number) => {
                write!(f, "stream with cipher {number}, which is not supported")
            }
            PreambleError::Forged => f.write_str("stream whose preamble is not authentic"),
            PreambleError::Expired => f.write_str("stream of a session that was superseded"),
            PreambleError::CipherMismatch(cipher) => {
                write!(f, "stream with cipher {cipher}, which its session was not given")
            }
            PreambleError::Replayed(counter) => {
                write!(f, "stream {counter} came before, or too late")
            }
        }
    }
}

impl std::error::Error for PreambleError {}

impl Preamble {
    /// The bytes to be sent.
    pub fn encode(&self, keys: &SessionKeys) -> [u8; PREAMBLE_LEN] {
        let mut bytes = [0; PREAMBLE_LEN];
        let (signed, mac) = bytes.split_at_mut(SIGNED_LEN);
        signed.copy_from_slice(&self.signed());
        mac.copy_from_slice(&keys.preamble.sign(signed));
        bytes
    }

    fn signed(&self) -> [u8; SIGNED_LEN] {
        let mut bytes = [0; SIGNED_LEN];
        let (head, rest) = bytes.split_at_mut(4);
        head.copy_from_slice(&[FIRST_BYTE, VERSION_MAX, self.cipher.to_wire(), self.flags]);
        let (session, counter) = rest.split_at_mut(8);
        session.copy_from_slice(&self.session.0.to_be_bytes());
        counter.copy_from_slice(&self.counter.to_be_bytes());
        bytes
    }
}

/// A preamble as read: whose it is has to be looked up before it can be verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnverifiedPreamble {
    preamble: Preamble,
    signed: [u8; SIGNED_LEN],
    mac: [u8; MAC_LEN],
}

impl UnverifiedPreamble {
    /// Reads a preamble.
    pub fn parse(bytes: &[u8; PREAMBLE_LEN]) -> Result<UnverifiedPreamble, PreambleError> {
        let (signed, mac) = take::<SIGNED_LEN>(bytes).ok_or(PreambleError::NotStream)?;
        let ([first, version, cipher, flags], rest) =
            take::<4>(&signed).ok_or(PreambleError::NotStream)?;
        let (session, rest) = take::<8>(rest).ok_or(PreambleError::NotStream)?;
        let (counter, _) = take::<8>(rest).ok_or(PreambleError::NotStream)?;
        if first != FIRST_BYTE {
            return Err(PreambleError::NotStream);
        }
        if !(VERSION_MIN..=VERSION_MAX).contains(&version) {
            return Err(PreambleError::Version(version));
        }
        let preamble = Preamble {
            cipher: Cipher::from_wire(cipher).ok_or(PreambleError::UnknownCipher(cipher))?,
            flags,
            session: SessionId(u64::from_be_bytes(session)),
            counter: u64::from_be_bytes(counter),
        };
        let mac = mac.try_into().map_err(|_| PreambleError::NotStream)?;
        Ok(UnverifiedPreamble { preamble, signed, mac })
    }

    /// The session it claims to belong to.
    pub fn session(&self) -> SessionId {
        self.preamble.session
    }

    /// The preamble, if it was made with a session's key.
    pub fn verify(&self, keys: &SessionKeys) -> Result<Preamble, PreambleError> {
        if keys.preamble.verify(&self.signed, &self.mac) {
            Ok(self.preamble)
        } else {
            Err(PreambleError::Forged)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::session::StreamSecret;
    use crate::tunnel::testing::{Xorshift, bit_flips, mutations};

    fn keys() -> SessionKeys {
        SessionKeys::new(SessionId(0x0102_0304_0506_0708), &StreamSecret::from_bytes([5; 32]))
    }

    fn preamble(cipher: Cipher) -> Preamble {
        Preamble { cipher, flags: 0x80, session: keys().id(), counter: u64::MAX }
    }

    fn read(bytes: &[u8]) -> Result<Preamble, PreambleError> {
        let bytes = bytes.try_into().map_err(|_| PreambleError::NotStream)?;
        UnverifiedPreamble::parse(bytes)?.verify(&keys())
    }

    #[test]
    fn round_trip() {
        for cipher in Cipher::ALL {
            let preamble = preamble(cipher);
            let bytes = preamble.encode(&keys());
            assert_eq!(read(&bytes), Ok(preamble));
            assert_eq!(UnverifiedPreamble::parse(&bytes).unwrap().session(), keys().id());
        }
    }

    #[test]
    fn no_flipped_bit_passes() {
        bit_flips(&preamble(Cipher::None).encode(&keys()), |bit, bytes| {
            assert!(read(bytes).is_err(), "bit {bit}");
        });
    }

    #[test]
    fn another_sessions_key_does_not_fit() {
        let other = SessionKeys::new(keys().id(), &StreamSecret::from_bytes([6; 32]));
        assert_eq!(read(&preamble(Cipher::None).encode(&other)), Err(PreambleError::Forged));
    }

    #[test]
    fn mutated_preambles_do_not_panic() {
        let mut random = Xorshift::new(3);
        let valid = preamble(Cipher::Aes128Gcm).encode(&keys());
        mutations(&mut random, &valid, 100_000, |bytes| {
            assert!(read(bytes).is_err() || *bytes == valid);
        });
    }
}
