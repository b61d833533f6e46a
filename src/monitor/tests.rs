use std::time::Duration;

use super::*;

fn view() -> View {
    let uplink = |name: &str| UplinkView {
        name: name.into(),
        role: Role::Bond,
        in_force: InForce::Active,
        reason: Reason::Live,
    };
    View {
        uplinks: vec![uplink("wan"), uplink("lte")],
        servers: vec![ServerView {
            name: "vps".into(),
            used: true,
            reachable: true,
            reason: None,
            session: Some("7aadac1f".into()),
        }],
    }
}

fn people(events: Vec<Event>) -> Vec<String> {
    let line = |event| Line { time_unix_ms: 50_531_900, event }.for_people(true);
    events.into_iter().filter_map(line).collect()
}

#[test]
fn who_begins_to_read_hears_how_things_are() {
    assert_eq!(
        people(view().since(&View::default())),
        [
            "14:02:11  server vps: in use, reachable",
            "14:02:11  server vps: session 7aadac1f",
            "14:02:11  uplink wan: in use: probes answered",
            "14:02:11  uplink lte: in use: probes answered",
        ]
    );
    assert!(view().since(&view()).is_empty());
}

#[test]
fn a_change_is_told_once_and_a_number_that_grows_is_none() {
    let before = view();
    let mut after = view();
    after.uplinks[1].in_force = InForce::Unused;
    after.uplinks[1].reason = Reason::Unanswered(Duration::from_secs(1));
    after.servers[0].reachable = false;
    after.servers[0].reason = Some("no answer for 10 s".into());
    after.servers[0].session = None;
    assert_eq!(
        people(after.since(&before)),
        [
            "14:02:11  server vps: in use, not reachable: no answer for 10 s",
            "14:02:11  server vps: no session",
            "14:02:11  uplink lte: not used: probes unanswered for 1 s",
        ]
    );
    let mut later = after.clone();
    later.uplinks[1].reason = Reason::Unanswered(Duration::from_secs(2));
    assert!(later.since(&after).is_empty());
}

#[test]
fn subflows_messages_and_gaps() {
    let subflow = |change, error| Event::Subflow {
        uplink: Some("lte".into()),
        change,
        connection: "00c0ffee".into(),
        local: "10.64.3.2".into(),
        error,
    };
    let message = |text: &str| Event::Message { level: Level::Warning, text: text.into() };
    assert_eq!(
        people(vec![
            subflow(SubflowChange::Joined, None),
            subflow(SubflowChange::Closed, Some(110)),
            message("uplink lte: not used: probes unanswered"),
            message("ip rule add: EPERM\u{1b}[31m"),
            Event::Lost { events: 3 },
        ]),
        [
            "14:02:11  subflow on lte (10.64.3.2) joins connection 00c0ffee",
            "14:02:11  subflow on lte (10.64.3.2) leaves connection 00c0ffee, error 110",
            "14:02:11  warning: ip rule add: EPERM\\u{1b}[31m",
            "14:02:11  3 events were left out: this reader is slow",
        ]
    );
}

#[test]
fn json_is_one_flat_object_a_line() {
    let event = Event::Session { server: "vps".into(), session: None };
    let line = Line { time_unix_ms: 7, event };
    let json = "{\"time_unix_ms\":7,\"event\":\"session\",\"server\":\"vps\",\"session\":null}";
    assert_eq!(line.to_json(), json);
    assert_eq!(Line::from_json(json), Some(line));
    assert_eq!(Line::from_json("{\"time_unix_ms\":7,\"event\":\"newer\"}"), None);
}
