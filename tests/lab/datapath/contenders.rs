//! Who relays: this project's programs, shadowsocks-rust, and a relay with nothing to it.

use std::env;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::bare::Way;
use crate::lab::traffic::Kind;
use crate::lab::{AgentProgram, Lab, Namespace, Process, SERVER_V4, ServerProgram, until};

/// Where the router's and the server's programs listen.
const ROUTER_PORT: u16 = 1080;
const SERVER_PORT: u16 = 8388;
/// A program listens within this time.
const SOON: Duration = Duration::from_secs(10);
/// Key of the shadowsocks methods of 2022, of which the others make theirs: 16 bytes in base64.
const PASSWORD: &str = "MDEyMzQ1Njc4OWFiY2RlZg==";

/// A pair of programs that relays between LAN and target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// [`Way`] alone, no encryption.
    Bare(Way),
    /// Agent and server, with a cipher.
    Ours(&'static str),
    /// `sslocal` and `ssserver`, with a method.
    Shadowsocks(&'static str),
}

/// All of them, in the order of the table.
pub const CONTENDERS: [Contender; 9] = [
    Contender::Bare(Way::Copy),
    Contender::Bare(Way::Splice),
    Contender::Ours("none"),
    Contender::Ours("aes-128-gcm"),
    Contender::Ours("chacha20-poly1305"),
    Contender::Shadowsocks("none"),
    Contender::Shadowsocks("aes-128-gcm"),
    Contender::Shadowsocks("chacha20-ietf-poly1305"),
    Contender::Shadowsocks("2022-blake3-aes-128-gcm"),
];

impl Contender {
    /// The name in the table.
    pub fn name(self) -> String {
        match self {
            Contender::Bare(way) => format!("bare {}", way.word()),
            Contender::Ours(cipher) => format!("mptcp-bond {cipher}"),
            Contender::Shadowsocks(method) => format!("shadowsocks {method}"),
        }
    }

    /// Whether its programs are here.
    pub fn is_available(self) -> bool {
        !matches!(self, Contender::Shadowsocks(_)) || shadowsocks("sslocal").is_some()
    }

    /// Starts it; connections of the LAN go through it from then on.
    pub fn start(self, lab: &Lab) -> Running<'_> {
        match self {
            Contender::Ours(cipher) => {
                let server = ServerProgram::start(lab);
                let uci = format!("config server 'vps'\n\toption cipher '{cipher}'\n");
                let mut agent = AgentProgram::start_with(lab, &server, &uci);
                agent.wait_status("the cipher is in force", |status| {
                    status["servers"][0]["cipher"] == cipher
                });
                Running::Ours(Box::new((agent, server)))
            }
            Contender::Bare(way) => {
                let target = SocketAddr::new(crate::lab::TARGET_V4.into(), crate::load::PORT);
                let hop = |listen: (Kind, u16), next: (Kind, SocketAddr)| {
                    let mut command = Command::new(env::current_exe().expect("find this program"));
                    command.args(["--hop", way.word()]);
                    command.args([listen.0.word(), &listen.1.to_string()]);
                    command.args([next.0.word(), &next.1.to_string()]);
                    command
                };
                let server = SocketAddr::new(SERVER_V4.into(), SERVER_PORT);
                Running::pair(
                    lab,
                    hop((Kind::Tcp, ROUTER_PORT), (Kind::Mptcp, server)),
                    hop((Kind::Mptcp, SERVER_PORT), (Kind::Tcp, target)),
                )
            }
            Contender::Shadowsocks(method) => {
                let program = |name: &str, config: serde_json::Value| {
                    let path = lab.work().join(format!("{name}.json"));
                    fs::write(&path, config.to_string()).expect("write a configuration");
                    let mut command = Command::new(shadowsocks(name).expect("it is available"));
                    command.arg("--config").arg(path);
                    command
                };
                let any = IpAddr::from(Ipv4Addr::UNSPECIFIED);
                let local = json!({
                    "server": SERVER_V4, "server_port": SERVER_PORT,
                    "password": PASSWORD, "method": method, "mptcp": true,
                    "locals": [{
                        "protocol": "redir", "tcp_redir": "redirect",
                        "local_address": any, "local_port": ROUTER_PORT,
                    }],
                });
                let server = json!({
                    "server": any, "server_port": SERVER_PORT,
                    "password": PASSWORD, "method": method, "mptcp": true,
                });
                Running::pair(lab, program("sslocal", local), program("ssserver", server))
            }
        }
    }
}

/// A program of shadowsocks-rust, in the directory that `SSLOCAL` names or on the path.
fn shadowsocks(name: &str) -> Option<PathBuf> {
    let directories = match env::var_os("SSLOCAL") {
        Some(directory) => vec![PathBuf::from(directory)],
        None => env::split_paths(&env::var_os("PATH")?).collect(),
    };
    directories.iter().map(|directory| directory.join(name)).find(|path| Path::is_file(path))
}

/// A running pair.
pub enum Running<'lab> {
    /// Agent and server.
    Ours(Box<(AgentProgram<'lab>, ServerProgram<'lab>)>),
    /// Others: those on the router and on the server, and what leads connections to them.
    Others([Process; 2], Redirection<'lab>),
}

impl<'lab> Running<'lab> {
    fn pair(lab: &'lab Lab, local: Command, remote: Command) -> Running<'lab> {
        let server = lab.spawn(&lab.server, "remote", remote);
        let router = lab.spawn(&lab.router, "local", local);
        for (namespace, port) in [(&lab.server, SERVER_PORT), (&lab.router, ROUTER_PORT)] {
            until("it listens", SOON, || {
                let listeners = namespace.run("ss", &["-Hltn", &format!("sport = {port}")]);
                (!listeners.trim().is_empty()).then_some(())
            });
        }
        Running::Others([router, server], Redirection::set_up(&lab.router))
    }

    /// The processes on router and server.
    pub fn processes(&mut self) -> [&Process; 2] {
        match self {
            Running::Ours(programs) => {
                let (agent, server) = &mut **programs;
                [agent.process(), server.process()]
            }
            Running::Others([router, server], _redirection) => [router, server],
        }
    }
}

/// Connections of the LAN end at a port of the router's; until this is dropped.
pub struct Redirection<'lab>(&'lab Namespace);

impl Redirection<'_> {
    fn set_up(router: &Namespace) -> Redirection<'_> {
        router.nft(&format!(
            "table ip redirection {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    iifname br-lan meta l4proto tcp redirect to :{ROUTER_PORT}
  }}
}}"
        ));
        Redirection(router)
    }
}

impl Drop for Redirection<'_> {
    fn drop(&mut self) {
        self.0.nft("delete table ip redirection");
    }
}
