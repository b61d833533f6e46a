//! SIGKILL at any moment, then a start: everything works, and a stop restores what was there first.

use std::thread::sleep;
use std::time::Duration;

use rustix::process::Signal;

use super::lab::traffic::{Dialer, Kind, TrafficServer, Transfer};
use super::lab::{AgentProgram, Lab, NetworkState, Program, Random, ServerProgram, TARGET_V4};
use super::{LIMIT, assert_nothing_missing, assert_same, download_some, install_foreign_objects};

/// When the program is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// While it starts.
    Start,
    /// While it carries data.
    Transfer,
    /// While it stops.
    Teardown,
}

/// In this order, each a few times at random instants.
const MOMENTS: [Moment; 9] = [
    Moment::Start,
    Moment::Teardown,
    Moment::Transfer,
    Moment::Start,
    Moment::Start,
    Moment::Teardown,
    Moment::Teardown,
    Moment::Transfer,
    Moment::Teardown,
];
/// An agent's start takes about this long until the tunnel is up, and a server's until it answers.
const AGENT_START: Duration = Duration::from_millis(300);
const SERVER_START: Duration = Duration::from_millis(30);
/// A transfer is killed within this time.
const TRANSFER: Duration = Duration::from_millis(300);
/// A stop takes about this long.
const TEARDOWN: Duration = Duration::from_millis(15);

/// Kills a program at a random instant of what the moment says; the transfer it carried, if any.
fn kill_at(
    moment: Moment,
    program: &mut Program,
    start: Duration,
    dialer: &Dialer,
    random: &mut Random,
) -> Option<Transfer> {
    let mut carried = None;
    let within = match moment {
        Moment::Start => {
            program.stop();
            program.start();
            start
        }
        Moment::Transfer => {
            let transfer = Transfer::download(dialer, Transfer::ENDLESS).expect("connect");
            transfer.wait_bytes(1, LIMIT);
            carried = Some(transfer);
            TRANSFER
        }
        Moment::Teardown => {
            program.process().signal(Signal::TERM);
            TEARDOWN
        }
    };
    let after = random.between(Duration::ZERO, within);
    println!("{moment:?}: killed after {after:?}");
    sleep(after);
    program.process().kill();
    carried
}

#[test]
fn a_killed_agent_recovers() {
    let lab = Lab::two_uplinks("agent-killed");
    install_foreign_objects(&lab.router);
    let before = NetworkState::of(&lab.router);
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let running = NetworkState::of(&lab.router);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let mut random = Random::new(1);
    for moment in MOMENTS {
        if let Some(transfer) = kill_at(moment, agent.program(), AGENT_START, &dialer, &mut random)
        {
            assert_eq!(transfer.stop().corrupt_at, None);
        }
        assert_nothing_missing(&before, &NetworkState::of(&lab.router));
        agent.restart();
        assert_same("after the restart", &running, &NetworkState::of(&lab.router));
        download_some(&dialer);
    }
    agent.stop();
    assert_same("after the stop", &before, &NetworkState::of(&lab.router));
}

#[test]
fn a_killed_server_recovers() {
    let lab = Lab::two_uplinks("server-killed");
    install_foreign_objects(&lab.server);
    let before = NetworkState::of(&lab.server);
    let mut server = ServerProgram::start(&lab);
    let running = NetworkState::of(&lab.server);
    let mut agent = AgentProgram::start(&lab, &server);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let mut random = Random::new(2);
    for moment in MOMENTS {
        if let Some(transfer) =
            kill_at(moment, server.program(), SERVER_START, &dialer, &mut random)
        {
            // An end without the end record is no end of the data.
            let error = transfer.finish(LIMIT).expect_err("the server was killed");
            assert!(error.contains("reset"), "{error}");
        }
        assert_nothing_missing(&before, &NetworkState::of(&lab.server));
        server.restart();
        // No connection fails although the agent has to find out yet.
        download_some(&dialer);
        assert_same("after the restart", &running, &NetworkState::of(&lab.server));
        // Probes that a server did not answer count as lost for a while: not all uplinks are 'up'.
        agent.wait_status("the tunnel is back", |status| status["state"] == "bonding");
    }
    server.stop();
    assert_same("after the stop", &before, &NetworkState::of(&lab.server));
}
