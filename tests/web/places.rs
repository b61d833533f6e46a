//! Who is served, by where one asks and what one knows.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::lab::{AgentProgram, Lab, ROUTER_LAN_V4, ServerProgram, UplinkSpec, until};
use super::{LIMIT, code, get};

/// Replaces the address that is listened on, and has the agent read it.
fn listen(agent: &mut AgentProgram, from: &str, to: &str) {
    let text = fs::read_to_string(agent.config()).expect("read the configuration");
    let text = text.replace(&format!("http_listen '{from}'"), &format!("http_listen '{to}'"));
    fs::write(agent.config(), text).expect("write the configuration");
    agent.reload();
}

#[test]
fn beyond_this_host_it_takes_the_lan_or_a_token() {
    let lab = Lab::builder("web-places").uplink(UplinkSpec::new("wan", 20)).build();
    let server = ServerProgram::start(&lab);
    let option = "config agent 'agent'\n\toption http_listen 'lan:8484'\n";
    let mut agent = AgentProgram::start_with(&lab, &server, option);
    // The firewall of OpenWrt would hide whether strangers reach it.
    lab.router.nft("insert rule inet fw4 input tcp dport 8484 accept");
    let inside = format!("{ROUTER_LAN_V4}:8484");
    let outside = format!("{}:8484", lab.uplink(0).address_v4());

    let answer = until("the LAN is served", LIMIT, || get(&lab.lan, &inside, "/", "").ok());
    assert_eq!(code(&answer), "200");
    let isp = lab.uplink(0).isp();
    assert!(get(isp, &outside, "/", "").is_err(), "strangers reach it");
    // A neighbour of the uplink who sends packets for the LAN's address to the router.
    let gateway = lab.uplink(0).address_v4();
    isp.ip(&format!("route add {ROUTER_LAN_V4}/32 via {gateway}"));
    assert!(get(isp, &inside, "/", "").is_err(), "strangers reach the LAN's address");

    listen(&mut agent, "lan:8484", "0.0.0.0:8484");
    let answer = until("strangers are answered", LIMIT, || get(isp, &outside, "/", "").ok());
    assert_eq!(code(&answer), "401");
    let file = agent.key_dir().join("http.token");
    assert_eq!(fs::metadata(&file).expect("the token's file").permissions().mode() & 0o777, 0o600);
    let token = fs::read_to_string(&file).expect("read the token");
    let token = token.trim();
    let bearer = format!("Authorization: Bearer {token}\r\n");
    let of = |target: &str, fields: &str| get(isp, &outside, target, fields).expect("an answer");
    assert_eq!(code(&of("/metrics", &bearer)), "200");
    let first = of(&format!("/?token={token}"), "");
    assert_eq!(code(&first), "303");
    assert_eq!(code(&of("/", &format!("Cookie: mptcp-bond={token}\r\n"))), "200");
    assert_eq!(code(&of("/metrics", &bearer.replace(token, "0123456789abcdef"))), "401");
    assert!(!agent.log().contains(token), "the token is in the log");

    // An address that comes later, as those of a router do.
    listen(&mut agent, "0.0.0.0:8484", "192.168.99.1:8484");
    until("the log says what stands in the way", LIMIT, || {
        let log = agent.log();
        (log.contains("cannot listen on 192.168.99.1:8484") && log.contains("http_listen"))
            .then_some(())
    });
    lab.router.ip("address add 192.168.99.1/32 dev lo");
    let answer = until("it is served there", LIMIT, || {
        get(&lab.router, "192.168.99.1:8484", "/metrics", &bearer).ok()
    });
    assert_eq!(code(&answer), "200");
    assert_eq!(agent.log().matches("cannot listen on 192.168.99.1").count(), 1, "it is said once");
}
