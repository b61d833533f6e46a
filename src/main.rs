//! Argument vector to subcommand; what they do is in the library.

use std::process::ExitCode;

use mptcp_bond::cli::{self, Command, exit};
use mptcp_bond::{agent, client, provision, selftest, server};

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os().skip(1)) {
        Ok(command) => command,
        Err(error) => {
            eprintln!("mptcp-bond: {error}");
            return ExitCode::from(exit::USAGE);
        }
    };
    match command {
        Command::Agent(options) => agent::run(&options),
        Command::Server(options) => server::run(&options),
        Command::ServerInit(options) => provision::print(provision::init(&options)),
        Command::ServerInvite(options) => provision::print(provision::invite(&options)),
        Command::ServerClients(options) => provision::print(provision::clients(&options)),
        Command::ServerRevoke(options) => provision::print(provision::revoke(&options)),
        Command::ServerRotateKey(options) => {
            provision::print(provision::rotate_server_key(&options))
        }
        Command::Pair { options, run_dir } => client::pair(&options, &run_dir, agent::enrol),
        Command::RotateKey(options) => client::rotate_key(&options, agent::renew_key),
        Command::Status(options) => client::run(&options),
        Command::Check(options) => client::check(&options),
        Command::Monitor(options) => client::monitor(&options),
        Command::Uplink(options) => client::set_role(&options),
        Command::SelfTest => selftest::run(),
        Command::Version => {
            provision::print(Ok(concat!("mptcp-bond ", env!("CARGO_PKG_VERSION"), "\n").into()))
        }
        Command::Help => provision::print(Ok(cli::USAGE.into())),
    }
}
