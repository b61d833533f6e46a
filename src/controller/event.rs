//! What the controller is told, and what it wants done.

use std::net::{IpAddr, SocketAddr};

use litemap::LiteMap;

use super::opinions::Opinion;
use super::outlets::Outlet;
use crate::config::agent::{AgentConfig, Role, ServerConfig};
use crate::config::keys::PublicKey;
use crate::config::value::HttpUrl;
use crate::health::Signs;
use crate::net::{Counters, Kernel};
use crate::netifd::Interface;
use crate::quota::Save;
use crate::reconcile::{Operation, Plan};
use crate::tunnel::forward::{Incoming, Port, Verdict};

/// Subflows that connections should have, or lack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ByConnection<T> {
    /// Connections that are not new, and have others.
    pub settled: Vec<T>,
    /// Connections without any.
    pub stranded: Vec<T>,
}

impl<T> ByConnection<T> {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.settled.is_empty() && self.stranded.is_empty()
    }
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The agent starts with the configuration it was made with.
    Started,
    /// A new configuration.
    Configured(Box<AgentConfig>),
    /// A person wants a role for an uplink, until the agent stops or another one is configured.
    RoleWanted {
        /// The uplink's name.
        uplink: String,
        /// The role; `None` is the configured one.
        role: Option<Role>,
    },
    /// The agent is to stop.
    Stopping,
    /// Something in the kernel changed.
    Changed,
    /// These are netifd's interfaces.
    Interfaces(Vec<Interface>),
    /// One of netifd's interfaces is as told.
    Interface(Interface),
    /// The dump asked for.
    Dumped(Box<Kernel>),
    /// The kernel could not be dumped, for this reason.
    LookFailed(String),
    /// A plan was carried out but for these operations.
    Applied(Vec<Failed>),
    /// A probe asked for left, or could not be sent.
    ProbeSent {
        /// The uplink's slot.
        slot: u8,
        /// The probe's number.
        counter: u64,
        /// Whether it left.
        sent: bool,
    },
    /// A probe was answered.
    ProbeAnswered {
        /// The uplink's slot.
        slot: u8,
        /// The probe's number.
        counter: u64,
    },
    /// A subflow from this local address ended with an error.
    SubflowFailed(IpAddr),
    /// Slots of those that [`Controller::expected_subflows`](super::Controller::expected_subflows) names
    /// and a connection lacks; told until, and once when, there are none.
    MissingSubflows(ByConnection<u8>),
    /// Slots of [`Controller::busy_standbys`](super::Controller::busy_standbys) over which the server
    /// still sends; told each second, and once when there are none any more.
    StandbysUsed(Vec<u8>),
    /// There is news of the server with this name.
    Server(String, ServerNews),
    /// A stream to the server in use broke before it was answered.
    ServerSuspected,
    /// A check asked for ended.
    InternetAsked {
        /// The uplink's slot.
        slot: u8,
        /// What it found.
        opinion: Opinion,
    },
    /// What the uplinks did in the last second, by slot.
    Rates {
        /// Rates of their devices in bits a second, both directions added.
        rates: LiteMap<u8, u64>,
        /// Segments of busy connections that they lost.
        lost: LiteMap<u8, u64>,
    },
    /// Packets received so far by the uplinks' devices, by slot; told every 50 ms or so while
    /// [`Controller::watches_traffic`](super::Controller::watches_traffic).
    Received(LiteMap<u8, u64>),
    /// What subflows show, by slot; told with each [`Event::Received`] while
    /// [`Controller::wants_subflows`](super::Controller::wants_subflows), and each second while
    /// [`Controller::relies_on_subflows`](super::Controller::relies_on_subflows).
    Subflows(LiteMap<u8, Signs>),
    /// What the uplinks' devices have carried.
    Counted {
        /// The clock, in seconds since 1970; it may be wrong.
        clock: u64,
        /// The devices' counters, by slot.
        counters: LiteMap<u8, Counters>,
    },
    /// Time went by.
    Tick,
}

/// News of one server.
#[derive(Debug)]
pub enum ServerNews {
    /// Its name stands for these addresses, or why that is not known.
    Resolved(Result<Vec<IpAddr>, String>),
    /// There is a session with it, or a newer one.
    Up {
        /// The address in use.
        address: IpAddr,
        /// Whether it carries datagrams.
        datagrams: bool,
    },
    /// It answered on the control connection.
    Heard {
        /// Whether it has no way to IPv6 targets; `None` if it does not say.
        lacks_ipv6: Option<bool>,
    },
    /// What became of the ports it was asked for.
    Forwards(Vec<(Port, Verdict)>),
    /// A connection to one of them waits.
    Incoming(Incoming),
    /// It has another key, as it says itself.
    NewKey(PublicKey),
    /// It could not be connected to.
    Failed {
        /// Why.
        reason: String,
        /// A random number, for the time of the next attempt.
        dice: u16,
    },
    /// The control connection ended.
    Down {
        /// Why.
        reason: String,
        /// A random number, for the time of the next attempt.
        dice: u16,
    },
}

/// An operation that could not be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The operation.
    pub operation: Operation,
    /// Why.
    pub reason: String,
    /// The kernel's error number, if it gave one.
    pub errno: Option<i32>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Dump the kernel.
    Look {
        /// Whether to look also at what is costly and changes silently.
        thorough: bool,
    },
    /// Carry out a plan.
    Apply(Plan),
    /// Remove everything of ours and put back what was changed.
    Leave,
    /// Send a probe over an uplink, and say so by [`Event::ProbeSent`].
    Probe {
        /// The uplink's slot.
        slot: u8,
    },
    /// Have probe sockets on these uplinks and no others.
    SetProbers(Vec<Outlet>),
    /// Ask whether the Internet answers over an uplink, and say so by [`Event::InternetAsked`].
    AskInternet {
        /// Where to leave.
        outlet: Outlet,
        /// What to ask for.
        url: HttpUrl,
    },
    /// Dial the server over these uplinks, best first.
    SetDialOrder(Vec<Outlet>),
    /// Write down what the uplinks have carried, to be read at the next start.
    SaveUsage {
        /// The file's contents.
        text: String,
        /// Where to.
        save: Save,
    },
    /// Know these servers, in the order of the configuration, and no others.
    KeepServers(Vec<ServerConfig>),
    /// Ask which addresses the name of this server stands for.
    Resolve(String),
    /// Connect to a server, instead of an attempt under way; a session it has stays until then.
    Dial {
        /// Its name.
        server: String,
        /// Its addresses, best first.
        addresses: Vec<IpAddr>,
    },
    /// Give up the control connection to this server, and attempts to get one.
    HangUp(String),
    /// Open streams at this server and probe it.
    UseServer(String),
    /// Ask the server in use for these ports, and no others.
    SetForwards(Vec<Port>),
    /// Carry the UDP that arrives at these ports of the server to these targets.
    SetUdpTargets(Vec<(u16, SocketAddr)>),
    /// Relay a connection that waits at the server.
    Forward {
        /// The connection.
        incoming: Incoming,
        /// Where it is to go.
        target: SocketAddr,
        /// Whether the target is told who connects.
        proxy_protocol: bool,
    },
    /// Know this server by another key from now on, and connect with it.
    AdoptServerKey {
        /// The server, as it is configured.
        server: ServerConfig,
        /// Its key.
        key: PublicKey,
    },
    /// Ask this server for a sign of life on the control connection.
    PingServer(String),
    /// Have the kernel forget untunnelled flows that are translated to one of these addresses and
    /// can go on under another.
    ForgetFlows(Vec<IpAddr>),
    /// Send tunnelled UDP over these uplinks.
    SetDatagramWays {
        /// Their slots, best first.
        slots: Vec<u8>,
        /// Whether to send each datagram over two of them.
        duplicate: bool,
    },
    /// Have the kernel forget UDP flows to these ports, inclusive ranges.
    ForgetUdp(Vec<(u16, u16)>),
    /// Tell the user.
    Log(log::Level, String),
}
