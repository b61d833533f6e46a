//! Whether the Internet answers over an uplink: an HTTP request (RFC 9112) bound to it.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};
use ureq::{Agent, Error};

use crate::config::value::HttpUrl;
use crate::controller::{Opinion, Outlet};
use crate::os::{dns, resolve, socket};

/// How long a check may take in all.
const LIMIT: Duration = Duration::from_secs(10);
/// How much of that a connection may take, and the exchange over it.
const CONNECT_LIMIT: Duration = Duration::from_secs(4);
const EXCHANGE_LIMIT: Duration = Duration::from_secs(4);
/// Bytes of each of the two buffers: room for the head of an answer.
const BUFFER: usize = 8192;

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
                let tcp = tcp.into_std().map_err(|error| error.to_string())?;
                let url = url.text.clone();
                // It ends with its own limit, also when nobody waits for it any longer.
                let asked = spawn_blocking(move || ask(&url, tcp)).await;
                return asked.map_err(|error| error.to_string())?;
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

/// One request over a connection; blocks.
fn ask(url: &str, tcp: TcpStream) -> Result<(), String> {
    tcp.set_nonblocking(false).map_err(|error| error.to_string())?;
    let config = Config::builder()
        .timeout_global(Some(EXCHANGE_LIMIT))
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .proxy(None)
        .user_agent(concat!("mptcp-bond/", env!("CARGO_PKG_VERSION")))
        .build();
    let agent = Agent::with_parts(config, Given(Mutex::new(Some(tcp))), NoResolver);
    match agent.get(url).call() {
        Ok(answer) if answer.status().is_success() => Ok(()),
        Ok(answer) => Err(format!("HTTP status {}", answer.status().as_u16())),
        Err(Error::Timeout(_)) => Err("no answer".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Hands out the one connection that there is.
#[derive(Debug)]
struct Given(Mutex<Option<TcpStream>>);

impl Connector for Given {
    type Out = Exchange;

    fn connect(&self, _: &ConnectionDetails, _: Option<()>) -> Result<Option<Exchange>, Error> {
        let tcp = self.0.lock().ok().and_then(|mut given| given.take());
        Ok(tcp.map(|tcp| Exchange { tcp, buffers: LazyBuffers::new(BUFFER, BUFFER) }))
    }
}

/// The connection was made to an address already.
#[derive(Debug)]
struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let mut addresses = self.empty();
        addresses.push(([0, 0, 0, 0], 0).into());
        Ok(addresses)
    }
}

#[derive(Debug)]
struct Exchange {
    tcp: TcpStream,
    buffers: LazyBuffers,
}

impl Transport for Exchange {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.tcp.set_write_timeout(Some(limit(timeout)))?;
        let output = self.buffers.output();
        self.tcp.write_all(output.get(..amount).unwrap_or_default()).map_err(in_time(timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.tcp.set_read_timeout(Some(limit(timeout)))?;
        let input = self.buffers.input_append_buf();
        let length = self.tcp.read(input).map_err(in_time(timeout))?;
        self.buffers.input_appended(length);
        Ok(length > 0)
    }

    fn is_open(&mut self) -> bool {
        // There is one request to a connection.
        false
    }
}

/// What is left of the time; never nothing, which would be no limit.
fn limit(timeout: NextTimeout) -> Duration {
    (*timeout.after).clamp(Duration::from_millis(1), EXCHANGE_LIMIT)
}

/// A socket's timeout as that of the exchange.
fn in_time(timeout: NextTimeout) -> impl FnOnce(io::Error) -> Error {
    move |error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Timeout(timeout.reason),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
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
        assert!(request.starts_with("GET /generate_204 HTTP/1.1\r\n"), "{request}");
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
        assert_eq!(opinion_of(""), fails("no answer"));
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
