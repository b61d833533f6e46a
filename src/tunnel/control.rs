//! The messages on a control connection, inside the Noise channel: a sequence of
//! `type u8 | length be16 | value` fields, of which unknown ones are passed over.

use zeroize::Zeroize;

use super::session::{Keys, StreamSecret};
use super::{Cipher, Reader, put_tlv};

/// The longest message in bytes.
pub const LONGEST: usize = 4096;
/// The longest text in bytes.
const LONGEST_TEXT: usize = 256;

const READY: u8 = 1;
const SESSION: u8 = 2;
const PING: u8 = 3;
const PONG: u8 = 4;
const CLOSE: u8 = 5;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Client: the handshake is complete. It confirms the key; the server does nothing before.
    Ready,
    /// Server: a session in place of any given before on this connection.
    Session {
        /// Its id and secret.
        keys: Keys,
        /// The cipher of its streams.
        cipher: Cipher,
    },
    /// Either: asks for a pong.
    Ping(u64),
    /// Either: answers the ping with this number.
    Pong(u64),
    /// Either: ends the connection, with a reason in words.
    Close(String),
}

/// Encodes a message.
pub fn encode(message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    match message {
        Message::Ready => put_tlv(&mut out, READY, &[]),
        Message::Session { keys, cipher } => {
            let mut value = keys.id.to_be_bytes().to_vec();
            value.push(cipher.id());
            value.extend(keys.secret.bytes());
            put_tlv(&mut out, SESSION, &value);
            value.zeroize();
        }
        Message::Ping(number) => put_tlv(&mut out, PING, &number.to_be_bytes()),
        Message::Pong(number) => put_tlv(&mut out, PONG, &number.to_be_bytes()),
        Message::Close(reason) => {
            let text: Vec<u8> = reason.bytes().take(LONGEST_TEXT).collect();
            put_tlv(&mut out, CLOSE, &text);
        }
    }
    out
}

/// Decodes the messages in one transport message; `None` when it is malformed.
pub fn decode(bytes: &[u8]) -> Option<Vec<Message>> {
    let mut reader = Reader(bytes);
    let mut messages = Vec::new();
    while !reader.is_empty() {
        let (kind, value) = reader.tlv()?;
        let mut value = Reader(value);
        messages.push(match kind {
            READY => Message::Ready,
            SESSION => {
                let id = value.u64()?;
                let cipher = Cipher::from_id(value.u8()?)?;
                let keys = Keys { id, secret: StreamSecret::new(value.array()?) };
                Message::Session { keys, cipher }
            }
            PING => Message::Ping(value.u64()?),
            PONG => Message::Pong(value.u64()?),
            CLOSE => Message::Close(text(value.0)),
            _ => continue,
        });
    }
    Some(messages)
}

/// A peer's text, bounded.
pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.get(..LONGEST_TEXT).unwrap_or(bytes)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::mutation::mutate;

    fn all() -> Vec<Message> {
        let keys = Keys { id: 77, secret: StreamSecret::new([4; 32]) };
        vec![
            Message::Ready,
            Message::Session { keys, cipher: Cipher::Aes128Gcm },
            Message::Ping(1),
            Message::Pong(u64::MAX),
            Message::Close("bye".into()),
        ]
    }

    #[test]
    fn messages_survive_the_wire_and_unknown_ones_are_passed_over() {
        let mut bytes = Vec::new();
        for message in all() {
            put_tlv(&mut bytes, 99, b"from a later version");
            bytes.extend(encode(&message));
        }
        assert_eq!(decode(&bytes), Some(all()));
    }

    #[test]
    fn mutated_messages_do_no_harm() {
        let seeds: Vec<Vec<u8>> = all().iter().map(encode).collect();
        mutate(&seeds, |input| {
            if let Some(messages) = decode(input) {
                let again: Vec<u8> = messages.iter().flat_map(encode).collect();
                assert_eq!(decode(&again).map(|again| again.len()), Some(messages.len()));
            }
        });
    }
}
