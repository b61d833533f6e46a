//! The order of the modules: each uses only those above it in `src/lib.rs`, and the pure half
//! reaches for neither clock nor I/O. Tests inside modules are exempt.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The last of the pure modules.
const LAST_PURE: &str = "controller";

/// Words that have no place in a pure module; `libc::E...`, the numbers of errors, do.
const IMPURE: &[&str] = &[
    "tokio",
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "Instant::now",
    "SystemTime",
    "HashMap",
    "HashSet",
    "getrandom",
    "libc",
    "rustix",
    "socket2",
    "unsafe",
];

/// The modules in the order of `src/lib.rs`.
fn modules(lib: &str) -> Vec<String> {
    lib.lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .map(str::to_string)
        .collect()
}

/// The code of a file: without comments and without its tests, which come last.
fn code(text: &str) -> String {
    let mut lines = Vec::new();
    let mut all = text.lines().peekable();
    while let Some(line) = all.next() {
        let tests = all.peek().is_some_and(|next| next.contains("mod tests {"));
        if line.trim() == "#[cfg(test)]" && tests {
            break;
        }
        lines.push(line.split("//").next().unwrap_or_default());
    }
    lines.join("\n")
}

/// The modules of this crate that code names, with or without braces around several.
fn used(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => names.extend(first_word(rest)),
            Some(group) => names.extend(group_members(group).iter().filter_map(|m| first_word(m))),
        }
    }
    names
}

/// The members of a `{a, b::{c, d}}` whose opening brace is taken off.
fn group_members(group: &str) -> Vec<String> {
    let mut members = vec![String::new()];
    let mut depth = 0;
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => members.push(String::new()),
            c => members.last_mut().unwrap().push(c),
        }
    }
    members
}

fn first_word(text: &str) -> Option<String> {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_string())
}

/// The source files below a folder but for those of tests.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        if path.is_dir() && name != "tests" {
            sources(&path, found);
        } else if name.ends_with(".rs") && name != "tests.rs" {
            found.push(path);
        }
    }
}

/// What is wrong with a module's code.
fn complaints(module: &str, code: &str, order: &[String]) -> Vec<String> {
    let place = |name: &str| order.iter().position(|module| module == name);
    let here = place(module).expect("declared in src/lib.rs");
    let below = used(code).into_iter().filter(|name| place(name).is_some_and(|at| at > here));
    let mut found: Vec<String> = below.map(|name| format!("uses `{name}`, below it")).collect();
    if here <= place(LAST_PURE).unwrap() {
        let code = code.replace("libc::E", "E");
        let impure = IMPURE.iter().filter(|word| has_word(&code, word));
        found.extend(impure.map(|word| format!("is pure, but mentions `{word}`")));
    }
    found
}

fn has_word(code: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        !code[..at].ends_with(is_part) && !code[at + word.len()..].starts_with(is_part)
    })
}

#[test]
fn modules_use_only_what_stands_above_them() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let lib = fs::read_to_string(src.join("lib.rs")).unwrap();
    let order = modules(&lib);
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut wrong: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut seen = 0;
    for file in files {
        let path = file.strip_prefix(&src).unwrap().to_str().unwrap().to_string();
        let module = path.split('/').next().unwrap().trim_end_matches(".rs");
        if module == "lib" || module == "main" {
            continue;
        }
        let complaints = complaints(module, &code(&fs::read_to_string(&file).unwrap()), &order);
        if !complaints.is_empty() {
            wrong.insert(path, complaints);
        }
        seen += 1;
    }
    assert!(seen >= order.len(), "{seen} files for {} modules", order.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_pure_module_denies_the_lints() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let lib = fs::read_to_string(src.join("lib.rs")).unwrap();
    let order = modules(&lib);
    let pure = order.iter().position(|module| module == LAST_PURE).unwrap();
    for module in &order[..=pure] {
        let denied = "deny(clippy::disallowed_methods, clippy::disallowed_types))]\npub mod ";
        assert!(lib.contains(&format!("{denied}{module};")), "{module}");
    }
}

#[test]
fn a_wrong_module_would_be_noticed() {
    let order: Vec<String> = ["net", "uplink", "controller", "os"].map(String::from).into();
    let wrong = |module: &str, text: &str| complaints(module, &code(text), &order).len();
    assert_eq!(wrong("uplink", "use crate::net::Link;"), 0);
    assert_eq!(wrong("uplink", "use crate::os::socket;"), 1);
    assert_eq!(wrong("uplink", "use crate::{net::{Link, Route}, os, controller::X};"), 2);
    assert_eq!(wrong("uplink", "fn f() { crate::controller::handle() }"), 1);
    assert_eq!(wrong("uplink", "let now = std::time::Instant::now();"), 1);
    assert_eq!(wrong("os", "let now = std::time::Instant::now();"), 0);
    assert_eq!(wrong("uplink", "// crate::os and tokio\nfn f() {}"), 0);
    assert_eq!(wrong("uplink", "fn f() {}\n#[cfg(test)]\nmod tests {\nuse crate::os;\n}"), 0);
    assert_eq!(wrong("uplink", "#[cfg(test)]\nmod tests;\nuse tokio::time;"), 1);
    assert_eq!(wrong("uplink", "let unsafely = my_tokio;"), 0);
}
