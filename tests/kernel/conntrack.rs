//! Flows forgotten by their address.

use std::net::{IpAddr, UdpSocket};

use mptcp_bond::os::conntrack::forget;

use super::{in_namespace, sh, uplinks};

/// Sends a packet whose answers are awaited at the address that the rules of the test give it.
fn flow(from: &str, to: &str, port: u16) {
    let socket = UdpSocket::bind((from, 0)).unwrap();
    // Nobody answers to ARP; the flow is tracked before that matters.
    let _ = socket.send_to(b"hello", (to, port));
}

/// The destination ports of the flows there are.
fn ports() -> String {
    sh(
        "sed -n 's/.* src=.* dport=\\([0-9]*\\)000 .* src=.*/\\1/p' /proc/net/nf_conntrack | sort | tr -d '\\n'",
    )
}

#[test]
fn only_flows_translated_to_the_address_are_forgotten() {
    in_namespace("conntrack::only_flows_translated_to_the_address_are_forgotten", async {
        uplinks();
        sh("ip route add default dev wan0; ip route add ::/0 dev wan0
            nft -f - <<'END'
            table inet nat {
              chain postrouting {
                type nat hook postrouting priority srcnat;
                udp dport 1000 snat ip to 203.0.113.1
                udp dport 2000 snat ip to 203.0.113.2
                udp dport 4000 snat ip6 to fd00::1
                udp dport 5000 snat ip6 to fd00::2
              }
            }
END");
        for port in [1000, 2000, 3000] {
            flow("192.0.2.10", "198.51.100.1", port);
        }
        for port in [4000, 5000, 6000] {
            flow("2001:db8:0::1", "2001:db8:ff::1", port);
        }
        assert_eq!(ports(), "123456");
        let forget =
            async |address: &str| forget(address.parse::<IpAddr>().unwrap()).await.unwrap();
        assert_eq!(forget("203.0.113.1").await, 1);
        assert_eq!(ports(), "23456");
        assert_eq!(forget("fd00::2").await, 1);
        assert_eq!(ports(), "2346");
        for own_or_gone in ["192.0.2.10", "2001:db8::1", "203.0.113.1"] {
            assert_eq!(forget(own_or_gone).await, 0);
        }
        assert_eq!(ports(), "2346");
    });
}

#[test]
fn thousands_of_flows_are_forgotten() {
    in_namespace("conntrack::thousands_of_flows_are_forgotten", async {
        uplinks();
        sh("ip route add default dev wan0
            nft 'add table ip nat
                 add chain ip nat postrouting { type nat hook postrouting priority srcnat; }
                 add rule ip nat postrouting ip saddr 192.0.2.10 snat to 203.0.113.1'");
        for port in 1000..4000 {
            flow("192.0.2.10", "198.51.100.1", port);
        }
        assert_eq!(forget("203.0.113.1".parse().unwrap()).await.unwrap(), 3000);
    });
}
