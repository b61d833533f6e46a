//! The sessions a server has given out, and which stream counters they have used up.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::config::keys::PublicKey;
use crate::tunnel::Cipher;
use crate::tunnel::probe::Prober;
use crate::tunnel::replay::Window;
use crate::tunnel::session::Keys;

/// How long a session that was replaced or lost its control connection still opens streams.
pub const GRACE: Duration = Duration::from_secs(60);

/// One session.
pub struct Session {
    /// The client's name.
    pub client: String,
    /// The client's public key.
    pub key: PublicKey,
    /// The cipher agreed upon.
    pub cipher: Cipher,
    /// Id and secret.
    pub keys: Keys,
    /// Answers its probes.
    pub prober: Prober,
    window: Window,
    expires: Option<Instant>,
}

/// Why a stream is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The counter was used before, or is too old to tell.
    Replayed,
    /// The session is unknown or has expired.
    NoSession,
}

/// All sessions by id.
#[derive(Default)]
pub struct Sessions {
    by_id: BTreeMap<u64, Session>,
}

impl Sessions {
    /// Adds a session; false when its id is taken.
    pub fn add(&mut self, client: String, key: PublicKey, cipher: Cipher, keys: Keys) -> bool {
        let Some(prober) = Prober::new(&keys) else { return false };
        let id = keys.id;
        let window = Window::new();
        let session = Session { client, key, cipher, keys, prober, window, expires: None };
        let free = !self.by_id.contains_key(&id);
        if free {
            self.by_id.insert(id, session);
        }
        free
    }

    /// A live session.
    pub fn find(&self, id: u64, now: Instant) -> Option<&Session> {
        self.by_id.get(&id).filter(|session| session.expires.is_none_or(|at| now < at))
    }

    /// Uses up a stream counter; call it only once the preamble's tag was verified.
    pub fn use_counter(&mut self, id: u64, counter: u64, now: Instant) -> Result<(), Refused> {
        let session = self
            .by_id
            .get_mut(&id)
            .filter(|session| session.expires.is_none_or(|at| now < at))
            .ok_or(Refused::NoSession)?;
        if session.window.accept(counter) { Ok(()) } else { Err(Refused::Replayed) }
    }

    /// Lets a session run out after [`GRACE`]; streams already open are not concerned.
    pub fn retire(&mut self, id: u64, now: Instant) {
        if let Some(session) = self.by_id.get_mut(&id) {
            session.expires.get_or_insert(now + GRACE);
        }
        self.by_id.retain(|_, session| session.expires.is_none_or(|at| now < at));
    }

    /// Ends every session of a key at once.
    pub fn revoke(&mut self, key: &PublicKey) {
        self.by_id.retain(|_, session| session.key != *key);
    }

    /// Live sessions of a client.
    pub fn count(&self, client: &str) -> usize {
        self.by_id
            .values()
            .filter(|session| session.client == client && session.expires.is_none())
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::session::StreamSecret;

    fn sessions() -> Sessions {
        let mut sessions = Sessions::default();
        let keys = Keys { id: 1, secret: StreamSecret::new([1; 32]) };
        assert!(sessions.add("home".into(), PublicKey([2; 32]), Cipher::None, keys.clone()));
        assert!(!sessions.add("home".into(), PublicKey([2; 32]), Cipher::None, keys));
        sessions
    }

    #[test]
    fn a_stream_counter_is_used_once() {
        let (mut sessions, now) = (sessions(), Instant::now());
        assert_eq!(sessions.use_counter(1, 5, now), Ok(()));
        assert_eq!(sessions.use_counter(1, 5, now), Err(Refused::Replayed));
        assert_eq!(sessions.use_counter(2, 5, now), Err(Refused::NoSession));
    }

    #[test]
    fn a_retired_session_opens_streams_for_a_while() {
        let (mut sessions, now) = (sessions(), Instant::now());
        sessions.retire(1, now);
        assert_eq!(sessions.use_counter(1, 0, now + GRACE / 2), Ok(()));
        assert_eq!(sessions.use_counter(1, 1, now + GRACE), Err(Refused::NoSession));
        assert_eq!(sessions.count("home"), 0);
    }

    #[test]
    fn a_revoked_key_has_no_session() {
        let (mut sessions, now) = (sessions(), Instant::now());
        sessions.revoke(&PublicKey([3; 32]));
        assert_eq!(sessions.count("home"), 1);
        sessions.revoke(&PublicKey([2; 32]));
        assert!(sessions.find(1, now).is_none());
    }
}
