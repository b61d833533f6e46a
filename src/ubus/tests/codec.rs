use std::sync::LazyLock;

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::ubus::{Attributes, Kind, MESSAGE_LIMIT, Malformed, Message, Status, Table, TooLarge};
use crate::ubus::{blobmsg, read_anything};

fn table(value: Value) -> Table {
    value.as_object().unwrap().clone()
}

fn encoded(value: Value) -> Vec<u8> {
    blobmsg::encode(&table(value)).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    let words = bytes.chunks(4).map(|word| word.iter().map(|byte| format!("{byte:02x}")).collect());
    words.collect::<Vec<String>>().join(" ")
}

/// Bytes as libubox writes them.
#[test]
fn values_are_written_as_libubox_does() {
    #[rustfmt::skip]
    let golden = [
        (json!({ "n": null }),        "80000008 00016e00"),
        (json!({ "b": true }),        "87000009 00016200 01000000"),
        (json!({ "i": 7 }),           "8500000c 00016900 00000007"),
        (json!({ "i": -1 }),          "8500000c 00016900 ffffffff"),
        (json!({ "l": 2147483648u32 }), "84000010 00016c00 00000000 80000000"),
        (json!({ "d": 0.5 }),         "88000010 00016400 3fe00000 00000000"),
        (json!({ "d": u64::MAX }),    "88000010 00016400 43f00000 00000000"),
        (json!({ "s": "wan" }),       "8300000c 00017300 77616e00"),
        (json!({ "name": "wanb" }),   "83000011 00046e61 6d650000 77616e62 00000000"),
        (json!({ "a": [1, "x"] }),    "81000020 00016100 8500000c 00000000 00000001 8300000a 00000000 78000000"),
        (json!({ "t": { "b": false } }), "82000014 00017400 87000009 00016200 00000000"),
    ];
    for (value, bytes) in golden {
        assert_eq!(hex(&encoded(value.clone())), bytes, "{value}");
        let read = blobmsg::table(&encoded(value.clone())).map(Value::Object);
        // What no integer of ubus holds comes back as the nearest double.
        let expected = if value["d"].is_u64() { json!({ "d": u64::MAX as f64 }) } else { value };
        assert_eq!(read, Ok(expected));
    }
}

#[test]
fn a_message_is_written_as_libubus_does() {
    let message = Message {
        kind: Kind::INVOKE,
        seq: 0x0102,
        peer: 0x0a0b_0c0d,
        attributes: Attributes {
            object: Some(0x1111_2222),
            method: Some("call".into()),
            data: Some(table(json!({ "i": 7 }))),
            ..Attributes::default()
        },
    };
    let bytes = "00050102 0a0b0c0d 00000028 03000008 11112222 04000009 63616c6c 00000000 07000010 \
                 8500000c 00016900 00000007";
    assert_eq!(hex(&message.encode().unwrap()), bytes);
    assert_eq!(Message::decode(&message.encode().unwrap()), Ok(message));
}

#[test]
fn a_short_integer_is_read() {
    let bytes = [0x86, 0, 0, 0x0a, 0, 1, b'h', 0, 0xff, 0xfe, 0, 0];
    assert_eq!(blobmsg::table(&bytes).map(Value::Object), Ok(json!({ "h": -2 })));
}

#[test]
fn a_text_ends_at_its_first_nul() {
    let read = blobmsg::table(&encoded(json!({ "s": "wan\0secret" })));
    assert_eq!(read.map(Value::Object), Ok(json!({ "s": "wan" })));
}

#[test]
fn what_is_malformed_is_refused_and_harms_nothing_else() {
    let whole = encoded(json!({ "s": "wan", "i": 7 }));
    for cut in 1..whole.len() {
        let at_a_border = cut == 12;
        assert_eq!(blobmsg::table(&whole[..cut]).is_ok(), at_a_border, "{cut} bytes");
    }
    // A name longer than its attribute, a text without its end, an integer of three bytes.
    for bytes in ["83000008 ffff7300", "8300000b 00017300 77616e00", "8500000b 00016900 00000700"] {
        let bytes: Vec<u8> = bytes
            .replace(' ', "")
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        assert_eq!(blobmsg::table(&bytes), Err(Malformed), "{bytes:02x?}");
        // The message is read all the same: whoever called is to be told.
        let mut message = vec![0, 5, 0, 1, 0, 0, 0, 9, 0, 0, 0, 8 + bytes.len() as u8];
        message.extend([7, 0, 0, 4 + bytes.len() as u8]);
        message.extend(bytes);
        assert_eq!(Message::decode(&message).unwrap().attributes, Attributes::default());
    }
}

#[test]
fn sizes_and_depths_are_limited() {
    let mut deep = json!(1);
    for _ in 0..blobmsg::DEPTH_LIMIT - 2 {
        deep = json!([deep]);
    }
    let fits = json!({ "a": deep });
    assert_eq!(blobmsg::table(&encoded(fits.clone())).map(Value::Object), Ok(fits.clone()));
    let deeper = table(json!({ "a": [[fits]] }));
    assert_eq!(blobmsg::encode(&deeper), Err(TooLarge));
    let mut nested = Vec::new();
    for _ in 0..=blobmsg::DEPTH_LIMIT {
        let length = nested.len() + 8;
        let head = (0x8100_0000 | length as u32).to_be_bytes();
        nested = [&head[..], &[0; 4], &nested].concat();
    }
    assert_eq!(blobmsg::table(&nested), Err(Malformed));

    let message = |length: usize| Message {
        kind: Kind::DATA,
        seq: 0,
        peer: 0,
        attributes: Attributes {
            data: Some(table(json!({ "s": "x".repeat(length) }))),
            ..Attributes::default()
        },
    };
    let room = MESSAGE_LIMIT - 4 - 4 - 8 - 1;
    assert_eq!(message(room).encode().map(|bytes| bytes.len()), Ok(8 + MESSAGE_LIMIT));
    assert_eq!(message(room + 1).encode(), Err(TooLarge));
    let header = |length: u32| [&[0; 8], &length.to_be_bytes()[..]].concat();
    assert_eq!(Message::length(&header(MESSAGE_LIMIT as u32)), Ok(Some(8 + MESSAGE_LIMIT)));
    assert_eq!(Message::length(&header(MESSAGE_LIMIT as u32 + 1)), Err(Malformed));
    assert_eq!(Message::length(&header(3)), Err(Malformed));
    assert_eq!(Message::length(&header(4)[..11]), Ok(None));
}

/// Values that ubus can hold.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>()
            .prop_filter("JSON has no such number", |it| it.is_finite())
            .prop_map(Value::from),
        "[^\0]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        let members = vec(("[a-z\\-]{0,9}", inner.clone()), 0..6);
        prop_oneof![
            vec(inner, 0..6).prop_map(Value::from),
            members.prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn any_table() -> impl Strategy<Value = Table> {
    vec(("[a-z0-9_\\-]{1,9}", any_value()), 0..6).prop_map(|members| members.into_iter().collect())
}

prop_compose! {
    fn any_message()(
        (kind, seq, peer) in any::<(u8, u16, u32)>(),
        (status, object, target) in any::<(Option<u32>, Option<u32>, Option<u32>)>(),
        (active, no_reply) in any::<(Option<bool>, Option<bool>)>(),
        path in proptest::option::of("[a-z.*]{0,12}"),
        method in proptest::option::of("[a-z]{0,12}"),
        signature in proptest::option::of(any_table()),
        data in proptest::option::of(any_table()),
    ) -> Message {
        let status = status.map(Status);
        let attributes =
            Attributes { status, path, object, method, signature, data, target, active, no_reply };
        Message { kind: Kind(kind), seq, peer, attributes }
    }
}

proptest! {
    #[test]
    fn messages_are_read_as_they_were_written(message in any_message()) {
        let bytes = message.encode().unwrap();
        prop_assert_eq!(Message::length(&bytes), Ok(Some(bytes.len())));
        prop_assert_eq!(Message::decode(&bytes), Ok(message));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]

    #[test]
    fn anything_is_read_without_a_panic(bytes in vec(any::<u8>(), 0..80)) {
        read_anything(&bytes);
        let _ = blobmsg::table(&bytes);
    }

    #[test]
    fn damaged_messages_are_read_without_a_panic(
        at in any::<prop::sample::Index>(),
        flip in 1..=u8::MAX,
    ) {
        let mut bytes = SAMPLE.clone();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        read_anything(&bytes);
    }
}

/// A message with one of everything.
static SAMPLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let data = json!({
        "interface": "wan", "up": true, "metric": 10, "bytes": 5_000_000_000u64, "loss": 0.25,
        "route": [{ "target": "0.0.0.0", "mask": 0, "nexthop": "192.0.2.1" }], "reason": null,
    });
    let message = Message {
        kind: Kind::INVOKE,
        seq: 7,
        peer: 9,
        attributes: Attributes {
            status: Some(Status::OK),
            path: Some("network.interface".into()),
            object: Some(1),
            method: Some("interface.update".into()),
            signature: Some(table(json!({ "uplink": { "name": 3, "role": 3 } }))),
            data: Some(table(data)),
            target: Some(2),
            active: Some(true),
            no_reply: Some(true),
        },
    };
    message.encode().unwrap()
});
