//! What version 1 of the tunnel says is understood by this version in both roles, and ends that speak
//! another version beside it find the one they have in common.
//!
//! `tests/transcripts/version-1.txt` was recorded with the keys of `docs/protocol.md`, section 13, and
//! does not change: routers and servers out there speak so.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mptcp_bond::config::keys::{PrivateKey, PublicKey, Token};
use mptcp_bond::tunnel::control::{ClientMessage, HostState, ServerMessage};
use mptcp_bond::tunnel::convert::Message;
use mptcp_bond::tunnel::datagram::{self, Datagram};
use mptcp_bond::tunnel::forward::{Port, Verdict};
use mptcp_bond::tunnel::handshake::{
    Channel, ClientHandshake, HandshakeError, MESSAGE_HEADER_LEN, ServerHandshake, answer_length,
    version_answer,
};
use mptcp_bond::tunnel::hello::{ClientHello, Refusal, ServerHello, Versions};
use mptcp_bond::tunnel::probe::{ProbeRequest, UnverifiedProbe};
use mptcp_bond::tunnel::record::{Kind, Opened, Opener, Sealer};
use mptcp_bond::tunnel::session::{
    ClientSession, ServerSession, SessionId, SessionKeys, StreamSecret,
};
use mptcp_bond::tunnel::stream::UnverifiedPreamble;
use mptcp_bond::tunnel::{Cipher, CipherOffer};

const TRANSCRIPT: &str = include_str!("transcripts/version-1.txt");
const SESSION: SessionId = SessionId(0x1122_3344_5566_7788);
const NONCE: u64 = 0x0102_0304_0506_0708;

/// The recorded bytes by name; in the order of sections, names are unique.
fn transcript() -> BTreeMap<&'static str, Vec<u8>> {
    let lines = TRANSCRIPT.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let read = |line: &'static str| {
        let (name, digits) = line.split_once(": ").expect("NAME: DIGITS");
        let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal digits");
        (name, (0..digits.len()).step_by(2).map(byte).collect())
    };
    lines.map(read).collect()
}

/// The bytes `first`, `first` + 1, and so on.
fn sequence(first: u8) -> [u8; 32] {
    std::array::from_fn(|index| first + index as u8)
}

fn fixed(first: u8) -> impl FnMut(&mut [u8]) {
    move |bytes| bytes.copy_from_slice(&sequence(first))
}

fn public(first: u8) -> PublicKey {
    PrivateKey::from_bytes(sequence(first)).public()
}

/// What the recorded client says of itself.
fn hello() -> ClientHello {
    ClientHello {
        versions: Versions { min: 1, max: 1 },
        software: "mptcp-bond 0.1.0".to_owned(),
        ciphers: CipherOffer {
            ciphers: [Cipher::Aes128Gcm, Cipher::ChaCha20Poly1305].into_iter().collect(),
            prefers_aes: true,
        },
        token: Some(Token::from_bytes(sequence(0xa0))),
    }
}

fn start(hello: &ClientHello, version: u8) -> (ClientHandshake, Vec<u8>) {
    let (key, server) = (sequence(0x20), public(0x40).0);
    ClientHandshake::start_version(&key, &server, hello, version, &mut fixed(0x60)).unwrap()
}

fn accept(request: &[u8]) -> Result<(ServerHandshake, ClientHello), HandshakeError> {
    let accepted = ServerHandshake::accept(&sequence(0x40), request, &mut fixed(0x80));
    accepted.map(|(handshake, client, hello)| {
        assert_eq!(client, public(0x20).0);
        (handshake, hello)
    })
}

fn server_hello(versions: Versions) -> ServerHello {
    ServerHello { versions, software: "server".to_owned() }
}

fn client_messages() -> [(&'static str, ClientMessage); 4] {
    [
        ("client Ready", ClientMessage::Ready),
        ("client Ping", ClientMessage::Ping { nonce: NONCE }),
        ("client NewKey", ClientMessage::NewKey { key: public(0x20) }),
        ("client Close", ClientMessage::Close),
    ]
}

fn server_messages() -> [(&'static str, ServerMessage); 5] {
    let session = ServerMessage::Session {
        id: SESSION,
        secret: StreamSecret::from_bytes(sequence(0)),
        cipher: Cipher::Aes128Gcm,
        lifetime: Duration::from_secs(3600),
        datagrams: false,
    };
    let host = HostState {
        time_unix_ms: 1_700_000_000_000,
        subflows: Some(8),
        mptcp: true,
        buffers: true,
        lacks_ipv6: false,
    };
    [
        ("server Session", session),
        ("server Pong", ServerMessage::Pong { nonce: NONCE, host: Some(host) }),
        ("server Close", ServerMessage::Close { reason: Refusal::ShuttingDown }),
        ("server KeyAccepted", ServerMessage::KeyAccepted),
        ("server NewServerKey", ServerMessage::NewServerKey { key: public(0x40) }),
    ]
}

fn open(channel: &mut Channel, message: &[u8]) -> Vec<u8> {
    channel.open(&message[MESSAGE_HEADER_LEN..]).expect("an authentic message").to_vec()
}

#[test]
fn a_server_understands_the_recorded_client() {
    let recorded = transcript();
    let (handshake, seen) = accept(&recorded["client hello"]).unwrap();
    assert_eq!(seen, hello());
    assert!(!handshake.downgraded());
    let versions = Versions { min: 1, max: 1 };
    let (answer, mut channel) = handshake.reply(&server_hello(versions)).unwrap();
    assert_eq!(answer, recorded["server hello"]);
    for (name, message) in client_messages() {
        let plain = open(&mut channel, &recorded[name]);
        assert_eq!(ClientMessage::decode(&plain), Ok(Some(message)), "{name}");
    }
    for (name, message) in server_messages() {
        assert_eq!(channel.seal(&message.encode()).unwrap(), recorded[name], "{name}");
    }
}

#[test]
fn a_client_understands_the_recorded_server() {
    let recorded = transcript();
    let (handshake, request) = start(&hello(), 1);
    assert_eq!(request, recorded["client hello"]);
    let (mut channel, seen) = handshake.finish(&recorded["server hello"]).unwrap();
    assert_eq!(seen, server_hello(Versions { min: 1, max: 1 }));
    for (name, message) in server_messages() {
        let plain = open(&mut channel, &recorded[name]);
        assert_eq!(ServerMessage::decode(&plain), Ok(Some(message)), "{name}");
    }
    for (name, message) in client_messages() {
        assert_eq!(channel.seal(&message.encode()).unwrap(), recorded[name], "{name}");
    }
    let refused = start(&hello(), 1).0.finish(&recorded["server refusal"]).unwrap_err();
    assert_eq!(refused, HandshakeError::Refused(Refusal::UnknownKey));
}

/// What a stream's ends say with a cipher: the record's name, its kind, and what is in it.
fn records(cipher: Cipher) -> [Vec<(&'static str, Kind, Vec<u8>)>; 2] {
    let target = SocketAddr::from(([192, 0, 2, 7], 443));
    let request = Message::connect(target).encode().unwrap();
    let answer = Message::connected().encode().unwrap();
    let mut client = vec![("request", Kind::Request, request)];
    let mut server = vec![("answer", Kind::Answer, answer)];
    if cipher != Cipher::None {
        client.push(("data", Kind::Data, b"hello".to_vec()));
        client.push(("end", Kind::End, Vec::new()));
        server.push(("reset", Kind::Reset, Vec::new()));
    }
    [client, server]
}

/// Reads the recorded records of one end, and says them again.
fn replay(
    (mut opener, mut sealer): (Opener, Sealer),
    records: &[(&str, Kind, Vec<u8>)],
    recorded: impl Fn(&str) -> Vec<u8>,
) {
    for (name, kind, payload) in records {
        let mut bytes = recorded(name);
        assert_eq!(sealer.seal_new(*kind, payload).unwrap(), bytes, "{name}");
        let Ok(Opened::Record { kind: seen, payload: range, .. }) = opener.next(&mut bytes) else {
            panic!("{name} is no record");
        };
        assert_eq!((seen, &bytes[range]), (*kind, payload.as_slice()), "{name}");
    }
}

#[test]
fn both_ends_understand_recorded_streams_with_each_cipher() {
    let recorded = transcript();
    for cipher in [Cipher::Aes128Gcm, Cipher::ChaCha20Poly1305, Cipher::None] {
        let of = |name: &str| recorded[format!("{cipher} {name}").as_str()].clone();
        let secret = StreamSecret::from_bytes(sequence(0));
        let mut session = ClientSession::new(SESSION, &secret, cipher);
        session.open_stream();
        let (preamble, keys) = session.open_stream();
        assert_eq!(preamble.as_slice(), of("preamble"));
        let mut session = ServerSession::new(SESSION, &secret, cipher);
        let unverified = UnverifiedPreamble::parse(of("preamble").first_chunk().unwrap()).unwrap();
        let (seen, server_keys) = session.accept(&unverified, Instant::now()).unwrap();
        assert_eq!((seen.session, seen.counter, seen.cipher), (SESSION, 1, cipher));

        let ((client_seals, client_opens), (server_seals, server_opens)) =
            (keys.client(), server_keys.server());
        let [client, server] = records(cipher);
        replay((server_opens, client_seals), &client, of);
        replay((client_opens, server_seals), &server, of);
    }
}

#[test]
fn both_ends_understand_recorded_probes() {
    let recorded = transcript();
    let session = ClientSession::new(SESSION, &StreamSecret::from_bytes(sequence(0)), Cipher::None);
    let (keys, observed) = (session.keys(), "198.51.100.9:4500".parse().unwrap());
    let probe = UnverifiedProbe::parse(&recorded["probe request"]).unwrap();
    assert_eq!(probe.session(), SESSION);
    let request = probe.request(keys).unwrap();
    assert_eq!(request.reply(observed).encode(keys).as_slice(), recorded["probe reply"]);
    assert_eq!(ProbeRequest { counter: 5 }.encode(keys).as_slice(), recorded["probe request"]);
    let reply = UnverifiedProbe::parse(&recorded["probe reply"]).unwrap().reply(keys).unwrap();
    assert_eq!((reply.counter, reply.observed), (5, observed));
}

/// What an older server says of datagrams, and of a UDP port.
#[test]
fn an_older_server_is_known_to_carry_no_udp() {
    let (name, session) = server_messages().into_iter().next().unwrap();
    assert!(matches!(session, ServerMessage::Session { datagrams: false, .. }), "{name}");
    let refused = [0x84, 17, 0x13, 0xc4, 4];
    let Ok(Some(ServerMessage::Forwards(verdicts))) = ServerMessage::decode(&refused) else {
        panic!("no verdicts");
    };
    assert_eq!(verdicts, [(Port::udp(5060), Verdict::Unsupported)]);
    assert_eq!(Verdict::Unsupported.advice(), "update the server");
    // Datagrams of forwarded ports are nothing that it would misunderstand.
    let keys = SessionKeys::new(SESSION, &StreamSecret::from_bytes(sequence(0)));
    let mut client = datagram::Channel::client(&keys).unwrap();
    let forwarded = Datagram { flow: None, forwarded: true, twice: false, payload: &[] };
    let sealed = client.seal(&forwarded).unwrap();
    assert!(!matches!(sealed[0], b'D' | b'd' | b'P'), "{:?}", sealed[0]);
    assert!(UnverifiedProbe::parse(&sealed).is_err());
}

#[test]
fn a_newer_client_falls_back_to_this_version() {
    let ours = Versions::OURS;
    let newer = ClientHello { versions: Versions { min: ours.max, max: ours.max + 1 }, ..hello() };
    let (handshake, request) = start(&newer, ours.max + 1);
    assert_eq!(accept(&request).unwrap_err(), HandshakeError::Version(ours.max));
    let fallback = handshake.finish(&version_answer()).unwrap_err();
    assert_eq!(fallback, HandshakeError::Version(ours.max), "this is what it may try again with");

    let (client, request) = start(&newer, ours.max);
    let (server, seen) = accept(&request).unwrap();
    assert_eq!(seen.versions, newer.versions);
    let (answer, mut server) = server.reply(&server_hello(ours)).unwrap();
    let (mut client, _) = client.finish(&answer).unwrap();
    let ready = client.seal(&ClientMessage::Ready.encode()).unwrap();
    assert_eq!(open(&mut server, &ready), ClientMessage::Ready.encode());
}

#[test]
fn a_newer_server_answers_in_this_version() {
    let ours = Versions::OURS;
    let (client, request) = start(&ClientHello { versions: ours, ..hello() }, ours.max);
    let newer = server_hello(Versions { min: ours.max, max: ours.max + 1 });
    let (answer, mut server) = accept(&request).unwrap().0.reply(&newer).unwrap();
    let (mut client, seen) = client.finish(&answer).unwrap();
    assert_eq!(seen, newer);
    // It may say what this version does not know.
    let unknown = server.seal(&[0xf0, 1, 2, 3]).unwrap();
    assert_eq!(ServerMessage::decode(&open(&mut client, &unknown)), Ok(None));

    // One that speaks this version no more says so, and there is nothing to fall back to.
    let (client, _) = start(&ClientHello { versions: ours, ..hello() }, ours.max);
    let answer = [ours.max + 2, 0, 0];
    assert_eq!(answer_length(&answer), Err(HandshakeError::Version(ours.max + 2)));
    let error = client.finish(&answer).unwrap_err();
    assert!(error.to_string().contains("update the older end"), "{error}");
}
