use super::refusal::{ACK_ATTRIBUTES, CAPPED, ERROR_TEXT, acknowledgement, dump_end};
use super::*;

/// A repeatable stream of noise (xorshift).
pub struct Noise(u64);

impl Noise {
    pub fn new() -> Noise {
        Noise(0x9e37_79b9_7f4a_7c15)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % limit
    }

    pub fn u8(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap()
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_ne_bytes([self.u8(), self.u8(), self.u8(), self.u8()])
    }

    pub fn bool(&mut self) -> bool {
        self.below(2) == 0
    }

    pub fn address(&mut self, family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::from_bits(self.u32())),
            Family::V6 => {
                let mut octets = [0; 16];
                octets.fill_with(|| self.u8());
                IpAddr::V6(Ipv6Addr::from(octets))
            }
        }
    }

    /// `bytes` with a few bytes changed, removed or doubled; now and then just noise.
    pub fn mutate(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        if self.below(10) == 0 {
            bytes.iter_mut().for_each(|byte| *byte = self.u8());
        }
        for _ in 0..=self.below(4) {
            if bytes.is_empty() {
                break;
            }
            let at = self.below(bytes.len());
            match self.below(4) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, self.u8()),
                _ => bytes[at] = if self.bool() { self.u8() } else { [0, 1, 4, 255][at % 4] },
            }
        }
        bytes
    }
}

/// A request's bytes, to be read back as a message.
pub fn bytes(request: &Request) -> Vec<u8> {
    request.finish(7)
}

#[test]
fn attributes_round_trip() {
    let request = Request::new(77, CREATE, &[1, 2, 3])
        .u32(1, 0xdead_beef)
        .text(2, "eth0.2")
        .attribute(3, &[9])
        .address(4, "2001:db8::1".parse().unwrap())
        .nested(5, |inner| inner.u32(6, 1).attribute(7, &[]));
    let bytes = bytes(&request);
    assert_eq!(bytes.len() % 4, 0);
    let found: Vec<_> = messages(&bytes).collect();
    let [message] = found[..] else { panic!("{found:?}") };
    assert_eq!((message.kind, message.sequence), (77, 7));
    assert_eq!(message.flags, CREATE | REQUEST | ACK);
    let found: Vec<_> = message.attributes(4).collect();
    assert_eq!(found.iter().map(|a| a.kind).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert_eq!(found[0].u32(), Some(0xdead_beef));
    assert_eq!(found[1].text(), Some("eth0.2"));
    assert_eq!(found[2].u8(), Some(9));
    assert_eq!(found[2].u16(), None);
    assert_eq!(found[3].address(), Some("2001:db8::1".parse().unwrap()));
    let inner: Vec<_> = found[4].nested().map(|a| (a.kind, a.value.len())).collect();
    assert_eq!(inner, [(6, 4), (7, 0)]);
}

#[test]
fn dumps_ask_for_no_acknowledgement() {
    let bytes = bytes(&Request::dump(1, &[]));
    assert_eq!(messages(&bytes).next().unwrap().flags, REQUEST | DUMP);
}

#[test]
fn impossible_lengths_end_the_reading() {
    for length in [0_u16, 3, 9, u16::MAX] {
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend([1, 0, 5, 5, 5, 5]);
        assert_eq!(attributes(&bytes).count(), 0, "{length}");
    }
    for length in [0_u32, 15, 17, u32::MAX] {
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend([0; 12]);
        assert_eq!(messages(&bytes).count(), 0, "{length}");
    }
}

/// An `NLMSG_ERROR` as the kernel writes it.
fn refusal(flags: u16, repeated: &[u8], text: &str) -> Refusal {
    let mut payload = (-17_i32).to_ne_bytes().to_vec();
    payload.extend(u32::try_from(16 + repeated.len()).unwrap().to_ne_bytes());
    payload.extend([0; 12]);
    payload.extend(repeated);
    let tail = Request(Vec::new()).text(ERROR_TEXT, text).0;
    payload.extend(tail);
    let message = Message { kind: ERROR, flags, sequence: 0, payload: &payload };
    acknowledgement(&message).unwrap_err()
}

#[test]
fn refusals_say_why() {
    let capped = refusal(CAPPED | ACK_ATTRIBUTES, &[], "address in use");
    assert_eq!(capped.to_string(), "EEXIST (File exists): address in use");
    assert_eq!(refusal(ACK_ATTRIBUTES, &[0; 8], "address in use"), capped);
    assert_eq!(refusal(CAPPED, &[], "ignored").to_string(), "EEXIST (File exists)");
    assert_eq!(errno_text(1), "EPERM (Operation not permitted)");
    let unnamed = libc::EREMOTEIO;
    assert_eq!(errno_text(unnamed), format!("errno {unnamed} (Remote I/O error)"));
}

#[test]
fn an_acknowledgement_is_no_error() {
    for payload in [&[0; 20][..], &[]] {
        let message = Message { kind: ERROR, flags: 0, sequence: 0, payload };
        assert_eq!(acknowledgement(&message), Ok(()));
        assert_eq!(dump_end(&message), Ok(()));
    }
}

#[test]
fn no_bytes_make_the_readers_panic() {
    let good = bytes(&Request::new(2, 0, &[0; 16]).text(1, "text").nested(2, |r| r.u32(3, 4)));
    let mut noise = Noise::new();
    for _ in 0..100_000 {
        let bytes = noise.mutate(&good);
        for message in messages(&bytes) {
            let _ = (acknowledgement(&message), dump_end(&message));
            for attribute in message.attributes(noise.below(24)) {
                let _ = (attribute.u8(), attribute.u16(), attribute.u32());
                let _ = (attribute.text(), attribute.address(), attribute.nested().count());
            }
        }
    }
}
