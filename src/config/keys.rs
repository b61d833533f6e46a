//! X25519 keys (RFC 7748) and the tokens of invitations, as text and as bytes.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use snow::params::DHChoice;
use snow::resolvers::{CryptoResolver, DefaultResolver};
use zeroize::{Zeroize, Zeroizing};

use crate::crypto::digest;

/// Bytes in a token: as many as make guessing hopeless.
pub const TOKEN_BYTES: usize = 32;

/// An X25519 private key.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey([u8; 32]);

impl PrivateKey {
    /// The key of these bytes; any 32 random bytes are a key (X25519 clamps them itself).
    pub fn from_bytes(bytes: [u8; 32]) -> PrivateKey {
        PrivateKey(bytes)
    }

    /// The bytes, for the handshake.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The public key that belongs to it.
    pub fn public(&self) -> PublicKey {
        let mut dh = DefaultResolver
            .resolve_dh(&DHChoice::Curve25519)
            .expect("snow is built with its feature use-curve25519");
        dh.set(&self.0);
        let mut public = [0; 32];
        public.copy_from_slice(dh.pubkey());
        PublicKey(public)
    }

    /// The key as it stands in a key file: base64 and a line end.
    pub fn to_file(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}\n", *Zeroizing::new(STANDARD.encode(self.0))))
    }

    /// Reads what [`PrivateKey::to_file`] writes. The error does not repeat the text.
    pub fn from_file(text: &str) -> Result<PrivateKey, String> {
        decode_standard(text.trim())
            .map(PrivateKey)
            .ok_or_else(|| "a private key: 32 bytes in base64, on one line".into())
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// A server's private keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerKeys {
    /// The one that invitations name, and clients are told of.
    pub newest: PrivateKey,
    /// Its public key.
    pub public: PublicKey,
    /// The one before it, while there may be clients that do not know the newest.
    pub old: Option<PrivateKey>,
}

impl ServerKeys {
    /// The newest key, and the one before it.
    pub fn new(newest: PrivateKey, old: Option<PrivateKey>) -> ServerKeys {
        ServerKeys { public: newest.public(), newest, old }
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(MASKED)")
    }
}

/// An X25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// A short name of the key for people to compare: 64 bits of its SHA-256.
    pub fn fingerprint(&self) -> String {
        let hash = digest::digest(&digest::SHA256, &self.0);
        let groups: Vec<String> = hash.as_ref().chunks(2).take(4).map(hex).collect();
        groups.join("-")
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = String;

    /// Standard base64 of 32 bytes, padded.
    fn from_str(text: &str) -> Result<PublicKey, String> {
        // The zero key is of low order: every exchange with it gives the same secret.
        decode_standard(text)
            .filter(|key| key != &[0; 32])
            .map(PublicKey)
            .ok_or_else(|| "a public key: 32 bytes in base64, 44 characters that end in '='".into())
    }
}

/// The secret of an invitation.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; TOKEN_BYTES]);

impl Token {
    /// The token of these bytes.
    pub fn from_bytes(bytes: [u8; TOKEN_BYTES]) -> Token {
        Token(bytes)
    }

    /// The bytes, for the enrolment.
    pub fn as_bytes(&self) -> &[u8; TOKEN_BYTES] {
        &self.0
    }

    /// What the server keeps of it: the SHA-256. A token is random, so salt would add nothing.
    pub fn hash(&self) -> TokenHash {
        TokenHash::of(&self.0)
    }

    /// The token in base64 for URIs, unpadded.
    pub fn to_url_text(&self) -> Zeroizing<String> {
        Zeroizing::new(URL_SAFE_NO_PAD.encode(self.0))
    }

    /// Reads what [`Token::to_url_text`] writes.
    pub fn from_url_text(text: &str) -> Option<Token> {
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).ok()?);
        <[u8; TOKEN_BYTES]>::try_from(bytes.as_slice()).ok().map(Token)
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(MASKED)")
    }
}

/// The SHA-256 of a token, or of a cookie. Compared in constant time; printed in hexadecimal.
#[derive(Clone, Copy, Debug)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// The hash of a random secret.
    pub fn of(secret: &[u8]) -> TokenHash {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, secret).as_ref());
        TokenHash(hash)
    }

    /// The hash of a cookie of RFC 8803 in base64.
    ///
    /// # Errors
    /// How a cookie has to be written.
    pub fn of_cookie(text: &str) -> Result<TokenHash, String> {
        let cookie = STANDARD.decode(text).map(Zeroizing::new).ok();
        // Shorter ones can be guessed; in a TLV there are whole words.
        let cookie = cookie.filter(|it| (16..=64).contains(&it.len()) && it.len() % 4 == 0);
        let right = "16 to 64 random bytes, a multiple of 4, in base64: 'openssl rand -base64 24'";
        cookie.map(|cookie| TokenHash::of(&cookie)).ok_or_else(|| right.to_owned())
    }
}

impl PartialEq for TokenHash {
    fn eq(&self, other: &TokenHash) -> bool {
        let difference = self.0.iter().zip(other.0).fold(0, |all, (a, b)| all | (a ^ b));
        std::hint::black_box(difference) == 0
    }
}

impl Eq for TokenHash {}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl FromStr for TokenHash {
    type Err = String;

    fn from_str(text: &str) -> Result<TokenHash, String> {
        let bad = || "the SHA-256 of a token: 64 hexadecimal digits".to_owned();
        if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let mut hash = [0; 32];
        for (index, byte) in hash.iter_mut().enumerate() {
            let digits = text.get(2 * index..2 * index + 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| bad())?;
        }
        Ok(TokenHash(hash))
    }
}

/// What a server knows a client by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credential {
    /// A router's public key.
    Key(PublicKey),
    /// The hash of the cookie that a client of plain TCP Convert shows.
    Cookie(TokenHash),
}

impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credential::Key(key) => key.fmt(f),
            Credential::Cookie(cookie) => cookie.fmt(f),
        }
    }
}

impl FromStr for Credential {
    type Err = String;

    /// A key has 44 characters, a hash 64.
    fn from_str(text: &str) -> Result<Credential, String> {
        let key = text.parse().map(Credential::Key);
        key.or_else(|_| text.parse().map(Credential::Cookie))
    }
}

/// A public key in base64 for URIs, unpadded.
pub fn public_key_to_url_text(key: &PublicKey) -> String {
    URL_SAFE_NO_PAD.encode(key.0)
}

/// Reads what [`public_key_to_url_text`] writes.
pub fn public_key_from_url_text(text: &str) -> Option<PublicKey> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let key = <[u8; 32]>::try_from(bytes.as_slice()).ok()?;
    (key != [0; 32]).then_some(PublicKey(key))
}

fn decode_standard(text: &str) -> Option<[u8; 32]> {
    let bytes = Zeroizing::new(STANDARD.decode(text).ok()?);
    <[u8; 32]>::try_from(bytes.as_slice()).ok()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7748, section 6.1: Alice.
    const PRIVATE: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
    const PUBLIC: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

    #[test]
    fn derives_the_public_key_of_the_rfc() {
        assert_eq!(PrivateKey::from_file(PRIVATE).unwrap().public().to_string(), PUBLIC);
    }

    #[test]
    fn round_trips() {
        let private = PrivateKey::from_file(&format!("{PRIVATE}\n")).unwrap();
        assert_eq!(*private.to_file(), format!("{PRIVATE}\n"));
        let public: PublicKey = PUBLIC.parse().unwrap();
        assert_eq!(public.to_string(), PUBLIC);
        assert_eq!(public_key_from_url_text(&public_key_to_url_text(&public)), Some(public));
        let token = Token::from_bytes([7; 32]);
        assert_eq!(Token::from_url_text(&token.to_url_text()), Some(token.clone()));
        assert_eq!(token.hash().to_string().parse(), Ok(token.hash()));
        let other = Token::from_bytes([8; 32]);
        assert_ne!(token.hash(), other.hash());
        for credential in [Credential::Key(public), Credential::Cookie(token.hash())] {
            assert_eq!(credential.to_string().parse(), Ok(credential));
        }
    }

    #[test]
    fn secrets_are_masked() {
        let private = PrivateKey::from_file(PRIVATE).unwrap();
        assert_eq!(format!("{private:?}"), "PrivateKey(MASKED)");
        assert_eq!(format!("{:?}", Token::from_bytes([1; 32])), "Token(MASKED)");
        let error = PrivateKey::from_file("dwdtCnMYpX08Fs").unwrap_err();
        assert!(!error.contains("dwdt"), "{error}");
    }

    #[test]
    fn wrong_keys_are_refused() {
        let zero = STANDARD.encode([0; 32]);
        let cut = PUBLIC.trim_end_matches('=');
        for bad in ["", "A", zero.as_str(), cut, &PUBLIC[1..], "!!!!", &format!("{PUBLIC} ")] {
            assert!(bad.parse::<PublicKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn fingerprints_differ() {
        let public: PublicKey = PUBLIC.parse().unwrap();
        assert_eq!(public.fingerprint().len(), 19);
        assert_ne!(public.fingerprint(), PublicKey([1; 32]).fingerprint());
    }
}
