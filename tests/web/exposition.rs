//! Prometheus' text format, read strictly, and by `promtool` where that is installed.
//!
//! See <https://prometheus.io/docs/instrumenting/exposition_formats/> and the conventions of names,
//! <https://prometheus.io/docs/practices/naming/>.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

/// Samples by name and labels, the latter as they are written.
pub type Samples = BTreeMap<(String, String), f64>;

/// The value of a sample.
#[track_caller]
pub fn value(samples: &Samples, name: &str, labels: &str) -> f64 {
    let key = (name.to_owned(), labels.to_owned());
    *samples.get(&key).unwrap_or_else(|| panic!("no {name}{{{labels}}} in {samples:#?}"))
}

/// Reads an exposition; panics where it is wrong.
#[track_caller]
pub fn check(text: &str) -> Samples {
    promtool(text);
    assert!(text.ends_with('\n'), "the last line has no end");
    let mut samples = Samples::new();
    let mut families = BTreeSet::new();
    let mut lines = text.lines().peekable();
    while let Some(help) = lines.next() {
        let words = help.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' '));
        let (name, _) = words.unwrap_or_else(|| panic!("a family begins with HELP: {help}"));
        assert!(families.insert(name.to_owned()), "{name} is there twice");
        let kind = lines.next().and_then(|line| line.strip_prefix(&format!("# TYPE {name} ")));
        let kind = kind.unwrap_or_else(|| panic!("{name} has no TYPE"));
        assert!(["counter", "gauge"].contains(&kind), "{name}: {kind}");
        assert!(name.starts_with("mptcp_bond_"), "{name}");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        let mut count = 0;
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            let (labels, value) = sample(line, name);
            assert!(value >= 0.0, "{line}");
            assert!(samples.insert((name.to_owned(), labels), value).is_none(), "twice: {line}");
            count += 1;
        }
        assert!(count > 0, "{name} has no samples");
    }
    samples
}

/// The labels and the value of a sample's line.
fn sample(line: &str, name: &str) -> (String, f64) {
    let rest = line.strip_prefix(name).unwrap_or_else(|| panic!("no sample of {name}: {line}"));
    let (labels, value) = match rest.strip_prefix('{') {
        None => ("", rest),
        Some(rest) => rest.rsplit_once('}').unwrap_or_else(|| panic!("no end of labels: {line}")),
    };
    let mut rest = labels;
    while !rest.is_empty() {
        let (name, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("a label: {line}"));
        let is_word = |c: char| c.is_ascii_lowercase() || c == '_';
        assert!(!name.is_empty() && name.chars().all(is_word), "{line}");
        rest = after_value(value).unwrap_or_else(|| panic!("a label's value has no end: {line}"));
        assert!(rest.is_empty() || rest.starts_with(','), "{line}");
        rest = rest.trim_start_matches(',');
    }
    let value = value.strip_prefix(' ').unwrap_or_else(|| panic!("no value: {line}"));
    (labels.to_owned(), value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
}

/// What follows a label's value, whose quotation mark is taken off.
fn after_value(text: &str) -> Option<&str> {
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some(&text[at + 1..]),
            '\\' => {
                chars.next().filter(|(_, c)| ['\\', '"', 'n'].contains(c))?;
            }
            _ => {}
        }
    }
    None
}

fn promtool(text: &str) {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut promtool) = command.spawn() else { return };
    let mut input = promtool.stdin.take().expect("its input");
    input.write_all(text.as_bytes()).expect("write to promtool");
    drop(input);
    let output = promtool.wait_with_output().expect("wait for promtool");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaint.is_empty(), "promtool: {complaint}\n{text}");
}

#[test]
fn what_is_wrong_is_found() {
    let right = "# HELP mptcp_bond_a_total Help.\n# TYPE mptcp_bond_a_total counter\n\
                 mptcp_bond_a_total{x=\"a\\\"},\"} 3\n";
    assert_eq!(value(&check(right), "mptcp_bond_a_total", "x=\"a\\\"},\""), 3.0);
    for (from, to) in [
        ("3\n", "3"),
        ("counter", "gauge"),
        ("} 3\n", "}\n"),
        ("{x=\"a\\\"},\"}", "{x=\"a\\x\"}"),
        ("{x=\"a\\\"},\"}", "{x=\"a}"),
        ("# HELP mptcp_bond_a_total Help.\n", ""),
        (" 3\n", " 3\nmptcp_bond_a_total{x=\"a\\\"},\"} 4\n"),
    ] {
        let wrong = right.replace(from, to);
        assert_ne!(wrong, right);
        let found = std::panic::catch_unwind(|| check(&wrong));
        assert!(found.is_err(), "{wrong}");
    }
}
