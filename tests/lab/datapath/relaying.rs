//! Throughput, processor time and memory of bulk transfers.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::thread::sleep;
use std::time::{Duration, Instant};

use ring::aead;

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

/// The costs of each load, and the peaks of resident memory in KiB on router and server.
struct Row {
    costs: Vec<Cost>,
    peaks: [u64; 2],
}

/// The section of the report.
pub fn measure(options: &Options) -> String {
    let mut text = format!(
        "Bulk transfers through an unshaped lab, medians of {} of {} s: Gbit/s of payload, processor time \
         in seconds for each GB on router + server, and the peak of resident memory there.\n\n\
         | relay | down, 1 connection | down, 10 | up, 1 connection | up, 10 | peak MB |\n\
         |---|---|---|---|---|---|\n",
        options.repeats,
        options.time.as_secs(),
    );
    let mut rows = BTreeMap::new();
    for contender in options.contenders() {
        let row = contend(contender, options);
        let cells: Vec<String> = row.costs.iter().map(Cost::to_string).collect();
        let [router, server] = row.peaks.map(|kib| kib as f64 / 1024.0);
        let line =
            format!("| {} | {} | {router:.1} + {server:.1} |", contender.name(), cells.join(" | "));
        eprintln!("{line}");
        let _ = writeln!(text, "{line}");
        rows.insert(contender.name(), row);
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

/// Measures all loads of one of them.
fn contend(contender: Contender, options: &Options) -> Row {
    let lab = steered(options);
    let target = Target::start(&lab);
    let mut running = contender.start(&lab);
    let costs = LOADS.map(|(wish, connections)| {
        let costs: Vec<Cost> = (0..options.repeats)
            .map(|_| transfer(&mut running, &target, wish, connections, options.time))
            .collect();
        let of = |value: fn(&Cost) -> f64| median(costs.iter().map(value).collect());
        Cost { rate: of(|cost| cost.rate), cpu: [of(|cost| cost.cpu[0]), of(|cost| cost.cpu[1])] }
    });
    let peaks = running.processes().map(|process| process.peak_kib());
    Row { costs: costs.to_vec(), peaks }
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

/// What the figures say about the limits that hold for them.
fn comparison(rows: &BTreeMap<String, Row>, ciphers: [f64; 2]) -> String {
    let mut text =
        "\n| | down, 1 | down, 10 | up, 1 | up, 10 |\n|---|---|---|---|---|\n".to_owned();
    let row = |contender: Contender| rows.get(&contender.name());
    let best = |methods: &[&'static str], of: fn(&Cost) -> f64| -> Option<Vec<f64>> {
        let found: Vec<&Row> =
            methods.iter().filter_map(|method| row(Contender::Shadowsocks(method))).collect();
        let least =
            |load: usize| found.iter().map(|row| of(&row.costs[load])).fold(f64::MAX, f64::min);
        (!found.is_empty()).then(|| (0..LOADS.len()).map(least).collect())
    };
    let mut line =
        |what: String, ours: Option<&Row>, of: fn(&Cost) -> f64, other: Option<Vec<f64>>| {
            if let (Some(ours), Some(other)) = (ours, other) {
                let ratio = |(cost, other)| format!("{:.2}", of(cost) / other);
                let cells: Vec<String> = ours.costs.iter().zip(other).map(ratio).collect();
                let _ = writeln!(text, "| {what} | {} |", cells.join(" | "));
            }
        };
    let encrypted = ["aes-128-gcm", "chacha20-ietf-poly1305", "2022-blake3-aes-128-gcm"];
    let slower = |cost: &Cost| -cost.rate;
    let floor = |cost: f64| -> Option<Vec<f64>> {
        let bare = row(Contender::Bare(Way::Copy))?;
        Some(bare.costs.iter().map(|bare| bare.both() + cost).collect())
    };
    let splice = row(Contender::Bare(Way::Splice))
        .map(|bare| bare.costs.iter().map(Cost::both).collect::<Vec<f64>>());
    for (cipher, cost) in [("aes-128-gcm", ciphers[0]), ("chacha20-poly1305", ciphers[1])] {
        let ours = row(Contender::Ours(cipher));
        line(format!("{cipher}: processor time of the floor"), ours, Cost::both, floor(cost));
        line(
            format!("{cipher}: processor time of shadowsocks' best method"),
            ours,
            Cost::both,
            best(&encrypted, Cost::both),
        );
        line(
            format!("{cipher}: throughput of shadowsocks' best method"),
            ours,
            slower,
            best(&encrypted, slower),
        );
    }
    let plain = row(Contender::Ours("none"));
    line("none: processor time of bare splice".to_owned(), plain, Cost::both, splice);
    line(
        "none: processor time of shadowsocks none".to_owned(),
        plain,
        Cost::both,
        best(&["none"], Cost::both),
    );
    line("none: throughput of shadowsocks none".to_owned(), plain, slower, best(&["none"], slower));
    text
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [router, server] = self.cpu;
        write!(f, "{:.1} Gbit/s, {router:.2} + {server:.2}", self.rate)
    }
}
