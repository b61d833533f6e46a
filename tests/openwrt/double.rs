//! A double of ubusd: objects, calls, subscriptions and events, as the genuine one has them for a
//! client that is root.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use mptcp_bond::ubus::{Attributes, Kind, Message, Status, Table};
use serde_json::{Value, json};

/// The object that takes events.
const EVENTS: u32 = 1;

/// Ids are any 32 bits; half of them are negative as an INT32.
const FIRST_ID: u32 = 0x8000_0000;

/// A running double; dropping it hangs up on everybody.
pub struct Double {
    socket: PathBuf,
    bus: Arc<Mutex<Bus>>,
}

impl Double {
    /// Listens on `socket`.
    pub fn start(socket: &Path) -> io::Result<Double> {
        let listener = UnixListener::bind(socket)?;
        let bus = Arc::new(Mutex::new(Bus { last_id: FIRST_ID, ..Bus::default() }));
        let shared = bus.clone();
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let bus = shared.clone();
                if lock(&bus).over {
                    return;
                }
                thread::spawn(move || serve(&bus, stream));
            }
        });
        Ok(Double { socket: socket.to_owned(), bus })
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        let mut bus = lock(&self.bus);
        bus.over = true;
        for client in bus.clients.values() {
            // It may have gone by itself.
            let _ = client.shutdown(std::net::Shutdown::Both);
        }
        drop(bus);
        // Wakes the one who accepts.
        let _ = UnixStream::connect(&self.socket);
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn lock(bus: &Mutex<Bus>) -> MutexGuard<'_, Bus> {
    bus.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Object {
    client: u32,
    path: Option<String>,
    signature: Table,
    /// Listeners' ids.
    subscribers: Vec<u32>,
    /// What events it wants.
    patterns: Vec<String>,
}

#[derive(Default)]
struct Bus {
    over: bool,
    last_id: u32,
    clients: BTreeMap<u32, UnixStream>,
    objects: BTreeMap<u32, Object>,
}

fn serve(bus: &Mutex<Bus>, mut stream: UnixStream) {
    let Some(id) = lock(bus).welcome(&stream) else { return };
    let mut buffer = Vec::new();
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        buffer.extend(&bytes[..count]);
        while let Ok(Some(length)) = Message::length(&buffer) {
            if length > buffer.len() {
                break;
            }
            let rest = buffer.split_off(length);
            let message = std::mem::replace(&mut buffer, rest);
            if let Ok(message) = Message::decode(&message) {
                lock(bus).take(id, message);
            }
        }
    }
    lock(bus).forget(id);
}

impl Bus {
    fn welcome(&mut self, stream: &UnixStream) -> Option<u32> {
        let id = self.new_id();
        self.clients.insert(id, stream.try_clone().ok()?);
        self.send(id, Kind::HELLO, 0, id, Attributes::default());
        Some(id)
    }

    fn new_id(&mut self) -> u32 {
        self.last_id += 1;
        self.last_id
    }

    fn send(&mut self, client: u32, kind: Kind, seq: u16, peer: u32, attributes: Attributes) {
        let message = Message { kind, seq, peer, attributes }.encode().expect("of ordinary size");
        if let Some(stream) = self.clients.get_mut(&client) {
            // It may just be going.
            let _ = stream.write_all(&message);
        }
    }

    fn take(&mut self, client: u32, message: Message) {
        let Message { kind, seq, peer, attributes } = message;
        let status = match kind {
            Kind::STATUS | Kind::DATA => {
                if let Some(object) = attributes.object {
                    self.send(peer, kind, seq, object, attributes);
                }
                return;
            }
            Kind::NOTIFY => return self.notify(client, seq, attributes),
            Kind::LOOKUP => self.lookup(client, seq, attributes),
            Kind::ADD_OBJECT => self.add(client, seq, attributes),
            Kind::SUBSCRIBE => self.subscribe(attributes),
            Kind::INVOKE => match self.invoke(client, seq, attributes) {
                Some(status) => status,
                None => return,
            },
            _ => Status(1),
        };
        let attributes = Attributes { status: Some(status), ..Attributes::default() };
        self.send(client, Kind::STATUS, seq, peer, attributes);
    }

    fn find(&self, path: &str) -> Option<u32> {
        let mut objects = self.objects.iter();
        objects.find(|(_, object)| object.path.as_deref() == Some(path)).map(|(id, _)| *id)
    }

    fn lookup(&mut self, client: u32, seq: u16, attributes: Attributes) -> Status {
        let Some(id) = attributes.path.as_ref().and_then(|path| self.find(path)) else {
            return Status::NOT_FOUND;
        };
        let signature = Some(self.objects[&id].signature.clone());
        let found = Attributes { object: Some(id), signature, ..attributes };
        self.send(client, Kind::DATA, seq, 0, found);
        Status::OK
    }

    fn add(&mut self, client: u32, seq: u16, attributes: Attributes) -> Status {
        let Attributes { path, signature, .. } = attributes;
        if path.as_ref().is_some_and(|path| self.find(path).is_some()) {
            return Status::INVALID_ARGUMENT;
        }
        let id = self.new_id();
        let object = Object {
            client,
            path: path.clone(),
            signature: signature.unwrap_or_default(),
            subscribers: Vec::new(),
            patterns: Vec::new(),
        };
        self.objects.insert(id, object);
        let added = Attributes { object: Some(id), ..Attributes::default() };
        self.send(client, Kind::DATA, seq, 0, added);
        if let Some(path) = path {
            self.tell("ubus.object.add", json!({ "id": id, "path": path }));
        }
        Status::OK
    }

    fn subscribe(&mut self, attributes: Attributes) -> Status {
        let (Some(listener), Some(target)) = (attributes.object, attributes.target) else {
            return Status::INVALID_ARGUMENT;
        };
        let Some(object) = self.objects.get_mut(&target) else { return Status::NOT_FOUND };
        object.subscribers.push(listener);
        let (owner, first) = (object.client, object.subscribers.len() == 1);
        if first {
            let active =
                Attributes { object: Some(target), active: Some(true), ..Attributes::default() };
            self.send(owner, Kind::NOTIFY, 0, 0, active);
        }
        Status::OK
    }

    fn notify(&mut self, client: u32, seq: u16, attributes: Attributes) {
        let object = attributes.object.and_then(|id| self.objects.get(&id));
        let subscribers = object.map(|object| object.subscribers.clone()).unwrap_or_default();
        for listener in subscribers {
            let Some(owner) = self.objects.get(&listener).map(|object| object.client) else {
                continue;
            };
            let told = Attributes { object: Some(listener), ..attributes.clone() };
            self.send(owner, Kind::INVOKE, seq, client, told);
        }
    }

    /// Forwards a call; none where the one called answers.
    fn invoke(&mut self, client: u32, seq: u16, attributes: Attributes) -> Option<Status> {
        let (Some(id), Some(method)) = (attributes.object, &attributes.method) else {
            return Some(Status::INVALID_ARGUMENT);
        };
        if id == EVENTS {
            let data = attributes.data.unwrap_or_default();
            return Some(self.on_event_call(method, &data));
        }
        let Some(object) = self.objects.get(&id) else { return Some(Status::NOT_FOUND) };
        let owner = object.client;
        self.send(owner, Kind::INVOKE, seq, client, attributes);
        None
    }

    fn on_event_call(&mut self, method: &str, data: &Table) -> Status {
        let text = |key: &str| data.get(key).and_then(Value::as_str).map(str::to_owned);
        match method {
            "register" => {
                // Nothing but an INT32 is taken.
                let id = data.get("object").and_then(Value::as_i64);
                let id = id.and_then(|id| i32::try_from(id).ok()).map(i32::cast_unsigned);
                let object = id.and_then(|id| self.objects.get_mut(&id));
                let (Some(object), Some(pattern)) = (object, text("pattern")) else {
                    return Status::INVALID_ARGUMENT;
                };
                object.patterns.push(pattern);
            }
            "send" => {
                let (Some(id), Some(data)) = (text("id"), data.get("data")) else {
                    return Status::INVALID_ARGUMENT;
                };
                self.tell(&id, data.clone());
            }
            _ => return Status(1),
        }
        Status::OK
    }

    fn tell(&mut self, event: &str, data: Value) {
        let wanted = |pattern: &String| match pattern.strip_suffix('*') {
            Some(beginning) => event.starts_with(beginning),
            None => event == pattern,
        };
        let objects = self.objects.iter();
        let listeners: Vec<(u32, u32)> = objects
            .filter(|(_, object)| object.patterns.iter().any(wanted))
            .map(|(id, object)| (*id, object.client))
            .collect();
        for (listener, owner) in listeners {
            let attributes = Attributes {
                object: Some(listener),
                method: Some(event.to_owned()),
                data: data.as_object().cloned(),
                ..Attributes::default()
            };
            self.send(owner, Kind::INVOKE, 1, 0, attributes);
        }
    }

    fn forget(&mut self, client: u32) {
        self.clients.remove(&client);
        let gone = |object: &Object| object.client == client;
        let ids: Vec<u32> =
            self.objects.iter().filter(|(_, object)| gone(object)).map(|(id, _)| *id).collect();
        self.objects.retain(|_, object| !gone(object));
        for object in self.objects.values_mut() {
            object.subscribers.retain(|subscriber| !ids.contains(subscriber));
        }
    }
}
