//! Where connections come from and go to.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::super::Namespace;

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
    pub(super) fn socket(self, address: IpAddr) -> io::Result<Socket> {
        let protocol = match self {
            Kind::Tcp => Protocol::TCP,
            Kind::Mptcp => Protocol::MPTCP,
        };
        let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        Socket::new(domain, Type::STREAM, Some(protocol))
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
        socket.connect_timeout(&self.address.into(), CONNECT_LIMIT)?;
        socket.set_tcp_nodelay(true)?;
        Ok(socket.into())
    }
}
