//! libubox's attributes (`blob.h`): an id, a length, and data, padded to 4 bytes.

use super::Malformed;

/// Bytes of an attribute's head.
pub const HEAD: usize = 4;
/// Says that a name stands before the data.
const EXTENDED: u32 = 1 << 31;
/// The bits of the length, which counts the head.
const LENGTH_MASK: u32 = 0x00ff_ffff;

/// An attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// What it is: 0 to 127.
    pub id: u8,
    /// Whether a name stands before the data.
    pub extended: bool,
    /// What it holds, without padding.
    pub data: &'a [u8],
}

/// An attribute's id and whether it is extended, and its bytes, head included.
pub fn head(bytes: [u8; HEAD]) -> Result<(u8, bool, usize), Malformed> {
    let word = u32::from_be_bytes(bytes);
    let length = (word & LENGTH_MASK) as usize;
    if length < HEAD {
        return Err(Malformed);
    }
    Ok(((word >> 24) as u8 & 0x7f, word & EXTENDED != 0, length))
}

/// The attributes that follow each other in these bytes.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = Result<Attribute<'_>, Malformed>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let first = split_first(rest);
        rest = first.map_or(&[], |(_, next)| next);
        Some(first.map(|(attribute, _)| attribute))
    })
}

fn split_first(bytes: &[u8]) -> Result<(Attribute<'_>, &[u8]), Malformed> {
    let (id, extended, length) = head(*bytes.first_chunk().ok_or(Malformed)?)?;
    let data = bytes.get(HEAD..length).ok_or(Malformed)?;
    // Lengths do not count an attribute's own padding, but those around it do.
    let next = bytes.get(length.next_multiple_of(4)..).ok_or(Malformed)?;
    Ok((Attribute { id, extended, data }, next))
}

/// Begins an attribute, for [`close`] to end when its data has been appended.
pub fn open(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend([0; HEAD]);
    start
}

/// Ends the attribute that [`open`] began at `start`.
///
/// A length beyond 24 bits is written wrong: whoever makes a message sees to its size.
pub fn close(out: &mut Vec<u8>, start: usize, id: u8, extended: bool) {
    let length = (out.len() - start) as u32 & LENGTH_MASK;
    let flag = if extended { EXTENDED } else { 0 };
    let word = flag | u32::from(id & 0x7f) << 24 | length;
    if let Some(head) = out.get_mut(start..start + HEAD) {
        head.copy_from_slice(&word.to_be_bytes());
    }
    pad(out, start);
}

/// Fills up with zeros to a multiple of 4 bytes after `start`.
pub fn pad(out: &mut Vec<u8>, start: usize) {
    let length = (out.len() - start).next_multiple_of(4);
    out.resize(start + length, 0);
}
