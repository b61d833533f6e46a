//! What is measured of uplinks and connections: rates, and subflows that are missing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::controller::Controller;
use crate::failover::InForce;
use crate::health::State;
use crate::net::Family;
use crate::os::counters::device_bytes;
use crate::os::socket;
use crate::proxy::{Connection, Proxy};
use crate::status::RateMeter;
use crate::uplink::Uplink;

/// A connection has this long to get a subflow on each uplink in force.
const SETTLED: Duration = Duration::from_secs(5);

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
}

/// The meters of all uplinks.
#[derive(Default)]
pub struct Meters {
    by_slot: BTreeMap<u8, Meter>,
}

impl Meters {
    /// Reads the devices' counters; the rates in bits a second, both directions added, by slot.
    pub fn measure(&mut self, uplinks: &[Uplink], now: Instant) -> BTreeMap<u8, u64> {
        self.by_slot.retain(|slot, _| uplinks.iter().any(|uplink| uplink.slot == *slot));
        let mut rates = BTreeMap::new();
        let counters = device_bytes().unwrap_or_default();
        for uplink in uplinks {
            let device = uplink.device.as_ref();
            let Some((rx, tx)) = device.and_then(|device| counters.get(&device.name).copied())
            else {
                self.by_slot.remove(&uplink.slot);
                continue;
            };
            let meter = self.by_slot.entry(uplink.slot).or_default();
            meter.rx.sample(now, rx);
            meter.tx.sample(now, tx);
            (meter.rx_bytes, meter.tx_bytes) = (rx, tx);
            rates.insert(uplink.slot, meter.rx.bps().saturating_add(meter.tx.bps()));
        }
        rates
    }

    /// The meter of the uplink with this slot.
    pub fn of(&self, slot: u8) -> Option<&Meter> {
        self.by_slot.get(&slot)
    }
}

/// The local addresses of a connection's established subflows; `None` for one that is not MPTCP.
///
/// The kernel lists a closed initial subflow for as long as the connection lives.
pub fn subflow_addresses(connection: &Connection) -> Option<Vec<IpAddr>> {
    let tunnel = connection.tunnel()?;
    socket::is_mptcp(&*tunnel).ok().filter(|&mptcp| mptcp)?;
    let subflows = socket::subflows(&*tunnel).ok()?;
    let established = subflows.iter().filter(|subflow| subflow.is_established());
    Some(established.map(|subflow| subflow.local.ip().to_canonical()).collect())
}

/// Slots of uplinks in force on which a settled connection has no subflow.
pub fn missing_subflows(proxy: &Proxy, controller: &Controller) -> Vec<u8> {
    let Some(server) = controller.server().in_use else { return Vec::new() };
    let wanted: Vec<(u8, IpAddr)> = controller
        .assignments()
        .iter()
        .filter(|assignment| assignment.in_force != InForce::Unused)
        .filter(|assignment| {
            controller.health(assignment.slot).is_some_and(|health| {
                matches!(health.state(), State::Up | State::Degraded)
                    && health.since().elapsed() > SETTLED
            })
        })
        .filter_map(|assignment| {
            let uplink = controller.uplinks().iter().find(|u| u.slot == assignment.slot)?;
            Some((assignment.slot, uplink.path(Family::of(server))?.address))
        })
        .collect();
    let settled: Vec<Vec<IpAddr>> = proxy
        .connections()
        .iter()
        .filter(|connection| connection.since.elapsed() > SETTLED)
        .filter_map(|connection| subflow_addresses(connection))
        .filter(|addresses| !addresses.is_empty())
        .collect();
    wanted
        .into_iter()
        .filter(|(_, address)| settled.iter().any(|addresses| !addresses.contains(address)))
        .map(|(slot, _)| slot)
        .collect()
}
