use super::*;
use crate::tunnel::mutation::mutate;

fn keypair() -> ([u8; 32], [u8; 32]) {
    let pair = Builder::new(PATTERN.parse().unwrap()).generate_keypair().unwrap();
    (pair.private.try_into().unwrap(), pair.public.try_into().unwrap())
}

fn hello() -> ClientHello {
    ClientHello {
        cipher: CipherChoice::Aes128Gcm,
        prefers_aes: true,
        software: "1.0.0".into(),
        token: Some(Token::from_bytes([6; 16])),
    }
}

/// A frame's version and message.
fn unframe(frame: &[u8]) -> (u8, &[u8]) {
    let (version, rest) = frame.split_first().unwrap();
    let (length, message) = rest.split_first_chunk::<2>().unwrap();
    assert_eq!(usize::from(u16::from_be_bytes(*length)), message.len());
    (*version, message)
}

#[test]
fn both_ends_agree_on_a_channel() {
    let ((client, client_public), (server, server_public)) = (keypair(), keypair());
    let (handshake, first) = ClientHandshake::start(&client, &server_public, &hello()).unwrap();
    assert_eq!(first[0], CONTROL);
    let (version, message) = unframe(&first[1..]);
    let accepted = ServerHandshake::accept(&server, version, message).unwrap();
    assert_eq!((accepted.client, &accepted.hello), (client_public, &hello()));
    let (answer, mut at_server) =
        accepted.reply(&ServerHello { software: "2.0.0".into() }).unwrap();
    let (version, message) = unframe(&answer);
    let (mut at_client, said) = handshake.finish(version, message).unwrap();
    assert_eq!(said.software, "2.0.0");

    let sealed = at_client.seal(&Message::Ready).unwrap();
    assert_eq!(transport_length([sealed[0], sealed[1]]), Some(sealed.len() - 2));
    assert_eq!(at_server.open(&sealed[2..]), Ok(vec![Message::Ready]));
    assert_eq!(at_server.open(&sealed[2..]), Err(HandshakeError::NotAuthentic), "a replay");
    let sealed = at_server.seal(&Message::Pong(3)).unwrap();
    assert_eq!(at_client.open(&sealed[2..]), Ok(vec![Message::Pong(3)]));
}

#[test]
fn a_refusal_names_its_reason() {
    let ((client, _), (server, server_public)) = (keypair(), keypair());
    let (handshake, first) = ClientHandshake::start(&client, &server_public, &hello()).unwrap();
    let (version, message) = unframe(&first[1..]);
    let accepted = ServerHandshake::accept(&server, version, message).unwrap();
    let answer = accepted.refuse("the server does not know this router's key").unwrap();
    let (version, message) = unframe(&answer);
    let error = handshake.finish(version, message).err().unwrap();
    assert_eq!(error.to_string(), "the server does not know this router's key");
}

#[test]
fn another_servers_key_or_another_version_is_noticed() {
    let ((client, _), (server, _), (_, expected)) = (keypair(), keypair(), keypair());
    let (handshake, first) = ClientHandshake::start(&client, &expected, &hello()).unwrap();
    let (version, message) = unframe(&first[1..]);
    assert_eq!(
        ServerHandshake::accept(&server, version, message).err(),
        Some(HandshakeError::NotAuthentic)
    );
    assert_eq!(
        ServerHandshake::accept(&server, VERSION + 1, message).err(),
        Some(HandshakeError::Version(VERSION + 1))
    );
    let refusal = version_refusal();
    let (version, message) = unframe(&refusal);
    assert_eq!(handshake.finish(version, message).err(), Some(HandshakeError::Version(VERSION)));
}

#[test]
fn mutated_handshakes_do_no_harm() {
    let ((client, _), (server, server_public)) = (keypair(), keypair());
    let (_, first) = ClientHandshake::start(&client, &server_public, &hello()).unwrap();
    let seed = first[4..].to_vec();
    let mut checked = 0;
    mutate(&[seed.clone()], |input| {
        // X25519 is slow: most inputs only go through the parser of what it protects.
        checked += 1;
        if checked % 50 == 0 {
            let accepted = ServerHandshake::accept(&server, VERSION, input).is_ok();
            assert_eq!(accepted, *input == seed);
        }
        let _ = ClientHello::decode(input);
    });
    mutate(&[hello().encode().to_vec()], |input| {
        if let Some(hello) = ClientHello::decode(input) {
            assert!(hello.software.len() <= 1024);
        }
    });
}
