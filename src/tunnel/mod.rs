//! The tunnel's wire format and session state, without I/O. `docs/protocol.md` describes it for
//! other implementations.

pub mod control;
pub mod convert;
pub mod handshake;
pub mod probe;
pub mod record;
pub mod replay;
pub mod session;
pub mod stream;

use std::fmt;

use crate::config::agent::CipherChoice;

/// The first byte of an RFC 8803 Convert message: its version.
pub const CONVERT: u8 = 0x01;
/// The first byte of a control connection.
pub const CONTROL: u8 = b'C';
/// The first byte of a stream.
pub const STREAM: u8 = b'S';
/// The newest protocol version spoken here.
pub const VERSION: u8 = 1;
/// The oldest.
pub const OLDEST_VERSION: u8 = 1;

/// How a stream's payload is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cipher {
    /// Not at all; request and answer are sealed all the same.
    None,
    /// AES-128-GCM (RFC 5116).
    Aes128Gcm,
    /// ChaCha20-Poly1305 (RFC 8439).
    ChaCha20Poly1305,
}

impl Cipher {
    /// The number on the wire.
    pub fn id(self) -> u8 {
        match self {
            Cipher::None => 0,
            Cipher::Aes128Gcm => 1,
            Cipher::ChaCha20Poly1305 => 2,
        }
    }

    /// The cipher with this number.
    pub fn from_id(id: u8) -> Option<Cipher> {
        [Cipher::None, Cipher::Aes128Gcm, Cipher::ChaCha20Poly1305]
            .into_iter()
            .find(|cipher| cipher.id() == id)
    }

    /// The cipher of a new session: what the client asks for; `auto` is AES where both ends have
    /// instructions for it, and ChaCha20 otherwise.
    pub fn negotiate(
        wanted: CipherChoice,
        client_prefers_aes: bool,
        server_prefers_aes: bool,
    ) -> Cipher {
        match wanted {
            CipherChoice::None => Cipher::None,
            CipherChoice::Aes128Gcm => Cipher::Aes128Gcm,
            CipherChoice::ChaCha20Poly1305 => Cipher::ChaCha20Poly1305,
            CipherChoice::Auto if client_prefers_aes && server_prefers_aes => Cipher::Aes128Gcm,
            CipherChoice::Auto => Cipher::ChaCha20Poly1305,
        }
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

/// Reads big-endian fields from the front of a buffer; every read is bounded by what is there.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A `type u8 | length be16 | value` field.
    fn tlv(&mut self) -> Option<(u8, &'a [u8])> {
        let kind = self.u8()?;
        let length = usize::from(self.u16()?);
        Some((kind, self.take(length)?))
    }
}

/// Appends a `type u8 | length be16 | value` field; a value too long for it is cut off.
fn put_tlv(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    out.push(kind);
    out.extend(length.to_be_bytes());
    out.extend(value.iter().take(usize::from(length)));
}

#[cfg(test)]
pub(crate) mod mutation;
