//! Uplinks, their health and the configured roles become the roles in force.

use std::fmt;
use std::time::{Duration, Instant};

use litemap::LiteMap;

use crate::config::agent::{QuotaAction, Role};
use crate::floor::Burden;
use crate::health::{Health, State};
use crate::net::{Family, MAX_ENDPOINTS};
use crate::quota::Cap;
use crate::uplink::{Fault, Uplink};

/// How long after the server's return uplinks may still be silent without being taken out: the
/// replies to probes in the slow interval of a down uplink have to arrive first.
const RETURN_GRACE: Duration = Duration::from_secs(3);

/// What an uplink is used for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InForce {
    /// Carries traffic.
    Active,
    /// Has subflows that stand by.
    Backup,
    /// Has no endpoint.
    Unused,
}

/// Why it is used so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A bond uplink whose probes are answered.
    Live,
    /// A bond uplink that loses many probes.
    Lossy,
    /// A bond uplink that loses so many that it stands by for one that does not.
    TooLossy,
    /// A bond uplink with a much longer RTT than it can have.
    Slow(Duration),
    /// Its subflows carry data, but no probe gets through.
    BySubflows,
    /// It was down, and may be able to carry subflows though not probes.
    Trial,
    /// There is no session to probe with, or no reply could come yet.
    Unprobed,
    /// A backup while a bond uplink is live.
    Standby,
    /// An overflow uplink while the bond uplinks have room.
    Overflow,
    /// An overflow uplink while they have none.
    Saturated,
    /// Its quota is reached: it stands by, or is switched off.
    Capped(Cap),
    /// A bond uplink that slows another one down, or may.
    Burden(Burden),
    /// An uplink that stood by, while no bond uplink is live.
    TookOver,
    /// Its probes are not answered, but nor are those of any other uplink.
    ServerSilent,
    /// Its probes are not answered.
    Unanswered(Duration),
    /// They are again; as it flaps, they have to be for so long from now on.
    HeldDown(Duration),
    /// It cannot be used.
    Fault(Fault),
    /// The kernel takes no more endpoints.
    TooMany,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Live => f.write_str("probes answered"),
            Reason::Lossy => f.write_str("probes answered, many lost"),
            Reason::TooLossy => {
                f.write_str("loses so many probes that it would slow the other uplinks down")
            }
            Reason::Slow(rtt) => {
                write!(f, "probes answered, but only after {} ms", rtt.as_millis())
            }
            Reason::BySubflows => {
                f.write_str("subflows get through; UDP does not, so failures show later")
            }
            Reason::Trial => f.write_str("on trial: probes are not answered, subflows may be"),
            Reason::Unprobed => f.write_str("not probed yet"),
            Reason::Standby => f.write_str("stands by for the bond uplinks"),
            Reason::Overflow => f.write_str("stands by until the bond uplinks are saturated"),
            Reason::Saturated => f.write_str("the bond uplinks are saturated"),
            Reason::Capped(cap) => cap.fmt(f),
            Reason::Burden(burden) => burden.fmt(f),
            Reason::TookOver => f.write_str("no bond uplink is live"),
            Reason::ServerSilent => f.write_str("the server answers on no uplink"),
            Reason::Unanswered(time) if time.as_secs() == 0 => f.write_str("probes unanswered"),
            Reason::Unanswered(time) => write!(f, "probes unanswered for {} s", time.as_secs()),
            Reason::HeldDown(time) => {
                write!(f, "goes and comes; used again in {} s if it stays", time.as_secs())
            }
            Reason::Fault(fault) => fault.fmt(f),
            Reason::TooMany => {
                write!(
                    f,
                    "the kernel takes {MAX_ENDPOINTS} endpoints: set the role 'off' elsewhere"
                )
            }
        }
    }
}

/// The role in force of one uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The uplink's name.
    pub name: String,
    /// The uplink's slot.
    pub slot: u8,
    /// What it is used for.
    pub in_force: InForce,
    /// Why.
    pub reason: Reason,
}

/// Decides roles; remembers when the server was last silent on all uplinks, and what bears on roles
/// besides health.
#[derive(Clone, Debug, Default)]
pub struct Failover {
    /// Quotas that are reached, by uplink.
    caps: LiteMap<String, Cap>,
    /// Whether the bond uplinks are saturated.
    saturated: bool,
    /// Bond uplinks that stand by for others, by slot.
    burdens: LiteMap<u8, Burden>,
    silent: bool,
    returned: Option<Instant>,
}

/// Whether traffic can go over an uplink.
enum Fitness {
    Live(Reason),
    Unfit(Reason),
}

impl Failover {
    /// Takes note of the quotas that are reached, by uplink.
    pub fn set_caps(&mut self, caps: LiteMap<String, Cap>) {
        self.caps = caps;
    }

    /// Takes note of whether the bond uplinks are saturated.
    pub fn set_saturated(&mut self, saturated: bool) {
        self.saturated = saturated;
    }

    /// Takes note of the bond uplinks that stand by for better ones, by slot.
    pub fn set_burdens(&mut self, burdens: LiteMap<u8, Burden>) {
        self.burdens = burdens;
    }

    /// Whether an uplink is switched off because its quota is reached.
    pub fn is_capped_off(&self, uplink: &str) -> bool {
        self.caps.get(uplink).is_some_and(|cap| cap.quota.action == QuotaAction::Off)
    }

    /// The role to go by, of which a quota or a better uplink may be the cause.
    pub fn role(&self, uplink: &Uplink) -> Role {
        self.role_and_cause(uplink).0
    }

    /// The role to go by, and why if it is not the configured one: a quota that is reached takes
    /// the place of any role but `off`; a bond uplink that slows others down stands by.
    fn role_and_cause(&self, uplink: &Uplink) -> (Role, Option<Reason>) {
        match (self.caps.get(&uplink.name), self.burdens.get(&uplink.slot)) {
            (Some(cap), _) if uplink.role != Role::Off => match cap.quota.action {
                QuotaAction::Backup => (Role::Backup, Some(Reason::Capped(*cap))),
                QuotaAction::Off => (Role::Off, Some(Reason::Capped(*cap))),
            },
            (_, Some(burden)) if uplink.role == Role::Bond => {
                (Role::Backup, Some(Reason::Burden(*burden)))
            }
            _ => (uplink.role, None),
        }
    }

    /// Whether an uplink is one of those that carry traffic as long as they can.
    pub fn bonds(&self, uplink: &Uplink) -> bool {
        uplink.role == Role::Bond && !self.caps.contains_key(&uplink.name)
    }

    /// The roles in force, an entry for each uplink.
    ///
    /// `healths[i]` belongs to `uplinks[i]`; a missing one is taken as unprobed. `families` are those
    /// of the server's addresses in use. Silence is held against an uplink only while another one
    /// shows that the server is there.
    pub fn assign(
        &mut self,
        uplinks: &[Uplink],
        healths: &[&Health],
        families: &[Family],
        now: Instant,
    ) -> Vec<Assignment> {
        self.note_silence(uplinks, healths, families, now);
        let fitness: Vec<Fitness> = uplinks
            .iter()
            .enumerate()
            .map(|(index, uplink)| match uplink.fault_in(families) {
                Some(fault) => Fitness::Unfit(Reason::Fault(fault)),
                None => match healths.get(index) {
                    Some(health) => self.judge(health, healths, now),
                    None => Fitness::Live(Reason::Unprobed),
                },
            })
            .collect();
        let any_bond = |fits: &dyn Fn(&Reason) -> bool| {
            uplinks.iter().zip(&fitness).any(|(uplink, fitness)| {
                let fits = matches!(fitness, Fitness::Live(reason) if fits(reason));
                self.role(uplink) == Role::Bond && fits
            })
        };
        // One on trial may well be dead: a backup goes on meanwhile.
        let bond_live = any_bond(&|reason| *reason != Reason::Trial);
        let bond_well =
            any_bond(&|reason| matches!(reason, Reason::Live | Reason::Lossy | Reason::BySubflows));
        let mut assignments: Vec<Assignment> = uplinks
            .iter()
            .zip(fitness)
            .map(|(uplink, fitness)| {
                let (role, instead) = self.role_and_cause(uplink);
                let because = |reason| instead.unwrap_or(reason);
                let (in_force, reason) = match (fitness, role) {
                    (Fitness::Unfit(reason), _) => (InForce::Unused, reason),
                    (Fitness::Live(Reason::TooLossy), Role::Bond) => match bond_well {
                        true => (InForce::Backup, Reason::TooLossy),
                        false => (InForce::Active, Reason::Lossy),
                    },
                    (Fitness::Live(reason), Role::Bond) => (InForce::Active, reason),
                    (Fitness::Live(_), Role::Backup) if bond_live => {
                        (InForce::Backup, because(Reason::Standby))
                    }
                    (Fitness::Live(_), Role::Overflow) if bond_live && self.saturated => {
                        (InForce::Active, Reason::Saturated)
                    }
                    (Fitness::Live(_), Role::Overflow) if bond_live => {
                        (InForce::Backup, Reason::Overflow)
                    }
                    (Fitness::Live(_), Role::Backup | Role::Overflow) => {
                        (InForce::Active, Reason::TookOver)
                    }
                    (Fitness::Live(_), Role::Off) => {
                        (InForce::Unused, because(Reason::Fault(Fault::SwitchedOff)))
                    }
                };
                Assignment { name: uplink.name.clone(), slot: uplink.slot, in_force, reason }
            })
            .collect();
        cap(&mut assignments);
        assignments
    }

    /// When the answer of [`Failover::assign`] may change by time alone.
    pub fn deadline(&self) -> Option<Instant> {
        self.returned.map(|returned| returned + RETURN_GRACE)
    }

    fn note_silence(
        &mut self,
        uplinks: &[Uplink],
        healths: &[&Health],
        families: &[Family],
        now: Instant,
    ) {
        let mut probed = uplinks
            .iter()
            .zip(healths)
            .filter(|(uplink, health)| uplink.fault_in(families).is_none() && health.is_probed())
            .peekable();
        let silent =
            probed.peek().is_some() && probed.all(|(_, health)| health.state() == State::Down);
        if self.silent && !silent {
            self.returned = Some(now);
        }
        self.silent = silent;
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.returned = None;
        }
    }

    fn judge(&self, health: &Health, all: &[&Health], now: Instant) -> Fitness {
        match health.state() {
            State::Up if health.is_by_subflows() => Fitness::Live(Reason::BySubflows),
            State::Up => Fitness::Live(Reason::Live),
            State::Unknown if health.is_trial() => Fitness::Live(Reason::Trial),
            State::Degraded if health.is_lossy() => Fitness::Live(Reason::TooLossy),
            State::Degraded if health.is_slow() => {
                // To a tenth of a second: the reason is not another one with each probe.
                let tenths = health.srtt().unwrap_or_default().as_millis() / 100;
                Fitness::Live(Reason::Slow(Duration::from_millis(tenths as u64 * 100)))
            }
            State::Degraded => Fitness::Live(Reason::Lossy),
            State::Unknown => Fitness::Live(Reason::Unprobed),
            State::Down => {
                // It may have answered meanwhile, and fail anew: that it is dead is known already.
                let failing = health.failing_since().unwrap_or(now).min(health.since());
                let server_answers =
                    all.iter().any(|other| other.last_reply().is_some_and(|reply| reply > failing));
                let whole = |time: Duration| Duration::from_secs(time.as_secs());
                if self.silent || self.returned.is_some() || !server_answers {
                    Fitness::Live(Reason::ServerSilent)
                } else if let Some(until) = health.held_until() {
                    let left = until.saturating_duration_since(now);
                    Fitness::Unfit(Reason::HeldDown(whole(left) + Duration::from_secs(1)))
                } else {
                    let silence = now.saturating_duration_since(health.since());
                    Fitness::Unfit(Reason::Unanswered(whole(silence)))
                }
            }
        }
    }
}

/// Takes endpoints beyond what the kernel holds out of force, standby ones first.
fn cap(assignments: &mut [Assignment]) {
    let mut left = MAX_ENDPOINTS;
    for wanted in [InForce::Active, InForce::Backup] {
        for assignment in assignments.iter_mut().filter(|a| a.in_force == wanted) {
            match left.checked_sub(1) {
                Some(less) => left = less,
                None => {
                    assignment.in_force = InForce::Unused;
                    assignment.reason = Reason::TooMany;
                }
            }
        }
    }
}

/// The slots to dial the server through, best first: active before backup, answered before
/// unanswered, overflow uplinks after those they help, then by smoothed RTT, unknown last.
pub fn best(assignments: &[Assignment], uplinks: &[Uplink], healths: &[&Health]) -> Vec<u8> {
    let mut ranked: Vec<_> = assignments
        .iter()
        .filter(|assignment| assignment.in_force != InForce::Unused)
        .map(|assignment| {
            let health = uplinks
                .iter()
                .zip(healths)
                .find(|(uplink, _)| uplink.slot == assignment.slot)
                .map(|(_, health)| health);
            let srtt = health.and_then(|health| health.srtt()).unwrap_or(Duration::MAX);
            let down = health.is_some_and(|h| h.state() == State::Down || h.is_trial());
            let helps = assignment.reason == Reason::Saturated;
            ((assignment.in_force == InForce::Backup, down, helps, srtt), assignment.slot)
        })
        .collect();
    ranked.sort();
    ranked.into_iter().map(|(_, slot)| slot).collect()
}

#[cfg(test)]
mod tests;
