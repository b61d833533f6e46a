//! A QR code (ISO/IEC 18004) for the terminal, to be read by a telephone's camera.

use qrcodegen::{QrCode, QrCodeEcc};

use crate::os::terminal;

/// Light modules around the code, as the standard wants them.
const QUIET: i32 = 4;
/// Black on white, whatever the terminal's colours are.
const BLACK_ON_WHITE: &str = "\x1b[30;107m";
const RESET: &str = "\x1b[0m";

/// How it is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// In black on white.
    Colour,
    /// In the terminal's colours, taken to be light on dark.
    Plain,
}

impl Look {
    /// What standard output can show: nothing if it is no terminal, or has no block characters.
    pub fn of_stdout() -> Option<Look> {
        let drawn = terminal::is_stdout() && terminal::is_utf8();
        drawn.then(|| if terminal::has_colour() { Look::Colour } else { Look::Plain })
    }
}

/// The code, two rows of modules a line; `None` for a text that is too long for one.
pub fn picture(text: &str, look: Look) -> Option<String> {
    let code = QrCode::encode_binary(text.as_bytes(), QrCodeEcc::Low).ok()?;
    let end = code.size() + QUIET;
    // What is drawn in the foreground's colour.
    let drawn = |x, y| code.get_module(x, y) == (look == Look::Colour);
    let mut picture = String::new();
    for y in (-QUIET..end).step_by(2) {
        let row = (-QUIET..end).map(|x| match (drawn(x, y), drawn(x, y + 1)) {
            (true, true) => '█',
            (true, false) => '▀',
            (false, true) => '▄',
            (false, false) => ' ',
        });
        match look {
            Look::Colour => picture.extend(BLACK_ON_WHITE.chars().chain(row).chain(RESET.chars())),
            Look::Plain => picture.extend(row),
        }
        picture.push('\n');
    }
    Some(picture)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The modules of a picture, row by row: whether they are dark.
    fn modules(picture: &str, look: Look) -> Vec<Vec<bool>> {
        let rows = picture.lines().flat_map(|line| {
            let line = line.trim_start_matches(BLACK_ON_WHITE).trim_end_matches(RESET);
            let dark = |drawn: bool| drawn == (look == Look::Colour);
            [['█', '▀'], ['█', '▄']]
                .map(|drawn| line.chars().map(|c| dark(drawn.contains(&c))).collect())
        });
        rows.collect()
    }

    #[test]
    fn both_looks_show_the_same_code() {
        let text = "mptcp-bond://vps.example.net:443/";
        let colour = picture(text, Look::Colour).unwrap();
        assert!(
            colour.lines().all(|line| line.starts_with(BLACK_ON_WHITE) && line.ends_with(RESET))
        );
        let plain = modules(&picture(text, Look::Plain).unwrap(), Look::Plain);
        assert_eq!(modules(&colour, Look::Colour), plain);
        let code = QrCode::encode_binary(text.as_bytes(), QrCodeEcc::Low).unwrap();
        for (y, row) in (-QUIET..).zip(&plain) {
            for (x, dark) in (-QUIET..).zip(row) {
                assert_eq!(*dark, code.get_module(x, y), "{x} {y}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_not_drawn() {
        assert_eq!(picture(&"x".repeat(4000), Look::Plain), None);
    }
}
