//! The command line: words to a [`Command`]. Pure; `main.rs` runs what comes out.

mod options;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use lexopt::{Arg, Parser};
use litemap::LiteMap;

use crate::config::agent::Role;
use crate::config::pairing::PairingUri;
use crate::config::value::{self, HostPort};
pub use options::*;

/// Exit codes of `sysexits.h`.
pub mod exit {
    /// All went well.
    pub const OK: u8 = 0;
    /// `check` found something wrong (no code of `sysexits.h`).
    pub const NOT_WELL: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 64;
    /// Input given on the command line is wrong.
    pub const DATAERR: u8 = 65;
    /// A file that must be there is not.
    pub const NOINPUT: u8 = 66;
    /// The other side, or the agent, does not answer.
    pub const UNAVAILABLE: u8 = 69;
    /// The operating system lacks something.
    pub const OSERR: u8 = 71;
    /// Reading or writing failed.
    pub const IOERR: u8 = 74;
    /// The other side answers in another language.
    pub const PROTOCOL: u8 = 76;
    /// Not permitted: run as root.
    pub const NOPERM: u8 = 77;
    /// The configuration is wrong.
    pub const CONFIG: u8 = 78;
}

/// The agent's configuration file.
pub const AGENT_CONFIG: &str = "/etc/config/mptcpd";
/// The server's configuration file.
pub const SERVER_CONFIG: &str = "/etc/mptcp-bond/server.toml";
/// The folder of the agent's key.
pub const KEY_DIR: &str = "/etc/mptcp-bond";
/// The folder of the control socket.
pub const RUN_DIR: &str = "/var/run/mptcp-bond";
/// Where OpenWrt's ubusd listens.
pub const UBUS_SOCKET: &str = "/var/run/ubus/ubus.sock";
/// The `config server` section that `pair` writes.
pub const SERVER_SECTION: &str = "vps";

/// What `help` prints.
pub const USAGE: &str = "\
mptcp-bond bonds a router's uplinks with the MPTCP of the Linux kernel.

On the router:
  mptcp-bond agent                 run the agent
  mptcp-bond pair 'URI'            connect to the server that printed this URI, and check
  mptcp-bond rotate-key            make a new key for this router, without an interruption
  mptcp-bond status                show uplinks, server and connections
  mptcp-bond check                 try everything out: what does not work, why, and what to do
  mptcp-bond monitor               show what happens, as it happens
  mptcp-bond uplink NAME ROLE      give an uplink another role until the agent restarts: bond,
                                   backup, overflow, off, or default for the configured one

On the server:
  mptcp-bond server                run the server
  mptcp-bond server init           write server.toml and the server's key, invite the first router
  mptcp-bond server invite NAME    print a pairing URI for one router, good for 24 hours
  mptcp-bond server clients        list routers, what they carried, and open invitations
  mptcp-bond server revoke NAME    shut a router or an invitation out, at once
  mptcp-bond server rotate-key     make a new key for the server; the old one holds until all
                                   routers know the new one, or until --finish

Anywhere:
  mptcp-bond self-test             show whether the program works on this processor and kernel
  mptcp-bond version
  mptcp-bond help

Options:
  --config FILE      agent, check, pair: /etc/config/mptcpd
                     server ...: /etc/mptcp-bond/server.toml
  --run-dir DIR      agent, server, server clients, server revoke, pair, status, check, monitor,
                     uplink: where the control socket is; /var/run/mptcp-bond
  --key-dir DIR      agent, pair: where the router's key is; /etc/mptcp-bond
  --ubus-socket FILE agent: where OpenWrt's ubusd listens; /var/run/ubus/ubus.sock
  --stderr           agent, server: log to standard error even if it is no terminal
  --name NAME        pair: the section 'config server' to write; vps
  --listen ADDR:PORT server init: listen here only (may be repeated); all addresses, same port
  --public HOST:PORT server init: where routers reach the server; this host's public address, and
                     the first of the ports 443, 8443 and 4443 that is free
  --finish           server rotate-key: give the old key up now
  --json             server clients, status, check, monitor: as JSON
  --watch            status: again each second, until interrupted
";

/// Why the words are no command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageError(String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; try 'mptcp-bond help'", self.0)
    }
}

impl std::error::Error for UsageError {}

impl From<lexopt::Error> for UsageError {
    fn from(error: lexopt::Error) -> UsageError {
        UsageError(error.to_string())
    }
}

/// Why a program cannot run.
#[derive(Debug)]
pub struct Fatal {
    /// The code of `sysexits.h` to exit with.
    pub code: u8,
    /// What is wrong and what to do.
    pub text: String,
}

impl Fatal {
    /// The system does not play along.
    pub fn os(text: impl ToString) -> Fatal {
        Fatal { code: exit::OSERR, text: text.to_string() }
    }

    /// Something is taken, by another instance perhaps.
    pub fn unavailable(text: impl ToString) -> Fatal {
        Fatal { code: exit::UNAVAILABLE, text: text.to_string() }
    }

    /// Says so on standard error.
    pub fn report(&self) -> ExitCode {
        for line in self.text.lines() {
            eprintln!("mptcp-bond: {line}");
        }
        ExitCode::from(self.code)
    }
}

/// Parses the words after the program's name.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Command, UsageError> {
    let mut parser = Parser::from_args(words);
    let command = match parser.next()? {
        None => return Err(UsageError("no command".into())),
        Some(Arg::Value(word)) => word.to_string_lossy().into_owned(),
        Some(Arg::Long("help") | Arg::Short('h')) => "help".to_owned(),
        Some(Arg::Long("version") | Arg::Short('V')) => "version".to_owned(),
        Some(other) => return Err(other.unexpected().into()),
    };
    let command = match command.as_str() {
        "server" => match subcommand(&mut parser) {
            Some(subcommand) => format!("server {subcommand}"),
            None => command,
        },
        _ => command,
    };
    let (options, positional): (&[&str], &[&str]) = match command.as_str() {
        "agent" => (&["config", "run-dir", "key-dir", "ubus-socket", "stderr"], &[]),
        "server" => (&["config", "run-dir", "stderr"], &[]),
        "server init" => (&["config", "listen", "public"], &[]),
        "server invite" => (&["config"], &["NAME"]),
        "server revoke" => (&["config", "run-dir"], &["NAME"]),
        "server clients" => (&["config", "run-dir", "json"], &[]),
        "server rotate-key" => (&["config", "run-dir", "finish"], &[]),
        "rotate-key" => (&["config", "key-dir", "run-dir"], &[]),
        "pair" => (&["config", "key-dir", "run-dir", "name"], &["URI"]),
        "status" => (&["run-dir", "json", "watch"], &[]),
        "check" => (&["config", "run-dir", "json"], &[]),
        "monitor" => (&["run-dir", "json"], &[]),
        "uplink" => (&["run-dir"], &["NAME", "ROLE"]),
        // Whatever follows, help is what is wanted.
        "help" => return Ok(Command::Help),
        "self-test" | "version" => (&[], &[]),
        _ => return Err(UsageError(format!("unknown command '{}'", command.escape_debug()))),
    };
    let Some(words) = Words::read(&mut parser, &command, options, positional)? else {
        return Ok(Command::Help);
    };
    words.command()
}

/// Takes the next word if it is one and not an option.
fn subcommand(parser: &mut Parser) -> Option<String> {
    let mut rest = parser.try_raw_args()?;
    let word = rest.next_if(|word| !word.as_encoded_bytes().starts_with(b"-"))?;
    Some(word.to_string_lossy().into_owned())
}

/// The options and other words of one command.
struct Words<'a> {
    command: &'a str,
    /// The value of each option that was given; empty for one that takes none.
    values: LiteMap<String, OsString>,
    listen: Vec<OsString>,
    /// The other words a command takes.
    arguments: Vec<OsString>,
}

impl<'a> Words<'a> {
    /// `None` when help is asked for.
    fn read(
        parser: &mut Parser,
        command: &'a str,
        options: &[&str],
        positional: &[&str],
    ) -> Result<Option<Words<'a>>, UsageError> {
        let mut words =
            Words { command, values: LiteMap::new(), listen: Vec::new(), arguments: Vec::new() };
        while let Some(arg) = parser.next()? {
            match arg {
                Arg::Long("help") | Arg::Short('h') => return Ok(None),
                Arg::Long(option) if options.contains(&option) => {
                    let option = option.to_owned();
                    let again = match option.as_str() {
                        "stderr" | "json" | "watch" | "finish" => {
                            words.values.insert(option.clone(), OsString::new()).is_some()
                        }
                        "listen" => {
                            words.listen.push(parser.value()?);
                            false
                        }
                        _ => words.values.insert(option.clone(), parser.value()?).is_some(),
                    };
                    if again {
                        return Err(UsageError(format!("--{option} is given twice")));
                    }
                }
                Arg::Long(option) => {
                    let option = option.escape_debug();
                    return Err(UsageError(format!("'{command}' has no option --{option}")));
                }
                Arg::Value(word) if words.arguments.len() < positional.len() => {
                    words.arguments.push(word);
                }
                other => return Err(other.unexpected().into()),
            }
        }
        words.arguments.retain(|word| !word.is_empty());
        if let Some(name) = positional.get(words.arguments.len()) {
            return Err(UsageError(format!("'{command}' needs a {name}")));
        }
        Ok(Some(words))
    }

    fn has(&self, option: &str) -> bool {
        self.values.contains_key(option)
    }

    fn path(&self, option: &str, default: &str) -> PathBuf {
        self.values.get(option).map_or_else(|| default.into(), PathBuf::from)
    }

    /// The command's argument at this place.
    fn argument(&self, place: usize) -> Result<&str, UsageError> {
        let word = self.arguments.get(place).and_then(|word| word.to_str());
        word.ok_or_else(|| UsageError("the argument is not UTF-8".into()))
    }

    /// The name of a client.
    fn client(&self) -> Result<ClientOptions, UsageError> {
        let name = value::client_name(self.argument(0)?)
            .map_err(|right| UsageError(format!("NAME must be {right}")))?;
        Ok(ClientOptions { config: self.path("config", SERVER_CONFIG), name })
    }

    fn command(&self) -> Result<Command, UsageError> {
        Ok(match self.command {
            "agent" => Command::Agent(AgentOptions {
                config: self.path("config", AGENT_CONFIG),
                run_dir: self.path("run-dir", RUN_DIR),
                key_dir: self.path("key-dir", KEY_DIR),
                ubus_socket: self.path("ubus-socket", UBUS_SOCKET),
                stderr: self.has("stderr"),
            }),
            "server" => Command::Server(ServerOptions {
                config: self.path("config", SERVER_CONFIG),
                run_dir: self.path("run-dir", RUN_DIR),
                stderr: self.has("stderr"),
            }),
            "server init" => Command::ServerInit(self.init()?),
            "server invite" => Command::ServerInvite(self.client()?),
            "server revoke" => Command::ServerRevoke(RevokeOptions {
                client: self.client()?,
                run_dir: self.path("run-dir", RUN_DIR),
            }),
            "server clients" => Command::ServerClients(ClientsOptions {
                config: self.path("config", SERVER_CONFIG),
                run_dir: self.path("run-dir", RUN_DIR),
                json: self.has("json"),
            }),
            "pair" => {
                Command::Pair { options: self.pair()?, run_dir: self.path("run-dir", RUN_DIR) }
            }
            "server rotate-key" => Command::ServerRotateKey(RotateServerOptions {
                config: self.path("config", SERVER_CONFIG),
                run_dir: self.path("run-dir", RUN_DIR),
                finish: self.has("finish"),
            }),
            "rotate-key" => Command::RotateKey(RotateOptions {
                config: self.path("config", AGENT_CONFIG),
                key_dir: self.path("key-dir", KEY_DIR),
                run_dir: self.path("run-dir", RUN_DIR),
            }),
            "status" => {
                let format = match (self.has("json"), self.has("watch")) {
                    (true, true) => {
                        return Err(UsageError("--json and --watch exclude each other".into()));
                    }
                    (true, false) => StatusFormat::Json,
                    (false, true) => StatusFormat::Watch,
                    (false, false) => StatusFormat::Table,
                };
                Command::Status(StatusOptions { run_dir: self.path("run-dir", RUN_DIR), format })
            }
            "check" => Command::Check(CheckOptions {
                config: self.path("config", AGENT_CONFIG),
                run_dir: self.path("run-dir", RUN_DIR),
                json: self.has("json"),
            }),
            "uplink" => Command::Uplink(UplinkOptions {
                run_dir: self.path("run-dir", RUN_DIR),
                name: self.argument(0)?.to_owned(),
                role: Role::wanted(self.argument(1)?)
                    .map_err(|right| UsageError(format!("ROLE must be {right}")))?,
            }),
            "monitor" => Command::Monitor(MonitorOptions {
                run_dir: self.path("run-dir", RUN_DIR),
                json: self.has("json"),
            }),
            "self-test" => Command::SelfTest,
            _ => Command::Version,
        })
    }

    fn init(&self) -> Result<InitOptions, UsageError> {
        let public = self.values.get("public").map(|word| word.to_string_lossy().parse());
        let public: Option<HostPort> =
            public.transpose().map_err(|right| UsageError(format!("--public must be {right}")))?;
        let listen = self
            .listen
            .iter()
            .map(|word| value::socket_address(&word.to_string_lossy()))
            .collect::<Result<Vec<SocketAddr>, String>>()
            .map_err(|right| UsageError(format!("--listen must be {right}")))?;
        Ok(InitOptions { config: self.path("config", SERVER_CONFIG), listen, public })
    }

    fn pair(&self) -> Result<PairOptions, UsageError> {
        let uri =
            PairingUri::parse(self.argument(0)?).map_err(|error| UsageError(error.to_string()))?;
        let name = match self.values.get("name") {
            None => SERVER_SECTION.to_owned(),
            Some(name) => name.to_string_lossy().into_owned(),
        };
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(UsageError("--name must be letters, digits and '_', such as vps".into()));
        }
        let config = self.path("config", AGENT_CONFIG);
        Ok(PairOptions { uri, config, key_dir: self.path("key-dir", KEY_DIR), name })
    }
}
