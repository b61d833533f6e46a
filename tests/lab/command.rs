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

/// A section of a report: its name for `--only`, and what measures it.
pub type Section<T> = (&'static str, fn(&T) -> String);

/// The names after `--only`; without any, all sections are wanted.
#[derive(Default)]
pub struct Only(Vec<String>);

impl Only {
    /// Takes the name that comes next on the command line.
    ///
    /// # Errors
    /// When there is no such section.
    pub fn parse<T>(
        &mut self,
        arguments: &mut lexopt::Parser,
        sections: &[Section<T>],
    ) -> Result<(), lexopt::Error> {
        let name = arguments.value()?.into_string()?;
        if !sections.iter().any(|(section, _)| *section == name) {
            return Err(format!("there is no section '{name}'").into());
        }
        self.0.push(name);
        Ok(())
    }

    fn wants(&self, section: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|only| only == section)
    }

    /// Measures the sections that are wanted and shows each when it is done; all of them together.
    pub fn measure<T>(&self, sections: &[Section<T>], options: &T) -> String {
        let wanted = sections.iter().filter(|(name, _)| self.wants(name));
        let texts: Vec<String> = wanted
            .map(|(_, measure)| {
                let text = measure(options);
                println!("{text}");
                text
            })
            .collect();
        texts.join("\n")
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
