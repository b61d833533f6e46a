//! Strings of others stay text, wherever they stand in a status.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::thread;

use mptcp_bond::status::{AgentSnapshot, Event, Failure, Snapshot, UplinkStatus, render_html};
use mptcp_bond::web::{Answer, Content, metrics, page};
use serde_json::{Value, json};

use super::browser::{Browser, View};
use super::exposition;
use super::lab::{AgentProgram, Lab, Namespace, ServerProgram, UplinkSpec};

/// What a browser must not take for HTML, nor a script for anything but a string.
const HOSTILE: &str =
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>&lt;\"'`${alert(3)}\u{2028}";

/// Makes every string of a JSON value hostile, but for the words that decide what is shown.
fn poison(value: &mut Value) {
    match value {
        Value::String(text) => HOSTILE.clone_into(text),
        Value::Array(values) => values.iter_mut().for_each(poison),
        Value::Object(members) => {
            let members = members.iter_mut().filter(|(name, _)| *name != "state");
            members.for_each(|(_, value)| poison(value));
        }
        _ => {}
    }
}

/// Serves a page with this status and this HTML for those without scripts.
fn serve(namespace: &Namespace, status: String, html: String) -> String {
    let listener = namespace.enter(|| TcpListener::bind("127.0.0.1:0")).expect("listen");
    let address = listener.local_addr().expect("its address");
    let names = json!({ HOSTILE: { "rx_bps": [8, 8000], "tx_bps": [0, 0], "days": [] } });
    let history = json!({ "end": 2, "span": HOSTILE, "uplinks": names }).to_string();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = String::new();
            // Whoever sends nothing is a connection opened in advance.
            let _ = BufReader::new(&stream).read_line(&mut request);
            let answer = match request.split(' ').nth(1) {
                Some("/") => Answer::of(Content::Page, page(&status, &html)),
                Some("/status.json") => Answer::of(Content::Json, status.clone()),
                Some(path) if path.starts_with("/history") => {
                    Answer::of(Content::Json, history.clone())
                }
                _ => Answer::error(404, "nothing"),
            };
            let _ = stream.write_all(&answer.bytes(true));
        }
    });
    format!("http://{address}/")
}

#[test]
fn strings_of_others_stay_text() {
    let lab = Lab::builder("web-hostile").uplink(UplinkSpec::new("wan", 20)).build();
    let server = ServerProgram::start(&lab);
    let agent = AgentProgram::start(&lab, &server);
    let mut status = agent.status().expect("a status");
    let failure = json!({ "operation": "", "error": "", "errno": null, "since_seconds": 1 });
    status["failures"] = json!([failure]);
    status["kernel"]["conflicts"] = json!([""]);
    let forward =
        json!({ "name": "", "port": 1, "target": "", "state": "", "reason": "", "connections": 0 });
    status["forwards"] = json!([forward]);
    status["config_error"] = json!("");
    poison(&mut status);
    let snapshot = Snapshot::Agent(Box::new(AgentSnapshot {
        summary: HOSTILE.into(),
        uplinks: vec![UplinkStatus {
            name: HOSTILE.into(),
            reason: HOSTILE.into(),
            ..UplinkStatus::default()
        }],
        failures: vec![Failure { operation: HOSTILE.into(), ..Failure::default() }],
        events: vec![Event { text: HOSTILE.into(), ..Event::default() }],
        ..AgentSnapshot::default()
    }));
    exposition::check(&metrics(&snapshot));

    let address = serve(&lab.router, status.to_string(), render_html(&snapshot));
    let browser = Browser::start(&lab.router);
    for (view, places, least, name) in [
        (
            View::DESKTOP,
            "#uplinks h3 b, #legend b, #events td:last-child, #problems li, #forwards td",
            7,
            "hostile",
        ),
        (View::DESKTOP.without_scripts(), "main.plain p, main.plain td", 3, "hostile-plain"),
    ] {
        let page = browser.open(&address, &view);
        // It shows as a sentence of text does: all of it, in one piece.
        let shown = format!(
            "[...document.querySelectorAll('{places}')]
             .filter(element => element.textContent.includes('<img src=x onerror=alert(2)>')).length"
        );
        page.until("hostile strings show", &format!("{shown} > {least}"));
        assert_eq!(page.evaluate("document.querySelectorAll('img').length"), 0);
        // The status and the page's own.
        assert_eq!(page.evaluate("document.scripts.length"), 2);
        page.screenshot(name);
        assert_eq!(page.complaints(), Vec::<String>::new());
    }
}
