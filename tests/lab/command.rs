//! What the lab's own programs have in common.

use std::path::Path;
use std::process::ExitCode;

/// A program: runs with the options of its command line, or says what is wrong with that and how it is
/// used.
pub fn command<T>(
    usage: &str,
    parse: impl FnOnce() -> Result<T, lexopt::Error>,
    run: impl FnOnce(T) -> ExitCode,
) -> ExitCode {
    match parse() {
        Ok(options) => run(options),
        Err(error) => {
            eprintln!("{error}\n{usage}");
            ExitCode::FAILURE
        }
    }
}

/// Writes a report to a file, if one is wanted.
pub fn save(report: &str, output: Option<&Path>) -> ExitCode {
    match output.map(|path| (path, std::fs::write(path, report))) {
        Some((path, Err(error))) => {
            eprintln!("cannot write {}: {error}", path.display());
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}
