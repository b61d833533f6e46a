//! The test vectors of `docs/protocol.md`, made anew and compared with those in the document.

use std::fmt::Write;
use std::time::Duration;

use crate::config::keys::{PublicKey, Token};
use crate::crypto::hkdf;

use super::control::{ClientMessage, HostState, ServerMessage};
use super::convert::{ErrorCode, Failure, Message};
use super::datagram::{Channel, Datagram, Flow};
use super::forward::{Incoming, Port, Verdict};
use super::handshake::{
    ClientHandshake, ClientHello, Refusal, ServerHandshake, ServerHello, Versions,
};
use super::known::{Inputs, SESSION, sequence};
use super::probe::ProbeRequest;
use super::record::{self, Kind, Sealer, StreamKeys};
use super::session::{self, ClientSession, SessionKeys, StreamSecret, expand};
use super::testing::public_key;
use super::{Cipher, CipherSet};

const DOCUMENT: &str = include_str!("../../docs/protocol.md");
const BEGIN: &str = "<!-- test vectors: begin -->\n```\n";
const END: &str = "```\n<!-- test vectors: end -->";

/// The text being made: `name: hex`, long values broken into lines of 32 bytes.
#[derive(Default)]
struct Vectors(String);

impl Vectors {
    fn title(&mut self, title: &str) {
        let gap = if self.0.is_empty() { "" } else { "\n" };
        writeln!(self.0, "{gap}# {title}").unwrap();
    }

    fn put(&mut self, name: &str, bytes: &[u8]) {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        if bytes.len() <= 32 {
            writeln!(self.0, "{name}: {}", hex(bytes)).unwrap();
        } else {
            writeln!(self.0, "{name}:").unwrap();
            for line in bytes.chunks(32) {
                writeln!(self.0, "  {}", hex(line)).unwrap();
            }
        }
    }
}

fn handshake(vectors: &mut Vectors, secret: &StreamSecret) {
    let Inputs { client, server, client_ephemeral, server_ephemeral, hello } = Inputs::fixed();
    let server_public = public_key(&server);
    vectors.title("Handshake");
    vectors.put("client private key", &client);
    vectors.put("client public key", &public_key(&client));
    vectors.put("client ephemeral private key", &client_ephemeral);
    vectors.put("server private key", &server);
    vectors.put("server public key", &server_public);
    vectors.put("server ephemeral private key", &server_ephemeral);

    let hello = ClientHello { token: Some(Token::from_bytes(sequence(0xa0))), ..hello };
    let server_hello =
        ServerHello { versions: Versions { min: 1, max: 1 }, software: "server".to_owned() };
    let start = || {
        let rng = &mut |bytes: &mut [u8]| bytes.copy_from_slice(&client_ephemeral);
        ClientHandshake::start(&client, &server_public, &hello, rng).unwrap()
    };
    let (handshake, request) = start();
    let accept = || {
        let rng = &mut |bytes: &mut [u8]| bytes.copy_from_slice(&server_ephemeral);
        ServerHandshake::accept(&server, &request, rng).unwrap().0
    };
    let (answer, mut server_channel) = accept().reply(&server_hello).unwrap();
    let refusal = accept().refuse(&server_hello, Refusal::UnknownKey).unwrap();
    assert!(start().0.finish(&refusal).is_err());
    let (mut client_channel, _) = handshake.finish(&answer).unwrap();
    vectors.put("hello of message 1, padding left out", &hello.encode()[..64]);
    vectors.put("message 1, as sent", &request);
    vectors.put("message 2, as sent", &answer);
    vectors.put("message 2 that refuses: unknown key", &refusal);

    vectors.title("Control messages");
    let mut client_says = |name, message: ClientMessage| {
        vectors.put(name, &message.encode());
        vectors.put("  as sent", &client_channel.seal(&message.encode()).unwrap());
    };
    client_says("Ready", ClientMessage::Ready);
    client_says("Ping", ClientMessage::Ping { nonce: 0x0102_0304_0506_0708 });
    client_says("NewKey", ClientMessage::NewKey { key: PublicKey(public_key(&client)) });
    client_says("Close", ClientMessage::Close);
    client_says("Forwards", ClientMessage::Forwards(vec![Port::tcp(2222), Port::tcp(80)]));
    let mut server_says = |name, message: ServerMessage| {
        vectors.put(name, &message.encode());
        vectors.put("  as sent", &server_channel.seal(&message.encode()).unwrap());
    };
    server_says(
        "Session",
        ServerMessage::Session {
            id: SESSION,
            secret: secret.clone(),
            cipher: Cipher::Aes128Gcm,
            lifetime: Duration::from_secs(3600),
            datagrams: true,
        },
    );
    let host = HostState {
        time_unix_ms: 1_700_000_000_000,
        subflows: Some(8),
        mptcp: true,
        buffers: true,
        lacks_ipv6: false,
    };
    server_says("Pong", ServerMessage::Pong { nonce: 0x0102_0304_0506_0708, host: Some(host) });
    server_says("Close", ServerMessage::Close { reason: Refusal::ShuttingDown });
    server_says("KeyAccepted", ServerMessage::KeyAccepted);
    server_says("NewServerKey", ServerMessage::NewServerKey { key: PublicKey(server_public) });
    let verdicts = vec![(Port::tcp(2222), Verdict::Granted), (Port::tcp(80), Verdict::Privileged)];
    server_says("Forwards", ServerMessage::Forwards(verdicts));
    let (peer, local) = ("198.51.100.9:4500".parse(), "[2001:db8::1]:2222".parse());
    let incoming = Incoming { id: 7, peer: peer.unwrap(), local: local.unwrap() };
    server_says("Incoming", ServerMessage::Incoming(incoming));
}

fn schedule(vectors: &mut Vectors, secret: &StreamSecret) {
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, session::SALT).extract(secret.as_bytes());
    let id = SESSION.0.to_be_bytes();
    vectors.title("Session keys");
    vectors.put("session id", &id);
    vectors.put("session secret", secret.as_bytes());
    for (name, label) in [
        ("preamble key", session::LABEL_PREAMBLE),
        ("probe request key", session::LABEL_PROBE_REQUEST),
        ("probe reply key", session::LABEL_PROBE_REPLY),
    ] {
        vectors.put(name, &expand::<32>(&prk, &[label, &id]));
    }
}

fn record_keys(vectors: &mut Vectors, keys: &StreamKeys) {
    for (name, secret) in
        [("client to server", &keys.client_to_server), ("server to client", &keys.server_to_client)]
    {
        vectors.put(&format!("{name}: secret"), secret.as_bytes());
        let prk = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, secret.as_bytes());
        for generation in [0u64, 1] {
            let number = generation.to_be_bytes();
            let info = [record::LABEL_KEY, number.as_slice()];
            let key = match keys.cipher() {
                Cipher::Aes128Gcm => expand::<16>(&prk, &info).to_vec(),
                Cipher::ChaCha20Poly1305 | Cipher::None => expand::<32>(&prk, &info).to_vec(),
            };
            vectors.put(&format!("  key {generation}"), &key);
            let iv = expand::<12>(&prk, &[record::LABEL_IV, &number]);
            vectors.put(&format!("  iv {generation}"), &iv);
        }
    }
}

fn streams(vectors: &mut Vectors, secret: &StreamSecret) {
    let request = Message::connect("192.0.2.7:443".parse().unwrap()).encode().unwrap();
    let refused = Failure { code: ErrorCode::ConnectionReset, detail: 0 };
    let refused = Message::failed(refused).encode().unwrap();
    let connected = Message::connected().encode().unwrap();
    vectors.title("Convert messages");
    vectors.put("connect to 192.0.2.7 port 443", &request);
    vectors.put("accept connection 7", &Message::accept(7).encode().unwrap());
    vectors.put("connected", &connected);
    vectors.put("refused by the target", &refused);

    for cipher in [Cipher::Aes128Gcm, Cipher::ChaCha20Poly1305, Cipher::None] {
        let mut session = ClientSession::new(SESSION, secret, cipher);
        session.open_stream();
        let (preamble, keys) = session.open_stream();
        vectors.title(&format!("Stream, counter 1, cipher {cipher}"));
        vectors.put("preamble", &preamble);
        record_keys(vectors, &keys);
        let mut says = |sealer: &mut Sealer, name: &str, kind, plaintext: &[u8]| {
            vectors.put(name, &sealer.seal_new(kind, plaintext).unwrap());
        };
        let (mut client, mut server) = (keys.client().0, keys.server().0);
        says(&mut client, "request", Kind::Request, &request);
        says(&mut server, "answer: connected", Kind::Answer, &connected);
        if cipher != Cipher::None {
            says(&mut client, "data: hello", Kind::Data, b"hello");
            says(&mut client, "end", Kind::End, &[]);
            says(&mut server, "reset", Kind::Reset, &[]);
        }
    }
}

fn probes(vectors: &mut Vectors, secret: &StreamSecret) {
    let session = ClientSession::new(SESSION, secret, Cipher::None);
    let request = ProbeRequest { counter: 5 };
    vectors.title("Probe, counter 5, seen to come from 198.51.100.9 port 4500");
    vectors.put("request", &request.encode(session.keys()));
    let reply = request.reply("198.51.100.9:4500".parse().unwrap());
    vectors.put("reply", &reply.encode(session.keys()));
}

fn datagrams(vectors: &mut Vectors, secret: &StreamSecret) {
    let keys = SessionKeys::new(SESSION, secret);
    let flow = |host: &str, target: &str| {
        Some(Flow { host: host.parse().unwrap(), target: target.parse().unwrap() })
    };
    let v4 = flow("192.168.1.2:5062", "192.0.2.7:5060");
    let v6 = flow("[fd00::2]:5062", "[2001:db8::7]:5060");
    vectors.title(
        "Datagrams between 192.168.1.2 port 5062 and 192.0.2.7 port 5060, fd00::2 and 2001:db8::7",
    );
    let mut client = Channel::client(&keys).unwrap();
    let mut server = Channel::server(&keys).unwrap();
    let mut says = |end: &mut Channel, name: &str, flow, twice, payload: &[u8]| {
        let forwarded = name.contains("port 8080");
        vectors.put(name, &end.seal(&Datagram { flow, forwarded, twice, payload }).unwrap());
    };
    says(&mut client, "hello, counter 0, over two uplinks", v4, true, b"hello");
    says(&mut client, "hello, counter 1, IPv6", v6, false, b"hello");
    says(&mut client, "nothing, counter 2", None, false, &[]);
    says(&mut server, "answer: hello, counter 0", v4, false, b"hello");
    let arrived = flow("203.0.113.1:8080", "198.51.100.9:4500");
    says(
        &mut server,
        "from 198.51.100.9 port 4500 at 203.0.113.1 port 8080: hello, counter 1",
        arrived,
        false,
        b"hello",
    );
    says(&mut client, "its answer from port 8080: hello, counter 3", arrived, false, b"hello");
}

fn generate() -> String {
    let secret = StreamSecret::from_bytes(sequence(0x00));
    let mut vectors = Vectors::default();
    handshake(&mut vectors, &secret);
    schedule(&mut vectors, &secret);
    streams(&mut vectors, &secret);
    probes(&mut vectors, &secret);
    datagrams(&mut vectors, &secret);
    vectors.0
}

#[test]
fn the_documents_vectors_are_right() {
    let (_, rest) = DOCUMENT.split_once(BEGIN).expect("the vectors begin");
    let (documented, _) = rest.split_once(END).expect("the vectors end");
    let made = generate();
    assert!(documented == made, "docs/protocol.md should say:\n{BEGIN}{made}{END}");
}

#[test]
fn the_documents_constants_are_right() {
    use super::{control, datagram, handshake, hello, probe, replay, stream};
    let seconds = |duration: Duration| duration.as_secs();
    for (name, value) in [
        ("version", u64::from(super::VERSION_MAX)),
        ("handshake payload", hello::PAYLOAD_LEN as u64),
        ("software name, at most", hello::SOFTWARE_MAX as u64),
        ("handshake message, at most", handshake::HANDSHAKE_MAX as u64),
        ("control message, at most", handshake::PLAINTEXT_MAX as u64),
        ("preamble", stream::PREAMBLE_LEN as u64),
        ("truncated HMAC", session::MAC_LEN as u64),
        ("record plaintext, at most", record::PLAINTEXT_MAX as u64),
        ("records per key", record::RECORDS_PER_KEY),
        ("Convert message, at most", super::convert::MESSAGE_MAX as u64),
        ("stream counters remembered", replay::WINDOW),
        ("probe", probe::PROBE_LEN as u64),
        ("probe with its padding, at most", probe::PROBE_MAX as u64),
        ("datagram, at most", datagram::DATAGRAM_MAX as u64),
        ("datagram counters remembered", replay::WINDOW),
        ("wait for Ready", seconds(control::READY_TIMEOUT)),
        ("between pings", seconds(control::PING_INTERVAL)),
        ("silence on a control connection", seconds(control::SILENCE_TIMEOUT)),
        ("session lifetime", seconds(control::SESSION_LIFETIME)),
        ("streams of a superseded session", seconds(session::RETIREMENT)),
        ("wait for a preamble", seconds(stream::PREAMBLE_TIMEOUT)),
        ("wait for a request", seconds(stream::WARM_TIMEOUT)),
    ] {
        let row = format!("| {name} | {value} |");
        assert!(DOCUMENT.contains(&row), "docs/protocol.md should say: {row}");
    }
    assert_eq!(CipherSet::all().to_wire(), 7);
}
