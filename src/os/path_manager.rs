//! The in-kernel MPTCP path manager over generic netlink (`linux/mptcp_pm.h`,
//! `net/mptcp/pm_kernel.c`).

use std::io;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_GENERIC;
use rustix::io::Errno;

use super::netlink::{
    Attribute, Listener, Message, Refusal, Request, Requester, family_number, messages,
};
use crate::net::{Endpoint, EndpointId, Family, IfIndex, Limits};

/// Bytes of `struct genlmsghdr`.
const HEADER: usize = 4;
/// `MPTCP_PM_VER`.
const VERSION: u8 = 1;
const FAMILY_NAME: &str = "mptcp_pm";
const EVENT_GROUP: &str = "mptcp_pm_events";

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;

const ADD_ADDR: u8 = 1;
const DEL_ADDR: u8 = 2;
const GET_ADDR: u8 = 3;
const SET_LIMITS: u8 = 5;
const GET_LIMITS: u8 = 6;
const SET_FLAGS: u8 = 7;

const ATTR_ADDR: u16 = 1;
const ATTR_RCV_ADD_ADDRS: u16 = 2;
const ATTR_SUBFLOWS: u16 = 3;

const ADDR_FAMILY: u16 = 1;
const ADDR_ID: u16 = 2;
const ADDR_4: u16 = 3;
const ADDR_6: u16 = 4;
const ADDR_FLAGS: u16 = 6;
const ADDR_IF_IDX: u16 = 7;

const FLAG_SUBFLOW: u32 = 2;
const FLAG_BACKUP: u32 = 4;
const FLAG_IMPLICIT: u32 = 16;

/// The path manager of this network namespace.
pub struct PathManager {
    requester: Requester,
    family: u16,
    event_group: Option<u32>,
}

impl PathManager {
    /// The path manager; `None` where the kernel has no MPTCP.
    pub async fn open() -> Result<Option<PathManager>, Refusal> {
        let mut requester = Requester::open(NETLINK_GENERIC)?;
        let request = Request::new(GENL_ID_CTRL, 0, &[CTRL_CMD_GETFAMILY, 1, 0, 0])
            .text(CTRL_ATTR_FAMILY_NAME, FAMILY_NAME);
        let replies = match requester.request(&request).await {
            Err(refusal) if refusal.is_one_of(&[Errno::NOENT]) => return Ok(None),
            replies => replies?,
        };
        let (mut family, mut event_group) = (None, None);
        for attribute in replies.iter().flat_map(|message| message.attributes(HEADER)) {
            match attribute.kind {
                CTRL_ATTR_FAMILY_ID => family = attribute.u16(),
                CTRL_ATTR_MCAST_GROUPS => event_group = attribute.nested().find_map(event_group_id),
                _ => {}
            }
        }
        Ok(family.map(|family| PathManager { requester, family, event_group }))
    }

    /// A socket that hears the path manager's events.
    pub fn listen(&self) -> io::Result<Listener> {
        Listener::open(NETLINK_GENERIC, self.event_group.as_slice())
    }

    /// All endpoints but the implicit ones. The kernel makes those for itself and numbers them
    /// after ours; deleting one would close subflows that are none of our business.
    pub async fn endpoints(&mut self) -> Result<Vec<Endpoint>, Refusal> {
        Ok(self.all_endpoints().await?.1)
    }

    /// Implicit and other endpoints.
    async fn all_endpoints(&mut self) -> Result<(Vec<Endpoint>, Vec<Endpoint>), Refusal> {
        let request = Request::dump(self.family, &[GET_ADDR, VERSION, 0, 0]);
        let replies = self.requester.request(&request).await?;
        Ok(replies
            .iter()
            .flat_map(|message| message.attributes(HEADER))
            .filter(|attribute| attribute.kind == ATTR_ADDR)
            .filter_map(|attribute| endpoint(&attribute))
            .partition(|endpoint| endpoint.other_flags & FLAG_IMPLICIT != 0))
    }

    /// `ip mptcp endpoint add`; an equal endpoint that is there already is fine. An implicit
    /// endpoint of the same address or id gives way.
    pub async fn add(&mut self, endpoint: &Endpoint) -> Result<(), Refusal> {
        let Err(refusal) = self.change(ADD_ADDR, endpoint, true).await else { return Ok(()) };
        if !refusal.is_one_of(&[Errno::EXIST, Errno::BUSY, Errno::INVAL]) {
            return Err(refusal);
        }
        let (implicit, explicit) = self.all_endpoints().await?;
        if explicit.contains(endpoint) {
            return Ok(());
        }
        let mut in_the_way = false;
        for other in implicit {
            if other.id == endpoint.id || other.address == endpoint.address {
                self.change(DEL_ADDR, &other, false).await?;
                in_the_way = true;
            }
        }
        if in_the_way { self.change(ADD_ADDR, endpoint, true).await } else { Err(refusal) }
    }

    /// `ip mptcp endpoint delete`; an endpoint that is gone already is fine.
    pub async fn delete(&mut self, endpoint: &Endpoint) -> Result<(), Refusal> {
        match self.change(DEL_ADDR, endpoint, false).await {
            // "Address not found" is EINVAL.
            Err(refusal) if refusal.is_one_of(&[Errno::INVAL]) => {
                let (implicit, explicit) = self.all_endpoints().await?;
                let mut left = implicit.iter().chain(&explicit);
                if left.any(|other| other.id == endpoint.id) { Err(refusal) } else { Ok(()) }
            }
            result => result,
        }
    }

    /// `ip mptcp endpoint change`: only `backup` and `fullmesh` can change.
    pub async fn set_flags(&mut self, endpoint: &Endpoint) -> Result<(), Refusal> {
        // Without an address the kernel looks the endpoint up by its id.
        let id = [endpoint.id.0];
        let request = Request::new(self.family, 0, &[SET_FLAGS, VERSION, 0, 0])
            .nested(ATTR_ADDR, |r| r.attribute(ADDR_ID, &id).u32(ADDR_FLAGS, flags(endpoint)));
        self.requester.request(&request).await.map(drop)
    }

    async fn change(&mut self, command: u8, of: &Endpoint, all: bool) -> Result<(), Refusal> {
        let request = Request::new(self.family, 0, &[command, VERSION, 0, 0])
            .nested(ATTR_ADDR, |request| fill(request, of, all));
        self.requester.request(&request).await.map(drop)
    }

    /// The limits in force.
    pub async fn limits(&mut self) -> Result<Limits, Refusal> {
        let request = Request::new(self.family, 0, &[GET_LIMITS, VERSION, 0, 0]);
        let replies = self.requester.request(&request).await?;
        let mut limits = Limits { subflows: 0, add_addr_accepted: 0 };
        for attribute in replies.iter().flat_map(|message| message.attributes(HEADER)) {
            match (attribute.kind, attribute.u32()) {
                (ATTR_SUBFLOWS, Some(value)) => limits.subflows = value,
                (ATTR_RCV_ADD_ADDRS, Some(value)) => limits.add_addr_accepted = value,
                _ => {}
            }
        }
        Ok(limits)
    }

    /// `ip mptcp limits set`.
    pub async fn set_limits(&mut self, limits: Limits) -> Result<(), Refusal> {
        let request = Request::new(self.family, 0, &[SET_LIMITS, VERSION, 0, 0])
            .u32(ATTR_RCV_ADD_ADDRS, limits.add_addr_accepted)
            .u32(ATTR_SUBFLOWS, limits.subflows);
        self.requester.request(&request).await.map(drop)
    }
}

/// The id of the event group, if this is it.
fn event_group_id(group: Attribute<'_>) -> Option<u32> {
    let name = group.nested().find(|a| a.kind == CTRL_ATTR_MCAST_GRP_NAME)?;
    let id = group.nested().find(|a| a.kind == CTRL_ATTR_MCAST_GRP_ID)?;
    if name.text()? == EVENT_GROUP { id.u32() } else { None }
}

/// The kernel's flags of an endpoint: [`Endpoint::other_flags`] holds how they differ from ours.
fn flags(endpoint: &Endpoint) -> u32 {
    let backup = if endpoint.backup { FLAG_BACKUP } else { 0 };
    (endpoint.other_flags ^ FLAG_SUBFLOW) | backup
}

/// The attributes of an endpoint: those that identify it, or all.
fn fill(request: Request, endpoint: &Endpoint, all: bool) -> Request {
    let family = Family::of(endpoint.address);
    let kind = match family {
        Family::V4 => ADDR_4,
        Family::V6 => ADDR_6,
    };
    let mut request = request
        .attribute(ADDR_FAMILY, &u16::from(family_number(family)).to_ne_bytes())
        .attribute(ADDR_ID, &[endpoint.id.0])
        .address(kind, endpoint.address);
    if all {
        request = request.u32(ADDR_FLAGS, flags(endpoint));
        if let Some(IfIndex(device)) = endpoint.device {
            request = request.u32(ADDR_IF_IDX, device);
        }
    }
    request
}

fn endpoint(attribute: &Attribute<'_>) -> Option<Endpoint> {
    let (mut id, mut address, mut device, mut flags) = (None, None, None, 0);
    for attribute in attribute.nested() {
        match attribute.kind {
            ADDR_ID => id = attribute.u8(),
            ADDR_4 | ADDR_6 => address = attribute.address(),
            ADDR_FLAGS => flags = attribute.u32()?,
            ADDR_IF_IDX => device = attribute.u32().filter(|index| *index != 0),
            _ => {}
        }
    }
    Some(Endpoint {
        id: EndpointId(id?),
        address: address?,
        device: device.map(IfIndex),
        backup: flags & FLAG_BACKUP != 0,
        other_flags: (flags & !FLAG_BACKUP) ^ FLAG_SUBFLOW,
    })
}

/// What happened to a connection or a subflow (`enum mptcp_event_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PmEventKind {
    /// A connection was made.
    Created,
    /// A connection may have more subflows from now on.
    Established,
    /// A connection ended.
    Closed,
    /// The peer announced an address.
    Announced,
    /// The peer withdrew an address.
    Removed,
    /// A subflow joined.
    SubflowEstablished,
    /// A subflow ended.
    SubflowClosed,
    /// The peer changed a subflow's priority.
    SubflowPriority,
    /// A listener of the path manager opened.
    ListenerCreated,
    /// A listener of the path manager closed.
    ListenerClosed,
    /// Something newer.
    Other(u8),
}

impl PmEventKind {
    fn from_command(command: u8) -> PmEventKind {
        match command {
            1 => PmEventKind::Created,
            2 => PmEventKind::Established,
            3 => PmEventKind::Closed,
            6 => PmEventKind::Announced,
            7 => PmEventKind::Removed,
            10 => PmEventKind::SubflowEstablished,
            11 => PmEventKind::SubflowClosed,
            13 => PmEventKind::SubflowPriority,
            15 => PmEventKind::ListenerCreated,
            16 => PmEventKind::ListenerClosed,
            other => PmEventKind::Other(other),
        }
    }
}

/// What matters of an event of the path manager (`enum mptcp_event_attr`); which fields there are
/// depends on the kind and on the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PmEvent {
    /// What happened.
    pub kind: PmEventKind,
    /// The connection's token.
    pub token: Option<u32>,
    /// Local address.
    pub saddr: Option<IpAddr>,
    /// Remote address.
    pub daddr: Option<IpAddr>,
    /// `errno` of the subflow's socket.
    pub error: Option<u8>,
    /// This host accepted the connection.
    pub server_side: bool,
}

/// `MPTCP_PM_EV_FLAG_SERVER_SIDE`, which newer kernels set in the place of the attribute.
const EVENT_FLAG_SERVER_SIDE: u16 = 2;

/// Reads a datagram of events.
pub fn events(datagram: &[u8]) -> impl Iterator<Item = PmEvent> + '_ {
    messages(datagram).filter_map(|message| event(&message))
}

fn event(message: &Message<'_>) -> Option<PmEvent> {
    let mut event = PmEvent {
        kind: PmEventKind::from_command(*message.payload.first()?),
        token: None,
        saddr: None,
        daddr: None,
        error: None,
        server_side: false,
    };
    for attribute in message.attributes(HEADER) {
        match attribute.kind {
            1 => event.token = attribute.u32(),
            5 | 6 => event.saddr = attribute.address(),
            7 | 8 => event.daddr = attribute.address(),
            12 => event.error = attribute.u8(),
            13 => {
                let flags = attribute.u16().unwrap_or(0);
                event.server_side |= flags & EVENT_FLAG_SERVER_SIDE != 0;
            }
            18 => event.server_side |= attribute.u8().unwrap_or(0) != 0,
            _ => {}
        }
    }
    Some(event)
}

/// Reads anything as endpoints and events.
#[cfg(any(test, fuzzing))]
pub fn read_anything(bytes: &[u8]) {
    events(bytes).for_each(drop);
    for attribute in super::netlink::attributes(bytes) {
        let _ = endpoint(&attribute);
    }
}

#[cfg(test)]
mod tests;
