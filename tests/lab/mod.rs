//! The lab: a small internet of network namespaces, built by the test that uses it.
//!
//! ```text
//! lan --- router --- isp-wan  --- inet --- server
//!            |------ isp-wanb ------|----- target
//!            '------ isp-lte  ------'
//! ```
//!
//! Each ISP shapes its uplink (TBF in both directions), translates IPv4 addresses, drops packets
//! whose source it did not assign, and can delay, lose, swallow or rewrite packets; all of that can
//! be changed while traffic flows, through [`Uplink`]. Test binaries run in `tests/sandbox` (see
//! `.cargo/config.toml`), so nothing of a lab survives its process.
//!
//! This is test support: what goes wrong here panics with a message that names the command.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part of the lab")]

mod advertisement;
mod baseline;
mod command;
mod dns;
pub mod failures;
mod first_byte;
pub mod flapping;
mod forwarder;
pub mod forwards;
pub mod idle;
mod isp;
mod joins;
mod measure;
mod namespace;
mod network_state;
mod process;
mod programs;
mod random;
mod service;
mod spec;
mod ssh;
mod topology;
pub mod traffic;
mod tun;
mod uplink;
mod wait;

pub use baseline::PlainMptcp;
pub use command::{Only, Section, command, save};
pub use dns::DnsServer;
pub use first_byte::FirstByte;
pub use joins::joining_uploads;
pub use measure::{schedule_first, two_of_three};
pub use namespace::Namespace;
pub use network_state::NetworkState;
pub use process::Process;
pub use programs::{
    AgentProgram, HTTP_ADDRESS, HTTP_OPTION, Program, ServerProgram, binary, ubus_socket,
};
pub use random::Random;
pub use service::Service;
pub use spec::{Access, Direction, Strip, UplinkSpec};
pub use ssh::SshSession;
pub use topology::{
    CORE_V4, LAN_CLIENT_V4, LAN_CLIENT_V6, Lab, LabBuilder, Labs, ROUTER_LAN_V4, SERVER_V4,
    SERVER_V6, TARGET_V4, TARGET_V6,
};
pub use uplink::Uplink;
pub use wait::{until, wait_for};
