//! Snapshots as people see them.

use super::*;

const WIDE: Style = Style { width: 170, colour: false, unicode: true, graph: false };

#[test]
fn an_agent_in_full() {
    compare(AGENT, &render(&Snapshot::Agent(agent().into()), WIDE));
}

const AGENT: &str = r"
mptcp-bond 0.1.0  agent, running for 3 d 4 h
bonding 2 uplinks: wan, wanb; standing by: lte

UPLINK    STATE     ROLE    DEVICE             DOWN           UP      RTT    LOSS  SUBFLOWS  RECEIVED     SENT  TABLE  ENDPOINT         ADDRESS
wan       in use    bond    eth1        93.4 Mbit/s  1.20 Mbit/s  12.3 ms   0.0 %        14   1.23 GB  12.3 kB   5001  200              192.0.2.2/24, 2001:db8::2/64 via …
wanb      degraded  bond    pppoe-wanb  40.0 Mbit/s      0 bit/s   148 ms  12.0 %        12   5.00 MB      0 B      –  –                198.51.100.7/32
lte       standby   backup  wwan0           0 bit/s      0 bit/s  48.2 ms   0.3 %         0       0 B      0 B   5003  202, 222 backup  10.64.3.2/30 via 10.64.3.1
dsl       down      bond    –               0 bit/s      0 bit/s        –       –         0       0 B      0 B      –  –                –
together                                 133 Mbit/s  1.20 Mbit/s                         26   1.24 GB  12.3 kB
  wanb: degraded for 42 s: 12.0 % of the probes are lost
  lte: standby for 1 d 1 h: stands by for the bond uplinks
  dsl: down for 2 min 10 s: no carrier on eth3
  lte: 31.4 GB of 50.0 GB used since 2026-11-01, counted anew from 2026-12-01 on

SERVER  STATE          SINCE      RTT  CIPHER       SESSION   ADDRESS
vps     connected  3 h 3 min  14.2 ms  aes-128-gcm  3f9a1c02  vps.example.net:443

FORWARD  STATE          PORT  CONNECTIONS  TARGET
ssh      forwarded  2222/tcp            3  192.168.1.10:2222
web      waiting      80/udp            3  192.168.1.10:80
  web: there is no connection to the server

Streams  12 open, 4 warm; 1042 opened, 3 failed (refused 2, timed out 1)
UDP  2 flows; 4200 datagrams up, 4180 down, 4179 duplicates removed
Untunnelled  over wan (IPv4), wanb (IPv6)

CONNECTION          TO                      DOWN       UP  RECEIVED   SENT         AGE  SUBFLOWS
192.168.1.20:50011  203.0.113.9:443  11.0 Mbit/s  0 bit/s   1.38 MB  900 B  1 min 12 s         2
192.168.1.20:50010  203.0.113.9:443  10.0 Mbit/s  0 bit/s   1.25 MB  900 B  1 min 11 s         2
192.168.1.20:50009  203.0.113.9:443  9.00 Mbit/s  0 bit/s   1.12 MB  900 B  1 min 10 s         2
192.168.1.20:50008  203.0.113.9:443  8.00 Mbit/s  0 bit/s   1.00 MB  900 B   1 min 9 s         2
192.168.1.20:50007  203.0.113.9:443  7.00 Mbit/s  0 bit/s    875 kB  900 B   1 min 8 s         2
192.168.1.20:50006  203.0.113.9:443  6.00 Mbit/s  0 bit/s    750 kB  900 B   1 min 7 s         2
192.168.1.20:50005  203.0.113.9:443  5.00 Mbit/s  0 bit/s    625 kB  900 B   1 min 6 s         2
192.168.1.20:50004  203.0.113.9:443  4.00 Mbit/s  0 bit/s    500 kB  900 B   1 min 5 s         2
192.168.1.20:50003  203.0.113.9:443  3.00 Mbit/s  0 bit/s    375 kB  900 B   1 min 4 s         2
192.168.1.20:50002  203.0.113.9:443  2.00 Mbit/s  0 bit/s    250 kB  900 B   1 min 3 s         2
  and 2 more

Problems
  mptcpd is running, which manages MPTCP endpoints too: stop one of them
  ip rule add from 10.64.3.2 lookup 5003 priority 610: File exists (errno 17), tried again for 3 s
  net/mptcp/stale_loss_cnt is not 1: this kernel has none
  MPJoinRejected 3: joins refused: the limit of subflows was reached, or not allowed

       AGE           EVENT
2 min 10 s  warning  uplink dsl is down: no carrier on eth3
      42 s  info     uplink wanb is degraded: 12.0 % of the probes are lost
";

#[test]
fn an_agent_on_an_ordinary_terminal() {
    let style = Style { width: 80, colour: false, unicode: true, graph: false };
    let shown = render(&Snapshot::Agent(agent().into()), style);
    compare(ORDINARY, shown.split("\n\n").nth(1).unwrap_or_default());
}

const ORDINARY: &str = r"
UPLINK    STATE     ROLE           DOWN           UP      RTT    LOSS
wan       in use    bond    93.4 Mbit/s  1.20 Mbit/s  12.3 ms   0.0 %
wanb      degraded  bond    40.0 Mbit/s      0 bit/s   148 ms  12.0 %
lte       standby   backup      0 bit/s      0 bit/s  48.2 ms   0.3 %
dsl       down      bond        0 bit/s      0 bit/s        –       –
together                     133 Mbit/s  1.20 Mbit/s
  wanb: degraded for 42 s: 12.0 % of the probes are lost
  lte: standby for 1 d 1 h: stands by for the bond uplinks
  dsl: down for 2 min 10 s: no carrier on eth3
  lte: 31.4 GB of 50.0 GB used since 2026-11-01, counted anew from 2026-12-01 on";

#[test]
fn a_role_set_by_hand_is_shown_beside_the_configured_one() {
    let mut agent = agent();
    agent.uplinks.truncate(1);
    agent.uplinks[0].role_set = Some(Role::Backup);
    agent.uplinks[0].in_use = false;
    agent.uplinks[0].reason = "stands by for the bond uplinks".into();
    let style = Style { width: 80, colour: false, unicode: true, graph: false };
    let shown = render(&Snapshot::Agent(agent.into()), style);
    compare(SET_BY_HAND, shown.split("\n\n").nth(1).unwrap_or_default());
}

const SET_BY_HAND: &str = r"
UPLINK  STATE    ROLE    DEVICE         DOWN           UP      RTT   LOSS
wan     standby  backup  eth1    93.4 Mbit/s  1.20 Mbit/s  12.3 ms  0.0 %
  wan: standby for 1 h 6 min: stands by for the bond uplinks; role backup, set
    by hand; configured: bond";

#[test]
fn an_agent_on_a_narrow_ascii_terminal() {
    let style = Style { width: 60, colour: false, unicode: false, graph: false };
    compare(NARROW, &render(&Snapshot::Agent(agent().into()), style));
}

const NARROW: &str = r"
mptcp-bond 0.1.0  agent, running for 3 d 4 h
bonding 2 uplinks: wan, wanb; standing by: lte

UPLINK    STATE            DOWN           UP      RTT
wan       in use    93.4 Mbit/s  1.20 Mbit/s  12.3 ms
wanb      degraded  40.0 Mbit/s      0 bit/s   148 ms
lte       standby       0 bit/s      0 bit/s  48.2 ms
dsl       down          0 bit/s      0 bit/s        -
together             133 Mbit/s  1.20 Mbit/s
  wanb: degraded for 42 s: 12.0 % of the probes are lost
  lte: standby for 1 d 1 h: stands by for the bond uplinks
  dsl: down for 2 min 10 s: no carrier on eth3
  lte: 31.4 GB of 50.0 GB used since 2026-11-01, counted
    anew from 2026-12-01 on

SERVER  STATE          SINCE      RTT  CIPHER
vps     connected  3 h 3 min  14.2 ms  aes-128-gcm

FORWARD  STATE          PORT  CONNECTIONS  TARGET
ssh      forwarded  2222/tcp            3  192.168.1.10:2222
web      waiting      80/udp            3  192.168.1.10:80
  web: there is no connection to the server

Streams  12 open, 4 warm; 1042 opened, 3 failed (refused 2,
    timed out 1)
UDP  2 flows; 4200 datagrams up, 4180 down, 4179 duplicates
    removed
Untunnelled  over wan (IPv4), wanb (IPv6)

CONNECTION          TO                      DOWN       UP
192.168.1.20:50011  203.0.113.9:443  11.0 Mbit/s  0 bit/s
192.168.1.20:50010  203.0.113.9:443  10.0 Mbit/s  0 bit/s
192.168.1.20:50009  203.0.113.9:443  9.00 Mbit/s  0 bit/s
192.168.1.20:50008  203.0.113.9:443  8.00 Mbit/s  0 bit/s
192.168.1.20:50007  203.0.113.9:443  7.00 Mbit/s  0 bit/s
192.168.1.20:50006  203.0.113.9:443  6.00 Mbit/s  0 bit/s
192.168.1.20:50005  203.0.113.9:443  5.00 Mbit/s  0 bit/s
192.168.1.20:50004  203.0.113.9:443  4.00 Mbit/s  0 bit/s
192.168.1.20:50003  203.0.113.9:443  3.00 Mbit/s  0 bit/s
192.168.1.20:50002  203.0.113.9:443  2.00 Mbit/s  0 bit/s
  and 2 more

Problems
  mptcpd is running, which manages MPTCP endpoints too: stop
    one of them
  ip rule add from 10.64.3.2 lookup 5003 priority 610: File
    exists (errno 17), tried again for 3 s
  net/mptcp/stale_loss_cnt is not 1: this kernel has none
  MPJoinRejected 3: joins refused: the limit of subflows was
    reached, or not allowed

       AGE           EVENT
2 min 10 s  warning  uplink dsl is down: no carrier on eth3
      42 s  info     uplink wanb is degraded: 12.0 % of t...
";

#[test]
fn a_server_in_full() {
    compare(SERVER, &render(&Snapshot::Server(server().into()), WIDE));
}

const SERVER: &str = r"
mptcp-bond 0.1.0  server, running for 1 d 1 h
1 of 2 clients connected; listening on 0.0.0.0:443, [::]:443, known as vps.example.net:443
The new configuration is not in force:
  /etc/mptcp-bond/server.toml:3: 'lisen' is not a key
  that is all

CLIENT  STATE           SINCE  STREAMS        DOWN           UP     SENT  RECEIVED  ADDRESS
home    connected   3 h 3 min       12  133 Mbit/s  1.20 Mbit/s  9.87 GB    120 MB  192.0.2.2:40112
van     never seen          –        0     0 bit/s      0 bit/s      0 B       0 B  –

Streams  0 open, 0 warm; 0 opened, 0 failed
Refused  replayed stream 1, unknown key 7; 2 not known yet
";

#[test]
fn no_line_is_wider_than_the_terminal() {
    let mut wide = agent();
    wide.uplinks[0].name = "東京".repeat(30);
    for snapshot in [Snapshot::Agent(wide.into()), Snapshot::Server(server().into())] {
        for width in 0..200 {
            for unicode in [true, false] {
                let shown =
                    render(&snapshot, Style { width, colour: false, unicode, graph: false });
                for line in shown.lines() {
                    assert!(text::width(line) <= width, "{width}: {line}");
                }
            }
        }
    }
}

#[test]
fn colours_change_nothing_but_the_colour() {
    let snapshot = Snapshot::Agent(agent().into());
    for width in [40, 80, 150] {
        let coloured =
            render(&snapshot, Style { width, colour: true, unicode: true, graph: false });
        let mut bare = coloured.clone();
        for sgr in ["\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m"] {
            bare = bare.replace(sgr, "");
        }
        assert_ne!(bare, coloured);
        let lines = |text: &str| text.lines().map(|l| l.trim_end().to_owned()).collect::<Vec<_>>();
        let plain = render(&snapshot, Style { width, colour: false, unicode: true, graph: false });
        assert_eq!(lines(&bare), lines(&plain));
    }
}

#[test]
fn no_string_of_others_reaches_the_terminal_raw() {
    const EVIL: &str = "\x1b]0;owned\x07\r\n\u{9b}2J\u{202e}";
    fn poison(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::String(text) => text.push_str(EVIL),
            serde_json::Value::Array(items) => items.iter_mut().for_each(poison),
            serde_json::Value::Object(fields) => {
                for (name, field) in fields.iter_mut() {
                    if !["role", "state", "level", "client", "target"].contains(&name.as_str()) {
                        poison(field);
                    }
                }
                if let Some(counts) = fields.get_mut("failed_by_cause") {
                    counts[EVIL] = 1.into();
                }
            }
            _ => {}
        }
    }
    for snapshot in [Snapshot::Agent(agent().into()), Snapshot::Server(server().into())] {
        let mut value = serde_json::to_value(&snapshot).unwrap();
        poison(&mut value);
        let poisoned = Snapshot::from_json(&value.to_string()).unwrap();
        assert_ne!(poisoned, snapshot);
        let shown = render(
            &poisoned,
            Style { width: usize::MAX, colour: false, unicode: true, graph: false },
        );
        assert!(!shown.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}'));
        assert!(shown.contains("\\u{1b}]0;owned\\u{7}"));
    }
}

#[test]
fn the_last_minute_is_drawn_where_it_is_wanted() {
    let mut agent = agent();
    agent.uplinks.truncate(2);
    agent.uplinks[0].recent_bps = vec![0, 1, 5_000_000, 10_000_000];
    agent.uplinks[1].recent_bps = vec![2_500_000; 4];
    let snapshot = Snapshot::Agent(agent.into());
    let column = |unicode| -> Vec<String> {
        let shown = render(&snapshot, Style { width: 170, colour: false, unicode, graph: true });
        let lines: Vec<&str> = shown.lines().skip_while(|line| !line.contains("LAST")).collect();
        let at = lines[0].find("LAST").unwrap();
        lines[1..3].iter().map(|line| line.chars().skip(at).take(4).collect()).collect()
    };
    assert_eq!(column(true), [" ▁▄█", "▂▂▂▂"]);
    assert_eq!(column(false), [" .=@", "::::"]);
    assert!(!render(&snapshot, WIDE).contains("LAST MINUTE"));
}

#[test]
fn html_has_the_same_facts_and_no_markup_of_others() {
    let mut agent = agent();
    agent.uplinks[0].reason = "<b onclick='x'>&\"".into();
    agent.uplinks[0].state = UplinkState::Down;
    let html = render_html(&Snapshot::Agent(agent.into()));
    for text in [
        "<th scope=\"col\">UPLINK</th>",
        "<td><b>wan</b></td>",
        "<td class=\"n\">93.4 Mbit/s</td>",
        "&lt;b onclick=&#39;x&#39;&gt;&amp;&quot;",
    ] {
        assert!(html.contains(text), "{text} in {html}");
    }
    assert!(!html.contains("LAST MINUTE") && !html.contains("<b onclick"), "{html}");
}
