//! Netlink: messages and attributes as bytes, and the sockets that carry them.
//!
//! Written by hand because the general message crates add half a megabyte to the binary, and
//! because they refuse a whole message for one attribute they do not know. Readers here are
//! lenient: what is malformed ends the iteration, what is unknown is passed over.

mod refusal;
mod socket;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str;

pub use refusal::{Refusal, errno_text};
pub use socket::{Listener, Requester};

use crate::net::Family;

/// `NLM_F_REQUEST`.
const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`.
const ACK: u16 = 0x4;
/// `NLM_F_DUMP`.
const DUMP: u16 = 0x300;
/// `NLM_F_REPLACE`.
pub const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`.
pub const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_CREATE`.
pub const CREATE: u16 = 0x400;

/// `NLMSG_ERROR`, also the acknowledgement.
const ERROR: u16 = 2;
/// `NLMSG_DONE`.
const DONE: u16 = 3;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// `NLA_TYPE_MASK`.
const KIND_MASK: u16 = 0x3fff;

/// Bytes of a message header.
const HEADER: usize = 16;

/// The address families as the kernel numbers them.
pub fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// An attribute or message payload, read leniently.
#[derive(Clone, Copy, Debug)]
pub struct Attribute<'a> {
    /// Its type, flags removed.
    pub kind: u16,
    /// Its value.
    pub value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The value as a byte.
    pub fn u8(&self) -> Option<u8> {
        self.value.first().copied()
    }

    /// The value as a number in host order.
    pub fn u16(&self) -> Option<u16> {
        read(self.value, 0).map(u16::from_ne_bytes)
    }

    /// The value as a number in host order.
    pub fn u32(&self) -> Option<u32> {
        read(self.value, 0).map(u32::from_ne_bytes)
    }

    /// The value as an address of 4 or 16 bytes.
    pub fn address(&self) -> Option<IpAddr> {
        address(self.value)
    }

    /// The value as text up to its first NUL; `None` unless it is UTF-8.
    pub fn text(&self) -> Option<&'a str> {
        str::from_utf8(self.value.split(|byte| *byte == 0).next()?).ok()
    }

    /// The attributes nested in the value.
    pub fn nested(&self) -> Attributes<'a> {
        attributes(self.value)
    }
}

/// `N` bytes at `offset`, if there are that many.
pub fn read<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk::<N>().copied()
}

/// An address of 4 or 16 bytes.
pub fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::V4(Ipv4Addr::from(octets)));
    }
    <[u8; 16]>::try_from(bytes).ok().map(|octets| IpAddr::V6(Ipv6Addr::from(octets)))
}

/// Attributes in a row.
#[derive(Clone, Debug)]
pub struct Attributes<'a>(&'a [u8]);

/// The attributes in `bytes`.
pub fn attributes(bytes: &[u8]) -> Attributes<'_> {
    Attributes(bytes)
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let length = usize::from(u16::from_ne_bytes(read(self.0, 0)?));
        let kind = u16::from_ne_bytes(read(self.0, 2)?) & KIND_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Attribute { kind, value })
    }
}

/// A message from the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Its type.
    pub kind: u16,
    /// Its flags.
    pub flags: u16,
    /// The number of the request it answers.
    pub sequence: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes behind a fixed header of `length` bytes.
    pub fn attributes(&self, length: usize) -> Attributes<'a> {
        attributes(self.payload.get(length..).unwrap_or_default())
    }
}

/// Messages in a row.
#[derive(Clone, Debug)]
pub struct Messages<'a>(&'a [u8]);

/// The messages in `bytes`.
pub fn messages(bytes: &[u8]) -> Messages<'_> {
    Messages(bytes)
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = usize::try_from(u32::from_ne_bytes(read(self.0, 0)?)).ok()?;
        let message = Message {
            kind: u16::from_ne_bytes(read(self.0, 4)?),
            flags: u16::from_ne_bytes(read(self.0, 6)?),
            sequence: u32::from_ne_bytes(read(self.0, 8)?),
            payload: self.0.get(HEADER..length)?,
        };
        let end = length.checked_next_multiple_of(4)?;
        self.0 = self.0.get(end..).unwrap_or_default();
        Some(message)
    }
}

/// A request being written.
#[derive(Clone, Debug)]
pub struct Request(Vec<u8>);

impl Request {
    /// A request of a type, with flags beside `NLM_F_REQUEST`, and its fixed header.
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Request {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | REQUEST).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(fixed);
        Request(bytes).aligned()
    }

    /// A request for all objects of a type.
    pub fn dump(kind: u16, fixed: &[u8]) -> Request {
        Request::new(kind, DUMP, fixed)
    }

    /// With an attribute.
    #[must_use]
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Request {
        // Values are addresses, numbers and device names, far below 64 KiB.
        let length = u16::try_from(value.len().saturating_add(4)).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.aligned()
    }

    /// With an attribute that holds a number in host order.
    #[must_use]
    pub fn u32(self, kind: u16, value: u32) -> Request {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// With an attribute that holds an address.
    #[must_use]
    pub fn address(self, kind: u16, value: IpAddr) -> Request {
        match value {
            IpAddr::V4(value) => self.attribute(kind, &value.octets()),
            IpAddr::V6(value) => self.attribute(kind, &value.octets()),
        }
    }

    /// With an attribute that holds text, NUL-terminated.
    #[must_use]
    pub fn text(self, kind: u16, value: &str) -> Request {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    /// With an attribute that holds the attributes which `fill` adds.
    #[must_use]
    pub fn nested(mut self, kind: u16, fill: impl FnOnce(Request) -> Request) -> Request {
        let inner = fill(Request(Vec::new())).0;
        self = self.attribute(kind | NESTED, &inner);
        self
    }

    fn aligned(mut self) -> Request {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn is_dump(&self) -> bool {
        self.flags() & DUMP == DUMP
    }

    fn flags(&self) -> u16 {
        read(&self.0, 6).map_or(0, u16::from_ne_bytes)
    }

    /// The bytes to send: length, acknowledgement and sequence number filled in.
    fn finish(&self, sequence: u32) -> Vec<u8> {
        let mut bytes = self.0.clone();
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let flags = if self.is_dump() { self.flags() } else { self.flags() | ACK };
        let fields = [
            (0, length.to_ne_bytes().to_vec()),
            (6, flags.to_ne_bytes().to_vec()),
            (8, sequence.to_ne_bytes().to_vec()),
        ];
        for (offset, value) in fields {
            for (target, byte) in bytes.iter_mut().skip(offset).zip(value) {
                *target = byte;
            }
        }
        bytes
    }
}

/// What the kernel said to a request, message after message.
#[derive(Clone, Debug, Default)]
pub struct Replies(Vec<u8>);

impl Replies {
    /// The messages, acknowledgements left out.
    pub fn iter(&self) -> impl Iterator<Item = Message<'_>> {
        messages(&self.0).filter(|message| message.kind != ERROR && message.kind != DONE)
    }
}

#[cfg(test)]
pub(super) mod tests;
