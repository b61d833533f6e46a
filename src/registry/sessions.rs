//! The sessions a server has given out, and which stream counters they have used up.

use std::time::Instant;

use litemap::LiteMap;

use crate::config::keys::PublicKey;
use crate::tunnel::session::{ServerSession, SessionId};

/// One session.
pub struct Session {
    /// The client's name.
    pub client: String,
    /// The client's public key.
    pub key: PublicKey,
    /// Its state.
    pub state: ServerSession,
    /// Whether it is in force, and not merely running out.
    pub live: bool,
}

/// All sessions by id.
#[derive(Default)]
pub struct Sessions {
    by_id: LiteMap<SessionId, Session>,
}

impl Sessions {
    /// Adds a session; false when its id is taken.
    pub fn add(&mut self, client: &str, key: PublicKey, state: ServerSession) -> bool {
        let id = state.keys().id();
        let free = !self.by_id.contains_key(&id);
        if free {
            let session = Session { client: client.to_owned(), key, state, live: true };
            self.by_id.insert(id, session);
        }
        free
    }

    /// A session, unless it was retired too long ago.
    pub fn find(&mut self, id: SessionId, now: Instant) -> Option<&mut Session> {
        self.by_id.get_mut(&id).filter(|session| !session.state.expired(now))
    }

    /// Lets a session run out; streams already open are not concerned.
    pub fn retire(&mut self, id: SessionId, now: Instant) {
        if let Some(session) = self.by_id.get_mut(&id) {
            session.live = false;
            session.state.retire(now);
        }
    }

    /// Forgets the secrets of sessions that open no more streams; to be called now and then.
    pub fn forget_expired(&mut self, now: Instant) {
        self.by_id.retain(|_, session| !session.state.expired(now));
    }

    /// Ends every session at once whose key does not hold.
    pub fn keep(&mut self, holds: impl Fn(&PublicKey) -> bool) {
        self.by_id.retain(|_, session| holds(&session.key));
    }

    /// Live sessions of a client.
    pub fn count(&self, client: &str) -> usize {
        self.by_id.values().filter(|session| session.client == client && session.live).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::Cipher;
    use crate::tunnel::session::{RETIREMENT, StreamSecret};

    const ID: SessionId = SessionId(1);

    fn sessions() -> Sessions {
        let mut sessions = Sessions::default();
        let state = || ServerSession::new(ID, &StreamSecret::from_bytes([1; 32]), Cipher::None);
        assert!(sessions.add("home", PublicKey([2; 32]), state()));
        assert!(!sessions.add("home", PublicKey([2; 32]), state()));
        sessions
    }

    #[test]
    fn a_retired_session_opens_streams_for_a_while() {
        let (mut sessions, now) = (sessions(), Instant::now());
        assert_eq!(sessions.count("home"), 1);
        sessions.retire(ID, now);
        assert_eq!(sessions.count("home"), 0);
        assert!(sessions.find(ID, now + RETIREMENT / 2).is_some());
        assert!(sessions.find(ID, now + RETIREMENT).is_none());
        sessions.forget_expired(now + RETIREMENT / 2);
        assert_eq!(sessions.by_id.len(), 1);
        sessions.forget_expired(now + RETIREMENT);
        assert!(sessions.by_id.is_empty());
    }

    #[test]
    fn a_revoked_key_has_no_session() {
        let (mut sessions, now) = (sessions(), Instant::now());
        sessions.keep(|key| *key != PublicKey([3; 32]));
        assert!(sessions.find(ID, now).is_some());
        sessions.keep(|key| *key != PublicKey([2; 32]));
        assert!(sessions.find(ID, now).is_none());
    }
}
