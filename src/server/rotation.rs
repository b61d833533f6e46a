//! Keys that take the place of others, while both hold: clients' and the server's own.

use std::io;
use std::time::SystemTime;

use crate::config::keys::{PublicKey, ServerKeys};
use crate::os::random;
use crate::provision::{confirm_client_key, finish_server_key, has_invitations, renew_client_key};
use crate::registry::Registry;
use crate::tunnel::control::ServerMessage;
use crate::tunnel::handshake::ServerHandshake;
use crate::tunnel::hello::{ClientHello, Refusal};

/// A handshake that was begun with one of the server's keys.
pub struct Accepted {
    /// The server's end of it.
    pub handshake: ServerHandshake,
    /// The client's key.
    pub client: PublicKey,
    /// What the client says of itself.
    pub hello: ClientHello,
    /// The server's key that the client knows.
    pub server: PublicKey,
}

/// Reads a handshake's first message with the server's newest key, or with the one before it; `None`
/// when it was made for neither.
pub fn accept(registry: &Registry, request: &[u8]) -> io::Result<Option<Accepted>> {
    let keys = registry.keys.borrow().clone();
    for key in [Some(&keys.newest), keys.old.as_ref()].into_iter().flatten() {
        let mut random = random::source()?;
        let accepted = ServerHandshake::accept(key.as_bytes(), request, &mut random);
        if let Ok((handshake, client, hello)) = accepted {
            let client = PublicKey(client);
            return Ok(Some(Accepted { handshake, client, hello, server: key.public() }));
        }
    }
    Ok(None)
}

/// Has another key hold for the client that has shown `shown`; what it is to be answered.
pub fn renew(registry: &Registry, shown: &PublicKey, next: &PublicKey) -> ServerMessage {
    match renew_client_key(&registry.config_file, shown, next) {
        Ok(config) => {
            registry.reconfigure(config);
            ServerMessage::KeyAccepted
        }
        Err(error) => {
            let text = format!("a client's new key was not taken: {error}");
            registry.tell(log::Level::Warn, text);
            ServerMessage::Close { reason: Refusal::Other }
        }
    }
}

/// Takes note that a client uses a key: if that is the one to come, it holds alone from now on.
pub fn confirm(registry: &Registry, key: &PublicKey) {
    let Some(client) = registry.client_of(key).filter(|it| it.next_key == Some(*key)) else {
        return;
    };
    let name = client.name;
    match confirm_client_key(&registry.config_file, key) {
        Ok(config) => {
            registry.renew_key(client.public_key, *key, config);
            let text = format!("client {name}: its key is {} from now on", key.fingerprint());
            registry.tell(log::Level::Info, text);
        }
        Err(error) => {
            let text = format!("client {name}: its old key holds on beside the new one: {error}");
            registry.tell(log::Level::Warn, text);
        }
    }
}

/// Gives the server's old key up if every client has come with the newest one, and no invitation is
/// open, which might name the old one.
pub fn settle(registry: &Registry) {
    let (keys, config) = (registry.keys.borrow().clone(), registry.config.borrow().clone());
    let knows = |name: &str| registry.client(name).knows_key.get();
    if keys.old.is_none() || !config.clients.iter().all(|client| knows(&client.name)) {
        return;
    }
    let finished = match has_invitations(&registry.config_file, SystemTime::now()) {
        Ok(true) => return,
        Ok(false) => finish_server_key(&registry.config_file, &config),
        Err(error) => Err(error),
    };
    match finished {
        Ok(_) => {
            registry.set_keys(ServerKeys::new(keys.newest.clone(), None));
            let text = "every client has come with the server's new key: the old one holds no more";
            registry.tell(log::Level::Info, text.into());
        }
        Err(error) => {
            registry.tell(log::Level::Warn, format!("the server's old key still holds: {error}"));
        }
    }
}
