//! Lines and tables, as coloured text that never exceeds the terminal's width, or as HTML.

use super::render::Style;
use super::text::{head, printable, width};

/// Space between two columns.
const GAP: usize = 2;
/// Columns the last column may shrink to before another one is left out.
const LEAST_LAST: usize = 12;

/// How a piece of text looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paint {
    Plain,
    Bold,
    Dim,
    Green,
    Yellow,
    Red,
}

impl Paint {
    /// The class in HTML.
    fn class(self) -> &'static str {
        match self {
            Paint::Plain | Paint::Bold => "",
            Paint::Dim => "quiet",
            Paint::Green => "good",
            Paint::Yellow => "warn",
            Paint::Red => "bad",
        }
    }

    /// The parameters of ECMA-48's SGR sequence.
    fn sgr(self) -> &'static str {
        match self {
            Paint::Plain => "",
            Paint::Bold => "1",
            Paint::Dim => "2",
            Paint::Green => "32",
            Paint::Yellow => "33",
            Paint::Red => "31",
        }
    }
}

/// A piece of text of one look.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    text: String,
    paint: Paint,
}

impl Span {
    pub(crate) fn new(text: impl Into<String>, paint: Paint) -> Span {
        Span { text: text.into(), paint }
    }

    pub(crate) fn plain(text: impl Into<String>) -> Span {
        Span::new(text, Paint::Plain)
    }
}

/// A column of a table.
pub(crate) struct Column {
    pub(crate) title: &'static str,
    pub(crate) right: bool,
    /// Columns with the highest number are left out first where the terminal is narrow; 0 stays.
    pub(crate) expendable: u8,
}

impl Column {
    pub(crate) fn left(title: &'static str, expendable: u8) -> Column {
        Column { title, right: false, expendable }
    }

    pub(crate) fn right(title: &'static str, expendable: u8) -> Column {
        Column { title, right: true, expendable }
    }
}

/// A page being written, line by line.
pub(crate) struct Page {
    style: Style,
    html: bool,
    out: String,
}

impl Page {
    pub(crate) fn new(style: Style) -> Page {
        Page { style, html: false, out: String::new() }
    }

    /// A page in HTML, which breaks its lines by itself.
    pub(crate) fn html() -> Page {
        let style = Style { width: usize::MAX, colour: true, unicode: true, graph: false };
        Page { style, html: true, out: String::new() }
    }

    pub(crate) fn finish(self) -> String {
        self.out
    }

    /// What stands for a value that is not known.
    pub(crate) fn none(&self) -> &'static str {
        if self.style.unicode { "–" } else { "-" }
    }

    pub(crate) fn blank(&mut self) {
        if !self.html {
            self.out.push('\n');
        }
    }

    /// Values as a row of bars, `most` the highest; nothing where the style has no graphs.
    pub(crate) fn sparkline(&self, values: &[u64], most: u64) -> String {
        const UNICODE: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        const ASCII: [char; 9] = [' ', '.', ':', '-', '=', '+', '*', '#', '@'];
        if !self.style.graph {
            return String::new();
        }
        let bars = if self.style.unicode { UNICODE } else { ASCII };
        let steps = bars.len() as u64 - 1;
        let bar = |value: &u64| {
            // Whatever is not nothing shows.
            let height = value.saturating_mul(steps).div_ceil(most.max(1)).min(steps);
            usize::try_from(height).ok().and_then(|height| bars.get(height))
        };
        values.iter().filter_map(bar).collect()
    }

    /// Writes a line, cut at the terminal's width.
    pub(crate) fn line(&mut self, spans: &[Span]) {
        if self.html {
            return self.element("p", "", spans);
        }
        let ellipsis = if self.style.unicode { "…" } else { "..." };
        let shown: Vec<(String, Paint)> = spans
            .iter()
            .map(|span| (printable(&span.text, self.style.unicode).into_owned(), span.paint))
            .collect();
        let total: usize = shown.iter().map(|(text, _)| width(text)).sum();
        let fits = total <= self.style.width;
        let mut left = if fits { total } else { self.style.width.saturating_sub(width(ellipsis)) };
        let start = self.out.len();
        for (text, paint) in &shown {
            let piece = head(text, left);
            self.paint(piece, *paint);
            if piece.len() < text.len() {
                break;
            }
            left = left.saturating_sub(width(piece));
        }
        if !fits {
            self.out.push_str(head(ellipsis, self.style.width));
        }
        let end = self.out.trim_end_matches(' ').len().max(start);
        self.out.truncate(end);
        self.out.push('\n');
    }

    /// Writes a text after a label, broken between words where the line would be too long.
    pub(crate) fn paragraph(&mut self, label: &str, text: &str, paint: Paint) {
        const INDENT: &str = "    ";
        if self.html {
            return self.element("p", "", &[Span::new(format!("{label}{text}"), paint)]);
        }
        let label = printable(label, self.style.unicode).into_owned();
        let text = printable(text, self.style.unicode).into_owned();
        let mut line = label;
        let mut fresh = true;
        for word in text.split(' ') {
            if !fresh && width(&line) + 1 + width(word) > self.style.width {
                self.line(&[Span::new(std::mem::take(&mut line), paint)]);
                line.push_str(INDENT);
                fresh = true;
            }
            if !fresh {
                line.push(' ');
            }
            line.push_str(word);
            fresh = false;
        }
        self.line(&[Span::new(line, paint)]);
    }

    fn paint(&mut self, text: &str, paint: Paint) {
        if self.style.colour && paint != Paint::Plain && !text.is_empty() {
            for piece in ["\x1b[", paint.sgr(), "m", text, "\x1b[0m"] {
                self.out.push_str(piece);
            }
        } else {
            self.out.push_str(text);
        }
    }

    /// Writes a table with a line of titles. Columns without any content are left out, and so are
    /// expendable ones until the rest fits.
    pub(crate) fn table(&mut self, columns: &[Column], rows: &[Vec<Span>]) {
        if self.html {
            return self.html_table(columns, rows);
        }
        let unicode = self.style.unicode;
        let shown_width = |span: &Span| width(&printable(&span.text, unicode));
        let content = |index: usize| rows.iter().filter_map(move |row| row.get(index));
        let mut kept: Vec<(usize, &Column, usize)> = columns
            .iter()
            .enumerate()
            .filter(|(index, _)| content(*index).any(|span| !span.text.is_empty()))
            .map(|(index, column)| {
                let widest = content(index).map(shown_width).max().unwrap_or(0);
                (index, column, widest.max(width(column.title)))
            })
            .collect();
        while needed(&kept) > self.style.width {
            let Some(worst) = kept.iter().map(|(_, column, _)| column.expendable).max() else {
                break;
            };
            if worst == 0 {
                break;
            }
            kept.retain(|(_, column, _)| column.expendable != worst);
        }
        let titles: Vec<Span> =
            columns.iter().map(|column| Span::new(column.title, Paint::Dim)).collect();
        for row in std::iter::once(&titles).chain(rows) {
            let mut line = Vec::new();
            for (position, (index, column, widest)) in kept.iter().enumerate() {
                let empty = Span::plain("");
                let span = row.get(*index).unwrap_or(&empty);
                let padding = " ".repeat(widest.saturating_sub(shown_width(span)));
                if position > 0 {
                    line.push(Span::plain(" ".repeat(GAP)));
                }
                if column.right {
                    line.extend([Span::plain(padding), span.clone()]);
                } else {
                    line.push(span.clone());
                    if position + 1 < kept.len() {
                        line.push(Span::plain(padding));
                    }
                }
            }
            self.line(&line);
        }
    }
}

impl Page {
    /// Writes an HTML element whose contents are text.
    fn element(&mut self, name: &str, attributes: &str, spans: &[Span]) {
        self.out.extend(["<", name, attributes, ">"]);
        for Span { text, paint } in spans {
            let text = escaped(&printable(text, true));
            match (paint, paint.class()) {
                (Paint::Bold, _) => self.out.extend(["<b>", &text, "</b>"]),
                (_, "") => self.out.push_str(&text),
                (_, class) => {
                    self.out.extend(["<span class=\"", class, "\">", &text, "</span>"]);
                }
            }
        }
        self.out.extend(["</", name, ">\n"]);
    }

    fn html_table(&mut self, columns: &[Column], rows: &[Vec<Span>]) {
        let empty = Span::plain("");
        let side = |column: &Column| if column.right { " class=\"n\"" } else { "" };
        self.out.push_str("<table><thead><tr>");
        let content = |index: usize| rows.iter().filter_map(move |row| row.get(index));
        let filled = |index: &usize| content(*index).any(|span| !span.text.is_empty());
        let kept: Vec<usize> = (0..columns.len()).filter(filled).collect();
        let column = |index: &usize| columns.get(*index);
        for column in kept.iter().filter_map(column) {
            let attributes = format!(" scope=\"col\"{}", side(column));
            self.element("th", &attributes, &[Span::plain(column.title)]);
        }
        self.out.push_str("</tr></thead>\n");
        for row in rows {
            self.out.push_str("<tr>");
            for index in &kept {
                let span = row.get(*index).unwrap_or(&empty);
                let side = column(index).map_or("", side);
                self.element("td", side, std::slice::from_ref(span));
            }
            self.out.push_str("</tr>\n");
        }
        self.out.push_str("</table>\n");
    }
}

/// Text as HTML has it, also within quotation marks.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// The width below which a table cannot be read.
fn needed(kept: &[(usize, &Column, usize)]) -> usize {
    let Some((last, others)) = kept.split_last() else {
        return 0;
    };
    let last = if last.1.right { last.2 } else { last.2.min(LEAST_LAST) };
    others.iter().map(|(_, _, widest)| widest + GAP).sum::<usize>() + last
}
