//! How long a new connection waits for its first byte.

use std::io::{Read, Write};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::traffic::{Dialer, Kind, TrafficServer};
use super::{Lab, SERVER_V4, TARGET_V4, UplinkSpec};

/// Connections of which the median counts.
const CONNECTIONS: usize = 21;
/// Time between two connections.
const INTERVAL: Duration = Duration::from_millis(50);
/// The target's port, and one on the server.
const PORT: u16 = 80;

/// Times of new connections; medians.
#[derive(Clone, Copy, Debug)]
pub struct FirstByte {
    /// From the client's connect(2) until the answer to its first byte.
    pub took: Duration,
    /// The round trips from router to server over the first uplink and from server to target, added.
    pub round_trips: Duration,
}

impl FirstByte {
    /// A lab whose uplinks have round trips of 20 and 60 ms.
    pub fn lab(name: &str) -> Lab {
        let uplink = |device, one_way| {
            UplinkSpec::new(device, 100).ipv4_only().delay(Duration::from_millis(one_way))
        };
        Lab::builder(name).uplink(uplink("wan", 10)).uplink(uplink("wanb", 30)).build()
    }

    /// Measures connections of the LAN to the target, and the round trips.
    pub fn measure(lab: &Lab) -> FirstByte {
        let target = TrafficServer::start(&lab.target, Kind::Tcp, PORT);
        let server = TrafficServer::start(&lab.server, Kind::Tcp, PORT);
        let connect = |dialer: &Dialer| drop(dialer.connect().expect("connect"));
        let nearest = server.dialer(&lab.router, Kind::Tcp, SERVER_V4).bind_device("wan");
        let behind = target.dialer(&lab.server, Kind::Tcp, TARGET_V4);
        let lan = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
        FirstByte {
            took: median(|| {
                let mut stream = lan.connect().expect("connect to the target");
                stream.write_all(b"echo\n!").expect("ask the target");
                stream.read_exact(&mut [0]).expect("an answer");
            }),
            round_trips: median(|| connect(&nearest)) + median(|| connect(&behind)),
        }
    }

    /// The share of the round trips that it takes; less than 1 is impossible.
    pub fn share(&self) -> f64 {
        self.took.as_secs_f64() / self.round_trips.as_secs_f64()
    }
}

fn median(mut action: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..CONNECTIONS)
        .map(|_| {
            sleep(INTERVAL);
            let begun = Instant::now();
            action();
            begun.elapsed()
        })
        .collect();
    times.sort();
    times[CONNECTIONS / 2]
}
