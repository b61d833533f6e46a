//! What standard output can show.

use std::env;
use std::io::{self, IsTerminal};

/// Whether standard output is a terminal.
pub fn is_stdout() -> bool {
    io::stdout().is_terminal()
}

/// Whether a terminal is to be given colours (<https://no-color.org>).
pub fn has_colour() -> bool {
    variable("NO_COLOR").is_none() && obeys_sequences()
}

/// Whether the terminal knows escape sequences.
pub fn obeys_sequences() -> bool {
    variable("TERM").is_some_and(|term| term != "dumb")
}

/// Whether the locale's characters are UTF-8.
pub fn is_utf8() -> bool {
    locale_is_utf8(variable)
}

/// An environment variable that is set, and not empty.
pub fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// The first of these variables that is set decides (POSIX.1-2017, 8.2).
fn locale_is_utf8(variable: impl Fn(&str) -> Option<String>) -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(variable);
    locale.is_some_and(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_locale_decides_on_characters() {
        let is_utf8 = |pairs: &'static [(&str, &str)]| {
            locale_is_utf8(|name| {
                let found = pairs.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        assert!(!is_utf8(&[]));
        assert!(!is_utf8(&[("LANG", "C")]));
        assert!(is_utf8(&[("LANG", "de_CH.UTF-8")]));
        assert!(is_utf8(&[("LANG", "C"), ("LC_CTYPE", "C.utf8")]));
        assert!(!is_utf8(&[("LANG", "C.UTF-8"), ("LC_ALL", "POSIX")]));
    }
}
