//! Where the pages come from: the package's files, the double of LuCI's client API, and answers to calls.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use serde_json::{Value, json};

use crate::catalogue::Catalogue;
use crate::lab::Namespace;

const PAGE: &str =
    "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>
<title>LuCI</title><link rel=icon href='data:,'><link rel=stylesheet href=/resources/theme.css>
<script src=/resources/luci.js></script><div id=view></div>";

/// The package's folder.
pub fn package() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("openwrt/luci-app-mptcp-bond")
}

/// What a call on ubus comes to.
pub enum Reply {
    /// Its result.
    Done(Value),
    /// A status other than 0, and what came with it.
    Failed(u8, Value),
    /// There is no such object.
    Absent,
    /// The session has no right to it.
    Denied,
}

impl Reply {
    /// As uhttpd's `ubus.c` has it.
    fn to_json_rpc(&self) -> Value {
        match self {
            Reply::Done(result) => json!({ "result": [0, result] }),
            Reply::Failed(status, Value::Null) => json!({ "result": [status] }),
            Reply::Failed(status, words) => json!({ "result": [status, words] }),
            Reply::Absent => json!({ "error": { "code": -32000, "message": "Object not found" } }),
            Reply::Denied => json!({ "error": { "code": -32002, "message": "Access denied" } }),
        }
    }
}

/// Answers the call of a method of an object with parameters.
pub type Answer = dyn Fn(&str, &str, &Value) -> Reply + Send + Sync;

/// Serves the pages in a namespace; gives the address, to which the view's name is added.
pub fn serve(namespace: &Namespace, answer: Arc<Answer>) -> String {
    let listener = namespace.enter(|| TcpListener::bind("127.0.0.1:0")).expect("listen");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            thread::spawn(move || serve_client(stream, &*answer));
        }
    });
    format!("http://{address}/?view=")
}

/// One request, and the end; whoever goes away is no concern of anybody's.
fn serve_client(mut stream: TcpStream, answer: &Answer) {
    let mut reader = BufReader::new(&stream);
    let mut head = Vec::new();
    for line in reader.by_ref().lines().map_while(Result::ok) {
        if line.is_empty() {
            break;
        }
        head.push(line.to_ascii_lowercase());
    }
    let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    let Some(path) = head.first().and_then(|line| line.split(' ').nth(1)) else { return };
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let path = path.split('?').next().unwrap_or_default();
    let (kind, content) = match path.strip_prefix("/resources/") {
        Some(name) => resource(name),
        None if path == "/ubus" => ("application/json", Some(reply(&body, answer))),
        None => match path.strip_prefix("/translations/") {
            Some(language) => ("application/json", Some(translations(language))),
            None => ("text/html", Some(PAGE.into())),
        },
    };
    let status = if content.is_some() { "200 OK" } else { "404 Not Found" };
    let content = content.unwrap_or_default();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}; charset=utf-8\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n",
        content.len()
    );
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&content));
}

fn reply(body: &[u8], answer: &Answer) -> Vec<u8> {
    let call: Value = serde_json::from_slice(body).expect("a call in JSON");
    let text = |name: &str| call[name].as_str().expect("a text").to_owned();
    answer(&text("object"), &text("method"), &call["params"]).to_json_rpc().to_string().into()
}

/// A file of the package, or else of the double.
fn resource(name: &str) -> (&'static str, Option<Vec<u8>>) {
    let kind = if name.ends_with(".css") { "text/css" } else { "text/javascript" };
    let double = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/luci/double");
    let places = [package().join("htdocs/luci-static/resources"), double];
    (kind, places.iter().find_map(|place| fs::read(place.join(name)).ok()))
}

fn translations(language: &str) -> Vec<u8> {
    // The head of the request is in lower case.
    let language = if language == "zh_hans" { "zh_Hans" } else { language };
    let catalogue = Catalogue::read(&format!("{language}/mptcp-bond.po"));
    let texts: BTreeMap<String, String> = catalogue.messages.into_iter().collect();
    json!(texts).to_string().into()
}
