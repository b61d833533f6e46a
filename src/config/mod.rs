//! Configuration: UCI text to an agent's, TOML to a server's.

pub mod agent;
pub mod server;
pub mod uci;
