//! The nft table at work: a LAN, a router and the world in namespaces, and who answers whom.
//! Needs root, iproute2, nftables and bash.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::process::{Command, Stdio};

use litemap::LiteMap;
use mptcp_bond::config::agent::{BypassConfig, OnServerLoss, Quic};
use mptcp_bond::interception::{Interception, TproxyPorts, ruleset};
use socket2::{Domain, Socket, Type};

/// Says who it is and echoes lines, on the port in the environment; a process of its own, started by
/// the script, so that it can be in another namespace.
#[test]
fn helper_echo_server() {
    let Ok(name) = std::env::var("ECHO_NAME") else { return };
    let port = std::env::var("ECHO_PORT").unwrap().parse().unwrap();
    let listen = |domain, address: IpAddr| {
        let socket = Socket::new(domain, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        if name == "tunnel" {
            match domain {
                Domain::IPV4 => socket.set_ip_transparent_v4(true).unwrap(),
                _ => socket.set_ip_transparent_v6(true).unwrap(),
            }
        }
        socket.bind(&SocketAddr::new(address, port).into()).unwrap();
        socket.listen(16).unwrap();
        TcpListener::from(socket)
    };
    let listeners = match name.as_str() {
        // TPROXY needs the listener's very address, or else one open to everybody.
        "tunnel" => vec![
            listen(Domain::IPV4, [127, 0, 0, 1].into()),
            listen(Domain::IPV6, Ipv6Addr::LOCALHOST.into()),
        ],
        _ => vec![listen(Domain::IPV6, Ipv6Addr::UNSPECIFIED.into())],
    };
    let accept = |listener: TcpListener| {
        let name = name.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let name = name.clone();
                std::thread::spawn(move || {
                    let _ = writeln!(stream, "{name}");
                    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                    while let Some(Ok(line)) = lines.next() {
                        let _ = writeln!(stream, "{name} {line}");
                    }
                });
            }
        })
    };
    for thread in listeners.into_iter().map(accept).collect::<Vec<_>>() {
        let _ = thread.join();
    }
}

fn table(server_reachable: bool, on_server_loss: OnServerLoss, quic: Quic) -> String {
    table_where(server_reachable, false, on_server_loss, quic)
}

fn table_where(
    server_reachable: bool,
    server_lacks_ipv6: bool,
    on_server_loss: OnServerLoss,
    quic: Quic,
) -> String {
    let bypass = |name: &str, dest: &str, dport| BypassConfig {
        name: name.into(),
        dest: vec![dest.parse().unwrap()],
        src: Vec::new(),
        dport,
        mac: Vec::new(),
    };
    let bypasses = [
        bypass("by port", "203.0.113.0/24", vec![(81, 81)]),
        bypass("by address", "203.0.113.3", Vec::new()),
    ];
    let text = ruleset(&Interception {
        lan: &["lan0".into()],
        ports: TproxyPorts { v4: Some(4000), v6: Some(4000) },
        servers: &["203.0.113.2".parse().unwrap()],
        local: &["198.51.100.0/24".parse().unwrap()],
        bypasses: &bypasses,
        server_reachable,
        server_lacks_ipv6,
        on_server_loss,
        quic,
        udp_ports: &[],
        uplinks: &LiteMap::new(),
    });
    text.unwrap()
}

const SETUP: &str = r#"
mount -t tmpfs none /run
mkdir /run/netns
ip link set lo up
for n in lan world; do
  ip netns add $n
  ip link add ${n}0 type veth peer name eth0 netns $n
  ip link set ${n}0 up
  ip -n $n link set lo up
  ip -n $n link set eth0 up
done
sysctl -q net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
ip address add 192.168.1.1/24 dev lan0
ip address add 2001:db8:1::1/64 dev lan0 nodad
ip -n lan address add 192.168.1.2/24 dev eth0
ip -n lan address add 2001:db8:1::2/64 dev eth0 nodad
ip -n lan route add default via 192.168.1.1
ip -n lan route add default via 2001:db8:1::1
for a in 203.0.113 198.51.100; do
  ip address add $a.254/24 dev world0
  ip -n world address add $a.1/24 dev eth0
done
ip -n world address add 203.0.113.2/24 dev eth0
ip -n world address add 203.0.113.3/24 dev eth0
ip address add 2001:db8:2::fe/64 dev world0 nodad
ip -n world address add 2001:db8:2::1/64 dev eth0 nodad
ip -n world route add default via 203.0.113.254
ip -n world route add default via 2001:db8:2::fe
# The world swallows QUIC, so that a refusal is the router's.
ip netns exec world nft -f - <<'END'
table inet world {
  chain input {
    type filter hook input priority filter; policy accept;
    udp dport 443 drop
  }
}
END
ip route add local default dev lo table 5000
ip -6 route add local default dev lo table 5000
ip rule add priority 500 fwmark 0x1000000/0xf000000 lookup 5000
ip -6 rule add priority 500 fwmark 0x1000000/0xf000000 lookup 5000

serve() { # namespace name port
  ECHO_NAME=$2 ECHO_PORT=$3 ip netns exec $1 $EXE --exact helper_echo_server >/dev/null &
  for try in $(seq 100); do
    ip netns exec $1 ss -Htln "sport = :$3" | grep -q . && return
    sleep 0.05
  done
  exit 1
}
ip netns attach router $$
serve router tunnel 4000
serve router router 80
serve world world 80
serve world world 81
serve lan lan 80

# Who answers a new connection from a namespace.
who() { # namespace address port
  ip netns exec $1 timeout 3 bash -c \
    "exec 3<>/dev/tcp/$2/$3 && head -1 <&3" 2>/dev/null || echo nobody
}
# A connection kept open in the LAN: lines of the pipe go out, answers go to a file.
keep() { # name address
  mkfifo /run/$1
  ip netns exec lan bash -c "exec 3<>/dev/tcp/$2/80; cat <&3 >/run/$1.out & cat /run/$1 >&3" &
  eval "exec {$1}>/run/$1"
  say $1 hello
}
say() { # name word
  echo $2 >&${!1}
  for try in $(seq 60); do
    grep -q $2 /run/$1.out 2>/dev/null && break
    sleep 0.05
  done
  tail -1 /run/$1.out
}
udp() { # address
  ip netns exec lan bash -c \
    "exec 3<>/dev/udp/$1/443; echo a >&3; sleep 0.2; echo b >&3" 2>&1 |
    grep -o refused || echo passes
}
"#;

/// Runs a script in namespaces of its own; the lines that it prints.
fn lines_of(script: &str) -> Vec<String> {
    let mut child = Command::new("timeout")
        .args(["60", "unshare", "-n", "-m", "-p", "-f", "--mount-proc", "--kill-child"])
        .args(["bash", "-u", "-s"])
        .env("EXE", std::env::current_exe().unwrap())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    std::str::from_utf8(&output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn load(text: &str) -> String {
    format!("nft -f - <<'END'\n{text}END\n")
}

#[test]
fn who_answers_whom() {
    let reachable = table(true, OnServerLoss::Block, Quic::Allow);
    let direct = table(false, OnServerLoss::Direct, Quic::Reject);
    let block = table(false, OnServerLoss::Block, Quic::Allow);
    let no_quic = table(true, OnServerLoss::Direct, Quic::Reject);
    let no_ipv6 = table_where(true, true, OnServerLoss::Direct, Quic::Allow);
    let script = [
        SETUP,
        &load(&reachable),
        r#"
echo "v4: $(who lan 203.0.113.1 80)"
echo "v6: $(who lan 2001:db8:2::1 80)"
echo "bypassed: $(who lan 203.0.113.1 81)"
echo "not bypassed: $(who lan 2001:db8:2::1 81)"
echo "server itself: $(who lan 203.0.113.2 80)"
echo "local network: $(who lan 198.51.100.1 80)"
echo "the router: $(who lan 192.168.1.1 80)"
echo "the router's outer address: $(who lan 203.0.113.254 80)"
echo "the router's own: $(who router 203.0.113.1 80)"
echo "from outside: $(who world 192.168.1.2 80)"
echo "udp: $(udp 203.0.113.1)"
keep a 203.0.113.1 >/dev/null
"#,
        &load(&direct),
        r#"
echo "tunnelled, server lost: $(say a two)"
echo "new, server lost: $(who lan 203.0.113.1 80) $(who lan 2001:db8:2::1 80)"
echo "udp: $(udp 203.0.113.1)"
keep b 203.0.113.1 >/dev/null
"#,
        &load(&block),
        r#"
echo "new, blocked: $(who lan 203.0.113.1 80) $(who lan 2001:db8:2::1 80)"
echo "blocked, but bypassed: $(who lan 203.0.113.1 81)"
echo "blocked, but local: $(who lan 198.51.100.1 80)"
echo "direct, while blocked: $(say b three)"
"#,
        &load(&no_quic),
        r#"
echo "direct, server back: $(say b four)"
echo "tunnelled, server back: $(say a five)"
echo "new, server back: $(who lan 203.0.113.1 80)"
echo "udp: $(udp 203.0.113.1) $(udp 2001:db8:2::1), bypassed: $(udp 203.0.113.3)"
"#,
        &load(&no_ipv6),
        r#"
echo "tunnelled, without IPv6: $(say a six)"
echo "new, without IPv6: $(who lan 203.0.113.1 80) $(who lan 2001:db8:2::1 80)"
kill $(jobs -p) 2>/dev/null || true
"#,
    ]
    .concat();
    assert_eq!(
        lines_of(&script),
        [
            "v4: tunnel",
            "v6: tunnel",
            "bypassed: world",
            "not bypassed: tunnel",
            "server itself: world",
            "local network: world",
            "the router: router",
            "the router's outer address: router",
            "the router's own: world",
            "from outside: lan",
            "udp: passes",
            "tunnelled, server lost: tunnel two",
            "new, server lost: world world",
            "udp: passes",
            "new, blocked: nobody nobody",
            "blocked, but bypassed: world",
            "blocked, but local: world",
            "direct, while blocked: world three",
            "direct, server back: world four",
            "tunnelled, server back: tunnel five",
            "new, server back: tunnel",
            "udp: refused refused, bypassed: passes",
            "tunnelled, without IPv6: tunnel six",
            "new, without IPv6: tunnel nobody",
        ]
    );
}

#[test]
fn the_answer_to_a_syn_cookie_finds_its_listener() {
    let reachable = table(true, OnServerLoss::Block, Quic::Allow);
    let direct = table(false, OnServerLoss::Direct, Quic::Allow);
    let numbers = r#"
known() { # connections that wait for the answer to a cookie
  nft list table inet mptcp_bond | grep -c 'expires'
}
cookies() { # that the kernel sent, and got back
  nstat -asz 'TcpExtSyncookies[SR]*' | awk '/Syncookies/ { printf $2 " " }'
}
"#;
    let script = [
        SETUP,
        numbers,
        &load(&reachable),
        r#"
echo "without: $(who lan 203.0.113.1 80) $(who lan 2001:db8:2::1 80), $(known), $(cookies)"
# As if the queues were full.
sysctl -q net.ipv4.tcp_syncookies=2
echo "with: $(who lan 203.0.113.1 80) $(who lan 2001:db8:2::1 80), $(cookies)"
keep a 203.0.113.1 >/dev/null
echo "goes on: $(say a two)"
echo "the router: $(who lan 192.168.1.1 80) $(who lan 2001:db8:1::1 80)"
echo "bypassed: $(who lan 203.0.113.1 81)"
"#,
        &load(&direct),
        r#"
echo "server lost: $(say a three) $(who lan 203.0.113.1 80)"
kill $(jobs -p) 2>/dev/null || true
"#,
    ]
    .concat();
    assert_eq!(
        lines_of(&script),
        [
            "without: tunnel tunnel, 0, 0 0 ",
            "with: tunnel tunnel, 2 2 ",
            "goes on: tunnel two",
            "the router: router router",
            "bypassed: world",
            "server lost: tunnel three world",
        ]
    );
}
