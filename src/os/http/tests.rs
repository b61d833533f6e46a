use super::*;

use std::io::{Read, Write};
use std::net::TcpStream as StdTcpStream;
use std::time::Instant;

const STATUS: &str = r#"{"role":"agent"}"#;

/// Runs a server whose owner answers [`STATUS`], while `body` is at work as its client.
fn with_server(bind: &'static str, body: impl FnOnce(SocketAddr) + Send + 'static) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async move {
        let listener = TcpListener::bind(bind).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (owner, mut requests) = mpsc::channel::<Request>(8);
        let client = tokio::task::spawn_blocking(move || body(address));
        let served = async {
            while let Some(request) = requests.recv().await {
                assert_eq!(request.method, "status");
                let _ = request.reply.send(Ok(STATUS.to_owned()));
            }
        };
        tokio::select! {
            ended = client => ended.unwrap(),
            () = serve(listener, owner) => panic!("serve ended"),
            () = served => panic!("no more requests"),
        }
    });
}

fn raw(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = StdTcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn code(answer: &str) -> &str {
    answer.get(9..12).unwrap_or("none")
}

#[test]
fn the_status_and_nothing_else() {
    with_server("127.0.0.1:0", |address| {
        let answer = raw(address, b"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(
            answer,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\
             Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\
             Connection: close\r\n\r\n{\"role\":\"agent\"}\n"
        );
        let head = raw(address, b"HEAD /api/v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(head, answer.strip_suffix("{\"role\":\"agent\"}\n").unwrap());
        for (request, expected) in [
            ("GET /api/v1/status?x=1 HTTP/1.1\r\nHost: 127.0.0.1:8484\r\n\r\n", "200"),
            ("GET /api/v1/status HTTP/1.0\r\n\r\n", "200"),
            ("GET http://localhost/api/v1/status HTTP/1.1\r\nHost: x\r\n\r\n", "200"),
            ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "404"),
            ("GET /api/v1/status/ HTTP/1.1\r\nHost: localhost\r\n\r\n", "404"),
            ("GET /api/v1/../v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n", "404"),
            ("GET http://localhost HTTP/1.1\r\nHost: localhost\r\n\r\n", "404"),
            ("OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", "404"),
            ("GET /api/v1/status HTTP/1.1\r\n\r\n", "400"),
            ("GET /api/v1/status HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "400"),
            ("GET /api/v1/status HTTP/1.1\r\nHost : localhost\r\n\r\n", "400"),
            ("\x16\x03\x01\x02\0\x01", "400"),
            ("GET /api/v1/status HTTP/2.0\r\nHost: localhost\r\n\r\n", "505"),
        ] {
            let answer = raw(address, request.as_bytes());
            assert_eq!(code(&answer), expected, "{request:?}: {answer}");
        }
        for method in ["POST", "PUT", "DELETE", "get"] {
            let request = format!(
                "{method} /api/v1/status HTTP/1.1\r\nHost: localhost\r\n\
                 Content-Length: 5\r\n\r\nhello"
            );
            let answer = raw(address, request.as_bytes());
            assert_eq!(code(&answer), "405");
            assert!(answer.contains("\r\nAllow: GET, HEAD\r\n"));
        }
    });
}

#[test]
fn on_a_loopback_address_only_local_names_are_served() {
    with_server("[::1]:0", |address| {
        for (host, expected) in [
            ("localhost", "200"),
            ("LOCALHOST:8484", "200"),
            ("127.0.0.1", "200"),
            ("127.0.0.1:8484", "200"),
            ("[::1]", "200"),
            ("[::1]:8484", "200"),
            ("evil.example", "421"),
            ("localhost.evil.example", "421"),
            ("localhost:evil", "421"),
            ("127.0.0.1.evil.example", "421"),
            ("192.168.1.1", "421"),
            ("", "421"),
        ] {
            let request = format!("GET /api/v1/status HTTP/1.1\r\nHost: {host}\r\n\r\n");
            assert_eq!(code(&raw(address, request.as_bytes())), expected, "{host}");
        }
        let absolute = b"GET http://evil.example/api/v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n";
        assert_eq!(code(&raw(address, absolute)), "421");
    });
}

#[test]
fn on_another_address_any_name_is_served() {
    with_server("0.0.0.0:0", |address| {
        let address = SocketAddr::new([127, 0, 0, 1].into(), address.port());
        let request = b"GET /api/v1/status HTTP/1.1\r\nHost: router.lan\r\n\r\n";
        assert_eq!(code(&raw(address, request)), "200");
    });
}

#[test]
fn oversized_heads_are_refused() {
    with_server("127.0.0.1:0", |address| {
        let start = "GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\n";
        let large = format!("{start}X: {}\r\n\r\n", "x".repeat(60_000));
        assert_eq!(code(&raw(address, large.as_bytes())), "431");
        let many = format!("{start}{}\r\n", "X: y\r\n".repeat(FIELDS_LIMIT));
        assert_eq!(code(&raw(address, many.as_bytes())), "431");
        let fitting = format!("{start}X: {}\r\n\r\n", "x".repeat(HEAD_LIMIT - start.len() - 7));
        assert_eq!(fitting.len(), HEAD_LIMIT);
        assert_eq!(code(&raw(address, fitting.as_bytes())), "200");
    });
}

#[test]
fn pipelined_requests_get_one_answer_and_a_clean_end() {
    with_server("127.0.0.1:0", |address| {
        let request = "GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
        let answer = raw(address, request.as_bytes());
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 1);
        // What a client sends while its answer is under way must not make the kernel reset it.
        let mut stream = StdTcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(50));
            stream.write_all(request.as_bytes()).unwrap();
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 1);
    });
}

#[test]
fn slow_clients_are_cut_off_and_keep_nobody_out_for_long() {
    with_server("127.0.0.1:0", |address| {
        let start = Instant::now();
        let mut slow: Vec<_> = (0..CONNECTIONS_LIMIT)
            .map(|_| {
                let mut stream = StdTcpStream::connect(address).unwrap();
                stream.write_all(b"GET /api/v1/status HTTP/1.1\r\n").unwrap();
                stream
            })
            .collect();
        let request = b"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let busy = |address| {
            let mut answer = String::new();
            let mut stream = StdTcpStream::connect(address).unwrap();
            let _ = stream.read_to_string(&mut answer);
            answer
        };
        assert_eq!(code(&busy(address)), "503");
        // Bytes that trickle in do not put the end off.
        for _ in 0..9 {
            std::thread::sleep(Duration::from_secs(1));
            for stream in &mut slow {
                let _ = stream.write_all(b"X");
            }
        }
        for stream in &mut slow {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert_eq!(code(&answer), "408");
        }
        let elapsed = start.elapsed();
        assert!(elapsed > Duration::from_secs(9) && elapsed < Duration::from_secs(13));
        drop(slow);
        std::thread::sleep(LINGER.0 + Duration::from_millis(200));
        assert_eq!(code(&raw(address, request)), "200");
    });
}

#[test]
fn a_client_that_goes_away_harms_nobody() {
    with_server("127.0.0.1:0", |address| {
        for request in [&b""[..], b"G", b"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
            for _ in 0..50 {
                let mut stream = StdTcpStream::connect(address).unwrap();
                stream.write_all(request).unwrap();
            }
        }
        std::thread::sleep(LINGER.0);
        let request = b"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n";
        assert_eq!(code(&raw(address, request)), "200");
    });
}

/// 100,000 mutated heads: no panic, and what is accepted obeys the rules.
#[test]
fn mutated_heads_are_parsed_or_refused() {
    let seeds = [
        &b"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"[..],
        b"GET http://[::1]:8484/api/v1/status?a=b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"HEAD / HTTP/1.0\r\n\r\n",
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let (mut accepted, mut refused, mut incomplete) = (0, 0, 0);
    for _ in 0..100_000 {
        let mut head = seeds[random(seeds.len())].to_vec();
        for _ in 0..random(4) {
            let at = random(head.len());
            match random(5) {
                0 => head[at] = random(256) as u8,
                1 => head.truncate(at.max(1)),
                2 => head.insert(at, random(256) as u8),
                3 => drop(head.remove(at)),
                _ => head.extend_from_within(at..),
            }
            if head.is_empty() {
                break;
            }
        }
        match parse(&head) {
            Ok(Some(asked)) => {
                accepted += 1;
                assert!(!asked.path.contains('?'));
                if route(&asked, true).is_ok() {
                    assert_eq!(asked.path, STATUS_PATH);
                    assert!(asked.host.as_deref().is_none_or(is_local), "{asked:?}");
                }
            }
            Ok(None) => incomplete += 1,
            Err(answer) => {
                refused += 1;
                assert!(matches!(answer.code, 400 | 431 | 505));
            }
        }
    }
    assert!(accepted > 1000 && refused > 1000 && incomplete > 1000);
}
