use super::*;
use crate::tunnel::testing::{Xorshift, mutations};

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn everything() -> Message {
    Message {
        tlvs: vec![
            Tlv::Info,
            Tlv::Connect { target: address("192.0.2.1:80"), tcp_options: vec![2, 4, 5, 0xb4] },
            Tlv::ExtendedTcpHeader(vec![1, 2, 3, 4]),
            Tlv::SupportedTcpExtensions(vec![30, 34, 8]),
            Tlv::Cookie(vec![9; 8]),
            Tlv::Error { code: ErrorCode::NetworkFailure, value: vec![5] },
            Tlv::Accept(1 << 40),
        ],
        unknown: Vec::new(),
    }
}

#[test]
fn a_request_is_encoded_as_the_rfc_says() {
    // As libconvert's parser test has it: port 12345 at ::1:5ee:bad:c0de.
    let request = Message::connect(address("[::1:5ee:bad:c0de]:12345")).encode().unwrap();
    assert_eq!(
        request,
        [
            1, 6, 0x22, 0x63, //
            10, 5, 0x30, 0x39, //
            0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x05, 0xee, 0x0b, 0xad, 0xc0, 0xde,
        ]
    );
    let ipv4 = Message::connect(address("203.0.113.5:443")).encode().unwrap();
    assert_eq!(ipv4[8..], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 203, 0, 113, 5]);
    assert_eq!(
        Message::decode(&ipv4).unwrap().target(),
        Ok((address("203.0.113.5:443"), [].as_slice()))
    );
}

#[test]
fn answers_are_encoded_as_the_rfc_says() {
    assert_eq!(Message::connected().encode().unwrap(), [1, 1, 0x22, 0x63]);
    let failure = Failure { code: ErrorCode::DestinationUnreachable, detail: 1 };
    let bytes = Message::failed(failure).encode().unwrap();
    assert_eq!(bytes, [1, 2, 0x22, 0x63, 30, 1, 97, 1]);
    assert_eq!(Message::decode(&bytes).unwrap().outcome(), Err(failure));
    assert_eq!(Message::connected().outcome(), Ok(()));
}

#[test]
fn every_tlv_comes_back() {
    let bytes = everything().encode().unwrap();
    assert_eq!(bytes.len(), 4 + 4 + 24 + 8 + 8 + 12 + 4 + 12);
    assert_eq!(message_length(bytes.first_chunk().unwrap()), Ok(bytes.len()));
    assert_eq!(Message::decode(&bytes), Ok(everything()));
}

#[test]
fn malformed_messages_are_refused() {
    let decode = |bytes: &[u8]| Message::decode(bytes).unwrap_err();
    assert_eq!(decode(&[]), ConvertError::BadLength);
    assert_eq!(decode(&[2, 1, 0x22, 0x63]), ConvertError::Version(2));
    assert_eq!(decode(&[1, 1, 0x22, 0x64]), ConvertError::BadMagic(0x2264));
    assert_eq!(decode(&[1, 0, 0x22, 0x63]), ConvertError::BadLength);
    assert_eq!(decode(&[1, 2, 0x22, 0x63]), ConvertError::BadLength);
    let tlv = |tlv: &[u8]| {
        let words = 1 + (tlv.len() / 4) as u8;
        Message::decode(&[&[1, words, 0x22, 0x63], tlv].concat())
    };
    assert_eq!(tlv(&[22, 0, 0, 0]), Err(ConvertError::BadTlvLength(22)));
    assert_eq!(tlv(&[22, 2, 0, 0]), Err(ConvertError::BadTlvLength(22)));
    assert_eq!(tlv(&[1, 2, 0, 0, 0, 0, 0, 0]), Err(ConvertError::BadTlvLength(1)));
    assert_eq!(tlv(&[10, 1, 0, 80]), Err(ConvertError::BadTlvLength(10)));
    assert_eq!(tlv(&[1, 1, 0, 0, 1, 1, 0, 0]), Err(ConvertError::Duplicate(1)));
    let unknown = tlv(&[200, 1, 0, 0]).unwrap();
    assert_eq!(unknown.target(), Err(ConvertError::UnknownTlv(200)));
    assert_eq!(unknown.outcome(), Ok(()));
    assert_eq!(Message::connected().target(), Err(ConvertError::NoConnect));
}

#[test]
fn impossible_targets_are_refused() {
    for target in ["0.0.0.0:80", "[::]:80", "224.0.0.1:80", "[ff02::1]:80", "255.255.255.255:80"]
        .into_iter()
        .chain(["192.0.2.1:0"])
    {
        let bytes = Message::connect(address(target)).encode().unwrap();
        assert_eq!(Message::decode(&bytes), Err(ConvertError::BadTarget), "{target}");
    }
}

#[test]
fn unreadable_messages_are_answered_within_bounds() {
    let huge = [7; 5000];
    for (error, code) in [
        (ConvertError::Version(2), ErrorCode::UnsupportedVersion),
        (ConvertError::UnknownTlv(200), ErrorCode::UnsupportedMessage),
        (ConvertError::BadLength, ErrorCode::MalformedMessage),
    ] {
        let bytes = error.answer(&huge).encode().unwrap();
        assert!(bytes.len() <= MESSAGE_MAX);
        assert_eq!(Message::decode(&bytes).unwrap().outcome().unwrap_err().code, code);
    }
    let too_long = Message { tlvs: vec![Tlv::Cookie(vec![0; 1020])], unknown: vec![] };
    assert_eq!(too_long.encode(), Err(ConvertError::TooLong));
    let too_long = Message { tlvs: vec![Tlv::Cookie(vec![0; 1012]), Tlv::Info], unknown: vec![] };
    assert_eq!(too_long.encode(), Err(ConvertError::TooLong));
}

#[test]
fn connect_errors_travel() {
    for (errno, code, detail) in [
        (libc::ECONNREFUSED, 96, 0),
        (libc::ECONNRESET, 96, 0),
        (libc::ENETUNREACH, 97, 0),
        (libc::EHOSTUNREACH, 97, 1),
        (libc::EACCES, 97, 13),
        (libc::EPERM, 97, 13),
        (libc::ETIMEDOUT, 65, 0),
        (libc::ENETDOWN, 65, 0),
        (libc::EMFILE, 64, 0),
        (libc::EADDRNOTAVAIL, 64, 0),
    ] {
        let failure = Failure::from_io(&io::Error::from_raw_os_error(errno));
        assert_eq!((failure.code.to_wire(), failure.detail), (code, detail), "errno {errno}");
        let bytes = Message::failed(failure).encode().unwrap();
        assert_eq!(Message::decode(&bytes).unwrap().outcome(), Err(failure), "errno {errno}");
    }
    let timed_out = Failure::from_io(&io::Error::from(io::ErrorKind::TimedOut));
    assert_eq!(timed_out, Failure::TIMED_OUT);
    assert_eq!(Failure::NOT_AUTHORIZED.code.to_wire(), 32);
}

#[test]
fn error_codes_keep_their_numbers() {
    for number in 0..=255 {
        assert_eq!(ErrorCode::from_wire(number).to_wire(), number);
    }
    assert_eq!(ErrorCode::from_wire(98), ErrorCode::Other(98));
}

#[test]
fn mutated_messages_do_not_panic() {
    let mut random = Xorshift::new(8);
    let mut read = 0;
    mutations(&mut random, &everything().encode().unwrap(), 100_000, |bytes| {
        if let Ok(message) = Message::decode(bytes) {
            read += 1;
            let _ = (message.target(), message.outcome());
            let known = Message { unknown: Vec::new(), ..message };
            assert_eq!(Message::decode(&known.encode().unwrap()), Ok(known));
        }
    });
    assert!(read > 10_000, "only {read} mutations were readable");
}
