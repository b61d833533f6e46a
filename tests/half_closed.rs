//! Connections of which one half has ended while the other goes on: uplinks go and come meanwhile.

mod lab;

use std::time::Duration;

use lab::traffic::{Kind, TrafficServer, Transfer};
use lab::{AgentProgram, Lab, ServerProgram, TARGET_V4, Uplink, UplinkSpec, joining_uploads};

const LIMIT: Duration = Duration::from_secs(20);
/// How long all uplinks are gone.
const OUTAGE: Duration = Duration::from_secs(3);
/// Bytes by which a transfer shows that it goes on.
const GOES_ON: u64 = 2_000_000;

#[test]
fn they_outlive_each_uplink_in_turn_and_the_loss_of_all() {
    let lab = Lab::builder("half-closed")
        .uplink(UplinkSpec::new("wan", 40).distant())
        .uplink(UplinkSpec::new("wanb", 20).distant());
    joining_uploads(lab, outlive);
}

fn outlive(lab: &Lab) {
    let server = ServerProgram::start(lab);
    let mut agent = AgentProgram::start(lab, &server);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let transfers = [
        ("the client ended its half", Transfer::download_after_end(&dialer, Transfer::ENDLESS)),
        (
            "the target ended its half",
            Transfer::upload_after_end(&target, &dialer, Transfer::ENDLESS),
        ),
    ]
    .map(|(name, transfer)| (name, transfer.expect("connect")));
    let all: Vec<&Uplink> = lab.uplinks().iter().collect();
    let each = all.iter().map(std::slice::from_ref);
    for gone in each.clone().chain(each).chain([&all[..]]) {
        let devices: Vec<&str> = gone.iter().map(|uplink| uplink.device()).collect();
        let go_on = |when: &str| {
            for (name, transfer) in &transfers {
                println!("{devices:?} {when}, {name}");
                transfer.wait_bytes(transfer.report().bytes + GOES_ON, LIMIT);
            }
        };
        go_on("there");
        gone.iter().for_each(|uplink| uplink.carrier_down());
        if gone.len() < all.len() {
            go_on("gone");
        } else {
            std::thread::sleep(OUTAGE);
        }
        gone.iter().for_each(|uplink| uplink.carrier_up());
        agent.wait_ready();
    }
    for (name, transfer) in transfers {
        transfer.wait_bytes(transfer.report().bytes + GOES_ON, LIMIT);
        assert!(!transfer.is_finished(), "{name}");
        assert_eq!(transfer.stop().corrupt_at, None, "{name}");
    }
}
