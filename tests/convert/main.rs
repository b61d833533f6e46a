//! Bare TCP Convert (RFC 8803), spoken by a client that shares no code with the server.

#[path = "../lab/mod.rs"]
mod lab;

use std::fs;
use std::time::Duration;

use lab::traffic::{Kind, Pattern, TrafficServer};
use lab::{Lab, SERVER_V4, ServerProgram, TARGET_V4, TARGET_V6, until};
use rustix::process::Signal;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(10);
/// In base64 `AAECAwQFBgcICQoLDA0ODw==`.
const COOKIE: &str = "000102030405060708090a0b0c0d0e0f";
const TOML: &str = "\n[[convert]]\nname = \"plain\"\ncookie = \"AAECAwQFBgcICQoLDA0ODw==\"\n";
const ERROR: u8 = 30;

/// Runs the client on the router: what it prints, or why it failed.
fn client(lab: &Lab, arguments: &[&str]) -> Result<Value, String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/convert/client.py");
    let server = format!("{SERVER_V4}:443");
    let words = [&["-I", script, server.as_str()], arguments].concat();
    let output = lab.router.try_run("python3", &words).expect("python3");
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).expect("JSON")),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
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
    let v4 = format!("{TARGET_V4}:80");
    let fetch = |target: &str| {
        let words = ["--target", target, "--cookie", COOKIE, "--send", "download 5 0 100000\n"];
        client(&lab, &words)
    };
    assert!(fetch(&v4).is_err(), "not unless it is allowed");
    allow(&mut server);
    let mut expected = vec![0; 100_000];
    Pattern { seed: 5 }.fill(0, &mut expected);
    for target in [v4.clone(), format!("[{TARGET_V6}]:80")] {
        let answer = fetch(&target).unwrap();
        assert_eq!(answer["tlvs"], json!([]), "no error");
        assert_eq!(answer["bytes"], 100_000);
        assert_eq!(answer["sum"], expected.iter().map(|byte| u64::from(*byte)).sum::<u64>());
    }
    // Options that the kernel sends anyway: MSS, SACK permitted.
    let options = ["--options", "020405b40402"];
    let words = [&["--target", &v4, "--cookie", COOKIE, "--send", "x"][..], &options].concat();
    assert_eq!(client(&lab, &words).unwrap()["tlvs"], json!([]));
    let info = client(&lab, &["--info", "--cookie", COOKIE]).unwrap();
    assert_eq!(info["tlvs"], json!([{ "type": 21, "value": "00000304081e" }]));
    until("nothing is left", LIMIT, || (server.status()?["streams"]["open"] == 0).then_some(()));

    // The cookie is taken back.
    let text = fs::read_to_string(server.config()).unwrap();
    fs::write(server.config(), text.replace("AAEC", "BBEC")).unwrap();
    server.process().signal(Signal::HUP);
    until("the cookie does not hold", LIMIT, || {
        let answer = fetch(&v4).ok()?;
        (answer["tlvs"][0]["value"].as_str()? == "0300").then_some(())
    });
}

#[test]
fn what_cannot_be_served_is_answered_with_the_rfcs_errors() {
    let lab = Lab::two_uplinks("convert-errors");
    let mut server = ServerProgram::start(&lab);
    allow(&mut server);
    let v4 = format!("{TARGET_V4}:80");
    let connect = ["--target", &v4, "--cookie", COOKIE];
    let refusing = format!("{TARGET_V4}:81");
    let prohibited = "203.0.113.2:80";
    lab.inet.ip("route add prohibit 203.0.113.2");
    let mapped = "[::ffff:10.0.0.1]:80";
    // Code, and how the rest of the value begins.
    let cases: &[(&str, &[&str], &str)] = &[
        ("unsupported version", &[&connect[..], &["--version", "2"]].concat(), "0001"),
        ("malformed: no Connect", &["--cookie", COOKIE], "0101"),
        ("malformed: port 0", &["--target", "192.0.2.1:0", "--cookie", COOKIE], "0101"),
        ("unsupported message", &[&connect[..], &["--tlv", "99"]].concat(), "0201"),
        ("missing cookie", &["--target", &v4], "0300"),
        ("unknown cookie", &["--target", &v4, "--cookie", &COOKIE.replace('0', "1")], "0300"),
        ("not authorised", &["--target", "169.254.169.254:80", "--cookie", COOKIE], "2000"),
        ("not authorised", &["--target", mapped, "--cookie", COOKIE], "2000"),
        (
            "unsupported option",
            &[&connect[..], &["--options", "1e04000102040001"]].concat(),
            "211e",
        ),
        ("damaged options", &[&connect[..], &["--options", "02ff0000"]].concat(), "0101"),
        ("refused", &["--target", &refusing, "--cookie", COOKIE], "6000"),
        ("unreachable", &["--target", prohibited, "--cookie", COOKIE], "6101"),
    ];
    for (what, words, value) in cases {
        let answer = client(&lab, words).unwrap_or_else(|error| panic!("{what}: {error}"));
        let [tlv] = answer["tlvs"].as_array().expect("a list").as_slice() else {
            panic!("{what}: {answer}")
        };
        assert_eq!(tlv["type"], ERROR, "{what}: {answer}");
        let found = tlv["value"].as_str().unwrap();
        assert!(found.starts_with(value), "{what}: {found}");
        assert_eq!(answer["bytes"], 0, "{what}");
    }
    let refusals = server.status().unwrap()["refusals"].clone();
    assert_eq!(refusals["denied by policy"], 2, "{refusals}");
}
