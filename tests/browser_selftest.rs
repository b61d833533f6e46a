//! The tests' browser notices what it is there to notice: a page in order passes, and each kind of
//! disorder is told.

mod browser;
mod lab;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use browser::{Browser, Page, View};
use lab::{Namespace, until};

/// How long anything may take that should happen soon.
const LIMIT: Duration = Duration::from_secs(10);

const PAGE: &str = "<!doctype html><title>A page</title>
<meta name=viewport content='width=device-width'><style>
    body { margin: 0; color: rgb(0, 0, 0) }
    @media (prefers-color-scheme: dark) { body { color: rgb(255, 255, 255) } }
    @media (forced-colors: active) { body { margin: 7px } }
    #cover { position: fixed; inset: 0 }
</style>
<p id=first>A line</p><input id=field value=before><button id=button>Press</button>
<select id=list><option>one<option>two</select><noscript>No scripts</noscript>
<script>
    const show = text => { document.title = text };
    field.onchange = () => show('field: ' + field.value);
    button.onclick = event => show('clicked: ' + event.isTrusted);
    list.onchange = () => show('list: ' + list.value);
</script>";

/// Serves [`PAGE`] with a strict content security policy at `/strict`, and freely elsewhere.
fn serve(namespace: &Namespace) -> String {
    let listener = namespace.enter(|| TcpListener::bind("127.0.0.1:0")).expect("listen");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = String::new();
            // Whoever sends nothing is a connection opened in advance.
            let _ = BufReader::new(&stream).read_line(&mut request);
            let policy = if request.contains("/strict") { "script-src 'none'" } else { "" };
            let status = if request.contains("/missing") { "404 Not Found" } else { "200 OK" };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Security-Policy: {policy}\r\n\
                 Set-Cookie: seen=1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                PAGE.len()
            );
            let _ =
                stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(PAGE.as_bytes()));
        }
    });
    format!("http://{address}")
}

#[track_caller]
fn assert_complains(page: &Page, action: &str, expected: &[&str]) {
    page.evaluate(action);
    let mut complaints = Vec::new();
    until(&format!("{action} is complained of"), LIMIT, || {
        complaints.append(&mut page.complaints());
        (complaints.len() >= expected.len()).then_some(())
    });
    println!("{action}: {complaints:?}");
    assert_eq!(complaints.len(), expected.len(), "{action}: {complaints:?}");
    for (complaint, expected) in complaints.iter().zip(expected) {
        assert!(complaint.contains(expected), "{action}: {complaint}");
    }
}

#[test]
fn what_a_page_does_is_noticed() {
    let namespace = Namespace::create("browser");
    let address = serve(&namespace);
    let browser = Browser::start(&namespace);

    let page = browser.open(&address, &View::DESKTOP);
    page.until_text("#first", "A line");
    page.fill("#field", "after & <b>");
    page.press("Enter");
    assert_eq!(page.evaluate("document.title"), "field: after & <b>");
    page.click("#button");
    assert_eq!(page.evaluate("document.title"), "clicked: true");
    page.press("Tab");
    assert_eq!(page.evaluate("document.activeElement.id"), "list");
    page.choose("#list", "two");
    assert_eq!(page.evaluate("document.title"), "list: two");
    assert_eq!(page.evaluate("document.cookie"), "seen=1");
    page.reload();
    assert_eq!(page.evaluate("document.title"), "A page");
    assert_eq!((page.complaints(), page.layout_shifts().0), (Vec::new(), 0.0));

    assert_complains(&page, "console.error('no', 1)", &["console: no 1"]);
    assert_complains(&page, "void setTimeout(() => absent())", &["absent is not defined"]);
    assert_complains(&page, "fetch('/missing').then(() => 0)", &["404"]);
    assert_complains(&page, "void alert('boo')", &["dialogue: boo"]);
    assert!(page.try_evaluate("absent()").is_err_and(|error| error.contains("absent")));

    // In a new document: what follows input within half a second does not count.
    page.reload();
    // Nor does what moves before it was painted, so it moves again and again.
    page.until(
        "the layout shift is told",
        "new Promise(requestAnimationFrame).then(() => {
            first.style.marginTop = first.style.marginTop ? '' : '300px';
            return layoutShifts.sum > 0.01;
        })",
    );
    assert!(page.layout_shifts().1.iter().any(|source| source.contains("first")));

    let strict = browser.open(&format!("{address}/strict"), &View::DESKTOP);
    let complaints = strict.complaints();
    assert!(complaints.iter().any(|text| text.contains("Content Security")), "{complaints:?}");
}

#[test]
fn a_page_is_seen_as_its_user_sees_it() {
    let namespace = Namespace::create("views");
    let address = serve(&namespace);
    let browser = Browser::start(&namespace);
    let style =
        |page: &Page, name: &str| page.evaluate(&format!("getComputedStyle(document.body).{name}"));

    let page = browser.open(&address, &View::DESKTOP);
    assert_eq!(style(&page, "color"), "rgb(0, 0, 0)");
    page.show(&View::PHONE.dark().forced_colors());
    assert_eq!(
        (style(&page, "marginTop"), page.evaluate("innerWidth")),
        ("7px".into(), 390.into())
    );
    page.show(&View::DESKTOP.dark());
    assert_eq!(style(&page, "color"), "rgb(255, 255, 255)");
    assert!(!page.visible_text("body").contains("No scripts"));

    let page = browser.open(&address, &View::DESKTOP.without_scripts());
    page.until_text("body", "No scripts");
    let picture = std::fs::read(page.screenshot("browser-selftest")).expect("a picture");
    assert!(picture.starts_with(b"\x89PNG") && picture.len() > 1000);
}
