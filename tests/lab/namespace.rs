//! Network namespaces by name, and running things in them.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Seconds a command may take.
const COMMAND_LIMIT: &str = "20";

/// A named network namespace (`ip netns`); removed with its last clone.
#[derive(Clone, Debug)]
pub struct Namespace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    handle: File,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A failure leaves the namespace to the sandbox, which ends with this process.
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

impl Namespace {
    /// Makes a namespace with its loopback device up.
    pub fn create(name: &str) -> Namespace {
        run("ip", &["netns", "add", name], None);
        let handle = File::open(format!("/run/netns/{name}")).expect("open the namespace");
        let namespace = Namespace(Arc::new(Inner { name: name.to_owned(), handle }));
        // DAD would keep every new IPv6 address unusable for a second; autoconfigured addresses
        // and reverse path filters are for the tests that ask for them.
        namespace.sysctl("net.ipv6.conf.all.accept_dad", "0");
        namespace.sysctl("net.ipv6.conf.default.accept_dad", "0");
        namespace.sysctl("net.ipv6.conf.all.accept_ra", "0");
        namespace.sysctl("net.ipv6.conf.default.accept_ra", "0");
        namespace.sysctl("net.ipv4.conf.all.rp_filter", "0");
        namespace.sysctl("net.ipv4.conf.default.rp_filter", "0");
        namespace.ip("link set lo up");
        namespace
    }

    /// The name, as in `ip netns`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Runs a closure on a thread inside the namespace. Sockets made there stay in the namespace.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.join();
                inside()
            });
            match thread.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Moves the calling thread into the namespace for good.
    pub fn join(&self) {
        move_into_link_name_space(self.0.handle.as_fd(), Some(LinkNameSpaceType::Network))
            .unwrap_or_else(|error| panic!("enter namespace {}: {error}", self.0.name));
    }

    /// Runs a command and gives its standard output; panics when it fails.
    #[track_caller]
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        self.enter(|| run(program, arguments, None))
    }

    /// Runs a command and gives all of its outcome.
    pub fn try_run(&self, program: &str, arguments: &[&str]) -> io::Result<Output> {
        self.enter(|| limited(program, arguments).stdin(Stdio::null()).output())
    }

    /// Runs one `ip` command given as on the command line.
    #[track_caller]
    pub fn ip(&self, arguments: &str) -> String {
        self.run("ip", &arguments.split_whitespace().collect::<Vec<_>>())
    }

    /// Runs `ip` commands, one a line; panics at the first that fails. `ip -batch` takes no `-6` on
    /// its lines: `::/0` says the family instead of `default`.
    #[track_caller]
    pub fn ip_batch(&self, commands: &str) {
        self.enter(|| run("ip", &["-batch", "-"], Some(commands)));
    }

    /// Applies an nft script in one transaction.
    #[track_caller]
    pub fn nft(&self, script: &str) {
        self.enter(|| run("nft", &["-f", "-"], Some(script)));
    }

    /// Writes a sysctl, named with dots.
    #[track_caller]
    pub fn sysctl(&self, name: &str, value: &str) {
        self.enter(|| {
            std::fs::write(sysctl_path(name), value)
                .unwrap_or_else(|error| panic!("set {name} to {value}: {error}"));
        });
    }

    /// Reads a sysctl.
    #[track_caller]
    pub fn read_sysctl(&self, name: &str) -> String {
        self.enter(|| match std::fs::read_to_string(sysctl_path(name)) {
            Ok(value) => value.trim().to_owned(),
            Err(error) => panic!("read {name}: {error}"),
        })
    }

    /// A counter of `/proc/net/netstat` or `/proc/net/snmp`, such as `MPTcpExt`, `MPJoinSynTx`;
    /// 0 where the kernel does not have it.
    pub fn counter(&self, group: &str, name: &str) -> u64 {
        self.enter(|| {
            let mut text = String::new();
            for file in ["netstat", "snmp"] {
                text += &std::fs::read_to_string(format!("/proc/thread-self/net/{file}"))
                    .unwrap_or_default();
            }
            let mut rows = text.lines().filter_map(|line| line.split_once(": "));
            let mut of_group = rows.by_ref().filter(|(title, _)| *title == group);
            let (Some((_, names)), Some((_, values))) = (of_group.next(), of_group.next()) else {
                return 0;
            };
            let position = names.split(' ').position(|candidate| candidate == name);
            position.and_then(|at| values.split(' ').nth(at)?.parse().ok()).unwrap_or(0)
        })
    }

    /// Bytes a device has received and sent since it exists; zeros when there is no such device.
    pub fn device_bytes(&self, device: &str) -> (u64, u64) {
        let [received, _, sent, _] = self.device_counters(device);
        (received, sent)
    }

    /// Bytes and packets a device has received, and those it has sent, since it exists.
    pub fn device_counters(&self, device: &str) -> [u64; 4] {
        self.enter(|| {
            let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
            let row = text
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(name, _)| name.trim() == device);
            let Some((_, counters)) = row else { return [0; 4] };
            let column = |index| {
                counters.split_whitespace().nth(index).and_then(|n| n.parse().ok()).unwrap_or(0)
            };
            [column(0), column(1), column(8), column(9)]
        })
    }
}

fn sysctl_path(name: &str) -> String {
    format!("/proc/sys/{}", name.replace('.', "/"))
}

fn limited(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=1", COMMAND_LIMIT, program]).args(arguments);
    command
}

#[track_caller]
fn run(program: &str, arguments: &[&str], input: Option<&str>) -> String {
    let attempt = || -> io::Result<Output> {
        let mut child = limited(program, arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.unwrap_or_default().as_bytes())?;
        }
        child.wait_with_output()
    };
    let output = attempt().unwrap_or_else(|error| panic!("start {program}: {error}"));
    if !output.status.success() {
        panic!(
            "{program} {}: {}\n{}{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr),
            input.map(|text| format!("input:\n{text}")).unwrap_or_default(),
        );
    }
    String::from_utf8_lossy(&output.stdout).into_owned()
}
