//! The URI that carries an invitation from a server to a router:
//! `mptcp-bond://HOST:PORT/?key=BASE64URL&token=BASE64URL&v=1`.

use std::fmt;

use zeroize::Zeroizing;

use super::keys::{PublicKey, Token, public_key_from_url_text, public_key_to_url_text};
use super::value::HostPort;

const SCHEME: &str = "mptcp-bond://";
/// No URI of version 1 is longer: a host name of 253 bytes and fixed parts.
const MAX_BYTES: usize = 512;

/// An invitation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairingUri {
    /// Where the server is.
    pub server: HostPort,
    /// The server's public key.
    pub key: PublicKey,
    /// The one-time token.
    pub token: Token,
}

/// Why a text is not a pairing URI. It never repeats the text, which may hold a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairingError {
    /// Not of the form at all.
    Form,
    /// Host or port.
    Server,
    /// `key` is missing or wrong.
    Key,
    /// `token` is missing or wrong.
    Token,
    /// `v` is missing or not 1.
    Version,
}

impl fmt::Display for PairingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PairingError::Form => {
                "not a pairing URI; it must be what 'mptcp-bond server invite' printed, \
                 mptcp-bond://HOST:PORT/?key=...&token=...&v=1, in quotes because of the '&'"
            }
            PairingError::Server => {
                "the pairing URI's server is wrong; it must be HOST:PORT such as \
                 vps.example.net:443 or [2001:db8::1]:443"
            }
            PairingError::Key => "the pairing URI's key is missing or damaged: copy it whole",
            PairingError::Token => "the pairing URI's token is missing or damaged: copy it whole",
            PairingError::Version => {
                "the pairing URI is cut short, or of a version this program does not know \
                 (it knows v=1): copy it whole and in quotes, or update mptcp-bond"
            }
        })
    }
}

impl std::error::Error for PairingError {}

impl PairingUri {
    /// Parses a URI. Parameters may stand in any order, each once; there are no others.
    pub fn parse(text: &str) -> Result<PairingUri, PairingError> {
        // Pasted along with the quotes it was printed in, perhaps.
        let text = text.trim().trim_matches(['\'', '"']);
        if text.len() > MAX_BYTES {
            return Err(PairingError::Form);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(PairingError::Form)?;
        let (server, query) = rest.split_once("/?").ok_or(PairingError::Form)?;
        let server = server.parse().map_err(|_| PairingError::Server)?;
        let (mut key, mut token, mut version) = (None, None, None);
        for parameter in query.split('&') {
            let (name, value) = parameter.split_once('=').ok_or(PairingError::Form)?;
            let slot = match name {
                "key" => &mut key,
                "token" => &mut token,
                "v" => &mut version,
                _ => return Err(PairingError::Form),
            };
            if slot.replace(value).is_some() {
                return Err(PairingError::Form);
            }
        }
        if version != Some("1") {
            return Err(PairingError::Version);
        }
        let key = key.and_then(public_key_from_url_text).ok_or(PairingError::Key)?;
        let token = token.and_then(Token::from_url_text).ok_or(PairingError::Token)?;
        Ok(PairingUri { server, key, token })
    }

    /// The URI; it holds the token, so it goes to the person who asked for it and nowhere else.
    pub fn to_uri(&self) -> Zeroizing<String> {
        let key = public_key_to_url_text(&self.key);
        let token = self.token.to_url_text();
        Zeroizing::new(format!("{SCHEME}{}/?key={key}&token={}&v=1", self.server, *token))
    }
}

#[cfg(test)]
mod tests {
    use super::super::mutate::{Random, mutated};
    use super::*;

    fn example(server: &str) -> PairingUri {
        PairingUri {
            server: server.parse().unwrap(),
            key: PublicKey([0xfb; 32]),
            token: Token::from_bytes([0xef; 32]),
        }
    }

    #[test]
    fn round_trips() {
        for server in ["vps.example.net:443", "192.0.2.1:8443", "[2001:db8::1]:443"] {
            let uri = example(server);
            assert_eq!(PairingUri::parse(&format!("'{}'\n", *uri.to_uri())), Ok(uri.clone()));
            assert_eq!(PairingUri::parse(&uri.to_uri()), Ok(uri));
        }
        assert_eq!(
            *example("a.example:443").to_uri(),
            "mptcp-bond://a.example:443/?key=-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_s\
             &token=7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-8&v=1"
        );
    }

    #[test]
    fn says_what_is_wrong() {
        let good = example("a.example:443").to_uri().to_string();
        let change = |from: &str, to: &str| PairingUri::parse(&good.replace(from, to)).unwrap_err();
        assert_eq!(change("mptcp-bond:", "http:"), PairingError::Form);
        assert_eq!(change(":443", ""), PairingError::Server);
        assert_eq!(change("key=-", "key=!"), PairingError::Key);
        assert_eq!(change("key=-_v7", "key="), PairingError::Key);
        assert_eq!(change("token=7", "token="), PairingError::Token);
        assert_eq!(change("v=1", "v=2"), PairingError::Version);
        assert_eq!(change("&v=1", ""), PairingError::Version);
        assert_eq!(change("v=1", "v=1&v=1"), PairingError::Form);
        assert_eq!(change("v=1", "v=1&x=1"), PairingError::Form);
        assert_eq!(PairingUri::parse(&"a".repeat(1 << 20)), Err(PairingError::Form));
    }

    /// An unquoted URI loses everything from the first `&` in a shell.
    #[test]
    fn a_uri_cut_by_the_shell_says_so() {
        let good = example("a.example:443").to_uri();
        let cut = good.split('&').next().unwrap();
        assert!(PairingUri::parse(cut).unwrap_err().to_string().contains("quotes"));
    }

    #[test]
    fn survives_100_000_mutated_inputs() {
        let good = example("[2001:db8::1]:443").to_uri();
        let tokens: [&[u8]; 10] =
            [b"&", b"=", b"/?", b"key=", b"token=", b"v=1", b"[", b"]", b":", b"\xc3\xa9"];
        let mut random = Random(0x5eed);
        let mut parsed = 0;
        for _ in 0..100_000 {
            let bytes = mutated(good.as_bytes(), &tokens, &mut random);
            if let Ok(uri) = PairingUri::parse(&String::from_utf8_lossy(&bytes)) {
                assert_eq!(PairingUri::parse(&uri.to_uri()), Ok(uri));
                parsed += 1;
            }
        }
        assert!(parsed > 100, "{parsed} of the mutated inputs were still URIs");
    }
}
