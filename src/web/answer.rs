//! An answer as HTTP/1.1 has it.

use super::Content;
use super::page::CONTENT_SECURITY_POLICY;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    code: u16,
    content: Content,
    fields: Vec<(&'static str, String)>,
    body: String,
}

impl Answer {
    /// What was asked for.
    pub fn of(content: Content, body: String) -> Answer {
        Answer { code: 200, content, fields: Vec::new(), body }
    }

    /// Why there is nothing else, in a sentence.
    pub fn error(code: u16, text: &str) -> Answer {
        let body = format!("{text}\n");
        Answer { code, content: Content::Text, fields: Vec::new(), body }
    }

    /// With a header field.
    pub fn with(mut self, name: &'static str, value: String) -> Answer {
        self.fields.push((name, value));
        self
    }

    /// The status code.
    #[cfg(test)]
    pub fn code(&self) -> u16 {
        self.code
    }

    /// As it goes over the wire; to `HEAD`, without its body.
    pub fn bytes(&self, with_body: bool) -> Vec<u8> {
        let mut text = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n\
             Cross-Origin-Resource-Policy: same-origin\r\nConnection: close\r\n",
            self.code,
            reason(self.code),
            media_type(self.content),
            self.body.len(),
        );
        let policy = match self.content {
            Content::Page => CONTENT_SECURITY_POLICY.as_str(),
            _ => "default-src 'none'; frame-ancestors 'none'",
        };
        let policy = ("Content-Security-Policy", policy);
        let fields = self.fields.iter().map(|(name, value)| (*name, value.as_str()));
        for (name, value) in fields.chain([policy]) {
            text.extend([name, ": ", value, "\r\n"]);
        }
        text.push_str("\r\n");
        if with_body {
            text.push_str(&self.body);
        }
        text.into_bytes()
    }
}

fn media_type(content: Content) -> &'static str {
    match content {
        Content::Page => "text/html; charset=utf-8",
        Content::Json => "application/json",
        Content::Metrics => "text/plain; version=0.0.4; charset=utf-8",
        Content::Text => "text/plain; charset=utf-8",
    }
}

fn reason(code: u16) -> &'static str {
    match code {
        200 => "OK",
        303 => "See Other",
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        421 => "Misdirected Request",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "HTTP Version Not Supported",
    }
}
