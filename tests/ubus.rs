//! The agent on ubus, as LuCI and scripts use it: methods, their errors, events, and a bus that goes
//! and comes back. Each test runs on a double of ubusd, and on the genuine one where it is installed.

mod lab;
mod openwrt;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use lab::traffic::{Kind as Traffic, TrafficServer, Transfer};
use lab::{
    AgentProgram, Lab, Namespace, Process, ServerProgram, TARGET_V4, two_of_three, ubus_socket,
    until,
};
use mptcp_bond::ubus::Status;
use openwrt::{Failed, Kind, Netifd, UbusClient, Ubusd, interface_down};
use serde_json::{Value, json};

const OBJECT: &str = "mptcp-bond";
/// How long anything may take that should happen soon.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a method may take while traffic runs.
const METHOD_LIMIT: Duration = Duration::from_millis(50);
/// How long the object may be away after a restart of ubusd.
const BACK_LIMIT: Duration = Duration::from_secs(2);

/// A client on a bus on which the agent has published its object.
#[track_caller]
fn connected(socket: &Path) -> UbusClient {
    let mut client = UbusClient::connect(socket).expect("connect to ubusd");
    until("the object is there", LIMIT, || client.lookup(OBJECT));
    client
}

/// The status that a call fails with; what it says in words goes to standard output.
#[track_caller]
fn failure(client: &mut UbusClient, method: &str, arguments: Value) -> Status {
    let Failed(status, words) = client
        .call(OBJECT, method, arguments.clone())
        .expect_err(&format!("{method} {arguments} must fail"));
    println!("{method} {arguments}: {status:?} {words}");
    assert!(words["error"].as_str().is_some_and(|text| !text.is_empty()), "{method}: {words}");
    status
}

/// Waits for an event and for a notification that fulfil a condition.
#[track_caller]
fn wait_told(client: &mut UbusClient, name: &str, condition: impl Fn(&Value) -> bool) {
    let mut missing = vec![format!("{OBJECT}.{name}"), name.to_owned()];
    until(&format!("an event and a notification '{name}'"), LIMIT, || {
        let message = client.next(LIMIT).expect("receive from ubusd")?;
        let data = Value::Object(message.attributes.data.unwrap_or_default());
        if condition(&data) {
            missing.retain(|name| Some(name) != message.attributes.method.as_ref());
        }
        missing.is_empty().then_some(())
    });
}

#[test]
fn the_object_does_what_the_control_socket_does() {
    let lab = Lab::two_uplinks("ubus");
    let server = ServerProgram::start(&lab);
    let agent = AgentProgram::start(&lab, &server);
    let target = TrafficServer::start(&lab.target, Traffic::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Traffic::Tcp, TARGET_V4);
    let transfer = Transfer::download(&dialer, Transfer::ENDLESS).expect("connect");
    let socket = ubus_socket(&lab);
    for kind in Kind::all() {
        println!("{kind:?} ubusd");
        let _ubusd = Ubusd::start(kind, &lab.router, &socket);
        let mut client = connected(&socket);
        assert_signatures(&mut client);
        assert_answers_are_fast(&mut client);
        assert_checks(&mut client);
        assert_roles_and_events(&mut client, &socket);
        assert_errors(&mut client, &agent);
        assert_pairs(&mut client, kind, &server, &agent);
    }
    assert!(!transfer.is_finished(), "the download was cut off");
    assert_eq!(transfer.stop().corrupt_at, None);
}

#[track_caller]
fn assert_signatures(client: &mut UbusClient) {
    let (_, signature) = client.lookup(OBJECT).expect("the object");
    let expected = json!({
        "status": {}, "connections": {}, "check": {}, "reload": {}, "history": { "span": 3 },
        "uplink": { "name": 3, "role": 3 }, "pair": { "uri": 3 },
    });
    assert_eq!(Value::Object(signature), expected);
}

#[track_caller]
fn assert_answers_are_fast(client: &mut UbusClient) {
    let (object, _) = client.lookup(OBJECT).expect("the object");
    let role = json!({ "name": "wan", "role": "default" });
    let reads = ["status", "connections", "history"].map(|method| (method, json!({})));
    let calls = reads.into_iter().chain([("uplink", role)]);
    for (method, arguments) in calls.chain([("reload", json!({}))]) {
        let answered = two_of_three(|| {
            let mut times: Vec<Duration> = (0..9)
                .map(|_| {
                    let asked = Instant::now();
                    client.invoke(object, method, arguments.clone()).expect("an answer");
                    asked.elapsed()
                })
                .collect();
            times.sort();
            println!("{method}: {:?}, at most {:?}", times[4], times[8]);
            if times[4] < METHOD_LIMIT { Ok(()) } else { Err(times) }
        });
        answered.unwrap_or_else(|times| panic!("{method}: {times:?}"));
    }
    let status = client.invoke(object, "status", json!({ "ubus_rpc_session": "0" }));
    let status = status.expect("rpcd's session does no harm");
    assert_eq!((&status["role"], &status["state"]), (&json!("agent"), &json!("bonding")));
    until("a second of the download", LIMIT, || {
        let history = client.invoke(object, "history", json!({})).expect("an answer");
        let received = history["uplinks"]["wan"]["rx_bps"].as_array()?.iter();
        received.filter_map(Value::as_u64).any(|bps| bps > 1_000_000).then_some(())
    });
    let minutes = client.invoke(object, "history", json!({ "span": "minutes" }));
    assert_eq!(minutes.expect("an answer")["span"], "minutes");
    let connections = client.invoke(object, "connections", json!({})).expect("an answer");
    assert_eq!((&connections["total"], &connections["top"][0]["subflows"]), (&json!(1), &json!(2)));
}

/// A check takes seconds: whoever asks is told that it runs, until its report is there.
#[track_caller]
fn assert_checks(client: &mut UbusClient) {
    let asked = Instant::now();
    client.call(OBJECT, "check", json!({})).expect("an answer");
    println!("check: {:?}", asked.elapsed());
    let answer = until("the report of a check", LIMIT, || {
        let answer = client.call(OBJECT, "check", json!({})).expect("an answer");
        (answer["running"] == false).then_some(answer)
    });
    assert_eq!(answer["report"]["uplinks"][1]["name"], "wanb", "{answer:#}");
}

#[track_caller]
fn assert_roles_and_events(client: &mut UbusClient, socket: &Path) {
    let mut listener = UbusClient::connect(socket).expect("connect to ubusd");
    listener.listen(OBJECT, "mptcp-bond.*");
    let role = |role: &str| json!({ "name": "wanb", "role": role });
    let outcome = client.call(OBJECT, "uplink", role("off")).expect("another role");
    assert_eq!((&outcome["role"], &outcome["configured"]), (&json!("off"), &json!("bond")));
    wait_told(&mut listener, "uplink", |told| {
        told["uplink"] == "wanb" && told["used_as"] == "unused"
    });
    client.call(OBJECT, "uplink", role("default")).expect("the configured role");
    wait_told(&mut listener, "uplink", |told| {
        told["uplink"] == "wanb" && told["used_as"] == "active"
    });
}

#[track_caller]
fn assert_errors(client: &mut UbusClient, agent: &AgentProgram) {
    let mut fails = |method, arguments| failure(client, method, arguments);
    assert_eq!(fails("monitor", json!({})), Status::METHOD_NOT_FOUND);
    assert_eq!(fails("status", json!({ "style": {} })), Status::INVALID_ARGUMENT);
    assert_eq!(fails("history", json!({ "span": "years" })), Status::INVALID_ARGUMENT);
    assert_eq!(fails("uplink", json!({})), Status::INVALID_ARGUMENT);
    assert_eq!(fails("uplink", json!({ "name": 5, "role": "off" })), Status::INVALID_ARGUMENT);
    let role = json!({ "name": "wan", "role": "fast" });
    assert_eq!(fails("uplink", role), Status::INVALID_ARGUMENT);
    let stranger = json!({ "name": "lte", "role": "off" });
    assert_eq!(fails("uplink", stranger), Status::NOT_FOUND);
    assert_eq!(fails("pair", json!({ "uri": "http://example.net" })), Status::INVALID_ARGUMENT);
    assert_eq!(fails("pair", json!({ "uri": ["secret"] })), Status::INVALID_ARGUMENT);

    let config = fs::read_to_string(agent.config()).expect("read the configuration");
    fs::write(agent.config(), format!("{config}\nconfig nonsense\n")).expect("write it");
    assert_eq!(fails("reload", json!({})), Status::PARSE_ERROR);
    fs::write(agent.config(), config).expect("write the configuration");
    client.call(OBJECT, "reload", json!({})).expect("the configuration is right again");

    // Arguments that cannot be read: an INVOKE whose DATA holds a name longer than itself.
    let (object, _) = client.lookup(OBJECT).expect("the object");
    let body =
        [&object.to_be_bytes()[..], b"\x04\0\0\x0bstatus\0\0\x07\0\0\x0c\x83\0\0\x08\xff\xff\0\0"];
    let body = [b"\x03\0\0\x08", &body.concat()[..]].concat();
    let head = [&[0, 5, 0x77, 0x77], &object.to_be_bytes()[..]].concat();
    let length = (body.len() as u32 + 4).to_be_bytes();
    client.send_raw(&[&head, &length[..], &body].concat()).expect("send to ubusd");
    assert_eq!(client.answers(0x7777).0, Status::INVALID_ARGUMENT);
}

#[track_caller]
fn assert_pairs(client: &mut UbusClient, kind: Kind, server: &ServerProgram, agent: &AgentProgram) {
    let uri = server.invite(&format!("again-{kind:?}"));
    let token = uri.split("token=").nth(1).and_then(|rest| rest.split('&').next());
    let token = token.expect("a token");
    let nobody = uri.replace(":443/", ":444/");
    assert_eq!(failure(client, "pair", json!({ "uri": nobody })), Status::CONNECTION_FAILED);
    let asked = Instant::now();
    let paired = client.call(OBJECT, "pair", json!({ "uri": uri })).expect("the router is paired");
    println!("pair: {:?}", asked.elapsed());
    let report = paired["report"].as_str().unwrap_or_default();
    assert!(report.starts_with("Paired with ") && !report.contains(token), "{report}");
    let log = agent.log();
    assert!(!log.contains(token), "{log}");
}

/// An agent without a configuration, and netifd, on a bus that is restarted.
#[test]
fn ubusd_may_be_restarted_time_and_again() {
    let folder = tempfile::tempdir_in("/run").expect("make a directory in /run");
    let namespace = Namespace::create("restarts");
    let socket = folder.path().join("ubus.sock");
    let mut command = Command::new(lab::binary());
    command.arg("agent").arg("--stderr");
    for (option, name) in [
        ("--config", "mptcpd"),
        ("--run-dir", "run"),
        ("--key-dir", "keys"),
        ("--ubus-socket", "ubus.sock"),
    ] {
        command.arg(option).arg(folder.path().join(name));
    }
    let mut agent = Process::start(&namespace, folder.path(), "agent", command);
    let _netifd = Netifd::start(&socket, vec![interface_down("wan")]);
    for kind in Kind::all() {
        for _ in 0..10 {
            let ubusd = Ubusd::start(kind, &namespace, &socket);
            let started = Instant::now();
            let mut client = connected(&socket);
            let away = started.elapsed();
            assert!(away < BACK_LIMIT, "{kind:?}: the object was away for {away:?}");
            let status = client.call(OBJECT, "status", json!({})).expect("a status");
            assert_eq!(status["state"], "unconfigured");
            drop(ubusd);
        }
    }
    assert!(agent.is_running(), "{}", agent.output());
    assert_eq!(agent.output().lines().count(), 1, "{}", agent.output());
}
