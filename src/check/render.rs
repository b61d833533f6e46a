//! A report as a page for people.

use super::{Finding, Grade, Report};
use crate::status::Style;
use crate::status::page::{Column, Page, Paint, Span};

/// Renders a report: the problems first, in full, then everything that was looked at.
pub fn render(report: &Report, style: Style) -> String {
    let mut page = Page::new(style);
    let (failed, warned) = (report.count(Grade::Failed), report.count(Grade::Warning));
    let (verdict, paint) = match (failed, warned) {
        (0, 0) => ("everything is well".to_owned(), Paint::Green),
        (0, _) => (format!("works, with {}", number(warned, "warning")), Paint::Yellow),
        (_, 0) => (number(failed, "problem"), Paint::Red),
        _ => {
            let text = format!("{}, {}", number(failed, "problem"), number(warned, "warning"));
            (text, Paint::Red)
        }
    };
    page.line(&[
        Span::new(format!("mptcp-bond {}  ", report.version), Paint::Bold),
        Span::new(verdict, paint),
    ]);
    for finding in report.findings.iter().filter(|finding| finding.result != Grade::Ok) {
        page.blank();
        let text = format!("{}: {}", finding.subject, finding.found);
        page.paragraph("", &text, paint_of(finding.result));
        if !finding.advice.is_empty() {
            page.paragraph("  -> ", &finding.advice, Paint::Plain);
        }
    }
    page.blank();
    let columns = [
        Column::left("SUBJECT", 0),
        Column::left("CHECK", 0),
        Column::left("RESULT", 0),
        Column::left("FOUND", 0),
    ];
    let mut last = "";
    let rows: Vec<Vec<Span>> = report
        .findings
        .iter()
        .map(|finding| {
            let subject = if finding.subject == last { "" } else { finding.subject.as_str() };
            last = &finding.subject;
            row(subject, finding)
        })
        .collect();
    page.table(&columns, &rows);
    page.finish()
}

fn row(subject: &str, finding: &Finding) -> Vec<Span> {
    let found = finding.found.lines().next().unwrap_or_default();
    vec![
        Span::new(subject, Paint::Bold),
        Span::plain(finding.check.as_ref()),
        Span::new(finding.result.word(), paint_of(finding.result)),
        Span::plain(found),
    ]
}

fn paint_of(grade: Grade) -> Paint {
    match grade {
        Grade::Ok => Paint::Green,
        Grade::Warning => Paint::Yellow,
        Grade::Failed => Paint::Red,
    }
}

fn number(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
