//! Small requests for a long time: what grows.

use std::fmt::Write;
use std::thread::sleep;
use std::time::Duration;

use crate::contenders::Running;
use crate::load::Target;
use crate::{Options, unshaped};

/// Requests made at a time, so that nothing else on the machine starves.
const WORKERS: usize = 16;
/// So many times it is looked at.
const LOOKS: u32 = 5;
/// What is closed is forgotten, and warm connections that are not asked for any more are closed, within
/// this time.
const SETTLING: Duration = Duration::from_secs(10);

/// What the programs hold after so many requests.
pub fn measure(options: &Options) -> String {
    let mut text = format!(
        "Small requests for {} s, each on a connection of its own, {WORKERS} at a time: what router + server \
         hold when nothing is open.\n\n\
         | relay | requests | failed | resident MB | open files |\n|---|---|---|---|---|\n",
        options.soak.as_secs()
    );
    for contender in options.contenders() {
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
    text
}

fn held(running: &mut Running) -> String {
    let [router, server] =
        running.processes().map(|process| (process.resident_kib(), process.open_files()));
    let megabytes = |kib: u64| kib as f64 * 1024.0 / 1e6;
    format!("{:.2} + {:.2} | {} + {}", megabytes(router.0), megabytes(server.0), router.1, server.1)
}
