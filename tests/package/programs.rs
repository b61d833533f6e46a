//! The programs themselves, as `make cross` tests them.

use std::process::Command;

use super::router::{project, run};

#[test]
fn this_machines_program_passes_its_self_test() {
    let program = env!("CARGO_BIN_EXE_mptcp-bond");
    let report = run(Command::new(project().join("cross/test")).args(["--program", program]));
    let (title, results) = report.split_once('\n').unwrap();
    assert!(
        title.starts_with(concat!("mptcp-bond ", env!("CARGO_PKG_VERSION"), " for ")),
        "{title}"
    );
    assert_eq!(results.lines().count(), 10, "{results}");
    assert!(results.lines().all(|line| line.ends_with(" ok")), "{results}");
}

/// Building them takes too long for a test.
#[test]
fn those_that_are_built_run_on_their_processors() {
    run(&mut Command::new(project().join("cross/test")));
}
