//! The handshake of a control connection: `Noise_IK_25519_ChaChaPoly_BLAKE2s`.
//!
//! Client: `'C' | version u8 | length be16 | Noise message 1`. Server: `version u8 | length be16 |
//! Noise message 2`, or `version u8 | 0 be16` when it does not speak the client's version. The first
//! two bytes are part of the prologue, so that nobody in between can change the version. Then each
//! end sends `length be16 | ciphertext`.
//!
//! Message 1 may be a replay: a server does nothing lasting before the client's first transport
//! message, which only the holder of the ephemeral key can make.

use std::fmt;
use std::io;

use snow::{Builder, HandshakeState, TransportState};
use zeroize::Zeroizing;

use super::control::{self, Message};
use super::{CONTROL, OLDEST_VERSION, Reader, VERSION, put_tlv};
use crate::config::agent::CipherChoice;
use crate::config::keys::Token;

const PATTERN: &str = "Noise_IK_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &[u8] = b"mptcp-bond";
/// The longest handshake message taken, in bytes.
pub const LONGEST: usize = 1024;
/// Bytes of a Noise tag.
const TAG: usize = 16;

const CIPHER: u8 = 1;
const PREFERS_AES: u8 = 2;
const SOFTWARE: u8 = 3;
const TOKEN: u8 = 4;
const REFUSAL: u8 = 5;

/// Why a handshake failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandshakeError {
    /// The server does not speak any version of ours.
    Version(u8),
    /// The other end has another key than expected, or somebody changed the message.
    NotAuthentic,
    /// The message breaks the format.
    Malformed,
    /// The server refuses the client, with a reason in words.
    Refused(String),
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandshakeError::Version(version) => write!(
                f,
                "the server speaks protocol version {version}, this side {OLDEST_VERSION} to \
                 {VERSION}: upgrade the older of the two"
            ),
            HandshakeError::NotAuthentic => f.write_str(
                "the handshake is not authentic: the server's public key is another one; pair again",
            ),
            HandshakeError::Malformed => f.write_str("the handshake is malformed"),
            HandshakeError::Refused(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for HandshakeError {}

impl From<HandshakeError> for io::Error {
    fn from(error: HandshakeError) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// What a client says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The cipher it wants.
    pub cipher: CipherChoice,
    /// Whether its CPU has AES instructions.
    pub prefers_aes: bool,
    /// Its software's version.
    pub software: String,
    /// A token that enrols its key.
    pub token: Option<Token>,
}

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerHello {
    /// Its software's version.
    pub software: String,
}

fn choice_id(choice: CipherChoice) -> u8 {
    match choice {
        CipherChoice::Auto => 0,
        CipherChoice::Aes128Gcm => 1,
        CipherChoice::ChaCha20Poly1305 => 2,
        CipherChoice::None => 3,
    }
}

impl ClientHello {
    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut out = Vec::new();
        put_tlv(&mut out, CIPHER, &[choice_id(self.cipher)]);
        put_tlv(&mut out, PREFERS_AES, &[u8::from(self.prefers_aes)]);
        put_tlv(&mut out, SOFTWARE, self.software.as_bytes());
        if let Some(token) = &self.token {
            put_tlv(&mut out, TOKEN, token.as_bytes());
        }
        Zeroizing::new(out)
    }

    fn decode(bytes: &[u8]) -> Option<ClientHello> {
        let mut hello = ClientHello {
            cipher: CipherChoice::Auto,
            prefers_aes: false,
            software: String::new(),
            token: None,
        };
        let mut reader = Reader(bytes);
        while !reader.is_empty() {
            let (kind, value) = reader.tlv()?;
            let mut value = Reader(value);
            match kind {
                CIPHER => {
                    let id = value.u8()?;
                    // A choice of a later version is left to the server.
                    hello.cipher = [
                        CipherChoice::Aes128Gcm,
                        CipherChoice::ChaCha20Poly1305,
                        CipherChoice::None,
                    ]
                    .into_iter()
                    .find(|choice| choice_id(*choice) == id)
                    .unwrap_or(CipherChoice::Auto);
                }
                PREFERS_AES => hello.prefers_aes = value.u8()? != 0,
                SOFTWARE => hello.software = control::text(value.0),
                TOKEN => hello.token = Some(Token::from_bytes(value.array()?)),
                _ => {}
            }
        }
        Some(hello)
    }
}

/// The encrypted channel of a control connection.
pub struct Channel(TransportState);

impl Channel {
    /// Seals a message, with its length in front.
    ///
    /// # Errors
    /// When the channel is used up (2^64 messages).
    pub fn seal(&mut self, message: &Message) -> Result<Vec<u8>, HandshakeError> {
        let plain = Zeroizing::new(control::encode(message));
        let mut out = vec![0; 2 + plain.len() + TAG];
        let sealed = out.get_mut(2..).unwrap_or_default();
        let length = self.0.write_message(&plain, sealed).map_err(|_| HandshakeError::Malformed)?;
        let length = u16::try_from(length).map_err(|_| HandshakeError::Malformed)?;
        out.splice(..2, length.to_be_bytes());
        Ok(out)
    }

    /// Opens what came after a length.
    ///
    /// # Errors
    /// When it is not authentic or malformed.
    pub fn open(&mut self, sealed: &[u8]) -> Result<Vec<Message>, HandshakeError> {
        let mut plain = Zeroizing::new(vec![0; sealed.len()]);
        let length =
            self.0.read_message(sealed, &mut plain).map_err(|_| HandshakeError::NotAuthentic)?;
        let plain = plain.get(..length).unwrap_or_default();
        control::decode(plain).ok_or(HandshakeError::Malformed)
    }
}

/// The length of a transport message from the two bytes ahead of it; `None` when it is too long.
pub fn transport_length(header: [u8; 2]) -> Option<usize> {
    let length = usize::from(u16::from_be_bytes(header));
    (length <= control::LONGEST + TAG).then_some(length)
}

fn prologue(version: u8) -> Vec<u8> {
    [PROLOGUE, &[CONTROL, version]].concat()
}

fn framed(front: &[u8], message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    [front, &length.to_be_bytes(), message].concat()
}

/// A client between its message and the server's.
pub struct ClientHandshake(HandshakeState);

impl ClientHandshake {
    /// Begins a handshake; the bytes are to be sent.
    ///
    /// # Errors
    /// Only when a key is not one of X25519's.
    pub fn start(
        local: &[u8; 32],
        server: &[u8; 32],
        hello: &ClientHello,
    ) -> Result<(ClientHandshake, Vec<u8>), HandshakeError> {
        let build = || {
            let pattern = PATTERN.parse()?;
            let prologue = prologue(VERSION);
            let mut state = Builder::new(pattern)
                .prologue(&prologue)?
                .local_private_key(local)?
                .remote_public_key(server)?
                .build_initiator()?;
            let mut message = vec![0; LONGEST];
            let length = state.write_message(&hello.encode(), &mut message)?;
            message.truncate(length);
            Ok((state, message))
        };
        let (state, message) = build().map_err(|_: snow::Error| HandshakeError::Malformed)?;
        Ok((ClientHandshake(state), framed(&[CONTROL, VERSION], &message)))
    }

    /// Takes the server's version and message.
    ///
    /// # Errors
    /// When the server refuses, or is not the one whose key is known.
    pub fn finish(
        mut self,
        version: u8,
        message: &[u8],
    ) -> Result<(Channel, ServerHello), HandshakeError> {
        if message.is_empty() || version != VERSION {
            return Err(HandshakeError::Version(version));
        }
        let mut payload = vec![0; message.len()];
        let length = self
            .0
            .read_message(message, &mut payload)
            .map_err(|_| HandshakeError::NotAuthentic)?;
        let mut software = String::new();
        let mut reader = Reader(payload.get(..length).unwrap_or_default());
        while !reader.is_empty() {
            match reader.tlv().ok_or(HandshakeError::Malformed)? {
                (REFUSAL, reason) => return Err(HandshakeError::Refused(control::text(reason))),
                (SOFTWARE, value) => software = control::text(value),
                _ => {}
            }
        }
        let channel = self.0.into_transport_mode().map_err(|_| HandshakeError::Malformed)?;
        Ok((Channel(channel), ServerHello { software }))
    }
}

/// A server that has read a client's message.
pub struct ServerHandshake {
    state: HandshakeState,
    version: u8,
    /// The client's public key; it made the message, or one that was replayed.
    pub client: [u8; 32],
    /// What the client says of itself.
    pub hello: ClientHello,
}

/// What a server answers to a version that it does not speak.
pub fn version_refusal() -> Vec<u8> {
    framed(&[VERSION], &[])
}

impl ServerHandshake {
    /// Reads a client's message of the version it gave.
    ///
    /// # Errors
    /// When the version is not spoken (answer [`version_refusal`]), or the message is not authentic.
    pub fn accept(
        private: &[u8; 32],
        version: u8,
        message: &[u8],
    ) -> Result<ServerHandshake, HandshakeError> {
        if !(OLDEST_VERSION..=VERSION).contains(&version) {
            return Err(HandshakeError::Version(version));
        }
        let read = || {
            let prologue = prologue(version);
            let mut state = Builder::new(PATTERN.parse()?)
                .prologue(&prologue)?
                .local_private_key(private)?
                .build_responder()?;
            let mut payload = Zeroizing::new(vec![0; message.len()]);
            let length = state.read_message(message, &mut payload)?;
            payload.truncate(length);
            Ok((state, payload))
        };
        let (state, payload) = read().map_err(|_: snow::Error| HandshakeError::NotAuthentic)?;
        let client = state.get_remote_static().and_then(|key| key.try_into().ok());
        let client = client.ok_or(HandshakeError::Malformed)?;
        let hello = ClientHello::decode(&payload).ok_or(HandshakeError::Malformed)?;
        Ok(ServerHandshake { state, version, client, hello })
    }

    fn write(&mut self, payload: &[u8]) -> Result<Vec<u8>, HandshakeError> {
        let mut message = vec![0; LONGEST];
        let length = self
            .state
            .write_message(payload, &mut message)
            .map_err(|_| HandshakeError::Malformed)?;
        message.truncate(length);
        Ok(framed(&[self.version], &message))
    }

    /// Completes the handshake; the bytes are to be sent.
    ///
    /// # Errors
    /// Never in practice.
    pub fn reply(mut self, hello: &ServerHello) -> Result<(Vec<u8>, Channel), HandshakeError> {
        let mut payload = Vec::new();
        put_tlv(&mut payload, SOFTWARE, hello.software.as_bytes());
        let answer = self.write(&payload)?;
        let channel = self.state.into_transport_mode().map_err(|_| HandshakeError::Malformed)?;
        Ok((answer, Channel(channel)))
    }

    /// Refuses the client, which learns the reason; nobody else does.
    ///
    /// # Errors
    /// Never in practice.
    pub fn refuse(mut self, reason: &str) -> Result<Vec<u8>, HandshakeError> {
        let mut payload = Vec::new();
        put_tlv(&mut payload, REFUSAL, reason.as_bytes());
        self.write(&payload)
    }
}

#[cfg(test)]
mod tests;
