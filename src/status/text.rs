//! Text for terminals: units, widths, and strings of others made harmless.

use std::borrow::Cow;

pub(super) use crate::config::value::show_bytes as bytes;
use crate::config::value::with_prefix;

/// Makes a string safe to print in one line: control characters, escape sequences, line
/// separators, and characters that reorder or hide text show as escapes such as `\u{1b}`. Without
/// `unicode` what is not ASCII shows as `?`.
pub fn printable(text: &str, unicode: bool) -> Cow<'_, str> {
    let harmless = |c: char| !is_treacherous(c) && (unicode || c.is_ascii());
    if text.chars().all(harmless) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_treacherous(c) {
            out.extend(c.escape_default());
        } else if unicode || c.is_ascii() {
            out.push(c);
        } else {
            out.push('?');
        }
    }
    Cow::Owned(out)
}

/// Whether a character does something else than show itself: C0 and C1 controls, Unicode's format
/// characters (category Cf) and line and paragraph separators.
fn is_treacherous(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// Columns a character takes on a terminal, near enough for names.
fn char_width(c: char) -> usize {
    match c {
        '\u{300}'..='\u{36f}' | '\u{fe00}'..='\u{fe0f}' => 0,
        '\u{1100}'..='\u{115f}'
        | '\u{2e80}'..='\u{a4cf}'
        | '\u{ac00}'..='\u{d7a3}'
        | '\u{f900}'..='\u{faff}'
        | '\u{fe30}'..='\u{fe6f}'
        | '\u{ff00}'..='\u{ff60}'
        | '\u{1f300}'..='\u{1faff}'
        | '\u{20000}'..='\u{3fffd}' => 2,
        _ => 1,
    }
}

/// Columns a string takes on a terminal.
pub(super) fn width(text: &str) -> usize {
    text.chars().map(char_width).sum()
}

/// The longest beginning of `text` that takes at most `columns`.
pub(super) fn head(text: &str, columns: usize) -> &str {
    let mut used = 0;
    for (at, c) in text.char_indices() {
        used += char_width(c);
        if used > columns {
            return text.get(..at).unwrap_or_default();
        }
    }
    text
}

/// Bits a second, such as `93.4 Mbit/s`.
pub(super) fn rate(bits_per_second: u64) -> String {
    let (number, prefix) = with_prefix(bits_per_second);
    format!("{number} {prefix}bit/s")
}

/// A time span in its two largest units, such as `3 d 4 h` or `2 min 10 s`.
pub(super) fn duration(seconds: u64) -> String {
    let (large, large_unit, small, small_unit) = match seconds {
        0..60 => return format!("{seconds} s"),
        60..3600 => (seconds / 60, "min", seconds % 60, "s"),
        3600..86_400 => (seconds / 3600, "h", seconds % 3600 / 60, "min"),
        _ => (seconds / 86_400, "d", seconds % 86_400 / 3600, "h"),
    };
    match small {
        0 => format!("{large} {large_unit}"),
        _ => format!("{large} {large_unit} {small} {small_unit}"),
    }
}

/// Milliseconds, such as `14.2 ms`.
pub(super) fn milliseconds(value: f64) -> String {
    match value {
        value if value < 99.95 => format!("{value:.1} ms"),
        _ => format!("{value:.0} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        for (value, text) in [
            (0, "0 bit/s"),
            (999, "999 bit/s"),
            (1000, "1.00 kbit/s"),
            (9_994, "9.99 kbit/s"),
            (9_996, "10.0 kbit/s"),
            (99_960, "100 kbit/s"),
            (999_499, "999 kbit/s"),
            (999_500, "1.00 Mbit/s"),
            (93_412_000, "93.4 Mbit/s"),
            (u64::MAX, "18.4 Ebit/s"),
        ] {
            assert_eq!(rate(value), text);
        }
        assert_eq!(bytes(1_234_567_890), "1.23 GB");
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (130, "2 min 10 s"),
            (3600, "1 h"),
            (11_000, "3 h 3 min"),
            (86_400, "1 d"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(milliseconds(14.23), "14.2 ms");
        assert_eq!(milliseconds(99.96), "100 ms");
    }

    #[test]
    fn nothing_printable_controls_a_terminal() {
        let all: String = (0..=u32::from(char::MAX)).filter_map(char::from_u32).collect();
        for unicode in [true, false] {
            let shown = printable(&all, unicode);
            assert!(!shown.chars().any(is_treacherous));
            assert!(unicode || shown.is_ascii());
            assert!(matches!(printable(&shown, unicode), Cow::Borrowed(_)));
        }
        assert_eq!(printable("a\x1b[31mb\r\n\u{202e}c\u{9b}1m", true), {
            "a\\u{1b}[31mb\\r\\n\\u{202e}c\\u{9b}1m"
        });
        assert_eq!(printable("zürich", true), "zürich");
        assert_eq!(printable("zürich", false), "z?rich");
    }

    #[test]
    fn widths() {
        assert_eq!(width("wan"), 3);
        assert_eq!(width("東京"), 4);
        assert_eq!(width("e\u{301}"), 1);
        assert_eq!(head("東京", 3), "東");
        assert_eq!(head("wan", 3), "wan");
        assert_eq!(head("wan", 0), "");
    }
}
