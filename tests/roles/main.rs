//! Roles of uplinks that change while data flows: by hand, by quota, by saturation, by distance.

#[path = "../lab/mod.rs"]
mod lab;

mod by_hand;
mod floor;
mod overflow;
mod quota;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use lab::Uplink;
use lab::traffic::Transfer;

/// How long anything may take that should happen soon.
const LIMIT: Duration = Duration::from_secs(10);
/// Traffic moves within this time.
const MOVED: Duration = Duration::from_secs(6);
/// What rates are measured over.
const WINDOW: Duration = Duration::from_millis(250);

/// Bytes of each transfer that show that it goes on.
const SOME: u64 = 100_000;

/// A character sent and echoed.
#[track_caller]
fn key_stroke(mut shell: &TcpStream) {
    shell.write_all(b"x").expect("send");
    shell.read_exact(&mut [0]).expect("the echo");
}

/// Waits until each transfer has made progress from now on.
#[track_caller]
fn goes_on(transfers: &[Transfer]) {
    let progress: Vec<u64> = transfers.iter().map(|t| t.report().bytes).collect();
    for (transfer, before) in transfers.iter().zip(progress) {
        assert!(!transfer.is_finished(), "a transfer was cut off");
        transfer.wait_bytes(before + SOME, LIMIT);
    }
}

/// The rates of an uplink's device over [`WINDOW`], received and sent, as shares of what the uplink
/// can do.
fn load(uplink: &Uplink) -> (f64, f64) {
    let (rx, tx) = uplink.bytes();
    let start = Instant::now();
    std::thread::sleep(WINDOW);
    let (rx, tx) = (uplink.bytes().0.saturating_sub(rx), uplink.bytes().1.saturating_sub(tx));
    let seconds = start.elapsed().as_secs_f64();
    let share = |bytes: u64, rate: u32| bytes as f64 * 8.0 / seconds / (f64::from(rate) * 1e6);
    (share(rx, uplink.spec().rate.down), share(tx, uplink.spec().rate.up))
}

/// Whether an uplink carries data in both directions.
fn carries((rx, tx): (f64, f64)) -> bool {
    rx > 0.3 && tx > 0.3
}

/// Whether an uplink carries no data, but for probes and what else keeps standing by.
fn stands_by((rx, tx): (f64, f64)) -> bool {
    rx < 0.03 && tx < 0.03
}

/// Waits until an uplink's load meets a condition, within [`MOVED`] of `since`.
#[track_caller]
fn wait_load(
    what: &str,
    uplink: &Uplink,
    since: Instant,
    condition: fn((f64, f64)) -> bool,
) -> Duration {
    loop {
        let load = load(uplink);
        if condition(load) {
            // It held from the window's beginning on.
            return since.elapsed() - WINDOW;
        }
        assert!(since.elapsed() < MOVED + WINDOW, "{what}: {} at {load:.2?}", uplink.device());
    }
}
