//! A request's head (RFC 9112).

use super::Answer;

/// Bytes of a head at most.
pub const HEAD_LIMIT: usize = 8 * 1024;
/// Header fields of a head at most.
pub(super) const FIELDS_LIMIT: usize = 64;

/// What matters of a request's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The method, such as `GET`.
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// Host asked for; none only in HTTP/1.0.
    pub host: Option<String>,
    pub(super) query: String,
    pub(super) authorization: Option<String>,
    pub(super) cookies: String,
}

impl Head {
    /// Parses a head; `None` while it is incomplete.
    ///
    /// # Errors
    /// The answer where it is none, or too long.
    pub fn parse(bytes: &[u8]) -> Result<Option<Head>, Answer> {
        let bad = |text: &str| Answer::error(400, text);
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_LIMIT];
        let mut request = httparse::Request::new(&mut fields);
        match request.parse(bytes) {
            Ok(httparse::Status::Complete(_)) => {}
            Ok(httparse::Status::Partial) if bytes.len() >= HEAD_LIMIT => {
                let text = format!("the request's head is longer than {HEAD_LIMIT} bytes");
                return Err(Answer::error(431, &text));
            }
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => {
                return Err(Answer::error(431, "too many header fields"));
            }
            Err(httparse::Error::Version) => return Err(Answer::error(505, "this is HTTP/1.1")),
            Err(error) => return Err(bad(&format!("no valid request: {error}"))),
        }
        let (Some(method), Some(target), Some(version)) =
            (request.method, request.path, request.version)
        else {
            return Err(bad("no valid request"));
        };
        let named = |name: &'static str| {
            let fields = request.headers.iter().filter(|it| it.name.eq_ignore_ascii_case(name));
            fields.map(|field| std::str::from_utf8(field.value).map(str::trim))
        };
        let mut hosts = named("host");
        let host = match (hosts.next(), hosts.next()) {
            (None, _) if version == 0 => None,
            (Some(Ok(host)), None) => Some(host),
            (None, _) => return Err(bad("no Host field")),
            _ => return Err(bad("the Host field is not one name")),
        };
        // A target in absolute form names the host itself, and Host is to be ignored.
        let (host, target) = match target.get(..7) {
            Some(scheme) if scheme.eq_ignore_ascii_case("http://") => {
                let rest = target.get(7..).unwrap_or_default();
                let (host, target) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                (Some(host), if target.is_empty() { "/" } else { target })
            }
            _ => (host, target),
        };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let cookies: Vec<&str> = named("cookie").flatten().collect();
        Ok(Some(Head {
            method: method.to_owned(),
            path: path.to_owned(),
            host: host.map(str::to_owned),
            query: query.to_owned(),
            authorization: named("authorization").next().and_then(Result::ok).map(str::to_owned),
            cookies: cookies.join(";"),
        }))
    }

    /// A parameter of the query, as it stands there: none of ours has anything to unescape.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        pairs(&self.query, '&').find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    /// A cookie's value.
    pub(super) fn cookie(&self, name: &str) -> Option<&str> {
        pairs(&self.cookies, ';').find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

fn pairs(text: &str, between: char) -> impl Iterator<Item = (&str, &str)> {
    text.split(between).filter_map(|pair| pair.trim().split_once('='))
}
