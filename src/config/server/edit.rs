//! Changes the clients in a server configuration's text and keeps the rest as it is, comments
//! included.

use std::fmt;

use toml::de::{DeTable, DeValue};

use super::{ClientConfig, ServerConfig};
use crate::config::ConfigError;
use crate::config::keys::PublicKey;

/// Why a text could not be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EditError {
    /// The text, as it stands, is not a server configuration.
    Config(ConfigError),
    /// The change would not have given the configuration wished for.
    Layout,
}

impl fmt::Display for EditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EditError::Config(error) => error.fmt(f),
            EditError::Layout => f.write_str(
                "the clients are not laid out as [[client]] and [[convert]] blocks; change the file \
                 by hand",
            ),
        }
    }
}

impl std::error::Error for EditError {}

/// The text with a client added at its end.
pub fn add_client(text: &str, file: &str, client: &ClientConfig) -> Result<String, EditError> {
    let mut wished = ServerConfig::parse(text, file).map_err(EditError::Config)?;
    wished.clients.push(client.clone());
    let mut out = text.to_owned();
    if !out.ends_with('\n') {
        out.push('\n');
    }
    let (name, key) = (&client.name, &client.public_key);
    out.push_str(&format!("\n[[client]]\nname = \"{name}\"\npublic_key = \"{key}\"\n"));
    if !client.forwards.is_empty() {
        out.push_str(&format!("forwards = {:?}\n", client.forwards));
    }
    verified(out, file, &wished)
}

/// The text without the client of that name, of either kind; `None` when there is none.
pub fn remove_client(text: &str, file: &str, name: &str) -> Result<Option<String>, EditError> {
    let mut wished = ServerConfig::parse(text, file).map_err(EditError::Config)?;
    let paired = wished.clients.iter().position(|client| client.name == name);
    let bare = wished.bare_clients.iter().position(|client| client.name == name);
    let start = match (paired, bare) {
        (Some(index), _) => {
            wished.clients.remove(index);
            block_start(text, "client", index)
        }
        (None, Some(index)) => {
            wished.bare_clients.remove(index);
            block_start(text, "convert", index)
        }
        (None, None) => return Ok(None),
    };
    let start = start.ok_or(EditError::Layout)?;

    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let is_content = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let is_blank = |line: &&&str| line.trim().is_empty();
    let first = text.get(..start).map_or(0, |before| before.split_inclusive('\n').count());
    let after_header = lines.get(first + 1..).unwrap_or_default();
    let body = after_header
        .iter()
        .position(|line| line.trim_start().starts_with('['))
        .unwrap_or(after_header.len());
    // Comments below the last key belong to what follows.
    let body = after_header.get(..body).unwrap_or_default();
    let body = body.iter().rposition(|line| is_content(line)).map_or(0, |last| last + 1);
    let mut end = first + 1 + body;
    end += lines.get(end..).unwrap_or_default().iter().take_while(is_blank).count();
    let mut before = lines.get(..first).unwrap_or_default();
    if end == lines.len() {
        while let [rest @ .., last] = before
            && last.trim().is_empty()
        {
            before = rest;
        }
    }
    let rest = lines.get(end..).unwrap_or_default();
    verified(before.concat() + &rest.concat(), file, &wished).map(Some)
}

/// The text with other keys of the client of that name.
pub fn set_keys(
    text: &str,
    file: &str,
    name: &str,
    public_key: PublicKey,
    next_key: Option<PublicKey>,
) -> Result<String, EditError> {
    let mut wished = ServerConfig::parse(text, file).map_err(EditError::Config)?;
    let index = wished.clients.iter().position(|client| client.name == name);
    let client = index.and_then(|index| wished.clients.get_mut(index)).ok_or(EditError::Layout)?;
    (client.public_key, client.next_key) = (public_key, next_key);
    let start =
        index.and_then(|index| block_start(text, "client", index)).ok_or(EditError::Layout)?;
    let (before, block) = text.split_at_checked(start).ok_or(EditError::Layout)?;
    let mut out = before.to_owned();
    let mut inside = true;
    for (number, line) in block.split_inclusive('\n').enumerate() {
        inside &= number == 0 || !line.trim_start().starts_with('[');
        match line.split('=').next().map(str::trim).filter(|_| inside) {
            Some("public_key") => {
                out.push_str(&format!("public_key = \"{public_key}\"\n"));
                if let Some(key) = next_key {
                    out.push_str(&format!("next_key = \"{key}\"\n"));
                }
            }
            Some("next_key") => {}
            _ => out.push_str(line),
        }
    }
    verified(out, file, &wished)
}

/// The offset of the line that the `index`th block of a kind begins on.
fn block_start(text: &str, kind: &str, index: usize) -> Option<usize> {
    let root = DeTable::parse(text).ok()?;
    let blocks = root.get_ref().iter().find(|(key, _)| key.get_ref() == kind)?.1;
    let DeValue::Array(blocks) = blocks.get_ref() else { return None };
    let start = blocks.get(index)?.span().start;
    let line = text.get(..start)?.rfind('\n').map_or(0, |at| at + 1);
    text.get(line..)?.trim_start().starts_with("[[").then_some(line)
}

fn verified(text: String, file: &str, wished: &ServerConfig) -> Result<String, EditError> {
    match ServerConfig::parse(&text, file) {
        Ok(config) if config == *wished => Ok(text),
        _ => Err(EditError::Layout),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::mutate::{Random, mutated};

    const BASE: &str = "listen = \"[::]:443\" # both families\npublic = \"vps.example.net:443\"\n";

    fn client(name: &str, byte: u8, forwards: &[u16]) -> ClientConfig {
        ClientConfig {
            name: name.into(),
            public_key: PublicKey([byte; 32]),
            next_key: None,
            forwards: forwards.to_vec(),
        }
    }

    #[test]
    fn adding_and_removing_gives_the_same_bytes() {
        for base in
            [BASE.to_owned(), format!("{BASE}\n[limits]\nunauthenticated = 1 # few\n# end\n")]
        {
            let one = add_client(&base, "F", &client("a", 1, &[22, 80])).unwrap();
            let two = add_client(&one, "F", &client("b", 2, &[])).unwrap();
            assert!(two.starts_with(&base));
            assert_eq!(remove_client(&two, "F", "b").unwrap().unwrap(), one);
            assert_eq!(remove_client(&one, "F", "a").unwrap().unwrap(), base);
            let without_a = remove_client(&two, "F", "a").unwrap().unwrap();
            assert_eq!(without_a, add_client(&base, "F", &client("b", 2, &[])).unwrap());
            assert_eq!(remove_client(&two, "F", "c"), Ok(None));
            let bare = "\n[[convert]]\nname = \"bare\"\ncookie = \"AAECAwQFBgcICQoLDA0ODw==\"\n";
            let three = format!("{two}{bare}");
            assert_eq!(remove_client(&three, "F", "bare").unwrap().unwrap(), two);
        }
    }

    #[test]
    fn comments_of_others_stay() {
        let key = PublicKey([1; 32]);
        let text = format!(
            "{BASE}\n# home\n[[client]]\nname = \"a\" # me\n# its key\npublic_key = \"{key}\"\n\n# caps\n\
             [limits]\nunauthenticated = 9\n"
        );
        assert_eq!(
            remove_client(&text, "F", "a").unwrap().unwrap(),
            format!("{BASE}\n# home\n# caps\n[limits]\nunauthenticated = 9\n")
        );
    }

    #[test]
    fn a_new_key_stands_beside_the_old_one_and_then_in_its_place() {
        let [old, new] = [1, 2].map(|byte| PublicKey([byte; 32]));
        let base = add_client(BASE, "F", &client("other", 9, &[])).unwrap();
        let text = add_client(&base, "F", &client("a", 1, &[22])).unwrap() + "\n# end\n[limits]\n";
        let both = set_keys(&text, "F", "a", old, Some(new)).unwrap();
        let line = format!("public_key = \"{old}\"\n");
        assert_eq!(both, text.replace(&line, &format!("{line}next_key = \"{new}\"\n")));
        let after = set_keys(&both, "F", "a", new, None).unwrap();
        assert_eq!(after, text.replace(&old.to_string(), &new.to_string()));
        let taken = set_keys(&text, "F", "a", old, Some(PublicKey([9; 32])));
        assert_eq!(taken, Err(EditError::Layout), "another client has it");
        assert_eq!(set_keys(&text, "F", "b", new, None), Err(EditError::Layout));
    }

    #[test]
    fn other_layouts_are_left_alone() {
        let key = PublicKey([1; 32]);
        let inline = format!("{BASE}client = [{{ name = \"a\", public_key = \"{key}\" }}]\n");
        assert_eq!(add_client(&inline, "F", &client("b", 2, &[])), Err(EditError::Layout));
        assert_eq!(remove_client(&inline, "F", "a"), Err(EditError::Layout));
        assert!(matches!(add_client("x", "F", &client("b", 2, &[])), Err(EditError::Config(_))));
        let known = add_client(BASE, "F", &client("a", 1, &[])).unwrap();
        assert_eq!(add_client(&known, "F", &client("a", 2, &[])), Err(EditError::Layout));
    }

    /// Whatever the layout: an edit does exactly what it says, or is refused.
    #[test]
    fn mutated_texts_are_edited_right_or_not_at_all() {
        let key = |byte| PublicKey([byte; 32]);
        let base = format!(
            "{BASE}[[client]]\nname = \"a\"\npublic_key = \"{}\"\n\n# b\n[[client]]\nname = \"b\"\n\
             public_key = \"{}\"\nforwards = [\n  1,\n]\n[limits]\nunauthenticated = 5\n",
            key(1),
            key(2)
        );
        let tokens: [&[u8]; 6] = [b"\n", b"[", b"#", b"\"\"\"", b"\"", b"client."];
        let mut random = Random(0xc1);
        let mut edited = 0;
        for _ in 0..5_000 {
            let Ok(text) = String::from_utf8(mutated(base.as_bytes(), &tokens, &mut random)) else {
                continue;
            };
            let Ok(before) = ServerConfig::parse(&text, "F") else { continue };
            for name in ["a", "b"] {
                if let Ok(Some(after)) = remove_client(&text, "F", name) {
                    let after = ServerConfig::parse(&after, "F").unwrap();
                    assert_eq!(after.clients.len() + 1, before.clients.len());
                    assert!(after.clients.iter().all(|client| client.name != name));
                    edited += 1;
                }
            }
        }
        assert!(edited > 100, "{edited}");
    }
}
