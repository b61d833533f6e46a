use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;

const SOON: Duration = Duration::from_secs(5);

fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(Duration::from_secs(60), future).await.unwrap() })
}

fn any_port(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), 0)
}

async fn accept_from(listener: TcpListener, client: TcpStream) -> (TcpStream, TcpStream) {
    let (server, _) = listener.accept().await.unwrap();
    (client, server)
}

async fn mptcp_pair(address: &str) -> (TcpStream, TcpStream) {
    let listener = mptcp_listen(any_port(address), 8).unwrap();
    let remote = listener.local_addr().unwrap();
    let client = mptcp_connect(remote, None, None).await.unwrap();
    accept_from(listener, client).await
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = tcp_connect(listener.local_addr().unwrap(), None).await.unwrap();
    accept_from(listener, client).await
}

/// Sends a few bytes each way, so that both ends of an MPTCP connection are fully established.
async fn exchange(one: &mut TcpStream, other: &mut TcpStream) {
    let mut buffer = [0; 5];
    one.write_all(b"hello").await.unwrap();
    other.read_exact(&mut buffer).await.unwrap();
    other.write_all(b"hello").await.unwrap();
    one.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"hello");
}

/// Runs the test `name` (its full path) again, alone in a process and a network namespace of its
/// own where `setup` (shell) has been done; true in that process, where the test is to go on.
fn alone(name: &str, setup: &str) -> bool {
    if std::env::var_os("MPTCP_BOND_ALONE").is_some() {
        return true;
    }
    let script =
        format!("set -e; ip link set lo up; {setup}\nexec \"$0\" --exact {name} --nocapture");
    let output = Command::new("unshare")
        .args(["--net", "--map-root-user", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env("MPTCP_BOND_ALONE", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

#[test]
fn abort_resets_the_peer_of_tcp_and_mptcp() {
    block_on(async {
        for multipath in [false, true] {
            for unsent in [false, true] {
                let (mut client, mut server) =
                    if multipath { mptcp_pair("127.0.0.1").await } else { tcp_pair().await };
                exchange(&mut client, &mut server).await;
                if unsent {
                    while client.try_write(&[7; 65536]).is_ok() {}
                }
                abort(&client);
                let mut rest = Vec::new();
                let error = timeout(SOON, server.read_to_end(&mut rest)).await.unwrap();
                let kind = error.unwrap_err().kind();
                assert_eq!(kind, io::ErrorKind::ConnectionReset, "{multipath} {unsent}");
            }
        }
    });
}

#[test]
fn a_broken_connection_is_noticed_without_reading_or_writing() {
    block_on(async {
        for multipath in [false, true] {
            let (mut client, mut server) =
                if multipath { mptcp_pair("127.0.0.1").await } else { tcp_pair().await };
            exchange(&mut client, &mut server).await;
            // Unread data and a half-close are no breakage.
            client.write_all(b"unread").await.unwrap();
            shutdown_write(&client).unwrap();
            assert!(timeout(Duration::from_millis(200), broken(&server)).await.is_err());
            abort(&client);
            if !multipath {
                assert!(timeout(SOON, broken(&server)).await.is_ok());
            }
            let (mut client, mut server) =
                if multipath { mptcp_pair("127.0.0.1").await } else { tcp_pair().await };
            exchange(&mut client, &mut server).await;
            abort(&client);
            let error = timeout(SOON, broken(&server)).await.unwrap();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{multipath}");
        }
    });
}

#[test]
fn data_are_delivered_once_the_peer_has_acknowledged_them() {
    block_on(async {
        let (client, mut server) = mptcp_pair("127.0.0.1").await;
        assert!(is_delivered(&client).unwrap());
        // More than both ends hold.
        let mut sent = 0;
        while let Ok(count) = client.try_write(&[0; 65536]) {
            sent += count;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(!is_delivered(&client).unwrap() && is_delivered(&server).unwrap());
        server.read_exact(&mut vec![0; sent]).await.unwrap();
        while !is_delivered(&client).unwrap() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (plain, _peer) = tcp_pair().await;
        assert!(is_delivered(&plain).is_err());
    });
}

#[test]
fn subflows_may_join_until_the_connection_ends_and_never_plain_tcp() {
    block_on(async {
        let (client, server) = mptcp_pair("127.0.0.1").await;
        assert_eq!(joinable_peer(&client), Some(server.local_addr().unwrap().ip()));
        let (plain, _peer) = tcp_pair().await;
        assert_eq!(joinable_peer(&plain), None);
        abort(&server);
        drop(server);
        broken(&client).await;
        assert_eq!(joinable_peer(&client), None);
    });
}

#[test]
fn mptcp_is_told_from_tcp_at_both_ends() {
    /// Both ways of asking, which have to agree.
    fn mptcp(stream: &TcpStream) -> bool {
        let answer = is_mptcp(stream).unwrap();
        assert_eq!(info::is_mptcp_by_info(stream.as_fd()).unwrap(), answer);
        answer
    }

    block_on(async {
        let (client, server) = mptcp_pair("127.0.0.1").await;
        assert_eq!((mptcp(&client), mptcp(&server)), (true, true));
        for stream in [&client, &server] {
            assert!(stream.nodelay().unwrap());
            let socket = socket2::SockRef::from(stream);
            assert!(socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
        }
        let listener = mptcp_listen(any_port("127.0.0.1"), 8).unwrap();
        let client = tcp_connect(listener.local_addr().unwrap(), None).await.unwrap();
        let (client, server) = accept_from(listener, client).await;
        assert_eq!((mptcp(&client), mptcp(&server)), (false, false));
        assert!(subflows(&client).is_err());
        // A plain listener answers an MPTCP connection: it falls back.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let remote = listener.local_addr().unwrap();
        let client = mptcp_connect(remote, None, None).await.unwrap();
        assert!(!mptcp(&client));
    });
}

#[test]
fn the_kernel_tells_about_a_connections_subflows() {
    block_on(async {
        for address in ["127.0.0.1", "::1"] {
            let (mut client, mut server) = mptcp_pair(address).await;
            exchange(&mut client, &mut server).await;
            let of_client = subflows(&client).unwrap();
            let of_server = subflows(&server).unwrap();
            assert_eq!((of_client.len(), of_server.len()), (1, 1));
            assert_eq!(of_client[0].local, client.local_addr().unwrap());
            assert_eq!(of_client[0].remote, server.local_addr().unwrap());
            assert_eq!(of_server[0].remote, client.local_addr().unwrap());
            assert!(of_client[0].is_established());
            // Kernels without MPTCP_FULL_INFO report the same, a moment later.
            let mut separate = info::separate_info(client.as_fd()).unwrap();
            separate[0].data_ago = of_client[0].data_ago;
            separate[0].heard_ago = of_client[0].heard_ago;
            assert_eq!(separate, of_client);
        }
    });
}

#[test]
fn subflows_and_the_device_and_address_of_the_first_one() {
    let setup = "ip addr add 192.0.2.1/24 dev lo; ip addr add 198.51.100.1/24 dev lo;
        ip mptcp limits set subflows 4 add_addr_accepted 4;
        ip mptcp endpoint add 198.51.100.1 dev lo subflow id 200";
    if !alone("os::socket::tests::subflows_and_the_device_and_address_of_the_first_one", setup) {
        return;
    }
    block_on(async {
        let listener = mptcp_listen(any_port("192.0.2.1"), 8).unwrap();
        let remote = listener.local_addr().unwrap();
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let mut client = mptcp_connect(remote, Some(address), Some("lo")).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        exchange(&mut client, &mut server).await;
        assert_eq!(client.local_addr().unwrap().ip(), address);
        let mut found = Vec::new();
        for _ in 0..100 {
            found = subflows(&client).unwrap();
            if found.len() == 2 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let locals: Vec<IpAddr> = found.iter().map(|subflow| subflow.local.ip()).collect();
        assert_eq!(locals, ["192.0.2.1", "198.51.100.1"].map(|a| a.parse::<IpAddr>().unwrap()));
        assert_eq!(info::separate_info(client.as_fd()).unwrap().len(), 2);
        // An IPv4-mapped remote makes a dual-stack socket, whose addresses still read as IPv4.
        let mapped =
            SocketAddr::new(Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped().into(), remote.port());
        let client = mptcp_connect(mapped, Some(address), None).await.unwrap();
        assert!(client.local_addr().unwrap().is_ipv6());
        assert_eq!(subflows(&client).unwrap()[0].remote, remote);
        let error = mptcp_connect(remote, None, Some("nosuch0")).await.unwrap_err().to_string();
        assert!(error.starts_with("cannot bind to device nosuch0: "), "{error}");
        let bind = Some("203.0.113.9".parse().unwrap());
        let error = mptcp_connect(remote, bind, None).await.unwrap_err().to_string();
        assert!(error.starts_with("cannot bind to address 203.0.113.9: "), "{error}");
    });
}

#[test]
fn a_kernel_without_mptcp_is_named() {
    let setup = "sysctl -qw net.mptcp.enabled=0";
    if !alone("os::socket::tests::a_kernel_without_mptcp_is_named", setup) {
        return;
    }
    block_on(async {
        let error = mptcp_listen(any_port("127.0.0.1"), 8).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        assert!(error.to_string().contains("net.mptcp.enabled=1"), "{error}");
    });
}

#[test]
fn refused_is_refused_and_a_dropped_attempt_closes_its_socket() {
    let setup = "nft 'table inet t { chain input { type filter hook input priority 0;
        tcp dport 9 drop; }; }'";
    if !alone(
        "os::socket::tests::refused_is_refused_and_a_dropped_attempt_closes_its_socket",
        setup,
    ) {
        return;
    }
    block_on(async {
        let closed = "127.0.0.1:1".parse().unwrap();
        let refused = io::ErrorKind::ConnectionRefused;
        assert_eq!(mptcp_connect(closed, None, None).await.unwrap_err().kind(), refused);
        assert_eq!(tcp_connect(closed, None).await.unwrap_err().kind(), refused);
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = open();
        let silent = "127.0.0.1:9".parse().unwrap();
        for _ in 0..10 {
            let attempt = mptcp_connect(silent, None, None);
            assert!(timeout(Duration::from_millis(10), attempt).await.is_err());
        }
        assert_eq!(open(), before);
    });
}

#[test]
fn a_transparent_listener_sees_the_original_destination() {
    let setup = r#"
        for family in -4 -6; do
            ip $family rule add fwmark 1 lookup 100
            ip $family route add local default dev lo table 100
            ip $family route add default dev lo
        done
        nft 'table inet t {
            chain output { type route hook output priority mangle; tcp dport 80 meta mark set 1; }
            chain prerouting { type filter hook prerouting priority mangle;
                meta nfproto ipv4 tcp dport 80 tproxy ip to 127.0.0.1:8080 accept
                meta nfproto ipv6 tcp dport 80 tproxy ip6 to [::1]:8080 accept
            }
        }'"#;
    if !alone("os::socket::tests::a_transparent_listener_sees_the_original_destination", setup) {
        return;
    }
    block_on(async {
        for (listen, target, source) in [
            ("127.0.0.1:8080", "203.0.113.5:80", "127.0.0.1"),
            ("[::1]:8080", "[2001:db8::5]:80", "::1"),
        ] {
            let listener = tproxy_listen(listen.parse().unwrap()).unwrap();
            let target: SocketAddr = target.parse().unwrap();
            let bind = Some(source.parse().unwrap());
            let mut client = timeout(SOON, tcp_connect(target, bind)).await.unwrap().unwrap();
            let (mut accepted, remote) = listener.accept().await.unwrap();
            assert_eq!(accepted.local_addr().unwrap(), target);
            assert!(accepted.nodelay().unwrap());
            assert_eq!(remote, client.local_addr().unwrap());
            exchange(&mut client, &mut accepted).await;
        }
    });
}

#[test]
fn a_transparent_listener_without_the_capability_says_so() {
    // Without a user namespace of its own a root process has the capability; one that gave it up
    // has not.
    let setup = "exec setpriv --bounding-set -net_admin,-net_raw \"$0\" --exact \
        os::socket::tests::a_transparent_listener_without_the_capability_says_so";
    if !alone("os::socket::tests::a_transparent_listener_without_the_capability_says_so", setup) {
        return;
    }
    block_on(async {
        let error = tproxy_listen(any_port("127.0.0.1")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    });
}

#[test]
fn udp_replies_leave_from_the_address_that_was_asked() {
    block_on(async {
        for (wildcard, asked, client) in
            [("0.0.0.0", "127.0.0.77", "127.0.0.1"), ("::", "::1", "::1")]
        {
            let server = UdpServer::bind(any_port(wildcard)).unwrap();
            let port = server.local_addr().unwrap().port();
            let asked = SocketAddr::new(asked.parse().unwrap(), port);
            let client = udp_socket(any_port(client), Some("lo")).unwrap();
            client.send_to(b"probe", asked).await.unwrap();
            let mut buffer = [0; 8];
            let datagram = server.receive(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..datagram.length], b"probe");
            assert_eq!(datagram.local, SocketAddr::new(asked.ip(), 0));
            assert_eq!(datagram.remote, client.local_addr().unwrap());
            assert!(!datagram.truncated);
            server.send(b"echo", datagram.remote, datagram.local.ip()).await.unwrap();
            let (length, from) = client.recv_from(&mut buffer).await.unwrap();
            assert_eq!((&buffer[..length], from), (b"echo".as_slice(), asked));
            client.send_to(b"a longer one", asked).await.unwrap();
            let datagram = server.receive(&mut buffer).await.unwrap();
            assert!(datagram.truncated);
            assert_eq!(datagram.length, buffer.len());
        }
    });
}

#[test]
fn a_pipe_knows_what_is_in_it() {
    block_on(async {
        let (mut client, server) = tcp_pair().await;
        client.write_all(&[3; 1000]).await.unwrap();
        server.readable().await.unwrap();
        let mut pipe = Pipe::new().unwrap();
        assert!(pipe.is_empty() && pipe.size() >= 64 * 1024);
        assert_eq!(pipe.fill(&server, 600).unwrap(), 600);
        assert!(!pipe.is_empty());
        assert_eq!(pipe.drain(&server).unwrap(), 600);
        assert!(pipe.is_empty());
        assert_eq!(pipe.fill(&server, 4096).unwrap(), 400);
        assert_eq!(pipe.drain(&server).unwrap(), 400);
        assert_eq!(pipe.fill(&server, 1).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        shutdown_write(&client).unwrap();
        server.readable().await.unwrap();
        assert_eq!(pipe.fill(&server, 1).unwrap(), 0);
    });
}

#[test]
fn the_file_limit_is_raised_to_the_hard_one() {
    let hard = getrlimit(Resource::Nofile).maximum;
    assert_eq!(raise_file_limit().unwrap(), hard);
    assert_eq!(getrlimit(Resource::Nofile).current, hard);
}

#[test]
fn a_receive_window_grows_and_data_are_told_as_before() {
    block_on(async {
        let (client, mut server) = tcp_pair().await;
        let buffer = || socket2::SockRef::from(&client).recv_buffer_size().unwrap();
        let before = buffer();
        grow_receive_window(&client, 1 << 20).unwrap();
        assert!(buffer() > before.max(1 << 20), "{before} has become {}", buffer());
        grow_receive_window(&client, u64::MAX).unwrap();
        server.write_all(b"x").await.unwrap();
        client.readable().await.unwrap();
        assert_eq!(client.try_read(&mut [0; 8]).unwrap(), 1);
    });
}
