//! An uplink goes in the middle of a transfer, and comes back: what the person downloading notices.

mod lab;

use std::time::{Duration, Instant};

use lab::traffic::{Kind, Report, TrafficServer, Transfer};
use lab::{AgentProgram, Direction, Lab, ServerProgram, TARGET_V4, Uplink, two_of_three, wait_for};

const SECOND: Duration = Duration::from_secs(1);
/// The share of the remaining uplink's rate that has to arrive after a cut.
const SHARE_LEFT: f64 = 0.8;
/// An uplink that is back has to carry traffic within this time.
const RETURN_LIMIT: Duration = Duration::from_secs(3);
/// Bytes on an uplink's device within [`RETURN_LIMIT`] that count as carrying traffic.
const CARRIES: u64 = 500_000;

/// How an uplink goes and comes, and the longest pause this may make.
struct Cut {
    name: &'static str,
    go: fn(&Uplink),
    come: fn(&Uplink),
    pause: Duration,
}

const CUTS: [Cut; 4] = [
    Cut {
        name: "silent black hole",
        go: |uplink| uplink.blackhole(Direction::Both),
        come: Uplink::restore,
        pause: Duration::from_millis(500),
    },
    Cut {
        name: "link down",
        go: Uplink::link_down,
        come: Uplink::link_up,
        pause: Duration::from_millis(300),
    },
    Cut {
        name: "no carrier",
        go: Uplink::carrier_down,
        come: Uplink::carrier_up,
        pause: Duration::from_millis(300),
    },
    Cut {
        name: "address lost",
        go: Uplink::drop_address,
        come: Uplink::obtain_address,
        pause: Duration::from_millis(300),
    },
];

/// Lets a transfer run on while something else is observed.
fn run_on(transfer: &Transfer, time: Duration) -> Report {
    std::thread::sleep(time);
    assert!(!transfer.is_finished(), "the connection was lost");
    transfer.report()
}

/// Cuts the faster uplink of a transfer and brings it back; gives what is wrong.
fn cut_and_return(lab: &Lab, transfer: &Transfer, cut: &Cut) -> Vec<String> {
    let mut wrong = Vec::new();
    let (faster, other) = (lab.uplink(0), lab.uplink(1));
    let left = f64::from(other.spec().rate.down);
    run_on(transfer, 3 * SECOND);
    let gone = transfer.report().at(Instant::now());
    (cut.go)(faster);
    let report = run_on(transfer, 5 * SECOND);
    let pause = report.longest_pause_since(gone);
    let goodput = report.goodput_between(gone + SECOND, gone + 5 * SECOND);
    if pause > cut.pause {
        wrong.push(format!("a pause of {pause:.2?}, more than {:.2?}", cut.pause));
    }
    if goodput < SHARE_LEFT * left {
        wrong.push(format!("{goodput:.1} of {left} Mbit/s are left"));
    }
    (cut.come)(faster);
    let back = Instant::now();
    let total = |uplink: &Uplink| uplink.bytes().0 + uplink.bytes().1;
    let before = total(faster);
    let carries = wait_for(RETURN_LIMIT, || {
        (total(faster).saturating_sub(before) > CARRIES).then(|| back.elapsed())
    });
    let report = run_on(transfer, 4 * SECOND);
    let end = report.at(Instant::now());
    let after = report.goodput_between(end - SECOND, end);
    let returned = match carries {
        Some(time) => format!("{time:.2?}"),
        None => {
            wrong.push(format!("it carries nothing {RETURN_LIMIT:.0?} after its return"));
            "not".to_owned()
        }
    };
    println!(
        "{}: pause {pause:.2?}, then {goodput:.1} Mbit/s; back after {returned}, {after:.1} Mbit/s",
        cut.name
    );
    wrong
}

#[test]
fn a_download_survives_the_loss_of_the_faster_uplink() {
    let lab = Lab::two_uplinks("failover");
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let mut wrong = Vec::new();
    let transfer = Transfer::download(&dialer, Transfer::ENDLESS).expect("start a download");
    for cut in &CUTS {
        let survived = two_of_three(|| {
            let found = cut_and_return(&lab, &transfer, cut);
            agent.wait_status("both uplinks are up again", |status| {
                let uplinks = status["uplinks"].as_array().expect("uplinks");
                uplinks.iter().all(|uplink| uplink["state"] == "up" && uplink["subflows"] != 0)
            });
            if found.is_empty() { Ok(()) } else { Err(format!("{}: {found:?}", cut.name)) }
        });
        wrong.extend(survived.err());
    }
    let report = transfer.stop();
    assert_eq!(report.corrupt_at, None);
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", agent.status_table());
}
