//! An SSH session, as a person at a terminal notices it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{Lab, Namespace, Process, until};

/// How long `sshd` may take to listen.
const LIMIT: Duration = Duration::from_secs(10);

/// `sshd`, and a session whose far end returns what it gets, line by line.
pub struct SshSession {
    client: Child,
    log: PathBuf,
    _daemon: Process,
}

impl SshSession {
    /// Starts `sshd` on port 22 of the first namespace, and a session with it from the second, which
    /// finds it at `address`.
    #[track_caller]
    pub fn open(lab: &Lab, [host, guest]: [&Namespace; 2], address: SocketAddr) -> SshSession {
        let directory = lab.work().join("ssh");
        fs::create_dir(&directory).expect("make a directory");
        let path = |name: &str| directory.join(name).display().to_string();
        for key in ["host", "user"] {
            let arguments = ["-q", "-t", "ed25519", "-N", "", "-f", &path(key)];
            host.run("ssh-keygen", &arguments);
        }
        let mut command = Command::new("/usr/sbin/sshd");
        #[rustfmt::skip]
        command.args([
            "-D", "-e", "-f", "/dev/null", "-p", "22", "-h", &path("host"),
            "-o", &format!("AuthorizedKeysFile={}", path("user.pub")),
            "-o", "StrictModes=no", "-o", "UsePAM=no", "-o", "PidFile=none",
            "-o", "PermitRootLogin=prohibit-password",
        ]);
        let daemon = lab.spawn(host, "sshd", command);
        until("sshd listens", LIMIT, || {
            let listening = host.run("ss", &["-Htln", "sport = :22"]);
            (!listening.is_empty()).then_some(())
        });
        let log = lab.logs().join("ssh.log");
        let errors = fs::File::create(&log).expect("make a log");
        let (user, port) = (format!("root@{}", address.ip()), address.port().to_string());
        let mut command = Command::new("ssh");
        #[rustfmt::skip]
        command.args([
            "-F", "/dev/null", "-i", &path("user"), "-o", "BatchMode=yes",
            "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
            "-o", "LogLevel=ERROR", "-p", &port, &user, "cat",
        ]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let client = guest.enter(|| command.spawn()).expect("start ssh");
        SshSession { client, log, _daemon: daemon }
    }

    /// Types a line each 50 ms until told to stop, ends the session, and counts the lines; panics
    /// unless each came back.
    pub fn type_lines(mut self, stop: &AtomicBool, slowest: &AtomicU64) -> u64 {
        let mut keyboard = self.client.stdin.take().expect("a pipe");
        let mut screen = BufReader::new(self.client.stdout.take().expect("a pipe"));
        let mut count = 0;
        let mut line = String::new();
        while !stop.load(Ordering::Relaxed) {
            let sent = Instant::now();
            writeln!(keyboard, "line {count} of a session").expect("type");
            line.clear();
            screen.read_line(&mut line).expect("read the screen");
            let log = || fs::read_to_string(&self.log).unwrap_or_default();
            assert_eq!(line, format!("line {count} of a session\n"), "{}", log());
            slowest.fetch_max(sent.elapsed().as_millis() as u64, Ordering::Relaxed);
            count += 1;
            thread::sleep(Duration::from_millis(50));
        }
        drop(keyboard);
        let status = self.client.wait().expect("wait for ssh");
        assert!(status.success(), "ssh: {status}");
        count
    }
}
