//! UCI text to sections, with the semantics of libuci (`file.c`, `list.c`) in its strict mode.
//!
//! A file that libuci loads gives the same sections, names, options and values here, and one that
//! it refuses is refused here, odd corners included (see [`Parser::argument`]). Two differences are
//! deliberate: a NUL byte is an error (libuci silently drops the rest of the line), and so is a
//! value that is not UTF-8 (comments may hold any bytes).

pub mod edit;
#[cfg(test)]
mod tests;

use std::fmt;

use litemap::LiteMap;

/// A `config` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// The section's type: `uplink` in `config uplink 'wan'`.
    pub kind: String,
    /// Its name; libuci's generated one (`cfgXXXXXX`) when it is anonymous.
    pub name: String,
    /// Whether the name is generated.
    pub anonymous: bool,
    /// Line of the (first) `config` command, from 1.
    pub line: usize,
    /// Options in order of first appearance, names unique.
    pub options: Vec<Assignment>,
}

impl Section {
    /// The option of that name, if it is set.
    pub fn option(&self, name: &str) -> Option<&Assignment> {
        self.options.iter().find(|option| option.name == name)
    }
}

/// An option or list of a section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The option's name.
    pub name: String,
    /// Line of the command that gave the value in force (of a list: its first item), from 1.
    pub line: usize,
    /// The value.
    pub value: Value,
}

/// The value of an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// From `option`; never empty.
    String(String),
    /// From `list`.
    List(Vec<Item>),
}

/// An item of a list; may be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Line of the command, from 1.
    pub line: usize,
    /// The text.
    pub text: String,
}

/// Why a text is not UCI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UciError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong there, and what would be right.
    pub message: String,
}

impl fmt::Display for UciError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for UciError {}

/// Parses the text of one file in `/etc/config`.
pub fn parse(text: &str) -> Result<Vec<Section>, UciError> {
    parse_bytes(text.as_bytes())
}

/// Like [`parse`], for bytes that may not be UTF-8.
pub fn parse_bytes(input: &[u8]) -> Result<Vec<Section>, UciError> {
    if let Some(nul) = input.iter().position(|&byte| byte == 0) {
        let line = 1 + input.iter().take(nul).filter(|&&byte| byte == b'\n').count();
        return Err(UciError { line, message: "a NUL byte: this is not a text file".into() });
    }
    let mut parser = Parser {
        input,
        position: 0,
        visible: 0,
        fetched: 0,
        line: 0,
        sections: Vec::new(),
        by_name: LiteMap::new(),
        options: Vec::new(),
        current: None,
    };
    while parser.fetch_line() {
        parser.parse_line()?;
    }
    Ok(parser.sections)
}

/// The value of a boolean as OpenWrt's `config_get_bool` reads it; `None` when it is not one.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "on" | "true" | "yes" | "enabled" => Some(true),
        "0" | "off" | "false" | "no" | "disabled" => Some(false),
        _ => None,
    }
}

/// A text in single quotes, as `uci export` writes it: [`parse`] gives the same text back.
pub fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// The generated name of an anonymous section, the `count`th section of its file
/// (libuci's `uci_fixup_section`: at import the hash covers the type alone).
fn generated_name(count: usize, kind: &str) -> String {
    let hash = kind.bytes().fold(5381u32, |hash, byte| {
        hash.wrapping_shl(5).wrapping_add(hash).wrapping_add(u32::from(byte))
    });
    format!("cfg{count:02x}{:04x}", hash & 0xffff)
}

/// White space as C's `isspace` has it.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

fn is_name(text: &[u8]) -> bool {
    text.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}

/// An argument of a command: its bytes without quotes, and the line it starts on.
struct Argument {
    text: Vec<u8>,
    line: usize,
}

impl Argument {
    fn into_string(self) -> Result<String, UciError> {
        String::from_utf8(self.text)
            .map_err(|_| UciError { line: self.line, message: "a value that is not UTF-8".into() })
    }
}

/// libuci's parse context. Its buffer of lines is a window on the input here: bytes up to
/// `visible` can be read, and reading on at the window's end gives 0, as libuci's NUL does.
struct Parser<'a> {
    input: &'a [u8],
    position: usize,
    visible: usize,
    /// End of the last line fetched; beyond `visible` where a comment cuts the line short.
    fetched: usize,
    /// Number of the last line fetched.
    line: usize,
    sections: Vec<Section>,
    by_name: LiteMap<String, usize>,
    /// Per section: the index of each option by name.
    options: Vec<LiteMap<String, usize>>,
    current: Option<usize>,
}

impl Parser<'_> {
    fn error(&self, message: impl Into<String>) -> UciError {
        UciError { line: self.line, message: message.into() }
    }

    /// The byte at the position; 0 at the end of what was fetched.
    fn peek(&self) -> u8 {
        if self.position >= self.visible {
            return 0;
        }
        self.input.get(self.position).copied().unwrap_or(0)
    }

    /// Moves on to the next line; false at the end of the input.
    fn fetch_line(&mut self) -> bool {
        self.position = self.fetched;
        self.visible = self.fetched;
        let rest = self.input.get(self.fetched..).unwrap_or_default();
        if rest.is_empty() {
            return false;
        }
        let length = rest.iter().position(|&b| b == b'\n').map_or(rest.len(), |at| at + 1);
        self.fetched += length;
        self.visible = self.fetched;
        self.line += 1;
        true
    }

    fn skip_space(&mut self) {
        while is_space(self.peek()) {
            self.position += 1;
        }
    }

    /// Steps over a backslash. True when the byte after it is to be taken as it is, false when a
    /// line end followed, which joins the next line.
    fn backslash(&mut self) -> bool {
        self.position += 1;
        let crlf = self.peek() == b'\r'
            && self.position + 1 < self.visible
            && self.input.get(self.position + 1) == Some(&b'\n');
        if matches!(self.peek(), 0 | b'\n') || crlf {
            self.fetch_line();
            return false;
        }
        true
    }

    fn quoted(&mut self, quote: u8, out: &mut Vec<u8>) -> Result<(), UciError> {
        let opened = self.line;
        self.position += 1;
        loop {
            match self.peek() {
                0 => {
                    if !self.fetch_line() {
                        let quote = char::from(quote);
                        return Err(UciError {
                            line: opened,
                            message: format!("a quotation that begins with {quote} does not end"),
                        });
                    }
                }
                byte if byte == quote => {
                    self.position += 1;
                    return Ok(());
                }
                b'\\' if quote == b'"' => {
                    if self.backslash() {
                        out.push(self.peek());
                        self.position += 1;
                    }
                }
                byte => {
                    out.push(byte);
                    self.position += 1;
                }
            }
        }
    }

    /// The next argument; empty when there is none.
    ///
    /// libuci terminates an argument in place, so a `;` that directly follows a wholly unquoted
    /// one is overwritten and the rest of the line is lost: `option a b;option c d` sets only `a`,
    /// while `option a 'b';option c d` and `option a b ;option c d` set both.
    fn argument(&mut self) -> Result<Argument, UciError> {
        self.skip_space();
        let mut argument = Argument { text: Vec::new(), line: self.line };
        if self.peek() == b';' {
            self.position += 1;
            return Ok(argument);
        }
        let mut verbatim = true;
        loop {
            match self.peek() {
                0 => return Ok(argument),
                b'#' => {
                    self.visible = self.position;
                    return Ok(argument);
                }
                b';' => {
                    if verbatim {
                        self.visible = self.position;
                    }
                    return Ok(argument);
                }
                quote @ (b'\'' | b'"') => {
                    verbatim = false;
                    self.quoted(quote, &mut argument.text)?;
                }
                b'\\' => {
                    verbatim = false;
                    if self.backslash() {
                        argument.text.push(self.peek());
                        self.position += 1;
                    }
                }
                byte => {
                    argument.text.push(byte);
                    self.position += 1;
                }
            }
            if is_space(self.peek()) {
                self.position += 1;
                return Ok(argument);
            }
        }
    }

    fn name(&mut self, what: &str) -> Result<String, UciError> {
        let argument = self.argument()?;
        if !is_name(&argument.text) {
            let text = String::from_utf8_lossy(&argument.text).into_owned();
            return Err(self.error(format!(
                "'{}' is not a name for {what}: only letters, digits and '_' may be in it",
                text.escape_debug()
            )));
        }
        argument.into_string()
    }

    fn end_of_command(&mut self, command: &str) -> Result<(), UciError> {
        self.skip_space();
        let extra = self.argument()?;
        if extra.text.is_empty() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&extra.text).into_owned();
        Err(self.error(format!(
            "too many words after '{command}', from '{}' on: a value with spaces needs quotes",
            text.escape_debug()
        )))
    }

    /// Runs the commands of the line fetched, and of the lines they continue on.
    fn parse_line(&mut self) -> Result<(), UciError> {
        self.skip_space();
        loop {
            while matches!(self.peek(), b' ' | b'\t') {
                self.position += 1;
            }
            let rest = self.input.get(self.position..self.visible).unwrap_or_default();
            let length = rest.iter().position(|b| matches!(b, b' ' | b'\t'));
            let word = rest.get(..length.unwrap_or(rest.len())).unwrap_or_default();
            if word.first().is_none_or(|&byte| byte == b'#') {
                return Ok(());
            }
            let line = self.line;
            self.position += word.len();
            let command = match word.trim_ascii_end() {
                b"package" | b"p" => "package",
                b"config" | b"c" => "config",
                b"option" | b"o" => "option",
                b"list" | b"l" => "list",
                b"" => {
                    return Err(
                        self.error("the line ends where a command must follow, as after a ';'")
                    );
                }
                _ => {
                    let text = String::from_utf8_lossy(word).into_owned();
                    return Err(self.error(format!(
                        "'{}' is not a command; it must be config, option or list",
                        text.trim_end().escape_debug()
                    )));
                }
            };
            if length.is_none() || word.trim_ascii_end().len() != word.len() {
                return Err(self.error(format!("'{command}' must be followed by a name")));
            }
            self.position += 1;
            match command {
                "package" => self.package()?,
                "config" => self.config(line)?,
                _ => self.assignment(command, line)?,
            }
        }
    }

    /// `package NAME` is checked and has no effect, as when libuci loads a single file.
    fn package(&mut self) -> Result<(), UciError> {
        let argument = self.argument()?;
        let valid = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if argument.text.is_empty() || !argument.text.iter().all(valid) {
            return Err(self.error("'package' must be followed by a name"));
        }
        self.end_of_command("package")
    }

    fn config(&mut self, line: usize) -> Result<(), UciError> {
        let kind = self.argument()?;
        if kind.text.is_empty() {
            return Err(self.error("'config' must be followed by a type and a name"));
        }
        if !kind.text.iter().all(u8::is_ascii_graphic) {
            let text = String::from_utf8_lossy(&kind.text).into_owned();
            return Err(self.error(format!("'{}' is not a section type", text.escape_debug())));
        }
        let kind = kind.into_string()?;
        let name = self.name("a section")?;
        self.end_of_command("config")?;

        if let Some(&index) = self.by_name.get(&name) {
            if let Some(earlier) = self.sections.get(index).filter(|earlier| earlier.kind != kind) {
                let (earlier, first) = (&earlier.kind, earlier.line);
                return Err(self.error(format!(
                    "section '{name}' is of type {kind} here and of type {earlier} on line {first}"
                )));
            }
            self.current = Some(index);
            return Ok(());
        }
        let anonymous = name.is_empty();
        let name = if anonymous { generated_name(self.sections.len() + 1, &kind) } else { name };
        self.current = Some(self.sections.len());
        self.by_name.entry(name.clone()).or_insert(self.sections.len());
        self.sections.push(Section { kind, name, anonymous, line, options: Vec::new() });
        self.options.push(LiteMap::new());
        Ok(())
    }

    fn assignment(&mut self, command: &str, line: usize) -> Result<(), UciError> {
        let Some(current) = self.current else {
            return Err(self.error(format!("'{command}' before the first 'config'")));
        };
        let name = self.name("an option")?;
        if name.is_empty() {
            return Err(self.error(format!("'{command}' must be followed by a name and a value")));
        }
        let text = self.argument()?.into_string()?;
        self.end_of_command(command)?;

        let (Some(section), Some(by_name)) =
            (self.sections.get_mut(current), self.options.get_mut(current))
        else {
            return Ok(());
        };
        let known = by_name.get(&name).and_then(|&index| section.options.get_mut(index));
        match (command, known) {
            // libuci ignores an empty value: it neither sets the option nor clears it.
            ("option", _) if text.is_empty() => {}
            ("option", Some(known)) => {
                known.line = line;
                known.value = Value::String(text);
            }
            ("option", None) => {
                by_name.insert(name.clone(), section.options.len());
                section.options.push(Assignment { name, line, value: Value::String(text) });
            }
            (_, Some(known)) => {
                let item = Item { line, text };
                match &mut known.value {
                    Value::List(items) => items.push(item),
                    Value::String(first) => {
                        let first = Item { line: known.line, text: std::mem::take(first) };
                        known.value = Value::List(vec![first, item]);
                    }
                }
            }
            (_, None) => {
                by_name.insert(name.clone(), section.options.len());
                let value = Value::List(vec![Item { line, text }]);
                section.options.push(Assignment { name, line, value });
            }
        }
        Ok(())
    }
}
