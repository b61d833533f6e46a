//! Records: what a stream's bytes are wrapped in, sealed and opened in place.

use std::fmt;
use std::ops::{Range, RangeInclusive};

use zeroize::Zeroizing;

use super::session::expand;
use super::{Cipher, convert};
use crate::crypto::aead::{self, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use crate::crypto::hkdf;

/// Bytes of a record's header: kind, 0, length of the plaintext.
pub const HEADER_LEN: usize = 4;
/// Bytes of a record's authentication tag.
pub const TAG_LEN: usize = 16;
/// Bytes a record adds to its plaintext.
pub const OVERHEAD: usize = HEADER_LEN + TAG_LEN;
/// Bytes a whole record may have.
pub const RECORD_MAX: usize = 65536;
/// Bytes of plaintext a record may have.
pub const PLAINTEXT_MAX: usize = RECORD_MAX - OVERHEAD;
/// Records sealed with one key before the next one takes its place. At most 2^32 AES blocks
/// each, well under the limit that keeps AES-GCM's advantage below 2^-60 (RFC 8446, section 5.5).
pub const RECORDS_PER_KEY: u64 = 1 << 20;

pub(super) const LABEL_KEY: &[u8] = b"record key";
pub(super) const LABEL_IV: &[u8] = b"record iv";

/// What a record is. The numbers are those on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The connect request, first from the client: an RFC 8803 message.
    Request = 1,
    /// Its answer, first from the server: an RFC 8803 message.
    Answer = 2,
    /// Payload.
    Data = 3,
    /// No more payload in this direction.
    End = 4,
    /// The whole stream is aborted.
    Reset = 5,
}

impl Kind {
    fn from_wire(number: u8) -> Option<Kind> {
        [Kind::Request, Kind::Answer, Kind::Data, Kind::End, Kind::Reset]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }

    /// The lengths its plaintext may have: a data record is never empty.
    fn lengths(self) -> RangeInclusive<usize> {
        match self {
            Kind::Request | Kind::Answer => convert::HEADER_LEN..=convert::MESSAGE_MAX,
            Kind::Data => 1..=PLAINTEXT_MAX,
            Kind::End | Kind::Reset => 0..=0,
        }
    }
}

/// Why a record cannot be made or read. The stream is of no more use then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// The header names no known kind of record.
    UnknownKind,
    /// The plaintext's length does not fit the kind of record.
    BadLength(usize),
    /// The buffer is shorter than header, plaintext and tag.
    BufferTooShort,
    /// A record that may not come at this place: data before the request, or anything after the
    /// end.
    OutOfOrder(Kind),
    /// The record was altered, or made with another key or for another place.
    Forged,
    /// The cryptographic library refused to work; not caused by input.
    Library,
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordError::UnknownKind => f.write_str("record of an unknown kind"),
            RecordError::BadLength(length) => write!(f, "record with a length of {length}"),
            RecordError::BufferTooShort => f.write_str("buffer too short for a record"),
            RecordError::OutOfOrder(kind) => write!(f, "{kind:?} record out of order"),
            RecordError::Forged => f.write_str("record that is not authentic"),
            RecordError::Library => f.write_str("the cryptographic library failed"),
        }
    }
}

impl std::error::Error for RecordError {}

/// The secret the keys of one direction of one stream are made from.
#[derive(Clone)]
pub(super) struct TrafficSecret(Zeroizing<[u8; 32]>);

impl TrafficSecret {
    pub(super) fn new(bytes: [u8; 32]) -> TrafficSecret {
        TrafficSecret(Zeroizing::new(bytes))
    }

    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The secrets of a stream.
#[derive(Clone)]
pub struct StreamKeys {
    pub(super) cipher: Cipher,
    pub(super) client_to_server: TrafficSecret,
    pub(super) server_to_client: TrafficSecret,
}

impl StreamKeys {
    /// The cipher.
    pub fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// What the client seals and opens with.
    pub fn client(&self) -> (Sealer, Opener) {
        (
            Sealer(Sequence::new(self.cipher, &self.client_to_server, Kind::Request)),
            Opener(Sequence::new(self.cipher, &self.server_to_client, Kind::Answer)),
        )
    }

    /// What the server seals and opens with.
    pub fn server(&self) -> (Sealer, Opener) {
        (
            Sealer(Sequence::new(self.cipher, &self.server_to_client, Kind::Answer)),
            Opener(Sequence::new(self.cipher, &self.client_to_server, Kind::Request)),
        )
    }
}

impl fmt::Debug for StreamKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamKeys {{ cipher: {}, MASKED }}", self.cipher)
    }
}

/// A key that seals or opens up to [`RECORDS_PER_KEY`] records, or any number of datagrams.
pub(super) struct RecordKey {
    key: LessSafeKey,
    iv: [u8; aead::NONCE_LEN],
}

impl RecordKey {
    pub(super) fn derive(
        secret: &TrafficSecret,
        cipher: Cipher,
        generation: u64,
    ) -> Option<Box<RecordKey>> {
        let algorithm = match cipher {
            Cipher::Aes128Gcm => &aead::AES_128_GCM,
            Cipher::ChaCha20Poly1305 | Cipher::None => &aead::CHACHA20_POLY1305,
        };
        let prk = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, secret.as_bytes());
        let generation = generation.to_be_bytes();
        let info = [LABEL_KEY, &generation];
        let key = LessSafeKey::new(UnboundKey::from(prk.expand(&info, algorithm).ok()?));
        Some(Box::new(RecordKey { key, iv: expand(&prk, &[LABEL_IV, &generation]) }))
    }

    fn nonce(&self, counter: u64) -> Nonce {
        let mut nonce = self.iv;
        for (byte, part) in nonce.iter_mut().rev().zip(counter.to_le_bytes()) {
            *byte ^= part;
        }
        Nonce::assume_unique_for_key(nonce)
    }

    /// Seals a plaintext in place; gives the tag.
    pub(super) fn seal(
        &self,
        counter: u64,
        header: Aad<&[u8]>,
        plaintext: &mut [u8],
    ) -> Option<Tag> {
        let nonce = self.nonce(counter);
        self.key.seal_in_place_separate_tag(nonce, header, plaintext).ok()
    }

    /// Opens what was sealed, with its tag at the end, in place; gives the plaintext.
    pub(super) fn open<'a>(
        &self,
        counter: u64,
        header: Aad<&[u8]>,
        sealed: &'a mut [u8],
    ) -> Option<&'a mut [u8]> {
        self.key.open_in_place(self.nonce(counter), header, sealed).ok()
    }
}

/// The records of one direction: the next one's number and key, and which kinds may come.
struct Sequence {
    secret: TrafficSecret,
    /// With none, only the first record is a record; plain bytes follow.
    cipher: Cipher,
    /// The kind of the first record.
    first: Kind,
    /// Apart, since it is large (600 bytes) and sequences are moved.
    key: Option<Box<RecordKey>>,
    counter: u64,
    ended: bool,
}

impl Sequence {
    fn new(cipher: Cipher, secret: &TrafficSecret, first: Kind) -> Sequence {
        let secret = secret.clone();
        let key = RecordKey::derive(&secret, cipher, 0);
        Sequence { secret, cipher, first, key, counter: 0, ended: false }
    }

    fn at(position: &Position, first: Kind) -> Sequence {
        let &Position { cipher, ref secret, counter, ended } = position;
        let secret = TrafficSecret(secret.clone());
        let key = RecordKey::derive(&secret, cipher, counter / RECORDS_PER_KEY);
        Sequence { secret, cipher, first, key, counter, ended }
    }

    fn position(&self) -> Position {
        let &Sequence { cipher, counter, ended, .. } = self;
        Position { cipher, secret: self.secret.0.clone(), counter, ended }
    }

    /// Whether a record of a kind and length may come now.
    fn check(&self, kind: Kind, length: usize) -> Result<(), RecordError> {
        let in_order = match (self.counter, kind) {
            (0, kind) => kind == self.first || kind == Kind::Reset,
            (_, Kind::Data | Kind::End | Kind::Reset) => self.cipher != Cipher::None,
            (_, Kind::Request | Kind::Answer) => false,
        };
        if self.ended || !in_order {
            return Err(RecordError::OutOfOrder(kind));
        }
        if !kind.lengths().contains(&length) {
            return Err(RecordError::BadLength(length));
        }
        Ok(())
    }

    /// Moves on past a record.
    fn advance(&mut self, kind: Kind) {
        self.ended = matches!(kind, Kind::End | Kind::Reset);
        // 2^64 records do not fit a connection's life; the last number would only be refused.
        self.counter = self.counter.saturating_add(1);
        if self.counter.is_multiple_of(RECORDS_PER_KEY) {
            let generation = self.counter / RECORDS_PER_KEY;
            self.key = RecordKey::derive(&self.secret, self.cipher, generation);
        }
    }

    fn fmt(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{name} {{ counter: {}, ended: {}, MASKED }}", self.counter, self.ended)
    }
}

/// Where one direction of a stream stands behind its first record: all it takes to go on elsewhere.
pub struct Position {
    /// The stream's cipher.
    pub cipher: Cipher,
    /// The direction's secret.
    pub secret: Zeroizing<[u8; 32]>,
    /// The number of the next record.
    pub counter: u64,
    /// Whether no record may follow.
    pub ended: bool,
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Position {{ counter: {}, ended: {}, MASKED }}", self.counter, self.ended)
    }
}

/// Makes the records of one direction.
pub struct Sealer(Sequence);

impl Sealer {
    /// Goes on where another one was, on the server.
    pub fn at(position: &Position) -> Sealer {
        Sealer(Sequence::at(position, Kind::Answer))
    }

    /// Where it stands.
    pub fn position(&self) -> Position {
        self.0.position()
    }

    /// Seals a record in place.
    ///
    /// `buffer` has room for the header, then `length` bytes of plaintext, then room for the tag.
    /// Returns the record's length.
    pub fn seal(
        &mut self,
        kind: Kind,
        buffer: &mut [u8],
        length: usize,
    ) -> Result<usize, RecordError> {
        let Sealer(sequence) = self;
        sequence.check(kind, length)?;
        let wire_length = u16::try_from(length).map_err(|_| RecordError::BadLength(length))?;
        let [high, low] = wire_length.to_be_bytes();
        let header = [kind as u8, 0, high, low];

        let (head, rest) =
            buffer.split_at_mut_checked(HEADER_LEN).ok_or(RecordError::BufferTooShort)?;
        let (plaintext, rest) =
            rest.split_at_mut_checked(length).ok_or(RecordError::BufferTooShort)?;
        let room = rest.get_mut(..TAG_LEN).ok_or(RecordError::BufferTooShort)?;

        let key = sequence.key.as_ref().ok_or(RecordError::Library)?;
        let tag = key.seal(sequence.counter, Aad::from(&header), plaintext);
        let tag = tag.ok_or(RecordError::Library)?;
        head.copy_from_slice(&header);
        room.copy_from_slice(tag.as_ref());
        sequence.advance(kind);
        Ok(length + OVERHEAD)
    }

    /// Whether the last record was made: no other may follow.
    pub fn has_ended(&self) -> bool {
        self.0.ended
    }

    /// Seals a record into a new buffer: for requests, answers and ends, not for the bulk.
    pub fn seal_new(&mut self, kind: Kind, plaintext: &[u8]) -> Result<Vec<u8>, RecordError> {
        let mut buffer = [&[0; HEADER_LEN], plaintext, &[0; TAG_LEN]].concat();
        self.seal(kind, &mut buffer, plaintext.len())?;
        Ok(buffer)
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt("Sealer", f)
    }
}

/// What the front of a buffer holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Part of a record: this many bytes in all are needed, [`RECORD_MAX`] at most.
    Need(usize),
    /// A whole record.
    Record {
        /// Its kind.
        kind: Kind,
        /// Where in the buffer its plaintext is.
        payload: Range<usize>,
        /// Bytes it takes up at the front of the buffer.
        consumed: usize,
    },
}

/// Reads the records of one direction.
pub struct Opener(Sequence);

impl Opener {
    /// Goes on where another one was, on the server.
    pub fn at(position: &Position) -> Opener {
        Opener(Sequence::at(position, Kind::Request))
    }

    /// Where it stands.
    pub fn position(&self) -> Position {
        self.0.position()
    }

    /// Whether the last record was read: no other may follow.
    pub fn has_ended(&self) -> bool {
        self.0.ended
    }

    /// Opens the record at the front of `buffer`, in place.
    ///
    /// # Errors
    /// After an error the stream is of no more use.
    pub fn next(&mut self, buffer: &mut [u8]) -> Result<Opened, RecordError> {
        let Opener(sequence) = self;
        let Some(header) = buffer.first_chunk::<HEADER_LEN>().copied() else {
            return Ok(Opened::Need(OVERHEAD));
        };
        let [kind, zero, high, low] = header;
        let kind = Kind::from_wire(kind).filter(|_| zero == 0).ok_or(RecordError::UnknownKind)?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        sequence.check(kind, length)?;
        let consumed = length + OVERHEAD;
        let Some(sealed) = buffer.get_mut(HEADER_LEN..consumed) else {
            return Ok(Opened::Need(consumed));
        };
        let key = sequence.key.as_ref().ok_or(RecordError::Library)?;
        key.open(sequence.counter, Aad::from(&header), sealed).ok_or(RecordError::Forged)?;
        sequence.advance(kind);
        Ok(Opened::Record { kind, payload: HEADER_LEN..HEADER_LEN + length, consumed })
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt("Opener", f)
    }
}

#[cfg(test)]
mod tests;
