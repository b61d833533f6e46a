//! `server init`: a server from nothing.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use super::{ProvisionError, files, server, sysctls};
use crate::cli::{ClientOptions, InitOptions, SERVER_CONFIG};
use crate::config::server::{DEFAULT_KEY_FILE, Policy, ServerConfig};
use crate::config::value::HostPort;

/// Ports to be reached at, those first that most networks let through.
const PORTS: [u16; 3] = [443, 8443, 4443];
/// Documentation addresses (RFC 5737, RFC 3849): the way there is that to the Internet.
const ELSEWHERE: [&str; 2] = ["198.51.100.1:9", "[2001:db8::1]:9"];
/// The name of the first router.
const FIRST: &str = "router";

/// Writes the configuration and the key, sets sysctls where the configuration is in its usual place,
/// and invites the first router. An existing key is kept, since routers know it; an existing
/// configuration is never overwritten.
///
/// # Errors
/// There is a configuration, a file cannot be written, or the public address cannot be found out.
pub fn init(options: &InitOptions) -> Result<String, ProvisionError> {
    let path = &options.config;
    if path.exists() {
        return Err(ProvisionError::Refused(format!(
            "{} is there already and stays as it is; edit it, or delete it to begin anew",
            path.display()
        )));
    }
    let public = match &options.public {
        Some(public) => public.clone(),
        None => find_public(&options.listen)?,
    };
    let text = initial_config(&options.listen, &public);
    let config = ServerConfig::parse(&text, &path.display().to_string())?;
    let key_path = config.key_path(path);
    let (key, new) = files::private_key(&key_path)?;
    files::create_secret(path, text.as_bytes())?;
    let usual = path == Path::new(SERVER_CONFIG);
    let sysctls = if usual { sysctls::set_up(Path::new(sysctls::FILE))? } else { String::new() };
    let invitation =
        server::invite(&ClientOptions { config: path.clone(), name: FIRST.to_owned() })?;
    let flag = if usual { String::new() } else { format!(" --config {}", path.display()) };
    let start = match usual && Path::new("/run/systemd/system").exists() {
        true => "systemctl start mptcp-bond".to_owned(),
        false => format!("mptcp-bond server{flag}"),
    };
    Ok(format!(
        "Wrote {}\n{} {}\n{sysctls}Public key {}\nRouters reach it at {public}\n\n\
         Next:\n  1. Let TCP and UDP port {} through the firewall, if there is one.\n  \
         2. Start the server:      {start}\n  \
         3. Invite more routers:   mptcp-bond server invite NAME{flag}\n\n{invitation}",
        path.display(),
        if new { "Wrote" } else { "Kept " },
        key_path.display(),
        key.public(),
        public.port,
    ))
}

fn initial_config(listen: &[SocketAddr], public: &HostPort) -> String {
    let everywhere =
        [SocketAddr::from(([0u8; 4], public.port)), SocketAddr::from(([0u16; 8], public.port))];
    let listen = if listen.is_empty() { &everywhere } else { listen };
    let listen: Vec<String> = listen.iter().map(|address| format!("\"{address}\"")).collect();
    format!(
        "# The server of mptcp-bond. Clients are added by 'mptcp-bond server invite'.\n\
         listen = [{}]            # TCP and UDP\n\
         public = \"{public}\"          # where routers reach it\n\
         key_file = \"{DEFAULT_KEY_FILE}\"\n\
         log_level = \"info\"     # error warn info debug\n\n\
         [policy]\n\
         # Loopback, private, link-local and metadata addresses are denied unless allowed here.\n\
         allow = []\n\
         deny = []\n\n\
         [limits]\n\
         streams_per_client = 4096\n\
         unauthenticated = 256\n",
        listen.join(", "),
    )
}

/// Where routers reach a server that listens there, or on all addresses.
fn find_public(listen: &[SocketAddr]) -> Result<HostPort, ProvisionError> {
    let unknown = |why: &str| {
        let what = format!("{why}: say with --public HOST:PORT where routers reach this server");
        ProvisionError::Refused(what)
    };
    let port = match listen.first() {
        Some(address) => address.port(),
        None => PORTS
            .into_iter()
            .find(|port| is_free(*port))
            .ok_or_else(|| unknown("the ports 443, 8443 and 4443 are taken"))?,
    };
    let named = listen.iter().map(SocketAddr::ip).filter(|address| !address.is_unspecified());
    let own: Vec<IpAddr> = match named.collect::<Vec<_>>() {
        named if named.is_empty() => ELSEWHERE.iter().filter_map(|to| own_address(to)).collect(),
        named => named,
    };
    // IPv4 first: a router may have no IPv6. A private one stands behind a NAT, which hides the other.
    let Some(address) = own.first() else {
        return Err(unknown("this host has no route to the Internet"));
    };
    let target = SocketAddr::new(*address, port);
    if Policy::default().permits(target).is_err() {
        return Err(unknown(&format!("this host's address {address} is not a public one")));
    }
    target.to_string().parse().map_err(|_| unknown("this host's address cannot be used"))
}

/// The address that packets to somewhere leave with; none is sent.
fn own_address(to: &str) -> Option<IpAddr> {
    let any = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(to).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Whether nobody listens on the port, neither in TCP nor in UDP.
fn is_free(port: u16) -> bool {
    let taken =
        |bound: io::Result<()>| bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse);
    let addresses =
        [SocketAddr::from(([0u8; 4], port)), SocketAddr::from(([0u16; 8], port))].into_iter();
    addresses.into_iter().all(|address| {
        !taken(TcpListener::bind(address).map(drop)) && !taken(UdpSocket::bind(address).map(drop))
    })
}
