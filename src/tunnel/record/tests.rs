use super::*;
use crate::tunnel::session::{SessionId, SessionKeys, StreamSecret};
use crate::tunnel::testing::{Xorshift, bit_flips, mutations};

const AEADS: [Cipher; 2] = [Cipher::Aes128Gcm, Cipher::ChaCha20Poly1305];
const REQUEST: &[u8] = &[1, 1, 0x22, 0x63];

fn keys(cipher: Cipher) -> StreamKeys {
    SessionKeys::new(SessionId(1), &StreamSecret::from_bytes([8; 32])).stream(2, cipher)
}

/// A client's sealer and a server's opener, past the request.
fn past_request(cipher: Cipher) -> (Sealer, Opener) {
    let ((mut sealer, _), (_, mut opener)) = (keys(cipher).client(), keys(cipher).server());
    let mut request = sealer.seal_new(Kind::Request, REQUEST).unwrap();
    let opened = opener.next(&mut request).unwrap();
    assert_eq!(opened, record(Kind::Request, REQUEST.len()));
    assert_eq!(&request[HEADER_LEN..HEADER_LEN + REQUEST.len()], REQUEST);
    (sealer, opener)
}

fn record(kind: Kind, length: usize) -> Opened {
    let payload = HEADER_LEN..HEADER_LEN + length;
    Opened::Record { kind, payload, consumed: length + OVERHEAD }
}

#[test]
fn records_of_every_size_come_back() {
    for cipher in AEADS {
        let (mut sealer, mut opener) = past_request(cipher);
        for length in [1, 15, 16, 17, 1400, 16384, PLAINTEXT_MAX] {
            let plaintext: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let mut bytes = sealer.seal_new(Kind::Data, &plaintext).unwrap();
            assert_eq!(bytes.len(), length + OVERHEAD);
            assert_eq!(opener.next(&mut bytes).unwrap(), record(Kind::Data, length));
            assert_eq!(&bytes[HEADER_LEN..HEADER_LEN + length], plaintext);
        }
        let mut end = sealer.seal_new(Kind::End, &[]).unwrap();
        assert_eq!(opener.next(&mut end).unwrap(), record(Kind::End, 0));
    }
}

#[test]
fn several_records_in_one_buffer() {
    let (mut sealer, mut opener) = past_request(Cipher::Aes128Gcm);
    let mut bytes = Vec::new();
    for text in ["one", "two", "three"] {
        bytes.extend(sealer.seal_new(Kind::Data, text.as_bytes()).unwrap());
    }
    let (mut start, mut texts) = (0, Vec::new());
    let cut = bytes.len() - 1;
    while let Opened::Record { payload, consumed, .. } =
        opener.next(&mut bytes[start..cut]).unwrap()
    {
        texts.push(String::from_utf8(bytes[start..][payload].to_vec()).unwrap());
        start += consumed;
    }
    assert_eq!(texts, ["one", "two"]);
    assert_eq!(opener.next(&mut bytes[start..start]).unwrap(), Opened::Need(OVERHEAD));
    assert_eq!(opener.next(&mut bytes[start..cut]).unwrap(), Opened::Need(5 + OVERHEAD));
    assert_eq!(opener.next(&mut bytes[start..]).unwrap(), record(Kind::Data, 5));
}

#[test]
fn no_flipped_bit_passes() {
    for cipher in AEADS {
        let (mut sealer, mut opener) = past_request(cipher);
        let valid = sealer.seal_new(Kind::Data, b"payload").unwrap();
        bit_flips(&valid, |bit, bytes| {
            // A longer length just asks for more bytes, which will not authenticate either.
            let opened = opener.next(bytes);
            assert!(!matches!(opened, Ok(Opened::Record { .. })), "bit {bit}");
        });
        assert_eq!(opener.next(&mut valid.clone()).unwrap(), record(Kind::Data, 7));
    }
}

#[test]
fn records_cannot_be_reordered_repeated_reflected_or_moved() {
    for cipher in AEADS {
        let (mut sealer, mut opener) = past_request(cipher);
        let first = sealer.seal_new(Kind::Data, b"1").unwrap();
        let second = sealer.seal_new(Kind::Data, b"2").unwrap();
        assert_eq!(opener.next(&mut second.clone()), Err(RecordError::Forged));
        assert!(opener.next(&mut first.clone()).is_ok());
        assert_eq!(opener.next(&mut first.clone()), Err(RecordError::Forged));

        let session = SessionKeys::new(SessionId(1), &StreamSecret::from_bytes([8; 32]));
        let request = keys(cipher).client().0.seal_new(Kind::Request, REQUEST).unwrap();
        let mut other_stream = session.stream(3, cipher).server().1;
        assert_eq!(other_stream.next(&mut request.clone()), Err(RecordError::Forged));

        let mut reflected = request.clone();
        reflected[0] = Kind::Answer as u8;
        let (_, mut client) = keys(cipher).client();
        assert_eq!(client.next(&mut reflected), Err(RecordError::Forged));
    }
}

#[test]
fn kinds_keep_their_order_at_both_ends() {
    let (mut sealer, mut opener) = keys(Cipher::Aes128Gcm).client();
    for kind in [Kind::Data, Kind::Answer, Kind::End] {
        assert_eq!(sealer.seal_new(kind, REQUEST), Err(RecordError::OutOfOrder(kind)));
    }
    assert_eq!(
        opener.next(&mut [Kind::Data as u8, 0, 0, 4]),
        Err(RecordError::OutOfOrder(Kind::Data))
    );
    let (mut sealer, _) = past_request(Cipher::Aes128Gcm);
    assert_eq!(
        sealer.seal_new(Kind::Request, REQUEST),
        Err(RecordError::OutOfOrder(Kind::Request))
    );
    for last in [Kind::End, Kind::Reset] {
        let (mut sealer, mut opener) = past_request(Cipher::Aes128Gcm);
        let mut bytes = sealer.seal_new(last, &[]).unwrap();
        assert!(opener.next(&mut bytes).is_ok());
        let error = Err(RecordError::OutOfOrder(Kind::Data));
        assert_eq!(sealer.seal_new(Kind::Data, b"x"), error);
        assert_eq!(
            opener.next(&mut [Kind::Data as u8, 0, 0, 1]).unwrap_err(),
            RecordError::OutOfOrder(Kind::Data)
        );
    }
}

#[test]
fn a_plain_stream_seals_only_its_request() {
    let (mut sealer, mut opener) = past_request(Cipher::None);
    assert_eq!(sealer.seal_new(Kind::Data, b"x"), Err(RecordError::OutOfOrder(Kind::Data)));
    assert_eq!(
        opener.next(&mut [Kind::Data as u8, 0, 0, 1]),
        Err(RecordError::OutOfOrder(Kind::Data))
    );
}

#[test]
fn lengths_are_bounded_before_anything_else() {
    let (mut sealer, mut opener) = past_request(Cipher::Aes128Gcm);
    let too_long = PLAINTEXT_MAX + 1;
    let mut buffer = vec![0; 2 * RECORD_MAX];
    assert_eq!(
        sealer.seal(Kind::Data, &mut buffer, too_long),
        Err(RecordError::BadLength(too_long))
    );
    let [high, low] = (too_long as u16).to_be_bytes();
    let error = Err(RecordError::BadLength(too_long));
    assert_eq!(opener.next(&mut [Kind::Data as u8, 0, high, low]), error);
    let error = Err(RecordError::BadLength(0));
    assert_eq!(opener.next(&mut [Kind::Data as u8, 0, 0, 0]), error);
    let error = Err(RecordError::BadLength(1));
    assert_eq!(opener.next(&mut [Kind::End as u8, 0, 0, 1]), error);
    assert_eq!(
        sealer.seal(Kind::Data, &mut [0; OVERHEAD + 4], 5),
        Err(RecordError::BufferTooShort)
    );
    // A failed attempt must not use up a nonce's number at one end only.
    let mut bytes = sealer.seal_new(Kind::Data, b"fine").unwrap();
    assert_eq!(opener.next(&mut bytes).unwrap(), record(Kind::Data, 4));
}

#[test]
fn keys_are_replaced_in_time() {
    let (mut sealer, mut opener) = past_request(Cipher::ChaCha20Poly1305);
    let (mut buffer, mut old) = ([0; OVERHEAD + 1], None);
    for number in 1..RECORDS_PER_KEY + 3 {
        let key = sealer.0.key.as_ref().unwrap();
        let (iv, counter) = (key.iv, sealer.0.counter);
        assert_eq!(counter, number);
        if number == RECORDS_PER_KEY {
            assert_ne!(old, Some(iv));
        } else if number > 1 {
            assert_eq!(old, Some(iv));
        }
        old = Some(iv);
        sealer.seal(Kind::Data, &mut buffer, 1).unwrap();
        assert_eq!(opener.next(&mut buffer).unwrap(), record(Kind::Data, 1));
    }
}

#[test]
fn mutated_records_do_not_panic() {
    let mut random = Xorshift::new(4);
    for cipher in AEADS {
        let (mut sealer, mut opener) = past_request(cipher);
        let valid = sealer.seal_new(Kind::Data, &[1; 64]).unwrap();
        mutations(&mut random, &valid, 100_000, |bytes| {
            if *bytes != valid && !bytes.starts_with(&valid) {
                let opened = opener.next(bytes);
                assert!(!matches!(opened, Ok(Opened::Record { .. })));
            }
        });
        assert_eq!(opener.next(&mut valid.clone()).unwrap(), record(Kind::Data, 64));
    }
}

#[test]
fn a_direction_goes_on_elsewhere_and_over_a_change_of_keys() {
    for cipher in [Cipher::Aes128Gcm, Cipher::ChaCha20Poly1305] {
        let secret = Zeroizing::new([5; 32]);
        let start = |counter| Position { cipher, secret: secret.clone(), counter, ended: false };
        let mut sealer = Sealer::at(&start(RECORDS_PER_KEY - 2));
        let mut opener = Opener::at(&start(RECORDS_PER_KEY - 2));
        for number in 0..4 {
            let kind = if number < 3 { Kind::Data } else { Kind::End };
            let plaintext: &[u8] = if number < 3 { &[number] } else { &[] };
            let mut record = sealer.seal_new(kind, plaintext).unwrap();
            let opened = opener.next(&mut record).unwrap();
            assert!(matches!(opened, Opened::Record { kind: found, .. } if found == kind));
            sealer = Sealer::at(&sealer.position());
            opener = Opener::at(&opener.position());
        }
        assert!(sealer.has_ended() && opener.has_ended());
        let after = sealer.seal_new(Kind::Data, &[0]).unwrap_err();
        assert_eq!(after, RecordError::OutOfOrder(Kind::Data));
        assert!(!format!("{:?}", sealer.position()).contains("5, 5"));
    }
}
