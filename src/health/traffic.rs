//! Whether packets still arrive on an uplink over which traffic flows.
//!
//! TCP's acknowledgements come back on the subflow that data left on, so an uplink that carries data
//! either way receives packets all the time; when they stop, the path may have. The next probe tells.

use std::time::{Duration, Instant};

/// Fewer packets a second than this come with natural pauses and show nothing.
const LEAST_RATE: f64 = 40.0;
/// Below this share of the packets expected there is silence: broadcasts arrive over a dead path, too.
const NOISE: f64 = 0.05;
/// The rate is averaged over this time, in seconds.
const AVERAGE_OVER: f64 = 0.5;
/// Below this share of them the flow has collapsed, as it does within some round trips where packets
/// are lost at random (Mathis et al. 1997).
const COLLAPSE: f64 = 0.5;
/// Where fewer packets a second arrive, half of them missing in one look is nothing unusual.
const STEADY_RATE: f64 = 400.0;
/// Silence for so long is suspicious.
const QUIET: Duration = Duration::from_millis(75);
/// Silence for so long, and unanswered probes, is a dead path, on an uplink that never stalls.
const DEAD: Duration = Duration::from_millis(200);
/// The longest stall that an uplink's users are better off waiting for.
const STALL_MAX: Duration = Duration::from_millis(700);
/// How long an uplink's stalls are remembered.
const MEMORY: Duration = Duration::from_secs(600);

/// The packets that arrive on one uplink's device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    last: Option<(Instant, u64)>,
    /// Packets a second.
    rate: f64,
    quiet_since: Option<Instant>,
    /// A silence ended by a reply to a probe, and the rate before it: a stall if packets follow.
    ended: Option<(Duration, f64)>,
    /// The last two stalls, and when they ended.
    stalls: [Option<(Duration, Instant)>; 2],
}

impl Traffic {
    /// Takes the device's count of packets received; to be called every 50 ms or so. Whether far fewer
    /// arrive than just before: there are losses, or the transfer has ended.
    pub fn count(&mut self, now: Instant, packets: u64) -> bool {
        let Some((before, counted)) = self.last.replace((now, packets)) else { return false };
        let seconds = now.saturating_duration_since(before).as_secs_f64();
        // A count that fell is another device's.
        let Some(arrived) = packets.checked_sub(counted).filter(|_| seconds > 0.0) else {
            self.stop();
            return false;
        };
        let arrived = arrived as f64;
        let collapsed = self.rate >= STEADY_RATE && arrived < self.rate * seconds * COLLAPSE;
        if self.rate >= LEAST_RATE && arrived < self.rate * seconds * NOISE {
            self.quiet_since.get_or_insert(before);
            return collapsed;
        }
        if let Some(since) = self.quiet_since.take() {
            self.remember(now.saturating_duration_since(since), now);
        }
        if let Some((stall, rate)) = self.ended.take()
            && arrived >= rate * seconds * NOISE
        {
            self.remember(stall, now);
        }
        let weight = (seconds / AVERAGE_OVER).min(1.0);
        self.rate += (arrived / seconds - self.rate) * weight;
        collapsed
    }

    /// The path proved to be alive by the reply to a probe: the transfer may have ended.
    pub fn revive(&mut self, now: Instant) {
        if let Some(since) = self.quiet_since.take() {
            let silence = now.saturating_duration_since(since);
            self.ended = Some((silence, std::mem::take(&mut self.rate)));
        }
    }

    /// No traffic is expected any more.
    pub fn stop(&mut self) {
        *self = Traffic { stalls: self.stalls, ..Traffic::default() };
    }

    fn remember(&mut self, stall: Duration, now: Instant) {
        if (QUIET..=STALL_MAX).contains(&stall) {
            self.stalls = [self.stalls[1], Some((stall, now))];
        }
    }

    /// Since when there is suspicious silence.
    pub fn quiet_since(&self, now: Instant) -> Option<Instant> {
        self.silent_for(QUIET, now)
    }

    /// Since when there is silence that with unanswered probes means a dead path. An uplink that
    /// stalls now and then by nature, as radio does, is given longer.
    pub fn dead_since(&self, now: Instant) -> Option<Instant> {
        let lately = |(stall, at): (Duration, Instant)| {
            (now.saturating_duration_since(at) < MEMORY).then_some(stall * 3 / 2)
        };
        let usual = self.stalls.map(|stall| stall.and_then(lately).unwrap_or_default());
        self.silent_for(usual[0].min(usual[1]).max(DEAD), now)
    }

    fn silent_for(&self, least: Duration, now: Instant) -> Option<Instant> {
        self.quiet_since.filter(|&since| now.saturating_duration_since(since) >= least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Counts packets each 50 ms.
    struct Device {
        traffic: Traffic,
        now: Instant,
        packets: u64,
    }

    impl Device {
        /// One on which 1,000 packets a second have been arriving.
        fn busy() -> Device {
            let mut device =
                Device { traffic: Traffic::default(), now: Instant::now(), packets: 0 };
            device.run(2000, 50);
            device
        }

        /// Lets time pass with so many packets each 50 ms.
        fn run(&mut self, ms: u64, packets: u64) {
            for _ in 0..ms / 50 {
                self.now += 50 * MS;
                self.packets += packets;
                self.traffic.count(self.now, self.packets);
            }
        }

        fn quiet(&self) -> bool {
            self.traffic.quiet_since(self.now).is_some()
        }

        fn dead(&self) -> bool {
            self.traffic.dead_since(self.now).is_some()
        }
    }

    #[test]
    fn silence_is_suspicious_and_then_means_a_dead_path() {
        let mut device = Device::busy();
        assert!(!device.quiet());
        // The odd broadcast does not count.
        device.run(100, 1);
        assert!(device.quiet() && !device.dead());
        device.run(100, 1);
        assert!(device.dead());
        assert_eq!(device.traffic.dead_since(device.now), Some(device.now - 200 * MS));
    }

    #[test]
    fn thin_traffic_shows_nothing() {
        let mut device = Device { packets: 0, ..Device::busy() };
        device.traffic.stop();
        device.run(2000, 1);
        device.run(1000, 0);
        assert!(!device.quiet());
    }

    #[test]
    fn an_uplink_that_stalls_by_nature_is_given_longer() {
        let mut device = Device::busy();
        for _ in 0..2 {
            device.run(300, 0);
            assert!(device.dead(), "once is no habit");
            device.run(2000, 50);
            assert!(!device.quiet());
        }
        device.run(500, 0);
        assert!(device.quiet() && !device.dead());
        device.run(100, 0);
        assert!(device.dead());
        // A long outage is no stall to get used to.
        device.run(5000, 0);
        device.run(2000, 50);
        device.run(600, 0);
        assert!(device.dead());
        device.run(5000, 0);
        device.now += MEMORY;
        device.run(2000, 50);
        device.run(200, 0);
        assert!(device.dead(), "stalls are forgotten");
    }

    #[test]
    fn a_reply_ends_the_silence_of_a_transfer_that_ended() {
        let mut device = Device::busy();
        device.run(150, 0);
        device.traffic.revive(device.now);
        device.run(1000, 0);
        assert!(!device.quiet());
        device.run(1000, 50);
        device.run(200, 0);
        assert!(device.dead(), "the next transfer is watched, and the end of one is no stall");
    }

    #[test]
    fn another_device_starts_anew() {
        let mut device = Device::busy();
        device.packets = 0;
        device.run(1000, 0);
        assert!(!device.quiet());
    }
}
