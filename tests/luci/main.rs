//! The pages of `luci-app-mptcp-bond` in a real browser, on a double of LuCI's client API: what they show of
//! an agent, what they do with it, and what they say when something is wrong.

#[path = "../browser/mod.rs"]
mod browser;
#[path = "../lab/mod.rs"]
mod lab;
#[path = "../openwrt/mod.rs"]
mod openwrt;

mod answers;
mod catalogue;
mod live;
mod package;
mod settings;
mod site;
mod values;

use std::sync::{Arc, Mutex};

use browser::{Browser, Page, View};
use lab::Namespace;
use serde_json::{Value, json};
use site::{Reply, serve};

const OVERVIEW: &str = "view.mptcp-bond.overview";
const SETTINGS: &str = "view.mptcp-bond.settings";
const CARD: &str = "view.status.include.35_mptcp-bond";

/// A method that fails, and how.
type Failing = (&'static str, fn() -> Reply);

/// What the agent of a [`Router`] tells.
struct Told {
    status: Value,
    failing: Option<Failing>,
}

/// A router whose agent answers as told.
struct Router {
    address: String,
    namespace: Namespace,
    told: Arc<Mutex<Told>>,
}

impl Router {
    fn start(name: &str) -> Router {
        let namespace = Namespace::create(name);
        let told = Arc::new(Mutex::new(Told { status: answers::status(), failing: None }));
        let known = told.clone();
        let answer = move |_: &str, method: &str, _: &Value| {
            let told = known.lock().unwrap();
            match (told.failing, method) {
                (Some((failing, reply)), _) if failing == method => reply(),
                (_, "status") => Reply::Done(told.status.clone()),
                (_, "history") => Reply::Done(answers::history()),
                (_, "check") => {
                    Reply::Done(json!({ "running": false, "report": answers::report() }))
                }
                (_, other) => panic!("nobody is to call {other}"),
            }
        };
        let address = serve(&namespace, Arc::new(answer));
        Router { address, namespace, told }
    }

    fn change(&self, change: impl FnOnce(&mut Value)) {
        change(&mut self.told.lock().unwrap().status);
    }

    fn fail(&self, method: &'static str, reply: fn() -> Reply) {
        self.told.lock().unwrap().failing = Some((method, reply));
    }

    fn recover(&self) {
        self.told.lock().unwrap().failing = None;
    }

    fn open<'browser>(
        &self,
        browser: &'browser Browser,
        view: &str,
        seen: &View,
    ) -> Page<'browser> {
        let page = browser.blank(seen);
        show(&page, &self.address, view);
        page
    }
}

/// Goes to a view and waits until it is there.
#[track_caller]
fn show(page: &Page, address: &str, view: &str) {
    page.go(&format!("{address}{view}"));
    page.until("the view is there", "document.querySelector('#view').dataset.ready");
}

#[track_caller]
fn assert_shows(page: &Page, selector: &str, texts: &[&str]) {
    for text in texts {
        page.until_text(selector, text);
    }
}

#[test]
fn the_overview_shows_what_the_agent_tells() {
    let router = Router::start("overview");
    let browser = Browser::start(&router.namespace);
    let page = router.open(&browser, OVERVIEW, &View::DESKTOP);
    assert_shows(&page, "#view", &["bonding 2 uplinks: wan, wanb", "running for 1 h 1 min"]);
    assert_shows(
        &page,
        "[data-uplink=wan]",
        &["in use", "90.0 Mbit/s", "12.5 ms", "3.36 GB this month"],
    );
    assert_shows(&page, "[data-uplink=wanb]", &["degraded", "12.0 % of the probes are lost"]);
    assert_shows(&page, "[data-uplink=lte]", &["standby", "as configured (backup)"]);
    assert_shows(&page, "[data-uplink=dsl]", &["down", "no carrier on eth3"]);
    assert_shows(
        &page,
        ".mptcp-bond-graph",
        &["Download\u{20}180 Mbit/s", "200 Mbit/s", "10 min ago"],
    );
    assert_shows(
        &page,
        "#view",
        &["vps.example.net:443 → 198.51.100.1", "192.0.2.1:80", "137 Mbit/s"],
    );
    assert_shows(
        &page,
        "#view",
        &["forwarded", "2222/tcp", "denied", "5060/udp", "another program listens there"],
    );
    assert_shows(&page, ".mptcp-bond-events", &["uplink dsl: not used: no carrier on eth3"]);
    let areas = page.evaluate(
        "[...document.querySelectorAll('.mptcp-bond-panel-down polygon')]
            .map(area => [Math.round(area.getBBox().width), area.points.numberOfItems])",
    );
    assert_eq!(areas, json!(vec![[998, 1200]; 4]), "ten minutes of each uplink");
    page.screenshot("luci-overview");

    router.change(|status| {
        status["uplinks"][0]["rx_bps"] = 55_500_000.into();
        status["uplinks"][0]["role_set"] = "overflow".into();
    });
    page.until_text("[data-uplink=wan]", "55.5 Mbit/s");
    assert_eq!(
        page.evaluate("document.querySelector('[data-uplink=wan] select').value"),
        "overflow"
    );
    page.click("button.cbi-button-action");
    assert_shows(&page, ".modal", &["Problems: 1", "let the server listen on port 8443"]);
    page.screenshot("luci-check");
    assert_eq!(page.complaints(), Vec::<String>::new());

    let phone = router.open(&browser, OVERVIEW, &View::PHONE.dark());
    phone.screenshot("luci-overview-phone-dark");
    let overhang = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
    assert_eq!(phone.evaluate(overhang), 0, "nothing is cut off on the right");

    let german = router.open(&browser, &format!("{OVERVIEW}&lang=de"), &View::DESKTOP);
    assert_shows(&german, "#view", &["in Gebrauch", "Verbindungen"]);
    assert_eq!(german.complaints(), Vec::<String>::new());
}

#[test]
fn texts_of_others_stay_texts() {
    let router = Router::start("hostile");
    let browser = Browser::start(&router.namespace);
    let hostile = "<img src=x onerror='window.pwned=1'><script>window.pwned=1</script>%s";
    router.change(|status| poison(status, hostile));
    for view in [OVERVIEW, CARD] {
        let page = router.open(&browser, view, &View::DESKTOP);
        assert_shows(&page, "#view", &[hostile]);
        assert_eq!(
            page.evaluate(
                "[window.pwned, document.querySelectorAll('#view img, #view script').length]"
            ),
            json!([null, 0])
        );
        assert_eq!(page.complaints(), Vec::<String>::new());
    }
}

/// Puts a text in the place of every text.
fn poison(value: &mut Value, text: &str) {
    match value {
        Value::String(old) => *old = text.to_owned(),
        Value::Array(items) => items.iter_mut().for_each(|item| poison(item, text)),
        Value::Object(fields) => fields.values_mut().for_each(|field| poison(field, text)),
        _ => {}
    }
}

#[test]
fn what_is_wrong_is_said_with_what_to_do() {
    let router = Router::start("wrong");
    let browser = Browser::start(&router.namespace);
    let page = router.open(&browser, OVERVIEW, &View::DESKTOP);

    // What was known stays, and is marked as old.
    router.fail("status", || Reply::Absent);
    assert_shows(
        &page,
        ".alert-message",
        &["The agent does not run.", "/etc/init.d/mptcp-bond start"],
    );
    page.until("old", "document.querySelector('.mptcp-bond-stale [data-uplink=wan]')");
    page.screenshot("luci-stopped");
    router.recover();
    page.until("it is back", "!document.querySelector('.mptcp-bond-stale, .alert-message')");

    for (reply, text) in [
        ((|| Reply::Denied) as fn() -> Reply, "access group \"mptcp-bond\""),
        (|| Reply::Failed(4, Value::Null), "The agent does not run."),
        (|| Reply::Failed(7, Value::Null), "did not answer in time"),
        (|| Reply::Failed(99, Value::Null), "ubus status 99"),
        (|| Reply::Failed(13, json!({ "error": "the disk is full" })), "the disk is full"),
    ] {
        router.fail("status", reply);
        show(&page, &router.address, OVERVIEW);
        assert_shows(&page, ".alert-message", &[text]);
    }

    // What can be had is shown.
    router.fail("history", || Reply::Failed(7, Value::Null));
    show(&page, &router.address, OVERVIEW);
    assert_shows(&page, ".alert-message", &["The graph begins now"]);
    assert_shows(&page, "[data-uplink=wan]", &["90.0 Mbit/s"]);
    router.fail("check", || Reply::Failed(11, json!({ "error": "another check is under way" })));
    show(&page, &router.address, OVERVIEW);
    page.click("button.cbi-button-action");
    assert_shows(&page, ".modal", &["another check is under way"]);

    router.recover();
    for (field, value, text) in [
        ("servers", json!([]), "not paired with a server yet"),
        ("uplinks", json!([]), "There is no uplink yet"),
        ("state", json!("disabled"), "switched off; switch it on here: Settings"),
    ] {
        router.change(|status| {
            *status = answers::status();
            status[field] = value;
        });
        show(&page, &router.address, OVERVIEW);
        assert_shows(&page, ".alert-message", &[text]);
    }
    router.change(|status| {
        *status = answers::status();
        status["config_error"] = "mptcpd:7: 'rôle' is unknown".into();
        status["kernel"]["other_path_managers"] = json!(["mptcpd"]);
        status["kernel"]["conflicts"] = json!(["10.1.0.2 is an endpoint already"]);
        status["failures"] = json!([{ "operation": "ip rule add", "error": "File exists" }]);
    });
    for text in [
        "mptcpd:7: 'rôle' is unknown",
        "mptcpd runs and manages MPTCP endpoints, too",
        "10.1.0.2 is an endpoint already",
        "ip rule add: File exists",
    ] {
        assert_shows(&page, "[aria-live]", &[text]);
    }
}

#[test]
fn the_status_page_has_a_card() {
    let router = Router::start("card");
    let browser = Browser::start(&router.namespace);
    let page = router.open(&browser, CARD, &View::DESKTOP);
    assert_shows(&page, "#view", &["bonding 2 uplinks", "wanb", "degraded", "down"]);
    router.fail("status", || Reply::Absent);
    show(&page, &router.address, CARD);
    assert_shows(&page, "#view", &["The agent does not run."]);
    router.fail("status", || Reply::Denied);
    show(&page, &router.address, CARD);
    assert_eq!(page.visible_text("#view"), "", "who may not look is not bothered");
    page.complaints();
}
