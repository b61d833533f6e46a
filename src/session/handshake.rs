//! The handshake on a control connection, and the sealed messages behind it.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;

use crate::config::agent::CipherChoice;
use crate::config::keys::{PrivateKey, PublicKey, Token};
use crate::os::{cpu, random};
use crate::tunnel::control::{ClientMessage, ServerMessage};
use crate::tunnel::handshake::{
    ANSWER_HEADER_LEN, Channel, ClientHandshake, HandshakeError, MESSAGE_HEADER_LEN, answer_length,
    message_length,
};
use crate::tunnel::hello::{ClientHello, ServerHello, Versions};
use crate::tunnel::{CipherOffer, CipherSet};

/// What a router says of itself.
pub fn hello(cipher: CipherChoice, token: Option<Token>) -> ClientHello {
    ClientHello {
        versions: Versions::OURS,
        software: concat!("mptcp-bond ", env!("CARGO_PKG_VERSION")).into(),
        ciphers: CipherOffer { ciphers: CipherSet::offered(cipher), prefers_aes: cpu::has_aes() },
        token,
    }
}

/// Runs the client's side of the handshake.
///
/// # Errors
/// The connection's, or `InvalidData` with what the server's answer means.
pub async fn shake_hands(
    tcp: &mut TcpStream,
    key: &PrivateKey,
    server: &PublicKey,
    hello: &ClientHello,
) -> io::Result<Channel> {
    let (mut channel, _) = introduce(tcp, key, server, hello).await?;
    let ready = channel.seal(&ClientMessage::Ready.encode()).map_err(invalid)?;
    tcp.write_all(&ready).await?;
    Ok(channel)
}

/// The handshake but for its last message, until which the server changes nothing.
///
/// # Errors
/// Those of [`shake_hands`].
pub async fn introduce(
    tcp: &mut TcpStream,
    key: &PrivateKey,
    server: &PublicKey,
    hello: &ClientHello,
) -> io::Result<(Channel, ServerHello)> {
    let mut random = random::source()?;
    let (handshake, first) =
        ClientHandshake::start(key.as_bytes(), &server.0, hello, &mut random).map_err(invalid)?;
    tcp.write_all(&first).await?;
    let mut header = [0; ANSWER_HEADER_LEN];
    tcp.read_exact(&mut header).await.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => io::Error::new(
            error.kind(),
            "the server hung up: its public key is another one, or something else listens there",
        ),
        _ => error,
    })?;
    let mut answer = header.to_vec();
    answer.resize(ANSWER_HEADER_LEN + answer_length(&header).map_err(invalid)?, 0);
    tcp.read_exact(answer.get_mut(ANSWER_HEADER_LEN..).unwrap_or_default()).await?;
    handshake.finish(&answer).map_err(invalid)
}

/// Reads one sealed message, without its header.
///
/// # Errors
/// The connection's, or `InvalidData` for one that is too long.
pub async fn read_sealed(reading: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Vec<u8>> {
    let mut header = [0; MESSAGE_HEADER_LEN];
    reading.read_exact(&mut header).await?;
    let mut sealed = vec![0; message_length(&header).map_err(invalid)?];
    reading.read_exact(&mut sealed).await?;
    Ok(sealed)
}

/// Sealed messages as they arrive.
pub struct Incoming {
    reading: OwnedReadHalf,
    received: Vec<u8>,
}

impl Incoming {
    /// Reads from a connection whose handshake is done.
    pub fn new(reading: OwnedReadHalf) -> Incoming {
        Incoming { reading, received: Vec::new() }
    }

    /// The next message, without its header. Cancel safe.
    ///
    /// # Errors
    /// The connection's, `UnexpectedEof` at its end, `InvalidData` for a message that is too long.
    pub async fn next(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some((header, rest)) = self.received.split_first_chunk() {
                let length = message_length(header).map_err(invalid)?;
                if let Some(message) = rest.get(..length) {
                    let message = message.to_vec();
                    self.received.drain(..MESSAGE_HEADER_LEN + length);
                    return Ok(message);
                }
            }
            if self.reading.read_buf(&mut self.received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Opens a server's message; `None` for one of a later version.
///
/// # Errors
/// `InvalidData` for one that is not authentic or cannot be read.
pub fn open(channel: &mut Channel, sealed: &[u8]) -> io::Result<Option<ServerMessage>> {
    let plain = channel.open(sealed).map_err(invalid)?;
    ServerMessage::decode(&plain).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// A failed handshake as an error of the connection.
pub fn invalid(error: HandshakeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
