//! Whether a neighbour on a link answers ARP or neighbour discovery (`linux/neighbour.h`).

use std::io;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_ROUTE;

use super::netlink::{Message, Request, Requester, family_number, read};
use crate::net::{Family, IfIndex};

const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
/// Bytes of `struct ndmsg`.
const HEADER: usize = 12;
const NDA_DST: u16 = 1;
/// `NUD_INCOMPLETE` and `NUD_FAILED`: asked for, and no answer.
const UNANSWERED: u16 = 0x01 | 0x20;

/// Whether a neighbour answered when it was last asked for; `None` when it never was.
///
/// # Errors
/// The kernel's.
pub async fn answers(device: IfIndex, address: IpAddr) -> io::Result<Option<bool>> {
    let mut header = [0; HEADER];
    if let Some(family) = header.first_mut() {
        *family = family_number(Family::of(address));
    }
    let mut requester = Requester::open(NETLINK_ROUTE)?;
    let replies = requester.request(&Request::dump(RTM_GETNEIGH, &header)).await?;
    let entry = replies.iter().find_map(|message| state(&message, device, address));
    Ok(entry.map(|state| state & UNANSWERED == 0))
}

/// The state of a neighbour's entry (`NUD_...`), if this message is it.
fn state(message: &Message<'_>, device: IfIndex, address: IpAddr) -> Option<u16> {
    let index = u32::from_ne_bytes(read(message.payload, 4)?);
    let state = u16::from_ne_bytes(read(message.payload, 8)?);
    let mut attributes = message.attributes(HEADER);
    let named = attributes.any(|it| it.kind == NDA_DST && it.address() == Some(address));
    (message.kind == RTM_NEWNEIGH && index == device.0 && named).then_some(state)
}

/// Reads anything as a neighbour.
#[cfg(any(test, fuzzing))]
pub fn read_anything(bytes: &[u8]) {
    let address = IpAddr::from([192, 0, 2, 1]);
    for message in super::netlink::messages(bytes) {
        let _ = state(&message, IfIndex(2), address);
    }
}
