//! A snapshot as a page for people: what is in use, what is not, and why.

mod uplinks;

use super::page::{Column, Page, Paint, Span};
use super::text::{bytes, duration, milliseconds, rate};
use super::{
    AgentSnapshot, AgentState, Connections, DatagramStatus, Event, Failure, ForwardStatus,
    KernelStatus, Level, ServerSnapshot, ServerState, ServerStatus, Snapshot, StreamCounts,
    UplinkStatus,
};
use uplinks::uplinks;

/// Connections shown at most; the JSON has more.
const CONNECTIONS: usize = 10;
/// Events shown at most; the JSON has more.
const EVENTS: usize = 10;

/// What the terminal can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Style {
    /// Columns; `usize::MAX` for no limit.
    pub width: usize,
    /// Whether colours may be used.
    pub colour: bool,
    /// Whether characters beyond ASCII may be used.
    pub unicode: bool,
    /// Whether the uplinks' rates of the last minute are drawn.
    #[serde(default)]
    pub graph: bool,
}

/// Renders a snapshot as lines of text. Whatever stands in its strings, the terminal only sees
/// printable characters and, with `colour`, this module's own colours.
pub fn render(snapshot: &Snapshot, style: Style) -> String {
    write(Page::new(style), snapshot)
}

/// Renders a snapshot as HTML: paragraphs and tables. Whatever stands in its strings is text.
pub fn render_html(snapshot: &Snapshot) -> String {
    write(Page::html(), snapshot)
}

fn write(mut page: Page, snapshot: &Snapshot) -> String {
    match snapshot {
        Snapshot::Agent(agent) => agent_page(&mut page, agent),
        Snapshot::Server(server) => server_page(&mut page, server),
    }
    page.finish()
}

fn agent_page(page: &mut Page, agent: &AgentSnapshot) {
    heading(page, "agent", &agent.version, agent.uptime_seconds);
    let paint = match agent.state {
        AgentState::Bonding | AgentState::Single => Paint::Green,
        AgentState::Connecting | AgentState::Disabled => Paint::Yellow,
        AgentState::Fallback
        | AgentState::Offline
        | AgentState::Direct
        | AgentState::Blocked
        | AgentState::Unconfigured => Paint::Red,
    };
    page.paragraph("", &agent.summary, paint);
    config_error(page, agent.config_error.as_deref());
    uplinks(page, &agent.uplinks);
    servers(page, &agent.servers);
    forwards(page, &agent.forwards);
    streams(page, &agent.streams);
    datagrams(page, &agent.datagrams);
    untunnelled(page, &agent.uplinks);
    connections(page, &agent.connections);
    problems(page, &agent.kernel, &agent.failures);
    events(page, &agent.events);
}

fn server_page(page: &mut Page, server: &ServerSnapshot) {
    heading(page, "server", &server.version, server.uptime_seconds);
    let connected = server.clients.iter().filter(|client| client.connected).count();
    let paint = if connected == 0 { Paint::Yellow } else { Paint::Green };
    let text = format!(
        "{connected} of {} clients connected; listening on {}, known as {}",
        server.clients.len(),
        list(&server.listen, page.none()),
        server.public
    );
    page.paragraph("", &text, paint);
    config_error(page, server.config_error.as_deref());
    clients(page, server);
    streams(page, &server.streams);
    datagrams(page, &server.datagrams);
    if !server.refusals.is_empty() || server.unauthenticated > 0 {
        let text =
            format!("{}; {} not known yet", causes(&server.refusals), server.unauthenticated);
        page.paragraph("Refused  ", &text, Paint::Plain);
    }
    connections(page, &server.connections);
    problems(page, &server.kernel, &server.failures);
    events(page, &server.events);
}

fn heading(page: &mut Page, role: &str, version: &str, uptime_seconds: u64) {
    page.line(&[
        Span::new(format!("mptcp-bond {version}"), Paint::Bold),
        Span::plain(format!("  {role}, running for {}", duration(uptime_seconds))),
    ]);
}

fn config_error(page: &mut Page, error: Option<&str>) {
    let Some(error) = error else { return };
    page.line(&[Span::new("The new configuration is not in force:", Paint::Red)]);
    for line in error.lines() {
        page.paragraph("  ", line, Paint::Red);
    }
}

/// An uplink's state as people would say it.
fn servers(page: &mut Page, servers: &[ServerStatus]) {
    if servers.is_empty() {
        return;
    }
    page.blank();
    let columns = [
        Column::left("SERVER", 0),
        Column::left("STATE", 0),
        Column::right("SINCE", 2),
        Column::right("RTT", 1),
        Column::left("CIPHER", 3),
        Column::left("SESSION", 5),
        Column::left("ADDRESS", 4),
    ];
    let none = page.none();
    let or_none = |value: Option<String>| Span::plain(value.unwrap_or_else(|| none.to_owned()));
    let rows: Vec<Vec<Span>> = servers
        .iter()
        .map(|server| {
            let (word, paint) = match server.state {
                ServerState::Connected if server.mptcp == Some(false) => ("plain TCP", Paint::Red),
                ServerState::Connected => ("connected", Paint::Green),
                ServerState::Connecting => ("connecting", Paint::Yellow),
                ServerState::Lost => ("lost", Paint::Red),
                ServerState::Standby => ("standby", Paint::Plain),
            };
            vec![
                Span::new(&server.name, Paint::Bold),
                Span::new(word, paint),
                Span::plain(duration(server.since_seconds)),
                or_none(server.rtt_ms.map(milliseconds)),
                or_none(server.cipher.clone()),
                or_none(server.session.clone()),
                Span::plain(&server.address),
            ]
        })
        .collect();
    page.table(&columns, &rows);
    for server in servers {
        let connected = server.state == ServerState::Connected;
        let label = format!("  {}: ", server.name);
        if connected && server.mptcp == Some(false) {
            let why = "something on the way strips MPTCP options, so nothing is bonded";
            page.paragraph(&label, why, Paint::Red);
        }
        if !server.reason.is_empty() {
            let paint = if server.state == ServerState::Lost { Paint::Red } else { Paint::Plain };
            page.paragraph(&label, &server.reason, paint);
        }
    }
}

fn forwards(page: &mut Page, forwards: &[ForwardStatus]) {
    if forwards.is_empty() {
        return;
    }
    page.blank();
    let columns = [
        Column::left("FORWARD", 0),
        Column::left("STATE", 0),
        Column::right("PORT", 0),
        Column::right("CONNECTIONS", 1),
        Column::left("TARGET", 2),
    ];
    let row = |forward: &ForwardStatus| {
        let paint = match forward.state.as_str() {
            "forwarded" => Paint::Green,
            "denied" => Paint::Red,
            _ => Paint::Yellow,
        };
        vec![
            Span::new(&forward.name, Paint::Bold),
            Span::new(&forward.state, paint),
            Span::plain(format!("{}/{}", forward.port, forward.protocol)),
            Span::plain(forward.connections.to_string()),
            Span::plain(&forward.target),
        ]
    };
    page.table(&columns, &forwards.iter().map(row).collect::<Vec<_>>());
    // What is denied is among the problems.
    for forward in forwards.iter().filter(|forward| forward.state == "waiting") {
        page.paragraph(&format!("  {}: ", forward.name), &forward.reason, Paint::Plain);
    }
}

fn clients(page: &mut Page, server: &ServerSnapshot) {
    if server.clients.is_empty() {
        return;
    }
    page.blank();
    let columns = [
        Column::left("CLIENT", 0),
        Column::left("STATE", 0),
        Column::right("SINCE", 2),
        Column::right("STREAMS", 1),
        Column::right("DOWN", 0),
        Column::right("UP", 0),
        Column::right("SENT", 3),
        Column::right("RECEIVED", 3),
        Column::left("ADDRESS", 4),
    ];
    let none = page.none();
    let or_none = |value: Option<String>| Span::plain(value.unwrap_or_else(|| none.to_owned()));
    let rows: Vec<Vec<Span>> = server
        .clients
        .iter()
        .map(|client| {
            let (word, paint) = match (client.connected, client.since_seconds) {
                (true, _) => ("connected", Paint::Green),
                (false, Some(_)) => ("gone", Paint::Yellow),
                (false, None) => ("never seen", Paint::Dim),
            };
            vec![
                Span::new(&client.name, Paint::Bold),
                Span::new(word, paint),
                or_none(client.since_seconds.map(duration)),
                Span::plain(client.streams.to_string()),
                Span::plain(rate(client.down_bps)),
                Span::plain(rate(client.up_bps)),
                Span::plain(bytes(client.down_bytes)),
                Span::plain(bytes(client.up_bytes)),
                or_none(client.address.clone()),
            ]
        })
        .collect();
    page.table(&columns, &rows);
}

fn streams(page: &mut Page, streams: &StreamCounts) {
    page.blank();
    let mut text = format!(
        "{} open, {} warm; {} opened, {} failed",
        streams.open, streams.warm, streams.opened_total, streams.failed_total
    );
    if !streams.failed_by_cause.is_empty() {
        text.push_str(&format!(" ({})", causes(&streams.failed_by_cause)));
    }
    page.paragraph("Streams  ", &text, Paint::Plain);
}

/// UDP that is tunnelled, where there is any.
fn datagrams(page: &mut Page, datagrams: &DatagramStatus) {
    let DatagramStatus { flows, up_total, down_total, duplicates_removed_total } = datagrams;
    if *datagrams != DatagramStatus::default() {
        let text = format!(
            "{flows} flows; {up_total} datagrams up, {down_total} down, {duplicates_removed_total} \
             duplicates removed"
        );
        page.paragraph("UDP  ", &text, Paint::Plain);
    }
}

/// Where leaves what is not tunnelled.
fn untunnelled(page: &mut Page, uplinks: &[UplinkStatus]) {
    let ways: Vec<String> = uplinks
        .iter()
        .filter(|uplink| !uplink.untunnelled.is_empty())
        .map(|uplink| format!("{} ({})", uplink.name, uplink.untunnelled.join(", ")))
        .collect();
    if !ways.is_empty() {
        page.paragraph("Untunnelled  ", &format!("over {}", ways.join(", ")), Paint::Plain);
    }
}

fn connections(page: &mut Page, connections: &Connections) {
    if connections.top.is_empty() {
        return;
    }
    page.blank();
    let columns = [
        Column::left("CONNECTION", 0),
        Column::left("TO", 0),
        Column::right("DOWN", 1),
        Column::right("UP", 2),
        Column::right("RECEIVED", 3),
        Column::right("SENT", 3),
        Column::right("AGE", 4),
        Column::right("SUBFLOWS", 5),
    ];
    let none = page.none();
    let rows: Vec<Vec<Span>> = connections
        .top
        .iter()
        .take(CONNECTIONS)
        .map(|connection| {
            vec![
                Span::plain(connection.client.to_string()),
                Span::plain(connection.target.to_string()),
                Span::plain(rate(connection.down_bps)),
                Span::plain(rate(connection.up_bps)),
                Span::plain(bytes(connection.down_bytes)),
                Span::plain(bytes(connection.up_bytes)),
                Span::plain(duration(connection.age_seconds)),
                Span::plain(
                    connection.subflows.map_or_else(|| none.to_owned(), |count| count.to_string()),
                ),
            ]
        })
        .collect();
    page.table(&columns, &rows);
    let more = connections.total.saturating_sub(rows.len() as u64);
    if more > 0 {
        page.line(&[Span::new(format!("  and {more} more"), Paint::Dim)]);
    }
}

/// Whatever of the kernel's side a person should know of.
fn problems(page: &mut Page, kernel: &KernelStatus, failures: &[Failure]) {
    let mut lines: Vec<(Paint, String)> = Vec::new();
    for name in &kernel.other_path_managers {
        let text =
            format!("{name} is running, which manages MPTCP endpoints too: stop one of them");
        lines.push((Paint::Red, text));
    }
    lines.extend(kernel.conflicts.iter().map(|text| (Paint::Red, text.clone())));
    for failure in failures {
        let Failure { operation, error, errno, since_seconds } = failure;
        let number = errno.map(|errno| format!(" (errno {errno})")).unwrap_or_default();
        let time = duration(*since_seconds);
        let text = format!("{operation}: {error}{number}, tried again for {time}");
        lines.push((Paint::Red, text));
    }
    for sysctl in &kernel.sysctls_not_set {
        let text = format!("{} is not {}: {}", sysctl.key, sysctl.wanted, sysctl.error);
        lines.push((Paint::Yellow, text));
    }
    for counter in kernel.counters.iter().filter(|counter| counter.symptom && counter.value > 0) {
        let text = format!("{} {}: {}", counter.name, counter.value, counter.meaning);
        lines.push((Paint::Yellow, text));
    }
    if lines.is_empty() {
        return;
    }
    page.blank();
    page.line(&[Span::new("Problems", Paint::Bold)]);
    for (paint, text) in lines {
        page.paragraph("  ", &text, paint);
    }
}

fn events(page: &mut Page, events: &[Event]) {
    if events.is_empty() {
        return;
    }
    page.blank();
    let columns = [Column::right("AGE", 0), Column::left("", 0), Column::left("EVENT", 0)];
    let rows: Vec<Vec<Span>> = events
        .get(events.len().saturating_sub(EVENTS)..)
        .unwrap_or_default()
        .iter()
        .map(|event| {
            let paint = match event.level {
                Level::Error => Paint::Red,
                Level::Warning => Paint::Yellow,
                Level::Info => Paint::Plain,
            };
            vec![
                Span::plain(duration(event.age_seconds)),
                Span::new(event.level.word(), paint),
                Span::plain(&event.text),
            ]
        })
        .collect();
    page.table(&columns, &rows);
}

fn list(items: &[String], none: &str) -> String {
    match items {
        [] => none.to_owned(),
        items => items.join(", "),
    }
}

fn causes(counts: &std::collections::BTreeMap<String, u64>) -> String {
    let counts: Vec<String> = counts.iter().map(|(cause, n)| format!("{cause} {n}")).collect();
    list(&counts, "none")
}
