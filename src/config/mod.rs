//! Configuration: UCI text to an agent's, TOML to a server's, and the texts people pass around
//! (keys, pairing URIs). Everything here is pure: text in, values or problems out.

pub mod agent;
pub mod invites;
pub mod keys;
pub mod pairing;
pub mod policy;
mod reader;
pub mod server;
pub mod uci;
pub mod value;

use std::fmt;

/// One thing wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, as it was named to the parser.
    pub file: String,
    /// The line, from 1; 0 when no line is to blame.
    pub line: usize,
    /// What is wrong, where in the file's own terms, and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.message),
            line => write!(f, "{}:{line}: {}", self.file, self.message),
        }
    }
}

/// Everything wrong with a configuration, in order of lines; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The problems.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    /// One problem a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// Collects problems while the rest of a file is still being read.
pub(crate) struct Problems {
    file: String,
    list: Vec<Problem>,
}

impl Problems {
    fn new(file: &str) -> Problems {
        Problems { file: file.to_owned(), list: Vec::new() }
    }

    fn add(&mut self, line: usize, message: impl Into<String>) {
        self.list.push(Problem { file: self.file.clone(), line, message: message.into() });
    }

    /// The value, unless there were problems.
    fn finish<T>(mut self, value: Option<T>) -> Result<T, ConfigError> {
        match value.filter(|_| self.list.is_empty()) {
            Some(value) => Ok(value),
            None => {
                self.list.sort_by_key(|problem| problem.line);
                Err(ConfigError { problems: self.list })
            }
        }
    }
}

/// Seeded random mutations for the tests of decoders.
#[cfg(test)]
pub(crate) mod mutate {
    /// xorshift64*: the same sequence on every machine.
    pub(crate) struct Random(pub(crate) u64);

    impl Random {
        pub(crate) fn next(&mut self, below: usize) -> usize {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let word = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
            if below == 0 { 0 } else { usize::try_from(word).unwrap() % below }
        }
    }

    /// A copy of `text` with one to eight bytes changed, taken out or put in, or pieces doubled.
    pub(crate) fn mutated(text: &[u8], tokens: &[&[u8]], random: &mut Random) -> Vec<u8> {
        let mut out = text.to_vec();
        let most = 1 + random.next(8);
        for _ in 0..=random.next(most) {
            let at = random.next(out.len() + 1);
            let to = (at + random.next(24)).min(out.len());
            match random.next(5) {
                0 => drop(out.drain(at..to)),
                1 => {
                    let byte = u8::try_from(random.next(256)).unwrap();
                    out.insert(at, byte);
                }
                2 if at < out.len() => out[at] ^= 1 << random.next(8),
                3 => {
                    let piece = out[at..to].to_vec();
                    out.splice(at..at, piece);
                }
                _ => {
                    let token = tokens[random.next(tokens.len())];
                    out.splice(at..at, token.iter().copied());
                }
            }
        }
        out
    }
}
