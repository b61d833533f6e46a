//! What is measured of uplinks and connections: rates, and subflows that are missing.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use litemap::LiteMap;
use tokio::net::TcpStream;

use crate::controller::ByConnection;
use crate::net::{Counters, Family};
use crate::os::counters::{DeviceCounters, device_counters};
use crate::os::socket::{self, Subflow};
use crate::proxy::{Connection, Proxy};
use crate::status::RateMeter;
use crate::uplink::Uplink;

/// A new connection has this long to get its subflows; while any may be missing, all connections are
/// searched this often.
const SETTLED: Duration = Duration::from_secs(5);
/// After so many looks a connection without any subflow is given up: the server does not know it any more. To
/// ask for it again and again would keep it alive (`mptcp_stop_tout_timer` in `net/mptcp/protocol.c`).
const HOPELESS: u8 = 60;
/// A connection that moves so many bits a second is busy.
const BUSY: u64 = 1_000_000;
/// How often they are searched without a reason.
const UNPROVOKED: Duration = Duration::from_secs(120);
/// Data that arrived no longer ago than this are still being sent.
const STILL: Duration = Duration::from_millis(200);

/// One uplink's device counters.
#[derive(Default)]
pub struct Meter {
    /// Received.
    pub rx: RateMeter,
    /// Sent.
    pub tx: RateMeter,
    /// Bytes received since the device exists.
    pub rx_bytes: u64,
    /// Bytes sent since the device exists.
    pub tx_bytes: u64,
    /// Segments that subflows of busy connections had lost when they were counted last.
    lost: u64,
}

/// The meters of all uplinks.
#[derive(Default)]
pub struct Meters {
    by_slot: LiteMap<u8, Meter>,
    standbys_used: bool,
}

impl Meters {
    /// Reads the devices' counters; the rates in bits a second, both directions added, by slot.
    pub fn measure(&mut self, uplinks: &[Uplink], now: Instant) -> LiteMap<u8, u64> {
        let mut rates = LiteMap::new();
        let counters = counters_of(uplinks);
        self.by_slot.retain(|slot, _| counters.contains_key(slot));
        for (slot, DeviceCounters { rx_bytes, tx_bytes, .. }) in counters {
            let meter = self.by_slot.entry(slot).or_default();
            meter.rx.sample(now, rx_bytes);
            meter.tx.sample(now, tx_bytes);
            (meter.rx_bytes, meter.tx_bytes) = (rx_bytes, tx_bytes);
            rates.insert(slot, meter.rx.bps().saturating_add(meter.tx.bps()));
        }
        rates
    }

    /// Segments that busy connections have lost since the last call, by slot; to be called once a
    /// second.
    pub fn losses(&mut self, proxy: &Proxy, uplinks: &[Uplink]) -> LiteMap<u8, u64> {
        let mut lost: LiteMap<u8, u64> = LiteMap::new();
        let busy = proxy.connections().into_iter().filter(|it| it.counters.bps() >= BUSY);
        for tunnel in busy.filter_map(|connection| connection.tunnel()) {
            for subflow in established(&tunnel).unwrap_or_default() {
                if let Some(slot) = slot_of(&subflow, uplinks) {
                    *lost.entry(slot).or_default() += u64::from(subflow.retransmitted)
                        .saturating_add(subflow.out_of_order.into());
                }
            }
        }
        for (slot, meter) in &mut self.by_slot {
            let lost = lost.entry(*slot).or_default();
            let before = std::mem::replace(&mut meter.lost, *lost);
            // It is less when a connection has ended.
            *lost = lost.saturating_sub(before);
        }
        lost
    }

    /// The counters read last, by slot.
    pub fn counters(&self) -> LiteMap<u8, Counters> {
        let counters =
            |meter: &Meter| Counters { rx_bytes: meter.rx_bytes, tx_bytes: meter.tx_bytes };
        self.by_slot.iter().map(|(slot, meter)| (*slot, counters(meter))).collect()
    }

    /// Slots of those uplinks that stand by over which data of a connection still arrive, although it
    /// has a subflow elsewhere; `None` where there are none, as the last time.
    pub fn standbys_used(&mut self, proxy: &Proxy, standbys: &[(u8, IpAddr)]) -> Option<Vec<u8>> {
        let used = used_standbys(proxy, standbys);
        let before = std::mem::replace(&mut self.standbys_used, !used.is_empty());
        (before || self.standbys_used).then_some(used)
    }

    /// The meter of the uplink with this slot.
    pub fn of(&self, slot: u8) -> Option<&Meter> {
        self.by_slot.get(&slot)
    }
}

/// Packets received so far by the uplinks' devices, by slot.
pub fn received(uplinks: &[Uplink]) -> LiteMap<u8, u64> {
    let counters = counters_of(uplinks).into_iter();
    counters.map(|(slot, counters)| (slot, counters.rx_packets)).collect()
}

fn counters_of(uplinks: &[Uplink]) -> LiteMap<u8, DeviceCounters> {
    let counters = device_counters().unwrap_or_default();
    let of = |uplink: &Uplink| {
        let device = uplink.device.as_ref()?;
        Some((uplink.slot, *counters.get(&device.name)?))
    };
    uplinks.iter().filter_map(of).collect()
}

/// The uplink that a subflow leaves over.
pub(super) fn slot_of(subflow: &Subflow, uplinks: &[Uplink]) -> Option<u8> {
    let address = subflow.local.ip();
    uplinks.iter().find(|uplink| uplink.has_address(address)).map(|uplink| uplink.slot)
}

/// The established subflows of a connection.
///
/// The kernel lists a closed initial subflow for as long as the connection lives.
fn established(tunnel: &TcpStream) -> Option<Vec<Subflow>> {
    let mut subflows = socket::subflows(tunnel).ok()?;
    subflows.retain(Subflow::is_established);
    Some(subflows)
}

/// The local addresses of a connection's established subflows; `None` for one that is not MPTCP.
pub fn subflow_addresses(connection: &Connection) -> Option<Vec<IpAddr>> {
    let tunnel = connection.tunnel()?;
    socket::is_mptcp(&*tunnel).ok().filter(|&mptcp| mptcp)?;
    Some(established(&tunnel)?.iter().map(|subflow| subflow.local.ip()).collect())
}

/// Searches connections for subflows that are missing. That costs a system call for each, so it is
/// done after what may make one missing alone, and now and then besides.
#[derive(Default)]
pub struct SubflowSearch {
    expected: Vec<(u8, IpAddr)>,
    found: ByConnection<u8>,
    searched: Option<Instant>,
    suspected: Option<Instant>,
}

impl SubflowSearch {
    /// Connections or subflows came or went.
    pub fn suspect(&mut self, now: Instant) {
        self.suspected = Some(now);
    }

    /// Slots of the expected subflows that connections lack; `None` where the last search still holds, or
    /// nothing could be missing. To be called once a second: while connections are without any, that is how
    /// often they are looked for.
    pub fn missing(
        &mut self,
        proxy: &Proxy,
        expected: ByConnection<(u8, IpAddr)>,
        now: Instant,
    ) -> Option<ByConnection<u8>> {
        let due = self.is_due(&expected.settled, now);
        let idle = expected.stranded.is_empty() && self.found.is_empty();
        if idle || (!due && self.found.stranded.is_empty()) {
            return None;
        }
        let before = std::mem::take(&mut self.found);
        let missing = &mut self.found;
        if !due {
            // What was asked for a second ago may still be about to join.
            missing.settled.clone_from(&before.settled);
        }
        for connection in proxy.connections() {
            let Some(tunnel) = connection.tunnel() else { continue };
            let Some(subflows) = established(&tunnel) else { continue };
            let addresses: Vec<_> = subflows.iter().map(|it| it.local.ip()).collect();
            let looks = connection.stranded.get();
            if let Some(first) = addresses.first() {
                connection.stranded.set(0);
                if due && now.saturating_duration_since(connection.since) > SETTLED {
                    let lacked = lacks(Family::of(*first), &addresses, &expected.settled);
                    missing.settled.extend(lacked);
                }
            } else if looks < HOPELESS
                && let Some(server) = socket::joinable_peer(&*tunnel)
            {
                connection.stranded.set(looks.saturating_add(1));
                missing.stranded.extend(lacks(Family::of(server), &[], &expected.stranded));
            }
        }
        for slots in [&mut missing.settled, &mut missing.stranded] {
            slots.sort_unstable();
            slots.dedup();
        }
        if due {
            (self.searched, self.expected) = (Some(now), expected.settled);
        }
        (!before.is_empty() || !self.found.is_empty()).then(|| self.found.clone())
    }

    fn is_due(&self, expected: &[(u8, IpAddr)], now: Instant) -> bool {
        let within = |time: Option<Instant>, limit| {
            time.is_some_and(|time| now.saturating_duration_since(time) < limit)
        };
        let news = !self.found.is_empty()
            || expected != self.expected
            || within(self.suspected, 3 * SETTLED);
        !within(self.searched, if news { SETTLED } else { UNPROVOKED })
    }
}

/// Slots of the expected subflows that are not among those of a connection of this family.
fn lacks(family: Family, subflows: &[IpAddr], expected: &[(u8, IpAddr)]) -> Vec<u8> {
    let of_family = expected.iter().filter(|(_, address)| Family::of(*address) == family);
    of_family.filter(|(_, address)| !subflows.contains(address)).map(|(slot, _)| *slot).collect()
}

fn used_standbys(proxy: &Proxy, standbys: &[(u8, IpAddr)]) -> Vec<u8> {
    if standbys.is_empty() {
        return Vec::new();
    }
    let mut used = Vec::new();
    for tunnel in proxy.connections().iter().filter_map(|connection| connection.tunnel()) {
        let subflows = established(&tunnel).unwrap_or_default();
        let standby = |subflow: &Subflow| {
            let address = subflow.local.ip();
            standbys.iter().find(|(_, standby)| *standby == address).map(|(slot, _)| *slot)
        };
        if subflows.iter().any(|subflow| standby(subflow).is_none()) {
            let fed = subflows.iter().filter(|subflow| subflow.data_ago < STILL);
            used.extend(fed.filter_map(standby));
        }
    }
    used.sort_unstable();
    used.dedup();
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subflows_are_searched_after_news_until_none_is_missing() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let expected = [(0, IpAddr::from([192, 0, 2, 10]))];
        let mut search = SubflowSearch::default();
        assert!(search.is_due(&[], at(0)), "never searched");
        search.searched = Some(at(0));
        assert!(!search.is_due(&expected, at(4)), "not too often");
        assert!(search.is_due(&expected, at(5)), "another subflow is expected");
        (search.expected, search.searched) = (expected.into(), Some(at(5)));
        assert!(!search.is_due(&expected, at(60)), "nothing happened");
        assert!(search.is_due(&expected, at(125)), "now and then");
        search.suspect(at(30));
        assert!(search.is_due(&expected, at(31)));
        search.searched = Some(at(31));
        assert!(!search.is_due(&expected, at(35)));
        assert!(search.is_due(&expected, at(36)), "what was new then is settled now");
        search.searched = Some(at(41));
        assert!(!search.is_due(&expected, at(46)));
        search.found.settled = vec![0];
        assert!(search.is_due(&expected, at(46)), "until none is missing");
    }

    #[test]
    fn a_connection_lacks_subflows_of_its_own_family_only() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let expected = [(0, address("192.0.2.10")), (1, address("192.0.2.20"))];
        assert_eq!(lacks(Family::V4, &[address("192.0.2.20")], &expected), [0]);
        assert_eq!(lacks(Family::V6, &[address("2001:db8::2")], &expected), [0; 0]);
        assert_eq!(lacks(Family::V4, &[], &expected), [0, 1]);
    }
}
