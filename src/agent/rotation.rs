//! New keys: the router's, which servers are told of, and the servers', of which they tell.

use std::io;

use tokio::io::AsyncWriteExt;

use super::{Agent, enrol};
use crate::config::agent::ServerConfig;
use crate::config::keys::{PrivateKey, PublicKey};
use crate::provision;
use crate::session::{hello, introduce, invalid, open, read_sealed};
use crate::tunnel::control::{ClientMessage, ServerMessage};

/// Has a server accept the key `next` of this router beside its key. Its session is not disturbed.
///
/// # Errors
/// What went wrong, in words.
pub fn renew_key(server: &ServerConfig, key: &PrivateKey, next: &PublicKey) -> Result<(), String> {
    enrol::in_time(try_renew(server, key, next))
}

async fn try_renew(
    server: &ServerConfig,
    key: &PrivateKey,
    next: &PublicKey,
) -> Result<(), String> {
    let answer = async {
        let mut tcp = enrol::connect(&server.host_port()).await?;
        let hello = hello(server.cipher, None);
        let (mut channel, _) = introduce(&mut tcp, key, &server.public_key, &hello).await?;
        let wish = ClientMessage::NewKey { key: *next };
        tcp.write_all(&channel.seal(&wish.encode()).map_err(invalid)?).await?;
        open(&mut channel, &read_sealed(&mut tcp).await?)
    };
    match answer.await {
        Ok(Some(ServerMessage::KeyAccepted)) => Ok(()),
        Ok(Some(ServerMessage::Close { reason })) => Err(reason.to_string()),
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error.to_string()),
        Ok(_) | Err(_) => Err("it does not take new keys: update it".to_owned()),
    }
}

impl Agent {
    /// Connects anew, with the keys there are now; each connection there is lasts until the new one
    /// stands.
    pub(super) async fn redial(&mut self) {
        for event in self.link.redial() {
            self.handle(event).await;
        }
    }

    /// Takes a server's new key for the one that was configured, and connects with it.
    pub(super) async fn adopt_server_key(&mut self, server: ServerConfig, key: PublicKey) {
        let name = &server.name;
        if let Err(error) = provision::set_server_key(&self.config_file, &server, &key) {
            let text = format!(
                "server {name} has a new key, {key}, which could not be written down: {error}; \
                 make it this server's 'public_key'"
            );
            return self.tell(log::Level::Error, text);
        }
        self.link.set_server_key(name, key);
        self.controller.set_server_key(name, key);
        let text = format!("server {name}: its key is {} from now on", key.fingerprint());
        self.tell(log::Level::Info, text);
        self.redial().await;
    }
}
