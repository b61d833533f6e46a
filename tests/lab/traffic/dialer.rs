//! Where connections come from and go to.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::str::FromStr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::super::Namespace;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;
/// How long a connection may take to come about.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// The transport of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Plain TCP.
    Tcp,
    /// Multipath TCP.
    Mptcp,
}

impl Kind {
    /// The word on a command line.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Tcp => "tcp",
            Kind::Mptcp => "mptcp",
        }
    }

    /// Listens, in the calling thread's namespace, on all addresses, IPv4 and IPv6.
    pub fn listen(self, port: u16) -> io::Result<TcpListener> {
        let any = IpAddr::from(Ipv6Addr::UNSPECIFIED);
        let socket = self.socket(any)?;
        socket.set_only_v6(false)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(any, port).into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    }

    /// Connects, from the calling thread's namespace, without Nagle's delay.
    pub fn connect(self, address: SocketAddr) -> io::Result<TcpStream> {
        connect(self.socket(address.ip())?, address)
    }

    fn socket(self, address: IpAddr) -> io::Result<Socket> {
        let protocol = match self {
            Kind::Tcp => Protocol::TCP,
            Kind::Mptcp => Protocol::MPTCP,
        };
        let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        Socket::new(domain, Type::STREAM, Some(protocol))
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Kind, String> {
        let found = [Kind::Tcp, Kind::Mptcp].into_iter().find(|kind| kind.word() == text);
        found.ok_or_else(|| format!("'{text}' is no transport"))
    }
}

/// Opens connections to one address from within a namespace.
#[derive(Clone, Debug)]
pub struct Dialer {
    namespace: Namespace,
    kind: Kind,
    address: SocketAddr,
    device: Option<String>,
}

impl Dialer {
    /// From `namespace` to `address`.
    pub fn new(namespace: &Namespace, kind: Kind, address: SocketAddr) -> Dialer {
        Dialer { namespace: namespace.clone(), kind, address, device: None }
    }

    /// Binds each socket to a device (SO_BINDTODEVICE).
    pub fn bind_device(mut self, device: &str) -> Dialer {
        self.device = Some(device.to_owned());
        self
    }

    /// The namespace connections come from.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Opens a connection.
    pub fn connect(&self) -> io::Result<TcpStream> {
        self.namespace.enter(|| self.connect_here())
    }

    /// The address from which a new connection reaches a `TrafficServer`.
    pub fn seen_as(&self) -> io::Result<IpAddr> {
        let mut stream = self.connect()?;
        stream.set_read_timeout(Some(CONNECT_LIMIT))?;
        stream.write_all(b"peer\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        answer.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// Opens a connection from the calling thread, which has entered the namespace.
    pub(super) fn connect_here(&self) -> io::Result<TcpStream> {
        let socket = self.kind.socket(self.address.ip())?;
        if let Some(device) = &self.device {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        connect(socket, self.address)
    }
}

fn connect(socket: Socket, address: SocketAddr) -> io::Result<TcpStream> {
    socket.connect_timeout(&address.into(), CONNECT_LIMIT)?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}
