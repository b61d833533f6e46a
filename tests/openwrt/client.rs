//! A client of ubus that waits for its answers.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use mptcp_bond::ubus::{Attributes, Kind, Message, Status, Table};
use serde_json::{Value, json};

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(30);

/// A connection to ubusd.
pub struct UbusClient {
    stream: UnixStream,
    buffer: Vec<u8>,
    seq: u16,
    /// Calls, events and notifications that arrived while something else was waited for.
    waiting: VecDeque<Message>,
}

impl UbusClient {
    /// Connects, and takes ubusd's greeting.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(socket: &Path) -> io::Result<UbusClient> {
        let stream = UnixStream::connect(socket)?;
        let mut client =
            UbusClient { stream, buffer: Vec::new(), seq: 0, waiting: VecDeque::new() };
        match client.receive(LIMIT)? {
            Some(Message { kind: Kind::HELLO, .. }) => Ok(client),
            other => Err(io::Error::other(format!("no greeting: {other:?}"))),
        }
    }

    /// Calls a method of the object with this path, as `ubus call` does: its result, or its status
    /// and what came with it.
    #[track_caller]
    pub fn call(&mut self, path: &str, method: &str, arguments: Value) -> Result<Value, Failed> {
        let (object, _) = self.lookup(path).ok_or(Failed(Status::NOT_FOUND, Value::Null))?;
        self.invoke(object, method, arguments)
    }

    /// Calls a method of the object with this id.
    #[track_caller]
    pub fn invoke(&mut self, object: u32, method: &str, arguments: Value) -> Result<Value, Failed> {
        let attributes = Attributes {
            object: Some(object),
            method: Some(method.into()),
            data: arguments.as_object().cloned(),
            ..Attributes::default()
        };
        let (status, answers) = self.request(Kind::INVOKE, object, attributes);
        let data = answers.into_iter().find_map(|answer| answer.data).map(Value::Object);
        match status {
            Status::OK => Ok(data.unwrap_or(Value::Null)),
            status => Err(Failed(status, data.unwrap_or(Value::Null))),
        }
    }

    /// Id and signature of the object with this path.
    #[track_caller]
    pub fn lookup(&mut self, path: &str) -> Option<(u32, Table)> {
        let attributes = Attributes { path: Some(path.into()), ..Attributes::default() };
        let found = self.request(Kind::LOOKUP, 0, attributes).1.pop()?;
        Some((found.object?, found.signature.unwrap_or_default()))
    }

    /// Publishes an object; gives its id.
    #[track_caller]
    pub fn publish(&mut self, path: Option<&str>, signature: Value) -> u32 {
        let path = path.map(str::to_owned);
        let signature = signature.as_object().cloned();
        let attributes = Attributes { path, signature, ..Attributes::default() };
        let (status, mut answers) = self.request(Kind::ADD_OBJECT, 0, attributes);
        assert_eq!(status, Status::OK);
        answers.pop().and_then(|answer| answer.object).expect("an object's id")
    }

    /// Has notifications of the object with this path, and the events of a pattern, arrive.
    #[track_caller]
    pub fn listen(&mut self, path: &str, pattern: &str) {
        let listener = self.publish(None, Value::Null);
        let (target, _) = self.lookup(path).expect("the object is there");
        let attributes =
            Attributes { object: Some(listener), target: Some(target), ..Attributes::default() };
        assert_eq!(self.request(Kind::SUBSCRIBE, 0, attributes).0, Status::OK);
        let register = json!({ "object": listener.cast_signed(), "pattern": pattern });
        self.invoke(1, "register", register).expect("register for events");
    }

    /// Notifies the subscribers of an object of this client.
    pub fn notify(&mut self, object: u32, method: &str, data: Table) -> io::Result<()> {
        let attributes = Attributes {
            object: Some(object),
            method: Some(method.into()),
            data: Some(data),
            no_reply: Some(true),
            ..Attributes::default()
        };
        self.send(Kind::NOTIFY, 0, object, attributes)
    }

    /// The next call, event or notification; `None` when there is none within `limit`.
    ///
    /// # Errors
    /// When ubusd is gone.
    pub fn next(&mut self, limit: Duration) -> io::Result<Option<Message>> {
        if let Some(message) = self.waiting.pop_front() {
            return Ok(Some(message));
        }
        let message = self.receive(limit)?;
        Ok(message.filter(|message| message.kind == Kind::INVOKE))
    }

    /// Answers a call.
    pub fn answer(&mut self, call: &Message, data: Option<Table>) -> io::Result<()> {
        let object = call.attributes.object;
        if let Some(data) = data {
            let attributes = Attributes { object, data: Some(data), ..Attributes::default() };
            self.send(Kind::DATA, call.seq, call.peer, attributes)?;
        }
        let attributes = Attributes { object, status: Some(Status::OK), ..Attributes::default() };
        self.send(Kind::STATUS, call.seq, call.peer, attributes)
    }

    /// Sends bytes as they are.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The status a request ends with, and the answers before it.
    #[track_caller]
    fn request(
        &mut self,
        kind: Kind,
        peer: u32,
        attributes: Attributes,
    ) -> (Status, Vec<Attributes>) {
        self.seq = self.seq.wrapping_add(1);
        self.send(kind, self.seq, peer, attributes).expect("send to ubusd");
        self.answers(self.seq)
    }

    /// What comes as an answer to the request with this number.
    #[track_caller]
    pub fn answers(&mut self, seq: u16) -> (Status, Vec<Attributes>) {
        let mut answers = Vec::new();
        loop {
            let message = self.receive(LIMIT).expect("receive from ubusd").expect("an answer");
            match message.kind {
                Kind::DATA if message.seq == seq => answers.push(message.attributes),
                Kind::STATUS if message.seq == seq => {
                    return (message.attributes.status.expect("a status"), answers);
                }
                Kind::INVOKE => self.waiting.push_back(message),
                _ => {}
            }
        }
    }

    fn send(&mut self, kind: Kind, seq: u16, peer: u32, attributes: Attributes) -> io::Result<()> {
        let message = Message { kind, seq, peer, attributes }.encode();
        self.stream.write_all(&message.expect("a message of ordinary size"))
    }

    fn receive(&mut self, limit: Duration) -> io::Result<Option<Message>> {
        let deadline = Instant::now() + limit;
        loop {
            let whole = Message::length(&self.buffer).map_err(io::Error::other)?;
            if let Some(length) = whole.filter(|&length| length <= self.buffer.len()) {
                let rest = self.buffer.split_off(length);
                let message = std::mem::replace(&mut self.buffer, rest);
                return Message::decode(&message).map(Some).map_err(io::Error::other);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.buffer.extend(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if left.is_zero() {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// A call that failed: its status, and what came with it.
#[derive(Debug, PartialEq)]
pub struct Failed(pub Status, pub Value);
