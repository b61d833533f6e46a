//! Values of options: what the settings take is what the agent takes.

use std::sync::Arc;

use mptcp_bond::config::agent::AgentConfig;
use mptcp_bond::config::pairing::PairingUri;
use mptcp_bond::config::uci::quote;
use serde_json::json;

use crate::browser::{Browser, View};
use crate::lab::Namespace;
use crate::site::{Reply, serve};
use crate::{CARD, answers, show};

/// Texts of all kinds, right and wrong ones.
#[rustfmt::skip]
const TEXTS: &[&str] = &[
    "0", "1", "01", "+1", "-1", "+5", "22", "31", "32", "443", "0443", "65535", "65536", "1-2",
    "2-1", "1-", "-", "8000-8100", "1-2-3", " 1", "1 ", "a", "A", "ä", "a_b", "a-", "-a", "a.b",
    "a..b", ".", "..", "a b", "off", "wan", "eth1.10", "br-lan", "pppoe-wan", "abcdefghijklmno",
    "abcdefghijklmnop", "a/b", "a:b", "a\"b", "a*b", "a'b", "vps.example.net", "VPS.Example.NET",
    "xn--bcher-kva.example", "a.1", "1.2.3", "256.1.1.1", "192.0.2.1", "192.0.2.01", "0.0.0.0",
    "127.0.0.1", "224.0.0.1", "::", "::1", "2001:db8::1", "2001:DB8::1", "1:2:3:4:5:6:7:8",
    "1:2:3:4:5:6:7::", "1:2:3:4:5:6:7::8", "1::2::3", ":::", "12345::", "::ffff:192.0.2.1",
    "::192.0.2.256", "fe80::1%1", "1:2:3:4:5:6:192.0.2.1", "1:2:3:4:5:6:7:192.0.2.1", "[::1]",
    "fe80::1%eth0", "10.0.0.0/8", "10.0.0.1/8", "10.0.0.0/+8", "10.0.0.0/33", "10.0.0.0/",
    "10.0.0.0/8/8", "0.0.0.0/0", "::/0", "2001:db8::/32", "2001:db8::1/32", "2001:db8::/129",
    "::/129", "192.0.2.1/32", "192.168.1.10:22", "192.168.1.10:0", "192.168.1.10:022",
    "192.168.1.10:65536", "127.0.0.1:8484", "0.0.0.0:80", "224.0.0.1:80", "[::1]:8484", "[::]:80",
    "[fd00::10]:22", "[fd00::10%3]:22", "[ff02::1]:80", "[::ffff:127.0.0.1]:80",
    "[::ffff:10.0.0.1]:80", "::1:80", "[::1]", "example.net:80", "02:00:5e:10:00:01",
    "02-00-5e-10-00-01", "02:00:5e:10:00-01", "2:0:5e:10:0:1", "02:00:5e:10:00",
    "02:00:5E:10:AB:0g", "500M", "50G", "2t", "1.5G", "1GB", "1 G", "G", "18446744073709551615",
    "18446744073709551616", "18446744T", "18446745T", "99999999999999T", "http://a.example",
    "http://a.example:81/x?y=1", "http://192.0.2.1/", "http://[2001:db8::1]:8080/x",
    "http://[2001:db8::1]", "https://a.example/", "http://", "http:///x", "http://a b/",
    "http://a.example/x y", "http://a.example/\"", "http://user@a.example/", "http://a.example:0/",
    "http://a.example#x", "mTfnDHDJEl7wgL7SxScmcUP9sc8FDUL4fm2YQ+bLUFA=",
    "mTfnDHDJEl7wgL7SxScmcUP9sc8FDUL4fm2YQ+bLUFB=", "mTfnDHDJEl7wgL7SxScmcUP9sc8FDUL4fm2YQ+bLUFA",
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "mTfn", "a'b",
];

/// The judges of options in the script, and a configuration with the option.
#[rustfmt::skip]
const OPTIONS: &[(&str, &str)] = &[
    ("port", "config forward\n\toption target '192.168.1.10:22'\n\toption listen "),
    ("lanTarget", "config forward\n\toption listen '22'\n\toption target "),
    ("portRange", "config bypass\n\tlist dport "),
    ("network", "config bypass\n\tlist dest "),
    ("mac", "config bypass\n\tlist mac "),
    (
        "host",
        "config server 'vps'\n\toption public_key 'mTfnDHDJEl7wgL7SxScmcUP9sc8FDUL4fm2YQ+bLUFA='\n\toption address ",
    ),
    ("publicKey", "config server 'vps'\n\toption address 'a.example'\n\toption public_key "),
    ("listen", "config agent\n\toption http_listen "),
    ("checkUrl", "config agent\n\toption check_url "),
    ("lan", "config agent\n\tlist lan "),
    ("interface", "config uplink 'x'\n\toption interface "),
    ("device", "config uplink 'x'\n\toption device "),
    ("amount", "config uplink 'x'\n\toption device 'eth1'\n\toption quota "),
    ("day", "config uplink 'x'\n\toption device 'eth1'\n\toption quota_reset_day "),
];

/// A pairing URI that is right, and what makes it wrong.
fn uris() -> Vec<String> {
    let good = "mptcp-bond://a.example:443/?key=-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_s\
                &token=7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-8&v=1";
    #[rustfmt::skip]
    let changes = [
        ("", ""),
        ("mptcp-bond", "'mptcp-bond"),
        ("v=1", "v=1'\n"),
        ("mptcp-bond:", "http:"),
        (":443", ""),
        (":443", ":0"),
        ("a.example", "[2001:db8::1]"),
        ("a.example", "2001:db8::1"),
        ("a.example", "1.2.3"),
        ("key=-", "key=!"),
        ("key=-_v7", "key="),
        ("_s&", "_t&"),
        ("token=7", "token="),
        ("v=1", "v=2"),
        ("&v=1", ""),
        ("v=1", "v=1&v=1"),
        ("v=1", "v=1&x=1"),
        ("v=1", "x=1"),
        ("v=1", "v"),
        ("&v=1", "&v=1&"),
        ("/?", "/"),
        ("/?", "?"),
        ("a.example", "A.EXAMPLE"),
    ];
    changes.iter().map(|(from, to)| good.replacen(from, to, 1)).collect()
}

#[test]
fn settings_and_agent_agree() {
    let namespace = Namespace::create("values");
    let address = serve(&namespace, Arc::new(|_, _, _| Reply::Done(answers::status())));
    let browser = Browser::start(&namespace);
    let page = browser.blank(&View::DESKTOP);
    show(&page, &address, CARD);
    let judged = |judge: &str, texts: &[String]| -> Vec<bool> {
        let judged = page.evaluate(&format!(
            "L.require('mptcp-bond.values').then(values => {}.map(text => values.{judge}(text) === true))",
            json!(texts)
        ));
        serde_json::from_value(judged).unwrap()
    };
    let texts: Vec<String> = TEXTS.iter().map(|&text| text.to_owned()).collect();
    for (judge, config) in OPTIONS {
        let mut right = 0;
        for (text, taken) in texts.iter().zip(judged(judge, &texts)) {
            let config = format!("{config}{}\n", quote(text));
            let judgement = AgentConfig::parse(&config, "mptcpd");
            assert_eq!(taken, judgement.is_ok(), "{judge} '{text}': {judgement:?}");
            right += usize::from(taken);
        }
        assert!((1..texts.len()).contains(&right), "{judge}: {right}");
    }
    let uris = uris();
    for (uri, taken) in uris.iter().zip(judged("pairingUri", &uris)) {
        assert_eq!(taken, PairingUri::parse(uri).is_ok(), "{uri}");
    }
}
