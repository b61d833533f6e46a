//! Settings: what is entered becomes the configuration, and what the agent would refuse is refused.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use mptcp_bond::config::agent::AgentConfig;
use serde_json::{Value, json};

use crate::browser::{Browser, Page, View};
use crate::lab::Namespace;
use crate::live::{sections, uci_text};
use crate::site::{Reply, serve};
use crate::{SETTINGS, answers, show};

const CONFIG: &str = "
config agent 'agent'
	list lan 'lan'
config server 'vps'
	option address 'vps.example.net'
	option public_key 'mTfnDHDJEl7wgL7SxScmcUP9sc8FDUL4fm2YQ+bLUFA='
config uplink 'wan'
	option interface 'wan'
config uplink 'lte'
	option device 'wwan0'
	option role 'backup'
config bypass 'office'
	list dest '10.0.0.0/8'
config forward 'ssh'
	option listen '2222'
	option target '192.168.1.10:22'
";
const NETWORK: &str = "config interface 'lan'\nconfig interface 'wan'\nconfig interface 'wanb'\n";

/// The configuration as stored last.
type Stored = Arc<Mutex<Value>>;

fn router(namespace: &Namespace) -> (String, Stored) {
    let stored = Arc::new(Mutex::new(sections(CONFIG)));
    let kept = stored.clone();
    let answer = move |object: &str, method: &str, params: &Value| match (object, method) {
        ("uci", "get") if params["config"] == "network" => {
            Reply::Done(json!({ "sections": sections(NETWORK) }))
        }
        ("uci", "get") => Reply::Done(json!({ "sections": *kept.lock().unwrap() })),
        ("uci", "store") => {
            *kept.lock().unwrap() = params["sections"].clone();
            Reply::Done(json!({}))
        }
        (_, "pair") => Reply::Failed(10, json!({ "error": "vps.example.net:443 did not answer" })),
        _ => Reply::Done(answers::status()),
    };
    (serve(namespace, Arc::new(answer)), stored)
}

/// Saves; gives what the page finds wrong, or nothing.
#[track_caller]
fn save(page: &Page) -> String {
    page.evaluate("void delete document.querySelector('form').dataset.saved");
    page.click("#save");
    page.until("it is judged", "document.querySelector('form').dataset.saved != null");
    let judgement = page.evaluate("document.querySelector('form').dataset.saved");
    judgement.as_str().expect("a text").to_owned()
}

#[test]
fn what_is_entered_becomes_the_configuration() {
    let namespace = Namespace::create("settings");
    let (address, stored) = router(&namespace);
    let browser = Browser::start(&namespace);
    let page = browser.blank(&View::DESKTOP);
    show(&page, &address, SETTINGS);
    page.screenshot("luci-settings");
    assert_eq!(save(&page), "");
    assert_eq!(*stored.lock().unwrap(), sections(CONFIG), "nothing was changed");

    page.fill("[id='wan.quota']", "50G");
    page.choose("[id='wan.quota_action']", "off");
    page.choose("[id='lte._by']", "interface");
    page.fill("[id='lte.interface']", "wanb");
    page.fill("[data-type=uplink] .new-name", "third");
    assert_eq!(save(&page), "");
    page.fill("[data-type=uplink] .new-name", "third");
    page.click("[data-type=uplink] .add");
    page.choose("[id='third._by']", "device");
    page.fill("[id='third.device']", "eth3");
    page.fill("[id='office.mac']", "02:00:5e:10:00:01");
    page.choose("[id='agent.quic']", "reject");
    page.click("[id='agent.enabled']");
    page.click("[id='ssh.proxy_protocol']");
    assert_eq!(save(&page), "");
    // The same port, of UDP.
    page.fill("[data-type=forward] .new-name", "mosh");
    page.click("[data-type=forward] .add");
    page.choose("[id='mosh.proto']", "udp");
    page.fill("[id='mosh.listen']", "2222");
    page.fill("[id='mosh.target']", "192.168.1.10:60000");
    page.click("[id='mosh.proxy_protocol']");
    assert_eq!(save(&page), "");
    let text = uci_text(&stored.lock().unwrap());
    let config = AgentConfig::parse(&text, "mptcpd").expect("the agent takes it");
    let expected = CONFIG
        .replace(
            "interface 'wan'\n",
            "interface 'wan'\n\toption quota '50G'\n\toption quota_action 'off'\n",
        )
        .replace("device 'wwan0'", "interface 'wanb'")
        .replace("config bypass", "config uplink 'third'\n\toption device 'eth3'\nconfig bypass")
        .replace("'10.0.0.0/8'\n", "'10.0.0.0/8'\n\tlist mac '02:00:5e:10:00:01'\n")
        .replace("192.168.1.10:22'\n", "192.168.1.10:22'\n\toption proxy_protocol '1'\n")
        .replace(
            "config agent 'agent'\n",
            "config agent 'agent'\n\toption quic 'reject'\n\toption enabled '0'\n",
        );
    let expected = expected
        + "config forward 'mosh'\n\toption proto 'udp'\n\toption listen '2222'\n\toption target \
           '192.168.1.10:60000'\n";
    let expected = AgentConfig::parse(&expected, "mptcpd").unwrap();
    assert_eq!((config.uplinks.len(), &config.bypasses), (3, &expected.bypasses));
    assert_eq!(config, AgentConfig { uplinks: config.uplinks.clone(), ..expected.clone() });
    assert!(expected.uplinks.iter().all(|uplink| config.uplinks.contains(uplink)), "{text}");
    assert_eq!(page.complaints(), Vec::<String>::new());
}

#[test]
fn what_contradicts_is_refused() {
    let namespace = Namespace::create("refused");
    let (address, stored) = router(&namespace);
    let browser = Browser::start(&namespace);
    let page = browser.blank(&View::DESKTOP);
    for (field, value, text) in [
        ("lte.device", "WWAN0/", "a network device such as eth1"),
        ("wan.interface", "lan", "That is the LAN."),
        ("wan.interface", "", "must not be empty"),
        ("wan.quota", "50 G", "bytes, with K, M, G or T"),
        ("vps.public_key", "short", "44 characters"),
        ("office.dest", "", "would match everything"),
        ("office.src", "2001:db8::1", "different address families"),
        ("ssh.target", "127.0.0.1:22", "a host on the LAN"),
    ] {
        show(&page, &address, SETTINGS);
        page.click(&format!("[id='{field}']"));
        page.evaluate("void document.activeElement.select()");
        page.press("Delete");
        page.paste(value);
        let judgement = save(&page);
        assert!(judgement.contains(text), "{field} = '{value}': {judgement}");
        if field.starts_with("office") {
            page.until_text("form .alert-message", text);
        }
    }
    show(&page, &address, SETTINGS);
    for (kind, name, fields) in [
        ("uplink", "twin", vec![("_by", "device"), ("device", "wwan0")]),
        ("forward", "twin", vec![("listen", "2222"), ("target", "192.168.1.11:22")]),
        ("server", "twin", vec![("address", "VPS.example.net")]),
    ] {
        show(&page, &address, SETTINGS);
        page.fill(&format!("[data-type={kind}] .new-name"), name);
        page.click(&format!("[data-type={kind}] .add"));
        for (option, value) in fields {
            let field = format!("[id='{name}.{option}']");
            if option == "_by" { page.choose(&field, value) } else { page.fill(&field, value) }
        }
        let judgement = save(&page);
        assert!(judgement.contains("is used by"), "{kind}: {judgement}");
    }
    assert_eq!(*stored.lock().unwrap(), sections(CONFIG), "nothing was stored");

    // Pairing: what is pasted is judged here, and what the agent says is shown.
    show(&page, &address, SETTINGS);
    let uri = |token: &str| {
        let key = "fRgRFrJZph7CZJO0APwrpHG7EAtzXArJfU_oSj1WFS8";
        format!("mptcp-bond://vps.example.net:443/?key={key}&token={token}&v=1")
    };
    for (uri, text) in [
        (uri("short"), "all of what \"mptcp-bond server invite\" printed"),
        (uri("PDKfbt8MdIMzjh19a_9d0inDUHH6x7jRYmWgKaE8Fkw"), "vps.example.net:443 did not answer"),
    ] {
        page.click(".mptcp-bond-pairing input");
        page.evaluate("void document.activeElement.select()");
        page.paste(&uri);
        page.click(".mptcp-bond-pairing button");
        page.until_text(".alert-message.danger", text);
    }
    let readonly = format!("{SETTINGS}&readonly");
    show(&page, &address, &readonly);
    assert_eq!(
        page.evaluate("document.querySelector('.mptcp-bond-pairing button').disabled"),
        true
    );
    assert_eq!(page.complaints(), Vec::<String>::new());
}

/// The options that the agent knows, by section type: it names them where one is not known.
fn known_options() -> Vec<(String, BTreeSet<String>)> {
    let text = ["agent", "server", "uplink", "bypass", "forward"]
        .map(|kind| format!("config {kind} '{kind}'\n\toption other '1'\n"))
        .concat();
    let problems = AgentConfig::parse(&text, "mptcpd").unwrap_err().to_string();
    let known = problems.lines().filter_map(|line| {
        let (_, told) = line.split_once("unknown option 'other'; a")?;
        let (kind, options) = told.split_once(" section has ")?;
        let kind = kind.trim_start_matches("n ").trim_start();
        Some((kind.to_owned(), options.split(", ").map(str::to_owned).collect()))
    });
    known.collect()
}

#[test]
fn each_option_can_be_set() {
    let namespace = Namespace::create("options");
    let (address, _) = router(&namespace);
    let browser = Browser::start(&namespace);
    let page = browser.blank(&View::DESKTOP);
    show(&page, &address, SETTINGS);
    let known = known_options();
    assert_eq!(known.len(), 5, "{known:?}");
    for (kind, options) in known {
        let shown = page.evaluate(&format!(
            "[...document.querySelector('[data-type={kind}] [data-section]').querySelectorAll('[data-option]')]
                .map(field => field.dataset.option).filter(name => !name.startsWith('_'))"
        ));
        let shown: BTreeSet<String> = serde_json::from_value(shown).unwrap();
        assert_eq!(shown, options, "{kind}");
    }
}
