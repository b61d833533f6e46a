//! Who watches the agent, and what they are told.

use std::net::IpAddr;
use std::time::Instant;

use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

use super::Agent;
use crate::controller::Controller;
use crate::json;
use crate::monitor::{Event, Line, ServerView, SubflowChange, UplinkView, View};
use crate::os::control::{Cause, Refusal, Request};
use crate::os::path_manager::{PmEvent, PmEventKind};
use crate::registry::unix_time;
use crate::status::Style;

/// Readers at once.
const READERS_LIMIT: usize = 8;

/// What a reader wants, as the method takes it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Wish {
    /// How its terminal shows text for people; none where it gets JSON.
    style: Option<Style>,
    /// The events it wants; none where it wants all.
    events: Option<Vec<String>>,
}

/// One who watches.
struct Reader {
    lines: Sender<String>,
    wish: Wish,
    /// Events left out because its queue was full.
    lost: u64,
}

/// What became of a line for a reader.
enum Handed {
    Over,
    /// The queue was full, so the line is left out.
    Lost,
    /// Nobody reads any more.
    Gone,
}

impl Reader {
    /// An event as this reader wants it; none where it does not want it, or where it says the same
    /// as another one does.
    fn line(&self, event: Event) -> Option<String> {
        if self.wish.events.as_ref().is_some_and(|them| !them.iter().any(|it| it == event.name())) {
            return None;
        }
        let time = u64::try_from(unix_time().as_millis()).unwrap_or(u64::MAX);
        let line = Line { time_unix_ms: time, event };
        match self.wish.style {
            None => Some(line.to_json()),
            Some(style) => line.for_people(style.unicode),
        }
    }

    fn hand(&mut self, line: String) -> Handed {
        match self.lines.try_send(line) {
            Ok(()) => Handed::Over,
            Err(TrySendError::Full(_)) => {
                self.lost = self.lost.saturating_add(1);
                Handed::Lost
            }
            Err(TrySendError::Closed(_)) => Handed::Gone,
        }
    }

    /// Hands an event over unless the queue is full; whether anybody is still there.
    fn tell(&mut self, event: Event) -> bool {
        if self.lost > 0 {
            let lost = self.line(Event::Lost { events: self.lost }).unwrap_or_default();
            match self.hand(lost) {
                Handed::Over => self.lost = 0,
                // The event is left out as well, and counted.
                Handed::Lost => return true,
                Handed::Gone => return false,
            }
        }
        match self.line(event) {
            Some(line) => !matches!(self.hand(line), Handed::Gone),
            None => !self.lines.is_closed(),
        }
    }
}

/// Those who watch.
#[derive(Default)]
pub struct Monitor {
    readers: Vec<Reader>,
    last: View,
}

impl Monitor {
    /// Whether anybody watches; otherwise nothing needs to be made for them.
    pub fn is_watched(&self) -> bool {
        !self.readers.is_empty()
    }

    /// Tells all readers of an event. None of them is waited for.
    pub fn tell(&mut self, event: &Event) {
        self.readers.retain_mut(|reader| reader.tell(event.clone()));
    }

    /// Tells what is otherwise than at the last call.
    pub fn compare(&mut self, now: View) {
        for event in now.since(&self.last) {
            self.tell(&event);
        }
        self.last = now;
    }

    /// Adds a reader, which is told how things are.
    fn add(&mut self, lines: Sender<String>, wish: Wish, now: View) -> Result<(), Refusal> {
        self.readers.retain(|reader| !reader.lines.is_closed());
        if self.readers.len() >= READERS_LIMIT {
            let text = format!("{READERS_LIMIT} others watch already: end one of them");
            return Err(Refusal::new(Cause::Busy, text));
        }
        // What is new to all is told before this one is among them.
        self.compare(now);
        let mut reader = Reader { lines, wish, lost: 0 };
        let there = self.last.since(&View::default()).into_iter().all(|event| reader.tell(event));
        self.readers.extend(Some(reader).filter(|_| there));
        Ok(())
    }
}

/// Takes a request to watch.
pub fn begin(agent: &mut Agent, request: Request) {
    let now = view(agent);
    let result = wish(request.params).and_then(|wish| match request.lines {
        Some(lines) => agent.monitor.add(lines, wish, now).map(|()| "{}".to_owned()),
        None => Err(Refusal::parameters("this way leads to single answers alone".into())),
    });
    // Who asked may be gone.
    let _ = request.reply.send(result);
}

fn wish(params: Value) -> Result<Wish, Refusal> {
    Ok(json::params(params).map_err(Refusal::parameters)?.unwrap_or_default())
}

/// What of the agent has events.
pub fn view(agent: &Agent) -> View {
    let controller = &agent.controller;
    let uplink = |assignment: &crate::failover::Assignment| {
        let uplinks = &mut controller.uplinks().iter();
        let uplink = uplinks.find(|uplink| uplink.slot == assignment.slot)?;
        Some(UplinkView {
            name: assignment.name.clone(),
            role: uplink.role,
            in_force: assignment.in_force,
            reason: assignment.reason.clone(),
        })
    };
    let servers = controller.servers(Instant::now()).map(|view| ServerView {
        name: view.config.name.clone(),
        used: view.used,
        reachable: view.server.reachable,
        reason: view.server.trouble.clone(),
        session: agent
            .link
            .view(&view.config.name)
            .session
            .map(|session| format!("{:08x}", session.id().0 >> 32)),
    });
    View {
        uplinks: controller.assignments().iter().filter_map(uplink).collect(),
        servers: servers.collect(),
    }
}

/// What an event of the path manager means to those who watch: connections to a server alone.
pub fn subflow(event: &PmEvent, controller: &Controller) -> Option<Event> {
    let change = match event.kind {
        PmEventKind::Established => SubflowChange::First,
        PmEventKind::SubflowEstablished => SubflowChange::Joined,
        PmEventKind::SubflowClosed => SubflowChange::Closed,
        PmEventKind::SubflowPriority => SubflowChange::Priority,
        _ => return None,
    };
    let (local, remote) = (event.saddr?.to_canonical(), event.daddr?.to_canonical());
    let mut servers = controller.servers(Instant::now());
    let ours = servers
        .any(|view| view.server.in_use == Some(remote) || view.server.addresses.contains(&remote));
    (ours && !event.server_side).then(|| Event::Subflow {
        uplink: uplink_of(local, controller),
        change,
        connection: format!("{:08x}", event.token.unwrap_or(0)),
        local: local.to_string(),
        error: event.error.filter(|&error| error != 0),
    })
}

fn uplink_of(address: IpAddr, controller: &Controller) -> Option<String> {
    let uplink = controller.uplinks().iter().find(|uplink| uplink.has_address(address))?;
    Some(uplink.name.clone())
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::status::Level;

    fn message(number: usize) -> Event {
        Event::Message { level: Level::Info, text: number.to_string() }
    }

    #[test]
    fn a_slow_reader_is_told_how_much_it_missed() {
        let mut monitor = Monitor::default();
        let (lines, mut queue) = mpsc::channel(2);
        monitor.add(lines, Wish::default(), View::default()).unwrap();
        (0..5).for_each(|number| monitor.tell(&message(number)));
        let mut received = || Line::from_json(&queue.try_recv().unwrap()).unwrap().event;
        assert_eq!([received(), received()], [message(0), message(1)]);
        monitor.tell(&message(5));
        assert_eq!([received(), received()], [Event::Lost { events: 3 }, message(5)]);
    }

    #[test]
    fn a_person_gets_lines_to_read_and_json_is_for_programs() {
        let mut monitor = Monitor::default();
        let (lines, mut queue) = mpsc::channel(2);
        let style = Some(Style { width: 80, colour: false, unicode: false, graph: false });
        let wish = Wish { style, events: None };
        monitor.add(lines, wish, View::default()).unwrap();
        let told = Event::Message { level: Level::Info, text: "uplink wan: in use".into() };
        monitor.tell(&told);
        monitor.tell(&message(7));
        let line = queue.try_recv().unwrap();
        assert!(line.ends_with("  7") && !line.contains('{'), "{line}");
        assert!(monitor.is_watched());
    }

    #[test]
    fn events_that_are_not_wanted_take_no_room() {
        let mut monitor = Monitor::default();
        let (lines, mut queue) = mpsc::channel(1);
        let wish = wish(serde_json::json!({ "events": ["message"] })).ok().unwrap();
        monitor.add(lines, wish, View::default()).unwrap();
        monitor.tell(&Event::Session { server: "vps".into(), session: None });
        monitor.tell(&message(3));
        assert_eq!(Line::from_json(&queue.try_recv().unwrap()).unwrap().event, message(3));
        assert!(super::wish(serde_json::json!({ "events": 1 })).is_err());
    }

    #[test]
    fn who_went_away_makes_room() {
        let mut monitor = Monitor::default();
        let mut queues = Vec::new();
        for _ in 0..READERS_LIMIT {
            let (lines, queue) = mpsc::channel(1);
            monitor.add(lines, Wish::default(), View::default()).unwrap();
            queues.push(queue);
        }
        assert!(monitor.add(mpsc::channel(1).0, Wish::default(), View::default()).is_err());
        queues.pop();
        let (lines, queue) = mpsc::channel(1);
        assert_eq!(monitor.add(lines, Wish::default(), View::default()), Ok(()));
        queues.clear();
        drop(queue);
        monitor.tell(&message(1));
        assert!(!monitor.is_watched());
    }
}
