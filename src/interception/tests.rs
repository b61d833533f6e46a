use super::*;

struct Given {
    lan: Vec<String>,
    ports: TproxyPorts,
    servers: Vec<IpAddr>,
    local: Vec<Prefix>,
    bypasses: Vec<BypassConfig>,
    server_reachable: bool,
    server_lacks_ipv6: bool,
    on_server_loss: OnServerLoss,
    quic: Quic,
    udp_ports: Vec<(u16, u16)>,
    uplinks: LiteMap<IpAddr, Mark>,
}

impl Given {
    fn new() -> Given {
        Given {
            lan: vec!["br-lan".into()],
            ports: TproxyPorts { v4: Some(4000), v6: Some(6000) },
            servers: vec!["203.0.113.1".parse().unwrap(), "2001:db8:5::1".parse().unwrap()],
            local: prefixes(&["198.51.100.0/24", "2001:db8:1::/60", "198.51.100.128/25"]),
            bypasses: Vec::new(),
            server_reachable: true,
            server_lacks_ipv6: false,
            on_server_loss: OnServerLoss::Direct,
            quic: Quic::Allow,
            udp_ports: Vec::new(),
            uplinks: marks(&[("10.1.0.2", 0), ("10.2.0.3", 1), ("2001:db8:1::2", 0)]),
        }
    }

    fn text(&self) -> Option<String> {
        ruleset(&Interception {
            lan: &self.lan,
            ports: self.ports,
            servers: &self.servers,
            local: &self.local,
            bypasses: &self.bypasses,
            server_reachable: self.server_reachable,
            server_lacks_ipv6: self.server_lacks_ipv6,
            on_server_loss: self.on_server_loss,
            quic: self.quic,
            udp_ports: &self.udp_ports,
            uplinks: &self.uplinks,
        })
    }

    /// One chain of the text.
    fn chain(&self, name: &str) -> String {
        let text = self.text().unwrap();
        let begin = format!("\tchain {name} {{\n");
        let Some((_, rest)) = text.split_once(&begin) else { return String::new() };
        rest.split_once("\t}\n").unwrap().0.replace("\t\t", "")
    }
}

fn prefixes(texts: &[&str]) -> Vec<Prefix> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn marks(addresses: &[(&str, u8)]) -> LiteMap<IpAddr, Mark> {
    addresses.iter().map(|(text, slot)| (text.parse().unwrap(), Mark::of_slot(*slot))).collect()
}

fn bypass(name: &str) -> BypassConfig {
    BypassConfig {
        name: name.into(),
        dest: Vec::new(),
        src: Vec::new(),
        dport: Vec::new(),
        mac: Vec::new(),
    }
}

const TYPICAL: &str = r#"table inet mptcp_bond
delete table inet mptcp_bond
table inet mptcp_bond {
	set special4 {
		type ipv4_addr
		flags interval
		elements = { 0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.0.0.0/24, 192.168.0.0/16, 224.0.0.0/4, 240.0.0.0/4 }
	}
	set local4 {
		type ipv4_addr
		flags interval
		elements = { 198.51.100.0/24 }
	}
	set server4 {
		type ipv4_addr
		flags interval
		elements = { 203.0.113.1 }
	}
	set special6 {
		type ipv6_addr
		flags interval
		elements = { ::, ::1, ::ffff:0.0.0.0/96, 64:ff9b::/96, 64:ff9b:1::/48, 100::/64, fc00::/7, fe80::/10, ff00::/8 }
	}
	set local6 {
		type ipv6_addr
		flags interval
		elements = { 2001:db8:1::/60 }
	}
	set server6 {
		type ipv6_addr
		flags interval
		elements = { 2001:db8:5::1 }
	}
	set cookies4 {
		type ipv4_addr . inet_service . ipv4_addr . inet_service
		size 16384
		flags dynamic,timeout
		timeout 3s
	}
	set cookies6 {
		type ipv6_addr . inet_service . ipv6_addr . inet_service
		size 16384
		flags dynamic,timeout
		timeout 3s
	}
	chain cookies {
		socket transparent 1 accept
		fib saddr type local accept
		update @cookies4 { ip daddr . tcp dport . ip saddr . tcp sport }
		update @cookies6 { ip6 daddr . tcp dport . ip6 saddr . tcp sport }
	}
	chain exempt {
		fib daddr type != unicast accept
		ip daddr @special4 accept
		ip6 daddr @special6 accept
		ip daddr @local4 accept
		ip6 daddr @local6 accept
		ip daddr @server4 accept
		ip6 daddr @server6 accept
		ip daddr { 192.0.2.0/24 } accept comment "bypass office"
	}
	chain prerouting {
		type filter hook prerouting priority mangle; policy accept;
		iifname != { "br-lan" } accept
		meta l4proto != tcp accept
		socket transparent 1 meta mark set meta mark & 0xf0ffffff | 0x01000000 accept
		tcp flags & (syn|rst|ack) == ack ip saddr . tcp sport . ip daddr . tcp dport @cookies4 tproxy ip to 127.0.0.1:4000 meta mark set meta mark & 0xf0ffffff | 0x01000000 accept
		tcp flags & (syn|rst|ack) == ack ip6 saddr . tcp sport . ip6 daddr . tcp dport @cookies6 tproxy ip6 to [::1]:6000 meta mark set meta mark & 0xf0ffffff | 0x01000000 accept
		tcp flags & (fin|syn|rst|ack) != syn accept
		jump exempt
		meta nfproto ipv4 meta l4proto tcp tproxy ip to 127.0.0.1:4000 meta mark set meta mark & 0xf0ffffff | 0x01000000 accept
		meta nfproto ipv6 meta l4proto tcp tproxy ip6 to [::1]:6000 meta mark set meta mark & 0xf0ffffff | 0x01000000 accept
	}
	chain answers {
		type filter hook output priority raw; policy accept;
		oifname != { "br-lan" } accept
		tcp flags & (fin|syn|rst|ack) == syn|ack jump cookies
	}
	chain direct {
		type filter hook prerouting priority mangle + 1; policy accept;
		iifname != { "br-lan" } accept
		meta mark != 0x00000000 accept
		meta mark set ct reply ip daddr map { 10.1.0.2 : 0x02000000, 10.2.0.3 : 0x03000000 } accept
		meta mark set ct original ip daddr map { 10.1.0.2 : 0x02000000, 10.2.0.3 : 0x03000000 } accept
		meta mark set ct reply ip6 daddr map { 2001:db8:1::2 : 0x02000000 } accept
		meta mark set ct original ip6 daddr map { 2001:db8:1::2 : 0x02000000 } accept
		ct direction original ip saddr { 10.0.0.0/8, 100.64.0.0/10, 172.16.0.0/12, 192.168.0.0/16 } meta mark set 0x0f000000
		ct direction original ip6 saddr { fc00::/7 } meta mark set 0x0f000000
	}
}
"#;

#[test]
fn typical() {
    let office = BypassConfig { dest: prefixes(&["192.0.2.0/24"]), ..bypass("office") };
    let given = Given { bypasses: vec![office], ..Given::new() };
    assert_eq!(given.text().unwrap(), TYPICAL);
}

#[test]
fn while_the_server_is_lost_live_flows_go_on_and_new_ones_are_not_taken() {
    let given = Given { server_reachable: false, ..Given::new() };
    assert_eq!(
        given.chain("prerouting"),
        r#"type filter hook prerouting priority mangle; policy accept;
iifname != { "br-lan" } accept
meta l4proto != tcp accept
socket transparent 1 meta mark set meta mark & 0xf0ffffff | 0x01000000 accept
tcp flags & (fin|syn|rst|ack) != syn accept
"#
    );
    assert_eq!(given.chain("forward"), "");
    assert_eq!(given.chain("answers"), "");
    assert!(!given.text().unwrap().contains("cookies"));
}

#[test]
fn block_refuses_new_connections_while_the_server_is_lost() {
    let blocking = Given { on_server_loss: OnServerLoss::Block, ..Given::new() };
    assert_eq!(blocking.chain("forward"), "");
    let lost = Given { server_reachable: false, quic: Quic::Reject, ..blocking };
    assert!(!lost.text().unwrap().contains("tproxy"));
    assert_eq!(
        lost.chain("forward"),
        r#"type filter hook forward priority filter - 1; policy accept;
iifname != { "br-lan" } accept
ct direction reply accept
tcp flags & (fin|syn|rst|ack) == syn jump exempt
tcp flags & (fin|syn|rst|ack) == syn reject with tcp reset
"#
    );
}

#[test]
fn quic_is_refused_while_there_is_a_tunnel() {
    let given = Given { quic: Quic::Reject, ..Given::new() };
    assert_eq!(
        given.chain("forward"),
        r#"type filter hook forward priority filter - 1; policy accept;
iifname != { "br-lan" } accept
ct direction reply accept
ct state new udp dport 443 jump exempt
ct state new udp dport 443 reject with icmpx type port-unreachable
"#
    );
    let lost = Given { server_reachable: false, ..given };
    assert_eq!(lost.chain("forward"), "");
}

#[test]
fn ipv6_is_refused_where_the_server_has_none() {
    let udp_ports = vec![(5060, 5060)];
    let given = Given { server_lacks_ipv6: true, udp_ports, ..Given::new() };
    let diverted = given.chain("prerouting");
    assert!(diverted.contains("nfproto ipv4 meta l4proto tcp tproxy"), "{diverted}");
    assert!(!diverted.contains("ip6"), "{diverted}");
    assert!(!given.text().unwrap().contains("cookies6"));
    assert_eq!(
        given.chain("forward").lines().skip(3).collect::<Vec<_>>(),
        [
            "meta nfproto ipv6 tcp flags & (fin|syn|rst|ack) == syn jump exempt",
            "meta nfproto ipv6 tcp flags & (fin|syn|rst|ack) == syn reject with tcp reset",
            "meta nfproto ipv6 udp dport { 5060 } jump exempt",
            "meta nfproto ipv6 udp dport { 5060 } reject with icmpx type port-unreachable",
        ]
    );
    let lost = Given { server_reachable: false, ..given };
    assert_eq!(lost.chain("forward"), "", "and goes out directly while there is no server");
    let ports = TproxyPorts { v6: None, ..lost.ports };
    let v4_alone = Given { server_reachable: true, ports, udp_ports: Vec::new(), ..lost };
    assert_eq!(v4_alone.chain("forward"), "", "what is not intercepted is not refused");
}

#[test]
fn udp_of_the_ports_listed_is_tunnelled_while_the_server_answers() {
    let given = Given { udp_ports: vec![(10000, 20000), (5060, 5060)], ..Given::new() };
    assert_eq!(
        given.chain("prerouting").lines().skip(1).take(5).collect::<Vec<_>>(),
        [
            r#"iifname != { "br-lan" } accept"#,
            "udp dport { 5060, 10000-20000 } ct direction original jump exempt",
            "meta nfproto ipv4 udp dport { 5060, 10000-20000 } ct direction original tproxy ip to \
             127.0.0.1:4000 meta mark set meta mark & 0xf0ffffff | 0x01000000 accept",
            "meta nfproto ipv6 udp dport { 5060, 10000-20000 } ct direction original tproxy ip6 to \
             [::1]:6000 meta mark set meta mark & 0xf0ffffff | 0x01000000 accept",
            "meta l4proto != tcp accept",
        ]
    );
    assert_eq!(
        given.chain("answers").lines().skip(1).collect::<Vec<_>>(),
        [
            r#"oifname != { "br-lan" } accept"#,
            "udp sport { 5060, 10000-20000 } socket transparent 1 notrack",
            "tcp flags & (fin|syn|rst|ack) == syn|ack jump cookies",
        ]
    );
    let lost = Given { server_reachable: false, ..given };
    assert!(!lost.text().unwrap().contains("udp dport"));
    assert!(
        lost.chain("answers").ends_with("socket transparent 1 notrack\n"),
        "what is open goes on"
    );
    let blocked = Given { on_server_loss: OnServerLoss::Block, ..lost };
    let forward = blocked.chain("forward");
    assert_eq!(
        forward.lines().skip(5).collect::<Vec<_>>(),
        ["udp dport { 5060, 10000-20000 } jump exempt", "udp dport { 5060, 10000-20000 } drop"]
    );
}

#[test]
fn without_addresses_all_flows_are_new() {
    let given = Given { uplinks: LiteMap::new(), ..Given::new() };
    assert_eq!(
        given.chain("direct"),
        r#"type filter hook prerouting priority mangle + 1; policy accept;
iifname != { "br-lan" } accept
meta mark != 0x00000000 accept
ct direction original ip saddr { 10.0.0.0/8, 100.64.0.0/10, 172.16.0.0/12, 192.168.0.0/16 } meta mark set 0x0f000000
ct direction original ip6 saddr { fc00::/7 } meta mark set 0x0f000000
"#
    );
}

#[test]
fn within_a_section_all_lists_must_match() {
    let everything = BypassConfig {
        dest: prefixes(&["192.0.2.7/24", "2001:db8:9::/48", "192.0.2.128/25"]),
        src: prefixes(&["192.168.1.5", "fd00::5"]),
        dport: vec![(8000, 8080), (22, 22), (8081, 9000)],
        mac: vec![[2, 0, 0, 0, 0, 0xfe], [2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 1]],
        ..bypass("a\"b\nc")
    };
    let impossible = BypassConfig {
        dest: prefixes(&["192.0.2.0/24"]),
        src: prefixes(&["fd00::5"]),
        ..bypass("x")
    };
    let ports = BypassConfig { dport: vec![(25, 25)], ..bypass("mail") };
    let given =
        Given { bypasses: vec![everything, impossible, ports, bypass("empty")], ..Given::new() };
    let chain = given.chain("exempt");
    let lines: Vec<&str> = chain.lines().filter(|line| line.contains("comment")).collect();
    assert_eq!(
        lines,
        [
            r#"ip saddr { 192.168.1.5 } ip daddr { 192.0.2.0/24 } th dport { 22, 8000-9000 } ether saddr { 02:00:00:00:00:01, 02:00:00:00:00:fe } accept comment "bypass abc""#,
            r#"ip6 saddr { fd00::5 } ip6 daddr { 2001:db8:9::/48 } th dport { 22, 8000-9000 } ether saddr { 02:00:00:00:00:01, 02:00:00:00:00:fe } accept comment "bypass abc""#,
            r#"th dport { 25 } accept comment "bypass mail""#,
        ]
    );
}

#[test]
fn a_family_without_listener_is_left_alone() {
    let given = Given { ports: TproxyPorts { v4: Some(1), v6: None }, ..Given::new() };
    assert!(!given.text().unwrap().contains("tproxy ip6"));
}

#[test]
fn devices_that_nft_cannot_name_are_left_out() {
    let lan = ["br-lan", "a\"; flush ruleset; \"", "eth*", "", "br-lan", "guest"].map(String::from);
    let given = Given { lan: lan.into(), ..Given::new() };
    assert!(given.text().unwrap().contains("iifname != { \"br-lan\", \"guest\" } accept\n"));
    assert_eq!(Given { lan: vec!["*".into()], ..Given::new() }.text(), None);
}
