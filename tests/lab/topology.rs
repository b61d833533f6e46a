//! Builds the lab's namespaces, links and routes.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;

use super::isp::shape;
use super::{Namespace, Process, Uplink, UplinkSpec};

/// The LAN client, on `192.168.77.0/24`.
pub const LAN_CLIENT_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 2);
/// The LAN client, on the prefix that the first ISP delegates.
pub const LAN_CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0x77, 0, 0, 0, 2);
/// The router on the LAN (device `br-lan`).
pub const ROUTER_LAN_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
/// The core of the network, on the VPS's side.
pub const CORE_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);
/// The VPS.
pub const SERVER_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The VPS.
pub const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xf1, 0, 0, 0, 0, 1);
/// The web server.
pub const TARGET_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The web server.
pub const TARGET_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xf2, 0, 0, 0, 0, 1);

/// Labs share namespace names, and two processor cores: one at a time, unless [`Lab::together`] says
/// otherwise.
static TURN: Mutex<()> = Mutex::new(());

type Turn = MutexGuard<'static, ()>;

/// What a lab consists of, before it is built.
#[derive(Clone)]
pub struct LabBuilder {
    name: String,
    uplinks: Vec<UplinkSpec>,
    equal_shares: bool,
}

impl LabBuilder {
    /// Gives each program the same share of the processors, as if it had a machine of its own, and not one by
    /// the number of its threads.
    pub fn equal_shares(mut self) -> LabBuilder {
        self.equal_shares = true;
        self
    }

    /// Adds an uplink.
    pub fn uplink(mut self, spec: UplinkSpec) -> LabBuilder {
        self.uplinks.push(spec);
        self
    }

    /// Builds the lab; waits until no other lab of this process exists.
    pub fn build(self) -> Lab {
        let turn = turn();
        Lab { _turn: Some(turn), ..self.build_named("") }
    }

    /// Builds the lab with a prefix to the names of its namespaces.
    fn build_named(self, prefix: &str) -> Lab {
        let [lan, router, inet, server, target] = ["lan", "router", "inet", "server", "target"]
            .map(|name| Namespace::create(&format!("{prefix}{name}")));
        connect_lan(&lan, &router);
        inet.sysctl("net.ipv4.ip_forward", "1");
        inet.sysctl("net.ipv6.conf.all.forwarding", "1");
        connect_host(&server, &inet, "198.51.100", "2001:db8:f1:");
        connect_host(&target, &inet, "192.0.2", "2001:db8:f2:");
        let devices: Vec<&str> = self.uplinks.iter().map(|spec| spec.device.as_str()).collect();
        router.nft(&firewall(&devices));
        let uplinks = self
            .uplinks
            .iter()
            .enumerate()
            .map(|(index, spec)| Uplink::build(spec.clone(), index, prefix, &router, &inet))
            .collect();
        Lab {
            uplinks,
            logs: log_directory(&self.name),
            work: TempDir::with_prefix_in(format!("{}-", self.name), "/run")
                .expect("make a directory in /run"),
            lan,
            router,
            inet,
            server,
            target,
            equal_shares: self.equal_shares,
            _turn: None,
        }
    }
}

/// Waits until no lab of this process exists.
fn turn() -> Turn {
    assert!(
        std::env::var_os("MPTCP_BOND_SANDBOX").is_some(),
        "a lab needs a sandbox: run this through cargo, or as 'tests/sandbox COMMAND'"
    );
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Labs that exist at once and know nothing of each other.
pub struct Labs {
    labs: Vec<Lab>,
    _turn: Turn,
}

impl Deref for Labs {
    type Target = [Lab];

    fn deref(&self) -> &[Lab] {
        &self.labs
    }
}

/// A running lab.
pub struct Lab {
    uplinks: Vec<Uplink>,
    /// The client's network.
    pub lan: Namespace,
    /// The router, where the agent runs.
    pub router: Namespace,
    /// The core that joins ISPs, server and target.
    pub inet: Namespace,
    /// The VPS, where the server runs.
    pub server: Namespace,
    /// The web server's side.
    pub target: Namespace,
    logs: PathBuf,
    work: TempDir,
    equal_shares: bool,
    _turn: Option<Turn>,
}

impl Lab {
    /// A lab without uplinks yet; `name` names its logs: `target/tmp/lab/NAME/`.
    pub fn builder(name: &str) -> LabBuilder {
        LabBuilder { name: name.to_owned(), uplinks: Vec::new(), equal_shares: false }
    }

    /// The lab of most tests: `wan` with 100 Mbit/s and `wanb` with 50 Mbit/s each way.
    pub fn two_uplinks(name: &str) -> Lab {
        Lab::builder(name)
            .uplink(UplinkSpec::new("wan", 100))
            .uplink(UplinkSpec::new("wanb", 50))
            .build()
    }

    /// The same, with [`distant`](UplinkSpec::distant) uplinks and not built yet.
    pub fn two_distant_uplinks(name: &str) -> LabBuilder {
        Lab::builder(name)
            .uplink(UplinkSpec::new("wan", 100).distant())
            .uplink(UplinkSpec::new("wanb", 50).distant())
    }

    /// Builds several labs, for cases that take long and leave the processors idle; waits until no other
    /// lab of this process exists.
    pub fn together(builders: impl IntoIterator<Item = LabBuilder>) -> Labs {
        let _turn = turn();
        let build = |(index, lab): (usize, LabBuilder)| lab.build_named(&format!("{}-", index + 1));
        Labs { labs: builders.into_iter().enumerate().map(build).collect(), _turn }
    }

    /// The uplinks, in the order they were added.
    pub fn uplinks(&self) -> &[Uplink] {
        &self.uplinks
    }

    /// One uplink by its position.
    #[track_caller]
    pub fn uplink(&self, index: usize) -> &Uplink {
        &self.uplinks[index]
    }

    /// Limits the rate, in Mbit/s, at which the server sends.
    pub fn shape_server(&self, rate: u32) {
        shape(&self.server, "eth0", rate);
    }

    /// Lets no packet through between the VPS and the uplinks. Its processes live on, and so do its
    /// connections to targets: what their own TCP would make of an outage is nothing of ours.
    pub fn cut_server(&self) {
        let [server, target] = [&self.server, &self.target].map(Namespace::name);
        self.inet.nft(&format!(
            "table inet cut {{
  chain forward {{
    type filter hook forward priority filter;
    iifname \"{server}\" oifname != \"{target}\" drop
    iifname != \"{target}\" oifname \"{server}\" drop
  }}
}}"
        ));
    }

    /// Ends [`Lab::cut_server`].
    pub fn restore_server(&self) {
        self.inet.nft("delete table inet cut");
    }

    /// A directory for configuration and run-time files; it goes with the lab.
    pub fn work(&self) -> &Path {
        self.work.path()
    }

    /// The directory of the logs; it stays.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Starts a program whose output goes to the log `NAME.log`.
    #[track_caller]
    pub fn spawn(&self, namespace: &Namespace, name: &str, command: Command) -> Process {
        let start = if self.equal_shares { Process::start_apart } else { Process::start };
        start(namespace, &self.logs, name, command)
    }
}

fn log_directory(name: &str) -> PathBuf {
    let base = match option_env!("CARGO_TARGET_TMPDIR") {
        Some(directory) => PathBuf::from(directory),
        None => std::env::temp_dir(),
    };
    let directory = base.join("lab").join(name);
    // Logs of the run before would be mistaken for this one's.
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory)
        .unwrap_or_else(|error| panic!("make {}: {error}", directory.display()));
    directory
}

fn connect_lan(lan: &Namespace, router: &Namespace) {
    router.sysctl("net.ipv4.ip_forward", "1");
    router.sysctl("net.ipv6.conf.all.forwarding", "1");
    router.ip_batch(&format!(
        "link add br-lan type veth peer name eth0 netns {}\n\
         link set br-lan up\n\
         address add 192.168.77.1/24 dev br-lan\n\
         address add fd77::1/64 dev br-lan\n\
         address add 2001:db8:1:77::1/64 dev br-lan\n",
        lan.name()
    ));
    lan.ip_batch(
        "link set eth0 up\n\
         address add 192.168.77.2/24 dev eth0\n\
         address add fd77::2/64 dev eth0\n\
         address add 2001:db8:1:77::2/64 dev eth0\n\
         route add default via 192.168.77.1\n\
         route add default via fd77::1\n",
    );
}

fn connect_host(host: &Namespace, inet: &Namespace, v4: &str, v6: &str) {
    let name = host.name();
    inet.ip_batch(&format!(
        "link add {name} type veth peer name eth0 netns {name}\n\
         link set {name} txqueuelen 10000 up\n\
         address add {v4}.254/24 dev {name}\n\
         address add {v6}:fe/64 dev {name}\n"
    ));
    // Packets of one segment each, so that the shapers see what a wire would carry.
    host.ip_batch(&format!(
        "link set eth0 gso_max_segs 1 txqueuelen 10000 up\n\
         address add {v4}.1/24 dev eth0\n\
         address add {v6}:1/64 dev eth0\n\
         route add default via {v4}.254\n\
         route add default via {v6}:fe\n"
    ));
}

/// The router's own firewall, in the manner of OpenWrt's fw4: not ours to touch.
fn firewall(uplinks: &[&str]) -> String {
    let uplinks = uplinks.join(", ");
    let (masquerade, clamp) = if uplinks.is_empty() {
        (String::new(), String::new())
    } else {
        (
            format!("oifname {{ {uplinks} }} meta nfproto ipv4 masquerade"),
            format!(
                "oifname {{ {uplinks} }} tcp flags & (syn | fin | rst) == syn \
                 tcp option maxseg size set rt mtu"
            ),
        )
    };
    format!(
        "table inet fw4 {{
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname lo accept
    ct state established,related accept
    iifname br-lan accept
    meta l4proto {{ icmp, icmpv6 }} accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    iifname br-lan accept
  }}
  chain mangle_forward {{
    type filter hook forward priority mangle;
    {clamp}
  }}
  chain srcnat {{
    type nat hook postrouting priority srcnat;
    {masquerade}
  }}
}}
"
    )
}
