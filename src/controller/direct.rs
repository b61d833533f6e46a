//! Over which uplink leaves what is not tunnelled, and whose flows have to move.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use litemap::LiteMap;

use super::opinions::{Opinion, Opinions};
use super::told::{News, Told};
use super::{Action, Controller};
use crate::config::agent::Role;
use crate::desired::{self, Direct};
use crate::failover::{Assignment, InForce, Reason};
use crate::health::{Health, State};
use crate::net::{Family, Kernel, MAIN, Prefix, RouteKind};
use crate::uplink::Uplink;

/// A round trip shorter by less than this is no reason to prefer another uplink.
const RTT_MARGIN: Duration = Duration::from_millis(5);

/// What is known of the uplinks.
struct View<'a> {
    uplinks: &'a [Uplink],
    assignments: &'a [Assignment],
    health: &'a LiteMap<u8, Health>,
    opinions: &'a Opinions,
    kernel: &'a Kernel,
}

impl Controller {
    /// Chooses where untunnelled traffic leaves from now on, and tells of a change.
    pub(super) fn choose_direct(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let chosen = self.direct.choose(&self.direct_view());
        for (family, direct) in &chosen {
            let uplink = self.uplinks.iter().find(|uplink| uplink.slot == direct.slot);
            let news = self.direct.told.note(*family, direct.slot, now);
            if let (true, Some(News::Now), Some(uplink)) =
                (self.direct.paths.contains_key(family), news, uplink)
            {
                let text = format!("untunnelled {family} now leaves over {}", uplink.name);
                actions.push(Action::Log(log::Level::Info, text));
            }
        }
        self.direct.paths = chosen;
    }

    /// The families in which untunnelled traffic leaves over the uplink with this slot.
    pub fn untunnelled(&self, slot: u8) -> impl Iterator<Item = Family> {
        let paths = self.direct.paths.iter().filter(|_| self.config.idle_reason().is_none());
        paths.filter(move |(_, direct)| direct.slot == slot).map(|(family, _)| *family)
    }

    /// Whether it should leave elsewhere than it does.
    pub(super) fn direct_differs(&self) -> bool {
        self.direct.paths != self.direct.choose(&self.direct_view())
    }

    /// Has flows forgotten that are bound to an uplink no longer live, so that they take another.
    pub(super) fn leave_dead_uplinks(&mut self, actions: &mut Vec<Action>) {
        let mut direct = std::mem::take(&mut self.direct);
        let addresses = direct.leave(&self.direct_view());
        self.direct = direct;
        if !addresses.is_empty() && self.config.idle_reason().is_none() {
            actions.push(Action::ForgetFlows(addresses));
        }
    }

    fn direct_view(&self) -> View<'_> {
        View {
            uplinks: &self.uplinks,
            assignments: &self.assignments,
            health: &self.health,
            opinions: &self.opinions,
            kernel: &self.kernel,
        }
    }
}

/// The choice for each family, and the uplinks whose flows were sent elsewhere.
#[derive(Default)]
pub(super) struct DirectTraffic {
    paths: LiteMap<Family, Direct>,
    /// Whether it was for silence, and not for a fault that shows by itself when it is gone.
    left: LiteMap<(Family, u8), bool>,
    /// What the user was told of the slots chosen.
    told: Told<Family, u8>,
}

/// How good an uplink is for untunnelled traffic, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Good,
    Lossy,
    Standby,
    /// It cannot reach the server in the server's family, and may do well in the other; or not at
    /// all, while a check found that the Internet works over it.
    Unproven,
    /// It is silent: better than nothing.
    Dead,
}

impl DirectTraffic {
    /// The choice for each family; a missing one is left to the main table.
    pub(super) fn paths(&self) -> &LiteMap<Family, Direct> {
        &self.paths
    }

    fn choose(&self, view: &View) -> LiteMap<Family, Direct> {
        let choose = |family| self.choose_in(family, view).map(|direct| (family, direct));
        Family::ALL.into_iter().filter_map(choose).collect()
    }

    /// The uplink of the main table's default route stays in use while it is as good as any, so that
    /// the metrics that somebody gave still mean something.
    fn choose_in(&self, family: Family, view: &View) -> Option<Direct> {
        let main = match view.default_route(family) {
            // Without one private IPv6 sources get an error at once, and IPv4 takes over.
            DefaultRoute::None if family == Family::V6 => return None,
            DefaultRoute::None => None,
            DefaultRoute::Over(slot) => Some(slot),
            DefaultRoute::Elsewhere => return None,
        };
        let uplinks = view.uplinks.iter();
        let ranks: LiteMap<u8, Rank> = uplinks
            .filter_map(|uplink| Some((uplink.slot, self.rank(uplink, family, view)?)))
            .collect();
        let best = ranks.values().min()?;
        let equals = || ranks.iter().filter(|(_, rank)| *rank == best).map(|(slot, _)| *slot);
        let before = self.paths.get(&family).map(|direct| direct.slot);
        let used = [main, before].into_iter().flatten().find(|slot| ranks.get(slot) == Some(best));
        let used = used.or(equals().next())?;
        let nearer = equals().filter(|&slot| view.nearer(slot, used));
        let main_lives = main.is_some_and(|main| ranks.get(&main).is_some_and(|it| is_live(*it)));
        Some(Direct {
            slot: nearer.min_by_key(|&slot| view.rtt(slot)).unwrap_or(used),
            own: !main_lives,
        })
    }

    /// `None` where it cannot be used at all. One that was left for its silence stays dead until it is
    /// heard again: that the server falls silent as well is no sign of life.
    fn rank(&self, uplink: &Uplink, family: Family, view: &View) -> Option<Rank> {
        if uplink.fault(family).is_some() {
            return None;
        }
        let state = view.health.get(&uplink.slot)?.state();
        let heard = matches!(state, State::Up | State::Degraded);
        let was_silent = self.left.get(&(family, uplink.slot)).is_some_and(|silent| *silent);
        let assignment = view.assignments.iter().find(|it| it.slot == uplink.slot)?;
        let rank = match (assignment.in_force, &assignment.reason) {
            (InForce::Active | InForce::Backup, _) if was_silent && !heard => Some(Rank::Dead),
            (InForce::Active, _) if state == State::Degraded => Some(Rank::Lossy),
            (InForce::Active, _) => Some(Rank::Good),
            (InForce::Backup, _) => Some(Rank::Standby),
            (InForce::Unused, Reason::Fault(_) | Reason::TooMany) => Some(Rank::Unproven),
            (InForce::Unused, Reason::Unanswered(_) | Reason::HeldDown(_)) => Some(Rank::Dead),
            (InForce::Unused, _) => None,
        };
        // That the server is silent over it may be the server's fault, and a check could tell.
        match view.opinions.of(uplink.slot).filter(|_| !heard) {
            Some(Opinion::Fails(_)) => rank.map(|_| Rank::Dead),
            Some(Opinion::Works) if rank == Some(Rank::Dead) => Some(Rank::Unproven),
            _ => rank,
        }
    }

    /// The addresses of the uplinks that have ceased to be live although another one is: their flows
    /// are to be forgotten, once, after the choice is in force.
    fn leave(&mut self, view: &View) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        for (&family, direct) in &self.paths {
            for uplink in view.uplinks.iter().filter(|uplink| uplink.role != Role::Off) {
                let id = (family, uplink.slot);
                if self.rank(uplink, family, view).is_some_and(is_live) {
                    self.left.remove(&id);
                } else if uplink.slot != direct.slot
                    && self.left.insert(id, uplink.fault(family).is_none()).is_none()
                {
                    addresses.extend(desired::addresses(uplink, family, view.kernel));
                }
            }
        }
        addresses
    }
}

fn is_live(rank: Rank) -> bool {
    rank < Rank::Dead
}

impl View<'_> {
    /// The least round-trip time seen: unlike the smoothed one it does not change with the load.
    fn rtt(&self, slot: u8) -> Option<Duration> {
        self.health.get(&slot)?.rtt().least()
    }

    /// Whether one uplink is so much nearer than another that it is worth a change: at half the
    /// round-trip time, clearly. Both have to be known.
    fn nearer(&self, slot: u8, than: u8) -> bool {
        let both = self.rtt(slot).zip(self.rtt(than));
        both.is_some_and(|(rtt, other)| rtt + RTT_MARGIN < other / 2)
    }

    fn default_route(&self, family: Family) -> DefaultRoute {
        let main = self.kernel.routes.iter().filter(|route| {
            route.table == MAIN
                && route.kind == RouteKind::Unicast
                && route.destination == Prefix::default_route(family)
                && route.from.is_none()
        });
        let Some(route) = main.min_by_key(|route| route.metric) else { return DefaultRoute::None };
        let over = |uplink: &&Uplink| {
            uplink.device.as_ref().is_some_and(|device| device.index == route.device)
        };
        match self.uplinks.iter().find(over) {
            Some(uplink) => DefaultRoute::Over(uplink.slot),
            None => DefaultRoute::Elsewhere,
        }
    }
}

/// Where the main table's best default route for any source leads.
enum DefaultRoute {
    /// There is none.
    None,
    /// Over the uplink with this slot.
    Over(u8),
    /// Over something else, such as a VPN: that is somebody's wish.
    Elsewhere,
}
