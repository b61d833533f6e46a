//! Changes a UCI text and keeps every byte that need not change: comments, order, layout.

use std::fmt;

use super::{Assignment, Section, UciError, Value, parse, quote};

/// Why a text could not be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EditError {
    /// The text, as it stands, is not UCI.
    Parse(UciError),
    /// No change of whole lines gives the sections wished for.
    Layout,
}

impl fmt::Display for EditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EditError::Parse(error) => error.fmt(f),
            EditError::Layout => {
                f.write_str("the section is laid out in a way that must be changed by hand")
            }
        }
    }
}

impl std::error::Error for EditError {}

/// The text with the options of the section `kind` `name` set; the section is appended when there
/// is none. Other options and all comments stay. Values must not be empty.
pub fn set_options(
    text: &str,
    kind: &str,
    name: &str,
    options: &[(&str, &str)],
) -> Result<String, EditError> {
    let before = parse(text).map_err(EditError::Parse)?;
    let wished = with_options(&before, kind, name, options);
    let in_place = before
        .iter()
        .find(|section| section.name == name)
        .map(|section| replace_lines(text, section, options));
    // Where commands share lines, a second `config` of the same name does: UCI merges the two.
    let candidates = in_place.into_iter().chain([append(text, kind, name, options)]);
    for candidate in candidates {
        if parse(&candidate).is_ok_and(|after| same(&after, &wished)) {
            return Ok(candidate);
        }
    }
    Err(EditError::Layout)
}

fn with_options(
    before: &[Section],
    kind: &str,
    name: &str,
    options: &[(&str, &str)],
) -> Vec<Section> {
    let mut sections = before.to_vec();
    let index = sections.iter().position(|section| section.name == name).unwrap_or_else(|| {
        sections.push(Section {
            kind: kind.to_owned(),
            name: name.to_owned(),
            anonymous: false,
            line: 0,
            options: Vec::new(),
        });
        sections.len() - 1
    });
    if let Some(section) = sections.get_mut(index) {
        section.kind = kind.to_owned();
        for (key, value) in options {
            let value = Value::String((*value).to_owned());
            match section.options.iter_mut().find(|option| option.name == *key) {
                Some(option) => option.value = value,
                None => {
                    section.options.push(Assignment { name: (*key).to_owned(), line: 0, value });
                }
            }
        }
    }
    sections
}

/// Whether two texts' sections mean the same; the order of a section's options means nothing.
fn same(a: &[Section], b: &[Section]) -> bool {
    let bare = |section: &Section| {
        let mut options: Vec<(String, Vec<String>, bool)> = section
            .options
            .iter()
            .map(|option| match &option.value {
                Value::String(text) => (option.name.clone(), vec![text.clone()], false),
                Value::List(items) => {
                    let items = items.iter().map(|item| item.text.clone()).collect();
                    (option.name.clone(), items, true)
                }
            })
            .collect();
        options.sort();
        (section.kind.clone(), section.name.clone(), section.anonymous, options)
    };
    a.iter().map(bare).eq(b.iter().map(bare))
}

fn option_line(indent: &str, key: &str, value: &str) -> String {
    format!("{indent}option {key} {}\n", quote(value))
}

/// The text with each option's line replaced, or added below the section's `config` line.
fn replace_lines(text: &str, section: &Section, options: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(text.len() + 128);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let number = index + 1;
        let assigned = options
            .iter()
            .find(|(key, _)| section.option(key).is_some_and(|option| option.line == number));
        match assigned {
            Some((key, value)) => {
                let indent = line.len() - line.trim_start().len();
                let indent = line.get(..indent).unwrap_or_default();
                out.push_str(&option_line(indent, key, value));
            }
            None => out.push_str(line),
        }
        if number == section.line {
            if !out.ends_with('\n') {
                out.push('\n');
            }
            for (key, value) in options.iter().filter(|(key, _)| section.option(key).is_none()) {
                out.push_str(&option_line("\t", key, value));
            }
        }
    }
    out
}

fn append(text: &str, kind: &str, name: &str, options: &[(&str, &str)]) -> String {
    let mut out = text.to_owned();
    if !out.is_empty() {
        out.push_str(if out.ends_with('\n') { "\n" } else { "\n\n" });
    }
    out.push_str(&format!("config {kind} {}\n", quote(name)));
    for (key, value) in options {
        out.push_str(&option_line("\t", key, value));
    }
    out
}
