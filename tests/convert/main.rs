//! Bare TCP Convert (RFC 8803), spoken by a client that shares no code with the server.

#[path = "../lab/mod.rs"]
mod lab;

use std::fs;
use std::time::Duration;

use lab::traffic::{Kind, Pattern, TrafficServer};
use lab::{Lab, SERVER_V4, SERVER_V6, ServerProgram, TARGET_V4, TARGET_V6, until};
use rustix::process::Signal;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(10);
/// In base64 `AAECAwQFBgcICQoLDA0ODw==`.
const COOKIE: &str = "000102030405060708090a0b0c0d0e0f";
const TOML: &str = "\n[[convert]]\nname = \"plain\"\ncookie = \"AAECAwQFBgcICQoLDA0ODw==\"\n";
const ERROR: u8 = 30;

/// Has the client make requests from the router: the answers.
fn ask(lab: &Lab, requests: &[Value]) -> Vec<Value> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/convert/client.py");
    let (server, requests) = (format!("{SERVER_V4}:443"), json!(requests).to_string());
    let output = lab.router.run("python3", &["-I", script, &server, &requests]);
    serde_json::from_str(&output).expect("JSON")
}

/// The value of the one TLV of an answer, an error.
#[track_caller]
fn error(answer: &Value) -> &str {
    let [tlv] = answer["tlvs"].as_array().expect("a list").as_slice() else { panic!("{answer}") };
    assert_eq!((&tlv["type"], &answer["bytes"]), (&json!(ERROR), &json!(0)), "{answer}");
    tlv["value"].as_str().expect("a text")
}

/// Lets bare clients in, from a configuration that does not.
fn allow(server: &mut ServerProgram) {
    let text = fs::read_to_string(server.config()).unwrap();
    fs::write(server.config(), format!("allow_plain_convert = true\n{text}{TOML}")).unwrap();
    server.process().signal(Signal::HUP);
    server.wait_status("reloaded", |status| status["events"].to_string().contains("reloaded"));
}

#[test]
fn a_client_with_a_cookie_is_served() {
    let lab = Lab::two_uplinks("convert");
    let _target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let mut server = ServerProgram::start(&lab);
    let targets = [format!("{TARGET_V4}:80"), format!("[{TARGET_V6}]:80")];
    let fetch = |target: &String| json!({ "target": target, "cookie": COOKIE, "send": "download 5 0 100000\n" });
    let refused = ask(&lab, &[fetch(&targets[0])]);
    assert!(refused[0]["failure"].is_string(), "not unless it is allowed: {refused:?}");
    allow(&mut server);
    let mut expected = vec![0; 100_000];
    Pattern { seed: 5 }.fill(0, &mut expected);
    let sum: u64 = expected.iter().map(|byte| u64::from(*byte)).sum();
    for answer in ask(&lab, &targets.each_ref().map(fetch)) {
        assert_eq!(answer, json!({ "tlvs": [], "bytes": 100_000, "sum": sum }));
    }
    let answers = ask(
        &lab,
        &[
            // Options that the kernel sends anyway: MSS, SACK permitted.
            json!({ "target": targets[0], "cookie": COOKIE, "options": "020405b40402", "send": "x" }),
            json!({ "info": true, "cookie": COOKIE }),
        ],
    );
    assert_eq!(answers[0]["tlvs"], json!([]));
    assert_eq!(answers[1]["tlvs"], json!([{ "type": 21, "value": "00000304081e" }]));
    until("nothing is left", LIMIT, || (server.status()?["streams"]["open"] == 0).then_some(()));

    // The cookie is taken back.
    let text = fs::read_to_string(server.config()).unwrap();
    fs::write(server.config(), text.replace("AAEC", "BBEC")).unwrap();
    server.process().signal(Signal::HUP);
    until("the cookie does not hold", LIMIT, || {
        let answers = ask(&lab, &[fetch(&targets[0])]);
        (answers[0]["tlvs"][0]["value"] == "0300").then_some(())
    });
}

#[test]
fn what_cannot_be_served_is_answered_with_the_rfcs_errors() {
    let lab = Lab::two_uplinks("convert-errors");
    let mut server = ServerProgram::start(&lab);
    allow(&mut server);
    let v4 = format!("{TARGET_V4}:80");
    let refusing = format!("{TARGET_V4}:81");
    lab.inet.ip("route add prohibit 203.0.113.2");
    // The code, and how the rest of the value begins.
    let cases = [
        ("0001", json!({ "target": v4, "cookie": COOKIE, "version": 2 })),
        ("0101", json!({ "cookie": COOKIE })),
        ("0101", json!({ "target": "192.0.2.1:0", "cookie": COOKIE })),
        ("0201", json!({ "target": v4, "cookie": COOKIE, "tlv": 99 })),
        ("0300", json!({ "target": v4 })),
        ("0300", json!({ "target": v4, "cookie": COOKIE.replace('0', "1") })),
        ("2000", json!({ "target": "169.254.169.254:80", "cookie": COOKIE })),
        ("211e", json!({ "target": v4, "cookie": COOKIE, "options": "1e04000102040001" })),
        ("0101", json!({ "target": v4, "cookie": COOKIE, "options": "02ff0000" })),
        ("6000", json!({ "target": refusing, "cookie": COOKIE })),
        ("6101", json!({ "target": "203.0.113.2:80", "cookie": COOKIE })),
    ];
    let answers = ask(&lab, &cases.clone().map(|(_, request)| request));
    for ((value, request), answer) in cases.iter().zip(&answers) {
        assert!(error(answer).starts_with(value), "{request}: {answer}");
    }
    assert_eq!(answers.len(), cases.len());
}

/// A router would send none of these to the server; somebody who has its key would.
#[test]
fn the_servers_own_network_cannot_be_reached_whatever_the_address_looks_like() {
    let lab = Lab::two_uplinks("convert-denied");
    let mut server = ServerProgram::start(&lab);
    allow(&mut server);
    // Open to whoever reaches it.
    let _service = TrafficServer::start(&lab.server, Kind::Tcp, 5000);
    let (own_v4, own_v6) = (SERVER_V4.to_string(), format!("[{SERVER_V6}]"));
    let mapped = format!("[::ffff:{SERVER_V4}]");
    let [a, b, c, d] = SERVER_V4.octets();
    let sixtofour = format!("[2002:{a:02x}{b:02x}:{c:02x}{d:02x}::1]");
    let nat64 = format!("[64:ff9b::{SERVER_V4}]");
    let compatible = format!("[::{SERVER_V4}]");
    let denied = [
        "127.0.0.1",
        "127.1.2.3",
        "0.1.2.3",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:7f00:1::1]",
        "169.254.169.254",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::169.254.169.254]",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "10.0.0.1",
        "192.168.0.1",
        &own_v4,
        &own_v6,
        &mapped,
        &sixtofour,
        &nat64,
        &compatible,
    ];
    let request = |host: &&str| json!({ "target": format!("{host}:5000"), "cookie": COOKIE, "send": "echo\n!" });
    let answers = ask(&lab, &denied.iter().map(request).collect::<Vec<_>>());
    for (host, answer) in denied.iter().zip(&answers) {
        assert_eq!(error(answer), "2000", "{host}");
    }
    assert_eq!(server.status().unwrap()["refusals"]["denied by policy"], denied.len());

    // Addresses that are no host's are not even a target.
    let nobody =
        ["0.0.0.0", "255.255.255.255", "224.0.0.1", "[::]", "[ff02::1]", "[::ffff:0.0.0.0]"];
    for (host, answer) in nobody.iter().zip(&ask(&lab, &nobody.each_ref().map(request))) {
        assert!(error(answer).starts_with("01"), "{host}: {answer}");
    }
}
