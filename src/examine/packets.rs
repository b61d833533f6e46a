//! Probes over one uplink: a small one, and some as large as TCP's packets are.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use litemap::LiteMap;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::{Means, is_no_route};
use crate::check::{Datagrams, PathMtu};
use crate::controller::Outlet;
use crate::os::socket;
use crate::session::Session;
use crate::tunnel::probe::{PROBE_MAX, ProbeReply};

/// Between two probes: each may be lost.
const INTERVAL: Duration = Duration::from_millis(200);
/// Probes of one kind sent before giving up: a lossy uplink must not pass for a black hole.
const TRIES: u32 = 6;
/// Small probes sent before giving up: routers give notice of a second's first packet at most.
const SMALL_TRIES: u32 = 12;
/// How long to wait after the last of them, beside one and a half round trips.
const REPLY_LIMIT: Duration = Duration::from_millis(500);
/// On slower uplinks full-size packets are not tried: the answers would come too late.
const SLOWEST: Duration = Duration::from_secs(1);
/// Bytes of packets to try where full-size ones vanish: PPPoE, tunnels of several kinds, VPNs, and
/// the least that IPv6 asks for.
const SMALLER: [u16; 8] = [1492, 1480, 1460, 1440, 1420, 1400, 1350, 1280];

/// Sends probes until one is answered; whether the server answers larger ones as well.
pub async fn probe(means: &Means, outlet: &Outlet) -> (Datagrams, bool) {
    let Some(session) = &means.session else { return (Datagrams::Untried, false) };
    let Ok(socket) = open(means, outlet).await else { return (Datagrams::Unanswered, false) };
    let mut sent = LiteMap::new_vec();
    let mut outcome = Datagrams::Unanswered;
    for attempt in 1..=SMALL_TRIES {
        let (counter, request) = session.probe();
        sent.insert(counter, Instant::now());
        // One that cannot be sent is as good as lost.
        let _ = socket.send(&request).await;
        let until = Instant::now() + if attempt < SMALL_TRIES { INTERVAL } else { REPLY_LIMIT };
        match receive(&socket, session, until).await {
            Ok(Some(reply)) => {
                let Some(at) = sent.get(&reply.counter) else { continue };
                let observed = reply.observed;
                return (Datagrams::Answered { observed, rtt: at.elapsed() }, reply.pads);
            }
            Ok(None) => {}
            Err(error) if is_no_route(&error) => outcome = Datagrams::NoRoute,
            Err(_) => {}
        }
    }
    (outcome, false)
}

/// Tries packets of `size` bytes, and smaller ones where these vanish.
pub async fn path_mtu(means: &Means, outlet: &Outlet, size: u16, rtt: Duration) -> PathMtu {
    let (Some(session), true) = (&means.session, rtt <= SLOWEST) else { return PathMtu::Untried };
    let Ok(socket) = open(means, outlet).await else { return PathMtu::Untried };
    let wait = REPLY_LIMIT + rtt * 3 / 2;
    match largest(&socket, session, &[size], wait).await {
        Ok(Some(size)) => return PathMtu::Passes(size),
        Ok(None) => {}
        Err(_) => return announced(&socket),
    }
    let smaller: Vec<u16> = SMALLER.into_iter().filter(|&smaller| smaller < size).collect();
    match largest(&socket, session, &smaller, wait).await {
        Ok(passes) => PathMtu::Hole { size, passes },
        Err(_) => announced(&socket),
    }
}

fn announced(socket: &UdpSocket) -> PathMtu {
    socket::path_mtu(socket).map_or(PathMtu::Untried, PathMtu::Announced)
}

async fn open(means: &Means, outlet: &Outlet) -> io::Result<UdpSocket> {
    let socket = socket::udp_socket((outlet.source, 0).into(), Some(&outlet.device))?;
    socket::forbid_fragments(&socket)?;
    socket::report_unreachable(&socket)?;
    socket.connect(means.server).await?;
    Ok(socket)
}

/// The largest of these packets that is answered.
///
/// # Errors
/// `EMSGSIZE` when a router on the way says that they are too large, or that is known already.
async fn largest(
    socket: &UdpSocket,
    session: &Session,
    sizes: &[u16],
    wait: Duration,
) -> io::Result<Option<u16>> {
    let mut sent = LiteMap::new_vec();
    let mut passed = None;
    for attempt in 1..=TRIES {
        for &size in sizes {
            let (counter, request) = session.probe();
            let length = usize::from(size).saturating_sub(headers(socket)?).min(PROBE_MAX);
            let mut padded = request.to_vec();
            padded.resize(length.max(request.len()), 0);
            sent.insert(counter, size);
            socket.send(&padded).await?;
        }
        let until = Instant::now() + if attempt < TRIES { INTERVAL } else { wait };
        loop {
            let counter = match receive(socket, session, until).await {
                Ok(Some(reply)) => reply.counter,
                Ok(None) => break,
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => return Err(error),
                // Losses of another kind.
                Err(_) => continue,
            };
            passed = passed.max(sent.get(&counter).copied());
            if passed.is_some() && passed == sizes.iter().copied().max() {
                return Ok(passed);
            }
        }
    }
    Ok(passed)
}

/// Bytes of the headers in front of a datagram.
fn headers(socket: &UdpSocket) -> io::Result<usize> {
    Ok(match socket.peer_addr()?.ip() {
        IpAddr::V4(_) => 20 + 8,
        IpAddr::V6(_) => 40 + 8,
    })
}

/// The next authentic reply; `None` when it is late.
///
/// # Errors
/// What ICMP says of an earlier probe.
async fn receive(
    socket: &UdpSocket,
    session: &Session,
    until: Instant,
) -> io::Result<Option<ProbeReply>> {
    let mut buffer = [0; PROBE_MAX];
    loop {
        let Ok(received) = timeout_at(until, socket.recv(&mut buffer)).await else {
            return Ok(None);
        };
        let reply = session.probe_reply(buffer.get(..received?).unwrap_or_default());
        if reply.is_some() {
            return Ok(reply);
        }
    }
}
