//! Messages: a header (`ubusmsg.h`), and what is told in attributes.

use super::blob::{self, Attribute, HEAD};
use super::{MESSAGE_LIMIT, Malformed, Status, Table, TooLarge, blobmsg};

/// Bytes of the header.
const HEADER: usize = 8;

/// What a message is for (`enum ubus_msg_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(pub u8);

impl Kind {
    /// ubusd's first, which names the client.
    pub const HELLO: Kind = Kind(0);
    /// How a request ended.
    pub const STATUS: Kind = Kind(1);
    /// An answer to a request.
    pub const DATA: Kind = Kind(2);
    /// Asks for objects by path.
    pub const LOOKUP: Kind = Kind(4);
    /// Calls a method, or tells of an event.
    pub const INVOKE: Kind = Kind(5);
    /// Publishes an object.
    pub const ADD_OBJECT: Kind = Kind(6);
    /// Asks for an object's notifications.
    pub const SUBSCRIBE: Kind = Kind(8);
    /// Ends that; from ubusd: the object is gone.
    pub const UNSUBSCRIBE: Kind = Kind(9);
    /// Notifies an object's subscribers; from ubusd: whether there are any.
    pub const NOTIFY: Kind = Kind(10);
}

/// A message.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// What it is for.
    pub kind: Kind,
    /// Ties answers to a request.
    pub seq: u16,
    /// The other client or the object called; 0 is ubusd.
    pub peer: u32,
    /// What it tells.
    pub attributes: Attributes,
}

/// What a message tells. What is missing, or was not understood, is none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attributes {
    /// How a request ended.
    pub status: Option<Status>,
    /// An object's path.
    pub path: Option<String>,
    /// An object's id.
    pub object: Option<u32>,
    /// A method's name.
    pub method: Option<String>,
    /// The methods of an object, each with its arguments' types by name.
    pub signature: Option<Table>,
    /// Arguments, or a result.
    pub data: Option<Table>,
    /// The id of the object subscribed to.
    pub target: Option<u32>,
    /// Whether an object has subscribers.
    pub active: Option<bool>,
    /// Whether no answer is wanted.
    pub no_reply: Option<bool>,
}

const STATUS: u8 = 1;
const PATH: u8 = 2;
const OBJECT: u8 = 3;
const METHOD: u8 = 4;
const SIGNATURE: u8 = 6;
const DATA: u8 = 7;
const TARGET: u8 = 8;
const ACTIVE: u8 = 9;
const NO_REPLY: u8 = 10;

impl Message {
    /// The bytes of the message that begins here; `None` when too few are there to tell.
    ///
    /// # Errors
    /// [`Malformed`], also when it is too large.
    pub fn length(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        let Some(head) = bytes.get(HEADER..).and_then(|rest| rest.first_chunk::<HEAD>()) else {
            return Ok(None);
        };
        let (_, _, length) = blob::head(*head)?;
        let known_version = bytes.first() == Some(&0);
        if !known_version || length > MESSAGE_LIMIT {
            return Err(Malformed);
        }
        Ok(Some(HEADER + length))
    }

    /// Reads a whole message.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Message, Malformed> {
        if Message::length(bytes)? != Some(bytes.len()) {
            return Err(Malformed);
        }
        let (header, body) = bytes.split_first_chunk::<HEADER>().ok_or(Malformed)?;
        let [_, kind, seq_high, seq_low, peer @ ..] = *header;
        let mut attributes = Attributes::default();
        for attribute in blob::attributes(body.get(HEAD..).ok_or(Malformed)?) {
            attributes.take(attribute?);
        }
        Ok(Message {
            kind: Kind(kind),
            seq: u16::from_be_bytes([seq_high, seq_low]),
            peer: u32::from_be_bytes(peer),
            attributes,
        })
    }

    /// The message's bytes.
    ///
    /// # Errors
    /// [`TooLarge`].
    pub fn encode(&self) -> Result<Vec<u8>, TooLarge> {
        self.encode_with(None)
    }

    /// The message's bytes, with data that [`blobmsg::encode`] wrote in addition.
    ///
    /// # Errors
    /// [`TooLarge`].
    pub fn encode_with(&self, data: Option<&[u8]>) -> Result<Vec<u8>, TooLarge> {
        let mut bytes = vec![0, self.kind.0];
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend(self.peer.to_be_bytes());
        let start = blob::open(&mut bytes);
        self.attributes.put(&mut bytes)?;
        if let Some(data) = data {
            put(&mut bytes, DATA, data);
        }
        blob::close(&mut bytes, start, 0, false);
        if bytes.len() > HEADER + MESSAGE_LIMIT { Err(TooLarge) } else { Ok(bytes) }
    }
}

impl Attributes {
    fn take(&mut self, Attribute { id, data, .. }: Attribute) {
        let number = || Some(u32::from_be_bytes(data.try_into().ok()?));
        let flag = || Some(*data.first()? != 0);
        match id {
            STATUS => self.status = number().map(Status),
            PATH => self.path = blobmsg::text(data).ok(),
            OBJECT => self.object = number(),
            METHOD => self.method = blobmsg::text(data).ok(),
            SIGNATURE => self.signature = blobmsg::table(data).ok(),
            DATA => self.data = blobmsg::table(data).ok(),
            TARGET => self.target = number(),
            ACTIVE => self.active = flag(),
            NO_REPLY => self.no_reply = flag(),
            _ => {}
        }
    }

    fn put(&self, out: &mut Vec<u8>) -> Result<(), TooLarge> {
        let status = self.status.map(|status| status.0);
        for (id, number) in [(STATUS, status), (OBJECT, self.object), (TARGET, self.target)] {
            if let Some(number) = number {
                put(out, id, &number.to_be_bytes());
            }
        }
        for (id, text) in [(PATH, &self.path), (METHOD, &self.method)] {
            if let Some(text) = text {
                let mut data = Vec::new();
                blobmsg::put_text(&mut data, text);
                put(out, id, &data);
            }
        }
        for (id, flag) in [(ACTIVE, self.active), (NO_REPLY, self.no_reply)] {
            if let Some(flag) = flag {
                put(out, id, &[flag.into()]);
            }
        }
        for (id, table) in [(SIGNATURE, &self.signature), (DATA, &self.data)] {
            if let Some(table) = table {
                let start = blob::open(out);
                blobmsg::put_table(out, table)?;
                blob::close(out, start, id, false);
            }
        }
        Ok(())
    }
}

fn put(out: &mut Vec<u8>, id: u8, data: &[u8]) {
    let start = blob::open(out);
    out.extend(data);
    blob::close(out, start, id, false);
}
