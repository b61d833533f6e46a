//! The table of the uplinks, and why each is used or not.

use super::super::page::{Column, Page, Paint, Span};
use super::super::text::{bytes, duration, milliseconds, rate};
use super::super::{UplinkState, UplinkStatus, UsageStatus};
use super::list;
use crate::config::agent::Role;

fn uplink_word(uplink: &UplinkStatus) -> (&'static str, Paint) {
    match (uplink.state, uplink.in_use) {
        (UplinkState::Up, true) => ("in use", Paint::Green),
        (UplinkState::Degraded, true) => ("degraded", Paint::Yellow),
        (UplinkState::Up | UplinkState::Degraded, false) => ("standby", Paint::Plain),
        (UplinkState::Down, _) => ("down", Paint::Red),
        (UplinkState::Unused, _) => ("unused", Paint::Dim),
    }
}

pub(super) fn uplinks(page: &mut Page, uplinks: &[UplinkStatus]) {
    if uplinks.is_empty() {
        return;
    }
    page.blank();
    let columns = [
        Column::left("UPLINK", 0),
        Column::left("STATE", 0),
        Column::left("ROLE", 3),
        Column::left("DEVICE", 4),
        Column::right("DOWN", 0),
        Column::right("UP", 0),
        Column::left("LAST MINUTE", 0),
        Column::right("RTT", 1),
        Column::right("LOSS", 2),
        Column::right("SUBFLOWS", 5),
        Column::right("RECEIVED", 6),
        Column::right("SENT", 6),
        Column::right("TABLE", 8),
        Column::left("ENDPOINT", 8),
        Column::left("ADDRESS", 7),
    ];
    let none = page.none();
    let or_none = |value: Option<String>| Span::plain(value.unwrap_or_else(|| none.to_owned()));
    // One scale for all of them.
    let most = uplinks.iter().flat_map(|uplink| &uplink.recent_bps).copied().max().unwrap_or(0);
    let mut rows: Vec<Vec<Span>> = uplinks
        .iter()
        .map(|uplink| {
            let (word, paint) = uplink_word(uplink);
            vec![
                Span::new(&uplink.name, Paint::Bold),
                Span::new(word, paint),
                Span::plain(role(uplink).to_string()),
                or_none(uplink.device.clone()),
                Span::plain(rate(uplink.rx_bps)),
                Span::plain(rate(uplink.tx_bps)),
                Span::plain(page.sparkline(&uplink.recent_bps, most)),
                or_none(uplink.rtt_ms.map(milliseconds)),
                or_none(uplink.loss_percent.map(|loss| format!("{loss:.1} %"))),
                Span::plain(uplink.subflows.to_string()),
                Span::plain(bytes(uplink.rx_bytes)),
                Span::plain(bytes(uplink.tx_bytes)),
                or_none(uplink.table.map(|table| table.to_string())),
                Span::plain(endpoints(uplink, none)),
                Span::plain(address(uplink, none)),
            ]
        })
        .collect();
    if uplinks.len() > 1 {
        rows.push(total(uplinks));
    }
    page.table(&columns, &rows);
    for uplink in uplinks.iter().filter(|uplink| needs_reason(uplink)) {
        let (word, paint) = uplink_word(uplink);
        let mut text = format!("{word} for {}: {}", duration(uplink.since_seconds), uplink.reason);
        if let Some(set) = uplink.role_set {
            text.push_str(&format!("; role {set}, set by hand; configured: {}", uplink.role));
        }
        page.paragraph(&format!("  {}: ", uplink.name), &text, paint);
    }
    for uplink in uplinks {
        if let Some(text) = uplink.usage.as_ref().and_then(usage) {
            page.paragraph(&format!("  {}: ", uplink.name), &text, Paint::Plain);
        }
    }
}

/// How much of a quota is used.
fn usage(usage: &UsageStatus) -> Option<String> {
    let mut text = format!("{} of {}", bytes(usage.period_bytes), bytes(usage.quota_bytes?));
    if let (Some(since), Some(until)) = (&usage.since, &usage.until) {
        text.push_str(&format!(" used since {since}, counted anew from {until} on"));
    }
    Some(text)
}

/// The role that counts.
fn role(uplink: &UplinkStatus) -> Role {
    uplink.role_set.unwrap_or(uplink.role)
}

/// Whether a person would ask why; not of a bond uplink that works.
fn needs_reason(uplink: &UplinkStatus) -> bool {
    let works = uplink.in_use && uplink.state == UplinkState::Up;
    let ordinary = works && uplink.role == Role::Bond && uplink.role_set.is_none();
    !ordinary && !uplink.reason.is_empty()
}

fn total(uplinks: &[UplinkStatus]) -> Vec<Span> {
    let sum = |value: fn(&UplinkStatus) -> u64| -> u64 {
        uplinks.iter().map(value).fold(0, u64::saturating_add)
    };
    let empty = || Span::plain("");
    vec![
        Span::new("together", Paint::Bold),
        empty(),
        empty(),
        empty(),
        Span::new(rate(sum(|uplink| uplink.rx_bps)), Paint::Bold),
        Span::new(rate(sum(|uplink| uplink.tx_bps)), Paint::Bold),
        empty(),
        empty(),
        empty(),
        Span::plain(sum(|uplink| u64::from(uplink.subflows)).to_string()),
        Span::plain(bytes(sum(|uplink| uplink.rx_bytes))),
        Span::plain(bytes(sum(|uplink| uplink.tx_bytes))),
    ]
}

fn endpoints(uplink: &UplinkStatus, none: &str) -> String {
    let ids: Vec<String> = uplink.endpoints.iter().map(|it| it.id.to_string()).collect();
    let backup = uplink.endpoints.iter().any(|endpoint| endpoint.backup);
    format!("{}{}", list(&ids, none), if backup { " backup" } else { "" })
}

fn address(uplink: &UplinkStatus, none: &str) -> String {
    let addresses = list(&uplink.addresses, none);
    if uplink.gateways.is_empty() {
        return addresses;
    }
    format!("{addresses} via {}", list(&uplink.gateways, none))
}
