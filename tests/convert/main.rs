//! Bare TCP Convert (RFC 8803), spoken by a client that shares no code with the server.

#[path = "../lab/mod.rs"]
mod lab;

use std::fs;
use std::slice;
use std::thread;
use std::time::{Duration, Instant};

use lab::traffic::{Kind, Pattern, TrafficServer};
use lab::{Lab, SERVER_V4, SERVER_V6, ServerProgram, TARGET_V4, TARGET_V6, binary, until};
use rustix::process::Signal;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(10);
/// In base64 `AAECAwQFBgcICQoLDA0ODw==`.
const COOKIE: &str = "000102030405060708090a0b0c0d0e0f";
const TOML: &str = "\n[[convert]]\nname = \"plain\"\ncookie = \"AAECAwQFBgcICQoLDA0ODw==\"\n";
const ERROR: u8 = 30;
/// The server's uplink where it has a rate, 8 Mbit/s, in bytes a second.
const RATE: usize = 1_000_000;

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

/// A request for a part of the traffic server's pattern, and its answer.
fn download(target: &str, bytes: usize) -> (Value, Value) {
    let send = format!("download 5 0 {bytes}\n");
    let mut expected = vec![0; bytes];
    Pattern { seed: 5 }.fill(0, &mut expected);
    let sum: u64 = expected.iter().map(|byte| u64::from(*byte)).sum();
    (
        json!({ "target": target, "cookie": COOKIE, "send": send }),
        json!({ "tlvs": [], "bytes": bytes, "sum": sum }),
    )
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
    let fetches = targets.each_ref().map(|target| download(target, 100_000));
    let [requests, expected] = [fetches.clone().map(|it| it.0), fetches.map(|it| it.1)];
    let refused = ask(&lab, &requests[..1]);
    assert!(refused[0]["failure"].is_string(), "not unless it is allowed: {refused:?}");
    allow(&mut server);
    assert_eq!(ask(&lab, &requests), expected);
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
        let answers = ask(&lab, &requests[..1]);
        (answers[0]["tlvs"][0]["value"] == "0300").then_some(())
    });
}

/// What the server says of the bare client.
fn of_client(status: &Value) -> &Value {
    let clients = status["clients"].as_array().expect("a list");
    clients.iter().find(|client| client["name"] == "plain").expect("it is among the clients")
}

/// Waits until the bare client has a stream that carries.
fn wait_for_a_stream(server: &mut ServerProgram, bytes: usize) {
    server.wait_status("the client has a stream that carries", |status| {
        let client = of_client(status);
        client["connected"] == true
            && client["address"].is_string()
            && client["since_seconds"].is_number()
            && client["down_bytes"].as_u64() > Some(bytes as u64)
    });
}

#[test]
fn a_bare_client_is_paced_counted_and_revoked_like_others_and_outlives_a_restart() {
    let lab = Lab::two_uplinks("convert-restart");
    let _target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let mut server = ServerProgram::start_with(&lab, "rate = \"8Mbit\"\n");
    server.stop();
    server.make_service();
    server.restart();
    allow(&mut server);
    assert_eq!(of_client(&server.status().unwrap())["connected"], false);

    let (request, expected) = download(&format!("{TARGET_V4}:80"), 5 * RATE);
    let begun = Instant::now();
    let answers = thread::scope(|scope| {
        let asking = scope.spawn(|| ask(&lab, slice::from_ref(&request)));
        wait_for_a_stream(&mut server, RATE);
        assert!(server.stop().success());
        assert!(server.service().keeps(), "{}", server.process().output());
        server.restart();
        asking.join().expect("its answers")
    });
    assert_eq!(answers, [expected]);
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(4), "five seconds at this rate: {took:?}");
    server.wait_status("it has ended, and all of it is accounted for", |status| {
        let client = of_client(status);
        (&client["connected"], &client["streams"]) == (&json!(false), &json!(0))
            && client["today_down_bytes"] == 5 * RATE
    });

    let [config, run_dir] = [server.config(), server.run_dir()].map(|it| it.display().to_string());
    let of_server = |words: &[&str]| {
        let program = binary().display().to_string();
        let options = ["--config", &config, "--run-dir", &run_dir];
        lab.server.run(&program, &[&["server"], words, &options].concat())
    };
    let answers = thread::scope(|scope| {
        let asking = scope.spawn(|| ask(&lab, &[request]));
        wait_for_a_stream(&mut server, 0);
        let listed = of_server(&["clients"]);
        assert!(listed.contains("plain") && listed.contains("connected"), "{listed}");
        assert!(of_server(&["revoke", "plain"]).starts_with("Revoked 'plain'"));
        asking.join().expect("its answers")
    });
    let failure = answers[0]["failure"].as_str().expect("a failure");
    assert!(failure.contains("reset by peer"), "{failure}");
}

#[test]
fn a_server_that_is_full_says_so_to_a_bare_client() {
    let lab = Lab::two_uplinks("convert-limit");
    let _target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let mut server = ServerProgram::start_with(&lab, "streams = 1\n");
    allow(&mut server);
    let target = format!("{TARGET_V4}:80");
    let kept = json!({ "target": target, "cookie": COOKIE, "keep": true });
    let answers = ask(&lab, &[kept, json!({ "target": target, "cookie": COOKIE })]);
    assert_eq!(answers[0], json!({ "tlvs": [] }));
    assert_eq!(error(&answers[1]), "4000");
    assert_eq!(server.status().unwrap()["refusals"]["too many streams of all clients"], 1);
}

#[test]
fn what_cannot_be_served_is_answered_with_the_rfcs_errors() {
    let lab = Lab::two_uplinks("convert-errors");
    let mut server = ServerProgram::start(&lab);
    allow(&mut server);
    let v4 = format!("{TARGET_V4}:80");
    let refusing = format!("{TARGET_V4}:81");
    lab.inet.ip("route add prohibit 203.0.113.2");
    lab.inet.ip("route add blackhole 203.0.113.3");
    lab.server.ip("route add prohibit 203.0.113.4");
    lab.server.ip("-6 route delete default");
    // It gives up after three seconds instead of two minutes.
    lab.server.sysctl("net.ipv4.tcp_syn_retries", "1");
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
        ("4100", json!({ "target": "203.0.113.3:80", "cookie": COOKIE })),
        ("6100", json!({ "target": format!("[{TARGET_V6}]:80"), "cookie": COOKIE })),
        ("6101", json!({ "target": "203.0.113.2:80", "cookie": COOKIE })),
        ("610d", json!({ "target": "203.0.113.4:80", "cookie": COOKIE })),
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
