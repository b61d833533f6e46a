//! New keys for router and server, without an interruption.

mod attacker;
mod lab;

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use attacker::Attacker;
use lab::traffic::{Kind, TrafficServer, Transfer};
use lab::{AgentProgram, Lab, Namespace, ServerProgram, TARGET_V4, binary, until};
use mptcp_bond::config::keys::PrivateKey;
use mptcp_bond::tunnel::control::{ClientMessage, ServerMessage};
use mptcp_bond::tunnel::handshake::HandshakeError;
use mptcp_bond::tunnel::hello::Refusal;

/// How long anything may take that should happen soon.
const LIMIT: Duration = Duration::from_secs(10);
/// Bytes that show that a transfer goes on.
const SOME: u64 = 2_000_000;

/// Runs a command of the program's: exit code, and what it printed.
fn run(namespace: &Namespace, words: &[&str]) -> (Option<i32>, String) {
    let output = namespace.try_run(binary().to_str().unwrap(), words).unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&printed).into_owned())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[track_caller]
fn rotate_router(lab: &Lab, agent: &AgentProgram) {
    let (config, keys) = (text(agent.config()), text(agent.key_dir()));
    let place = ["--config", config, "--key-dir", keys, "--run-dir", text(agent.run_dir())];
    let (code, printed) = run(&lab.router, &[&["rotate-key"][..], &place].concat());
    assert!(code == Some(0) && printed.starts_with("New router key "), "{printed}");
}

fn rotate_server(lab: &Lab, server: &ServerProgram, words: &[&str]) -> (Option<i32>, String) {
    let place = ["--config", text(server.config()), "--run-dir", text(server.run_dir())];
    run(&lab.server, &[&["server", "rotate-key"], words, &place].concat())
}

fn key_in(file: &Path) -> PrivateKey {
    PrivateKey::from_file(&fs::read_to_string(file).unwrap()).unwrap()
}

fn holds(file: &Path, words: &str) -> bool {
    fs::read_to_string(file).unwrap().contains(words)
}

#[track_caller]
fn assert_goes_on(transfer: &Transfer) {
    transfer.wait_bytes(transfer.report().bytes + SOME, LIMIT);
}

#[test]
fn a_router_takes_another_key_while_data_flows() {
    let lab = Lab::two_uplinks("router-key");
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let mut server = ServerProgram::start(&lab);
    server.stop();
    server.make_service();
    server.restart();
    let mut agent = AgentProgram::start(&lab, &server);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let transfer = Transfer::download(&dialer, Transfer::ENDLESS).unwrap();
    assert_goes_on(&transfer);

    let key_file = agent.key_dir().join("agent.key");
    let mut thief = Attacker::new(&lab.target, &server.invite("thief"));
    thief.key = key_in(&key_file);
    rotate_router(&lab, &agent);
    let new = key_in(&key_file).public().to_string();
    until("the new key holds alone", LIMIT, || {
        let config = server.config();
        let alone = holds(config, &format!("public_key = \"{new}\"")) && !holds(config, "next_key");
        alone.then_some(())
    });
    let refused = thief.connect_control(None).err();
    assert_eq!(refused, Some(HandshakeError::Refused(Refusal::UnknownKey)));
    agent.wait_ready();
    assert_goes_on(&transfer);
    Transfer::download(&dialer, SOME).unwrap().finish(LIMIT).unwrap();

    // What was begun with the old key goes on over a restart, too.
    server.stop();
    server.restart();
    agent.wait_ready();
    assert_goes_on(&transfer);
    assert_eq!(transfer.stop().corrupt_at, None);
}

#[test]
fn a_crash_while_the_router_takes_another_key_shuts_nobody_out() {
    let lab = Lab::two_uplinks("half-key");
    let mut server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let mut router = Attacker::new(&lab.target, &server.invite("other"));
    router.key = key_in(&agent.key_dir().join("agent.key"));
    let next = PrivateKey::from_bytes([0x33; 32]);
    let next_file = agent.key_dir().join("agent.key.next");
    fs::write(&next_file, next.to_file().as_bytes()).unwrap();
    lab.router.run("chmod", &["600", text(&next_file)]);

    // The server has written it down, and then both are gone.
    let (mut tcp, mut channel, _) = router.handshake(&router.key, None).unwrap();
    let wish = ClientMessage::NewKey { key: next.public() };
    tcp.write_all(&channel.seal(&wish.encode()).unwrap()).unwrap();
    let mut answer = [0; 19];
    tcp.read_exact(&mut answer).unwrap();
    let answer = ServerMessage::decode(&channel.open(&answer[2..]).unwrap()).unwrap();
    assert_eq!(answer, Some(ServerMessage::KeyAccepted));
    agent.kill();
    server.kill();
    assert!(holds(server.config(), &format!("next_key = \"{}\"", next.public())));
    server.restart();
    agent.restart();

    rotate_router(&lab, &agent);
    assert!(!next_file.exists());
    until("the key of the first try holds alone", LIMIT, || {
        let config = server.config();
        let alone = holds(config, &format!("public_key = \"{}\"", next.public()));
        (alone && !holds(config, "next_key")).then_some(())
    });
    agent.wait_ready();
}

#[test]
fn a_server_takes_another_key_while_data_flows_and_waits_for_all_its_clients() {
    let lab = Lab::two_uplinks("server-key");
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let mut server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let away_invitation = server.invite("away");
    let away = Attacker::new(&lab.target, &away_invitation);
    drop(away.connect_control(Some(away.token.clone())).unwrap());
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let transfer = Transfer::download(&dialer, Transfer::ENDLESS).unwrap();
    assert_goes_on(&transfer);

    let key_file = server.config().with_file_name("server.key");
    let old_file = server.config().with_file_name("server.key.old");
    let (code, printed) = rotate_server(&lab, &server, &[]);
    assert!(code == Some(0) && printed.starts_with("New server key "), "{printed}");
    let new = key_in(&key_file).public();
    until("the router knows the new key", LIMIT, || {
        holds(agent.config(), &new.to_string()).then_some(())
    });
    assert_goes_on(&transfer);
    Transfer::download(&dialer, SOME).unwrap().finish(LIMIT).unwrap();
    assert_eq!(transfer.stop().corrupt_at, None);
    let (code, printed) = rotate_server(&lab, &server, &[]);
    assert!(code == Some(65) && printed.contains("--finish"), "{printed}");

    // The router that was away is welcome with the old key, also after a crash, and is told.
    server.kill();
    server.restart();
    let mut told = away.connect_control(None).unwrap();
    assert_eq!(told.next_message(), ServerMessage::NewServerKey { key: new });
    assert!(old_file.exists());
    let mut knowing = Attacker::new(&lab.target, &away_invitation);
    knowing.server = new;
    drop(knowing.connect_control(None).unwrap());
    until("the old key is gone", LIMIT, || (!old_file.exists()).then_some(()));
    assert!(away.connect_control(None).is_err());

    // Without waiting.
    assert_eq!(rotate_server(&lab, &server, &[]).0, Some(0));
    let newest = key_in(&key_file).public();
    until("the router knows it", LIMIT, || {
        holds(agent.config(), &newest.to_string()).then_some(())
    });
    let (code, printed) = rotate_server(&lab, &server, &["--finish"]);
    assert!(code == Some(0) && printed.starts_with("The old key holds no more"), "{printed}");
    assert!(knowing.connect_control(None).is_err());
    agent.stop();
    agent.restart();
}
