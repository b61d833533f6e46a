//! Open invitations, `invites.toml` beside the server's configuration. It holds hashes of tokens,
//! so that a copy of the file enrols nobody.

use std::time::Duration;

use toml::de::DeValue;

use super::keys::{Token, TokenHash};
use super::reader::{self, Entry, Table};
use super::{ConfigError, value};

/// How long an invitation holds.
pub const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// An invitation not taken up yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invite {
    /// The client's name to be.
    pub name: String,
    /// Hash of the token.
    pub token: TokenHash,
    /// When it lapses, in seconds since 1970.
    pub expires: u64,
}

/// All open invitations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Invites {
    /// In order of their making, names unique.
    pub list: Vec<Invite>,
}

impl Invites {
    /// Parses the text of `invites.toml`; `file` is its name in problems.
    pub fn parse(text: &str, file: &str) -> Result<Invites, ConfigError> {
        reader::parse(text, file, |root| {
            let list = root.optional("invite", |table, entry| {
                let DeValue::Array(array) = entry.value else {
                    table.wrong(&entry, "[[invite]] blocks");
                    return None;
                };
                let mut list = Vec::new();
                for element in array.iter() {
                    let line = table.lines.at(element.span().start);
                    let entry = Entry { key: entry.key, line, value: element.get_ref() };
                    list.extend(table.table(entry, read_invite));
                }
                Some(list)
            });
            Some(Invites { list: list.unwrap_or_default() })
        })
    }

    /// The text of `invites.toml`.
    pub fn to_text(&self) -> String {
        let mut out = "# Written by 'mptcp-bond server invite'; no need to edit.\n".to_owned();
        for invite in &self.list {
            let (name, token, expires) = (&invite.name, &invite.token, invite.expires);
            out.push_str(&format!(
                "\n[[invite]]\nname = \"{name}\"\ntoken_sha256 = \"{token}\"\nexpires = \"{expires}\"\n"
            ));
        }
        out
    }

    /// Adds an invitation in place of an earlier one of that name, and drops those that lapsed; says
    /// until when it holds, in seconds since 1970.
    pub fn add(&mut self, name: &str, token: &Token, now: u64) -> u64 {
        self.list.retain(|invite| invite.expires > now && invite.name != name);
        let expires = now.saturating_add(LIFETIME.as_secs());
        self.list.push(Invite { name: name.to_owned(), token: token.hash(), expires });
        expires
    }

    /// The name that a token was made for. Looks at all, so that the time taken tells nothing.
    pub fn find(&self, token: &Token, now: u64) -> Option<&str> {
        let hash = token.hash();
        let mut found = None;
        for invite in &self.list {
            if invite.token == hash && invite.expires > now {
                found = Some(invite.name.as_str());
            }
        }
        found
    }

    /// Takes the invitation of that name away; false when there is none.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.list.len();
        self.list.retain(|invite| invite.name != name);
        self.list.len() < before
    }
}

fn read_invite(table: &mut Table<'_>) -> Option<Invite> {
    let seconds = |text: &str| {
        text.parse::<u64>().map_err(|_| "a time in seconds since 1970, in quotes".to_owned())
    };
    let name = table.required("name", |t, e| t.parsed(e, value::client_name));
    let token = table.required("token_sha256", |t, e| t.parsed(e, |text| text.parse()));
    let expires = table.required("expires", |t, e| t.parsed(e, seconds));
    Some(Invite { name: name?, token: token?, expires: expires? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(byte: u8) -> Token {
        Token::from_bytes([byte; 32])
    }

    #[test]
    fn round_trips_without_the_token() {
        let mut invites = Invites::default();
        assert_eq!(Invites::parse("", "F"), Ok(invites.clone()));
        invites.add("home", &token(1), 100);
        invites.add("office", &token(2), 100);
        let text = invites.to_text();
        assert!(!text.contains(token(1).to_url_text().as_str()));
        assert_eq!(Invites::parse(&text, "F"), Ok(invites));
        assert!(Invites::parse(&text.replace("sha256 = \"", "sha256 = \"g"), "F").is_err());
    }

    #[test]
    fn tokens_hold_for_a_day_and_one_name() {
        let mut invites = Invites::default();
        invites.add("home", &token(1), 1000);
        let end = 1000 + 24 * 60 * 60;
        assert_eq!(invites.find(&token(1), 1000), Some("home"));
        assert_eq!(invites.find(&token(1), end - 1), Some("home"));
        assert_eq!(invites.find(&token(1), end), None);
        assert_eq!(invites.find(&token(2), 1000), None);

        invites.add("home", &token(2), 1000);
        assert_eq!(invites.find(&token(1), 1000), None, "a new token replaces the old one");
        assert_eq!(invites.find(&token(2), 1000), Some("home"));
        invites.add("office", &token(3), end);
        assert_eq!(invites.list.len(), 1, "lapsed invitations are dropped");
        assert!(invites.remove("office") && !invites.remove("office"));
    }
}
