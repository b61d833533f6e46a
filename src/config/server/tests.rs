use std::path::Path;

use super::*;
use crate::config::mutate::{Random, mutated};
use crate::config::policy::Targets;

const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
const KEY2: &str = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=";

fn full() -> String {
    format!(
        "listen = [\"0.0.0.0:443\", \"[::]:443\"]
public = \"vps.example.net:443\"
key_file = \"/srv/key\"
log_level = \"warn\"
metrics_listen = \"127.0.0.1:9000\"
source = [\"198.51.100.7\", \"2001:db8::7\"]
[policy]
allow = [\"10.1.0.0/16\"]
deny = [\"203.0.113.0/24\"]

[limits]
streams_per_client = 100
rate = \"200Mbit\"
rate_per_client = \"50Mbit\"
unauthenticated = 16
streams = 500
session_lifetime = 600

[[client]]
name = \"home\"
public_key = \"{KEY}\"
forwards = [2222, 0x1f90]

[[client]]
name = \"office\"
public_key = \"{KEY2}\"

[[convert]]
name = \"plain\"
cookie = \"AAECAwQFBgcICQoLDA0ODw==\"
"
    )
}

fn parse(text: &str) -> ServerConfig {
    ServerConfig::parse(text, "server.toml").unwrap_or_else(|error| panic!("{error}"))
}

fn problems(text: &str) -> Vec<String> {
    let error = ServerConfig::parse(text, "F").expect_err(text);
    error.to_string().lines().map(|line| line[2..].trim_start().to_owned()).collect()
}

#[test]
fn everything_is_read() {
    let client = |name: &str, key: &str, forwards: &[u16]| ClientConfig {
        name: name.into(),
        public_key: key.parse().unwrap(),
        next_key: None,
        forwards: forwards.to_vec(),
    };
    let prefix = |text: &str| Targets::parse(text).unwrap();
    assert_eq!(
        parse(&full()),
        ServerConfig {
            listen: vec!["0.0.0.0:443".parse().unwrap(), "[::]:443".parse().unwrap()],
            public: "vps.example.net:443".parse().unwrap(),
            key_file: "/srv/key".into(),
            log_level: log::LevelFilter::Warn,
            sources: vec!["198.51.100.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
            policy: Policy::new(prefix("10.1.0.0/16"), prefix("203.0.113.0/24")),
            limits: ServerLimits {
                streams: 500,
                streams_per_client: 100,
                rate: 25_000_000,
                rate_per_client: 6_250_000,
                unauthenticated: 16,
                session_lifetime: Duration::from_secs(600),
            },
            clients: vec![client("home", KEY, &[2222, 8080]), client("office", KEY2, &[])],
            allow_plain_convert: false,
            bare_clients: vec![BareClient {
                name: "plain".into(),
                cookie: TokenHash::of(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
            }],
            metrics_listen: Some("127.0.0.1:9000".parse().unwrap()),
        }
    );
}

#[test]
fn targets_are_reached_from_the_source_of_their_family() {
    let base = "listen = '[::]:443'\npublic = 'a.example:443'\n";
    let config = parse(&full());
    let from = |target: &str| config.source_towards(target.parse().unwrap()).unwrap().to_string();
    assert_eq!(from("192.0.2.1:80"), "198.51.100.7");
    assert_eq!(from("[2001:db8:1::1]:80"), "2001:db8::7");
    let one = parse(&format!("{base}source = '192.0.2.7'\n"));
    assert_eq!(one.source_towards("[2001:db8:1::1]:80".parse().unwrap()), None);
    for wrong in ["'vps'", "['192.0.2.7', '192.0.2.8']", "['192.0.2.7', '::1', '::2']"] {
        let problem = &problems(&format!("{base}source = {wrong}\n"))[0];
        assert!(problem.contains("must be an address of this host"), "{problem}");
    }
}

#[test]
fn bare_clients_have_names_and_cookies_of_their_own() {
    let base = "listen = '[::]:443'\npublic = 'a.example:443'\n";
    let block =
        |name: &str, cookie: &str| format!("[[convert]]\nname = '{name}'\ncookie = '{cookie}'\n");
    let (one, two) = ("AAECAwQFBgcICQoLDA0ODw==", "BBECAwQFBgcICQoLDA0ODw==");
    assert!(
        parse(&format!("allow_plain_convert = true\n{base}{}", block("a", one)))
            .allow_plain_convert
    );
    let wrong = |text: &str| problems(&format!("{base}{text}"))[0].clone();
    assert!(wrong("allow_plain_convert = 1\n").contains("must be true or false"));
    assert!(wrong(&(block("a", one) + &block("a", two))).contains("a client 'a' already"));
    assert!(wrong(&(block("a", one) + &block("b", one))).contains("the cookie of another client"));
    for cookie in ["AAECAwQFBgcICQoLDA0O", "no base64 at all", "AAEC"] {
        let problem = wrong(&block("a", cookie));
        assert!(
            problem.contains("16 to 64 random bytes") && !problem.contains(cookie),
            "{problem}"
        );
    }
}

#[test]
fn defaults() {
    let config = parse("listen = '[::]:443'\npublic = '[2001:db8::1]:443'\n");
    assert_eq!(config.listen, ["[::]:443".parse().unwrap()]);
    assert_eq!(config.limits, ServerLimits::default());
    assert_eq!(config.policy, Policy::default());
    assert_eq!(config.log_level, log::LevelFilter::Info);
    assert!(config.clients.is_empty());
    assert_eq!(
        config.key_path(Path::new("/etc/mptcp-bond/server.toml")),
        Path::new("/etc/mptcp-bond/server.key")
    );
    assert_eq!(parse(&full()).key_path(Path::new("/etc/x.toml")), Path::new("/srv/key"));
}

#[test]
fn wrong_values_are_named() {
    for (from, to, problem) in [
        (
            "\"0.0.0.0:443\"",
            "\"443\"",
            "1: 'listen' is '443'; it must be ADDRESS:PORT such as 127.0.0.1:8484 or [::1]:8484, with a port from 1 to 65535",
        ),
        (
            "[\"0.0.0.0:443\", \"[::]:443\"]",
            "[]",
            "1: 'listen' is of type array; it must be at least one ADDRESS:PORT such as \"0.0.0.0:443\"",
        ),
        (
            "[\"0.0.0.0:443\", \"[::]:443\"]",
            "443",
            "1: 'listen' is 443; it must be a list of strings",
        ),
        (
            "vps.example.net:443",
            "vps",
            "2: 'public' is 'vps'; it must be HOST:PORT such as vps.example.net:443 or [2001:db8::1]:443",
        ),
        (
            "\"/srv/key\"",
            "7",
            "3: 'key_file' is 7; it must be the path of a file, such as server.key",
        ),
        ("\"warn\"", "\"loud\"", "4: 'log_level' is 'loud'; it must be error, warn, info or debug"),
        (
            "10.1.0.0/16",
            "10.1.0.1/16",
            "8: 'policy.allow' is '10.1.0.1/16'; it must be a prefix without host bits, such as 10.1.0.0/16",
        ),
        ("203.0.113.0/24", "10.1.0.0/16", "7: [policy] both allows and denies 10.1.0.0/16"),
        (
            "= 100",
            "= 0",
            "12: 'limits.streams_per_client' is 0; it must be a number from 1 to 1000000",
        ),
        (
            "= 100",
            "= -1",
            "12: 'limits.streams_per_client' is -1; it must be a number from 1 to 1000000",
        ),
        (
            "= 100",
            "= 99999999999999999999",
            "12: 'limits.streams_per_client' is 99999999999999999999; it must be a number from 1 to 1000000",
        ),
        ("= 600", "= 3", "17: 'limits.session_lifetime' is 3; it must be a number from 4 to 86400"),
        (
            "50Mbit",
            "50M",
            "14: 'limits.rate_per_client' is '50M'; it must be 0, or bits a second with kbit, Mbit or Gbit, such as 50Mbit",
        ),
        (
            "\"home\"",
            "\"my home\"",
            "20: 'client.name' is 'my home'; it must be a name of 1 to 64 letters, digits, '-', '_' and '.', such as home",
        ),
        (
            "Tmo=",
            "Tmo",
            "21: 'client.public_key' is 'hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo'; it must be a public key: 32 bytes in base64, 44 characters that end in '='",
        ),
        ("2222", "70000", "22: 'client.forwards' is 70000; it must be a number from 1 to 65535"),
        ("2222", "443", "19: client 'home': forwards has 443, where the server itself listens"),
        ("\"office\"", "\"home\"", "24: client 'home' is there already, on line 19"),
        (KEY2, KEY, "24: client 'office' has the public key of the client on line 19"),
        (
            "\"office\"",
            "\"office\"\nforwards = [8080]",
            "24: client 'office': forwards has 8080, which client 'home' has",
        ),
        ("name = \"office\"\n", "", "24: 'client.name' is missing; it is required"),
        (
            "listen",
            "listn",
            "1: unknown key 'listn'; the file has listen, public, key_file, log_level, metrics_listen, source, policy, limits, client, allow_plain_convert, convert",
        ),
        (
            "unauthenticated",
            "unauth",
            "15: unknown key 'limits.unauth'; [limits] has streams, streams_per_client, rate, rate_per_client, unauthenticated, session_lifetime",
        ),
    ] {
        assert!(full().contains(from), "{from}");
        let problems = problems(&full().replacen(from, to, 1));
        assert!(problems.contains(&problem.to_owned()), "{problem}\n{problems:?}");
        assert!(problems.len() <= 2, "{problems:?}");
    }
}

#[test]
fn what_is_not_toml_names_the_line() {
    let problems = problems("listen = 1\npublic = \n");
    assert!(problems[0].starts_with("2: not TOML: "), "{problems:?}");
    assert!(
        ServerConfig::parse("a = 1\na = 2\n", "F").unwrap_err().to_string().starts_with("F:2:")
    );
}

#[test]
fn all_problems_are_told() {
    let text = full().replace("\"warn\"", "1").replace("= 16", "= 0").replace("home", "");
    assert_eq!(problems(&text).len(), 3);
    assert_eq!(
        problems(""),
        ["'listen' is missing; it is required", "'public' is missing; it is required"]
    );
}

#[test]
fn deep_nesting_is_refused() {
    for (open, close) in [("[", "]"), ("{a=", "}")] {
        let text = format!("a = {}{}", open.repeat(100_000), close.repeat(100_000));
        assert!(ServerConfig::parse(&text, "F").is_err());
    }
    assert!(ServerConfig::parse(&format!("[{}a]", "a.".repeat(100_000)), "F").is_err());
}

#[test]
fn survives_20_000_mutated_inputs() {
    let base = full();
    let tokens: [&[u8]; 14] = [
        b"[[client]]\n",
        b"[policy]\n",
        b"[",
        b"]",
        b"\"",
        b"\"\"\"",
        b"'''",
        b"{",
        b"}",
        b" = ",
        b"\n",
        b".",
        b"0x",
        b"\xff",
    ];
    let mut random = Random(0x7031);
    let mut parsed = 0;
    for _ in 0..20_000 {
        let bytes = mutated(base.as_bytes(), &tokens, &mut random);
        match ServerConfig::parse(&String::from_utf8_lossy(&bytes), "F") {
            Ok(config) => {
                parsed += 1;
                assert!(!config.listen.is_empty());
            }
            Err(error) => assert!(!error.problems.is_empty()),
        }
    }
    assert!(parsed > 200, "{parsed} of the mutated inputs were still valid");
}
