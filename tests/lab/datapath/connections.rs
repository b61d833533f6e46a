//! New connections, idle ones, and many busy ones.

use std::fmt::Write;
use std::thread::sleep;
use std::time::Duration;

use crate::lab::{AgentProgram, FirstByte, ServerProgram};
use crate::load::{Target, Wish};
use crate::{Options, steered, unshaped};

/// Connections opened at a time.
const WORKERS: usize = 32;
/// Connections that are open at once, idle or busy.
const AT_ONCE: usize = 2000;
/// Warm connections are made within this time.
const SETTLING: Duration = Duration::from_secs(3);

/// Connections a second.
pub fn rate(options: &Options) -> String {
    let mut text = format!(
        "New connections a second for {} s, {WORKERS} at a time, each of which echoes a byte; processor time in \
         milliseconds for each on router + server.\n\n\
         | relay | connections a second | ms | failed |\n|---|---|---|---|\n",
        options.time.as_secs()
    );
    for contender in options.contenders() {
        let lab = unshaped(options);
        let target = Target::start(&lab);
        let mut running = contender.start(&lab);
        sleep(SETTLING);
        let mut cpu = || running.processes().map(|process| process.cpu_time());
        let before = cpu();
        let hails = target.hail(WORKERS, options.time);
        let after = cpu();
        let answered = hails.answered as f64;
        let spent = |end: usize| (after[end] - before[end]).as_secs_f64() * 1e3 / answered;
        let line = format!(
            "| {} | {:.0} | {:.2} + {:.2} | {} |",
            contender.name(),
            answered / options.time.as_secs_f64(),
            spent(0),
            spent(1),
            hails.failures.len(),
        );
        eprintln!("{line} {}", hails.failures.first().cloned().unwrap_or_default());
        let _ = writeln!(text, "{line}");
    }
    text
}

/// The time to the first byte over uplinks that are far.
pub fn first_byte(_: &Options) -> String {
    let lab = FirstByte::lab("datapath");
    let server = ServerProgram::start(&lab);
    let _agent = AgentProgram::start(&lab, &server);
    let it = FirstByte::measure(&lab);
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    format!(
        "Time to the first byte of a new connection, with uplinks of 20 and 60 ms: {:.2} ms, {:.3} times the \
         round trips router - server and server - target ({:.2} ms).\n",
        ms(it.took),
        it.share(),
        ms(it.round_trips)
    )
}

/// Memory without connections, and of idle ones.
pub fn idle(options: &Options) -> String {
    let mut text = format!(
        "Resident memory on router + server: without connections in MB, and in kB what each of {AT_ONCE} \
         idle ones adds.\n\n\
         | relay | without | each |\n|---|---|---|\n",
    );
    for contender in options.contenders() {
        let lab = unshaped(options);
        let target = Target::start(&lab);
        let mut running = contender.start(&lab);
        sleep(SETTLING);
        let mut resident = || running.processes().map(|process| process.resident_kib());
        let without = resident();
        let _open = target.open_idle(AT_ONCE);
        let with = resident();
        let each = [0, 1].map(|end| (with[end] - without[end]) as f64 * 1.024 / AT_ONCE as f64);
        let line = format!("| {} | {} | {} |", contender.name(), megabytes(without), pair(each));
        eprintln!("{line}");
        let _ = writeln!(text, "{line}");
    }
    text
}

/// Memory of many busy connections.
pub fn busy(options: &Options) -> String {
    let mut text = format!(
        "The peak of resident memory in MB on router + server while {AT_ONCE} connections are busy.\n\n\
         | relay | downloads | uploads |\n|---|---|---|\n",
    );
    for contender in options.contenders() {
        let peaks = [Wish::Download, Wish::Upload].map(|wish| {
            let lab = steered(options);
            let target = Target::start(&lab);
            let mut running = contender.start(&lab);
            let transfers = target.transfer(wish, AT_ONCE);
            sleep(options.time);
            let peaks = running.processes().map(|process| process.peak_kib());
            drop(transfers);
            megabytes(peaks)
        });
        let line = format!("| {} | {} |", contender.name(), peaks.join(" | "));
        eprintln!("{line}");
        let _ = writeln!(text, "{line}");
    }
    text
}

fn megabytes(kib: [u64; 2]) -> String {
    pair(kib.map(|kib| kib as f64 * 1024.0 / 1e6))
}

fn pair([router, server]: [f64; 2]) -> String {
    format!("{router:.1} + {server:.1}")
}
