//! A stop leaves nothing, and everything foreign as it was.

use std::fs;

use rustix::process::Signal;

use super::lab::traffic::{Kind, TrafficServer, Transfer};
use super::lab::{AgentProgram, Lab, NetworkState, ServerProgram, TARGET_V4, TARGET_V6, wait_for};
use super::{
    LIMIT, assert_goes_on, assert_nothing_missing, assert_same, download_some,
    install_foreign_objects,
};

#[test]
fn a_stop_leaves_the_network_as_it_was() {
    let lab = Lab::two_uplinks("stop");
    // What was set before need not be what the program would find in a fresh namespace.
    lab.router.sysctl("net.ipv4.conf.wanb.rp_filter", "1");
    install_foreign_objects(&lab.router);
    install_foreign_objects(&lab.server);
    let router_before = NetworkState::of(&lab.router);
    let server_before = NetworkState::of(&lab.server);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let [v4, v6] = [TARGET_V4.into(), TARGET_V6.into()]
        .map(|address: std::net::IpAddr| target.dialer(&lab.lan, Kind::Tcp, address));

    let mut server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let router_with = NetworkState::of(&lab.router);
    assert_nothing_missing(&router_before, &router_with);
    assert_nothing_missing(&server_before, &NetworkState::of(&lab.server));
    let made: Vec<String> = router_before.difference(&router_with);
    for what in [
        "+ ip rule: 510:",
        "+ ip -6 rule: 510:",
        "+ ip route show table all: default",
        "+ ip -6 route show table all: default",
        "+ ip mptcp endpoint: 10.1.0.2 id 200",
        "+ ip mptcp limits: add_addr_accepted 0 subflows 8",
        "+ nft list ruleset: table inet mptcp_bond {",
        "+ sysctl",
    ] {
        assert!(made.iter().any(|line| line.starts_with(what)), "no '{what}' in {made:#?}");
    }
    for signal in [Signal::TERM, Signal::INT] {
        let [down, up] = [
            Transfer::download(&v4, Transfer::ENDLESS).expect("connect"),
            Transfer::upload(&target, &v6, Transfer::ENDLESS).expect("connect"),
        ];
        assert_goes_on(&down);
        assert_goes_on(&up);
        agent.process().signal(signal);
        let status = agent.process().wait(LIMIT).expect("the agent ends");
        assert!(status.success(), "{status}");
        assert_same("after the agent", &router_before, &NetworkState::of(&lab.router));
        for transfer in [down, up] {
            transfer.finish(LIMIT).expect_err("a connection through a stopped agent ends");
        }
        // Without the agent, the router is a router.
        download_some(&v4);
        download_some(&v6);
        assert!(agent.status().is_none());
        assert!(!agent.run_dir().join("control.sock").exists());
        assert!(!agent.run_dir().join("saved.json").exists());
        agent.restart();
    }
    assert!(server.stop().success());
    assert_same("after the server", &server_before, &NetworkState::of(&lab.server));
    assert!(!server.run_dir().join("saved.json").exists());
    assert!(agent.stop().success(), "an agent without its server stops, too");
    assert_same("after both", &router_before, &NetworkState::of(&lab.router));
}

#[test]
fn what_a_stop_cuts_off_does_not_look_complete() {
    let lab = Lab::two_uplinks("cut-off");
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::paired(&lab, &server, "");
    let paired = fs::read_to_string(agent.config()).expect("read the configuration");
    for cipher in ["auto", "none"] {
        let uci = format!("{paired}\nconfig server 'vps'\n\toption cipher '{cipher}'\n");
        fs::write(agent.config(), uci).expect("write the configuration");
        for signal in [Signal::TERM, Signal::KILL] {
            agent.restart();
            let [down, up] = [
                Transfer::download(&dialer, Transfer::ENDLESS).expect("connect"),
                Transfer::upload(&target, &dialer, Transfer::ENDLESS).expect("connect"),
            ];
            assert_goes_on(&down);
            assert_goes_on(&up);
            agent.process().signal(signal);
            agent.process().wait(LIMIT).expect("the agent ends");
            let arrived = up.recorder();
            for transfer in [down, up] {
                let error = transfer.finish(LIMIT).expect_err("it is cut off");
                assert!(error.contains("reset"), "{cipher} {signal:?}: {error}");
            }
            // Of a killed program the kernel ends MPTCP connections, and without a cipher nothing says more.
            if (cipher, signal) != ("none", Signal::KILL) {
                let broke = wait_for(LIMIT, || arrived.report().broke.then_some(()));
                assert!(broke.is_some(), "{cipher} {signal:?}: complete to the target");
            }
        }
    }
}
