//! A browser for tests: headless Chromium, driven by the DevTools protocol over a pair of pipes.
//!
//! ```ignore
//! let browser = Browser::start(&namespace);
//! let page = browser.open("http://127.0.0.1:8484/", &View::PHONE.dark());
//! page.until("the uplink is there", "document.querySelector('#uplinks').innerText.includes('wan')");
//! page.click("button.refresh");
//! page.screenshot("status-phone-dark");
//! assert_eq!(page.complaints(), Vec::<String>::new());
//! ```
//!
//! Each page has cookies and storage of its own. This is test support: what goes wrong here panics.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]

mod connection;
mod input;
mod page;
mod view;

use std::cell::RefCell;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tempfile::TempDir;

use connection::Connection;
pub use page::Page;
pub use view::View;

use crate::lab::Namespace;

/// Debian's package of the same name.
const PROGRAM: &str = "chromium-headless-shell";

/// What makes it quiet, and small: one process draws all pages.
const OPTIONS: &[&str] = &[
    "--remote-debugging-pipe",
    // It runs as root, in the sandbox of the tests.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-extensions",
    "--disable-breakpad",
    "--no-first-run",
    "--renderer-process-limit=1",
    "--enable-precise-memory-info",
    "about:blank",
];

/// A running Chromium with a profile of its own; it ends when this is dropped. One serves a whole suite.
pub struct Browser {
    child: Child,
    /// Its profile and its home.
    home: TempDir,
    connection: RefCell<Connection>,
}

impl Browser {
    /// Starts it in a namespace.
    #[track_caller]
    pub fn start(namespace: &Namespace) -> Browser {
        let home = tempfile::tempdir().expect("make a directory");
        let log = fs::File::create(home.path().join("log")).expect("make a file");
        let mut command = Command::new("sh");
        // The browser reads from descriptor 3 and writes to 4.
        command.args(["-c", "exec \"$@\" 3<&0 4>&1 0</dev/null 1>&2", "sh", PROGRAM]);
        command.args(OPTIONS).arg(format!("--user-data-dir={}", home.path().display()));
        command.env("HOME", home.path()).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = namespace
            .enter(|| command.spawn())
            .unwrap_or_else(|error| panic!("start {PROGRAM}: {error}"));
        let input = child.stdin.take().expect("a pipe to the browser");
        let output = child.stdout.take().expect("a pipe from the browser");
        let connection = RefCell::new(Connection::new(input, output));
        let browser = Browser { child, home, connection };
        browser.call("Browser.getVersion", json!({}));
        browser
    }

    /// Opens an address in a page of its own and waits until it is loaded.
    #[track_caller]
    pub fn open(&self, address: &str, view: &View) -> Page<'_> {
        let page = self.blank(view);
        page.go(address);
        page
    }

    /// A page that shows nothing yet.
    #[track_caller]
    pub fn blank(&self, view: &View) -> Page<'_> {
        Page::new(self, view)
    }

    /// Resident memory of all its processes, in KiB (`Pss` of `smaps_rollup`).
    pub fn memory_kib(&self) -> u64 {
        let group = self.child.id();
        let processes = fs::read_dir("/proc").expect("list the processes").flatten();
        let of_group = |path: &std::path::Path| {
            let stat = fs::read_to_string(path.join("stat")).ok()?;
            // The name in parentheses may hold blanks; the process group comes third after it.
            stat.rsplit_once(')')?.1.split_whitespace().nth(2)?.parse::<u32>().ok()
        };
        let mine = processes.filter(|entry| of_group(&entry.path()) == Some(group));
        mine.filter_map(|entry| {
            let text = fs::read_to_string(entry.path().join("smaps_rollup")).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?.trim();
            line.split_whitespace().next()?.parse::<u64>().ok()
        })
        .sum()
    }

    /// Calls a method of the browser itself.
    #[track_caller]
    fn call(&self, method: &str, parameters: Value) -> Value {
        self.call_session("", method, parameters)
    }

    /// Calls a method of a page, which is known by its session.
    #[track_caller]
    fn call_session(&self, session: &str, method: &str, parameters: Value) -> Value {
        match self.connection.borrow_mut().call(session, method, parameters) {
            Ok(result) => result,
            Err(error) => panic!("{method}: {error}\n{}", self.log()),
        }
    }

    fn log(&self) -> String {
        let text = fs::read(self.home.path().join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}
