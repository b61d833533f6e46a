//! A client's side of one connection to ubusd: publishes an object, follows netifd, and turns what
//! arrives into news.
//!
//! An object is added, netifd's looked up and subscribed to, and its interfaces dumped, as each answer
//! arrives. A session ends with its connection; the next begins anew.

use serde_json::{Value, json};

use super::{Attributes, Kind, Malformed, Message, Status, Table, TooLarge, blobmsg, table};

/// The object that tells of OpenWrt's interfaces.
pub const NETIFD: &str = "network.interface";
/// The event that an object was published.
const OBJECT_ADDED: &str = "ubus.object.add";
/// ubusd's own object, for events (`UBUS_SYSTEM_OBJECT_EVENT`).
const EVENTS: u32 = 1;

/// The requests whose answers matter have a number each; all others share one.
const PUBLISH: u16 = 1;
const LISTEN: u16 = 2;
const FIND: u16 = 3;
const DUMP: u16 = 4;
const OTHER: u16 = 5;

/// An object to publish.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Its path.
    pub path: String,
    /// Its methods, each with the names of its arguments and their types.
    pub signature: Table,
}

impl Object {
    /// An object with these methods, whose arguments are all strings.
    pub fn new(path: &str, methods: &[(&str, &[&str])]) -> Object {
        let mut signature = Table::new();
        for (name, arguments) in methods {
            let mut types = Table::new();
            for argument in *arguments {
                types.insert(argument.to_string(), blobmsg::STRING.into());
            }
            signature.insert(name.to_string(), types.into());
        }
        Object { path: path.to_owned(), signature }
    }
}

/// Calls that may wait for their answers; further ones are refused.
pub const CALLS_LIMIT: usize = 256;

/// To whom the answer to a call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Numbers the connection.
    connection: u32,
    seq: u16,
    peer: u32,
    object: u32,
    no_reply: bool,
}

/// What arrived.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// Somebody calls a method of the object.
    Call {
        /// For the answer.
        ticket: Ticket,
        /// Its name.
        method: String,
        /// Its arguments; `None` when they are missing or malformed.
        arguments: Option<Table>,
    },
    /// The object is there.
    Published,
    /// ubusd did not take the object: another one has its path, or it is not permitted.
    Unpublished(Status),
    /// All of netifd's interfaces.
    Interfaces(Table),
    /// One interface's status, as it changed.
    Interface(Table),
    /// There is no netifd (yet).
    NoNetifd,
}

/// The state of one connection.
pub struct Session {
    number: u32,
    object: Option<Object>,
    /// What is to be sent.
    out: Vec<u8>,
    published: Option<u32>,
    watched: bool,
    /// An object without a path, to which events and notifications come.
    listener: Option<u32>,
    /// Calls that wait for their answers.
    calls: usize,
}

impl Session {
    /// A new connection, on which ubusd speaks first; on it `object` is published. Answers to calls
    /// of a connection with another number are passed over.
    pub fn new(number: u32, object: Option<Object>) -> Session {
        Session {
            number,
            object,
            out: Vec::new(),
            published: None,
            watched: false,
            listener: None,
            calls: 0,
        }
    }

    /// Bytes to send; whoever has sent some takes them away.
    pub fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Takes what has arrived and is complete out of `incoming`; gives what there is of news.
    ///
    /// # Errors
    /// [`Malformed`]: nothing sensible can follow on this connection.
    pub fn receive(&mut self, incoming: &mut Vec<u8>) -> Result<Vec<News>, Malformed> {
        let mut news = Vec::new();
        let mut taken = 0;
        loop {
            let rest = incoming.get(taken..).unwrap_or_default();
            let Some(message) = Message::length(rest)?.and_then(|length| rest.get(..length)) else {
                break;
            };
            news.extend(self.take(Message::decode(message)?));
            taken += message.len();
        }
        incoming.drain(..taken);
        Ok(news)
    }

    fn take(&mut self, message: Message) -> Option<News> {
        match (message.kind, message.seq) {
            (Kind::HELLO, _) => {
                self.publish();
                self.send(Kind::ADD_OBJECT, LISTEN, 0, Attributes::default());
                None
            }
            (Kind::INVOKE, _) => self.on_invoke(message),
            (Kind::NOTIFY, _) => {
                let object = message.attributes.object?;
                if Some(object) == self.published {
                    self.watched = message.attributes.active == Some(true);
                }
                None
            }
            (Kind::DATA, request) => self.on_data(request, message.attributes),
            (Kind::STATUS, request) => {
                let refused = message.attributes.status.filter(|&status| status != Status::OK)?;
                match request {
                    PUBLISH => Some(News::Unpublished(refused)),
                    FIND | DUMP => Some(News::NoNetifd),
                    _ => None,
                }
            }
            // An object that is gone, and came back, is announced.
            _ => None,
        }
    }

    fn on_data(&mut self, request: u16, attributes: Attributes) -> Option<News> {
        match (request, attributes.object, attributes.data) {
            (PUBLISH, Some(object), _) => {
                self.published = Some(object);
                return Some(News::Published);
            }
            (LISTEN, Some(object), _) => {
                self.listener = Some(object);
                // An INT32 is wanted, also for the half of all ids that is beyond its positive ones.
                let id = object.cast_signed();
                let pattern = table(json!({ "object": id, "pattern": OBJECT_ADDED }));
                self.call(OTHER, EVENTS, "register", pattern);
                self.find_netifd();
            }
            (FIND, Some(netifd), _) if self.listener.is_some() => {
                let (object, target) = (self.listener, Some(netifd));
                let attributes = Attributes { object, target, ..Attributes::default() };
                // What changes from now on is told; how things are, the dump says.
                self.send(Kind::SUBSCRIBE, OTHER, 0, attributes);
                self.call(DUMP, netifd, "dump", Table::new());
            }
            (DUMP, _, Some(interfaces)) => return Some(News::Interfaces(interfaces)),
            _ => {}
        }
        None
    }

    fn on_invoke(&mut self, message: Message) -> Option<News> {
        let Message { seq, peer, attributes, .. } = message;
        let object = attributes.object?;
        let no_reply = attributes.no_reply == Some(true);
        let ticket = Ticket { connection: self.number, seq, peer, object, no_reply };
        let Some(method) = attributes.method else {
            self.reply(ticket, Status::INVALID_ARGUMENT, None);
            return None;
        };
        if Some(object) == self.published {
            if self.calls == CALLS_LIMIT {
                self.reply(ticket, Status::NO_MEMORY, None);
                return None;
            }
            self.calls += 1;
            return Some(News::Call { ticket, method, arguments: attributes.data });
        }
        self.reply(ticket, Status::OK, None);
        let data = attributes.data.filter(|_| Some(object) == self.listener)?;
        match method.as_str() {
            OBJECT_ADDED if data.get("path").and_then(Value::as_str) == Some(NETIFD) => {
                self.find_netifd();
                None
            }
            "interface.update" | "interface.down" => Some(News::Interface(data)),
            _ => None,
        }
    }

    /// Asks for the object to be published, again if need be.
    pub fn publish(&mut self) {
        if let Some(Object { path, signature }) = self.object.clone() {
            let (path, signature) = (Some(path), Some(signature));
            let attributes = Attributes { path, signature, ..Attributes::default() };
            self.send(Kind::ADD_OBJECT, PUBLISH, 0, attributes);
        }
    }

    fn find_netifd(&mut self) {
        let attributes = Attributes { path: Some(NETIFD.into()), ..Attributes::default() };
        self.send(Kind::LOOKUP, FIND, 0, attributes);
    }

    /// Answers a call: with a result that [`blobmsg::encode`] wrote, if there is one, and how the call
    /// ended.
    pub fn answer(&mut self, ticket: Ticket, status: Status, result: Option<&[u8]>) {
        if ticket.connection == self.number {
            self.calls = self.calls.saturating_sub(1);
            self.reply(ticket, status, result);
        }
    }

    fn reply(&mut self, ticket: Ticket, status: Status, result: Option<&[u8]>) {
        let Ticket { seq, peer, object, no_reply, .. } = ticket;
        if no_reply {
            return;
        }
        let object = Some(object);
        let mut status = status;
        if result.is_some() {
            let attributes = Attributes { object, ..Attributes::default() };
            match (Message { kind: Kind::DATA, seq, peer, attributes }).encode_with(result) {
                Ok(message) => self.out.extend(message),
                Err(TooLarge) => status = Status::NO_MEMORY,
            }
        }
        let attributes = Attributes { object, status: Some(status), ..Attributes::default() };
        self.send(Kind::STATUS, seq, peer, attributes);
    }

    /// Tells everybody of an event of the published object: as an event, `PATH.NAME`, and as a
    /// notification, `NAME`, where somebody has subscribed.
    pub fn tell(&mut self, name: &str, data: Table) {
        let (Some(published), Some(object)) = (self.published, &self.object) else { return };
        let id = format!("{}.{name}", object.path);
        if self.watched {
            let attributes = Attributes {
                object: Some(published),
                method: Some(name.to_owned()),
                data: Some(data.clone()),
                no_reply: Some(true),
                ..Attributes::default()
            };
            self.send(Kind::NOTIFY, OTHER, published, attributes);
        }
        self.call(OTHER, EVENTS, "send", table(json!({ "id": id, "data": data })));
    }

    fn call(&mut self, seq: u16, object: u32, method: &str, data: Table) {
        let attributes = Attributes {
            object: Some(object),
            method: Some(method.to_owned()),
            data: Some(data),
            ..Attributes::default()
        };
        self.send(Kind::INVOKE, seq, object, attributes);
    }

    fn send(&mut self, kind: Kind, seq: u16, peer: u32, attributes: Attributes) {
        // What is sent here has a size of our own making, far below the limit.
        let message = Message { kind, seq, peer, attributes }.encode();
        self.out.extend(message.unwrap_or_default());
    }
}
