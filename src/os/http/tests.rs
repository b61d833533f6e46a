use super::*;

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream as StdTcpStream};

use crate::os::socket::tcp_listen;

const STATUS: &str = r#"{"role":"agent"}"#;
const REQUEST: &[u8] = b"GET /status.json HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Runs a server whose owner answers [`STATUS`], while `body` is at work as its client; how often the
/// owner was asked.
fn with_server(body: impl FnOnce(SocketAddr) + Send + 'static) -> u32 {
    let asked = Cell::new(0);
    let run = async {
        let listener = tcp_listen("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let address = listener.local_addr().unwrap();
        let (owner, mut requests) = mpsc::channel::<Request>(8);
        let client = tokio::task::spawn_blocking(move || body(address));
        let served = async {
            while let Some(request) = requests.recv().await {
                asked.set(asked.get() + 1);
                let _ = request.reply.send(match request.method.as_str() {
                    "status" => Ok(STATUS.to_owned()),
                    "page" => Ok("\"<p>\"".to_owned()),
                    _ => Err(super::super::control::Refusal::parameters("no".to_owned())),
                });
            }
        };
        tokio::select! {
            ended = client => ended.unwrap(),
            () = serve(listener, Site::Agent, Access::Loopback, owner) => panic!("serve ended"),
            () = served => panic!("no more requests"),
        }
    };
    runtime::run(run).unwrap();
    asked.get()
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
fn what_the_owner_says_is_passed_on() {
    with_server(|address| {
        let answer = raw(address, REQUEST);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with(STATUS), "{answer}");
        let head = raw(address, b"HEAD /status.json HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(head, answer.strip_suffix(STATUS).unwrap());
        let page = raw(address, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert!(page.ends_with("\r\n\r\n<p>"), "{page}");
        let wrong = raw(address, b"GET /history.json?span=x HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(code(&wrong), "400");
        assert_eq!(code(&raw(address, b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n")), "421");
    });
}

#[test]
fn many_who_ask_the_same_cost_the_owner_little() {
    let asked = with_server(|address| {
        let clients = (0..100).map(|_| std::thread::spawn(move || raw(address, REQUEST)));
        for client in clients.collect::<Vec<_>>() {
            assert_eq!(code(&client.join().unwrap()), "200");
        }
    });
    assert!((1..50).contains(&asked), "{asked}");
}

#[test]
fn heads_up_to_the_limit_are_read() {
    with_server(|address| {
        let start = "GET /status.json HTTP/1.1\r\nHost: localhost\r\n";
        let fitting = format!("{start}X: {}\r\n\r\n", "x".repeat(HEAD_LIMIT - start.len() - 7));
        assert_eq!(fitting.len(), HEAD_LIMIT);
        assert_eq!(code(&raw(address, fitting.as_bytes())), "200");
        let large = format!("{start}X: {}\r\n\r\n", "x".repeat(60_000));
        assert_eq!(code(&raw(address, large.as_bytes())), "431");
    });
}

#[test]
fn pipelined_requests_get_one_answer_and_a_clean_end() {
    with_server(|address| {
        let request = REQUEST.repeat(100);
        assert_eq!(raw(address, &request).matches("HTTP/1.1 200 OK").count(), 1);
        // What a client sends while its answer is under way must not make the kernel reset it.
        let mut stream = StdTcpStream::connect(address).unwrap();
        stream.write_all(&request).unwrap();
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(50));
            stream.write_all(&request).unwrap();
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 1);
    });
}

#[test]
fn slow_clients_make_way_for_others() {
    with_server(|address| {
        let slow: Vec<_> = (0..CONNECTIONS_LIMIT * 2)
            .map(|_| {
                let mut stream = StdTcpStream::connect(address).unwrap();
                stream.write_all(b"GET /status.json HTTP/1.1\r\n").unwrap();
                stream
            })
            .collect();
        let start = Instant::now();
        assert_eq!(code(&raw(address, REQUEST)), "200");
        assert!(start.elapsed() < CLIENT_TIMEOUT / 2, "{:?}", start.elapsed());
        let ended = |mut stream: &StdTcpStream| {
            stream.set_nonblocking(true).unwrap();
            !matches!(stream.read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
        };
        let ended = slow.iter().filter(|stream| ended(stream)).count();
        assert!(ended > CONNECTIONS_LIMIT, "{ended} were cut off");
    });
}

#[test]
fn bytes_that_trickle_in_do_not_put_the_end_off() {
    with_server(|address| {
        let start = Instant::now();
        let mut stream = StdTcpStream::connect(address).unwrap();
        stream.write_all(b"GET /status.json HTTP/1.1\r\n").unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let mut answer = [0; 512];
        let length = loop {
            match stream.read(&mut answer) {
                Ok(length) => break length,
                Err(_) => stream.write_all(b"X").unwrap(),
            }
        };
        assert_eq!(code(&String::from_utf8_lossy(&answer[..length])), "408");
        let elapsed = start.elapsed();
        assert!(elapsed > CLIENT_TIMEOUT / 2 && elapsed < CLIENT_TIMEOUT * 2, "{elapsed:?}");
    });
}

#[test]
fn a_client_that_goes_away_harms_nobody() {
    with_server(|address| {
        for request in [&b""[..], b"G", REQUEST] {
            for _ in 0..50 {
                let mut stream = StdTcpStream::connect(address).unwrap();
                stream.write_all(request).unwrap();
            }
        }
        assert_eq!(code(&raw(address, REQUEST)), "200");
    });
}
