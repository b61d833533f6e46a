//! The pages on a running agent, in the lab.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mptcp_bond::config::uci::{self, quote};
use serde_json::{Map, Value, json};

use crate::browser::{Browser, View};
use crate::lab::traffic::{Kind as Traffic, TrafficServer, Transfer};
use crate::lab::{AgentProgram, Direction, Lab, ServerProgram, TARGET_V4, ubus_socket, until};
use crate::openwrt::{Failed, Kind, UbusClient, Ubusd};
use crate::site::{Reply, serve};
use crate::{OVERVIEW, SETTINGS, assert_shows, show};

/// How long anything may take that should happen soon.
const LIMIT: Duration = Duration::from_secs(20);

/// Sections as LuCI's `uci` has them.
pub fn sections(text: &str) -> Value {
    let option = |option: &uci::Assignment| {
        let value = match &option.value {
            uci::Value::String(text) => json!(text),
            uci::Value::List(items) => items.iter().map(|item| json!(item.text)).collect(),
        };
        (option.name.clone(), value)
    };
    let sections = uci::parse(text).expect("a configuration").into_iter().map(|section| {
        let mut fields: Map<String, Value> = section.options.iter().map(option).collect();
        fields.insert(".type".into(), section.kind.into());
        fields.insert(".name".into(), section.name.into());
        Value::Object(fields)
    });
    sections.collect()
}

/// The same as text.
pub fn uci_text(sections: &Value) -> String {
    let mut text = String::new();
    let value = |value: &Value| quote(value.as_str().expect("a text"));
    for section in sections.as_array().expect("sections") {
        let kind = section[".type"].as_str().expect("a type");
        text += &format!("config {kind} {}\n", value(&section[".name"]));
        for (name, set) in section.as_object().expect("a section") {
            match set {
                _ if name.starts_with('.') => {}
                Value::Array(items) => {
                    items
                        .iter()
                        .for_each(|item| text += &format!("\tlist {name} {}\n", value(item)));
                }
                set => text += &format!("\toption {name} {}\n", value(set)),
            }
        }
    }
    text
}

/// Passes calls to the agent on the bus, and its configuration to and from the file.
struct Bus {
    socket: PathBuf,
    config: PathBuf,
}

impl Bus {
    fn answer(&self, object: &str, method: &str, params: &Value) -> Reply {
        let mut client = UbusClient::connect(&self.socket).expect("connect to ubusd");
        match (object, method) {
            ("uci", "get") if params["config"] == "mptcpd" => {
                let text = fs::read_to_string(&self.config).expect("read the configuration");
                Reply::Done(json!({ "sections": sections(&text) }))
            }
            ("uci", "get") => Reply::Done(json!({ "sections": [] })),
            ("uci", "store") => {
                fs::write(&self.config, uci_text(&params["sections"])).expect("write it");
                // As procd's trigger has it.
                self.answer("mptcp-bond", "reload", &json!({}))
            }
            _ if client.lookup(object).is_none() => Reply::Absent,
            _ => match client.call(object, method, params.clone()) {
                Ok(result) => Reply::Done(result),
                Err(Failed(status, words)) => Reply::Failed(status.0 as u8, words),
            },
        }
    }
}

fn uplink<'a>(status: &'a Value, name: &str) -> &'a Value {
    let uplinks = status["uplinks"].as_array().map_or(&[][..], Vec::as_slice);
    uplinks.iter().find(|uplink| uplink["name"] == name).unwrap_or(&Value::Null)
}

#[test]
fn a_running_agent_is_watched_and_changed() {
    let lab = Lab::two_uplinks("luci");
    let server = ServerProgram::start(&lab);
    let _ubusd = Ubusd::start(Kind::Double, &lab.router, &ubus_socket(&lab));
    let mut agent = AgentProgram::start(&lab, &server);
    let target = TrafficServer::start(&lab.target, Traffic::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Traffic::Tcp, TARGET_V4);
    let _download = Transfer::download(&dialer, Transfer::ENDLESS).expect("connect");
    let bus = Bus { socket: ubus_socket(&lab), config: agent.config().to_owned() };
    until("the object is there", LIMIT, || {
        UbusClient::connect(&bus.socket).ok()?.lookup("mptcp-bond")
    });
    let answer =
        move |object: &str, method: &str, params: &Value| bus.answer(object, method, params);
    let address = serve(&lab.router, Arc::new(answer));
    let browser = Browser::start(&lab.router);
    let page = browser.blank(&View::DESKTOP);

    show(&page, &address, OVERVIEW);
    assert_shows(&page, "#view", &["bonding 2 uplinks: wan, wanb", "192.0.2.1:80", "198.51.100.1"]);
    page.until(
        "the download is seen",
        "/[0-9] Mbit/.test(document.querySelector('[data-uplink=wan]').innerText)",
    );
    page.choose("[data-uplink=wanb] select", "off");
    agent.wait_status("its role is off", |status| uplink(status, "wanb")["role_set"] == "off");
    assert_shows(&page, "[data-uplink=wanb]", &["unused", "its role is 'off'"]);
    page.choose("[data-uplink=wanb] select", "default");
    agent.wait_status("its role is its own", |status| uplink(status, "wanb")["role_set"].is_null());
    lab.uplink(0).blackhole(Direction::Both);
    assert_shows(&page, "[data-uplink=wan]", &["down", "probes unanswered"]);
    lab.uplink(0).restore();
    page.click("button.cbi-button-action");
    assert_shows(&page, ".modal", &["Subject", "configuration", "uplink wanb"]);
    page.screenshot("luci-live");

    show(&page, &address, SETTINGS);
    page.click(".mptcp-bond-pairing input");
    page.paste(&server.invite("again"));
    page.click(".mptcp-bond-pairing button");
    assert_shows(&page, ".alert-message.success", &["Paired with 198.51.100.1:443"]);
    page.fill("[id='wanb.quota']", "80G");
    page.click("#save");
    agent.wait_status("the quota is in force", |status| {
        uplink(status, "wanb")["usage"]["quota_bytes"] == 80_000_000_000u64
    });
    assert_eq!(page.complaints(), Vec::<String>::new());

    agent.stop();
    show(&page, &address, OVERVIEW);
    assert_shows(&page, ".alert-message", &["The agent does not run."]);
}
