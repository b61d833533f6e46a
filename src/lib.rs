//! mptcp-bond bonds a router's WAN uplinks with the MPTCP of the stock Linux kernel.
//!
//! The modules are ordered: each uses only those above it. Up to `controller` everything is pure
//! (no clock, no I/O); `os`, `relay` and the programs below them do the I/O and decide nothing.

pub mod net;

pub mod config;

pub mod uplink;

pub mod health;

pub mod failover;

pub mod interception;

pub mod desired;

pub mod reconcile;

pub mod tunnel;

pub mod status;

pub mod controller;

pub mod os;

pub mod relay;

pub mod proxy;

pub mod converter;

pub mod provision;

pub mod agent;

pub mod server;

pub mod cli;
