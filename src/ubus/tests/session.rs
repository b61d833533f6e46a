use serde_json::{Value, json};

use crate::ubus::{
    Attributes, CALLS_LIMIT, Kind, Message, News, Object, Session, Status, Table, blobmsg,
};

fn table(value: Value) -> Table {
    value.as_object().unwrap().clone()
}

/// A connection whose other end the test is.
struct Connection(Session);

impl Connection {
    /// ubusd has greeted.
    fn greeted() -> Connection {
        let object = Object::new("example", &[("status", &[]), ("uplink", &["name", "role"])]);
        let mut connection = Connection(Session::new(1, Some(object)));
        connection.give(Kind::HELLO, 0, 0x1234, Attributes::default());
        connection
    }

    /// The object has the id 10, the listener 11, netifd 12.
    fn settled() -> Connection {
        let mut connection = Connection::greeted();
        let [publish, listen] = connection.sent().try_into().unwrap();
        assert_eq!(connection.give(Kind::DATA, publish.seq, 0, object(10)), [News::Published]);
        connection.give(Kind::DATA, listen.seq, 0, object(11));
        let lookup = connection.sent().remove(1);
        connection.give(Kind::DATA, lookup.seq, 0, object(12));
        connection
    }

    fn give(&mut self, kind: Kind, seq: u16, peer: u32, attributes: Attributes) -> Vec<News> {
        let mut bytes = Message { kind, seq, peer, attributes }.encode().unwrap();
        let news = self.0.receive(&mut bytes).unwrap();
        assert!(bytes.is_empty());
        news
    }

    /// What was sent since the last call.
    fn sent(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Ok(Some(length)) = Message::length(self.0.out()) {
            let rest = self.0.out().split_off(length);
            let message = std::mem::replace(self.0.out(), rest);
            messages.push(Message::decode(&message).unwrap());
        }
        messages
    }

    fn invoke(&mut self, id: u32, method: &str, data: Value) -> Vec<News> {
        let attributes =
            Attributes { method: Some(method.into()), data: Some(table(data)), ..object(id) };
        self.give(Kind::INVOKE, 77, 0x99, attributes)
    }
}

fn object(id: u32) -> Attributes {
    Attributes { object: Some(id), ..Attributes::default() }
}

#[test]
fn a_greeting_is_answered_with_the_object_and_a_listener() {
    let sent = Connection::greeted().sent();
    assert!(sent.iter().all(|message| (message.kind, message.peer) == (Kind::ADD_OBJECT, 0)));
    assert_eq!(sent[0].attributes.path.as_deref(), Some("example"));
    let signature = json!({ "status": {}, "uplink": { "name": 3, "role": 3 } });
    assert_eq!(sent[0].attributes.signature, Some(table(signature)));
    assert_eq!(sent[1].attributes, Attributes::default());
    assert_ne!(sent[0].seq, sent[1].seq);
}

#[test]
fn netifd_is_looked_up_subscribed_to_and_dumped_in_this_order() {
    // ubusd's ids are any 32 bits.
    let listener = 0xffff_fff0;
    let mut connection = Connection::greeted();
    let listen = connection.sent()[1].seq;
    connection.give(Kind::DATA, listen, 0, object(listener));
    let [register, lookup] = connection.sent().try_into().unwrap();
    assert_eq!((register.kind, register.attributes.object), (Kind::INVOKE, Some(1)));
    let pattern = json!({ "object": -16, "pattern": "ubus.object.add" });
    assert_eq!(register.attributes.data, Some(table(pattern)));
    assert_eq!(lookup.attributes.path.as_deref(), Some("network.interface"));

    let missing = Attributes { status: Some(Status::NOT_FOUND), ..Attributes::default() };
    assert_eq!(connection.give(Kind::STATUS, lookup.seq, 0, missing), [News::NoNetifd]);
    let others =
        connection.invoke(listener, "ubus.object.add", json!({ "id": 8, "path": "network" }));
    assert_eq!(others, []);
    connection.sent();
    let path = json!({ "id": 12, "path": "network.interface" });
    assert_eq!(connection.invoke(listener, "ubus.object.add", path), []);
    let [_, again] = connection.sent().try_into().unwrap();
    assert_eq!((again.kind, again.attributes), (Kind::LOOKUP, lookup.attributes));

    connection.give(Kind::DATA, again.seq, 0, object(12));
    let [subscribe, dump] = connection.sent().try_into().unwrap();
    let attributes = Attributes { target: Some(12), ..object(listener) };
    assert_eq!((subscribe.kind, subscribe.attributes), (Kind::SUBSCRIBE, attributes));
    assert_eq!((dump.peer, dump.attributes.method.as_deref()), (12, Some("dump")));
    let interfaces = table(json!({ "interface": [] }));
    let answer = Attributes { data: Some(interfaces.clone()), ..object(12) };
    assert_eq!(connection.give(Kind::DATA, dump.seq, 12, answer), [News::Interfaces(interfaces)]);
}

#[test]
fn notifications_of_netifd_are_news_and_answered_where_an_answer_is_wanted() {
    let mut connection = Connection::settled();
    connection.sent();
    let status = json!({ "interface": "wan", "up": false });
    let news = connection.invoke(11, "interface.down", status.clone());
    assert_eq!(news, [News::Interface(table(status.clone()))]);
    let [answer] = connection.sent().try_into().unwrap();
    assert_eq!((answer.kind, answer.seq, answer.peer), (Kind::STATUS, 77, 0x99));
    assert_eq!(answer.attributes, Attributes { status: Some(Status::OK), ..object(11) });

    let attributes = Attributes {
        method: Some("interface.update".into()),
        data: Some(table(status)),
        no_reply: Some(true),
        ..object(11)
    };
    assert_eq!(connection.give(Kind::INVOKE, 0, 0x99, attributes).len(), 1);
    assert_eq!(connection.sent(), []);
    assert_eq!(connection.invoke(11, "interface.other", json!({})), []);
}

#[test]
fn a_call_is_answered_with_its_numbers() {
    let mut connection = Connection::settled();
    connection.sent();
    let [news] = connection.invoke(10, "status", json!({ "a": 1 })).try_into().unwrap();
    let News::Call { ticket, method, arguments } = news else { panic!("{news:?}") };
    assert_eq!((method.as_str(), arguments), ("status", Some(table(json!({ "a": 1 })))));
    let result = table(json!({ "state": "bonding" }));
    connection.0.answer(ticket, Status::OK, Some(&blobmsg::encode(&result).unwrap()));
    let [data, status] = connection.sent().try_into().unwrap();
    assert_eq!(data.attributes, Attributes { data: Some(result), ..object(10) });
    assert_eq!(status.attributes, Attributes { status: Some(Status::OK), ..object(10) });
    for (message, kind) in [(data, Kind::DATA), (status, Kind::STATUS)] {
        assert_eq!((message.kind, message.seq, message.peer), (kind, 77, 0x99));
    }

    connection.0.answer(ticket, Status::OK, Some(&vec![0; 2 << 20]));
    let [status] = connection.sent().try_into().unwrap();
    assert_eq!(status.attributes.status, Some(Status::NO_MEMORY));

    // Without a method, or with arguments that cannot be read.
    assert_eq!(connection.give(Kind::INVOKE, 1, 2, object(10)), []);
    assert_eq!(connection.sent()[0].attributes.status, Some(Status::INVALID_ARGUMENT));
    let unreadable = Attributes { method: Some("status".into()), ..object(10) };
    let news = connection.give(Kind::INVOKE, 1, 2, unreadable);
    assert!(matches!(news[..], [News::Call { arguments: None, .. }]), "{news:?}");
}

#[test]
fn calls_beyond_a_limit_are_refused_until_others_are_answered() {
    let mut connection = Connection::settled();
    connection.sent();
    let mut call = || connection.invoke(10, "status", json!({}));
    let first = call().remove(0);
    (1..CALLS_LIMIT).for_each(|_| assert_eq!(call().len(), 1));
    assert_eq!(call(), []);
    assert_eq!(connection.sent()[0].attributes.status, Some(Status::NO_MEMORY));
    let News::Call { ticket, .. } = first else { panic!("{first:?}") };
    connection.0.answer(ticket, Status::OK, None);
    assert_eq!(connection.invoke(10, "status", json!({})).len(), 1);
    // What a call of the connection before is answered goes to nobody.
    connection.sent();
    let mut next = Session::new(2, None);
    next.answer(ticket, Status::OK, None);
    assert!(next.out().is_empty());
}

#[test]
fn everybody_is_told_of_events_and_subscribers_twice() {
    let mut connection = Connection::greeted();
    connection.sent();
    let data = table(json!({ "uplink": "wan" }));
    connection.0.tell("uplink", data.clone());
    assert_eq!(connection.sent(), [], "there is no object yet");

    let mut connection = Connection::settled();
    connection.sent();
    connection.0.tell("uplink", data.clone());
    let [event] = connection.sent().try_into().unwrap();
    assert_eq!((event.kind, event.attributes.object), (Kind::INVOKE, Some(1)));
    let sent = json!({ "id": "example.uplink", "data": { "uplink": "wan" } });
    assert_eq!(event.attributes.data, Some(table(sent)));

    let active = Attributes { active: Some(true), ..object(10) };
    connection.give(Kind::NOTIFY, 0, 0, active);
    connection.0.tell("uplink", data.clone());
    let [notification, _] = connection.sent().try_into().unwrap();
    assert_eq!((notification.kind, notification.attributes.object), (Kind::NOTIFY, Some(10)));
    assert_eq!(notification.attributes.method.as_deref(), Some("uplink"));
    assert_eq!(notification.attributes.data, Some(data));
    assert_eq!(notification.attributes.no_reply, Some(true));
}

#[test]
fn an_object_that_is_not_taken_is_news_and_can_be_offered_again() {
    let mut connection = Connection::greeted();
    let first = connection.sent().remove(0);
    let refused = Attributes { status: Some(Status::INVALID_ARGUMENT), ..Attributes::default() };
    let news = connection.give(Kind::STATUS, first.seq, 0, refused);
    assert_eq!(news, [News::Unpublished(Status::INVALID_ARGUMENT)]);
    connection.0.publish();
    assert_eq!(connection.sent(), [first]);
}

#[test]
fn messages_may_arrive_in_pieces_or_together() {
    let hello = Message { kind: Kind::HELLO, seq: 0, peer: 1, attributes: Attributes::default() };
    let refused = Attributes { status: Some(Status(6)), ..Attributes::default() };
    let status = Message { kind: Kind::STATUS, seq: 1, peer: 0, attributes: refused };
    let bytes = [hello.encode().unwrap(), status.encode().unwrap()].concat();
    let mut session = Session::new(1, None);
    let (mut incoming, mut news) = (Vec::new(), Vec::new());
    for byte in &bytes {
        incoming.push(*byte);
        news.extend(session.receive(&mut incoming).unwrap());
    }
    assert_eq!(news, [News::Unpublished(Status(6))]);
    assert_eq!(Session::new(1, None).receive(&mut bytes.clone()).unwrap(), news);
    let mut garbage = b"HTTP/1.1 400 Bad Request".to_vec();
    assert!(Session::new(1, None).receive(&mut garbage).is_err());
}
