use super::super::netlink::tests::{Noise, bytes};
use super::*;

fn endpoint_request(wish: &Endpoint) -> Request {
    Request::new(30, 0, &[ADD_ADDR, VERSION, 0, 0]).nested(ATTR_ADDR, |r| fill(r, wish, true))
}

fn read_back(bytes: &[u8]) -> Option<Endpoint> {
    let message = messages(bytes).next()?;
    let attribute = message.attributes(HEADER).find(|a| a.kind == ATTR_ADDR)?;
    endpoint(&attribute)
}

fn any_endpoint(noise: &mut Noise) -> Endpoint {
    let family = Family::ALL[noise.below(2)];
    Endpoint {
        id: EndpointId(noise.u8()),
        address: noise.address(family),
        device: noise.bool().then(|| IfIndex(1 + noise.u32() % 1000)),
        backup: noise.bool(),
        other_flags: u32::from(noise.u8()) & !FLAG_BACKUP,
    }
}

#[test]
fn an_endpoint_written_reads_the_same() {
    let mut noise = Noise::new();
    for _ in 0..20_000 {
        let endpoint = any_endpoint(&mut noise);
        assert_eq!(read_back(&bytes(&endpoint_request(&endpoint))), Some(endpoint));
    }
}

#[test]
fn ours_have_the_subflow_flag_and_no_other() {
    let mut ours = any_endpoint(&mut Noise::new());
    (ours.other_flags, ours.backup) = (0, false);
    assert_eq!(flags(&ours), FLAG_SUBFLOW);
    ours.backup = true;
    assert_eq!(flags(&ours), FLAG_SUBFLOW | FLAG_BACKUP);
}

fn subflow_established() -> Request {
    Request::new(30, 0, &[10, VERSION, 0, 0])
        .u32(1, 0x0102_0304)
        .attribute(2, &10_u16.to_ne_bytes())
        .attribute(3, &[200])
        .attribute(4, &[0])
        .address(6, "2001:db8::2".parse().unwrap())
        .address(8, "2001:db8::1".parse().unwrap())
        .attribute(9, &40_000_u16.to_be_bytes())
        .attribute(10, &443_u16.to_be_bytes())
        .attribute(11, &[1])
        .attribute(12, &[110])
        .attribute(13, &2_u16.to_ne_bytes())
        .u32(15, 3)
        .u32(16, 6)
        .attribute(99, &[1, 2, 3])
}

#[test]
fn an_event_is_read_whole() {
    let datagram = [bytes(&subflow_established()), bytes(&Request::new(30, 0, &[99, 1, 0, 0]))];
    let found: Vec<_> = events(&datagram.concat()).collect();
    assert_eq!(found.len(), 2);
    let expected = PmEvent {
        kind: PmEventKind::SubflowEstablished,
        token: Some(0x0102_0304),
        saddr: Some("2001:db8::2".parse().unwrap()),
        daddr: Some("2001:db8::1".parse().unwrap()),
        error: Some(110),
        server_side: true,
    };
    assert_eq!(found[0], expected);
    assert_eq!((found[1].kind, found[1].token), (PmEventKind::Other(99), None));
}

#[test]
fn no_message_makes_the_readers_panic() {
    let event = bytes(&subflow_established());
    let mut noise = Noise::new();
    for _ in 0..100_000 {
        let datagram = noise.mutate(&event);
        // Each event takes a header of 20 bytes at least: there cannot be more.
        assert!(events(&datagram).count() <= datagram.len() / 16);
        let endpoint = any_endpoint(&mut noise);
        read_back(&noise.mutate(&bytes(&endpoint_request(&endpoint))));
    }
}
