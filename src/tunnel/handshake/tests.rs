use super::*;
use crate::config::keys::Token;
use crate::tunnel::testing::{Xorshift, bit_flips, counting, mutations, public_key};
use crate::tunnel::{CipherOffer, CipherSet};

const CLIENT: [u8; 32] = [0x11; 32];
const SERVER: [u8; 32] = [0x22; 32];

fn hello() -> ClientHello {
    ClientHello {
        versions: Versions::OURS,
        software: "mptcp-bond 0.1.0".to_owned(),
        ciphers: CipherOffer { ciphers: CipherSet::all(), prefers_aes: false },
        token: None,
    }
}

fn start(hello: &ClientHello, version: u8) -> (ClientHandshake, Vec<u8>) {
    let server = public_key(&SERVER);
    ClientHandshake::start_version(&CLIENT, &server, hello, version, &mut counting()).unwrap()
}

fn accept(request: &[u8]) -> Result<(ServerHandshake, [u8; 32], ClientHello), HandshakeError> {
    let mut random = Xorshift::new(5);
    ServerHandshake::accept(&SERVER, request, &mut |bytes| random.fill(bytes))
}

fn channels() -> (Channel, Channel) {
    let (client, request) = start(&hello(), 1);
    let (server, ..) = accept(&request).unwrap();
    let (answer, server) = server.reply(&ServerHello::ours("server")).unwrap();
    (client.finish(&answer).unwrap().0, server)
}

#[test]
fn both_ends_meet() {
    let mut hello = hello();
    hello.token = Some(Token::from_bytes([9; 32]));
    let (client, request) = start(&hello, 1);
    assert_eq!(request_length(request.first_chunk().unwrap()), Ok(request.len() - 4));
    let (server, key, seen) = accept(&request).unwrap();
    assert_eq!(key, public_key(&CLIENT));
    assert_eq!(seen, hello);
    let (answer, mut server) = server.reply(&ServerHello::ours("mptcp-bond 9")).unwrap();
    assert_eq!(answer_length(answer.first_chunk().unwrap()), Ok(answer.len() - 3));
    let (mut client, server_hello) = client.finish(&answer).unwrap();
    assert_eq!(server_hello.software, "mptcp-bond 9");

    for (from, to) in [(&mut client, &mut server)] {
        for length in [0, 1, PLAINTEXT_MAX] {
            let message = from.seal(&vec![7; length]).unwrap();
            assert_eq!(message_length(message.first_chunk().unwrap()), Ok(message.len() - 2));
            assert_eq!(*to.open(&message[2..]).unwrap(), vec![7; length]);
        }
        assert_eq!(from.seal(&vec![7; PLAINTEXT_MAX + 1]), Err(HandshakeError::TooLong));
    }
}

#[test]
fn messages_have_one_size() {
    let mut with_token = hello();
    with_token.token = Some(Token::from_bytes([9; 32]));
    let (_, request) = start(&hello(), 1);
    assert_eq!(request.len(), start(&with_token, 1).1.len());
    let reply = accept(&request).unwrap().0.reply(&ServerHello::ours("a")).unwrap().0;
    let refusal = accept(&request).unwrap().0.refuse(&ServerHello::ours("a"), Refusal::Busy);
    assert_eq!(reply.len(), refusal.unwrap().len());
}

#[test]
fn a_refusal_is_named_and_authentic() {
    for reason in [Refusal::UnknownKey, Refusal::BadToken, Refusal::NoCommonCipher] {
        let (client, request) = start(&hello(), 1);
        let answer = accept(&request).unwrap().0.refuse(&ServerHello::ours("s"), reason).unwrap();
        assert_eq!(client.finish(&answer).unwrap_err(), HandshakeError::Refused(reason));
    }
}

#[test]
fn another_servers_key_is_refused() {
    let (_, request) = start(&hello(), 1);
    let other = ServerHandshake::accept(&[0x33; 32], &request, &mut counting());
    assert_eq!(other.unwrap_err(), HandshakeError::Decrypt);
}

#[test]
fn an_unknown_version_is_answered_with_ours() {
    let (client, mut request) = start(&hello(), 1);
    request[1] = 200;
    assert_eq!(accept(&request).unwrap_err(), HandshakeError::Version(VERSION_MAX));
    let answer = version_answer();
    assert_eq!(answer_length(&answer), Err(HandshakeError::Version(VERSION_MAX)));
    assert_eq!(client.finish(&answer).unwrap_err(), HandshakeError::Version(VERSION_MAX));
}

#[test]
fn a_forged_fallback_is_noticed() {
    let mut older = hello();
    older.versions = Versions { min: 1, max: 9 };
    let (_, request) = start(&older, 1);
    let (server, ..) = accept(&request).unwrap();
    assert!(!server.downgraded(), "1 is the newest in common");

    older.versions = Versions { min: 2, max: 9 };
    let (client, request) = start(&older, 1);
    let (server, ..) = accept(&request).unwrap();
    assert!(server.downgraded());
    let answer = server.refuse(&ServerHello::ours("s"), Refusal::Downgrade).unwrap();
    assert_eq!(client.finish(&answer).unwrap_err(), HandshakeError::Refused(Refusal::Downgrade));
    let (server, ..) = accept(&start(&older, 1).1).unwrap();
    assert_eq!(server.reply(&ServerHello::ours("s")).unwrap_err(), HandshakeError::Downgrade);
}

#[test]
fn the_version_byte_is_authenticated() {
    let (_, mut request) = start(&hello(), 2);
    request[1] = 1;
    assert_eq!(accept(&request).unwrap_err(), HandshakeError::Decrypt);
}

#[test]
fn no_flipped_bit_passes() {
    let (_, request) = start(&hello(), 1);
    // Each costs four X25519 operations, so the bits of every third byte have to do.
    bit_flips(&request, |bit, bytes| {
        if bit % 24 < 8 {
            // A curve point's top bit does not count (RFC 7748), but the transcript has it.
            assert!(accept(bytes).is_err(), "bit {bit}");
        }
    });
    let answer = accept(&request).unwrap().0.reply(&ServerHello::ours("s")).unwrap().0;
    bit_flips(&answer, |bit, bytes| {
        if bit % 24 < 8 {
            assert!(start(&hello(), 1).0.finish(bytes).is_err(), "bit {bit}");
        }
    });
    let (mut client, mut server) = channels();
    let message = client.seal(b"Ready").unwrap();
    bit_flips(&message[2..], |bit, bytes| {
        assert!(server.open(bytes).is_err(), "bit {bit}");
    });
    assert_eq!(server.open(&message[2..]).unwrap().as_slice(), b"Ready");
}

#[test]
fn truncated_and_oversized_messages_are_refused() {
    let (_, request) = start(&hello(), 1);
    for length in [0, 1, 3, 4, 99, request.len() - 1] {
        assert_eq!(accept(&request[..length]).unwrap_err(), HandshakeError::Truncated);
    }
    assert_eq!(request_length(&[b'C', 1, 0, 95]), Err(HandshakeError::BadLength(95)));
    assert_eq!(request_length(&[b'C', 1, 4, 1]), Err(HandshakeError::BadLength(1025)));
    assert_eq!(request_length(&[b'G', 1, 1, 0]), Err(HandshakeError::NotControl));
    assert_eq!(answer_length(&[1, 0, 47]), Err(HandshakeError::BadLength(47)));
    assert_eq!(answer_length(&[1, 0xff, 0xff]), Err(HandshakeError::BadLength(65535)));
    assert_eq!(message_length(&[0, 15]), Err(HandshakeError::BadLength(15)));
    assert_eq!(message_length(&[0x10, 0x11]), Err(HandshakeError::BadLength(4113)));
}

#[test]
fn messages_over_the_channel_keep_their_order() {
    let (mut client, mut server) = channels();
    let (first, second) = (client.seal(b"1").unwrap(), client.seal(b"2").unwrap());
    assert_eq!(server.open(&second[2..]).unwrap_err(), HandshakeError::Decrypt);
    assert_eq!(server.open(&first[2..]).unwrap().as_slice(), b"1");
    assert_eq!(server.open(&first[2..]).unwrap_err(), HandshakeError::Decrypt);
    assert_eq!(client.open(&second[2..]).unwrap_err(), HandshakeError::Decrypt);
}

#[test]
fn mutated_requests_do_not_panic() {
    let (_, request) = start(&hello(), 1);
    mutations(&mut Xorshift::new(2), &request, 100_000, |bytes| {
        assert!(accept(bytes).is_err() || *bytes == request);
    });
}

#[test]
fn mutated_answers_do_not_panic() {
    let (mut client, request) = start(&hello(), 1);
    let answer = accept(&request).unwrap().0.reply(&ServerHello::ours("s")).unwrap().0;
    mutations(&mut Xorshift::new(3), &answer, 100_000, |bytes| {
        if *bytes != answer {
            assert!(client.read_answer(bytes).is_err());
        }
    });
    assert!(client.finish(&answer).is_ok());
}

#[test]
fn mutated_messages_do_not_panic() {
    let (mut client, mut server) = channels();
    let message = client.seal(&[1; 100]).unwrap();
    mutations(&mut Xorshift::new(4), &message, 100_000, |bytes| {
        let Some((header, sealed)) = take::<MESSAGE_HEADER_LEN>(bytes) else { return };
        if *bytes != message && message_length(&header) == Ok(sealed.len()) {
            assert!(server.open(sealed).is_err());
        }
    });
    assert_eq!(server.open(&message[2..]).unwrap().as_slice(), [1; 100]);
}
