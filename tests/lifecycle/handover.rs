//! The server is restarted by its service manager, and nobody notices.

use std::time::{Duration, Instant};

use super::lab::failures::{Users, all_well};
use super::lab::{AgentProgram, Lab, ServerProgram, until};
use super::{LIMIT, assert_goes_on, assert_intact};

/// How long a transfer may stand still over a restart.
const PAUSE: Duration = Duration::from_secs(2);

#[test]
fn streams_go_on_over_a_restart_of_the_server() {
    for (cipher, restarts) in [("auto", 2), ("none", 1)] {
        let lab = Lab::two_uplinks("handover");
        let mut server = ServerProgram::start(&lab);
        server.stop();
        server.make_service();
        server.restart();
        let uci = format!("config server 'vps'\n\toption cipher '{cipher}'\n");
        let mut agent = AgentProgram::start_with(&lab, &server, &uci);
        let mut users = Users::start(&lab);
        let transfers = [true, false].map(|is_download| users.transfer(is_download));
        for _ in 0..restarts {
            all_well(&mut agent);
            let begun = Instant::now();
            assert!(server.stop().success());
            assert!(server.service().keeps(), "{}", server.process().output());
            server.restart();
            until("the server is ready", LIMIT, || server.service().is_ready().then_some(()));
            println!("{cipher}: restarted in {:?}, key {:?}", begun.elapsed(), users.key());
            for transfer in &transfers {
                assert_goes_on(transfer);
                let report = transfer.report();
                let pause = report.longest_pause_since(report.at(begun));
                println!("{cipher}: paused {pause:?}");
                assert!(pause < PAUSE, "{pause:?}");
            }
            agent.wait_status("the tunnel is back", |status| status["state"] == "bonding");
        }
        transfers.into_iter().for_each(assert_intact);
    }
}
