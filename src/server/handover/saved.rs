//! What describes the sockets that are left to the next start: lines of words, bytes in base64.
//!
//! ```text
//! listener ADDRESS
//! udp ADDRESS
//! stream CLIENT CREDENTIAL PEER TARGET plain TO_TUNNEL TO_LAN
//! stream CLIENT CREDENTIAL PEER TARGET sealed CIPHER SECRET COUNTER ENDED SECRET COUNTER ENDED CARRIED UNSENT UNDELIVERED
//! ```

use std::net::SocketAddr;
use std::str::{FromStr, Split};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::config::keys::Credential;
use crate::net::Transport;
use crate::relay::{Records, State, Unsent};
use crate::tunnel::Cipher;
use crate::tunnel::record::{Opener, Position, Sealer};

/// A stream apart from its sockets.
pub(super) struct SavedStream {
    pub(super) client: String,
    pub(super) credential: Credential,
    pub(super) peer: SocketAddr,
    pub(super) target: SocketAddr,
    pub(super) state: State,
}

fn listener_word(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "listener",
        Transport::Udp => "udp",
    }
}

/// The line for a listener, or for a socket of UDP.
pub(super) fn listener_line(transport: Transport, address: SocketAddr) -> String {
    format!("{} {address}\n", listener_word(transport))
}

/// What such a line says.
pub(super) fn read_listener(line: &str) -> Option<(Transport, SocketAddr)> {
    let (word, address) = line.split_once(' ')?;
    let transport = Transport::ALL.into_iter().find(|it| listener_word(*it) == word)?;
    Some((transport, address.parse().ok()?))
}

/// The line for a stream.
pub(super) fn stream_line(
    client: &str,
    credential: &Credential,
    [peer, target]: [SocketAddr; 2],
    state: &State,
) -> Zeroizing<String> {
    let client = STANDARD.encode(client);
    let state = match state {
        State::Plain(Unsent { to_tunnel, to_lan }) => {
            Zeroizing::new(format!("plain {}", base64([to_tunnel, to_lan])))
        }
        State::Sealed(records) => {
            let Records { sealer, opener, carried, unsent, undelivered } = &**records;
            let [sealing, opening] = [sealer.position(), opener.position()];
            let cipher = sealing.cipher.to_wire();
            let [sealing, opening] = [sealing, opening].map(|position| words(&position));
            let under_way = base64([carried, unsent, undelivered]);
            Zeroizing::new(format!("sealed {cipher} {} {} {under_way}", &*sealing, &*opening))
        }
    };
    Zeroizing::new(format!("stream {client} {credential} {peer} {target} {}\n", &*state))
}

fn base64<const N: usize>(parts: [&Vec<u8>; N]) -> String {
    parts.map(|part| STANDARD.encode(part)).join(" ")
}

fn words(position: &Position) -> Zeroizing<String> {
    let secret = Zeroizing::new(STANDARD.encode(position.secret.as_slice()));
    Zeroizing::new(format!("{} {} {}", &*secret, position.counter, position.ended))
}

/// What a stream's line says; `None` when another version wrote it otherwise.
pub(super) fn read_stream(line: &str) -> Option<SavedStream> {
    let mut words = Words(line.strip_prefix("stream ")?.split(' '));
    Some(SavedStream {
        client: String::from_utf8(words.bytes()?).ok()?,
        credential: words.value()?,
        peer: words.value()?,
        target: words.value()?,
        state: match words.0.next()? {
            "plain" => State::Plain(Unsent { to_tunnel: words.bytes()?, to_lan: words.bytes()? }),
            "sealed" => {
                let cipher = Cipher::from_wire(words.value()?)?;
                State::Sealed(Box::new(Records {
                    sealer: Sealer::at(&words.position(cipher)?),
                    opener: Opener::at(&words.position(cipher)?),
                    carried: words.bytes()?,
                    unsent: words.bytes()?,
                    undelivered: words.bytes()?,
                }))
            }
            _ => return None,
        },
    })
}

/// The words of a line.
struct Words<'a>(Split<'a, char>);

impl Words<'_> {
    fn value<T: FromStr>(&mut self) -> Option<T> {
        self.0.next()?.parse().ok()
    }

    fn bytes(&mut self) -> Option<Vec<u8>> {
        STANDARD.decode(self.0.next()?).ok()
    }

    fn position(&mut self, cipher: Cipher) -> Option<Position> {
        let bytes = Zeroizing::new(self.bytes()?);
        let secret = Zeroizing::new(<[u8; 32]>::try_from(bytes.as_slice()).ok()?);
        Some(Position { cipher, secret, counter: self.value()?, ended: self.value()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::{PublicKey, TokenHash};

    const KEY: Credential = Credential::Key(PublicKey([7; 32]));

    fn addresses() -> [SocketAddr; 2] {
        ["[2001:db8::1]:40000".parse().unwrap(), "192.0.2.1:80".parse().unwrap()]
    }

    fn sealed() -> State {
        let secret = Zeroizing::new([9; 32]);
        let cipher = Cipher::ChaCha20Poly1305;
        let at = |counter, ended| Position { cipher, secret: secret.clone(), counter, ended };
        State::Sealed(Box::new(Records {
            sealer: Sealer::at(&at(1 << 40, true)),
            opener: Opener::at(&at(3, false)),
            carried: vec![1; 5],
            unsent: Vec::new(),
            undelivered: vec![0, 255],
        }))
    }

    #[test]
    fn a_line_says_all_of_a_stream() {
        let unsent = Unsent { to_tunnel: b"some".to_vec(), to_lan: Vec::new() };
        let cookie = Credential::Cookie(TokenHash::of(b"cookie"));
        for (credential, state) in [(cookie, State::Plain(unsent)), (KEY, sealed())] {
            let line = stream_line("my home", &credential, addresses(), &state);
            let read = read_stream(line.strip_suffix('\n').unwrap()).unwrap();
            assert_eq!(
                (&*read.client, read.credential, [read.peer, read.target]),
                ("my home", credential, addresses())
            );
            let again = stream_line(&read.client, &read.credential, addresses(), &read.state);
            assert_eq!(*again, *line);
        }
        for transport in Transport::ALL {
            let listener = (transport, addresses()[0]);
            let line = listener_line(transport, addresses()[0]);
            assert_eq!(read_listener(line.trim_end()), Some(listener));
        }
    }

    #[test]
    fn a_line_of_another_version_is_no_stream() {
        let line = stream_line("home", &KEY, addresses(), &sealed());
        let words: Vec<&str> = line.trim_end().split(' ').collect();
        for count in 0..words.len() {
            assert!(read_stream(&words[..count].join(" ")).is_none(), "{count} words");
            let mut other = words.clone();
            other[count] = "?";
            assert!(read_stream(&other.join(" ")).is_none(), "word {count}");
        }
        assert!(read_stream(line.trim_end()).is_some());
        assert!(read_listener("listener somewhere").is_none());
    }
}
