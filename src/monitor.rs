//! What `mptcp-bond monitor` shows: events as they happen, a line each.
//!
//! Fields and names of events are stable: they may be added to, and are never renamed.

#[cfg(test)]
mod tests;

use std::mem::discriminant;

#[cfg(test)]
use serde::Deserialize;
use serde::Serialize;

use crate::config::agent::Role;
use crate::failover::{InForce, Reason};
use crate::status::{Level, printable};

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// An uplink is used otherwise than before, or for another reason.
    Uplink {
        /// Its name.
        uplink: String,
        /// The role configured.
        role: Role,
        /// What it is used for now.
        used_as: UsedAs,
        /// Why.
        reason: String,
    },
    /// A server can be reached or not, is used or not.
    Server {
        /// Its name.
        server: String,
        /// Whether it is the one in use.
        used: bool,
        /// Whether new connections can be tunnelled to it.
        reachable: bool,
        /// Why not.
        reason: Option<String>,
    },
    /// A session began, or ended.
    Session {
        /// The server's name.
        server: String,
        /// The first eight hexadecimal digits of its id; none when there is no session any more.
        session: Option<String>,
    },
    /// A subflow of a connection to the server.
    Subflow {
        /// The uplink it is on; none where its address is no uplink's (any more).
        uplink: Option<String>,
        /// What became of it.
        change: SubflowChange,
        /// The connection's token in hexadecimal, as `ss -M` shows it.
        connection: String,
        /// Its local address.
        local: String,
        /// The error it ended with, as the kernel numbers them.
        error: Option<u8>,
    },
    /// A line of the agent's log.
    Message {
        /// How serious it is.
        level: Level,
        /// The line.
        text: String,
    },
    /// This reader was too slow, and events were left out here.
    Lost {
        /// How many.
        events: u64,
    },
}

impl Event {
    /// What it is called in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Event::Uplink { .. } => "uplink",
            Event::Server { .. } => "server",
            Event::Session { .. } => "session",
            Event::Subflow { .. } => "subflow",
            Event::Message { .. } => "message",
            Event::Lost { .. } => "lost",
        }
    }
}

/// What an uplink is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(rename_all = "lowercase")]
pub enum UsedAs {
    /// Carries traffic.
    Active,
    /// Stands by.
    Backup,
    /// Has no subflows.
    Unused,
}

impl From<InForce> for UsedAs {
    fn from(in_force: InForce) -> UsedAs {
        match in_force {
            InForce::Active => UsedAs::Active,
            InForce::Backup => UsedAs::Backup,
            InForce::Unused => UsedAs::Unused,
        }
    }
}

/// What became of a subflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
#[serde(rename_all = "lowercase")]
pub enum SubflowChange {
    /// The first of a new connection.
    First,
    /// It joined a connection.
    Joined,
    /// It ended.
    Closed,
    /// The peer changed its priority.
    Priority,
}

/// An event and its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(Deserialize))]
pub struct Line {
    /// Milliseconds since 1970 (UTC).
    pub time_unix_ms: u64,
    /// The event.
    #[serde(flatten)]
    pub event: Event,
}

impl Line {
    /// The line as JSON, without a newline.
    pub fn to_json(&self) -> String {
        // Neither a map with keys other than strings nor a failing Serialize is among the types.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads what [`Line::to_json`] wrote; `None` for an event of a newer version.
    #[cfg(test)]
    pub fn from_json(json: &str) -> Option<Line> {
        serde_json::from_str(json).ok()
    }

    /// The line for people; `None` for a message that says the same as an event does.
    pub fn for_people(&self, unicode: bool) -> Option<String> {
        let text = describe(&self.event)?;
        let seconds = self.time_unix_ms / 1000 % 86_400;
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        let text = printable(&text, unicode);
        Some(format!("{hours:02}:{minutes:02}:{:02}  {text}", seconds % 60))
    }
}

fn describe(event: &Event) -> Option<String> {
    Some(match event {
        Event::Uplink { uplink, used_as, reason, .. } => {
            let how = match used_as {
                UsedAs::Active => "in use",
                UsedAs::Backup => "standing by",
                UsedAs::Unused => "not used",
            };
            format!("uplink {uplink}: {how}: {reason}")
        }
        Event::Server { server, used, reachable, reason } => {
            let used = if *used { "in use" } else { "standing by" };
            let reach = if *reachable { "reachable" } else { "not reachable" };
            let reason = reason.as_ref().map(|text| format!(": {text}")).unwrap_or_default();
            format!("server {server}: {used}, {reach}{reason}")
        }
        Event::Session { server, session: Some(session) } => {
            format!("server {server}: session {session}")
        }
        Event::Session { server, session: None } => format!("server {server}: no session"),
        Event::Subflow { uplink, change, connection, local, error } => {
            let change = match change {
                SubflowChange::First => "begins",
                SubflowChange::Joined => "joins",
                SubflowChange::Closed => "leaves",
                SubflowChange::Priority => "has another priority in",
            };
            let uplink = uplink.as_deref().unwrap_or("no uplink");
            let error = error.map(|number| format!(", error {number}")).unwrap_or_default();
            format!("subflow on {uplink} ({local}) {change} connection {connection}{error}")
        }
        Event::Message { text, .. } if tells_of_an_event(text) => return None,
        Event::Message { level: Level::Info, text } => text.clone(),
        Event::Message { level, text } => format!("{}: {text}", level.word()),
        Event::Lost { events } => format!("{events} events were left out: this reader is slow"),
    })
}

/// Whether a line of the log is about what has events of its own.
fn tells_of_an_event(text: &str) -> bool {
    ["uplink ", "server "].iter().any(|subject| text.starts_with(subject))
}

/// What of the agent's state has events.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The uplinks in order of configuration.
    pub uplinks: Vec<UplinkView>,
    /// The servers in order of configuration.
    pub servers: Vec<ServerView>,
}

/// An uplink.
#[derive(Clone, Debug)]
pub struct UplinkView {
    /// Its name.
    pub name: String,
    /// The role configured.
    pub role: Role,
    /// What it is used for.
    pub in_force: InForce,
    /// Why.
    pub reason: Reason,
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerView {
    /// Its name.
    pub name: String,
    /// Whether it is the one in use.
    pub used: bool,
    /// Whether new connections can be tunnelled to it.
    pub reachable: bool,
    /// Why not.
    pub reason: Option<String>,
    /// The first digits of the session's id.
    pub session: Option<String>,
}

impl View {
    /// What happened between `before` and now. From nothing, it is all there is.
    pub fn since(&self, before: &View) -> Vec<Event> {
        let mut events = Vec::new();
        for server in &self.servers {
            let old = before.servers.iter().find(|old| old.name == server.name);
            let state = |it: &ServerView| (it.used, it.reachable);
            if old.map(state) != Some(state(server)) {
                events.push(Event::Server {
                    server: server.name.clone(),
                    used: server.used,
                    reachable: server.reachable,
                    reason: server.reason.clone().filter(|_| !server.reachable),
                });
            }
            if old.and_then(|old| old.session.as_ref()) != server.session.as_ref() {
                let (server, session) = (server.name.clone(), server.session.clone());
                events.push(Event::Session { server, session });
            }
        }
        for uplink in &self.uplinks {
            // Numbers in a reason change all the time.
            let state = |it: &UplinkView| (it.role, it.in_force, discriminant(&it.reason));
            let old = before.uplinks.iter().find(|old| old.name == uplink.name);
            if old.map(state) != Some(state(uplink)) {
                events.push(Event::Uplink {
                    uplink: uplink.name.clone(),
                    role: uplink.role,
                    used_as: uplink.in_force.into(),
                    reason: uplink.reason.to_string(),
                });
            }
        }
        events
    }
}
