use super::*;
use crate::config::mutate::{Random, mutated};
use crate::config::value::{HostPort, HttpUrl};

const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
const FILE: &str = "/etc/config/mptcpd";

fn parse(text: &str) -> AgentConfig {
    AgentConfig::parse(text, FILE).unwrap_or_else(|error| panic!("{error}"))
}

/// The problems of a text, without the file's name.
fn problems(text: &str) -> Vec<String> {
    let error = AgentConfig::parse(text, FILE).expect_err(text);
    error.to_string().lines().map(|line| line.strip_prefix(FILE).unwrap()[1..].to_owned()).collect()
}

fn full() -> String {
    format!(
        "config agent 'agent'
	option enabled '1'
	option log_level 'debug'
	list lan 'lan'
	list lan 'br-guest'
	option on_server_loss 'block'
	option quic 'reject'
	option http_listen '127.0.0.1:8484'
	option check_url 'http://[2001:db8::7]:8080/204'
config server 'vps'
	option address 'VPS.example.net'
	option port '8443'
	option public_key '{KEY}'
	option cipher 'none'
config server 'second'
	option address '2001:db8::1'
	option public_key '{KEY}'
config uplink 'wan'
	option interface 'wan'
config uplink 'lte'
	option device 'wwan0'
	option role 'backup'
	option quota '50G'
	option quota_reset_day '15'
	option quota_action 'off'
config bypass 'office'
	list dest '10.0.0.0/8'
	list src '192.168.1.7'
	list dport '8000-8100'
	list mac '02:00:5e:10:00:01'
config bypass
	option dport '22 443'
config forward 'ssh'
	option listen '2222'
	option target '192.168.1.10:22'
	option proxy_protocol '1'
"
    )
}

#[test]
fn everything_is_read() {
    let config = parse(&full());
    let uplink = |name: &str, attachment, role, quota| UplinkConfig {
        name: name.into(),
        attachment,
        role,
        quota,
    };
    assert_eq!(
        config,
        AgentConfig {
            enabled: true,
            log_level: log::LevelFilter::Debug,
            lan: vec!["lan".into(), "br-guest".into()],
            on_server_loss: OnServerLoss::Block,
            quic: Quic::Reject,
            udp_ports: Vec::new(),
            udp_duplicate: false,
            http_listen: Some(HttpListen::Address("127.0.0.1:8484".parse().unwrap())),
            check_url: Some(HttpUrl {
                text: "http://[2001:db8::7]:8080/204".into(),
                server: HostPort { host: "2001:db8::7".into(), port: 8080 },
            }),
            servers: vec![
                ServerConfig {
                    name: "vps".into(),
                    address: "vps.example.net".into(),
                    port: 8443,
                    public_key: KEY.parse().unwrap(),
                    cipher: CipherChoice::None,
                },
                ServerConfig {
                    name: "second".into(),
                    address: "2001:db8::1".into(),
                    port: 443,
                    public_key: KEY.parse().unwrap(),
                    cipher: CipherChoice::Auto,
                },
            ],
            uplinks: vec![
                uplink("wan", Attachment::Interface("wan".into()), Role::Bond, None),
                uplink(
                    "lte",
                    Attachment::Device("wwan0".into()),
                    Role::Backup,
                    Some(Quota { bytes: 50_000_000_000, reset_day: 15, action: QuotaAction::Off })
                ),
            ],
            bypasses: vec![
                BypassConfig {
                    name: "office".into(),
                    dest: vec!["10.0.0.0/8".parse().unwrap()],
                    src: vec!["192.168.1.7".parse().unwrap()],
                    dport: vec![(8000, 8100)],
                    mac: vec![[2, 0, 0x5e, 0x10, 0, 1]],
                },
                BypassConfig {
                    name: config.bypasses[1].name.clone(),
                    dest: vec![],
                    src: vec![],
                    dport: vec![(22, 22), (443, 443)],
                    mac: vec![],
                },
            ],
            forwards: vec![ForwardConfig {
                name: "ssh".into(),
                transport: Transport::Tcp,
                listen: 2222,
                target: "192.168.1.10:22".parse().unwrap(),
                proxy_protocol: true,
            }],
        }
    );
    assert_eq!(config.idle_reason(), None);
}

#[test]
fn an_unconfigured_file_is_valid() {
    let config = parse("");
    assert_eq!(config.lan, ["lan"]);
    assert_eq!(config.http_listen, None);
    let url = config.check_url.clone().unwrap();
    assert_eq!((url.server.port, url.text.ends_with("/generate_204")), (80, true));
    assert_eq!(parse("config agent\n\toption check_url off\n").check_url, None);
    assert!(config.idle_reason().unwrap().contains("server"));
    assert!(parse("config agent\n\toption enabled 0\n").idle_reason().unwrap().contains("enabled"));
    let server = format!("config server s\noption address a\noption public_key {KEY}\n");
    assert!(parse(&server).idle_reason().unwrap().contains("uplink"));
    assert!(parse(&full().replace("enabled '1'", "enabled 'no'")).idle_reason().is_some());
}

/// The one wrong line in an otherwise right file, and the problem's text.
#[test]
fn wrong_values_are_named() {
    for (from, to, problem) in [
        (
            "role 'backup'",
            "role 'bnod'",
            "22: section 'lte' (uplink): option 'role' is 'bnod'; it must be bond, backup, overflow or off",
        ),
        (
            "enabled '1'",
            "enabled 'si'",
            "2: section 'agent' (agent): option 'enabled' is 'si'; it must be 1 or 0",
        ),
        (
            "'debug'",
            "'trace'",
            "3: section 'agent' (agent): option 'log_level' is 'trace'; it must be error, warn, info or debug",
        ),
        (
            "lan 'br-guest'",
            "lan 'br guest'",
            "5: section 'agent' (agent): list 'lan' is 'br guest'; it must be an OpenWrt interface such as lan, or a network device such as br-lan",
        ),
        ("lan 'br-guest'", "lan 'lan'", "5: section 'agent' (agent): list 'lan' has 'lan' twice"),
        (
            "'block'",
            "'drop'",
            "6: section 'agent' (agent): option 'on_server_loss' is 'drop'; it must be direct or block",
        ),
        (
            "'reject'",
            "'deny'",
            "7: section 'agent' (agent): option 'quic' is 'deny'; it must be allow or reject",
        ),
        (
            "127.0.0.1:8484",
            "8484",
            "8: section 'agent' (agent): option 'http_listen' is '8484'; it must be lan:PORT for the LAN's devices alone, or ADDRESS:PORT such as 127.0.0.1:8484 or [::1]:8484, with a port from 1 to 65535",
        ),
        (
            "VPS.example.net",
            "vps.example.net:443",
            "11: section 'vps' (server): option 'address' is 'vps.example.net:443'; it must be a host name or an IP address, such as vps.example.net, 192.0.2.1 or 2001:db8::1",
        ),
        (
            "'8443'",
            "'84430'",
            "12: section 'vps' (server): option 'port' is '84430'; it must be a port from 1 to 65535",
        ),
        (
            "Tmo='\n\toption cipher",
            "T'\n\toption cipher",
            "13: section 'vps' (server): option 'public_key' is 'hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbT'; it must be a public key: 32 bytes in base64, 44 characters that end in '='",
        ),
        (
            "'none'",
            "'aes'",
            "14: section 'vps' (server): option 'cipher' is 'aes'; it must be auto, aes-128-gcm, chacha20-poly1305 or none",
        ),
        (
            "'wwan0'",
            "'a/b'",
            "21: section 'lte' (uplink): option 'device' is 'a/b'; it must be a network device such as eth1, 15 characters at most",
        ),
        (
            "'50G'",
            "'50GB'",
            "23: section 'lte' (uplink): option 'quota' is '50GB'; it must be bytes, with K, M, G or T for powers of 1000, such as 500M or 50G",
        ),
        (
            "'15'",
            "'32'",
            "24: section 'lte' (uplink): option 'quota_reset_day' is '32'; it must be a day of the month from 1 to 31",
        ),
        (
            "action 'off'",
            "action 'stop'",
            "25: section 'lte' (uplink): option 'quota_action' is 'stop'; it must be backup or off",
        ),
        (
            "10.0.0.0/8",
            "10.0.0.1/8",
            "27: section 'office' (bypass): list 'dest' is '10.0.0.1/8'; it must be a prefix without host bits, such as 10.0.0.0/8",
        ),
        (
            "8000-8100",
            "8100-8000",
            "29: section 'office' (bypass): list 'dport' is '8100-8000'; it must be a range from low to high: 8000-8100",
        ),
        (
            "5e:10:00:01",
            "5e:10:00",
            "30: section 'office' (bypass): list 'mac' is '02:00:5e:10:00'; it must be a MAC address such as 02:00:5e:10:00:01",
        ),
        (
            "'22 443'",
            "'22 x'",
            "32: unnamed section (bypass): list 'dport' is 'x'; it must be a port from 1 to 65535, or a range such as 8000-8100",
        ),
        (
            "'2222'",
            "'0'",
            "34: section 'ssh' (forward): option 'listen' is '0'; it must be a port from 1 to 65535",
        ),
        (
            "192.168.1.10:22",
            "127.0.0.1:22",
            "35: section 'ssh' (forward): option 'target' is '127.0.0.1:22'; it must be ADDRESS:PORT of a host on the LAN, such as 192.168.1.10:22 or [fd00::10]:22",
        ),
        (
            "proxy_protocol '1'",
            "proxy_protocol 'v2'",
            "36: section 'ssh' (forward): option 'proxy_protocol' is 'v2'; it must be 1 or 0",
        ),
        (
            "http://[2001:db8::7]:8080/204",
            "https://h",
            "9: section 'agent' (agent): option 'check_url' is 'https://h'; it must be a URL such as http://example.net/generate_204, not https, or off",
        ),
        (
            "option quic 'reject'",
            "list quic 'reject'",
            "7: section 'agent' (agent): 'quic' is a list; it must be one value: option quic '...'",
        ),
        (
            "option quic",
            "option quick",
            "7: section 'agent' (agent): unknown option 'quick'; an agent section has enabled, log_level, lan, on_server_loss, quic, udp_ports, udp_duplicate, http_listen, check_url",
        ),
        (
            "option listen '2222'",
            "",
            "33: section 'ssh' (forward): option 'listen' is missing; it is required",
        ),
        (
            "config forward 'ssh'",
            "config forwards 'ssh'",
            "33: section 'ssh' (forwards): is of no known type; it must be agent, server, uplink, bypass or forward",
        ),
        (
            "\tlist src '192.168.1.7'",
            "\tlist src '2001:db8::7'",
            "26: section 'office' (bypass): can match nothing: its 'dest' and 'src' are of different address families",
        ),
    ] {
        assert!(full().contains(from), "{from}");
        assert_eq!(problems(&full().replacen(from, to, 1)), [problem]);
    }
}

#[test]
fn sections_that_are_incomplete_or_ambiguous() {
    assert_eq!(
        problems("config uplink 'a'\n"),
        ["1: section 'a' (uplink): has neither option 'interface' nor 'device'; one is required"]
    );
    assert_eq!(
        problems("config uplink 'a'\noption device eth1\noption interface wan\n"),
        [
            "1: section 'a' (uplink): has both 'interface' and 'device'; it must have one: 'interface' \
         for an OpenWrt interface, 'device' for a network device"
        ]
    );
    assert_eq!(
        problems("config uplink\noption device eth1\n"),
        ["1: unnamed section (uplink): needs a name, such as: config uplink 'first'"]
    );
    assert_eq!(
        problems("config server 's'\n"),
        [
            "1: section 's' (server): option 'address' is missing; it is required",
            "1: section 's' (server): option 'public_key' is missing; it is required",
        ]
    );
    assert_eq!(
        problems("config bypass\n"),
        [
            "1: unnamed section (bypass): has no list 'dest', 'src', 'dport' or 'mac' and would match \
         everything; one is required"
        ]
    );
    assert_eq!(
        problems("config agent a\nconfig agent b\n"),
        [
            "2: section 'b' (agent): there is one agent section already, on line 1; only one may be there"
        ]
    );
}

#[test]
fn claims_made_twice() {
    assert_eq!(
        problems("config uplink a\noption device eth1\nconfig uplink b\noption device eth1\n"),
        [
            "4: section 'b' (uplink): option 'device' is 'eth1', as in uplink 'a' on line 1; each may be \
         used once"
        ]
    );
    assert_eq!(
        problems("config agent\nlist lan br0\nconfig uplink a\noption device br0\n"),
        [
            "4: section 'a' (uplink): option 'device' is 'br0', which is in the agent's list 'lan' on \
         line 2; an uplink cannot be the LAN"
        ]
    );
    let forward =
        |name: &str| format!("config forward {name}\noption listen 1\noption target 10.0.0.1:1\n");
    assert_eq!(
        problems(&(forward("a") + &forward("b"))),
        [
            "5: section 'b' (forward): option 'listen' is '1', as in forward 'a' on line 1; each may be \
         used once"
        ]
    );
    parse(&(forward("a") + &forward("b") + "option proto udp\n"));
    assert_eq!(
        problems(&(forward("a") + &forward("b") + "list proto udp\nlist proto tcp\n")).len(),
        1
    );
    let server = |name: &str, rest: &str| {
        format!("config server {name}\noption address h.example\noption public_key {KEY}\n{rest}")
    };
    assert_eq!(problems(&(server("a", "") + &server("b", "option port 443\n"))).len(), 1);
    parse(&(server("a", "") + &server("b", "option port 444\n")));
}

#[test]
fn a_forward_is_of_tcp_or_udp_or_both() {
    let forwards = |options: &str| {
        let text = "config forward 'a'\n\toption listen 53\n\toption target 192.168.1.2:53\n";
        parse(&format!("{text}{options}")).forwards
    };
    let transports = |options| forwards(options).iter().map(|it| it.transport).collect::<Vec<_>>();
    let (tcp, udp) = (Transport::Tcp, Transport::Udp);
    assert_eq!(transports(""), [tcp]);
    assert_eq!(transports("\toption proto 'udp'\n"), [udp]);
    assert_eq!(transports("\toption proto 'tcp udp'\n"), [tcp, udp]);
    assert_eq!(transports("\tlist proto 'udp'\n\tlist proto 'tcp'\n"), [udp, tcp]);
    let both = forwards("\toption proto 'tcp udp'\n");
    assert_eq!(both[1], ForwardConfig { transport: udp, ..both[0].clone() });
    let wrong =
        "config forward 'a'\n\toption listen 53\n\toption target 192.168.1.2:53\n\toption proto ";
    assert_eq!(
        problems(&format!("{wrong}'icmp'\n")),
        ["4: section 'a' (forward): list 'proto' is 'icmp'; it must be tcp or udp"]
    );
    assert_eq!(
        problems(&format!("{wrong}'tcp udp'\n\toption proxy_protocol 1\n")),
        [
            "1: section 'a' (forward): has 'proxy_protocol', which is for TCP alone: leave it out, or \
             'proto' without udp"
        ]
    );
}

#[test]
fn udp_is_tunnelled_by_port() {
    let config = parse(
        "config agent\n\tlist udp_ports 5060\n\tlist udp_ports 10000-20000\n\toption udp_duplicate 1\n",
    );
    assert_eq!(config.udp_ports, [(5060, 5060), (10000, 20000)]);
    assert!(config.udp_duplicate);
    assert_eq!(
        problems("config agent a\n\tlist udp_ports 0\n\toption udp_duplicate twice\n"),
        [
            "2: section 'a' (agent): list 'udp_ports' is '0'; it must be a port from 1 to 65535, or a \
             range such as 8000-8100",
            "3: section 'a' (agent): option 'udp_duplicate' is 'twice'; it must be 1 or 0",
        ]
    );
}

#[test]
fn at_most_eight_uplinks() {
    let uplinks = |count: usize| -> String {
        (0..count).map(|n| format!("config uplink u{n}\n\toption device eth{n}\n")).collect()
    };
    assert_eq!(parse(&uplinks(8)).uplinks.len(), 8);
    assert_eq!(
        problems(&uplinks(9)),
        [
            "17: section 'u8' (uplink): is one too many: the kernel has room for 8 MPTCP endpoints, so at \
         most 8 uplinks are possible"
        ]
    );
}

#[test]
fn all_problems_are_told_in_order() {
    let text = full().replace("'debug'", "'x'").replace("'50G'", "'x'").replace("'2222'", "'x'");
    let lines: Vec<String> =
        problems(&text).iter().map(|p| p.split(':').next().unwrap().to_owned()).collect();
    assert_eq!(lines, ["3", "23", "34"]);
}

#[test]
fn what_is_not_uci_is_one_problem() {
    assert_eq!(problems("config agent 'a\n"), ["1: a quotation that begins with ' does not end"]);
}

#[test]
fn survives_100_000_mutated_inputs() {
    let base = full();
    let tokens: [&[u8]; 12] = [
        b"config ",
        b"option ",
        b"list ",
        b"'",
        b"\n",
        b"/",
        b":",
        b"-",
        b"0",
        b"99999999999999999999",
        b"\xff",
        b"::",
    ];
    let mut random = Random(0xa9e47);
    let mut parsed = 0;
    for _ in 0..100_000 {
        let bytes = mutated(base.as_bytes(), &tokens, &mut random);
        match AgentConfig::parse_bytes(&bytes, FILE) {
            Ok(config) => {
                parsed += 1;
                assert!(config.uplinks.len() <= MAX_UPLINKS);
            }
            Err(error) => assert!(!error.problems.is_empty()),
        }
    }
    assert!(parsed > 1_000, "{parsed} of the mutated inputs were still valid");
}
