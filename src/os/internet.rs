//! Whether the Internet answers over an uplink: an HTTP request (RFC 9112) bound to it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::value::HttpUrl;
use crate::controller::{Opinion, Outlet};
use crate::os::{dns, resolve, socket};

/// How long a check may take in all.
const LIMIT: Duration = Duration::from_secs(10);
/// How much of that a connection may take, and the exchange over it.
const CONNECT_LIMIT: Duration = Duration::from_secs(4);
const EXCHANGE_LIMIT: Duration = Duration::from_secs(4);
/// Bytes of an answer's head, and its fields, at most.
const HEAD_LIMIT: usize = 8192;
const FIELDS_LIMIT: usize = 64;

/// Asks for `url` from the outlet's address and through its device. The Internet works when the
/// answer is a success: a page to log in at, say, is a redirection.
pub async fn check(url: &HttpUrl, outlet: &Outlet) -> Opinion {
    match timeout(LIMIT, exchange(url, outlet)).await {
        Ok(Ok(())) => Opinion::Works,
        Ok(Err(reason)) => Opinion::Fails(reason),
        Err(_) => Opinion::Fails("no answer".to_owned()),
    }
}

async fn exchange(url: &HttpUrl, outlet: &Outlet) -> Result<(), String> {
    let mut last = format!("{} has no address of the uplink's family", url.server.host);
    let addresses = addresses(&url.server.host, outlet).await?;
    for address in addresses.into_iter().filter(|ip| ip.is_ipv4() == outlet.source.is_ipv4()) {
        let target = SocketAddr::new(address, url.server.port);
        let connecting = socket::tcp_connect_over(target, outlet.source, &outlet.device);
        match timeout(CONNECT_LIMIT, connecting).await {
            Ok(Ok(tcp)) => {
                let asked = timeout(EXCHANGE_LIMIT, ask(url, tcp)).await;
                return asked.unwrap_or_else(|_| Err("no answer".to_owned()));
            }
            Ok(Err(error)) => last = format!("{target}: {error}"),
            Err(_) => last = format!("{target}: no answer"),
        }
    }
    Err(last)
}

async fn addresses(host: &str, outlet: &Outlet) -> Result<Vec<IpAddr>, String> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    match dns::lookup(host, &dns::servers(), outlet).await {
        Ok(found) => Ok(found),
        // Where only the router's own DNS server is known, it has to do.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            resolve::of_system(host).await.map_err(|error| format!("{host}: {error}"))
        }
        Err(error) => Err(format!("{host}: {error}")),
    }
}

/// One request over a connection.
async fn ask(url: &HttpUrl, mut tcp: TcpStream) -> Result<(), String> {
    let (authority, path) = url.parts();
    let agent = concat!("mptcp-bond/", env!("CARGO_PKG_VERSION"));
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: {agent}\r\nConnection: close\r\n\r\n"
    );
    let text = |error: io::Error| error.to_string();
    tcp.write_all(request.as_bytes()).await.map_err(text)?;
    let mut answer = Vec::with_capacity(1024);
    loop {
        let left = HEAD_LIMIT.saturating_sub(answer.len());
        if (&mut tcp).take(left as u64).read_buf(&mut answer).await.map_err(text)? == 0 {
            return Err("no whole answer".to_owned());
        }
        match status(&answer).map_err(|error| format!("no HTTP answer: {error}"))? {
            None => {}
            Some(200..=299) => return Ok(()),
            Some(status) => return Err(format!("HTTP status {status}")),
        }
    }
}

/// The status of an answer that begins with `bytes`, beyond interim ones (RFC 9110 section 15.2);
/// `None` while its head is incomplete.
fn status(mut bytes: &[u8]) -> Result<Option<u16>, httparse::Error> {
    loop {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_LIMIT];
        let mut answer = httparse::Response::new(&mut fields);
        let httparse::Status::Complete(length) = answer.parse(bytes)? else { return Ok(None) };
        match answer.code {
            Some(100..=199) => bytes = bytes.get(length..).unwrap_or_default(),
            code => return Ok(code),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// What a check makes of a server that gives this answer and then waits for the end.
    fn opinion_of(answer: &'static str) -> Opinion {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/generate_204", listener.local_addr().unwrap());
        let server = thread::spawn(move || {
            let (mut tcp, client) = listener.accept().unwrap();
            let mut request = [0; 1000];
            let length = tcp.read(&mut request).unwrap();
            tcp.write_all(answer.as_bytes()).unwrap();
            let _ = tcp.read(&mut [0]);
            (String::from_utf8_lossy(&request[..length]).into_owned(), client.ip())
        });
        let outlet = Outlet { slot: 0, source: [127, 0, 0, 3].into(), device: "lo".into() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let opinion = runtime.block_on(check(&url.parse().unwrap(), &outlet));
        let (request, client) = server.join().unwrap();
        assert!(request.starts_with("GET /generate_204 HTTP/1.1\r\nHost: 127.0.0.1:"), "{request}");
        assert_eq!(client, outlet.source);
        opinion
    }

    #[test]
    fn only_a_success_is_the_internet() {
        let fails = |reason: &str| Opinion::Fails(reason.into());
        assert_eq!(opinion_of("HTTP/1.1 204 No Content\r\n\r\n"), Opinion::Works);
        assert_eq!(opinion_of("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n."), Opinion::Works);
        let portal = "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n";
        assert_eq!(opinion_of(portal), fails("HTTP status 302"));
        assert_eq!(opinion_of("HTTP/1.1 511 \r\n\r\n"), fails("HTTP status 511"));
        assert!(matches!(opinion_of("nonsense\r\n\r\n"), Opinion::Fails(_)));
        assert_eq!(opinion_of("HTTP/1.1 204 No Con"), fails("no answer"));
    }

    #[test]
    fn interim_answers_are_passed_over() {
        let whole =
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n";
        for length in 0..whole.len() {
            assert_eq!(status(&whole[..length]), Ok(None), "{length}");
        }
        assert_eq!(status(whole), Ok(Some(204)));
    }

    #[test]
    fn an_uplink_that_is_not_there_does_not_work() {
        let outlet = Outlet { slot: 0, source: [127, 0, 0, 1].into(), device: "gone".into() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let url = "http://127.0.0.1:9/".parse().unwrap();
        let Opinion::Fails(reason) = runtime.block_on(check(&url, &outlet)) else { panic!() };
        assert!(reason.contains("cannot bind to device gone"), "{reason}");
    }
}
