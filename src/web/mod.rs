//! What is served over HTTP, to whom, and under which names: the status page, the JSON behind it, and
//! metrics. Everything is read only.
//!
//! Three ways of listening are safe: on a loopback address, on the LAN's devices alone, and with a
//! token. The first two look at the `Host` field, for a web page of a stranger may have its own name
//! resolved to this host (DNS rebinding); with a token such a page has nothing to show.

mod answer;
mod head;
mod metrics;
mod page;
mod place;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use serde_json::{Value, json};

pub use answer::Answer;
pub use head::{HEAD_LIMIT, Head};
pub use metrics::metrics;
pub use page::page;
pub use place::{Place, places};

use crate::crypto::digest::{SHA256, digest};

/// Endings of names that no stranger's name server answers for (RFC 6762, RFC 8375, and OpenWrt's `lan`).
const LOCAL_DOMAINS: [&str; 5] = [".lan", ".local", ".home.arpa", ".internal", ".localhost"];
/// The cookie that holds the token.
const COOKIE: &str = "mptcp-bond";

/// Whose status it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// An agent's: page, status, history and metrics.
    Agent,
    /// A server's: metrics alone.
    Server,
}

/// Who may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// This host alone.
    Loopback,
    /// Those who reach the LAN's devices.
    Lan,
    /// Whoever knows the token.
    Token(Token),
}

/// A secret, of which but the digest is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token([u8; 32]);

impl Token {
    /// The fewest characters of a token.
    pub const LEAST: usize = 16;

    /// The token in a file's text, which may end with a newline.
    ///
    /// # Errors
    /// What the text must be.
    pub fn from_text(text: &str) -> Result<Token, String> {
        let token = text.trim_end();
        if token.len() < Token::LEAST || !token.bytes().all(is_token_byte) {
            return Err(format!("{} letters and digits or more", Token::LEAST));
        }
        Ok(Token::of(token))
    }

    fn of(text: &str) -> Token {
        let mut bytes = [0; 32];
        // Digests are compared: how long that takes tells nothing of the token.
        bytes.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
        Token(bytes)
    }
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte)
}

/// What is asked for, and what the owner of the state has to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The owner's method.
    pub method: &'static str,
    /// Its parameters.
    pub params: Value,
    /// What the answer is: for anything but JSON, the owner gives a JSON string.
    pub content: Content,
}

/// A kind of contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The status page.
    Page,
    /// JSON.
    Json,
    /// Prometheus' text format.
    Metrics,
    /// A sentence.
    Text,
}

/// What a request is for.
///
/// # Errors
/// The answer where it is for nothing, or by somebody it is not for.
pub fn route(head: &Head, access: &Access, site: Site) -> Result<Wanted, Answer> {
    admit(head, access)?;
    let wanted = |method, params, content| Ok(Wanted { method, params, content });
    let found = match (head.path.as_str(), site) {
        ("/metrics", _) => wanted("metrics", Value::Null, Content::Metrics),
        ("/", Site::Agent) => wanted("page", Value::Null, Content::Page),
        ("/status.json", Site::Agent) => wanted("status", Value::Null, Content::Json),
        ("/history.json", Site::Agent) => wanted("history", history_params(head), Content::Json),
        (_, Site::Agent) => {
            let text = "there is /, /status.json, /history.json and /metrics";
            Err(Answer::error(404, text))
        }
        (_, Site::Server) => Err(Answer::error(404, "there is nothing but /metrics")),
    };
    if found.is_ok() && !matches!(head.method.as_str(), "GET" | "HEAD") {
        let answer = Answer::error(405, "this can only be read");
        return Err(answer.with("Allow", "GET, HEAD".to_owned()));
    }
    found
}

fn history_params(head: &Head) -> Value {
    let mut params = json!({});
    for name in ["span", "last"] {
        if let Some(value) = head.parameter(name) {
            params[name] = value.parse::<u32>().map_or_else(|_| json!(value), |it| json!(it));
        }
    }
    params
}

/// Whether the one who asks may.
fn admit(head: &Head, access: &Access) -> Result<(), Answer> {
    let named = |allowed: fn(&str) -> bool| head.host.as_deref().is_none_or(allowed);
    let refusal = match access {
        Access::Loopback if named(is_loopback) => return Ok(()),
        Access::Lan if named(is_lan_name) => return Ok(()),
        Access::Token(token) => return admit_by_token(head, token),
        Access::Loopback => "this address is served to localhost, 127.0.0.1 and [::1] alone",
        Access::Lan => "this is served under the router's addresses, and names such as router.lan",
    };
    Err(Answer::error(421, refusal))
}

fn admit_by_token(head: &Head, token: &Token) -> Result<(), Answer> {
    let is_right = |given: &&str| Token::of(given) == *token;
    let bearer = head.authorization.as_deref().and_then(|text| text.strip_prefix("Bearer "));
    if bearer.or(head.cookie(COOKIE)).as_ref().is_some_and(is_right) {
        return Ok(());
    }
    match head.parameter("token") {
        // The token goes where no log, history or picture of the screen shows it.
        Some(given) if is_right(&given) => {
            let cookie =
                format!("{COOKIE}={given}; HttpOnly; SameSite=Strict; Path=/; Max-Age=31536000");
            let answer = Answer::error(303, "see /").with("Location", "/".to_owned());
            Err(answer.with("Set-Cookie", cookie))
        }
        _ => {
            let text = "this needs a token: open /?token=TOKEN once, or send 'Authorization: \
                        Bearer TOKEN'; it is in the file http.token beside the keys, for \
                        instance /etc/mptcp-bond/http.token";
            Err(Answer::error(401, text).with("WWW-Authenticate", "Bearer".to_owned()))
        }
    }
}

/// The host of a `Host` field without its port, and without the brackets of an IPv6 address.
fn host_name(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        let (address, port) = rest.split_once(']').unwrap_or((host, ""));
        return if is_port(port) { address } else { host };
    }
    match host.find(':') {
        Some(colon) if is_port(host.get(colon..).unwrap_or_default()) => {
            host.get(..colon).unwrap_or_default()
        }
        _ => host,
    }
}

/// Whether this is nothing, or a colon and a port.
fn is_port(text: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
    text.is_empty() || text.strip_prefix(':').is_some_and(is_number)
}

/// Whether `host`, with or without a port, names this host by itself.
fn is_loopback(host: &str) -> bool {
    let name = host_name(host);
    name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        || name.eq_ignore_ascii_case("localhost")
}

/// Whether a stranger cannot have `host` resolved: an address, a name without a dot, or one of a
/// domain that is local.
fn is_lan_name(host: &str) -> bool {
    let name = host_name(host).to_ascii_lowercase();
    let is_label = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
    let local = !name.contains('.') || LOCAL_DOMAINS.iter().any(|domain| name.ends_with(domain));
    let is_name = !name.is_empty() && name.bytes().all(is_label);
    name.parse::<IpAddr>().is_ok() || is_name && local
}

/// Reads anything as a request's head, and finds out what it is for.
#[cfg(any(test, fuzzing))]
pub fn read_anything(bytes: &[u8]) {
    if let Ok(Some(head)) = Head::parse(bytes) {
        let token = Access::Token(Token::of("a token"));
        for access in [Access::Loopback, Access::Lan, token] {
            let _ = route(&head, &access, Site::Agent);
        }
    }
}
