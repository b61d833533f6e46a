//! A page: what it shows, and what it complains of.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::{Browser, View};
use crate::lab::wait_for;

/// How long anything may take that should happen soon.
const LIMIT: Duration = Duration::from_secs(30);
/// Garbage is collected so often to see what is kept,
const COLLECTIONS: u32 = 5;
/// in this distance.
const BETWEEN_COLLECTIONS: Duration = Duration::from_millis(200);

/// Runs before a page's own scripts: adds up the layout shifts that no input explains.
const WATCH_SHIFTS: &str = "
    window.layoutShifts = { sum: 0, sources: [] };
    new PerformanceObserver(list => {
        for (const entry of list.getEntries().filter(entry => !entry.hadRecentInput)) {
            layoutShifts.sum += entry.value;
            for (const source of entry.sources)
                layoutShifts.sources.push(source.node?.outerHTML?.slice(0, 120) ?? 'a text');
        }
    }).observe({ type: 'layout-shift', buffered: true });
";

/// A page (tab); it closes when this is dropped.
pub struct Page<'browser> {
    browser: &'browser Browser,
    context: Value,
    session: String,
}

impl<'browser> Page<'browser> {
    #[track_caller]
    pub(super) fn new(browser: &'browser Browser, view: &View) -> Page<'browser> {
        let context = browser.call("Target.createBrowserContext", json!({}));
        let context = context["browserContextId"].clone();
        let target = browser.call(
            "Target.createTarget",
            json!({ "url": "about:blank", "browserContextId": context }),
        );
        let attached = browser.call(
            "Target.attachToTarget",
            json!({ "targetId": target["targetId"], "flatten": true }),
        );
        let session = attached["sessionId"].as_str().expect("a session").to_owned();
        let page = Page { browser, context, session };
        for domain in ["Page", "Runtime", "Log"] {
            page.call(&format!("{domain}.enable"), json!({}));
        }
        page.call("Page.addScriptToEvaluateOnNewDocument", json!({ "source": WATCH_SHIFTS }));
        page.show(view);
        page
    }

    /// Calls a method of the DevTools protocol.
    #[track_caller]
    pub fn call(&self, method: &str, parameters: Value) -> Value {
        self.browser.call_session(&self.session, method, parameters)
    }

    /// Looks at it in another way.
    #[track_caller]
    pub fn show(&self, view: &View) {
        for (method, parameters) in view.calls() {
            self.call(method, parameters);
        }
    }

    /// Goes to an address and waits until it is loaded.
    #[track_caller]
    pub fn go(&self, address: &str) {
        let answer = self.call("Page.navigate", json!({ "url": address }));
        assert!(answer["errorText"].is_null(), "{address}: {}", answer["errorText"]);
        self.until("it is loaded", "document.readyState === 'complete'");
    }

    /// Loads it again.
    #[track_caller]
    pub fn reload(&self) {
        self.evaluate("void (window.outdated = true)");
        self.call("Page.reload", json!({}));
        self.until("it is loaded", "!window.outdated && document.readyState === 'complete'");
    }

    /// The value of a JavaScript expression; that of a promise is waited for.
    #[track_caller]
    pub fn evaluate(&self, expression: &str) -> Value {
        match self.try_evaluate(expression) {
            Ok(value) => value,
            Err(error) => panic!("{expression}: {error}"),
        }
    }

    /// The same, with what it throws.
    #[track_caller]
    pub fn try_evaluate(&self, expression: &str) -> Result<Value, String> {
        let parameters =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut answer = self.call("Runtime.evaluate", parameters);
        match answer.get("exceptionDetails") {
            Some(details) => Err(exception(details)),
            None => Ok(answer["result"]["value"].take()),
        }
    }

    /// Waits until an expression is true (for JavaScript), and gives its value.
    #[track_caller]
    pub fn until(&self, what: &str, expression: &str) -> Value {
        self.until_within(LIMIT, what, expression)
    }

    /// The same, within a given time.
    #[track_caller]
    pub fn until_within(&self, limit: Duration, what: &str, expression: &str) -> Value {
        let asked =
            format!("(async () => {{ const v = await ({expression}); return [!!v, v]; }})()");
        let mut last = Err("never tried".to_owned());
        // What is thrown on the way may be the document just changing.
        let met = wait_for(limit, || {
            last = self.try_evaluate(&asked);
            last.as_ref().ok().filter(|value| value[0] == true).map(|value| value[1].clone())
        });
        met.unwrap_or_else(|| {
            panic!(
                "waited {limit:?} in vain: {what}: {expression}: {last:?}\n{}\ncomplaints: {:#?}",
                self.visible_text("body"),
                self.complaints()
            )
        })
    }

    /// The visible text of the first element that a selector finds; empty where there is none.
    #[track_caller]
    pub fn visible_text(&self, selector: &str) -> String {
        let text =
            self.evaluate(&format!("document.querySelector({})?.innerText ?? ''", json!(selector)));
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until an element shows a text.
    #[track_caller]
    pub fn until_text(&self, selector: &str, text: &str) {
        let expression = format!(
            "document.querySelector({})?.innerText.includes({})",
            json!(selector),
            json!(text)
        );
        self.until(&format!("{selector} shows '{text}'"), &expression);
    }

    /// Saves a picture of the whole page as `target/screenshots/NAME.png`.
    #[track_caller]
    pub fn screenshot(&self, name: &str) -> PathBuf {
        let layout = self.call("Page.getLayoutMetrics", json!({}));
        let size = &layout["cssContentSize"];
        let clip = json!({
            "x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1,
        });
        let parameters = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
        let picture = self.call("Page.captureScreenshot", parameters);
        let picture = BASE64_STANDARD.decode(picture["data"].as_str().unwrap_or_default());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("screenshots");
        let path = folder.join(format!("{name}.png"));
        fs::create_dir_all(&folder).expect("make a directory");
        fs::write(&path, picture.expect("a picture in base64")).expect("write a picture");
        path
    }

    /// Errors of its console, exceptions, violations of its content security policy, failed loads and
    /// dialogues, since the last time.
    #[track_caller]
    pub fn complaints(&self) -> Vec<String> {
        // Whatever has happened is told before this is answered.
        self.call("Page.getFrameTree", json!({}));
        let events = self.browser.connection.borrow_mut().take_events(&self.session);
        events.iter().filter_map(complaint).collect()
    }

    /// The sum of all layout shifts since it was loaded, and what was shifted: 0 is steady.
    ///
    /// See <https://web.dev/articles/cls>. Without scripts there is nothing to see.
    #[track_caller]
    pub fn layout_shifts(&self) -> (f64, Vec<String>) {
        let shifts = self.evaluate("layoutShifts");
        let sources = shifts["sources"].as_array().cloned().unwrap_or_default();
        let sources = sources.iter().map(|source| source.as_str().unwrap_or_default().to_owned());
        (shifts["sum"].as_f64().expect("the sum of layout shifts"), sources.collect())
    }

    /// Bytes that its scripts keep: the least of several garbage collections, as they may be working at one.
    #[track_caller]
    pub fn heap_bytes(&self) -> u64 {
        let used = || {
            sleep(BETWEEN_COLLECTIONS);
            self.call("HeapProfiler.collectGarbage", json!({}));
            let usage = self.call("Runtime.getHeapUsage", json!({}));
            usage["usedSize"].as_f64().expect("the size of the heap") as u64
        };
        (0..COLLECTIONS).map(|_| used()).min().unwrap_or_default()
    }
}

impl Drop for Page<'_> {
    fn drop(&mut self) {
        // The browser may have ended; a second panic would hide the first.
        let parameters = json!({ "browserContextId": self.context });
        let mut connection = self.browser.connection.borrow_mut();
        let _ = connection.call("", "Target.disposeBrowserContext", parameters);
        connection.take_events(&self.session);
    }
}

fn complaint(event: &Value) -> Option<String> {
    let parameters = &event["params"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match event["method"].as_str()? {
        "Runtime.exceptionThrown" => {
            Some(format!("exception: {}", exception(&parameters["exceptionDetails"])))
        }
        "Runtime.consoleAPICalled"
            if ["error", "assert"].contains(&parameters["type"].as_str()?) =>
        {
            let words = parameters["args"].as_array()?.iter();
            let words = words.map(|word| text(&word["description"]) + &text(&word["value"]));
            Some(format!("console: {}", words.collect::<Vec<_>>().join(" ")))
        }
        "Log.entryAdded" if parameters["entry"]["level"] == "error" => {
            let entry = &parameters["entry"];
            let [source, words, url] = ["source", "text", "url"].map(|name| text(&entry[name]));
            Some(format!("{source}: {words} {url}"))
        }
        "Page.javascriptDialogOpening" => {
            Some(format!("dialogue: {}", text(&parameters["message"])))
        }
        _ => None,
    }
}

/// An exception in words.
fn exception(details: &Value) -> String {
    let description = details["exception"]["description"].as_str();
    description.or(details["text"].as_str()).unwrap_or("an exception").to_owned()
}
