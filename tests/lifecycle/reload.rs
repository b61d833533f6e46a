//! Changes of the configuration while data flows.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use super::lab::traffic::{Kind, TrafficServer, Transfer};
use super::lab::{AgentProgram, Lab, ServerProgram, TARGET_V4, UplinkSpec, joining_uploads, until};
use super::{LIMIT, assert_goes_on, assert_intact, download_some};

/// Whether the status lists these uplinks, all of them in use.
fn uplinks_are(names: &[&str]) -> impl Fn(&Value) -> bool {
    let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
    move |status| {
        let uplinks = status["uplinks"].as_array().cloned().unwrap_or_default();
        uplinks.iter().all(|uplink| uplink["state"] == "up" && uplink["in_use"] == true)
            && uplinks.iter().map(|uplink| &uplink["name"]).eq(names.iter())
    }
}

fn change(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).expect("read the configuration");
    assert_eq!(text.matches(from).count(), 1, "'{from}' in {text}");
    fs::write(file, text.replace(from, to)).expect("write the configuration");
}

/// The number of the line that holds a text.
fn line_of(file: &Path, text: &str) -> usize {
    let content = fs::read_to_string(file).expect("read the configuration");
    1 + content.lines().position(|line| line.contains(text)).expect("the text is there")
}

#[test]
fn a_reload_leaves_live_connections_alone() {
    let lab = Lab::builder("reload")
        .uplink(UplinkSpec::new("wan", 60).distant())
        .uplink(UplinkSpec::new("wanb", 40).distant())
        .uplink(UplinkSpec::new("lte", 30).distant());
    joining_uploads(lab, reload_beside_live_ones);
}

fn reload_beside_live_ones(lab: &Lab) {
    let server = ServerProgram::start(lab);
    let mut agent = AgentProgram::paired(lab, &server, "");
    let file = agent.config().to_owned();
    let lte = "config uplink 'lte'\n\toption device 'lte'\n";
    let wanb = "config uplink 'wanb'\n\toption device 'wanb'\n";
    change(&file, lte, "");
    agent.restart();
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let down = Transfer::download(&dialer, Transfer::ENDLESS).expect("connect");
    let up = Transfer::upload(&target, &dialer, Transfer::ENDLESS).expect("connect");
    let both_go_on = || {
        assert_goes_on(&down);
        assert_goes_on(&up);
    };
    both_go_on();

    change(&file, wanb, &format!("{wanb}\n{lte}"));
    let (received, sent) = lab.uplink(2).bytes();
    agent.reload();
    agent.wait_status("lte is in use", uplinks_are(&["wan", "wanb", "lte"]));
    until("live connections use the new uplink", LIMIT, || {
        let now = lab.uplink(2).bytes();
        (now.0 > received + super::SOME && now.1 > sent + super::SOME).then_some(())
    });

    change(&file, wanb, "");
    agent.reload();
    agent.wait_status("wanb is gone", uplinks_are(&["wan", "lte"]));
    until("its endpoints, too", LIMIT, || {
        let endpoints = lab.router.ip("mptcp endpoint");
        (endpoints.lines().count() == 4 && !endpoints.contains("wanb")).then_some(())
    });
    both_go_on();

    let session = |status: &Value| status["servers"][0]["session"].clone();
    let before = session(&agent.wait_ready());
    for cipher in ["chacha20-poly1305", "none", "aes-128-gcm"] {
        let text = fs::read_to_string(&file).expect("read the configuration");
        let others = text.lines().filter(|line| !line.contains("option cipher"));
        let with = others.flat_map(|line| match line.starts_with("config server") {
            true => vec![line.to_owned(), format!("\toption cipher '{cipher}'")],
            false => vec![line.to_owned()],
        });
        fs::write(&file, with.collect::<Vec<_>>().join("\n")).expect("write the configuration");
        agent.reload();
        agent.wait_status(cipher, |status| status["servers"][0]["cipher"] == cipher);
        both_go_on();
        download_some(&dialer);
    }
    let after = agent.wait_ready();
    assert_ne!(session(&after), before);

    fs::write(&file, fs::read_to_string(&file).unwrap() + "\n").unwrap();
    agent.reload();
    until("a reload without a change is told", LIMIT, || {
        (agent.process().output().matches("configuration reloaded").count() == 6).then_some(())
    });
    agent.process().signal(Signal::USR1);
    both_go_on();
    assert_eq!(session(&agent.wait_ready()), session(&after), "nothing changed, nothing is redone");
    both_go_on();
    assert_intact(down);
    assert_intact(up);
}

#[test]
fn a_wrong_configuration_is_refused_and_the_old_one_stays() {
    let lab = Lab::two_uplinks("wrong-reload");
    let mut server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let transfer = Transfer::download(&dialer, Transfer::ENDLESS).expect("connect");

    let file = agent.config().to_owned();
    change(&file, "\toption device 'wanb'\n", "\toption device 'wanb'\n\toption role 'bnd'\n");
    agent.reload();
    let status = agent.wait_status("the error shows", |status| status["config_error"].is_string());
    let error = status["config_error"].as_str().expect("a text");
    let place = format!("{}:{}", file.display(), line_of(&file, "bnd"));
    for part in [place.as_str(), "wanb", "role", "bnd", "bond"] {
        assert!(error.contains(part), "no '{part}' in: {error}");
    }
    assert!(agent.process().output().contains(error), "and logged");
    assert!(uplinks_are(&["wan", "wanb"])(&agent.wait_ready()));
    assert_goes_on(&transfer);
    download_some(&dialer);

    let file = server.config().to_owned();
    let good = fs::read_to_string(&file).expect("read the configuration");
    fs::write(&file, format!("metrics_listen = \"somewhere\"\n{good}")).unwrap();
    server.process().signal(Signal::HUP);
    let status = server.wait_status("the error shows", |status| status["config_error"].is_string());
    let error = status["config_error"].as_str().expect("a text");
    let place = format!("{}:{}", file.display(), line_of(&file, "somewhere"));
    for part in [place.as_str(), "metrics_listen"] {
        assert!(error.contains(part), "no '{part}' in: {error}");
    }
    assert_goes_on(&transfer);
    download_some(&dialer);
    fs::write(&file, good).expect("write the configuration");
    server.process().signal(Signal::HUP);
    server.wait_status("the error is gone", |status| status["config_error"].is_null());
    assert_intact(transfer);
}
