//! What a download notices of ubus: interfaces that netifd takes down and up, that change their
//! devices, and many calls. Runs on a double of ubusd, and on the genuine one where it is installed.

mod lab;
mod openwrt;

use std::fs;
use std::path::Path;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use lab::failures::{Users, all_well};
use lab::{AgentProgram, Lab, ServerProgram, Uplink, UplinkSpec, two_of_three, ubus_socket, until};
use openwrt::{Kind, Netifd, UbusClient, Ubusd, interface_down, interface_up};
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);
/// The longest pause of a download when an interface goes down.
const PAUSE: Duration = Duration::from_millis(300);
/// How long anything may take that should happen soon.
const LIMIT: Duration = Duration::from_secs(20);

/// The interfaces of the lab's two uplinks.
const INTERFACES: [&str; 2] = ["wan", "wanb"];

/// A lab whose devices are not named as its interfaces are.
fn lab(name: &str) -> Lab {
    Lab::builder(name)
        .uplink(UplinkSpec::new("eth1", 100))
        .uplink(UplinkSpec::new("eth2", 50))
        .build()
}

/// netifd, with the lab's uplinks and LAN up.
fn netifd(lab: &Lab, defaultroute: bool) -> Netifd {
    let uplinks = INTERFACES.iter().zip(lab.uplinks());
    let uplinks = uplinks.map(|(name, uplink)| interface_up(name, uplink, defaultroute));
    let lan = json!({ "interface": "lan", "up": true, "l3_device": "br-lan", "proto": "static" });
    Netifd::start(&ubus_socket(lab), uplinks.chain([lan]).collect())
}

/// A paired agent, not started, whose uplinks and LAN are named by interface.
fn by_interface<'lab>(lab: &'lab Lab, server: &ServerProgram) -> AgentProgram<'lab> {
    let agent = AgentProgram::paired(lab, server, "");
    let mut text = fs::read_to_string(agent.config()).expect("read the configuration");
    text = text.replace("list lan 'br-lan'", "list lan 'lan'");
    for (interface, uplink) in INTERFACES.iter().zip(lab.uplinks()) {
        let device = uplink.device();
        text = text.replace(
            &format!("option device '{device}'"),
            &format!("option interface '{interface}'"),
        );
    }
    fs::write(agent.config(), text).expect("write the configuration");
    agent
}

fn uplink<'a>(status: &'a Value, device: &str) -> &'a Value {
    let uplinks = status["uplinks"].as_array().map_or(&[][..], Vec::as_slice);
    uplinks.iter().find(|uplink| uplink["name"] == device).unwrap_or(&Value::Null)
}

/// How an interface goes down: what the kernel shows, before or after netifd tells of it.
struct Down {
    name: &'static str,
    before: fn(&Uplink),
    after: fn(&Uplink),
}

const DOWNS: [Down; 3] = [
    Down { name: "device down, then told", before: Uplink::link_down, after: |_| {} },
    Down { name: "told, then address gone", before: |_| {}, after: Uplink::drop_address },
    // A modem that is reset: nothing gets through any more, and the kernel knows nothing of it.
    Down { name: "told alone", before: |_| {}, after: |_| {} },
];

#[test]
fn nobody_notices_that_an_interface_goes_down_and_comes_up() {
    for kind in Kind::all() {
        let lab = lab("netifd");
        let _ubusd = Ubusd::start(kind, &lab.router, &ubus_socket(&lab));
        let netifd = netifd(&lab, true);
        let server = ServerProgram::start(&lab);
        let mut agent = by_interface(&lab, &server);
        agent.restart();
        let users = Users::start(&lab);
        let wan = lab.uplink(0);
        for down in DOWNS {
            let noticed = two_of_three(|| {
                all_well(&mut agent);
                let transfer = users.transfer(true);
                let gone = Instant::now();
                (down.before)(wan);
                netifd.set(interface_down("wan"));
                (down.after)(wan);
                agent.wait_status("the uplink is not used", |status| {
                    let wan = uplink(status, "eth1");
                    wan["in_use"] == false && wan["endpoints"] == json!([])
                });
                sleep(SECOND);
                let report = transfer.report();
                let pause = report.longest_pause_since(report.at(gone));
                wan.link_up();
                netifd.set(interface_up("wan", wan, true));
                all_well(&mut agent);
                assert_eq!(transfer.stop().corrupt_at, None);
                println!("{kind:?} ubusd, {}: {pause:?}", down.name);
                if pause <= PAUSE { Ok(()) } else { Err(format!("{}: {pause:?}", down.name)) }
            });
            assert_eq!(noticed, Ok(()), "{}", agent.status_table());
        }
    }
}

/// Calls a second, how many ask for them, and how often each does.
const CALLS: u32 = 1000;
const CALLERS: u32 = 32;
const ROUNDS: u32 = 100;
/// The share of a download's goodput that is left meanwhile.
const SHARE_LEFT: f64 = 0.9;

#[test]
fn a_thousand_calls_a_second_disturb_nobody() {
    for kind in Kind::all() {
        let lab = lab("ubus-calls");
        let socket = ubus_socket(&lab);
        let _ubusd = Ubusd::start(kind, &lab.router, &socket);
        let server = ServerProgram::start(&lab);
        let mut agent = AgentProgram::start(&lab, &server);
        let users = Users::start(&lab);
        let transfer = users.transfer(true);
        let undisturbed = two_of_three(|| {
            let goodput_while = |action: &dyn Fn()| {
                let (began, before) = (Instant::now(), transfer.report().bytes);
                action();
                let (bytes, time) = (transfer.report().bytes - before, began.elapsed());
                (bytes as f64 * 8e-6 / time.as_secs_f64(), time)
            };
            let (before, _) = goodput_while(&|| sleep(3 * SECOND));
            let cpu = agent.process().cpu_time();
            let (during, time) = goodput_while(&|| {
                thread::scope(|scope| {
                    (0..CALLERS).for_each(|_| drop(scope.spawn(|| call(&socket))))
                });
            });
            let cpu = agent.process().cpu_time() - cpu;
            println!(
                "{kind:?} ubusd: {before:.0} Mbit/s, {during:.0} Mbit/s during calls for {time:.1?}, {cpu:?}"
            );
            let share = during / before;
            if share >= SHARE_LEFT && time < LIMIT { Ok(()) } else { Err((share, time)) }
        });
        assert_eq!(undisturbed, Ok(()));
        assert_eq!(transfer.stop().corrupt_at, None);
    }
}

/// Asks as one of [`CALLERS`] for [`CALLS`] a second in all, or as fast as the machine lets it; each tenth time
/// for the whole status.
fn call(socket: &Path) {
    let mut client = UbusClient::connect(socket).expect("connect to ubusd");
    let (object, _) = client.lookup("mptcp-bond").expect("the object is there");
    let began = Instant::now();
    for round in 0..ROUNDS {
        sleep((began + round * CALLERS * SECOND / CALLS).saturating_duration_since(Instant::now()));
        let method = if round % 10 == 0 { "status" } else { "connections" };
        client.invoke(object, method, json!({})).expect("an answer");
    }
}

#[test]
fn gateways_that_are_kept_out_of_the_kernel_and_devices_that_change_their_names() {
    for kind in Kind::all() {
        let lab = lab("netifd-gateways");
        let _ubusd = Ubusd::start(kind, &lab.router, &ubus_socket(&lab));
        let server = ServerProgram::start(&lab);
        let mut agent = by_interface(&lab, &server);
        for uplink in lab.uplinks() {
            // With `defaultroute 0` netifd installs no default routes.
            for family in ["-4", "-6"] {
                lab.router.ip(&format!("{family} route flush default dev {}", uplink.device()));
            }
        }
        agent.launch();
        agent.wait_status("there are no interfaces yet", |status| {
            let wan = uplink(status, "eth1")["reason"].as_str().unwrap_or_default();
            wan.contains("interface 'wan' is not up")
        });
        let netifd = netifd(&lab, false);
        let status = agent.wait_ready();
        assert_eq!(uplink(&status, "eth1")["gateways"][0], "10.1.0.1", "{status:#}");
        let users = Users::start(&lab);
        let transfer = users.transfer(true);

        // A modem that comes back under another name.
        let (device, other) = (lab.uplink(0).device(), "wwan7");
        netifd.set(interface_down("wan"));
        lab.router.ip(&format!("link set {device} down"));
        lab.router.ip(&format!("link set {device} name {other}"));
        lab.router.ip(&format!("link set {other} up"));
        let address = format!("{}/24", lab.uplink(0).address_v4());
        lab.router.ip(&format!("address replace {address} dev {other}"));
        let mut up = interface_up("wan", lab.uplink(0), false);
        up["l3_device"] = other.into();
        netifd.set(up);
        until("the uplink is used on its new device", LIMIT, || {
            let status = agent.status()?;
            let wan = uplink(&status, device);
            let used = wan["device"] == other && wan["state"] == "up" && wan["subflows"] != 0;
            used.then_some(())
        });
        assert!(!transfer.is_finished(), "the download was cut off");
        assert_eq!(transfer.stop().corrupt_at, None);
    }
}
