//! Every decoder of what comes from outside, as a function that takes anything.
//!
//! `make fuzz` runs them under libFuzzer; the test here replays what that found worth keeping, in
//! `tests/fuzz/corpus`.

use crate::config::agent::AgentConfig;
use crate::config::invites::Invites;
use crate::config::pairing::PairingUri;
use crate::config::server::ServerConfig;
use crate::config::uci;
use crate::os::{conntrack, control, dns, neighbour, nft, path_manager, route, rule};
use crate::quota::Usage;
use crate::tunnel::Cipher;
use crate::tunnel::control::{ClientMessage, ServerMessage};
use crate::tunnel::convert::Message;
use crate::tunnel::datagram::{self, Channel};
use crate::tunnel::handshake::ServerHandshake;
use crate::tunnel::hello::{ClientHello, ServerHello};
use crate::tunnel::probe::UnverifiedProbe;
use crate::tunnel::record::Opened;
use crate::tunnel::session::{SessionId, SessionKeys, StreamSecret};
use crate::tunnel::stream::UnverifiedPreamble;
use crate::{ubus, web};

/// Takes anything, and panics only for a defect.
pub type Decoder = fn(&[u8]);

/// The decoders by name.
pub const DECODERS: [(&str, Decoder); 17] = [
    ("agent-config", |bytes| drop(AgentConfig::parse_bytes(bytes, "mptcpd"))),
    ("control-message", control_message),
    ("convert", convert),
    ("datagram", datagram),
    ("dns", dns::read_anything),
    ("handshake", handshake),
    ("hello", hello),
    ("http", web::read_anything),
    ("netlink", netlink),
    ("preamble", preamble),
    ("probe", probe),
    ("record", record),
    ("server-config", server_config),
    ("socket", control::read_anything),
    ("ubus", ubus::read_anything),
    ("uci", |bytes| drop(uci::parse_bytes(bytes))),
    ("written", written),
];

/// The decoder of this name.
pub fn decoder(name: &str) -> Option<Decoder> {
    DECODERS.iter().find(|(known, _)| *known == name).map(|(_, decoder)| *decoder)
}

fn keys() -> SessionKeys {
    SessionKeys::new(SessionId(1), &StreamSecret::from_bytes([1; 32]))
}

fn control_message(bytes: &[u8]) {
    let _ = (ClientMessage::decode(bytes), ServerMessage::decode(bytes));
}

/// What was understood is written as it was read.
fn convert(bytes: &[u8]) {
    let Ok(message) = Message::decode(bytes) else { return };
    let _ = message.target();
    if let Ok(written) = message.encode() {
        assert_eq!(Message::decode(&written).map(|again| again.tlvs), Ok(message.tlvs));
    }
}

fn datagram(bytes: &[u8]) {
    datagram::read_anything(bytes);
    for channel in [Channel::client(&keys()), Channel::server(&keys())] {
        let opened = channel.map(|mut channel| channel.open(&mut bytes.to_vec()).is_ok());
        assert!(opened == Some(false), "forged");
    }
}

fn handshake(bytes: &[u8]) {
    let _ = ServerHandshake::accept(&[7; 32], bytes, &mut |noise| noise.fill(1));
}

fn hello(bytes: &[u8]) {
    let _ = (ClientHello::decode(bytes), ServerHello::decode(bytes));
}

fn netlink(bytes: &[u8]) {
    route::read_anything(bytes);
    rule::read_anything(bytes);
    neighbour::read_anything(bytes);
    conntrack::read_anything(bytes);
    path_manager::read_anything(bytes);
    nft::concerns_us(bytes);
}

fn preamble(bytes: &[u8]) {
    if let Some(Ok(preamble)) = bytes.first_chunk().map(UnverifiedPreamble::parse) {
        assert!(preamble.verify(&keys()).is_err(), "forged");
    }
}

fn probe(bytes: &[u8]) {
    if let Ok(probe) = UnverifiedProbe::parse(bytes) {
        assert!(probe.request(&keys()).is_err() && probe.reply(&keys()).is_err(), "forged");
    }
}

fn record(bytes: &[u8]) {
    for cipher in Cipher::ALL {
        let (_, mut opener) = keys().stream(1, cipher).server();
        let opened = opener.next(&mut bytes.to_vec());
        assert!(!matches!(opened, Ok(Opened::Record { .. })), "forged");
    }
}

fn server_config(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = ServerConfig::parse(text, "server.toml");
    }
}

/// What this program has written itself, on a disk that lost some of it.
fn written(bytes: &[u8]) {
    let _ = Usage::from_json(bytes, "boot");
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = (Invites::parse(text, "invites"), PairingUri::parse(text));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_corpus_is_decoded_without_a_panic() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
        for (name, decode) in DECODERS {
            let inputs = std::fs::read_dir(corpus.join(name)).expect("a corpus for each decoder");
            let mut count = 0;
            for input in inputs {
                decode(&std::fs::read(input.expect("an input").path()).expect("read the input"));
                count += 1;
            }
            assert!(count > 0, "no inputs for {name}");
        }
    }
}
