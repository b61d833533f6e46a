//! What the programs may do once they run: no more than they need.

use std::fs;

use super::download_some;
use super::lab::traffic::{Kind, TrafficServer};
use super::lab::{AgentProgram, Lab, Process, ServerProgram, TARGET_V4};

const NOTHING: &str = "0000000000000000";
const NET_ADMIN: &str = "0000000000001000";
const NET_ADMIN_AND_BIND_SERVICE: &str = "0000000000001400";

/// Asserts that each thread has these capabilities, and can gain no others.
#[track_caller]
fn assert_capabilities(process: &Process, expected: &str) {
    let threads = fs::read_dir(format!("/proc/{}/task", process.id())).expect("it runs");
    for thread in threads {
        let path = thread.expect("a thread").path().join("status");
        let status = fs::read_to_string(path).expect("its status");
        for set in ["CapInh", "CapAmb"] {
            assert!(status.contains(&format!("{set}:\t{NOTHING}\n")), "{set} in {status}");
        }
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert!(status.contains(&format!("{set}:\t{expected}\n")), "{set} in {status}");
        }
        assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
    }
}

#[test]
fn programs_keep_no_more_privileges_than_they_need() {
    let lab = Lab::two_uplinks("privileges");
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let mut server = ServerProgram::start(&lab);
    // It has changed sysctls, and is to put them back.
    assert_capabilities(server.process(), NET_ADMIN);
    server.kill();
    fs::remove_file(server.run_dir().join("saved.json")).expect("what it would put back");
    server.restart();
    assert_capabilities(server.process(), NOTHING);

    // The server writes the router into its configuration, and the agent changes the network.
    let mut agent = AgentProgram::start(&lab, &server);
    assert_capabilities(agent.process(), NET_ADMIN_AND_BIND_SERVICE);
    download_some(&dialer);
    for status in [server.status(), agent.status()] {
        let failures = status.expect("a status")["failures"].clone();
        assert!(failures.as_array().is_none_or(Vec::is_empty), "{failures}");
    }
}
