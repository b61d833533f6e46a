//! Known answers: whether this build computes what the test vectors of `docs/protocol.md` say, on the
//! processor that it runs on.

use std::net::{Ipv4Addr, SocketAddr};

use super::control::ClientMessage;
use super::convert::Message;
use super::handshake::{
    ClientHandshake, ClientHello, MESSAGE_HEADER_LEN, ServerHandshake, ServerHello, Versions,
};
use super::probe::ProbeRequest;
use super::record::{HEADER_LEN, Kind, Opened, PLAINTEXT_MAX, StreamKeys};
use super::session::{ClientSession, SessionId, StreamSecret};
use super::{Cipher, CipherOffer};
use crate::config::keys::PrivateKey;

/// What was computed of a subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownAnswer {
    /// What it is about.
    pub subject: &'static str,
    /// Whether it is what the vectors say.
    pub right: bool,
    /// It, in hexadecimal digits; `None` where it was refused, or could not be read back.
    pub computed: Option<String>,
}

/// Computes every answer.
pub fn known_answers() -> Vec<KnownAnswer> {
    let gcm = stream(Cipher::Aes128Gcm).1;
    let chacha = stream(Cipher::ChaCha20Poly1305).1;
    let plain = stream(Cipher::None).1;
    [
        ("Noise handshake", "00111459e6f06f96f04ca82b0866968c715616", handshake()),
        (
            "session keys",
            "5301010011223344556677880000000000000001fa027d681cea305f670afd58c6d53cbc",
            Some(stream(Cipher::Aes128Gcm).0),
        ),
        ("Convert message", "010622630a0501bb00000000000000000000ffffc0000207", connect()),
        (
            "aes-128-gcm",
            "010000182aea9f417637d264a7c6e6d41beec5e1938029e03b928add85c89618\
             73346222618522a0c96d8ed5",
            request_record(&gcm),
        ),
        ("aes-128-gcm, 64 KiB", "72c65ece0ca3bcc41ef2e465dad7b635", full_record_tag(&gcm)),
        (
            "chacha20-poly1305",
            "01000018b0fb1d25e2e37aaf3b1c8e23e5572b8525acec950bf7d94a5157fb26\
             b47a969a1fdb9cd3348ae334",
            request_record(&chacha),
        ),
        ("chacha20-poly1305, 64 KiB", "e0d22f1720a1efcfb290b970b0758172", full_record_tag(&chacha)),
        (
            "cipher none",
            "010000181b778d2068e567205d5910b577c0e524e7bc40cf3f3d7fdaa3c40ebc\
             926c53c1644466755465d22a",
            request_record(&plain),
        ),
        (
            "probe",
            "700100001122334455667788000000000000000500000000000000000000ffff\
             c63364091194000069cbf034a3c5f597558808cebff41bc0",
            Some(probe_reply()),
        ),
    ]
    .into_iter()
    .map(|(subject, known, computed)| {
        let computed = computed.map(|bytes| hex(&bytes));
        KnownAnswer { subject, right: computed.as_deref() == Some(known), computed }
    })
    .collect()
}

/// The session of all answers.
pub(super) const SESSION: SessionId = SessionId(0x1122_3344_5566_7788);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes `first`, `first` + 1, and so on.
pub(super) fn sequence(first: u8) -> [u8; 32] {
    std::array::from_fn(|index| first.wrapping_add(index as u8))
}

/// The private keys of a handshake, and what the client says in it.
pub(super) struct Inputs {
    pub(super) client: [u8; 32],
    pub(super) server: [u8; 32],
    pub(super) client_ephemeral: [u8; 32],
    pub(super) server_ephemeral: [u8; 32],
    pub(super) hello: ClientHello,
}

impl Inputs {
    pub(super) fn fixed() -> Inputs {
        Inputs {
            client: sequence(0x20),
            server: sequence(0x40),
            client_ephemeral: sequence(0x60),
            server_ephemeral: sequence(0x80),
            hello: ClientHello {
                versions: Versions { min: 1, max: 1 },
                software: "mptcp-bond 0.1.0".to_owned(),
                ciphers: CipherOffer {
                    ciphers: [Cipher::Aes128Gcm, Cipher::ChaCha20Poly1305].into_iter().collect(),
                    prefers_aes: true,
                },
                token: None,
            },
        }
    }
}

/// Both ends of a handshake; the client's first message over the channel, which takes the keys that
/// came of it, once the server has read it.
fn handshake() -> Option<Vec<u8>> {
    let Inputs { client, server, client_ephemeral, server_ephemeral, hello } = Inputs::fixed();
    let server_public = PrivateKey::from_bytes(server).public().0;
    let fixed = |ephemeral: [u8; 32]| {
        move |bytes: &mut [u8]| bytes.iter_mut().zip(ephemeral).for_each(|(to, from)| *to = from)
    };
    let (client_end, request) =
        ClientHandshake::start(&client, &server_public, &hello, &mut fixed(client_ephemeral))
            .ok()?;
    let (server_end, ..) =
        ServerHandshake::accept(&server, &request, &mut fixed(server_ephemeral)).ok()?;
    let (reply, mut server_end) = server_end.reply(&ServerHello::ours("server")).ok()?;
    let (mut client_end, _) = client_end.finish(&reply).ok()?;
    let ready = client_end.seal(&ClientMessage::Ready.encode()).ok()?;
    let read = server_end.open(ready.get(MESSAGE_HEADER_LEN..)?).ok()?;
    (*read == *ClientMessage::Ready.encode()).then_some(ready)
}

/// The preamble and the keys of a session's second stream.
fn stream(cipher: Cipher) -> (Vec<u8>, StreamKeys) {
    let mut session = ClientSession::new(SESSION, &StreamSecret::from_bytes(sequence(0)), cipher);
    session.open_stream();
    let (preamble, keys) = session.open_stream();
    (preamble.to_vec(), keys)
}

fn connect() -> Option<Vec<u8>> {
    let target = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 7), 443));
    let message = Message::connect(target).encode().ok()?;
    let read = Message::decode(&message).ok()?.target().ok()?.0;
    (read == target).then_some(message)
}

/// The first record of a stream, once the other end has opened it.
fn request_record(keys: &StreamKeys) -> Option<Vec<u8>> {
    let request = connect()?;
    let record = keys.client().0.seal_new(Kind::Request, &request).ok()?;
    let mut received = record.clone();
    let Ok(Opened::Record { payload, .. }) = keys.server().1.next(&mut received) else {
        return None;
    };
    (received.get(payload)? == request).then_some(record)
}

/// The authentication tag of a full record, which takes other code than a short one does.
fn full_record_tag(keys: &StreamKeys) -> Option<Vec<u8>> {
    let (mut seals, mut opens) = (keys.client().0, keys.server().1);
    let mut request = seals.seal_new(Kind::Request, &connect()?).ok()?;
    opens.next(&mut request).ok()?;
    let plaintext: Vec<u8> = (0..PLAINTEXT_MAX).map(|index| (index % 251) as u8).collect();
    let mut record = seals.seal_new(Kind::Data, &plaintext).ok()?;
    let tag = record.get(HEADER_LEN + PLAINTEXT_MAX..)?.to_vec();
    let Ok(Opened::Record { payload, .. }) = opens.next(&mut record) else { return None };
    (record.get(payload)? == plaintext).then_some(tag)
}

fn probe_reply() -> Vec<u8> {
    let session = ClientSession::new(SESSION, &StreamSecret::from_bytes(sequence(0)), Cipher::None);
    let observed = SocketAddr::from((Ipv4Addr::new(198, 51, 100, 9), 4500));
    ProbeRequest { counter: 5 }.reply(observed).encode(session.keys()).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = include_str!("../../docs/protocol.md");

    #[test]
    fn the_answers_are_those_of_the_document() {
        let digits: String = DOCUMENT.split_whitespace().collect();
        for answer in known_answers() {
            assert!(answer.right, "{answer:?}");
            // Full records are too long for it.
            let computed = answer.computed.unwrap();
            let bulk = answer.subject.ends_with("64 KiB");
            assert!(bulk || digits.contains(&computed), "{}: {computed}", answer.subject);
        }
    }
}
