//! What packages put on a router: service, hotplug hook, first configuration, firewall include; and the
//! packages themselves.

mod packages;
mod programs;
mod router;

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

use mptcp_bond::config::agent::{AgentConfig, Attachment, Role};
use mptcp_bond::net::{MARK_MASK, TPROXY_MARK};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use router::{FIREWALL, NETWORK, Router, project, run};

const SERVICE: &str = "/etc/init.d/mptcp-bond";

/// The one instance of the service that procd is told to run.
fn instance(router: &Router) -> Value {
    router.sh(&format!("{SERVICE} start"));
    let calls = router.ubus_calls();
    let [(call, service)] = calls.as_slice() else { panic!("not one call: {calls:?}") };
    assert_eq!(call, "service set");
    assert_eq!(service["name"], "mptcp-bond");
    let reload = json!(["run_script", SERVICE, "reload"]);
    let trigger = json!(["config.change", ["if", ["eq", "package", "mptcpd"], reload], 1000]);
    assert_eq!(service["triggers"], json!([trigger]), "a change by LuCI or uci reloads it");
    service["instances"]["instance1"].clone()
}

#[test]
fn procd_runs_the_agent_for_good_and_reloads_it_by_a_signal() {
    let router = Router::new(&[]);
    let _ = fs::remove_file(router.path("sbin/ujail"));
    let instance = instance(&router);
    assert_eq!(instance["command"], json!(["/usr/sbin/mptcp-bond", "agent"]));
    assert_eq!(instance["file"], json!(["/etc/config/mptcpd"]));
    assert_eq!(instance["reload_signal"], 1);
    let [_, wait, attempts] = &instance["respawn"].as_array().expect("a list")[..] else {
        panic!("{instance}")
    };
    assert_eq!((wait, attempts), (&json!("5"), &json!("0")), "it is never given up");
    assert_eq!(instance["term_timeout"], 10);
    for absent in ["jail", "capabilities", "no_new_privs"] {
        assert_eq!(instance[absent], Value::Null, "{absent} without ujail");
    }

    router.sh(&format!("{SERVICE} enable"));
    let links = || router.sh("ls /etc/rc.d");
    assert_eq!(links(), "K10mptcp-bond\nS95mptcp-bond\n");
    router.sh(&format!("{SERVICE} stop; {SERVICE} disable"));
    assert_eq!(links(), "");
    assert_eq!(router.ubus_calls()[0], ("service delete".into(), json!({ "name": "mptcp-bond" })));
}

#[test]
fn where_there_is_ujail_the_agent_is_confined_to_what_it_needs() {
    let router = Router::new(&[]);
    router.program("sbin/ujail", "");
    let instance = instance(&router);
    let jail = &instance["jail"];
    assert_eq!(jail["log"], true);
    let mounts = jail["mount"].as_object().expect("a table");
    let mounted = |mode: &str| -> Vec<&str> {
        let of_mode = mounts.iter().filter(|(_, value)| *value == mode);
        of_mode.map(|(path, _)| path.as_str()).collect()
    };
    assert_eq!(mounted("1"), ["/etc/config", "/etc/mptcp-bond", "/proc", "/var/run/mptcp-bond"]);
    for path in ["/usr/sbin/nft", "/var/run/ubus", "/etc/resolv.conf"] {
        assert!(mounted("0").contains(&path), "{path}");
    }
    assert_eq!(instance["no_new_privs"], true);
    let path = instance["env"]["PATH"].as_str().expect("where nft is");
    assert!(path.split(':').any(|folder| folder == "/usr/sbin"), "{path}");

    let file = instance["capabilities"].as_str().expect("a path").trim_start_matches('/');
    let sets: Value = serde_json::from_slice(&fs::read(router.path(file)).unwrap()).unwrap();
    let kept = json!(["CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE"]);
    for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
        assert_eq!(sets[set], kept, "{set}");
    }
}

#[test]
fn an_interface_that_comes_or_goes_wakes_the_agent() {
    let router = Router::new(&[]);
    let event = |action: &str| {
        // As /sbin/hotplug-call does it.
        let hook = "( . /etc/hotplug.d/iface/95-mptcp-bond ); echo after";
        let shell = format!(". /lib/functions.sh; ACTION={action} INTERFACE=wan; {hook}");
        assert_eq!(router.sh(&shell), "after\n", "the hooks that follow run, too");
        router.ubus_calls()
    };
    for action in ["ifup", "ifdown"] {
        let signal = json!({ "name": "mptcp-bond", "signal": 10 });
        assert_eq!(event(action), [("service signal".into(), signal)], "{action}");
    }
    assert_eq!(event("ifupdate"), []);
    router.program("bin/ubus", "echo 'Command failed: Not found' >&2; exit 4");
    fs::copy(router.path("bin/ubus"), router.path("sbin/ubus")).unwrap();
    assert_eq!(event("ifup"), [], "no agent, no harm");
}

/// Runs the first configuration as the package manager does, which then deletes it.
fn first_configuration(router: &Router) -> AgentConfig {
    router.sh("cd /etc/uci-defaults && ( . ./90-mptcp-bond ) && uci commit");
    let text = fs::read_to_string(router.config("mptcpd")).unwrap();
    let config = AgentConfig::parse(&text, "mptcpd").unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(config.lan, ["lan"]);
    assert!(config.idle_reason().unwrap().contains("server"), "it waits until it is paired");
    config
}

fn uplinks(config: &AgentConfig) -> Vec<(&str, &Attachment, Role)> {
    config.uplinks.iter().map(|it| (it.name.as_str(), &it.attachment, it.role)).collect()
}

#[test]
fn the_first_configuration_proposes_the_wan_interfaces_once() {
    let router = Router::new(&[("network", NETWORK), ("firewall", FIREWALL)]);
    let wan = Attachment::Interface("wan".into());
    let first = first_configuration(&router);
    assert_eq!(uplinks(&first), [("wan", &wan, Role::Bond)], "wan6 is the same uplink");
    let text = fs::read(router.config("mptcpd")).unwrap();
    assert_eq!(first_configuration(&router), first);
    assert_eq!(fs::read(router.config("mptcpd")).unwrap(), text, "once more changes nothing");
    for (name, before) in [("network", NETWORK), ("firewall", FIREWALL)] {
        assert_eq!(fs::read_to_string(router.config(name)).unwrap(), before, "{name}");
    }
}

#[test]
fn mobile_uplinks_are_proposed_as_backups_and_what_is_none_is_left_out() {
    let interface = |name: &str, options: &[(&str, &str)]| {
        let options = options.iter().map(|(key, value)| format!("\toption {key} '{value}'\n"));
        format!("\nconfig interface '{name}'\n{}", options.collect::<String>())
    };
    let network = [
        NETWORK.to_owned(),
        interface("dsl", &[("proto", "pppoe"), ("device", "eth2")]),
        interface("modem", &[("proto", "static"), ("device", "eth2")]),
        interface("lte", &[("proto", "qmi"), ("device", "/dev/cdc-wdm0")]),
        interface("alias", &[("proto", "static"), ("device", "@wan")]),
        interface("guest", &[("proto", "static"), ("device", "br-guest")]),
        interface("vpn", &[("proto", "wireguard")]),
    ];
    let listed = "list network 'wan6'\n\tlist network 'dsl'\n\tlist network 'modem'\n\
                  \tlist network 'lte'\n\
                  \tlist network 'alias'\n\tlist network 'gone'";
    let zone = "\nconfig zone\n\toption name 'vpn'\n\tlist network 'vpn'\n";
    let firewall = FIREWALL.replace("list network 'wan6'", listed) + zone;
    let router = Router::new(&[("network", &network.concat()), ("firewall", &firewall)]);
    let [wan, dsl, lte] = ["wan", "dsl", "lte"].map(|name| Attachment::Interface(name.into()));
    let config = first_configuration(&router);
    let expected =
        [("wan", &wan, Role::Bond), ("dsl", &dsl, Role::Bond), ("lte", &lte, Role::Backup)];
    assert_eq!(uplinks(&config), expected);
}

#[test]
fn at_most_eight_uplinks_are_proposed_and_those_of_the_user_stay() {
    let names: Vec<String> = (1..=9).map(|number| format!("wan_{number}")).collect();
    let network: String = names
        .iter()
        .map(|name| {
            format!("config interface '{name}'\n\toption proto 'dhcp'\n\toption device '{name}'\n")
        })
        .collect();
    // A list as one option, as old configurations have it.
    let firewall =
        format!("config zone 'wan'\n\toption name 'wan'\n\toption network '{}'\n", names.join(" "));
    let router = Router::new(&[("network", &network), ("firewall", &firewall)]);
    assert_eq!(first_configuration(&router).uplinks.len(), 8);

    let own = "config uplink 'fibre'\n\toption device 'eth7'\n\toption role 'off'\n";
    fs::write(router.config("mptcpd"), own).unwrap();
    first_configuration(&router);
    assert_eq!(fs::read_to_string(router.config("mptcpd")).unwrap(), own);
}

#[test]
fn a_router_without_a_wan_zone_gets_no_uplink() {
    let router = Router::new(&[("network", "")]);
    let _ = fs::remove_file(router.config("firewall"));
    assert_eq!(uplinks(&first_configuration(&router)), []);
}

#[test]
fn the_firewall_include_lets_in_what_is_diverted() {
    let include = project().join("files/usr/share/nftables.d/chain-pre/input/50-mptcp-bond.nft");
    let mark = format!("meta mark & {MARK_MASK:#010x} == {:#010x} ", TPROXY_MARK.0);
    assert!(fs::read_to_string(&include).unwrap().contains(&mark));
    let table = format!(
        "table inet fw4 {{ chain input {{ type filter hook input priority filter; policy drop;\n\
         include \"{}\"\n }}\n}}",
        include.display()
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fw4.nft");
    fs::write(&file, table).unwrap();
    // In a network namespace of its own: it would hold up the other tests' packets.
    let load = "nft -f \"$0\" && nft list chain inet fw4 input";
    let listing = run(Command::new("unshare").args(["--net", "sh", "-c", load]).arg(file));
    assert!(listing.contains("accept comment \"mptcp-bond: diverted to the agent\""), "{listing}");
}

#[test]
fn the_servers_unit_is_exposed_little() {
    // Of 10, in tenths.
    const WORST: &str = "--threshold=20";
    run(Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager", WORST])
        .arg(project().join("files/systemd/mptcp-bond.service")));
}

#[test]
fn unconfigured_the_agent_waits_with_one_line_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = Command::new(env!("CARGO_BIN_EXE_mptcp-bond"))
        .args(["agent", "--stderr", "--config"])
        .arg(project().join("files/etc/config/mptcpd"))
        .arg("--run-dir")
        .arg(folder.path().join("run"))
        .arg("--key-dir")
        .arg(folder.path().join("key"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = agent.stderr.take().unwrap();
    let mut log = String::new();
    let mut byte = [0];
    while !log.ends_with('\n') && stderr.read(&mut byte).unwrap() > 0 {
        log.push(char::from(byte[0]));
    }
    assert_eq!(log, "info: waiting for a configuration: there is no 'config server' section\n");
    let pid = Pid::from_child(&agent);
    // It goes on waiting when it is woken or reloaded.
    for signal in [Signal::USR1, Signal::TERM] {
        kill_process(pid, signal).unwrap();
    }
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "info: stopping\n");
    assert!(agent.wait().unwrap().success());
}
