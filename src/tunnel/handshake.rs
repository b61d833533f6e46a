//! The control connection's handshake, Noise IK, and the encrypted channel that follows.
//!
//! Message 1 can be recorded and sent again by anybody, so it proves nothing yet: a server keeps
//! no state for a client until the client's first message arrived over the [`Channel`].

use std::fmt;

use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState, TransportState};
use zeroize::Zeroizing;

pub use super::hello::{ClientHello, HelloError, Refusal, ServerHello, Versions};
use super::{Rng, VERSION_MAX, take};

/// The first byte of a control connection.
pub const FIRST_BYTE: u8 = b'C';
/// Bytes of the header of handshake message 1: first byte, version, length.
pub const REQUEST_HEADER_LEN: usize = 4;
/// Bytes of the header of handshake message 2: version, length.
pub const ANSWER_HEADER_LEN: usize = 3;
/// Bytes of the header of a message over the channel: length.
pub const MESSAGE_HEADER_LEN: usize = 2;
/// Bytes a handshake message may have, header excluded.
pub const HANDSHAKE_MAX: usize = 1024;
/// Bytes of plaintext a message over the channel may have.
pub const PLAINTEXT_MAX: usize = 4096;

const PATTERN: &str = "Noise_IK_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &[u8] = b"mptcp-bond";
const KEY_LEN: usize = 32;
const TAG_LEN: usize = 16;
/// `e`, encrypted `s`, encrypted empty payload.
const REQUEST_MIN: usize = KEY_LEN + KEY_LEN + TAG_LEN + TAG_LEN;
/// `e`, encrypted empty payload.
const ANSWER_MIN: usize = KEY_LEN + TAG_LEN;

/// Why a handshake failed, or a message over the channel cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeError {
    /// The connection does not start as a control connection does.
    NotControl,
    /// The length field is out of bounds.
    BadLength(usize),
    /// Fewer bytes than the length field says.
    Truncated,
    /// The peer does not speak the version offered; the newest it speaks.
    Version(u8),
    /// The server spoke another version than the one offered.
    VersionMismatch(u8),
    /// A message cannot be decrypted: it was altered, or made for another key.
    Decrypt,
    /// The hello cannot be read.
    Hello(HelloError),
    /// The server refused.
    Refused(Refusal),
    /// An older version is used than both ends speak.
    Downgrade,
    /// More than [`PLAINTEXT_MAX`] bytes to be sent.
    TooLong,
    /// The cryptographic library refused to work; not caused by input.
    Library,
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandshakeError::NotControl => f.write_str("not a control connection of this tunnel"),
            HandshakeError::BadLength(length) => {
                write!(f, "a control message claims {length} bytes, which is out of bounds")
            }
            HandshakeError::Truncated => f.write_str("a control message is cut off"),
            HandshakeError::Version(version) => write!(
                f,
                "protocol version not supported by the peer, which speaks {version} at most: \
                 update the older end"
            ),
            HandshakeError::VersionMismatch(version) => {
                write!(f, "the server answered in protocol version {version}, which was not asked")
            }
            HandshakeError::Decrypt => {
                f.write_str("a control message was altered, or the server's public key is wrong")
            }
            HandshakeError::Hello(error) => error.fmt(f),
            HandshakeError::Refused(reason) => reason.fmt(f),
            HandshakeError::Downgrade => Refusal::Downgrade.fmt(f),
            HandshakeError::TooLong => f.write_str("a control message is too long to be sent"),
            HandshakeError::Library => f.write_str("the Noise library failed"),
        }
    }
}

impl std::error::Error for HandshakeError {}

impl From<HelloError> for HandshakeError {
    fn from(error: HelloError) -> HandshakeError {
        HandshakeError::Hello(error)
    }
}

/// Bytes that follow the header of handshake message 1.
///
/// # Errors
/// [`HandshakeError::Version`] with this program's newest version: the server then sends
/// [`version_answer`] and closes.
pub fn request_length(header: &[u8; REQUEST_HEADER_LEN]) -> Result<usize, HandshakeError> {
    let [first, version, high, low] = *header;
    if first != FIRST_BYTE {
        return Err(HandshakeError::NotControl);
    }
    if !Versions::OURS.contains(version) {
        return Err(HandshakeError::Version(VERSION_MAX));
    }
    bounded(u16::from_be_bytes([high, low]), REQUEST_MIN, HANDSHAKE_MAX)
}

/// Bytes that follow the header of handshake message 2.
///
/// # Errors
/// [`HandshakeError::Version`] with the newest version the server speaks; nothing follows.
pub fn answer_length(header: &[u8; ANSWER_HEADER_LEN]) -> Result<usize, HandshakeError> {
    let [version, high, low] = *header;
    match u16::from_be_bytes([high, low]) {
        0 => Err(HandshakeError::Version(version)),
        length => bounded(length, ANSWER_MIN, HANDSHAKE_MAX),
    }
}

/// Bytes that follow the header of a message over the channel.
pub fn message_length(header: &[u8; MESSAGE_HEADER_LEN]) -> Result<usize, HandshakeError> {
    bounded(u16::from_be_bytes(*header), TAG_LEN, PLAINTEXT_MAX + TAG_LEN)
}

fn bounded(length: u16, min: usize, max: usize) -> Result<usize, HandshakeError> {
    let length = usize::from(length);
    if (min..=max).contains(&length) { Ok(length) } else { Err(HandshakeError::BadLength(length)) }
}

/// The answer to a version this program does not speak: its newest, and length 0.
pub fn version_answer() -> [u8; ANSWER_HEADER_LEN] {
    [VERSION_MAX, 0, 0]
}

/// Gives snow an ephemeral key drawn by the caller in place of a system random number generator.
struct Resolver {
    ephemeral: Zeroizing<[u8; KEY_LEN]>,
}

/// Random bytes that can be taken once.
struct Once(Option<Zeroizing<[u8; KEY_LEN]>>);

impl Random for Once {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        match self.0.take() {
            Some(bytes) if bytes.len() == dest.len() => {
                dest.copy_from_slice(bytes.as_slice());
                Ok(())
            }
            _ => Err(snow::Error::Rng),
        }
    }
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Once(Some(self.ephemeral.clone()))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    /// The pattern's, named here so that BLAKE2b (27 kB) is not linked.
    fn resolve_hash(&self, _: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(&HashChoice::Blake2s)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

/// A handshake state of either end: the initiator knows the responder's public key.
fn noise(
    local: &[u8; KEY_LEN],
    remote: Option<&[u8; KEY_LEN]>,
    version: u8,
    rng: Rng<'_>,
) -> Result<HandshakeState, HandshakeError> {
    let library = |_| HandshakeError::Library;
    let mut ephemeral = Zeroizing::new([0; KEY_LEN]);
    rng(ephemeral.as_mut_slice());
    let prologue = [PROLOGUE, &[FIRST_BYTE, version]].concat();
    let builder =
        Builder::with_resolver(PATTERN.parse().map_err(library)?, Box::new(Resolver { ephemeral }))
            .local_private_key(local)
            .map_err(library)?
            .prologue(&prologue)
            .map_err(library)?;
    match remote {
        Some(remote) => {
            builder.remote_public_key(remote).map_err(library)?.build_initiator().map_err(library)
        }
        None => builder.build_responder().map_err(library),
    }
}

/// Appends the next handshake message and fills in its length, the header's last two bytes.
fn write(
    state: &mut HandshakeState,
    header: &[u8],
    payload: &[u8],
) -> Result<Vec<u8>, HandshakeError> {
    let mut message = vec![0; HANDSHAKE_MAX];
    let written =
        state.write_message(payload, &mut message).map_err(|_| HandshakeError::Library)?;
    message.truncate(written);
    let length = u16::try_from(written).map_err(|_| HandshakeError::Library)?;
    Ok([header, &length.to_be_bytes(), &message].concat())
}

fn read(state: &mut HandshakeState, message: &[u8]) -> Result<Vec<u8>, HandshakeError> {
    let mut payload = vec![0; message.len()];
    let length = state.read_message(message, &mut payload).map_err(|_| HandshakeError::Decrypt)?;
    payload.truncate(length);
    Ok(payload)
}

/// The client's end of a handshake that awaits message 2.
#[derive(Debug)]
pub struct ClientHandshake {
    state: HandshakeState,
    version: u8,
}

impl ClientHandshake {
    /// Starts a handshake in the newest version of the hello; also returns the bytes to be sent.
    pub fn start(
        local: &[u8; KEY_LEN],
        server: &[u8; KEY_LEN],
        hello: &ClientHello,
        rng: Rng<'_>,
    ) -> Result<(ClientHandshake, Vec<u8>), HandshakeError> {
        ClientHandshake::start_version(local, server, hello, hello.versions.max, rng)
    }

    /// Starts a handshake in an older version, after [`HandshakeError::Version`].
    pub fn start_version(
        local: &[u8; KEY_LEN],
        server: &[u8; KEY_LEN],
        hello: &ClientHello,
        version: u8,
        rng: Rng<'_>,
    ) -> Result<(ClientHandshake, Vec<u8>), HandshakeError> {
        let mut state = noise(local, Some(server), version, rng)?;
        let bytes = write(&mut state, &[FIRST_BYTE, version], &hello.encode())?;
        Ok((ClientHandshake { state, version }, bytes))
    }

    /// Reads the server's answer, header included.
    ///
    /// # Errors
    /// [`HandshakeError::Refused`] when the server, known by its key, turned the client away.
    pub fn finish(mut self, answer: &[u8]) -> Result<(Channel, ServerHello), HandshakeError> {
        let hello = self.read_answer(answer)?;
        Ok((Channel::new(self.state)?, hello))
    }

    fn read_answer(&mut self, answer: &[u8]) -> Result<ServerHello, HandshakeError> {
        let (header, message) =
            take::<ANSWER_HEADER_LEN>(answer).ok_or(HandshakeError::Truncated)?;
        if message.len() != answer_length(&header)? {
            return Err(HandshakeError::Truncated);
        }
        let [version, ..] = header;
        if version != self.version {
            return Err(HandshakeError::VersionMismatch(version));
        }
        match ServerHello::decode(&read(&mut self.state, message)?)? {
            (_, Some(refusal)) => Err(HandshakeError::Refused(refusal)),
            (hello, None) => Ok(hello),
        }
    }
}

/// The server's end of a handshake that owes message 2.
#[derive(Debug)]
pub struct ServerHandshake {
    state: HandshakeState,
    version: u8,
    downgraded: bool,
}

impl ServerHandshake {
    /// Reads handshake message 1, header included; also returns the client's public key and hello.
    ///
    /// The key is the sender's unless the message is a replay, or the server's own private key is
    /// known to others: only the first message over the channel settles that.
    pub fn accept(
        server_private: &[u8; KEY_LEN],
        request: &[u8],
        rng: Rng<'_>,
    ) -> Result<(ServerHandshake, [u8; KEY_LEN], ClientHello), HandshakeError> {
        let (header, message) =
            take::<REQUEST_HEADER_LEN>(request).ok_or(HandshakeError::Truncated)?;
        if message.len() != request_length(&header)? {
            return Err(HandshakeError::Truncated);
        }
        let [_, version, ..] = header;
        let mut state = noise(server_private, None, version, rng)?;
        let hello = ClientHello::decode(&read(&mut state, message)?)?;
        let client = state
            .get_remote_static()
            .and_then(|key| key.try_into().ok())
            .ok_or(HandshakeError::Library)?;
        let downgraded = Versions::OURS.common(hello.versions) != Some(version);
        Ok((ServerHandshake { state, version, downgraded }, client, hello))
    }

    /// Whether an older version is used than both ends speak: answer with
    /// [`Refusal::Downgrade`], for [`ServerHandshake::reply`] does not go along.
    pub fn downgraded(&self) -> bool {
        self.downgraded
    }

    /// Accepts the client.
    ///
    /// # Errors
    /// [`HandshakeError::Downgrade`].
    pub fn reply(mut self, hello: &ServerHello) -> Result<(Vec<u8>, Channel), HandshakeError> {
        if self.downgraded {
            return Err(HandshakeError::Downgrade);
        }
        let bytes = write(&mut self.state, &[self.version], &hello.encode(None))?;
        Ok((bytes, Channel::new(self.state)?))
    }

    /// Turns the client away with a reason that only the holder of the client's key can read.
    pub fn refuse(
        mut self,
        hello: &ServerHello,
        reason: Refusal,
    ) -> Result<Vec<u8>, HandshakeError> {
        write(&mut self.state, &[self.version], &hello.encode(Some(reason)))
    }
}

/// The encrypted channel between two ends that finished a handshake.
///
/// Each message has a key of its own: whoever comes by the channel's keys cannot read what was said
/// before (Noise, section 11.3).
#[derive(Debug)]
pub struct Channel {
    state: TransportState,
}

impl Channel {
    fn new(state: HandshakeState) -> Result<Channel, HandshakeError> {
        let state = state.into_transport_mode().map_err(|_| HandshakeError::Library)?;
        Ok(Channel { state })
    }

    /// Encrypts a message of at most [`PLAINTEXT_MAX`] bytes; the result has its header.
    pub fn seal(&mut self, plaintext: &[u8]) -> Result<Vec<u8>, HandshakeError> {
        if plaintext.len() > PLAINTEXT_MAX {
            return Err(HandshakeError::TooLong);
        }
        let sealed_len = plaintext.len() + TAG_LEN;
        let length = u16::try_from(sealed_len).map_err(|_| HandshakeError::TooLong)?;
        let mut bytes = vec![0; MESSAGE_HEADER_LEN + sealed_len];
        let (header, sealed) = bytes.split_at_mut(MESSAGE_HEADER_LEN);
        header.copy_from_slice(&length.to_be_bytes());
        self.state.write_message(plaintext, sealed).map_err(|_| HandshakeError::Library)?;
        self.state.rekey_outgoing();
        Ok(bytes)
    }

    /// Decrypts a message without its header. After an error the connection is of no more use.
    pub fn open(&mut self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, HandshakeError> {
        if sealed.len() > PLAINTEXT_MAX + TAG_LEN {
            return Err(HandshakeError::BadLength(sealed.len()));
        }
        let mut plaintext = Zeroizing::new(vec![0; sealed.len()]);
        let length =
            self.state.read_message(sealed, &mut plaintext).map_err(|_| HandshakeError::Decrypt)?;
        self.state.rekey_incoming();
        plaintext.truncate(length);
        Ok(plaintext)
    }
}

#[cfg(test)]
mod tests;
