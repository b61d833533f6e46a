//! Whoever asks over HTTP does not hold up what the agent is there for.

mod lab;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use lab::traffic::{Kind, TrafficServer, Transfer};
use lab::{AgentProgram, HTTP_ADDRESS, HTTP_OPTION, Lab, Namespace, ServerProgram, TARGET_V4};

/// How long anything may take that should happen soon.
const LIMIT: Duration = Duration::from_secs(10);
/// Clients that ask again and again.
const CLIENTS: usize = 200;
/// Connections that send their head byte by byte.
const SLOW: usize = 100;
/// How long a client of the crowd waits for its answer.
const PATIENCE: Duration = Duration::from_secs(4);
/// The share of the goodput that has to remain. On a quiet machine it is 0.97 and more; where tests run
/// the clients take their processor time, too.
const SHARE: f64 = 0.9;
/// Measurements, the best of which counts.
const ATTEMPTS: usize = 3;
/// Windows with and without clients, in turn, and how long each is.
const PAIRS: usize = 5;
const WINDOW: Duration = Duration::from_millis(1500);

/// What disturbs the agent while `busy`.
struct Crowd<'a> {
    busy: &'a AtomicBool,
    over: &'a AtomicBool,
    answers: &'a AtomicUsize,
}

impl Crowd<'_> {
    fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    fn connect() -> Option<TcpStream> {
        let address: SocketAddr = HTTP_ADDRESS.parse().expect("an address");
        let stream = TcpStream::connect_timeout(&address, LIMIT).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        Some(stream)
    }

    /// Repeats `turn` while there is to be a crowd.
    fn repeat(&self, turn: impl Fn(TcpStream)) {
        while !self.over.load(Ordering::Relaxed) {
            match self.is_busy().then(Crowd::connect).flatten() {
                Some(stream) => turn(stream),
                None => sleep(Duration::from_millis(20)),
            }
        }
    }

    fn ask(&self, mut stream: TcpStream, request: &[u8]) {
        let mut answer = Vec::new();
        // One that is cut off for another is part of the crowd, too.
        let _ = stream.write_all(request).and_then(|()| stream.read_to_end(&mut answer));
        if answer.starts_with(b"HTTP/1.1 200") || answer.starts_with(b"HTTP/1.1 431") {
            self.answers.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn trickle(&self, mut stream: TcpStream) {
        while self.is_busy() && stream.write_all(b"X").is_ok() {
            sleep(Duration::from_millis(200));
        }
    }
}

/// Mean goodput over windows without and with a crowd, in Mbit/s, pair by pair.
fn pairs(transfer: &Transfer, busy: &AtomicBool) -> Vec<(f64, f64)> {
    let window = || {
        // What was in flight before is none of this window's.
        sleep(Duration::from_millis(300));
        let (bytes, start) = (transfer.report().bytes, Instant::now());
        sleep(WINDOW);
        (transfer.report().bytes - bytes) as f64 * 8e-6 / start.elapsed().as_secs_f64()
    };
    let pair = |_| {
        busy.store(false, Ordering::Relaxed);
        let alone = window();
        busy.store(true, Ordering::Relaxed);
        (alone, window())
    };
    (0..PAIRS).map(pair).collect()
}

fn crowded(router: &Namespace, transfer: &Transfer) -> (Vec<(f64, f64)>, usize) {
    let (busy, over, answers) =
        (AtomicBool::new(false), AtomicBool::new(false), AtomicUsize::new(0));
    let crowd = Crowd { busy: &busy, over: &over, answers: &answers };
    let oversized =
        [b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ".as_slice(), &[b'x'; 60_000]].concat();
    let status = b"GET /status.json HTTP/1.1\r\nHost: localhost\r\n\r\n".as_slice();
    let page = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".as_slice();
    let measured = thread::scope(|scope| {
        for number in 0..CLIENTS + SLOW {
            let (crowd, oversized) = (&crowd, oversized.as_slice());
            scope.spawn(move || {
                router.join();
                match number {
                    CLIENTS.. => crowd.repeat(|stream| crowd.trickle(stream)),
                    _ => crowd.repeat(|stream| {
                        crowd.ask(stream, [status, page, status, oversized][number % 4])
                    }),
                }
            });
        }
        let measured = pairs(transfer, &busy);
        over.store(true, Ordering::Relaxed);
        busy.store(false, Ordering::Relaxed);
        measured
    });
    (measured, answers.into_inner())
}

#[test]
fn a_crowd_of_clients_costs_no_goodput() {
    let lab = Lab::two_uplinks("web-load");
    let server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start_with(&lab, &server, HTTP_OPTION);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let transfer = Transfer::download(&dialer, Transfer::ENDLESS).expect("connect");
    transfer.wait_bytes(20_000_000, LIMIT);

    // The best counts: the machine has other work now and then.
    let unharmed = (0..ATTEMPTS).any(|_| {
        let (pairs, answers) = crowded(&lab.router, &transfer);
        let mut shares: Vec<f64> = pairs.iter().map(|(alone, crowded)| crowded / alone).collect();
        shares.sort_by(f64::total_cmp);
        println!("goodput without and with a crowd: {pairs:.1?} Mbit/s, shares {shares:.3?}");
        println!("{answers} answers; agent {} KiB at most", agent.process().peak_kib());
        assert!(answers > CLIENTS / 4, "the crowd is not served: {answers}");
        shares[PAIRS / 2] > SHARE
    });
    assert!(unharmed, "a crowd costs goodput in each of {ATTEMPTS} attempts");
    assert!(!transfer.is_finished(), "the download was cut off");
    let status = format!("http://{HTTP_ADDRESS}/status.json");
    #[rustfmt::skip]
    let arguments =
        ["--silent", "--max-time", "10", "--output", "/dev/null", "--write-out", "%{http_code}", &status];
    assert_eq!(lab.router.run("curl", &arguments), "200");
}
