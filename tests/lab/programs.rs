//! The project's own programs, run in the lab: configured, paired, watched.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::{CORE_V4, Lab, Namespace, Process, SERVER_V4, Service, until, wait_for};

/// How long a program may take to become ready or to end.
const LIMIT: Duration = Duration::from_secs(30);

/// The server's port, TCP and UDP.
const SERVER_PORT: u16 = 443;

/// Where an agent serves HTTP on the router, with [`HTTP_OPTION`].
pub const HTTP_ADDRESS: &str = "127.0.0.1:8484";
/// The agent's option that makes it so.
pub const HTTP_OPTION: &str = "config agent 'agent'\n\toption http_listen '127.0.0.1:8484'\n";

/// A server has a machine of its own. When it has to wait for the tests' processors in the middle of a
/// system call, for longer than the lab's round trips of 0.2 ms, Linux places the first segment of a
/// path that joins wrongly (`mptcp_subflow_joined()` in `net/mptcp/protocol.c`).
const UNHINDERED: [&str; 3] = ["nice", "-n", "-20"];

/// The program under test.
pub fn binary() -> PathBuf {
    if let Some(path) = option_env!("CARGO_BIN_EXE_mptcp-bond") {
        return PathBuf::from(path);
    }
    // An example lies in a directory below the programs.
    let example = std::env::current_exe().expect("find this program");
    let directory = example.ancestors().nth(2).expect("this program lies in examples/");
    directory.join("mptcp-bond")
}

/// Runs the program under test to its end; gives its standard output, panics when it fails.
#[track_caller]
fn run(namespace: &Namespace, arguments: &[&str]) -> String {
    namespace.run(path_text(&binary()), arguments)
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("paths in the lab are UTF-8")
}

/// Where the agent looks for ubusd.
pub fn ubus_socket(lab: &Lab) -> PathBuf {
    lab.work().join("ubus.sock")
}

/// What agent and server have in common.
pub struct Program<'lab> {
    lab: &'lab Lab,
    namespace: &'lab Namespace,
    name: &'static str,
    /// Words of a command that runs it; none for itself.
    wrapper: Vec<String>,
    arguments: Vec<String>,
    run_dir: PathBuf,
    process: Option<Process>,
    service: Option<Service>,
}

impl<'lab> Program<'lab> {
    fn new(
        lab: &'lab Lab,
        namespace: &'lab Namespace,
        name: &'static str,
        arguments: &[&str],
        run_dir: &Path,
    ) -> Program<'lab> {
        Program {
            lab,
            namespace,
            name,
            wrapper: Vec::new(),
            arguments: arguments.iter().copied().map(str::to_owned).collect(),
            run_dir: run_dir.to_owned(),
            process: None,
            service: None,
        }
    }

    /// Starts it without waiting.
    #[track_caller]
    pub fn start(&mut self) {
        let program = [path_text(&binary()).to_owned()];
        let words: Vec<String> =
            self.wrapper.iter().chain(&program).chain(&self.arguments).cloned().collect();
        let command = match (&mut self.service, words.split_first()) {
            (Some(service), _) => service.command(&words),
            (None, Some((first, rest))) => {
                let mut command = Command::new(first);
                command.args(rest);
                command
            }
            (None, None) => unreachable!("the program is among the words"),
        };
        self.process = Some(self.lab.spawn(self.namespace, self.name, command));
    }

    /// Its process.
    #[track_caller]
    pub fn process(&mut self) -> &mut Process {
        match &mut self.process {
            Some(process) => process,
            None => panic!("the {} is not running", self.name),
        }
    }

    /// Lets it be run by a command from the next start on.
    pub fn wrap(&mut self, command: &[&str]) {
        self.wrapper = command.iter().map(|word| word.to_string()).collect();
    }

    /// SIGTERM, and waits for the end.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.process().stop(LIMIT)
    }

    fn status(&self) -> Option<Value> {
        let run_dir = path_text(&self.run_dir);
        let arguments = ["status", "--json", "--run-dir", run_dir];
        let output = self.namespace.try_run(path_text(&binary()), &arguments).ok()?;
        if output.status.success() { serde_json::from_slice(&output.stdout).ok() } else { None }
    }

    #[track_caller]
    fn wait_status(
        &mut self,
        what: &str,
        limit: Duration,
        condition: impl Fn(&Value) -> bool,
    ) -> Value {
        let name = self.name;
        let mut last = None;
        let met = wait_for(limit, || {
            let process = self.process();
            assert!(process.is_running(), "the {name} has ended:\n{}", process.output());
            last = self.status().or(last.take());
            last.clone().filter(|status| condition(status))
        });
        met.unwrap_or_else(|| panic!("waited {limit:?} in vain: {name}: {what}: {last:#?}"))
    }
}

/// `mptcp-bond server` on the VPS.
pub struct ServerProgram<'lab> {
    program: Program<'lab>,
    config: PathBuf,
}

impl<'lab> ServerProgram<'lab> {
    /// Makes keys and configuration (`server init`), starts the server and waits until it answers.
    #[track_caller]
    pub fn start(lab: &'lab Lab) -> ServerProgram<'lab> {
        ServerProgram::start_with(lab, "")
    }

    /// The same, reached at another of its addresses.
    #[track_caller]
    pub fn start_at(lab: &'lab Lab, address: IpAddr) -> ServerProgram<'lab> {
        ServerProgram::configured(lab, &lab.server, "server", address, "")
    }

    /// The same, with TOML appended to the configuration.
    #[track_caller]
    pub fn start_with(lab: &'lab Lab, toml: &str) -> ServerProgram<'lab> {
        ServerProgram::configured(lab, &lab.server, "server", SERVER_V4.into(), toml)
    }

    /// A server in the core of the network, beside the one on the VPS.
    #[track_caller]
    pub fn start_second(lab: &'lab Lab) -> ServerProgram<'lab> {
        ServerProgram::configured(lab, &lab.inet, "second", CORE_V4.into(), "")
    }

    #[track_caller]
    fn configured(
        lab: &'lab Lab,
        namespace: &'lab Namespace,
        name: &'static str,
        address: IpAddr,
        toml: &str,
    ) -> ServerProgram<'lab> {
        let directory = lab.work().join(name);
        let (config, run_dir) = (directory.join("server.toml"), directory.join("run"));
        fs::create_dir_all(&run_dir).expect("make a directory");
        let public = SocketAddr::new(address, SERVER_PORT).to_string();
        run(namespace, &["server", "init", "--config", path_text(&config), "--public", &public]);
        let text = fs::read_to_string(&config).expect("read the server's configuration");
        fs::write(&config, text + toml).expect("write the server's configuration");
        let arguments =
            ["server", "--config", path_text(&config), "--run-dir", path_text(&run_dir)];
        let mut program = Program::new(lab, namespace, name, &arguments, &run_dir);
        program.wrap(&UNHINDERED);
        let mut server = ServerProgram { program, config };
        server.restart();
        server
    }

    /// Starts it without waiting.
    #[track_caller]
    pub fn launch(&mut self) {
        self.program.start();
    }

    /// Starts it (again) and waits until it answers.
    #[track_caller]
    pub fn restart(&mut self) {
        self.program.start();
        self.program.wait_status("answers", LIMIT, |_| true);
    }

    /// Has it managed as a service from its next start on.
    pub fn make_service(&mut self) {
        self.program.service = Some(Service::new(self.program.lab.work()));
    }

    /// Its manager.
    #[track_caller]
    pub fn service(&mut self) -> &mut Service {
        self.program.service.as_mut().expect("it is no service")
    }

    /// Invites a client: gives the pairing URI.
    #[track_caller]
    pub fn invite(&self, name: &str) -> String {
        let arguments = ["server", "invite", name, "--config", path_text(&self.config)];
        let output = run(self.program.namespace, &arguments);
        match output.split_whitespace().find(|word| word.contains("://")) {
            Some(uri) => uri.to_owned(),
            None => panic!("'server invite' printed no URI:\n{output}"),
        }
    }

    /// The configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The directory of run-time files.
    pub fn run_dir(&self) -> &Path {
        &self.program.run_dir
    }

    /// Waits until the status meets a condition, and gives that status.
    #[track_caller]
    pub fn wait_status(&mut self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        self.program.wait_status(what, LIMIT, condition)
    }

    /// What it has in common with an agent.
    pub fn program(&mut self) -> &mut Program<'lab> {
        &mut self.program
    }

    /// The server's process.
    pub fn process(&mut self) -> &mut Process {
        self.program.process()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.program.process().kill();
    }

    /// SIGTERM, and waits for the end.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.program.stop()
    }

    /// `status --json`; `None` when the server does not answer.
    pub fn status(&self) -> Option<Value> {
        self.program.status()
    }
}

/// `mptcp-bond agent` on the router.
pub struct AgentProgram<'lab> {
    program: Program<'lab>,
    config: PathBuf,
    key_dir: PathBuf,
}

impl<'lab> AgentProgram<'lab> {
    /// Pairs a router with the server, starts the agent and waits until its tunnel is up.
    #[track_caller]
    pub fn start(lab: &'lab Lab, server: &ServerProgram) -> AgentProgram<'lab> {
        AgentProgram::start_with(lab, server, "")
    }

    /// The same, with UCI text appended: sections of the same type and name are merged.
    #[track_caller]
    pub fn start_with(lab: &'lab Lab, server: &ServerProgram, uci: &str) -> AgentProgram<'lab> {
        let mut agent = AgentProgram::paired(lab, server, uci);
        agent.restart();
        agent
    }

    /// Pairs a router with the server, without starting the agent.
    #[track_caller]
    pub fn paired(lab: &'lab Lab, server: &ServerProgram, uci: &str) -> AgentProgram<'lab> {
        let agent = AgentProgram::unpaired(lab);
        agent.pair(server, "vps");
        let paired = fs::read_to_string(&agent.config).expect("read the agent's configuration");
        fs::write(&agent.config, format!("{paired}\n{uci}")).expect("write the configuration");
        agent
    }

    /// Configures a router without a server, without starting the agent.
    #[track_caller]
    pub fn unpaired(lab: &'lab Lab) -> AgentProgram<'lab> {
        let directory = lab.work().join("agent");
        let [config, key_dir, run_dir] = ["mptcpd", "keys", "run"].map(|name| directory.join(name));
        for directory in [&key_dir, &run_dir] {
            fs::create_dir_all(directory).expect("make a directory");
        }
        let mut text = "config agent 'agent'\n\tlist lan 'br-lan'\n".to_owned();
        for uplink in lab.uplinks() {
            let device = uplink.device();
            text += &format!("\nconfig uplink '{device}'\n\toption device '{device}'\n");
        }
        fs::write(&config, text).expect("write the agent's configuration");
        let ubus = ubus_socket(lab);
        #[rustfmt::skip]
        let arguments = [
            "agent", "--config", path_text(&config), "--run-dir", path_text(&run_dir),
            "--key-dir", path_text(&key_dir), "--ubus-socket", path_text(&ubus), "--stderr",
        ];
        let program = Program::new(lab, &lab.router, "agent", &arguments, &run_dir);
        AgentProgram { program, config, key_dir }
    }

    /// Pairs the router with a server, as the configuration's section `name`.
    #[track_caller]
    pub fn pair(&self, server: &ServerProgram, name: &str) {
        let (config, keys) = (path_text(&self.config), path_text(&self.key_dir));
        let uri = server.invite("router");
        let arguments = ["pair", &uri, "--config", config, "--key-dir", keys, "--name", name];
        run(self.program.namespace, &arguments);
    }

    /// Starts it without waiting.
    #[track_caller]
    pub fn launch(&mut self) {
        self.program.start();
    }

    /// Starts it (again) and waits until the tunnel and all uplinks are up.
    #[track_caller]
    pub fn restart(&mut self) {
        self.launch();
        self.wait_ready();
    }

    /// Waits until the status meets a condition, and gives that status.
    #[track_caller]
    pub fn wait_status(&mut self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        self.program.wait_status(what, LIMIT, condition)
    }

    /// `status --json`; `None` when the agent does not answer.
    pub fn status(&self) -> Option<Value> {
        self.program.status()
    }

    /// `status`, the table for people.
    #[track_caller]
    pub fn status_table(&self) -> String {
        run(self.program.namespace, &["status", "--run-dir", path_text(&self.program.run_dir)])
    }

    /// Starts `monitor --json`, whose output goes to the log `NAME.log`.
    #[track_caller]
    pub fn monitor(&self, name: &str) -> Process {
        let mut command = Command::new(binary());
        command.args(["monitor", "--json", "--run-dir", path_text(&self.program.run_dir)]);
        self.program.lab.spawn(self.program.namespace, name, command)
    }

    /// `check --json`: the exit code and the report.
    #[track_caller]
    pub fn check(&self) -> (i32, Value) {
        let (config, run_dir) = (path_text(&self.config), path_text(&self.program.run_dir));
        let arguments = ["check", "--json", "--config", config, "--run-dir", run_dir];
        let output = self.program.namespace.try_run(path_text(&binary()), &arguments);
        let output = output.expect("run the check");
        let report = serde_json::from_slice(&output.stdout);
        let complaint = String::from_utf8_lossy(&output.stderr);
        let report = report.unwrap_or_else(|error| panic!("{error}: {complaint}"));
        (output.status.code().unwrap_or(-1), report)
    }

    /// The configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The directory of run-time files.
    pub fn run_dir(&self) -> &Path {
        &self.program.run_dir
    }

    /// Waits until the tunnel and all uplinks are up.
    #[track_caller]
    pub fn wait_ready(&mut self) -> Value {
        self.wait_status("tunnel and uplinks are up", is_ready)
    }

    /// Has it read its configuration again (SIGHUP).
    #[track_caller]
    pub fn reload(&mut self) {
        self.program.process().signal(Signal::HUP);
    }

    /// Gives an uplink another role (`mptcp-bond uplink`): what the command prints, or its error.
    #[track_caller]
    pub fn set_role(&self, uplink: &str, role: &str) -> Result<String, String> {
        let arguments = ["uplink", uplink, role, "--run-dir", path_text(&self.program.run_dir)];
        let output = self.program.namespace.try_run(path_text(&binary()), &arguments);
        let output = output.expect("run the program");
        let text = |bytes| String::from_utf8_lossy(bytes).trim_end().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// What it has logged.
    #[track_caller]
    pub fn log(&self) -> String {
        self.program.process.as_ref().expect("the agent was started").output()
    }

    /// The directory of the keys.
    pub fn key_dir(&self) -> &Path {
        &self.key_dir
    }

    /// What it has in common with a server.
    pub fn program(&mut self) -> &mut Program<'lab> {
        &mut self.program
    }

    /// The agent's process.
    pub fn process(&mut self) -> &mut Process {
        self.program.process()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.program.process().kill();
    }

    /// SIGTERM, and waits for the end.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.program.stop()
    }
}

/// Whether a server has a session and every uplink is up.
fn is_ready(status: &Value) -> bool {
    let list = |name: &str| status[name].as_array().cloned().unwrap_or_default();
    let ready = |one: &Value, state: &str| one["state"] == state && one["rtt_ms"].is_number();
    let uplinks = list("uplinks");
    list("servers").iter().any(|server| ready(server, "connected"))
        && !uplinks.is_empty()
        && uplinks.iter().all(|uplink| ready(uplink, "up"))
}
