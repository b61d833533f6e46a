//! A client of the tunnel that says what it likes, made of the tunnel's own codecs.

#![allow(dead_code, reason = "each program uses a part of it")]

pub mod crowd;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use mptcp_bond::config::agent::CipherChoice;
use mptcp_bond::config::keys::{PrivateKey, PublicKey, Token};
use mptcp_bond::config::pairing::PairingUri;
use mptcp_bond::tunnel::control::{ClientMessage, ServerMessage};
use mptcp_bond::tunnel::convert::{self, Message};
use mptcp_bond::tunnel::handshake::{
    ANSWER_HEADER_LEN, Channel, ClientHandshake, HandshakeError, MESSAGE_HEADER_LEN, answer_length,
    message_length,
};
use mptcp_bond::tunnel::hello::{ClientHello, Refusal, Versions};
use mptcp_bond::tunnel::record::{HEADER_LEN, Kind, OVERHEAD, Opened, Opener, Sealer};
use mptcp_bond::tunnel::session::{ClientSession, SessionId, SessionKeys, StreamSecret};
use mptcp_bond::tunnel::stream::{PREAMBLE_LEN, Preamble};
use mptcp_bond::tunnel::{Cipher, CipherOffer, CipherSet};
use socket2::{Domain, Socket, Type};

use crate::lab::{Namespace, SERVER_V4};

/// Where the server listens.
pub const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(SERVER_V4), 443);
/// How long the server may take for an answer, beside its own time limits.
const LIMIT: Duration = Duration::from_secs(8);

/// Bytes that look random, the same for the same seed.
pub fn random_bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    crate::lab::traffic::Pattern { seed }.fill(0, &mut bytes);
    bytes
}

/// Connects to the server from one of this namespace's addresses.
pub fn connect_from(source: Ipv4Addr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(source.into(), 0).into())?;
    socket.connect_timeout(&SERVER.into(), LIMIT)?;
    Ok(socket.into())
}

/// What the server sends until it closes or resets the connection; panics when it does neither.
#[track_caller]
pub fn read_to_end(mut stream: TcpStream) -> Vec<u8> {
    let mut received = Vec::new();
    match stream.read_to_end(&mut received) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the server left the connection open: {error}"),
    }
    received
}

/// Asserts that the server closes the connection without a byte.
#[track_caller]
pub fn refused_silently(stream: TcpStream) {
    assert_eq!(read_to_end(stream), Vec::<u8>::new());
}

/// Whether the server has closed or reset the connection.
pub fn is_closed(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("set non-blocking");
    let read = (&*stream).read(&mut [0; 1024]);
    !matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Somebody with a key and an invitation, who means no good.
pub struct Attacker {
    pub namespace: Namespace,
    pub key: PrivateKey,
    pub token: Token,
    pub server: PublicKey,
}

impl Attacker {
    pub fn new(namespace: &Namespace, invitation: &str) -> Attacker {
        let uri: PairingUri = PairingUri::parse(invitation).expect("a pairing URI");
        let key = PrivateKey::from_bytes([0x77; 32]);
        Attacker { namespace: namespace.clone(), key, token: uri.token, server: uri.key }
    }

    /// A connection on which these bytes were sent.
    #[track_caller]
    pub fn send(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = self.namespace.enter(|| TcpStream::connect(SERVER)).expect("connect");
        stream.set_read_timeout(Some(LIMIT)).expect("set a time-out");
        // The server may have closed the connection already.
        let _ = stream.write_all(bytes);
        stream
    }

    fn start(
        &self,
        key: &PrivateKey,
        server: &PublicKey,
        token: Option<Token>,
    ) -> (ClientHandshake, Vec<u8>) {
        let hello = ClientHello {
            versions: Versions::OURS,
            software: "attacker".to_owned(),
            ciphers: CipherOffer {
                ciphers: CipherSet::offered(CipherChoice::Auto),
                prefers_aes: false,
            },
            token,
        };
        let mut random = mptcp_bond::os::random::source().expect("random numbers");
        ClientHandshake::start(key.as_bytes(), &server.0, &hello, &mut random).expect("message 1")
    }

    pub fn first_message(&self, key: &PrivateKey, token: Option<Token>) -> Vec<u8> {
        self.start(key, &self.server, token).1
    }

    pub fn first_message_to(&self, key: &PrivateKey, server: &PublicKey) -> Vec<u8> {
        self.start(key, server, None).1
    }

    /// The preamble of a session that nobody was given.
    pub fn forged_preamble(&self) -> [u8; PREAMBLE_LEN] {
        let keys = SessionKeys::new(SessionId(1), &StreamSecret::from_bytes([1; 32]));
        let cipher = Cipher::ChaCha20Poly1305;
        Preamble { cipher, flags: 0, session: keys.id(), counter: 0 }.encode(&keys)
    }

    /// Runs the handshake up to message 2.
    pub fn handshake(
        &self,
        key: &PrivateKey,
        token: Option<Token>,
    ) -> Result<(TcpStream, Channel, Vec<u8>), HandshakeError> {
        let (handshake, message_1) = self.start(key, &self.server, token);
        let mut stream = self.send(&message_1);
        let mut answer = vec![0; ANSWER_HEADER_LEN];
        let cut_off = |_| HandshakeError::Truncated;
        stream.read_exact(&mut answer).map_err(cut_off)?;
        let header = *answer.first_chunk().expect("three bytes");
        answer.resize(ANSWER_HEADER_LEN + answer_length(&header)?, 0);
        stream.read_exact(&mut answer[ANSWER_HEADER_LEN..]).map_err(cut_off)?;
        let (channel, _) = handshake.finish(&answer)?;
        Ok((stream, channel, message_1))
    }

    /// A control connection with a session, as an honest client has.
    pub fn connect_control(&self, token: Option<Token>) -> Result<Control, HandshakeError> {
        let (mut stream, mut channel, message_1) = self.handshake(&self.key, token)?;
        let ready = channel.seal(&ClientMessage::Ready.encode())?;
        stream.write_all(&ready).map_err(|_| HandshakeError::Truncated)?;
        let mut control = Control { stream, channel, message_1, session: None };
        while control.session.is_none() {
            control.receive()?;
        }
        Ok(control)
    }
}

impl Attacker {
    /// A stream that was asked for, and may not be connected to its target yet.
    #[track_caller]
    pub fn request_stream(&self, session: &mut ClientSession, target: SocketAddr) -> Stream {
        let (preamble, keys) = session.open_stream();
        let (mut sealer, opener) = keys.client();
        let request = Message::connect(target).encode().expect("a request");
        let request = sealer.seal_new(Kind::Request, &request).expect("a record");
        let tcp = self.send(&[&preamble[..], &request].concat());
        Stream { tcp, sealer, opener }
    }

    /// A stream that is connected to its target.
    #[track_caller]
    pub fn open_stream(&self, session: &mut ClientSession, target: SocketAddr) -> Stream {
        let mut stream = self.request_stream(session, target);
        let mut answer = [0; OVERHEAD + convert::HEADER_LEN];
        stream.tcp.read_exact(&mut answer).expect("an answer");
        let opened = stream.opener.next(&mut answer).expect("an authentic answer");
        assert!(matches!(opened, Opened::Record { kind: Kind::Answer, .. }), "{opened:?}");
        stream
    }
}

/// A stream of the tunnel.
pub struct Stream {
    tcp: TcpStream,
    sealer: Sealer,
    opener: Opener,
}

impl Stream {
    /// The connection that it is on.
    pub fn into_tcp(self) -> TcpStream {
        self.tcp
    }

    #[track_caller]
    pub fn write(&mut self, bytes: &[u8]) {
        let record = self.sealer.seal_new(Kind::Data, bytes).expect("a record");
        self.tcp.write_all(&record).expect("write");
    }

    /// Asserts that the target sends back what it is sent.
    #[track_caller]
    pub fn assert_echo(&mut self, bytes: &[u8]) {
        self.write(bytes);
        let mut record = vec![0; OVERHEAD + bytes.len()];
        self.tcp.read_exact(&mut record).expect("the echo");
        self.opener.next(&mut record).expect("an authentic record");
        assert_eq!(&record[HEADER_LEN..][..bytes.len()], bytes);
    }
}

/// An established control connection.
pub struct Control {
    stream: TcpStream,
    channel: Channel,
    message_1: Vec<u8>,
    session: Option<(SessionId, StreamSecret, Cipher)>,
}

impl Control {
    /// Message 1 as it was sent.
    pub fn message_1(&self) -> &[u8] {
        &self.message_1
    }

    /// The session it was given.
    pub fn session(&self) -> ClientSession {
        let (id, secret, cipher) = self.session.as_ref().expect("a session");
        ClientSession::new(*id, secret, *cipher)
    }

    fn receive(&mut self) -> Result<ServerMessage, HandshakeError> {
        let cut_off = |_| HandshakeError::Truncated;
        let mut header = [0; MESSAGE_HEADER_LEN];
        self.stream.read_exact(&mut header).map_err(cut_off)?;
        let mut sealed = vec![0; message_length(&header)?];
        self.stream.read_exact(&mut sealed).map_err(cut_off)?;
        let plain = self.channel.open(&sealed)?;
        let message = ServerMessage::decode(&plain).ok().flatten().expect("a message known here");
        if let ServerMessage::Session { id, secret, cipher, .. } = &message {
            self.session = Some((*id, secret.clone(), *cipher));
        }
        Ok(message)
    }

    /// What the server says next.
    #[track_caller]
    pub fn next_message(&mut self) -> ServerMessage {
        self.receive().expect("a message")
    }

    /// Waits until the server replaces the session, and gives the new one.
    #[track_caller]
    pub fn next_session(&mut self) -> ClientSession {
        let before = self.session().keys().id();
        while self.session().keys().id() == before {
            self.receive().expect("another session");
        }
        self.session()
    }

    /// Asserts that the server still answers here.
    #[track_caller]
    pub fn ping(&mut self) {
        let ping = self.channel.seal(&ClientMessage::Ping { nonce: 7 }.encode()).expect("a ping");
        self.write(&ping);
        let answer = self.receive().expect("an answer");
        assert!(matches!(answer, ServerMessage::Pong { nonce: 7, .. }), "no pong");
    }

    #[track_caller]
    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("write");
    }

    /// Waits until the server closes the connection, and gives the reason it names.
    #[track_caller]
    pub fn wait_for_close(mut self) -> Refusal {
        let reason = match self.receive() {
            Ok(ServerMessage::Close { reason }) => reason,
            Ok(other) => panic!("{other:?}"),
            Err(error) => panic!("the server closes without a reason: {error}"),
        };
        read_to_end(self.stream);
        reason
    }

    /// Waits until the server hangs up.
    #[track_caller]
    pub fn wait_for_end(self) {
        read_to_end(self.stream);
    }
}
