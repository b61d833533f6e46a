//! The status over HTTP/1.1, and nothing else: `GET /api/v1/status`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::control::{Request, ask};
use super::socket::Acceptor;

/// The one resource.
const STATUS_PATH: &str = "/api/v1/status";
/// Bytes of a request's head.
const HEAD_LIMIT: usize = 8 * 1024;
/// Header fields of a request.
const FIELDS_LIMIT: usize = 64;
/// Connections served at once; further ones are told to come back.
const CONNECTIONS_LIMIT: usize = 64;
/// How long a client may take to ask, and again to take its answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long, and for how many bytes, a client is listened to after its answer. A connection closed
/// on unread data is reset, and the client might lose its answer.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 64 * 1024);

/// Serves the status on `listener`, asking `owner` for it, until the returned future is dropped.
pub async fn serve(listener: TcpListener, owner: mpsc::Sender<Request>) {
    // Names other than these, on an address only this host reaches, come from a web page that had
    // its own name resolved to it (DNS rebinding).
    let local_names_only = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    let places = Arc::new(Semaphore::new(CONNECTIONS_LIMIT));
    let mut connections = JoinSet::new();
    let mut acceptor = Acceptor::new(listener);
    loop {
        while connections.try_join_next().is_some() {}
        let (stream, _) = acceptor.next().await;
        let Ok(place) = places.clone().try_acquire_owned() else {
            let busy = Answer::error(503, "too many connections").bytes(true);
            let _ = stream.try_write(&busy);
            continue;
        };
        let owner = owner.clone();
        connections.spawn(async move {
            // Whatever goes wrong with a connection concerns its client alone.
            let _ = serve_connection(stream, local_names_only, &owner).await;
            drop(place);
        });
    }
}

async fn serve_connection(
    mut stream: TcpStream,
    local_names_only: bool,
    owner: &mpsc::Sender<Request>,
) -> std::io::Result<()> {
    let asked = match timeout(CLIENT_TIMEOUT, read_request(&mut stream)).await {
        Err(_) => Err(Answer::error(408, "no request in time")),
        Ok(Err(error)) => return Err(error),
        Ok(Ok(None)) => return Ok(()),
        Ok(Ok(Some(asked))) => asked,
    };
    let (answer, with_body) = match asked {
        Err(answer) => (answer, true),
        Ok(asked) => {
            let answer = match route(&asked, local_names_only) {
                Err(answer) => answer,
                Ok(()) => {
                    match ask(owner, "status".to_owned(), serde_json::Value::Null, None).await {
                        Ok(status) => Answer { code: 200, allow: false, body: status },
                        Err(refusal) => Answer::error(503, &refusal.text),
                    }
                }
            };
            (answer, asked.method != "HEAD")
        }
    };
    timeout(CLIENT_TIMEOUT, stream.write_all(&answer.bytes(with_body))).await??;
    stream.shutdown().await?;
    let (time, bytes) = LINGER;
    let mut rest = stream.take(bytes as u64);
    let _ = timeout(time, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
    Ok(())
}

/// What matters of a request's head.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    method: String,
    /// Path without the query.
    path: String,
    /// Host asked for; none only in HTTP/1.0.
    host: Option<String>,
}

/// Reads a request's head; `None` when the client goes away before it is complete.
async fn read_request(stream: &mut TcpStream) -> std::io::Result<Option<Result<Asked, Answer>>> {
    let mut head = Vec::with_capacity(1024);
    loop {
        let left = HEAD_LIMIT.saturating_sub(head.len());
        if (&mut *stream).take(left as u64).read_buf(&mut head).await? == 0 {
            return Ok(None);
        }
        match parse(&head) {
            Ok(None) if head.len() >= HEAD_LIMIT => {
                let text = format!("the request's head is longer than {HEAD_LIMIT} bytes");
                return Ok(Some(Err(Answer::error(431, &text))));
            }
            Ok(None) => {}
            Ok(Some(asked)) => return Ok(Some(Ok(asked))),
            Err(answer) => return Ok(Some(Err(answer))),
        }
    }
}

/// Parses a request's head (RFC 9112); `None` while it is incomplete.
fn parse(head: &[u8]) -> Result<Option<Asked>, Answer> {
    let bad = |text: &str| Answer::error(400, text);
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_LIMIT];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Answer::error(431, "too many header fields"));
        }
        Err(httparse::Error::Version) => return Err(Answer::error(505, "this is HTTP/1.1")),
        Err(error) => return Err(bad(&format!("no valid request: {error}"))),
    }
    let (Some(method), Some(target), Some(version)) =
        (request.method, request.path, request.version)
    else {
        return Err(bad("no valid request"));
    };
    let mut hosts = request
        .headers
        .iter()
        .filter(|field| field.name.eq_ignore_ascii_case("host"))
        .map(|field| std::str::from_utf8(field.value).map(str::trim));
    let host = match (hosts.next(), hosts.next()) {
        (None, _) if version == 0 => None,
        (Some(Ok(host)), None) => Some(host),
        (None, _) => return Err(bad("no Host field")),
        _ => return Err(bad("the Host field is not one name")),
    };
    // A target in absolute form names the host itself, and Host is to be ignored.
    let (host, path) = match target.get(..7) {
        Some(scheme) if scheme.eq_ignore_ascii_case("http://") => {
            let rest = target.get(7..).unwrap_or_default();
            match rest.find('/') {
                Some(slash) => (rest.get(..slash), rest.get(slash..).unwrap_or_default()),
                None => (Some(rest), "/"),
            }
        }
        _ => (host, target),
    };
    let path = path.split('?').next().unwrap_or_default();
    let (method, path) = (method.to_owned(), path.to_owned());
    Ok(Some(Asked { method, path, host: host.map(str::to_owned) }))
}

/// Whether a request is one for the status.
fn route(asked: &Asked, local_names_only: bool) -> Result<(), Answer> {
    if local_names_only && asked.host.as_deref().is_some_and(|host| !is_local(host)) {
        let text = "this address is served to localhost, 127.0.0.1 and [::1] alone";
        return Err(Answer::error(421, text));
    }
    if asked.path != STATUS_PATH {
        return Err(Answer::error(404, "there is nothing but /api/v1/status"));
    }
    if !matches!(asked.method.as_str(), "GET" | "HEAD") {
        let answer = Answer::error(405, "the status can only be read");
        return Err(Answer { allow: true, ..answer });
    }
    Ok(())
}

/// Whether `host`, with or without a port, names this host by itself.
fn is_local(host: &str) -> bool {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return address.is_loopback();
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name.eq_ignore_ascii_case("localhost")
}

/// An answer; its body is JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    code: u16,
    allow: bool,
    body: String,
}

impl Answer {
    fn error(code: u16, text: &str) -> Answer {
        let body = serde_json::json!({ "error": text }).to_string();
        Answer { code, allow: false, body }
    }

    fn bytes(&self, with_body: bool) -> Vec<u8> {
        let reason = match self.code {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            421 => "Misdirected Request",
            431 => "Request Header Fields Too Large",
            503 => "Service Unavailable",
            _ => "HTTP Version Not Supported",
        };
        let allow = if self.allow { "Allow: GET, HEAD\r\n" } else { "" };
        let length = self.body.len() + 1;
        let body = if with_body { format!("{}\n", self.body) } else { String::new() };
        format!(
            "HTTP/1.1 {} {reason}\r\n{allow}Content-Type: application/json\r\n\
             Content-Length: {length}\r\nCache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n{body}",
            self.code
        )
        .into_bytes()
    }
}

/// Reads anything as a request's head.
#[cfg(any(test, fuzzing))]
pub fn read_anything(bytes: &[u8]) {
    let _ = parse(bytes);
}

#[cfg(test)]
mod tests;
