//! A router's file system: this machine's, with OpenWrt's shell libraries and this project's files over
//! it. What is written there is gone when the test ends.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// OpenWrt's `/etc/config/network` of a router with one uplink.
pub const NETWORK: &str = "
config interface 'loopback'
	option device 'lo'
	option proto 'static'

config interface 'lan'
	option device 'br-lan'
	option proto 'static'
	option ipaddr '192.168.1.1'

config interface 'wan'
	option device 'eth1'
	option proto 'dhcp'

config interface 'wan6'
	option device 'eth1'
	option proto 'dhcpv6'
";

/// OpenWrt's `/etc/config/firewall`, as far as zones go.
pub const FIREWALL: &str = "
config defaults
	option input 'REJECT'

config zone
	option name 'lan'
	list network 'lan'
	option input 'ACCEPT'

config zone
	option name 'wan'
	list network 'wan'
	list network 'wan6'
	option input 'REJECT'
	option masq '1'
";

/// The files of the project.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a command of this machine.
///
/// # Panics
/// When it fails.
pub fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("run a command");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(status.success(), "{command:?}: {status}\n{}{}", text(&stdout), text(&stderr));
    text(&stdout)
}

/// Where a program is, if this machine has it.
fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.exists())
}

/// The file system.
pub struct Router {
    /// Holds the layers, and the whole below `root`.
    folder: TempDir,
}

impl Router {
    /// With this project's files, and these of `/etc/config`.
    pub fn new(configs: &[(&str, &str)]) -> Router {
        let router = Router::bare(configs);
        router.copy(&project().join("files"));
        router
    }

    /// Without this project's files. The shell libraries are OpenWrt's own where `OPENWRT_ROOT` says
    /// where they are, otherwise doubles.
    pub fn bare(configs: &[(&str, &str)]) -> Router {
        let folder = tempfile::tempdir().expect("make a folder");
        // Its end takes what is mounted below it along.
        run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(folder.path()));
        let layer = |name: &str| folder.path().join(name);
        for name in ["upper", "work", "root"] {
            fs::create_dir(layer(name)).expect("make a folder");
        }
        let layers = format!(
            "lowerdir=/,upperdir={},workdir={}",
            layer("upper").display(),
            layer("work").display()
        );
        run(Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &layers])
            .arg(layer("root")));
        for name in ["dev", "proc"] {
            let place = layer("root").join(name);
            run(Command::new("mount").args(["--rbind", &format!("/{name}")]).arg(place));
        }
        let router = Router { folder };
        let genuine = std::env::var_os("OPENWRT_ROOT").map(PathBuf::from);
        router.copy(&genuine.unwrap_or_else(|| project().join("tests/package/double")));
        for name in [
            "etc/config",
            "etc/hotplug.d/iface",
            "etc/init.d",
            "etc/rc.d",
            "etc/sysctl.d",
            "etc/uci-defaults",
            "lib/upgrade/keep.d",
            "sbin",
            "usr/lib/opkg/info",
            "var/lock",
            "tmp",
        ] {
            fs::create_dir_all(router.path(name)).expect("make a folder");
        }
        // Another package's, so that the folder is not left empty.
        fs::write(router.path("etc/hotplug.d/iface/00-netstate"), "").expect("write a hook");
        for (name, text) in configs {
            fs::write(router.config(name), text).expect("write a configuration");
        }
        // OpenWrt's shell, where this machine has it: its own libraries run in no other.
        let shell = router.path("bin/sh");
        if let Some(busybox) = on_path("busybox") {
            fs::remove_file(&shell).expect("remove the shell");
            fs::copy(busybox, shell).expect("copy busybox");
        }
        // What procd would be told.
        router.program("sbin/ubus", "echo \"$@\" >>/tmp/ubus.log");
        fs::copy(router.path("sbin/ubus"), router.path("bin/ubus")).expect("copy");
        router
    }

    /// Copies a tree over the root, what lies behind symbolic links included.
    fn copy(&self, tree: &Path) {
        let command = "tar -C \"$0\" -c . | tar -C \"$1\" --keep-directory-symlink -x";
        run(Command::new("sh").args(["-c", command]).arg(tree).arg(self.path("")));
    }

    /// A place in the file system.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("root").join(name)
    }

    /// A file of `/etc/config`.
    pub fn config(&self, name: &str) -> PathBuf {
        self.path("etc/config").join(name)
    }

    /// Puts a shell script in a place.
    pub fn program(&self, name: &str, script: &str) {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write a script");
        run(Command::new("chmod").arg("755").arg(path));
    }

    /// Runs a line of shell there.
    pub fn sh(&self, line: &str) -> String {
        // A router's temporary files are in /tmp, wherever those of the tests are.
        let mut shell = Command::new("chroot");
        run(shell.env_remove("TMPDIR").arg(self.path("")).args(["/bin/sh", "-c", line]))
    }

    /// All that differs from this machine's file system, but for what package managers keep for
    /// themselves: files with their checksums, folders and links with their permissions.
    pub fn differences(&self) -> BTreeSet<String> {
        const THEIRS: [&str; 9] = [
            "./usr/lib/opkg",
            "./usr/lib/apk",
            "./lib/apk",
            "./etc/apk",
            // Backups of the databases of users.
            "'./etc/*-'",
            "./var",
            "./run",
            "./tmp",
            "./dev",
        ];
        let theirs: Vec<String> = THEIRS.iter().map(|path| format!("-path {path}")).collect();
        let line = format!(
            "find . \\( {} \\) -prune -o -type f -exec md5sum {{}} + -o -printf '%y %m %p %l\\n'",
            theirs.join(" -o ")
        );
        let upper = self.folder.path().join("upper");
        let text = run(Command::new("sh").args(["-c", &line]).current_dir(upper));
        // A folder of the machine's is copied with the first change of what it holds.
        let is_copy =
            |line: &str| line.starts_with("d ") && Path::new("/").join(line[6..].trim()).is_dir();
        text.lines().filter(|line| !is_copy(line)).map(String::from).collect()
    }

    /// What ubus was called for since the last time: object, method and message of each call.
    pub fn ubus_calls(&self) -> Vec<(String, Value)> {
        let log = self.path("tmp/ubus.log");
        let text = fs::read_to_string(&log).unwrap_or_default();
        let _ = fs::remove_file(log);
        text.lines()
            .map(|line| {
                let (call, message) = line.split_at(line.find(" {").expect("a message"));
                let message = serde_json::from_str(message.trim()).expect("JSON");
                (call.strip_prefix("call ").expect("a call").to_owned(), message)
            })
            .collect()
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        for place in [self.path(""), self.folder.path().to_owned()] {
            let _ = Command::new("umount").arg("--lazy").arg(place).status();
        }
    }
}
