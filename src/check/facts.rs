//! What a check is made from.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::config::agent::{AgentConfig, ServerConfig};
use crate::failover::{Assignment, InForce};
use crate::net::{Family, Kernel};
use crate::tunnel::hello::Refusal;
use crate::uplink::Uplink;

/// The largest packet whose way is tried: what Ethernet carries.
pub const LARGEST_PACKET: u16 = 1500;

/// Everything a check knows.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The program's version.
    pub version: String,
    /// The configuration in force, or what is wrong with the file.
    pub config: Result<AgentConfig, String>,
    /// What a running agent knows; `None` when none runs.
    pub agent: Option<AgentFacts>,
    /// The kernel.
    pub kernel: KernelFacts,
    /// The server.
    pub server: Option<ServerFacts>,
    /// The uplinks in order of configuration.
    pub uplinks: Vec<UplinkFacts>,
}

/// What only a running agent knows.
#[derive(Clone, Debug, Default)]
pub struct AgentFacts {
    /// Why the last reload failed; the configuration before it is in force.
    pub config_error: Option<String>,
    /// What is in the way, a sentence each.
    pub conflicts: Vec<String>,
    /// Operations that fail: what and why.
    pub failures: Vec<(String, String)>,
    /// Sysctls that could not be set: which, to what, why.
    pub sysctls_not_set: Vec<(String, String, String)>,
    /// Sysctls that this kernel does not have.
    pub sysctls_absent: Vec<String>,
    /// Ports of the server that lead to the LAN: what is the matter with them and what to do, if so.
    pub forwards: Vec<(String, Option<(String, &'static str)>)>,
    /// Why UDP that should be tunnelled is not, and what to do.
    pub udp_trouble: Option<(&'static str, &'static str)>,
}

/// The kernel.
#[derive(Clone, Debug)]
pub struct KernelFacts {
    /// A dump; `Err` says why there is none.
    pub dump: Result<Kernel, String>,
    /// Whether nft can divert connections to the agent; `Err` says why not.
    pub tproxy: Result<(), String>,
    /// Whether sockets of MPTCP can be listed, as `ss -M` does.
    pub diag: bool,
}

/// What a server said of itself over the control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerLimits {
    /// Additional subflows that one of its connections may have; `None` without MPTCP.
    pub subflows: Option<u8>,
    /// Whether `net.mptcp.enabled` is set there.
    pub mptcp: bool,
    /// Whether TCP's largest buffers are as large as they should be.
    pub buffers: bool,
    /// Whether it has no way to IPv6 targets.
    pub lacks_ipv6: bool,
    /// How far its clock is ahead, in milliseconds.
    pub clock_ahead_ms: i64,
}

impl ServerLimits {
    /// Whether connections cannot have a subflow on each uplink in use.
    pub fn too_few_for(&self, facts: &Facts) -> bool {
        let used = facts.uplinks.iter().filter(|it| it.in_force() != InForce::Unused).count();
        self.subflows.is_some_and(|most| usize::from(most) < used.saturating_sub(1))
    }
}

/// The server in use, as configured first.
#[derive(Clone, Debug)]
pub struct ServerFacts {
    /// Its section.
    pub config: ServerConfig,
    /// The addresses its name stands for; none before it was resolved.
    pub addresses: Vec<IpAddr>,
    /// The address tried: the one in use, or the first.
    pub address: Option<IpAddr>,
    /// Whether there is a control connection.
    pub connected: bool,
    /// Why there is none.
    pub trouble: Option<String>,
    /// What it says of itself; none from a server of an older version.
    pub limits: Option<ServerLimits>,
}

/// One uplink.
#[derive(Clone, Debug)]
pub struct UplinkFacts {
    /// Its facts.
    pub uplink: Uplink,
    /// The family of the server's address that is tried.
    pub family: Option<Family>,
    /// Its role in force; `None` when no agent runs.
    pub assignment: Option<Assignment>,
    /// Whether new connections to the server begin on it.
    pub first: bool,
    /// Smoothed RTT of its probes.
    pub rtt: Option<Duration>,
    /// The share of probes lost, 0 to 1.
    pub loss: Option<f32>,
    /// Whether the Internet answers over it, where the server does not and that was asked.
    pub internet: Option<bool>,
    /// The families whose untunnelled traffic leaves over it.
    pub untunnelled: Vec<Family>,
    /// What trying it out showed; `None` when it was not tried.
    pub trial: Option<Trial>,
}

impl UplinkFacts {
    /// What it is used for.
    pub fn in_force(&self) -> InForce {
        self.assignment.as_ref().map_or(InForce::Unused, |assignment| assignment.in_force)
    }
}

/// What trying out an uplink showed.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// Its gateway.
    pub gateway: Gateway,
    /// A new connection to the server.
    pub contact: Contact,
    /// Whether connections that begin on other uplinks get a subflow here.
    pub join: Join,
    /// A probe.
    pub datagrams: Datagrams,
    /// Full-size packets.
    pub path_mtu: PathMtu,
}

/// An uplink's gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gateway {
    /// There is none, as on PPP.
    None,
    /// It answers ARP or neighbour discovery, or did not have to of late.
    Answers,
    /// It does not answer.
    Silent,
}

/// A new connection to the server over one uplink.
#[derive(Clone, Debug, PartialEq)]
pub enum Contact {
    /// No answer to SYNs with MPTCP options.
    Unanswered {
        /// Whether a SYN without them was answered.
        plain: bool,
    },
    /// A reset.
    Refused,
    /// A router on the way says that there is no route.
    NoRoute,
    /// It could not be tried, for this reason.
    Untried(String),
    /// It stands.
    Made {
        /// Whether it is MPTCP, also after the first data.
        mptcp: bool,
        /// What the server answered to a handshake.
        reply: Reply,
        /// How long the connection took to stand.
        rtt: Duration,
    },
}

/// What the server answered to a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It knows this router; its name and version.
    Welcome(String),
    /// It does not want it.
    Refused(Refusal),
    /// It hung up, as a server does that cannot read what was sealed for another key.
    HungUp,
    /// Nothing in time.
    Silent,
    /// Something else, in words.
    Other(String),
}

/// A subflow joining a connection that began on another uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// No other uplink has an MPTCP connection to join, or this one has no endpoint.
    Untried,
    /// It joined.
    Joined,
    /// No answer to its SYN.
    Unanswered,
    /// Answered, but not as MPTCP, or reset.
    Rejected,
}

/// A probe over UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datagrams {
    /// There is no session to sign it with.
    Untried,
    /// No answer.
    Unanswered,
    /// A router on the way says that there is no route.
    NoRoute,
    /// An answer.
    Answered {
        /// Where the server saw it come from.
        observed: SocketAddr,
        /// How long it took.
        rtt: Duration,
    },
}

/// What became of packets as large as TCP's are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathMtu {
    /// Not tried: the server is too old for it, or nothing gets through anyway.
    Untried,
    /// Packets of this many bytes get through.
    Passes(u16),
    /// Larger ones are refused by a router on the way, which says so.
    Announced(u16),
    /// They vanish.
    Hole {
        /// Bytes of the packets that vanish.
        size: u16,
        /// Bytes of the largest that got through, if any did.
        passes: Option<u16>,
    },
}
