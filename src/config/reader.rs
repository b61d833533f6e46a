//! Reads a TOML table key by key, so that every problem is told with its line.

use litemap::LiteMap;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::{ConfigError, Problems};

/// Parses a TOML text with `read`, which reads the keys of the root table; `file` is the text's
/// name in problems.
pub(crate) fn parse<T>(
    text: &str,
    file: &str,
    read: impl FnOnce(&mut Table<'_>) -> Option<T>,
) -> Result<T, ConfigError> {
    let mut problems = Problems::new(file);
    let lines = Lines::new(text);
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let line = error.span().map_or(0, |span| lines.at(span.start));
        problems.add(line, format!("not TOML: {}", error.message()));
    }
    if !errors.is_empty() {
        return problems.finish(None);
    }
    let mut table = Table::new(root.get_ref(), "", 0, &lines, &mut problems);
    let value = read(&mut table);
    table.finish();
    problems.finish(value)
}

/// Byte offsets to line numbers.
pub(crate) struct Lines {
    starts: Vec<usize>,
}

impl Lines {
    pub(crate) fn new(text: &str) -> Lines {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Lines { starts: [0].into_iter().chain(ends.map(|(at, _)| at + 1)).collect() }
    }

    /// The line of an offset, from 1.
    pub(crate) fn at(&self, offset: usize) -> usize {
        self.starts.partition_point(|&start| start <= offset)
    }
}

/// A key and its value.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub(crate) key: &'a str,
    pub(crate) line: usize,
    pub(crate) value: &'a DeValue<'a>,
}

/// A table, as it is read.
pub(crate) struct Table<'a> {
    /// Its path with a final dot: `policy.`; empty at the root.
    path: String,
    pub(crate) line: usize,
    entries: LiteMap<&'a str, Entry<'a>>,
    known: Vec<&'static str>,
    pub(crate) lines: &'a Lines,
    problems: &'a mut Problems,
}

impl<'a> Table<'a> {
    pub(crate) fn new(
        table: &'a DeTable<'a>,
        path: &str,
        line: usize,
        lines: &'a Lines,
        problems: &'a mut Problems,
    ) -> Table<'a> {
        let entry = |(key, value): (&'a Spanned<_>, &'a Spanned<DeValue<'a>>)| {
            let line = lines.at(key.span().start);
            let key: &'a std::borrow::Cow<'a, str> = key.get_ref();
            (key.as_ref(), Entry { key: key.as_ref(), line, value: value.get_ref() })
        };
        let entries = table.iter().map(entry).collect();
        Table { path: path.to_owned(), line, entries, known: Vec::new(), lines, problems }
    }

    pub(crate) fn problem(&mut self, line: usize, message: impl Into<String>) {
        self.problems.add(line, message);
    }

    pub(crate) fn wrong(&mut self, entry: &Entry<'_>, right: &str) {
        let value = match entry.value {
            DeValue::String(text) => format!("'{}'", text.escape_debug()),
            DeValue::Integer(number) => number.as_str().to_owned(),
            other => format!("of type {}", other.type_str()),
        };
        let (path, key) = (&self.path, entry.key);
        let message = format!("'{path}{key}' is {value}; it must be {right}");
        self.problem(entry.line, message);
    }

    pub(crate) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Table<'a>, Entry<'a>) -> Option<T>,
    ) -> Option<T> {
        self.known.push(key);
        let entry = *self.entries.get(key)?;
        read(self, entry)
    }

    pub(crate) fn required<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Table<'a>, Entry<'a>) -> Option<T>,
    ) -> Option<T> {
        if !self.entries.contains_key(key) {
            let message = format!("'{}{key}' is missing; it is required", self.path);
            self.problem(self.line, message);
        }
        self.optional(key, read)
    }

    pub(crate) fn parsed<T>(
        &mut self,
        entry: Entry<'_>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = match entry.value {
            DeValue::String(text) => text.as_ref(),
            _ => "",
        };
        match parse(text) {
            Ok(value) => Some(value),
            Err(right) => {
                self.wrong(&entry, &right);
                None
            }
        }
    }

    /// `true` or `false`.
    pub(crate) fn boolean(&mut self, entry: &Entry<'_>) -> Option<bool> {
        match entry.value {
            DeValue::Boolean(value) => Some(*value),
            _ => {
                self.wrong(entry, "true or false");
                None
            }
        }
    }

    /// A list of strings.
    pub(crate) fn array<T>(
        &mut self,
        entry: &Entry<'_>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let array: &DeArray<'_> = match entry.value {
            DeValue::Array(array) => array,
            _ => {
                self.wrong(entry, "a list of strings");
                return None;
            }
        };
        let mut values = Vec::new();
        for element in array.iter() {
            let line = self.lines.at(element.span().start);
            let element = Entry { key: entry.key, line, value: element.get_ref() };
            values.extend(self.parsed(element, &parse));
        }
        Some(values)
    }

    pub(crate) fn integer(&mut self, entry: &Entry<'_>, low: u32, high: u32) -> Option<u32> {
        let number = match entry.value {
            DeValue::Integer(number) => u32::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        let number = number.filter(|number| (low..=high).contains(number));
        if number.is_none() {
            self.wrong(entry, &format!("a number from {low} to {high}"));
        }
        number
    }

    pub(crate) fn table<T>(
        &mut self,
        entry: Entry<'_>,
        read: impl FnOnce(&mut Table<'_>) -> Option<T>,
    ) -> Option<T> {
        let DeValue::Table(table) = entry.value else {
            self.wrong(&entry, &format!("a table: [{}{}]", self.path, entry.key));
            return None;
        };
        let path = format!("{}{}.", self.path, entry.key);
        let mut table = Table::new(table, &path, entry.line, self.lines, self.problems);
        let value = read(&mut table);
        table.finish();
        value
    }

    /// Tells of keys that nothing has read.
    pub(crate) fn finish(mut self) {
        let unknown: Vec<Entry<'_>> = self
            .entries
            .values()
            .filter(|entry| !self.known.contains(&entry.key))
            .copied()
            .collect();
        let known = self.known.join(", ");
        for entry in unknown {
            let (path, key) = (self.path.clone(), entry.key.escape_debug());
            let place = match path.strip_suffix('.') {
                Some(table) => format!("[{table}]"),
                None => "the file".to_owned(),
            };
            self.problem(entry.line, format!("unknown key '{path}{key}'; {place} has {known}"));
        }
    }
}
