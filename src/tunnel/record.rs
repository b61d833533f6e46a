//! Records: `type u8 | 0 u8 | length be16 | ciphertext | tag 16`, sealed and opened in place.
//!
//! `length` is the plaintext's. The four header bytes are authenticated; the nonce is the key's IV
//! combined with the number of records sealed so far, as in TLS 1.3 (RFC 8446, section 5.3).

use std::fmt;
use std::io;
use std::ops::Range;

use ring::aead::{AES_128_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use super::Cipher;

/// Bytes before the ciphertext.
pub const HEADER: usize = 4;
/// Bytes after it.
pub const TAG: usize = 16;
/// The most plaintext a record carries, in bytes: it then fits in 64 KiB.
pub const MAX_PLAINTEXT: usize = 65_516;

/// What a record carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// RFC 8803 TLVs that ask for a target; the first record from a client.
    Request,
    /// RFC 8803 TLVs that answer; the first record from a server.
    Answer,
    /// Payload.
    Data,
    /// Nothing: this direction has ended.
    End,
    /// Nothing: the connection was reset.
    Reset,
}

impl Kind {
    fn id(self) -> u8 {
        match self {
            Kind::Request => 1,
            Kind::Answer => 2,
            Kind::Data => 3,
            Kind::End => 4,
            Kind::Reset => 5,
        }
    }

    fn from_id(id: u8) -> Option<Kind> {
        [Kind::Request, Kind::Answer, Kind::Data, Kind::End, Kind::Reset]
            .into_iter()
            .find(|kind| kind.id() == id)
    }
}

/// Why a record cannot be sealed or opened. The stream is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// It was not sealed by the other end, or not in this place.
    NotAuthentic,
    /// Its type is unknown or its length too large.
    Malformed,
    /// The buffer cannot hold it.
    NoRoom,
    /// The key is used up.
    Exhausted,
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RecordError::NotAuthentic => "a record is not authentic",
            RecordError::Malformed => "a record is malformed",
            RecordError::NoRoom => "a record does not fit its buffer",
            RecordError::Exhausted => "the stream's key is used up",
        })
    }
}

impl std::error::Error for RecordError {}

impl From<RecordError> for io::Error {
    fn from(error: RecordError) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// One direction's key, IV and record number.
struct Key {
    key: LessSafeKey,
    iv: [u8; 12],
    records: u64,
}

/// Bytes of key and IV that a direction needs, whatever the cipher.
pub(super) const KEY_MATERIAL: usize = 32 + 12;

impl Key {
    fn new(cipher: Cipher, material: &[u8; KEY_MATERIAL]) -> Option<Key> {
        let (algorithm, length) = match cipher {
            Cipher::Aes128Gcm => (&AES_128_GCM, 16),
            // Without a cipher for the payload, request and answer are sealed with this one.
            Cipher::ChaCha20Poly1305 | Cipher::None => (&CHACHA20_POLY1305, 32),
        };
        let key = UnboundKey::new(algorithm, material.get(..length)?).ok()?;
        let iv = *material.last_chunk::<12>()?;
        Some(Key { key: LessSafeKey::new(key), iv, records: 0 })
    }

    fn nonce(&mut self) -> Result<Nonce, RecordError> {
        let mut nonce = self.iv;
        for (byte, count) in nonce.iter_mut().skip(4).zip(self.records.to_be_bytes()) {
            *byte ^= count;
        }
        self.records = self.records.checked_add(1).ok_or(RecordError::Exhausted)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// Seals the records of one direction.
pub struct Sealer(Key);

/// Opens the records of one direction.
pub struct Opener(Key);

/// What [`Opener::next`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened {
    /// The buffer has to hold this many bytes, from its beginning, before a record is complete.
    Need(usize),
    /// A record.
    Record {
        /// What it carries.
        kind: Kind,
        /// Where in the buffer its plaintext is.
        plaintext: Range<usize>,
        /// Bytes of the buffer it took up.
        consumed: usize,
    },
}

impl Sealer {
    pub(super) fn new(cipher: Cipher, material: &[u8; KEY_MATERIAL]) -> Option<Sealer> {
        Key::new(cipher, material).map(Sealer)
    }

    /// Seals the `length` bytes that start at [`HEADER`] and puts header and tag around them;
    /// returns the length of the record, which starts at the buffer's beginning.
    ///
    /// # Errors
    /// When `length` exceeds [`MAX_PLAINTEXT`] or the buffer is too small.
    pub fn seal(
        &mut self,
        kind: Kind,
        buffer: &mut [u8],
        length: usize,
    ) -> Result<usize, RecordError> {
        if length > MAX_PLAINTEXT {
            return Err(RecordError::NoRoom);
        }
        let short = u16::try_from(length).map_err(|_| RecordError::NoRoom)?;
        let [high, low] = short.to_be_bytes();
        let header = [kind.id(), 0, high, low];
        let (front, rest) = buffer.split_first_chunk_mut::<HEADER>().ok_or(RecordError::NoRoom)?;
        let (plaintext, rest) = rest.split_at_mut_checked(length).ok_or(RecordError::NoRoom)?;
        let end = rest.first_chunk_mut::<TAG>().ok_or(RecordError::NoRoom)?;
        *front = header;
        let nonce = self.0.nonce()?;
        let tag = self
            .0
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(header), plaintext)
            .map_err(|_| RecordError::NoRoom)?;
        end.copy_from_slice(tag.as_ref());
        Ok(HEADER + length + TAG)
    }

    /// Appends a record to `out`; for short ones, outside of a relay.
    ///
    /// # Errors
    /// When `plaintext` exceeds [`MAX_PLAINTEXT`].
    pub fn append(
        &mut self,
        kind: Kind,
        plaintext: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), RecordError> {
        let start = out.len();
        out.extend([0; HEADER]);
        out.extend(plaintext);
        out.extend([0; TAG]);
        let record = out.get_mut(start..).unwrap_or_default();
        self.seal(kind, record, plaintext.len()).map(drop)
    }
}

impl Opener {
    pub(super) fn new(cipher: Cipher, material: &[u8; KEY_MATERIAL]) -> Option<Opener> {
        Key::new(cipher, material).map(Opener)
    }

    /// Opens the record at the beginning of `buffer`.
    ///
    /// # Errors
    /// When it is malformed or not authentic; nothing of it may then be used.
    pub fn next(&mut self, buffer: &mut [u8]) -> Result<Opened, RecordError> {
        let Some(&header) = buffer.first_chunk::<HEADER>() else {
            return Ok(Opened::Need(HEADER));
        };
        let [kind, zero, high, low] = header;
        let length = usize::from(u16::from_be_bytes([high, low]));
        let kind = Kind::from_id(kind).ok_or(RecordError::Malformed)?;
        if zero != 0 || length > MAX_PLAINTEXT {
            return Err(RecordError::Malformed);
        }
        let consumed = HEADER + length + TAG;
        let Some(sealed) = buffer.get_mut(HEADER..consumed) else {
            return Ok(Opened::Need(consumed));
        };
        let nonce = self.0.nonce()?;
        self.0
            .key
            .open_in_place(nonce, Aad::from(header), sealed)
            .map_err(|_| RecordError::NotAuthentic)?;
        Ok(Opened::Record { kind, plaintext: HEADER..HEADER + length, consumed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::mutation::mutate;

    const MATERIAL: [u8; KEY_MATERIAL] = [7; KEY_MATERIAL];

    fn pair(cipher: Cipher) -> (Sealer, Opener) {
        (Sealer::new(cipher, &MATERIAL).unwrap(), Opener::new(cipher, &MATERIAL).unwrap())
    }

    fn record(sealer: &mut Sealer, kind: Kind, plaintext: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        sealer.append(kind, plaintext, &mut out).unwrap();
        out
    }

    #[test]
    fn records_in_one_buffer_are_opened_one_after_another() {
        for cipher in [Cipher::None, Cipher::Aes128Gcm, Cipher::ChaCha20Poly1305] {
            let (mut sealer, mut opener) = pair(cipher);
            let mut buffer = record(&mut sealer, Kind::Request, b"where");
            sealer.append(Kind::Data, &[9; MAX_PLAINTEXT], &mut buffer).unwrap();
            sealer.append(Kind::End, b"", &mut buffer).unwrap();
            assert!(!buffer.windows(5).any(|part| part == b"where"));
            let mut seen = Vec::new();
            let mut rest = buffer.as_mut_slice();
            while !rest.is_empty() {
                let Ok(Opened::Record { kind, plaintext, consumed }) = opener.next(rest) else {
                    panic!("a whole record")
                };
                seen.push((kind, rest[plaintext].to_vec()));
                rest = &mut rest[consumed..];
            }
            let kinds: Vec<_> = seen.iter().map(|(kind, data)| (*kind, data.len())).collect();
            assert_eq!(kinds, [(Kind::Request, 5), (Kind::Data, MAX_PLAINTEXT), (Kind::End, 0)]);
        }
    }

    #[test]
    fn a_part_says_how_much_it_needs() {
        let (mut sealer, mut opener) = pair(Cipher::Aes128Gcm);
        let whole = record(&mut sealer, Kind::Data, &[1; 300]);
        assert_eq!(opener.next(&mut []), Ok(Opened::Need(HEADER)));
        for length in HEADER..whole.len() {
            let needed = opener.next(&mut whole[..length].to_vec());
            assert_eq!(needed, Ok(Opened::Need(whole.len())));
        }
        assert!(matches!(opener.next(&mut whole.clone()), Ok(Opened::Record { .. })));
    }

    #[test]
    fn any_flipped_bit_is_refused() {
        let (mut sealer, _) = pair(Cipher::ChaCha20Poly1305);
        let whole = record(&mut sealer, Kind::Data, b"payload");
        for bit in 0..whole.len() * 8 {
            let (_, mut opener) = pair(Cipher::ChaCha20Poly1305);
            let mut bad = whole.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(opener.next(&mut bad), Ok(Opened::Record { .. })), "bit {bit}");
        }
    }

    #[test]
    fn a_record_out_of_place_is_refused() {
        let (mut sealer, mut opener) = pair(Cipher::Aes128Gcm);
        let _first = record(&mut sealer, Kind::Data, b"first");
        let mut second = record(&mut sealer, Kind::Data, b"second");
        assert_eq!(opener.next(&mut second), Err(RecordError::NotAuthentic));
    }

    #[test]
    fn mutated_records_do_no_harm() {
        let (mut sealer, _) = pair(Cipher::ChaCha20Poly1305);
        let seeds = vec![
            record(&mut sealer, Kind::Data, &[3; 40]),
            record(&mut sealer, Kind::Request, &[]),
        ];
        let (_, mut opener) = pair(Cipher::ChaCha20Poly1305);
        mutate(&seeds, |input| {
            if let Ok(Opened::Need(more)) = opener.next(input) {
                assert!(more > input.len() && more <= HEADER + MAX_PLAINTEXT + TAG);
            }
        });
    }
}
