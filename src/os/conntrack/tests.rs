use super::super::netlink::messages;
use super::super::netlink::tests::{Noise, bytes};
use super::*;

const ZONE: [u8; 2] = [0, 7];
const ID: [u8; 4] = [1, 2, 3, 4];

/// One direction of a flow, as the kernel writes it.
fn tuple(request: Request, kind: u16, from: IpAddr, to: IpAddr, protocol: u8) -> Request {
    let kinds = match from {
        IpAddr::V4(_) => [CTA_IP_V4_SRC, CTA_IP_V4_DST],
        IpAddr::V6(_) => [CTA_IP_V6_SRC, CTA_IP_V6_DST],
    };
    request.nested(kind, |tuple| {
        tuple
            .nested(CTA_TUPLE_IP, |ip| ip.address(kinds[0], from).address(kinds[1], to))
            .nested(CTA_TUPLE_PROTO, |part| part.attribute(CTA_PROTO_NUM, &[protocol]))
    })
}

/// What a dump says of a flow from a client, answered at an address.
fn entry(client: &str, answered_at: &str, protocol: u8, status: u32) -> Vec<u8> {
    let [client, answered_at] = [client, answered_at].map(|text| text.parse().unwrap());
    let target = match client {
        IpAddr::V4(_) => [192, 0, 2, 1].into(),
        IpAddr::V6(_) => "2001:db8::1".parse().unwrap(),
    };
    let request = Request::new(CT_NEW, 0, &[family_number(Family::of(client)), 0, 0, 0]);
    let request = tuple(request, CTA_TUPLE_ORIG, client, target, protocol);
    let request = tuple(request, CTA_TUPLE_REPLY, target, answered_at, protocol)
        .attribute(CTA_STATUS, &status.to_be_bytes())
        .attribute(CTA_ID, &ID)
        .attribute(CTA_ZONE, &ZONE);
    bytes(&request)
}

fn goes(entry: &[u8], address: &str) -> bool {
    let message = messages(entry).next().unwrap();
    moves(&flow(&message).unwrap(), address.parse().unwrap())
}

#[test]
fn what_can_go_on_under_another_address_goes() {
    const UDP: u8 = 17;
    let lan = "192.168.1.2";
    assert!(goes(&entry(lan, "10.1.0.2", UDP, SEEN_REPLY), "10.1.0.2"));
    assert!(goes(&entry(lan, "10.1.0.2", TCP, 0), "10.1.0.2"), "a connection being made");
    assert!(goes(&entry("fd00::2", "2001:db8:1::2", UDP, 0), "2001:db8:1::2"));
    assert!(!goes(&entry(lan, "10.1.0.2", TCP, SEEN_REPLY), "10.1.0.2"), "a connection");
    assert!(!goes(&entry(lan, "10.2.0.3", UDP, 0), "10.1.0.2"), "another uplink's");
    assert!(!goes(&entry(lan, lan, UDP, 0), lan), "not translated");
    assert!(!goes(&entry("10.1.0.2", "10.1.0.2", UDP, 0), "10.1.0.2"), "the router's own");
}

#[test]
fn an_entry_is_named_by_tuple_id_and_zone() {
    let entry = entry("192.168.1.2", "10.1.0.2", TCP, 0);
    let message = messages(&entry).next().unwrap();
    let flow = flow(&message).unwrap();
    let deletion = bytes(&delete(&flow, Family::V4));
    let deletion = messages(&deletion).next().unwrap();
    assert_eq!((deletion.kind, deletion.payload[0]), (CT_DELETE, 2));
    let found: Vec<_> = deletion.attributes(HEADER).map(|a| (a.kind, a.value)).collect();
    assert_eq!(found, [(CTA_TUPLE_ORIG, flow.tuple), (CTA_ID, &ID), (CTA_ZONE, &ZONE)]);
}

#[test]
fn no_message_makes_the_reader_panic_or_delete_everything() {
    let mut noise = Noise::new();
    let good = [
        entry("192.168.1.2", "10.1.0.2", TCP, SEEN_REPLY),
        entry("fd00::2", "2001:db8:1::2", TCP, 0),
    ];
    for round in 0..100_000 {
        let bytes_read = noise.mutate(&good[round % 2]);
        for flow in messages(&bytes_read).filter_map(|message| flow(&message)) {
            moves(&flow, flow.answered_at);
            let deletion = bytes(&delete(&flow, Family::V4));
            let deletion = messages(&deletion).next().unwrap();
            let tuple = deletion.attributes(HEADER).find(|a| a.kind == CTA_TUPLE_ORIG).unwrap();
            assert!(tuple.nested().count() > 0);
        }
    }
}
