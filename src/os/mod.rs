//! The operating system: netlink, nft, sysctls and sockets. Each does one thing and decides nothing.

pub mod addresses;
pub mod conntrack;
pub mod control;
pub mod counters;
pub mod cpu;
pub mod diag;
pub mod dns;
pub mod http;
pub mod internet;
pub mod kernel;
pub mod log;
pub mod neighbour;
pub mod netlink;
pub mod nft;
pub mod path_manager;
pub mod privileges;
pub mod probe;
pub mod random;
pub mod resolve;
pub mod route;
pub mod rule;
pub mod runtime;
pub mod saved;
pub mod socket;
pub mod sysctl;
pub mod ubus;
