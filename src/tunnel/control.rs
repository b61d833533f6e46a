//! The messages inside a control connection's channel: one to each message of the channel.
//!
//! A message is a type and a value. A type that is not known is passed over, and a value that is
//! longer than expected comes from a newer version: what follows the known part is ignored.

use std::fmt;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::config::keys::PublicKey;
pub use crate::config::server::SESSION_LIFETIME;

use super::forward::{
    Incoming, Port, Verdict, decode_ports, decode_verdicts, encode_ports, encode_verdicts,
};
use super::handshake::Refusal;
use super::session::{SessionId, StreamSecret};
use super::{Cipher, take};

const READY: u8 = 0x01;
const PING: u8 = 0x02;
const CLIENT_CLOSE: u8 = 0x03;
/// A flag of a session.
const CARRIES_DATAGRAMS: u8 = 1;
const CLIENT_FORWARDS: u8 = 0x04;
const DECLINE: u8 = 0x05;
const NEW_KEY: u8 = 0x08;
const SESSION: u8 = 0x81;
const PONG: u8 = 0x82;
const SERVER_CLOSE: u8 = 0x83;
const SERVER_FORWARDS: u8 = 0x84;
const INCOMING: u8 = 0x85;
const KEY_ACCEPTED: u8 = 0x88;
const NEW_SERVER_KEY: u8 = 0x89;

const HOST_MPTCP: u8 = 1;
const HOST_BUFFERS: u8 = 2;
const HOST_LACKS_IPV6: u8 = 4;
/// In the place of a number of subflows.
const NO_MPTCP: u8 = 255;

/// For how long a server waits for [`ClientMessage::Ready`] after its handshake message.
pub const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// An end that heard nothing for this long gives the control connection up.
pub const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a client pings.
pub const PING_INTERVAL: Duration = Duration::from_secs(15);

/// Why a control message cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlError {
    /// No type.
    Empty,
    /// The value of a message of this type is too short.
    TooShort(u8),
    /// A session with a cipher that is not known.
    UnknownCipher(u8),
    /// A message of this type with a key that is none.
    ZeroKey(u8),
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ControlError::Empty => f.write_str("empty control message"),
            ControlError::TooShort(kind) => {
                write!(f, "control message of type {kind:#04x} is too short")
            }
            ControlError::UnknownCipher(number) => {
                write!(f, "session with cipher {number}, which is not supported")
            }
            ControlError::ZeroKey(kind) => {
                write!(f, "control message of type {kind:#04x} has a key of zeros")
            }
        }
    }
}

impl std::error::Error for ControlError {}

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientMessage {
    /// The handshake is complete at the client: it is no replay.
    Ready,
    /// Asks for a pong.
    Ping {
        /// Comes back in the pong.
        nonce: u64,
    },
    /// The client leaves; its streams live on.
    Close,
    /// In the place of [`ClientMessage::Ready`]: another key is to hold for the client, too, and alone
    /// from its first use on. Answered by [`ServerMessage::KeyAccepted`].
    NewKey {
        /// The other key.
        key: PublicKey,
    },
    /// The ports of the server that shall lead to the client's LAN, instead of those named before.
    Forwards(Vec<Port>),
    /// A connection that waits cannot be taken: its target does not accept.
    Decline {
        /// The connection's number.
        id: u64,
    },
}

/// What a server says of its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostState {
    /// Its clock, in milliseconds since 1970 (UTC).
    pub time_unix_ms: u64,
    /// Additional subflows that a connection may have; `None` without MPTCP.
    pub subflows: Option<u8>,
    /// Whether `net.mptcp.enabled` is set.
    pub mptcp: bool,
    /// Whether TCP's largest buffers are as large as a server's should be.
    pub buffers: bool,
    /// Whether it has no way to IPv6 targets; older versions do not say.
    pub lacks_ipv6: bool,
}

impl HostState {
    fn encode(self) -> Vec<u8> {
        let flags = [
            (self.mptcp, HOST_MPTCP),
            (self.buffers, HOST_BUFFERS),
            (self.lacks_ipv6, HOST_LACKS_IPV6),
        ];
        let flags = flags.iter().filter(|(set, _)| *set).fold(0, |all, (_, flag)| all | flag);
        let subflows = self.subflows.unwrap_or(NO_MPTCP);
        [self.time_unix_ms.to_be_bytes().as_slice(), &[subflows, flags]].concat()
    }

    fn decode(value: &[u8]) -> Option<HostState> {
        let (time, rest) = take::<8>(value)?;
        let ([subflows, flags], _) = take::<2>(rest)?;
        Some(HostState {
            time_unix_ms: u64::from_be_bytes(time),
            subflows: Some(subflows).filter(|&subflows| subflows != NO_MPTCP),
            mptcp: flags & HOST_MPTCP != 0,
            buffers: flags & HOST_BUFFERS != 0,
            lacks_ipv6: flags & HOST_LACKS_IPV6 != 0,
        })
    }
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerMessage {
    /// A session to be used for new streams from now on.
    Session {
        /// Its number.
        id: SessionId,
        /// Its secret.
        secret: StreamSecret,
        /// The cipher of its streams.
        cipher: Cipher,
        /// The server replaces it before this has passed, in whole seconds.
        lifetime: Duration,
        /// Whether it carries datagrams; older versions do not.
        datagrams: bool,
    },
    /// Answers a ping.
    Pong {
        /// The ping's.
        nonce: u64,
        /// How the server's host does; older versions do not say.
        host: Option<HostState>,
    },
    /// The client's other key holds, and has been written down.
    KeyAccepted,
    /// The server has another key, to be used from now on; the one in use holds for a while.
    NewServerKey {
        /// The other key.
        key: PublicKey,
    },
    /// The server ends the control connection.
    Close {
        /// Why.
        reason: Refusal,
    },
    /// What became of the ports asked for; again whenever that changes.
    Forwards(Vec<(Port, Verdict)>),
    /// A connection to one of them waits to be accepted.
    Incoming(Incoming),
}

fn number(kind: u8, value: &[u8]) -> Result<u64, ControlError> {
    let (bytes, _) = take::<8>(value).ok_or(ControlError::TooShort(kind))?;
    Ok(u64::from_be_bytes(bytes))
}

fn public_key(kind: u8, value: &[u8]) -> Result<PublicKey, ControlError> {
    let (key, _) = take::<32>(value).ok_or(ControlError::TooShort(kind))?;
    // Of low order: every exchange with it gives the same secret.
    if key == [0; 32] { Err(ControlError::ZeroKey(kind)) } else { Ok(PublicKey(key)) }
}

fn with_key(kind: u8, key: &PublicKey) -> Vec<u8> {
    [&[kind], key.0.as_slice()].concat()
}

fn with_number(kind: u8, number: u64) -> Vec<u8> {
    [&[kind], number.to_be_bytes().as_slice()].concat()
}

impl ClientMessage {
    /// The plaintext to be sealed.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            ClientMessage::Ready => vec![READY],
            ClientMessage::Ping { nonce } => with_number(PING, *nonce),
            ClientMessage::Close => vec![CLIENT_CLOSE],
            ClientMessage::NewKey { key } => with_key(NEW_KEY, key),
            ClientMessage::Forwards(ports) => encode_ports(CLIENT_FORWARDS, ports),
            ClientMessage::Decline { id } => with_number(DECLINE, *id),
        }
    }

    /// Reads a plaintext; `None` is a type this version does not know.
    pub fn decode(plaintext: &[u8]) -> Result<Option<ClientMessage>, ControlError> {
        let ([kind], value) = take::<1>(plaintext).ok_or(ControlError::Empty)?;
        Ok(Some(match kind {
            READY => ClientMessage::Ready,
            PING => ClientMessage::Ping { nonce: number(kind, value)? },
            CLIENT_CLOSE => ClientMessage::Close,
            NEW_KEY => ClientMessage::NewKey { key: public_key(kind, value)? },
            CLIENT_FORWARDS => ClientMessage::Forwards(decode_ports(value)),
            DECLINE => ClientMessage::Decline { id: number(kind, value)? },
            _ => return Ok(None),
        }))
    }
}

impl ServerMessage {
    /// The plaintext to be sealed.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(match self {
            ServerMessage::Session { id, secret, cipher, lifetime, datagrams } => {
                let lifetime = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
                let flags = datagrams.then_some(CARRIES_DATAGRAMS);
                [
                    &[SESSION],
                    id.0.to_be_bytes().as_slice(),
                    secret.as_bytes(),
                    &[cipher.to_wire()],
                    lifetime.to_be_bytes().as_slice(),
                    flags.as_slice(),
                ]
                .concat()
            }
            ServerMessage::Pong { nonce, host } => {
                let host = host.map_or_else(Vec::new, HostState::encode);
                [with_number(PONG, *nonce), host].concat()
            }
            ServerMessage::KeyAccepted => vec![KEY_ACCEPTED],
            ServerMessage::NewServerKey { key } => with_key(NEW_SERVER_KEY, key),
            ServerMessage::Close { reason } => vec![SERVER_CLOSE, reason.to_wire()],
            ServerMessage::Forwards(verdicts) => encode_verdicts(SERVER_FORWARDS, verdicts),
            ServerMessage::Incoming(incoming) => incoming.encode(INCOMING),
        })
    }

    /// Reads a plaintext; `None` is a type this version does not know.
    pub fn decode(plaintext: &[u8]) -> Result<Option<ServerMessage>, ControlError> {
        let ([kind], value) = take::<1>(plaintext).ok_or(ControlError::Empty)?;
        let short = ControlError::TooShort(kind);
        Ok(Some(match kind {
            SESSION => {
                let id = SessionId(number(kind, value)?);
                let (_, rest) = take::<8>(value).ok_or(short)?;
                let (secret, rest) = take::<32>(rest).ok_or(short)?;
                let ([cipher], rest) = take::<1>(rest).ok_or(short)?;
                let (lifetime, rest) = take::<4>(rest).ok_or(short)?;
                ServerMessage::Session {
                    id,
                    secret: StreamSecret::from_bytes(secret),
                    cipher: Cipher::from_wire(cipher).ok_or(ControlError::UnknownCipher(cipher))?,
                    lifetime: Duration::from_secs(u32::from_be_bytes(lifetime).into()),
                    datagrams: rest.first().is_some_and(|flags| flags & CARRIES_DATAGRAMS != 0),
                }
            }
            PONG => {
                let (nonce, rest) = take::<8>(value).ok_or(short)?;
                let (nonce, host) = (u64::from_be_bytes(nonce), HostState::decode(rest));
                ServerMessage::Pong { nonce, host }
            }
            KEY_ACCEPTED => ServerMessage::KeyAccepted,
            NEW_SERVER_KEY => ServerMessage::NewServerKey { key: public_key(kind, value)? },
            SERVER_CLOSE => {
                let ([reason], _) = take::<1>(value).ok_or(short)?;
                ServerMessage::Close { reason: Refusal::from_wire(reason) }
            }
            SERVER_FORWARDS => ServerMessage::Forwards(decode_verdicts(value)),
            INCOMING => ServerMessage::Incoming(Incoming::decode(value).ok_or(short)?),
            _ => return Ok(None),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::testing::{Xorshift, mutations};

    fn client_messages() -> [ClientMessage; 6] {
        [
            ClientMessage::Ready,
            ClientMessage::Ping { nonce: u64::MAX - 1 },
            ClientMessage::Close,
            ClientMessage::NewKey { key: PublicKey([5; 32]) },
            ClientMessage::Forwards(vec![Port::tcp(2222), Port { protocol: 17, number: 53 }]),
            ClientMessage::Decline { id: 7 },
        ]
    }

    const HOST: HostState = HostState {
        time_unix_ms: 1_700_000_000_123,
        subflows: Some(8),
        mptcp: true,
        buffers: false,
        lacks_ipv6: true,
    };

    fn server_messages() -> [ServerMessage; 7] {
        [
            ServerMessage::Session {
                id: SessionId(1 << 63),
                secret: StreamSecret::from_bytes([4; 32]),
                cipher: Cipher::ChaCha20Poly1305,
                lifetime: SESSION_LIFETIME,
                datagrams: true,
            },
            ServerMessage::Pong { nonce: 5, host: Some(HOST) },
            ServerMessage::KeyAccepted,
            ServerMessage::NewServerKey { key: PublicKey([6; 32]) },
            ServerMessage::Close { reason: Refusal::Revoked },
            ServerMessage::Incoming(Incoming {
                id: 1 << 40,
                peer: "[2001:db8::1]:40000".parse().unwrap(),
                local: "192.0.2.1:2222".parse().unwrap(),
            }),
            ServerMessage::Forwards(vec![
                (Port::tcp(2222), Verdict::Granted),
                (Port::tcp(80), Verdict::Privileged),
            ]),
        ]
    }

    #[test]
    fn round_trips() {
        for message in client_messages() {
            assert_eq!(ClientMessage::decode(&message.encode()), Ok(Some(message)));
        }
        for message in server_messages() {
            assert_eq!(ServerMessage::decode(&message.encode()), Ok(Some(message)));
        }
    }

    #[test]
    fn newer_messages_are_understood_as_far_as_they_are_known() {
        for message in server_messages() {
            let longer = [message.encode().as_slice(), &[1, 2, 3]].concat();
            assert_eq!(ServerMessage::decode(&longer), Ok(Some(message)));
        }
        assert_eq!(ServerMessage::decode(&[0xf0, 1, 2]), Ok(None));
        assert_eq!(ClientMessage::decode(&[0xf0]), Ok(None));
        assert_eq!(
            ServerMessage::decode(&[SERVER_CLOSE, 200]),
            Ok(Some(ServerMessage::Close { reason: Refusal::Other }))
        );
    }

    #[test]
    fn truncated_messages_are_refused() {
        for message in server_messages() {
            let bytes = message.encode();
            for length in 0..bytes.len() {
                match ServerMessage::decode(&bytes[..length]) {
                    // An older server's pong ends after its number.
                    Ok(Some(ServerMessage::Pong { nonce: 5, host: None })) => assert!(length > 8),
                    // And its session with the lifetime.
                    Ok(Some(ServerMessage::Session { datagrams: false, .. })) => {
                        assert_eq!(length, bytes.len() - 1);
                    }
                    // A list is as long as it is.
                    Ok(Some(ServerMessage::Forwards(list))) => {
                        assert_eq!(list.len(), (length - 1) / 4);
                    }
                    result => assert!(result.is_err(), "{length}"),
                }
            }
        }
        for kind in [PING, NEW_KEY] {
            assert_eq!(ClientMessage::decode(&[kind, 1]), Err(ControlError::TooShort(kind)));
        }
        let zeros = with_key(NEW_SERVER_KEY, &PublicKey([0; 32]));
        assert_eq!(ServerMessage::decode(&zeros), Err(ControlError::ZeroKey(NEW_SERVER_KEY)));
        let mut unknown_cipher = server_messages()[0].encode().to_vec();
        unknown_cipher[41] = 9;
        assert_eq!(ServerMessage::decode(&unknown_cipher), Err(ControlError::UnknownCipher(9)));
    }

    #[test]
    fn hosts_without_mptcp_say_so() {
        let host = HostState { subflows: None, mptcp: false, ..HOST };
        assert_eq!(HostState::decode(&host.encode()), Some(host));
        let old = ServerMessage::Pong { nonce: 7, host: None };
        assert_eq!(old.encode().len(), 9);
        assert_eq!(ServerMessage::decode(&old.encode()), Ok(Some(old)));
    }

    #[test]
    fn mutated_messages_do_not_panic() {
        let mut random = Xorshift::new(6);
        for message in server_messages() {
            mutations(&mut random, &message.encode(), 100_000, |bytes| {
                if let Ok(Some(message)) = ServerMessage::decode(bytes) {
                    assert_eq!(ServerMessage::decode(&message.encode()), Ok(Some(message)));
                }
                if let Ok(Some(message)) = ClientMessage::decode(bytes) {
                    assert_eq!(ClientMessage::decode(&message.encode()), Ok(Some(message)));
                }
            });
        }
        for message in client_messages() {
            mutations(&mut random, &message.encode(), 10_000, |bytes| {
                if let Ok(Some(message)) = ClientMessage::decode(bytes) {
                    assert_eq!(ClientMessage::decode(&message.encode()), Ok(Some(message)));
                }
            });
        }
    }
}
