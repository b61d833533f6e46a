//! The sessions a server has given out, and which stream counters they have used up.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::config::keys::PublicKey;
use crate::tunnel::Cipher;
use crate::tunnel::replay::Window;
use crate::tunnel::session::StreamSecret;

/// How long a session that was replaced or lost its control connection still opens streams.
pub const GRACE: Duration = Duration::from_secs(60);

/// One session.
pub struct Session {
    /// The client's name.
    pub client: String,
    /// The client's key.
    pub key: PublicKey,
    /// The cipher agreed upon.
    pub cipher: Cipher,
    /// What stream and probe keys are derived from.
    pub secret: StreamSecret,
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
    /// Adds a session under an id not in use.
    pub fn add(
        &mut self,
        id: u64,
        client: String,
        key: PublicKey,
        cipher: Cipher,
        secret: StreamSecret,
    ) {
        let window = Window::new();
        self.by_id.insert(id, Session { client, key, cipher, secret, window, expires: None });
    }

    /// Whether an id is taken.
    pub fn holds(&self, id: u64) -> bool {
        self.by_id.contains_key(&id)
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
