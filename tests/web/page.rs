//! The status page over the running lab.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::browser::{Browser, Page, View};
use super::lab::traffic::{Kind, TrafficServer, Transfer};
use super::lab::{
    AgentProgram, Direction, HTTP_ADDRESS, HTTP_OPTION, Lab, ServerProgram, TARGET_V4, Uplink,
    until,
};
use super::{LIMIT, body, code, exposition, get};

/// How far a rate shown may be from the one measured.
const TOLERANCE: f64 = 0.15;
/// How long rates are measured.
const WINDOW: Duration = Duration::from_secs(4);
/// Measurements, the best of which counts.
const WINDOWS: usize = 4;
/// A cut uplink shows within this time.
const CUT_SHOWS: Duration = Duration::from_secs(3);

/// The card of an uplink, for `document.querySelector`-like use in expressions.
fn card(position: usize) -> String {
    format!("document.querySelectorAll('#uplinks .card')[{position}]")
}

/// A rate such as `98.3 Mbit/s`, in Mbit/s.
fn mbps(text: &str) -> f64 {
    let (number, unit) = text.trim().split_once(' ').unwrap_or_else(|| panic!("'{text}'"));
    let factor = match unit {
        "Gbit/s" => 1e3,
        "Mbit/s" => 1.0,
        "kbit/s" => 1e-3,
        _ => 1e-6,
    };
    number.parse::<f64>().unwrap_or_else(|_| panic!("'{text}'")) * factor
}

/// The means of what the page shows over a time (all, then each uplink), and what was measured, in Mbit/s.
fn rates(page: &Page, uplinks: &[Uplink]) -> (Vec<f64>, Vec<f64>) {
    let bytes = || uplinks.iter().map(|uplink| uplink.bytes().0 as f64);
    let (before, start) = (bytes().collect::<Vec<_>>(), Instant::now());
    let mut shown = vec![0.0; uplinks.len() + 1];
    let mut samples = 0.0;
    while start.elapsed() < WINDOW {
        sleep(Duration::from_millis(250));
        let texts = page.evaluate(
            "[document.querySelector('#down strong'), \
             ...document.querySelectorAll('#uplinks .rates p:first-child')]
             .map(element => element.lastChild.textContent)",
        );
        for (sum, text) in shown.iter_mut().zip(texts.as_array().expect("a list")) {
            *sum += mbps(text.as_str().expect("a text"));
        }
        samples += 1.0;
    }
    let seconds = start.elapsed().as_secs_f64();
    let each = bytes().zip(before).map(|(after, before)| (after - before) * 8e-6 / seconds);
    let each: Vec<f64> = each.collect();
    let all = each.iter().sum();
    (shown.iter().map(|sum| sum / samples).collect(), [vec![all], each].concat())
}

/// Looks at the page in each way that people do.
fn take_pictures(page: &Page, name: &str) {
    for (view, of) in [
        (View::DESKTOP, "light"),
        (View::DESKTOP.dark(), "dark"),
        (View::PHONE, "phone"),
        (View::PHONE.dark(), "phone-dark"),
        (View::DESKTOP.forced_colors(), "forced-colors"),
    ] {
        page.show(&view);
        let wide = page.evaluate("document.documentElement.scrollWidth - innerWidth");
        assert!(wide.as_i64() <= Some(0), "{of}: {wide} pixels wider than the window");
        page.screenshot(&format!("status-{name}-{of}"));
    }
    page.show(&View::DESKTOP);
    // Another window moves everything, and that does not count.
    page.reload();
    page.until("it shows the uplinks", "document.querySelectorAll('#uplinks .card').length === 2");
}

#[test]
fn the_page_shows_what_happens() {
    let lab = Lab::two_uplinks("web-page");
    let mut server = ServerProgram::start(&lab);
    let config = fs::read_to_string(server.config()).expect("read the server's configuration");
    let config = format!("metrics_listen = \"127.0.0.1:9484\"\n{config}");
    fs::write(server.config(), config).expect("write the server's configuration");
    server.stop();
    server.restart();
    let quota = "config uplink 'wanb'\n\toption quota '5G'\n";
    let forward =
        "config forward 'ssh'\n\toption listen '2222'\n\toption target '192.168.77.2:22'\n";
    let mut agent =
        AgentProgram::start_with(&lab, &server, &format!("{HTTP_OPTION}{quota}{forward}"));
    agent.wait_status("the port is denied", |status| status["forwards"][0]["state"] == "denied");
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let transfer = Transfer::download(&dialer, Transfer::ENDLESS).expect("connect");
    let browser = Browser::start(&lab.router);
    let page = browser.open(&format!("http://{HTTP_ADDRESS}/"), &View::DESKTOP);
    page.until_text("#state", "bonding");
    page.until("the graph has a past", "series.by.wan.rx_bps.filter(it => it > 1e6).length > 3");

    page.until_text("#forwards", "✕ denied");

    // What is shown is a second behind, which tells where others make the rates go up and down.
    let right = (0..WINDOWS).any(|_| {
        let (shown, measured) = rates(&page, lab.uplinks());
        println!("shown {shown:.1?}, measured {measured:.1?} Mbit/s");
        let near = |(shown, measured): (&f64, &f64)| (shown / measured - 1.0).abs() < TOLERANCE;
        shown.iter().zip(&measured).all(near)
    });
    assert!(right, "the rates shown are wrong");
    assert_eq!((page.complaints(), page.layout_shifts()), (Vec::new(), (0.0, Vec::new())));
    take_pictures(&page, "bonding");
    assert_metrics(&lab, &mut server);

    let start = Instant::now();
    lab.uplink(1).blackhole(Direction::Both);
    let shows =
        format!("/✕ down/.test({0}.innerText) && {0}.innerText.match(/down for.*: .+/)", card(1));
    page.until_within(CUT_SHOWS, "the cut uplink shows with its reason", &shows);
    println!("cut uplink shown after {:?}", start.elapsed());
    page.until_text("#state", "single");
    assert_eq!((page.complaints(), page.layout_shifts()), (Vec::new(), (0.0, Vec::new())));
    take_pictures(&page, "cut");

    page.click("#minutes");
    page.until_text("#down", "24 h ago");
    page.press("Tab");
    assert_eq!(page.evaluate("document.activeElement.id"), "problems");
    page.click("#seconds");
    page.until_text("#down", "10 min ago");
    assert_eq!(page.complaints(), Vec::<String>::new());

    let plain = browser.open(&format!("http://{HTTP_ADDRESS}/"), &View::DESKTOP.without_scripts());
    for text in ["using one uplink: wan", "wanb", "down", "192.168.77.2", "server reachable"] {
        plain.until_text("main.plain", text);
    }
    plain.screenshot("status-without-scripts");
    assert_eq!(plain.complaints(), Vec::<String>::new());
    drop(plain);

    assert_memory_is_flat(&page, &mut agent);
    assert!(!transfer.is_finished(), "the download was cut off");
    agent.kill();
    page.until_text("#trouble", "The agent does not answer");
    page.screenshot("status-agent-gone");
    lab.uplink(1).restore();
    agent.restart();
    page.until_text("#state", "bonding");
    page.until("the page goes on", "document.querySelector('#trouble').textContent === ''");
}

/// As many looks as a page takes that is left open for minutes.
fn assert_memory_is_flat(page: &Page, agent: &mut AgentProgram) {
    let mut looks = |tens: u32| {
        for _ in 0..tens {
            page.evaluate("(async () => { for (let n = 0; n < 10; n++) await look(); })()");
        }
        let nodes = page.evaluate("document.querySelectorAll('*').length");
        (page.heap_bytes() / 1024, agent.process().resident_kib(), nodes)
    };
    let (before, after) = (looks(3), looks(9));
    println!("page and agent in KiB, and elements of the page: {before:?}, later {after:?}");
    assert!(after.0 < before.0 + 200 && after.1 < before.1 + 600, "{before:?}, later {after:?}");
    assert_eq!(before.2, after.2, "elements of the page");
}

/// The dashboard asks for metrics that there are, but for those of trouble, which come with it.
fn assert_dashboard_asks_for(known: &[String]) {
    const OF_TROUBLE: [&str; 2] = ["mptcp_bond_refusals_total", "mptcp_bond_stream_troubles_total"];
    let dashboard = include_str!("../../files/grafana/mptcp-bond.json");
    let dashboard: Value = serde_json::from_str(dashboard).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let expressions: Vec<&str> =
        targets.map(|target| target["expr"].as_str().expect("an expression")).collect();
    assert!(expressions.len() > 10);
    for expression in expressions {
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for name in words.filter(|word| word.starts_with("mptcp_bond_")) {
            let there = known.iter().any(|known| known == name) || OF_TROUBLE.contains(&name);
            assert!(there, "{name} in {expression}");
        }
    }
}

fn assert_metrics(lab: &Lab, server: &mut ServerProgram) {
    let metrics = get(&lab.router, HTTP_ADDRESS, "/metrics", "").expect("an answer");
    assert_eq!(code(&metrics), "200");
    let families = exposition::check(body(&metrics));
    let value = |name: &str, labels: &str| exposition::value(&families, name, labels);
    assert_eq!(value("mptcp_bond_state", "state=\"bonding\""), 1.0);
    assert_eq!(value("mptcp_bond_uplink_in_use", "uplink=\"wanb\""), 1.0);
    assert_eq!(value("mptcp_bond_uplink_quota_bytes", "uplink=\"wanb\""), 5e9);
    assert!(value("mptcp_bond_uplink_receive_bytes_total", "uplink=\"wan\"") > 1e6);
    assert_eq!(value("mptcp_bond_streams_open", ""), 1.0);
    let ssh = "forward=\"ssh\",protocol=\"tcp\",port=\"2222\"";
    assert_eq!(value("mptcp_bond_forward_granted", ssh), 0.0);
    assert_eq!(value("mptcp_bond_forward_connections", ssh), 0.0);
    let mut known: Vec<String> = families.into_keys().map(|(name, _)| name).collect();

    let metrics = get(&lab.server, "127.0.0.1:9484", "/metrics", "").expect("an answer");
    let families = exposition::check(body(&metrics));
    let value = |name: &str, labels: &str| exposition::value(&families, name, labels);
    assert_eq!(value("mptcp_bond_client_connected", "client=\"router\""), 1.0);
    assert!(value("mptcp_bond_client_transmit_bytes_total", "client=\"router\"") > 1e6);
    known.extend(families.into_keys().map(|(name, _)| name));
    assert_dashboard_asks_for(&known);
    let status = get(&lab.server, "127.0.0.1:9484", "/status.json", "").expect("an answer");
    assert_eq!(code(&status), "404");
    until("the server is well", LIMIT, || server.status());
}
