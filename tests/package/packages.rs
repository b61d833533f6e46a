//! Packages: made by `cross/package`, and installed, upgraded and removed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::router::{FIREWALL, NETWORK, Router, project, run};

/// Two targets, so that there are packages of all formats.
const TARGETS: [&str; 2] = ["x86_64-unknown-linux-musl", "mipsel-unknown-linux-musl"];
const PROGRAM: &str = "#!/bin/sh\necho the program\n";
/// Some time in 2023.
const EPOCH: &str = "1700000000";

/// Packages of a stand-in for the program.
struct Packages {
    folder: TempDir,
}

impl Packages {
    fn make(release: u8) -> Packages {
        let folder = tempfile::tempdir().unwrap();
        for target in TARGETS {
            let place = folder.path().join(target);
            fs::create_dir(&place).unwrap();
            fs::write(place.join("mptcp-bond"), PROGRAM).unwrap();
        }
        run(Command::new(project().join("cross/package"))
            .arg("--programs")
            .arg(folder.path())
            .arg("--output")
            .arg(folder.path().join("packages"))
            .args(["--release", &release.to_string()])
            .env("SOURCE_DATE_EPOCH", EPOCH));
        Packages { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("packages").join(name)
    }

    /// Every package with its bytes.
    fn all(&self) -> Vec<(String, Vec<u8>)> {
        let mut all = Vec::new();
        for architecture in fs::read_dir(self.path("")).unwrap() {
            for file in fs::read_dir(architecture.unwrap().path()).unwrap() {
                let path = file.unwrap().path();
                let name = path.strip_prefix(self.path("")).unwrap().display().to_string();
                all.push((name, fs::read(path).unwrap()));
            }
        }
        all.sort();
        all
    }
}

fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

fn ipk(release: u8, architecture: &str) -> String {
    format!("{architecture}/mptcp-bond_{}-r{release}_{architecture}.ipk", version())
}

/// What `tar` lists of an archive: permissions, owner, size, date, time, name.
fn listing(archive: &Path) -> Vec<Vec<String>> {
    let list = ["--utc", "--numeric-owner", "--full-time", "-tvzf"];
    let text = run(Command::new("tar").args(list).arg(archive));
    text.lines().map(|line| line.split_whitespace().map(String::from).collect()).collect()
}

#[test]
fn the_same_sources_give_the_same_packages() {
    let (first, second) = (Packages::make(1).all(), Packages::make(1).all());
    let names: Vec<&str> = first.iter().map(|(name, _)| name.as_str()).collect();
    for architecture in ["mipsel_24kc", "mipsel_74kc", "x86_64"] {
        assert!(names.contains(&ipk(1, architecture).as_str()), "{names:?}");
    }
    assert!(names.contains(&format!("amd64/mptcp-bond-server_{}_amd64.deb", version()).as_str()));
    assert!(!names.iter().any(|name| name.starts_with("aarch64")), "it has no program");
    for (one, other) in first.iter().zip(&second) {
        assert!(one == other, "{} differs", one.0);
    }
    assert_eq!(first.len(), second.len());
}

#[test]
fn the_architectures_are_those_of_openwrt_and_of_the_build() {
    let table = fs::read_to_string(project().join("cross/architectures")).unwrap();
    let build = fs::read_to_string(project().join("cross/build")).unwrap();
    let mut architectures = BTreeSet::new();
    for row in table.lines().filter(|row| !row.starts_with('#')) {
        let [_, architecture, target] = row.split(' ').collect::<Vec<_>>()[..] else {
            panic!("not three words: {row}")
        };
        assert!(architectures.insert(architecture), "{architecture} is there twice");
        assert!(build.contains(target), "{target}");
    }
    for architecture in [
        "aarch64_cortex-a53",
        "aarch64_generic",
        "arm_cortex-a7_neon-vfpv4",
        "mipsel_24kc",
        "mips_24kc",
        "x86_64",
        "amd64",
        "arm64",
    ] {
        assert!(architectures.contains(architecture), "{architecture}");
    }
}

#[test]
fn an_ipk_is_laid_out_as_openwrt_lays_it_out() {
    let packages = Packages::make(1);
    let ipk = packages.path(&ipk(1, "mipsel_24kc"));
    let work = tempfile::tempdir().unwrap();
    let names = |archive: &Path| -> Vec<String> {
        let entries = listing(archive);
        for entry in &entries {
            assert_eq!(entry[1], "0/0", "{entry:?}");
            assert_eq!(entry[3..5], ["2023-11-14", "22:13:20"], "{entry:?}");
        }
        entries.into_iter().map(|entry| entry[0].clone() + " " + &entry[5]).collect()
    };
    let parts = ["./debian-binary", "./data.tar.gz", "./control.tar.gz"];
    assert_eq!(names(&ipk), parts.map(|part| format!("-rw-r--r-- {part}")));
    run(Command::new("tar").arg("-C").arg(work.path()).arg("-xzf").arg(&ipk));
    assert_eq!(fs::read(work.path().join("debian-binary")).unwrap(), b"2.0\n");

    let data = names(&work.path().join("data.tar.gz"));
    for file in [
        "-rwxr-xr-x ./usr/sbin/mptcp-bond",
        "-rwxr-xr-x ./etc/init.d/mptcp-bond",
        "-rw------- ./etc/config/mptcpd",
        "-rw-r--r-- ./lib/upgrade/keep.d/mptcp-bond",
    ] {
        assert!(data.iter().any(|entry| entry == file), "no {file} in {data:#?}");
    }
    assert!(!data.iter().any(|entry| entry.contains("example") || entry.contains("systemd")));
    let places = |entries: &[String]| -> Vec<String> {
        entries.iter().map(|entry| entry[11..].trim_end_matches('/').to_owned()).collect()
    };
    let mut sorted = places(&data);
    // Folder by folder, by the bytes of the names.
    sorted.sort_by(|one, other| one.split('/').cmp(other.split('/')));
    assert_eq!(places(&data), sorted);

    let control = work.path().join("control.tar.gz");
    let scripts = [
        "drwxr-xr-x ./",
        "-rw-r--r-- ./conffiles",
        "-rw-r--r-- ./control",
        "-rwxr-xr-x ./postinst",
        "-rwxr-xr-x ./postinst-pkg",
        "-rwxr-xr-x ./postrm",
        "-rwxr-xr-x ./prerm",
    ];
    assert_eq!(names(&control), scripts);
    run(Command::new("tar").arg("-C").arg(work.path()).arg("-xzf").arg(control));
    assert_eq!(fs::read_to_string(work.path().join("conffiles")).unwrap(), "/etc/config/mptcpd\n");
    let fields = fs::read_to_string(work.path().join("control")).unwrap();
    for field in [
        "Package: mptcp-bond\n",
        &format!("\nVersion: {}-r1\n", version()),
        "\nDepends: nftables, kmod-nft-fib, kmod-nft-socket, kmod-nft-tproxy, kmod-nf-conntrack-netlink\n",
        "\nConflicts: mptcpd\n",
        "\nArchitecture: mipsel_24kc\n",
        "\nLicense: MIT\n",
        "\nDescription:  Bonds",
    ] {
        assert!(fields.contains(field), "no {field:?} in {fields}");
    }
    assert_genuine(&ipk, work.path());
}

/// OpenWrt's own `scripts/ipkg-build`, where `IPKG_BUILD` says where it is, makes the same bytes of the
/// same files.
fn assert_genuine(ipk: &Path, parts: &Path) {
    let Some(script) = std::env::var_os("IPKG_BUILD") else { return };
    let root = parts.join("root");
    for (part, place) in [("data.tar.gz", root.clone()), ("control.tar.gz", root.join("CONTROL"))] {
        fs::create_dir(&place).unwrap();
        run(Command::new("tar").arg("-C").arg(place).arg("-xpzf").arg(parts.join(part)));
    }
    run(Command::new("bash")
        .arg(script)
        .arg(&root)
        .arg(parts)
        .env("SOURCE_DATE_EPOCH", EPOCH)
        .env("PKG_SOURCE_DATE_EPOCH", EPOCH));
    let made = parts.join(ipk.file_name().unwrap());
    assert!(fs::read(ipk).unwrap() == fs::read(made).unwrap(), "ipkg-build makes other bytes");
}

/// A router whose firewall reloads are counted, and the packages put where it finds them.
fn router(packages: &[&Packages]) -> Router {
    let router = Router::bare(&[("network", NETWORK), ("firewall", FIREWALL)]);
    router.program("sbin/fw4", "echo \"$*\" >>/tmp/fw4.log");
    let _ = fs::remove_file(router.path("sbin/ujail"));
    for package in packages {
        for (name, bytes) in package.all() {
            fs::write(router.path("tmp").join(Path::new(&name).file_name().unwrap()), bytes)
                .unwrap();
        }
    }
    router
}

/// How often the firewall was reloaded since the last time.
fn firewall_reloads(router: &Router) -> usize {
    let log = router.path("tmp/fw4.log");
    let text = fs::read_to_string(&log).unwrap_or_default();
    let _ = fs::remove_file(log);
    text.matches("reload").count()
}

/// Installs, upgrades and removes with these lines of shell, `{}` being a package's file.
fn lives_and_leaves(router: &Router, install: &str, remove: &str, files: [String; 2]) {
    let install = |file: &str| router.sh(&install.replace("{}", file));
    let methods = || -> Vec<String> { router.ubus_calls().into_iter().map(|it| it.0).collect() };
    let before = router.differences();
    install(&files[0]);
    assert_eq!(router.sh("/usr/sbin/mptcp-bond"), "the program\n");
    assert_eq!(methods(), ["service set"], "it runs");
    assert_eq!(firewall_reloads(router), 1);
    assert_eq!(router.sh("ls /etc/rc.d"), "K10mptcp-bond\nS95mptcp-bond\n");
    let first_configuration = router.path("etc/uci-defaults/90-mptcp-bond");
    assert!(!first_configuration.exists(), "it has run, and does not run again");
    let config = router.config("mptcpd");
    let proposed = fs::read_to_string(&config).unwrap();
    assert!(proposed.contains("config uplink 'wan'"), "{proposed}");

    let own = proposed.clone() + "\nconfig server 'vps'\n\toption address 'vps.example.net'\n";
    fs::write(&config, &own).unwrap();
    install(&files[1]);
    let calls = methods();
    assert!(calls.contains(&"service delete".into()), "the old program ends: {calls:?}");
    assert_eq!(calls.last().unwrap(), "service set", "the new one runs");
    assert_eq!(fs::read_to_string(&config).unwrap(), own, "an upgrade keeps the configuration");
    assert!(router.path("etc/rc.d/S95mptcp-bond").exists());

    firewall_reloads(router);
    router.sh(remove);
    assert_eq!(methods(), ["service delete"]);
    assert_eq!(firewall_reloads(router), 1);
    assert_eq!(fs::read_to_string(&config).unwrap(), own, "what the user wrote is the user's");
    for rest in ["mptcpd", "mptcpd-opkg", "mptcpd.apk-new"] {
        let _ = fs::remove_file(router.config(rest));
    }
    assert_unchanged(router, &before);
}

/// Nothing is left behind, and nothing else is changed.
fn assert_unchanged(router: &Router, before: &BTreeSet<String>) {
    let changes: Vec<String> = router.differences().symmetric_difference(before).cloned().collect();
    assert_eq!(changes, [""; 0]);
}

/// The file names of two releases.
fn names(of: impl Fn(u8) -> String) -> [String; 2] {
    [1, 2].map(|release| of(release).rsplit('/').next().unwrap().to_owned())
}

fn opkg() -> String {
    std::env::var("OPKG").unwrap_or_else(|_| "opkg".into())
}

/// The genuine opkg, where `OPKG` is the path of one that has a configuration and finds what the
/// package depends on; otherwise a double. And apk, where `APK` is the path of such a one.
#[test]
fn package_managers_install_upgrade_and_remove() {
    let (one, two) = (Packages::make(1), Packages::make(2));
    let opkg = opkg();
    lives_and_leaves(
        &router(&[&one, &two]),
        &format!("{opkg} install /tmp/{{}} >&2"),
        &format!("{opkg} remove mptcp-bond >&2"),
        names(|release| ipk(release, "x86_64")),
    );
    let Ok(apk) = std::env::var("APK") else { return };
    lives_and_leaves(
        &router(&[&one, &two]),
        &format!("{apk} add /tmp/{{}} >&2"),
        &format!("{apk} del mptcp-bond >&2"),
        names(|release| format!("mptcp-bond-{}-r{release}.apk", version())),
    );
}

#[test]
fn pages_for_luci_are_a_package_for_all_architectures() {
    let packages = Packages::make(1);
    let router = router(&[&packages]);
    let before = router.differences();
    let ipk = packages.path(&format!("all/luci-app-mptcp-bond_{}-r1_all.ipk", version()));
    let control = "tar -xzOf \"$0\" ./control.tar.gz | tar -xzO ./control";
    let fields = run(Command::new("sh").args(["-c", control]).arg(&ipk));
    for field in
        ["\nDepends: luci-base, mptcp-bond\n", "\nArchitecture: all\n", "\nSection: luci\n"]
    {
        assert!(fields.contains(field), "no {field:?} in {fields}");
    }
    assert!(!fields.contains("Conflicts"), "{fields}");
    router.sh("mkdir /tmp/luci-modulecache; touch /tmp/luci-indexcache.json");
    router.sh(&format!("{} install /tmp/{} >&2", opkg(), ipk.file_name().unwrap().display()));
    for file in ["luci/menu.d/luci-app-mptcp-bond.json", "rpcd/acl.d/luci-app-mptcp-bond.json"] {
        assert!(router.path(&format!("usr/share/{file}")).is_file(), "{file}");
    }
    assert!(router.path("www/luci-static/resources/view/mptcp-bond/overview.js").is_file());
    assert_eq!(
        router.sh("ls -d /tmp/luci-* | grep cache || true"),
        "",
        "LuCI looks at its menus again"
    );
    router.sh(&format!("{} remove luci-app-mptcp-bond >&2", opkg()));
    assert_unchanged(&router, &before);
}

#[test]
fn dpkg_installs_and_purges() {
    const SYSCTL: &str = "cat /proc/sys/net/mptcp/stale_loss_cnt";
    let packages = Packages::make(1);
    let router = router(&[&packages]);
    // The databases of users are written anew by each change, and kept with a backup.
    router.sh("useradd --system somebody && userdel somebody");
    let (before, sysctl_before) = (router.differences(), router.sh(SYSCTL));
    // A database of its own, whatever this machine's looks like.
    let passwd = "Package: passwd\nStatus: install ok installed\nVersion: 1\nArchitecture: amd64\n\
                  Maintainer: x\nDescription: x\n";
    router.sh("mkdir -p /tmp/dpkg/info /tmp/dpkg/updates");
    fs::write(router.path("tmp/dpkg/status"), passwd).unwrap();
    let dpkg = |words: &str| router.sh(&format!("/usr/bin/dpkg --admindir=/tmp/dpkg {words} >&2"));
    dpkg(&format!("--install /tmp/mptcp-bond-server_{}_amd64.deb", version()));
    assert_eq!(router.sh("/usr/bin/mptcp-bond"), "the program\n");
    let unit = "/usr/lib/systemd/system/mptcp-bond.service";
    assert!(router.sh(&format!("cat {unit}")).contains("ExecStart=/usr/bin/mptcp-bond server\n"));

    fs::copy(env!("CARGO_BIN_EXE_mptcp-bond"), router.path("usr/bin/mptcp-bond")).unwrap();
    router.sh("mptcp-bond server init --public vps.example.net:443");
    assert_eq!(
        router.sh("cd /etc/mptcp-bond && stat -c '%a %U %n' . *"),
        "700 mptcp-bond .\n600 mptcp-bond invites.toml\n600 mptcp-bond server.key\n\
         600 mptcp-bond server.toml\n"
    );
    assert_eq!(router.sh(SYSCTL), "1\n");
    assert_ne!(sysctl_before, "1\n", "it was something else");

    dpkg("--remove mptcp-bond-server");
    router.sh("ls /etc/mptcp-bond/server.key");
    dpkg("--purge mptcp-bond-server");
    assert_unchanged(&router, &before);
    assert_eq!(router.sh(SYSCTL), sysctl_before);
}

/// The fields of the feed, evaluated by `make` with little in the place of OpenWrt's makefiles; and what
/// it installs is what is packaged here.
#[test]
fn the_feed_installs_what_is_packaged() {
    let top = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = top.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("rules.mk", "INSTALL_DIR:=install -d -m0755\nINSTALL_BIN:=install -m0755\nCP:=cp -fpR\n");
    write(
        "include/package.mk",
        concat!(
            "define BuildPackage\n$(eval $(Package/$(1)))\nroot:\n\t$(call Package/$(1)/install,$(ROOT))\n",
            "\t@echo '$(PKG_VERSION) $(CARGO_PKG_PROFILE) $(CONFLICTS)'\nendef\n",
        ),
    );
    write("feeds/packages/lang/rust/rust-package.mk", "define RustBinPackage\nendef\n");
    write("bin/mptcp-bond", PROGRAM);
    let root = top.path().join("root");
    fs::create_dir(&root).unwrap();
    let variable = |name: &str, value: &Path| format!("{name}={}", value.display());
    let output = run(Command::new("make")
        .arg("-C")
        .arg(project().join("openwrt/mptcp-bond"))
        .args(["--no-print-directory", "--silent"])
        .arg(variable("TOPDIR", top.path()))
        .arg(variable("INCLUDE_DIR", &top.path().join("include")))
        .arg(variable("PKG_INSTALL_DIR", top.path()))
        .arg(variable("ROOT", &root))
        .arg("root"));
    assert_eq!(output, format!("{} openwrt mptcpd\n", version()));
    let files = |root: &Path| -> String {
        let print = ["-type", "f", "-printf", "%m %p\n"];
        let text = run(Command::new("find").current_dir(root).arg(".").args(print));
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        lines.join("\n")
    };
    let packaged = tempfile::tempdir().unwrap();
    let unpack = "tar -xzOf \"$0\" ./data.tar.gz | tar -C \"$1\" -xpz";
    run(Command::new("sh")
        .args(["-c", unpack])
        .arg(Packages::make(1).path(&ipk(1, "x86_64")))
        .arg(packaged.path()));
    assert_eq!(files(&root), files(packaged.path()));
}
