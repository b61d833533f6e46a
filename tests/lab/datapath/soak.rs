//! Small requests for a long time, or many bytes: what grows.

use std::fmt::Write;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::contenders::{Contender, Running};
use crate::lab::wait_for;
use crate::load::{Target, Transfers, Wish};
use crate::{Options, steered, unshaped};

/// Requests made at a time, so that nothing else on the machine starves.
const WORKERS: usize = 16;
/// So many times it is looked at.
const LOOKS: u32 = 5;
/// What is closed is forgotten, and warm connections that are not asked for any more are closed, within
/// this time.
const SETTLING: Duration = Duration::from_secs(10);

/// Transfers at a time.
const TRANSFERS: usize = 10;
/// So many times downloads, and as often uploads, begin anew.
const ROUNDS: u64 = 10;
/// What transfers held is given back within this time.
const REST: Duration = Duration::from_secs(3);
/// Without a byte for so long it is over.
const STALL: Duration = Duration::from_secs(30);

/// What the programs hold after so many requests, or bytes.
pub fn measure(options: &Options) -> String {
    let mut text = match options.bytes {
        Some(bytes) => format!(
            "{:.0} GB, {TRANSFERS} downloads at a time and {TRANSFERS} uploads, in turn: what router + server \
             hold while they run and after they have ended.\n\n\
             | relay | GB | way | Gbit/s | ended early | busy MB | open files | at rest MB | open files |\n\
             |---|---|---|---|---|---|---|---|---|\n",
            bytes as f64 / 1e9
        ),
        None => format!(
            "Small requests for {} s, each on a connection of its own, {WORKERS} at a time: what router + server \
             hold when nothing is open.\n\n\
             | relay | requests | failed | resident MB | open files |\n|---|---|---|---|---|\n",
            options.soak.as_secs()
        ),
    };
    for contender in options.contenders() {
        match options.bytes {
            Some(bytes) => transfer(contender, options, bytes, &mut text),
            None => request(contender, options, &mut text),
        }
    }
    text
}

fn request(contender: Contender, options: &Options, text: &mut String) {
    let lab = unshaped(options);
    let target = Target::start(&lab);
    let mut running = contender.start(&lab);
    let (mut answered, mut failures) = (0, Vec::new());
    for _ in 0..LOOKS {
        let hails = target.hail(WORKERS, options.soak / LOOKS);
        answered += hails.answered;
        failures.extend(hails.failures);
        sleep(SETTLING);
        let (name, held) = (contender.name(), held(&mut running));
        let line = format!("| {name} | {answered} | {} | {held} |", failures.len());
        eprintln!("{line} {}", failures.first().cloned().unwrap_or_default());
        let _ = writeln!(text, "{line}");
    }
}

fn transfer(contender: Contender, options: &Options, bytes: u64, text: &mut String) {
    let lab = steered(options);
    let target = Target::start(&lab);
    let mut running = contender.start(&lab);
    for part in 1..=2 * ROUNDS {
        let (wish, way) = [(Wish::Upload, "up"), (Wish::Download, "down")][part as usize % 2];
        let (begun, before) = (Instant::now(), target.arrived());
        let transfers = target.transfer(wish, TRANSFERS);
        let complete = wait_arrived(&target, &transfers, bytes * part / (2 * ROUNDS));
        let rate = (target.arrived() - before) as f64 * 8e-9 / begun.elapsed().as_secs_f64();
        let (busy, ended) = (held(&mut running), transfers.ended());
        drop(transfers);
        sleep(REST);
        let (name, moved, rest) =
            (contender.name(), target.arrived() / 1_000_000_000, held(&mut running));
        let line = format!("| {name} | {moved} | {way} | {rate:.1} | {ended} | {busy} | {rest} |");
        eprintln!("{line}");
        let _ = writeln!(text, "{line}");
        if !complete {
            let _ =
                writeln!(text, "| {name} | stopped: nothing arrived for {} s |", STALL.as_secs());
            return;
        }
    }
}

/// Waits until so many bytes have arrived; false when no more come.
fn wait_arrived(target: &Target, transfers: &Transfers, bytes: u64) -> bool {
    loop {
        let before = target.arrived();
        if before >= bytes {
            return true;
        }
        let all_ended = transfers.ended() == TRANSFERS;
        if all_ended || wait_for(STALL, || (target.arrived() > before).then_some(())).is_none() {
            return false;
        }
    }
}

fn held(running: &mut Running) -> String {
    let [router, server] =
        running.processes().map(|process| (process.resident_kib(), process.open_files()));
    let megabytes = |kib: u64| kib as f64 * 1024.0 / 1e6;
    format!("{:.2} + {:.2} | {} + {}", megabytes(router.0), megabytes(server.0), router.1, server.1)
}
