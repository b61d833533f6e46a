//! Throughput, processor time and memory of bulk transfers.

use std::array;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::thread::sleep;
use std::time::{Duration, Instant};

use mptcp_bond::crypto::aead;

use crate::contenders::{Contender, Running};
use crate::load::{Target, Wish};
use crate::{Options, bare::Way, cipher, median, steered};

/// What is measured of each: the direction, and connections at once.
const LOADS: [(Wish, usize); 4] =
    [(Wish::Download, 1), (Wish::Download, 10), (Wish::Upload, 1), (Wish::Upload, 10)];
/// The part of a transfer that does not count.
const RAMP: Duration = Duration::from_millis(500);

/// What is said of those that are missing.
const MISSING: &str = "shadowsocks-rust is not here: `cargo install shadowsocks-rust --locked`, and the \
                       directory of its programs on the path or in `SSLOCAL`.\n";

/// The cost of a load.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// Gbit/s of payload.
    rate: f64,
    /// Processor time in seconds for each GB of payload, on the router and on the server.
    cpu: [f64; 2],
}

impl Cost {
    fn both(&self) -> f64 {
        self.cpu.iter().sum()
    }
}

/// What one of them costs: each load's costs, a round each, and the peaks of resident memory in KiB on router
/// and server.
#[derive(Default)]
struct Row {
    costs: [Vec<Cost>; LOADS.len()],
    peaks: [u64; 2],
}

impl Row {
    /// The medians of the rounds.
    fn medians(&self) -> [Cost; LOADS.len()] {
        self.costs.each_ref().map(|rounds| {
            let of = |value: fn(&Cost) -> f64| median(rounds.iter().map(value).collect());
            Cost {
                rate: of(|cost| cost.rate),
                cpu: [of(|cost| cost.cpu[0]), of(|cost| cost.cpu[1])],
            }
        })
    }
}

/// The section of the report. All take their turn in each round, so that what else the machine does is spread
/// over them.
pub fn measure(options: &Options) -> String {
    let contenders = options.contenders();
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    for round in 1..=options.repeats {
        for contender in &contenders {
            eprintln!("round {round} of {}: {}", options.repeats, contender.name());
            contend(*contender, options, rows.entry(contender.name()).or_default());
        }
    }
    let mut text = format!(
        "Bulk transfers through an unshaped lab, medians of {} rounds of {} s: Gbit/s of payload, processor \
         time in seconds for each GB on router + server, and the peak of resident memory there.\n\n\
         | relay | down, 1 connection | down, 10 | up, 1 connection | up, 10 | peak MB |\n\
         |---|---|---|---|---|---|\n",
        options.repeats,
        options.time.as_secs(),
    );
    for contender in &contenders {
        let row = &rows[&contender.name()];
        let cells = row.medians().map(|cost| cost.to_string());
        let [router, server] = row.peaks.map(|kib| kib as f64 / 1024.0);
        let _ = writeln!(
            text,
            "| {} | {} | {router:.1} + {server:.1} |",
            contender.name(),
            cells.join(" | ")
        );
    }
    let [aes, chacha] = [&aead::AES_128_GCM, &aead::CHACHA20_POLY1305].map(cipher::cost);
    let _ = writeln!(
        text,
        "\nSealing and opening in memory: AES-128-GCM {aes:.2} s, ChaCha20-Poly1305 {chacha:.2} s for each GB.",
    );
    let shadowsocks = Contender::Shadowsocks("none");
    if !shadowsocks.is_available() {
        text += MISSING;
    }
    text + &comparison(&rows, [aes, chacha])
}

/// Measures all loads of one of them once.
fn contend(contender: Contender, options: &Options, row: &mut Row) {
    let lab = steered(options);
    let target = Target::start(&lab);
    let mut running = contender.start(&lab);
    for ((wish, connections), costs) in LOADS.into_iter().zip(&mut row.costs) {
        costs.push(transfer(&mut running, &target, wish, connections, options.time));
    }
    for (peak, process) in row.peaks.iter_mut().zip(running.processes()) {
        *peak = process.peak_kib().max(*peak);
    }
}

fn transfer(
    running: &mut Running,
    target: &Target,
    wish: Wish,
    connections: usize,
    time: Duration,
) -> Cost {
    let transfers = target.transfer(wish, connections);
    sleep(RAMP);
    let mut usage = || {
        (Instant::now(), target.arrived(), running.processes().map(|process| process.cpu_time()))
    };
    let (begun, bytes_before, cpu_before) = usage();
    sleep(time);
    let (ended, bytes, cpu) = usage();
    drop(transfers);
    let gigabytes = (bytes - bytes_before) as f64 / 1e9;
    let spent = |end: usize| (cpu[end] - cpu_before[end]).as_secs_f64() / gigabytes;
    let rate = gigabytes * 8.0 / (ended - begun).as_secs_f64();
    Cost { rate, cpu: [spent(0), spent(1)] }
}

/// What the figures say about the limits that hold for them: medians of the rounds' own ratios.
fn comparison(rows: &BTreeMap<String, Row>, ciphers: [f64; 2]) -> String {
    const CPU: fn(&Cost) -> f64 = Cost::both;
    // The best has the least of it, as of the other.
    const RATE: fn(&Cost) -> f64 = |cost| -cost.rate;
    let encrypted = ["aes-128-gcm", "chacha20-ietf-poly1305", "2022-blake3-aes-128-gcm"]
        .map(Contender::Shadowsocks);
    let none = [Contender::Shadowsocks("none")];
    let [copy, splice] = [[Contender::Bare(Way::Copy)], [Contender::Bare(Way::Splice)]];
    let mut text =
        "\n| | down, 1 | down, 10 | up, 1 | up, 10 |\n|---|---|---|---|---|\n".to_owned();
    let mut line = |cipher, what, others: &[Contender], of: fn(&Cost) -> f64, more: f64| {
        let row = |contender: &Contender| rows.get(&contender.name());
        let others: Vec<&Row> = others.iter().filter_map(row).collect();
        let Some(ours) = row(&Contender::Ours(cipher)) else { return };
        if others.is_empty() {
            return;
        }
        let ratio = |load: usize, round: usize| {
            let others = others.iter().map(|row| of(&row.costs[load][round]));
            of(&ours.costs[load][round]) / (others.fold(f64::MAX, f64::min) + more)
        };
        let cells = array::from_fn::<_, { LOADS.len() }, _>(|load| {
            let rounds = 0..ours.costs[load].len();
            format!("{:.2}", median(rounds.map(|round| ratio(load, round)).collect()))
        });
        let _ = writeln!(text, "| {cipher}: {what} | {} |", cells.join(" | "));
    };
    for (cipher, cost) in [("aes-128-gcm", ciphers[0]), ("chacha20-poly1305", ciphers[1])] {
        line(cipher, "processor time of the floor", &copy, CPU, cost);
        line(cipher, "processor time of shadowsocks' best method", &encrypted, CPU, 0.0);
        line(cipher, "throughput of shadowsocks' best method", &encrypted, RATE, 0.0);
    }
    line("none", "processor time of bare splice", &splice, CPU, 0.0);
    line("none", "processor time of shadowsocks none", &none, CPU, 0.0);
    line("none", "throughput of shadowsocks none", &none, RATE, 0.0);
    text
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [router, server] = self.cpu;
        write!(f, "{:.1} Gbit/s, {router:.2} + {server:.2}", self.rate)
    }
}
