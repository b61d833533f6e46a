//! Catalogues of translations, in gettext's `.po` format.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::site::package;

/// The texts of a catalogue and their translations.
pub struct Catalogue {
    pub messages: BTreeMap<String, String>,
}

impl Catalogue {
    /// Reads a file of the package's `po`.
    #[track_caller]
    pub fn read(name: &str) -> Catalogue {
        let text = fs::read_to_string(package().join("po").join(name)).expect(name);
        let mut messages = BTreeMap::new();
        // The context, the text and its translation, as far as they were read.
        let mut entry: [Option<String>; 3] = Default::default();
        let mut field = 0;
        for line in text.lines().chain([""]) {
            let (keyword, quoted) = line.split_once('"').unwrap_or((line, "\""));
            let part: String = serde_json::from_str(&format!("\"{quoted}")).unwrap_or_default();
            match keyword.trim() {
                "msgctxt" => field = 0,
                "msgid" => field = 1,
                "msgstr" => field = 2,
                "" if line.is_empty() => {
                    let [_, id, translation] = std::mem::take(&mut entry);
                    if let Some(id) = id.filter(|id| !id.is_empty()) {
                        let twice = messages.insert(id.clone(), translation.unwrap_or_default());
                        assert!(twice.is_none(), "{name} has '{id}' twice");
                    }
                    continue;
                }
                "" => {}
                comment => {
                    assert!(comment.starts_with('#'), "{name}: {line}");
                    continue;
                }
            }
            entry[field].get_or_insert_default().push_str(&part);
        }
        Catalogue { messages }
    }
}

/// The texts in calls of `_` in a script.
fn texts(script: &str) -> BTreeSet<String> {
    let calls = script.match_indices("_('").filter(|(at, _)| {
        !script[..*at].ends_with(|before: char| before.is_alphanumeric() || before == '_')
    });
    calls
        .map(|(at, call)| {
            let text = &script[at + call.len()..];
            let mut text = text.split('\'').next().unwrap_or_default().to_owned();
            assert!(!text.contains('\\'), "'{text}': write it without escapes");
            text.shrink_to_fit();
            text
        })
        .collect()
}

fn scripts(folder: &Path) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(folder).expect("list a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            all += &scripts(&path);
        } else if path.extension().is_some_and(|extension| extension == "js") {
            all += &fs::read_to_string(path).expect("read a script");
        }
    }
    all
}

/// What is to be replaced in a text, in order.
fn placeholders(text: &str) -> Vec<&str> {
    text.match_indices('%').filter_map(|(at, _)| text.get(at..at + 2)).collect()
}

#[test]
fn every_text_is_translated() {
    let mut known = texts(&scripts(&package().join("htdocs")));
    let menu = package().join("root/usr/share/luci/menu.d/luci-app-mptcp-bond.json");
    let menu: serde_json::Value = serde_json::from_str(&fs::read_to_string(menu).unwrap()).unwrap();
    let titles = menu.as_object().unwrap().values();
    known.extend(titles.map(|entry| entry["title"].as_str().unwrap().to_owned()));
    assert!(known.len() > 50, "{known:?}");
    let of = |catalogue: &Catalogue| catalogue.messages.keys().cloned().collect::<BTreeSet<_>>();
    let template = Catalogue::read("templates/mptcp-bond.pot");
    assert_eq!(of(&template), known, "po/templates/mptcp-bond.pot");
    for language in ["de", "zh_Hans"] {
        let catalogue = Catalogue::read(&format!("{language}/mptcp-bond.po"));
        assert_eq!(of(&catalogue), known, "{language}");
        for (text, translation) in &catalogue.messages {
            assert!(!translation.is_empty(), "{language}: '{text}' is not translated");
            assert_eq!(placeholders(text), placeholders(translation), "{language}: '{text}'");
        }
    }
}
