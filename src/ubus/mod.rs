//! OpenWrt's message bus as seen on the wire: what `ubusd` is told, and what it tells.
//!
//! Everything from the other side is bounded: a message is at most [`MESSAGE_LIMIT`] bytes, values
//! are nested at most [`blobmsg::DEPTH_LIMIT`] deep.

mod blob;
pub mod blobmsg;
mod message;
mod session;
#[cfg(test)]
mod tests;

use std::fmt;

use serde_json::{Map, Value};

pub use message::{Attributes, Kind, Message};
pub use session::{CALLS_LIMIT, NETIFD, News, Object, Session, Ticket};

/// A table of named values: a call's arguments, or its result.
pub type Table = Map<String, Value>;

/// The table that a JSON object is; an empty one for any other value.
pub fn table(value: Value) -> Table {
    match value {
        Value::Object(table) => table,
        _ => Table::new(),
    }
}

/// The most bytes of a message after its header (`UBUS_MAX_MSGLEN`).
pub const MESSAGE_LIMIT: usize = 1 << 20;

/// How a call ended (`enum ubus_msg_status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u32);

impl Status {
    /// It succeeded.
    pub const OK: Status = Status(0);
    /// An argument is missing, unknown, or of the wrong type or value.
    pub const INVALID_ARGUMENT: Status = Status(2);
    /// The object has no such method.
    pub const METHOD_NOT_FOUND: Status = Status(3);
    /// There is no such object, or thing that an argument names.
    pub const NOT_FOUND: Status = Status(4);
    /// The operating system does not permit it.
    pub const PERMISSION_DENIED: Status = Status(6);
    /// No answer in time.
    pub const TIMEOUT: Status = Status(7);
    /// The far side could not be reached, or refused.
    pub const CONNECTION_FAILED: Status = Status(10);
    /// There is no room: too much is under way, or the result is too large.
    pub const NO_MEMORY: Status = Status(11);
    /// A file cannot be understood.
    pub const PARSE_ERROR: Status = Status(12);
    /// The operating system does not play along.
    pub const SYSTEM_ERROR: Status = Status(13);
}

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// A message would be larger than [`MESSAGE_LIMIT`], or a value nested too deep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what ubusd sends is no ubus message")
    }
}

impl std::error::Error for Malformed {}

/// Reads anything as messages that follow each other.
#[cfg(any(test, fuzzing))]
pub fn read_anything(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some(length)) = Message::length(rest) {
        let Some((message, next)) = rest.split_at_checked(length) else { return };
        if let Ok(message) = Message::decode(message)
            && let Ok(written) = message.encode()
        {
            assert_eq!(Message::decode(&written), Ok(message), "what was understood is kept");
        }
        rest = next;
    }
}
