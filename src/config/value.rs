//! The values that options hold. Each parser's error says what the value must be, to be read after
//! "it must be".

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use log::LevelFilter;

use crate::net::Prefix;

/// The longest host name (RFC 1035, section 2.3.4, without the final dot).
const HOST_NAME_MAX: usize = 253;
/// The longest device name (IFNAMSIZ less the NUL).
const DEVICE_NAME_MAX: usize = 15;

/// Levels in a configuration, by name.
pub const LOG_LEVELS: [(&str, LevelFilter); 4] = [
    ("error", LevelFilter::Error),
    ("warn", LevelFilter::Warn),
    ("info", LevelFilter::Info),
    ("debug", LevelFilter::Debug),
];

/// A host and a port: `vps.example.net:443`, `192.0.2.1:443`, `[2001:db8::1]:443`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Host name or address literal, without brackets.
    pub host: String,
    /// Port, never 0.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<HostPort, String> {
        let bad = || "HOST:PORT such as vps.example.net:443 or [2001:db8::1]:443".to_owned();
        let (host_text, port_text) = text.rsplit_once(':').ok_or_else(bad)?;
        let port = port(port_text).map_err(|_| bad())?;
        if let Some(literal) = host_text.strip_prefix('[') {
            let literal = literal.strip_suffix(']').ok_or_else(bad)?;
            let address: Ipv6Addr = literal.parse().map_err(|_| bad())?;
            return Ok(HostPort { host: address.to_string(), port });
        }
        if host_text.contains(':') {
            return Err(bad());
        }
        Ok(HostPort { host: host(host_text)?, port })
    }
}

/// An `http:` URL (RFC 3986), for instance `http://example.net/generate_204`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpUrl {
    /// The whole.
    pub text: String,
    /// Where it leads.
    pub server: HostPort,
}

impl HttpUrl {
    /// The authority, and the path with its query, as a request names them (RFC 9112 section 3.2).
    pub fn parts(&self) -> (&str, &str) {
        let (authority, path) = split_url(&self.text).unwrap_or_default();
        (authority, if path.is_empty() { "/" } else { path })
    }
}

/// The authority of an `http` URL, and what follows it.
fn split_url(text: &str) -> Option<(&str, &str)> {
    let rest = text.strip_prefix("http://")?;
    Some(rest.split_at(rest.find('/').unwrap_or(rest.len())))
}

impl FromStr for HttpUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<HttpUrl, String> {
        let bad = || "a URL such as http://example.net/generate_204, not https, or off".to_owned();
        let (authority, path) = split_url(text).ok_or_else(bad)?;
        if !path.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(&byte)) {
            return Err(bad());
        }
        let server = authority.parse().or_else(|_| format!("{authority}:80").parse());
        Ok(HttpUrl { text: text.to_owned(), server: server.map_err(|_: String| bad())? })
    }
}

/// A host name or an address literal without brackets.
pub fn host(text: &str) -> Result<String, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A last label of digits alone is a mistyped IPv4 address, never a top-level domain.
    let numeric = text.rsplit('.').next().is_none_or(|l| l.bytes().all(|b| b.is_ascii_digit()));
    if text.len() <= HOST_NAME_MAX && !numeric && text.split('.').all(label) {
        return Ok(text.to_ascii_lowercase());
    }
    Err("a host name or an IP address, such as vps.example.net, 192.0.2.1 or 2001:db8::1".into())
}

/// An address and a port to listen on.
pub fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().ok().filter(|address: &SocketAddr| address.port() != 0).ok_or_else(|| {
        "ADDRESS:PORT such as 127.0.0.1:8484 or [::1]:8484, with a port from 1 to 65535".into()
    })
}

/// A port from 1 to 65535.
pub fn port(text: &str) -> Result<u16, String> {
    decimal(text)
        .and_then(|number| u16::try_from(number).ok())
        .filter(|&port| port != 0)
        .ok_or_else(|| "a port from 1 to 65535".into())
}

/// A port, or a range such as `8000-8100`; both ends belong to it.
pub fn port_range(text: &str) -> Result<(u16, u16), String> {
    let bad = |_| "a port from 1 to 65535, or a range such as 8000-8100".to_owned();
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first).map_err(bad)?, port(last).map_err(bad)?);
    if first > last {
        return Err(format!("a range from low to high: {last}-{first}"));
    }
    Ok((first, last))
}

/// An address or a prefix without host bits.
pub fn network(text: &str) -> Result<Prefix, String> {
    let prefix: Prefix = text
        .parse()
        .map_err(|_| "an address or a prefix, such as 192.0.2.1 or 2001:db8::/32".to_owned())?;
    if prefix.network() == prefix {
        return Ok(prefix);
    }
    Err(format!("a prefix without host bits, such as {}", prefix.network()))
}

/// A MAC address, with `:` or `-` between the bytes.
pub fn mac(text: &str) -> Result<[u8; 6], String> {
    let bad = || "a MAC address such as 02:00:5e:10:00:01".to_owned();
    let separator = if text.contains('-') { '-' } else { ':' };
    let mut out = [0; 6];
    let mut parts = text.split(separator);
    for byte in &mut out {
        let part = parts.next().ok_or_else(bad)?;
        if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(bad());
        }
        *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
    }
    if parts.next().is_some() {
        return Err(bad());
    }
    Ok(out)
}

/// An amount of data in bytes: a number, with K, M, G or T for powers of 1000 as providers count.
pub fn bytes(text: &str) -> Result<u64, String> {
    let units = [("K", 1_000), ("M", 1_000_000), ("G", 1_000_000_000), ("T", 1_000_000_000_000)];
    scaled(text, &units)
        .ok_or_else(|| "bytes, with K, M, G or T for powers of 1000, such as 500M or 50G".into())
}

/// A number with three significant digits and a decimal prefix: `1234567` is `1.23 M`.
pub fn with_prefix(value: u64) -> (String, &'static str) {
    const PREFIXES: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
    let mut scaled = value as f64;
    let mut prefix = "";
    for next in PREFIXES {
        prefix = next;
        // What would round to 1000 belongs to the next prefix.
        if scaled < 999.5 {
            break;
        }
        scaled /= 1000.0;
    }
    let digits = match scaled {
        _ if prefix.is_empty() => 0,
        s if s < 9.995 => 2,
        s if s < 99.95 => 1,
        _ => 0,
    };
    (format!("{scaled:.digits$}"), prefix)
}

/// Bytes, such as `1.23 GB`.
pub fn show_bytes(bytes: u64) -> String {
    let (number, prefix) = with_prefix(bytes);
    format!("{number} {prefix}B")
}

/// A rate such as `50Mbit`, in bytes a second; 0 is unlimited.
pub fn rate(text: &str) -> Result<u64, String> {
    let units = [("kbit", 1_000), ("Mbit", 1_000_000), ("Gbit", 1_000_000_000)];
    if text == "0" {
        return Ok(0);
    }
    let unit = units.iter().any(|(unit, _)| ends_with_ignoring_case(text, unit));
    scaled(text, &units)
        .filter(|&bits| unit && bits > 0)
        .map(|bits| bits.div_ceil(8))
        .ok_or_else(|| "0, or bits a second with kbit, Mbit or Gbit, such as 50Mbit".into())
}

/// A network device's name, as the kernel's `dev_valid_name` has it, without characters that would
/// have to be quoted elsewhere.
pub fn device(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_graphic() && !b"/:\"'\\*".contains(&byte);
    let length = (1..=DEVICE_NAME_MAX).contains(&text.len());
    if length && text.bytes().all(allowed) && !matches!(text, "." | "..") {
        return Ok(text.to_owned());
    }
    Err("a network device such as eth1, 15 characters at most".into())
}

/// The name of an OpenWrt interface: a section of `/etc/config/network`, or one that netifd makes.
pub fn interface(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if !text.is_empty() && text.bytes().all(allowed) {
        return Ok(text.to_owned());
    }
    Err("an interface of /etc/config/network such as wan".into())
}

/// A client's name: it stands in logs, metrics and on command lines.
pub fn client_name(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if first && text.len() <= 64 && text.bytes().all(allowed) {
        return Ok(text.to_owned());
    }
    Err("a name of 1 to 64 letters, digits, '-', '_' and '.', such as home".into())
}

/// `bond, backup or off`.
pub fn one_of(names: &[&str]) -> String {
    match names {
        [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        _ => names.join(""),
    }
}

fn ends_with_ignoring_case(text: &str, suffix: &str) -> bool {
    text.len()
        .checked_sub(suffix.len())
        .and_then(|at| text.get(at..))
        .is_some_and(|end| end.eq_ignore_ascii_case(suffix))
}

/// Digits alone: unlike `str::parse`, no sign.
fn decimal(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    for (unit, factor) in units {
        if ends_with_ignoring_case(text, unit) {
            let digits = text.get(..text.len() - unit.len())?;
            return decimal(digits)?.checked_mul(*factor);
        }
    }
    decimal(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (text, host, port) in [
            ("http://a.example", "a.example", 80),
            ("http://a.example:81/x?y=1", "a.example", 81),
            ("http://192.0.2.1/", "192.0.2.1", 80),
            ("http://[2001:db8::1]:8080/x", "2001:db8::1", 8080),
            ("http://[2001:db8::1]", "2001:db8::1", 80),
        ] {
            let url: HttpUrl = text.parse().unwrap();
            assert_eq!((url.text.as_str(), url.server.host.as_str()), (text, host));
            assert_eq!(url.server.port, port, "{text}");
            let (authority, path) = url.parts();
            let whole = format!("http://{authority}{path}");
            assert_eq!(whole.trim_end_matches('/'), text.trim_end_matches('/'));
            assert!(path.starts_with('/'), "{text}");
        }
        for bad in ["", "a.example", "https://a.example/", "http://", "http:///x", "http://a b/"] {
            assert!(bad.parse::<HttpUrl>().is_err(), "{bad}");
        }
        assert!("http://a.example/x y".parse::<HttpUrl>().is_err());
        assert!("http://user@a.example/".parse::<HttpUrl>().is_err());
    }

    #[test]
    fn hosts() {
        for good in ["vps.example.net", "a", "xn--bcher-kva.example", "192.0.2.1", "2001:db8::1"] {
            assert_eq!(host(good).as_deref(), Ok(good));
        }
        assert_eq!(host("VPS.Example.NET").as_deref(), Ok("vps.example.net"));
        assert_eq!(host("2001:DB8:0::1").as_deref(), Ok("2001:db8::1"));
        let long = format!("{}.example", "a".repeat(64));
        for bad in [
            "",
            ".",
            "a..b",
            "-a",
            "a-",
            "1.2.3",
            "1.2.3.4.5",
            "256.1.1.1",
            "a b",
            "ä",
            "a_b",
            "[::1]",
            "fe80::1%eth0",
            "a:443",
            "http://a",
            long.as_str(),
        ] {
            assert!(host(bad).is_err(), "{bad}");
        }
        assert!(host(&format!("{}a", "a.".repeat(127))).is_err());
    }

    #[test]
    fn hosts_with_ports() {
        for good in ["vps.example.net:443", "192.0.2.1:1", "[2001:db8::1]:65535"] {
            assert_eq!(good.parse::<HostPort>().unwrap().to_string(), good);
        }
        for bad in
            ["a", "a:", "a:0", "a:65536", ":443", "2001:db8::1:443", "[::1]", "[::1:4", "[a]:1"]
        {
            assert!(bad.parse::<HostPort>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ports() {
        assert_eq!(port_range("22"), Ok((22, 22)));
        assert_eq!(port_range("8000-8100"), Ok((8000, 8100)));
        for bad in ["", "0", "+1", "-1", "1-", "-", "1-2-3", "0-1", "65536", " 1"] {
            assert!(port_range(bad).is_err(), "{bad}");
        }
        assert_eq!(port_range("9-8").unwrap_err(), "a range from low to high: 8-9");
    }

    #[test]
    fn amounts_are_decimal() {
        assert_eq!(bytes("0"), Ok(0));
        assert_eq!(bytes("1234"), Ok(1234));
        assert_eq!(bytes("500M"), Ok(500_000_000));
        assert_eq!(bytes("50G"), Ok(50_000_000_000));
        assert_eq!(bytes("2t"), Ok(2_000_000_000_000));
        for bad in ["", "G", "-1", "+1", "1.5G", "1GB", "1 G", "99999999999999T", "1é"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_are_in_bits() {
        assert_eq!(rate("0"), Ok(0));
        assert_eq!(rate("50Mbit"), Ok(6_250_000));
        assert_eq!(rate("1gbit"), Ok(125_000_000));
        for bad in ["", "50", "50M", "0Mbit", "Mbit", "-1kbit"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn networks_have_no_host_bits() {
        assert_eq!(network("10.0.0.0/8").unwrap().to_string(), "10.0.0.0/8");
        assert!(network("10.0.0.1/8").unwrap_err().contains("10.0.0.0/8"));
        for bad in ["", "10", "10.0.0.0/33", "::/129", "10.0.0.0/", "example.net"] {
            assert!(network(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn macs() {
        assert_eq!(mac("02:00:5e:10:AB:01"), Ok([2, 0, 0x5e, 0x10, 0xab, 1]));
        assert_eq!(mac("02-00-5e-10-ab-01"), Ok([2, 0, 0x5e, 0x10, 0xab, 1]));
        for bad in
            ["", "02:00:5e:10:ab", "02:00:5e:10:ab:01:02", "2:0:5e:10:ab:1", "+2:00:5e:10:ab:01"]
        {
            assert!(mac(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names() {
        for good in ["eth1", "pppoe-wan", "br-lan.10", "wwan0_1"] {
            assert!(device(good).is_ok() && interface(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "a:b", "eth\"", "é", "abcdefghijklmnop"] {
            assert!(device(bad).is_err(), "{bad}");
        }
        assert!(client_name("home-1.a_b").is_ok());
        for bad in ["", "-a", ".", "a b", "é", "a/b"] {
            assert!(client_name(bad).is_err(), "{bad}");
        }
    }
}
