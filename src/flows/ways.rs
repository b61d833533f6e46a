//! Over which ways a client's datagrams arrive, and its answers therefore go.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::tunnel::datagram::Opened;
use crate::tunnel::session::SessionId;

/// A datagram sent twice shows a way if it is no more numbers late than this: a slow uplink's copy
/// does, a recorded one that somebody sends again from elsewhere does not for long.
const RECENT: u64 = 1024;

/// How often new ways are shown at short intervals.
const NEWLY: u32 = 3;
/// Between those; no longer than the second in which they are looked at.
const NEW_INTERVAL: Duration = Duration::from_millis(900);
/// Between signs later on; a NAT may forget after 30 seconds.
const INTERVAL: Duration = Duration::from_secs(10);

/// The ways to a client.
pub struct Ways<W> {
    session: SessionId,
    newest: u64,
    /// The latest first; two of a client that sends over two uplinks.
    ways: Vec<(SocketAddr, W)>,
}

impl<W> Ways<W> {
    /// No way yet, to a client in this session.
    pub fn new(session: SessionId) -> Ways<W> {
        Ways { session, newest: 0, ways: Vec::new() }
    }

    /// The session to answer in.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The ways to answer over.
    pub fn get(&self) -> impl Iterator<Item = &W> {
        self.ways.iter().map(|(_, way)| way)
    }

    /// Takes note of an authentic datagram from `remote`, in a session that is the client's latest or
    /// not.
    pub fn hear(
        &mut self,
        session: (SessionId, bool),
        opened: &Opened,
        remote: SocketAddr,
        way: W,
    ) {
        let (id, is_latest) = session;
        if id != self.session && is_latest {
            (self.session, self.newest) = (id, 0);
        }
        let (twice, late) = (opened.datagram.twice, self.newest.saturating_sub(opened.counter));
        let overtaken = if twice { late > RECENT } else { late > 0 || !opened.fresh };
        if id != self.session || overtaken {
            return;
        }
        self.newest = self.newest.max(opened.counter);
        self.ways.retain(|(known, _)| twice && *known != remote);
        self.ways.insert(0, (remote, way));
        self.ways.truncate(2);
    }
}

/// When a client shows its ways again to a server that may have something for it: a sign can get lost,
/// and a NAT forget.
#[derive(Default)]
pub struct Signs {
    shown: u32,
    next: Option<Instant>,
}

impl Signs {
    /// The ways are other ones.
    pub fn changed(&mut self) {
        *self = Signs::default();
    }

    /// Whether another sign is due, which is then given.
    pub fn is_due(&mut self, now: Instant) -> bool {
        if self.next.is_some_and(|next| now < next) {
            return false;
        }
        self.shown = self.shown.saturating_add(1);
        self.next = Some(now + if self.shown < NEWLY { NEW_INTERVAL } else { INTERVAL });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::datagram::Datagram;

    const SESSION: SessionId = SessionId(1);

    fn opened(counter: u64, fresh: bool, twice: bool) -> Opened<'static> {
        Opened {
            counter,
            fresh,
            datagram: Datagram { flow: None, forwarded: false, twice, payload: &[] },
        }
    }

    /// Ways named after the ports that they were heard from.
    struct Heard(Ways<u16>);

    impl Heard {
        fn new() -> Heard {
            Heard(Ways::new(SESSION))
        }

        fn hear(&mut self, session: (u64, bool), opened: Opened, port: u16) -> Vec<u16> {
            let (id, is_latest) = session;
            let remote = ([192, 0, 2, 1], port).into();
            self.0.hear((SessionId(id), is_latest), &opened, remote, port);
            self.0.get().copied().collect()
        }

        fn once(&mut self, counter: u64, port: u16) -> Vec<u16> {
            self.hear((1, true), opened(counter, true, false), port)
        }

        fn twice(&mut self, counter: u64, fresh: bool, port: u16) -> Vec<u16> {
            self.hear((1, true), opened(counter, fresh, true), port)
        }
    }

    #[test]
    fn the_newest_datagram_shows_the_way() {
        let mut heard = Heard::new();
        assert_eq!(heard.once(0, 10), [10]);
        assert_eq!(heard.once(2, 20), [20]);
        assert_eq!(heard.once(1, 10), [20], "it was overtaken");
        let replayed = opened(2, false, false);
        assert_eq!(heard.hear((1, true), replayed, 66), [20], "sent again by somebody else");
        assert_eq!(heard.once(3, 10), [10]);
    }

    #[test]
    fn a_client_that_sends_twice_is_answered_twice() {
        let mut heard = Heard::new();
        assert_eq!(heard.twice(0, true, 10), [10]);
        assert_eq!(heard.twice(0, false, 20), [20, 10]);
        assert_eq!(heard.twice(5, true, 10), [10, 20]);
        assert_eq!(heard.twice(3, false, 20), [20, 10], "the slower uplink");
        assert_eq!(heard.twice(6, true, 30), [30, 20], "two, whichever they are");
        assert_eq!(heard.twice(6 + RECENT, true, 10), [10, 30]);
        assert_eq!(heard.twice(5, false, 66), [10, 30], "recorded long ago");
        assert_eq!(heard.once(7 + RECENT, 20), [20], "it sends once again");
    }

    #[test]
    fn the_latest_session_counts() {
        let mut heard = Heard::new();
        assert_eq!(heard.once(1000, 10), [10]);
        let first = opened(0, true, false);
        assert_eq!(heard.hear((2, true), first, 20), [20]);
        assert_eq!(heard.0.session(), SessionId(2));
        let late = opened(1001, true, false);
        assert_eq!(heard.hear((1, false), late, 10), [20], "late, and of the old session");
        assert_eq!(heard.0.session(), SessionId(2));
    }

    #[test]
    fn signs_of_new_ways_come_close_together() {
        let (mut signs, start) = (Signs::default(), Instant::now());
        let given = |signs: &mut Signs, from: u64, to: u64| -> Vec<u64> {
            let due = |tenth: &u64| signs.is_due(start + Duration::from_millis(tenth * 100));
            (from..to).filter(due).collect()
        };
        assert_eq!(given(&mut signs, 0, 400), [0, 9, 18, 118, 218, 318]);
        signs.changed();
        assert_eq!(given(&mut signs, 400, 500), [400, 409, 418]);
    }
}
