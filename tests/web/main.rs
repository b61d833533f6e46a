//! What is served over HTTP: the status page as a browser shows it, metrics, and who may ask.

#[path = "../browser/mod.rs"]
mod browser;
mod exposition;
mod hostile;
#[path = "../lab/mod.rs"]
mod lab;
mod page;
mod places;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use lab::Namespace;

/// How long anything may take that should happen soon.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a connection may take to be there; one that a stranger does not get, never is.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// The answer to a request for `target`, with these header fields.
fn get(namespace: &Namespace, address: &str, target: &str, fields: &str) -> io::Result<String> {
    let address: SocketAddr = address.parse().expect("an address");
    namespace.enter(|| {
        let mut stream = TcpStream::connect_timeout(&address, CONNECT_LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        write!(stream, "GET {target} HTTP/1.1\r\nHost: {address}\r\n{fields}\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
}

/// The status code of an answer.
fn code(answer: &str) -> &str {
    answer.get(9..12).unwrap_or("none")
}

/// The body of an answer.
fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}
