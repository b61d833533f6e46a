use super::*;
use crate::config::agent::{Quota, UplinkConfig};
use crate::health::Policy;
use crate::quota::Standing;
use crate::uplink::observe;
use crate::uplink::tests::{address, config, default_via, link};

/// Uplinks u0, u1, ... with these roles, and probes answered or not.
struct Lab {
    uplinks: Vec<Uplink>,
    healths: Vec<Health>,
    failover: Failover,
    now: Instant,
    seq: u64,
}

impl Lab {
    fn new(roles: &[Role]) -> Lab {
        let now = Instant::now();
        let mut kernel = crate::net::Kernel::default();
        let mut configs: Vec<UplinkConfig> = Vec::new();
        for (n, &role) in (0u32..).zip(roles) {
            let (index, link) = link(n + 2, &format!("e{n}"));
            kernel.links.insert(index, link);
            kernel.addresses.push(address(n + 2, &format!("10.0.{n}.2/24")));
            kernel.routes.push(default_via(n + 2, &format!("10.0.{n}.1"), n));
            configs.push(config(&format!("u{n}"), &format!("e{n}"), role));
        }
        Lab {
            uplinks: observe(&configs, &kernel, &[]),
            healths: roles.iter().map(|_| Health::new(Policy::default(), now)).collect(),
            failover: Failover::default(),
            now,
            seq: 0,
        }
    }

    /// Lets time pass; uplink n answers after `rtts[n]` milliseconds. Each state of affairs that
    /// differs from the one before is returned.
    fn run(&mut self, ms: u64, rtts: &[Option<u64>]) -> Vec<String> {
        let mut seen: Vec<String> = Vec::new();
        let mut replies: Vec<(Instant, usize, u64)> = Vec::new();
        for _ in 0..ms / 10 {
            self.now += Duration::from_millis(10);
            for &(at, index, seq) in &replies {
                if at <= self.now {
                    self.healths[index].on_reply(self.now, seq);
                }
            }
            replies.retain(|&(at, ..)| at > self.now);
            for (index, health) in self.healths.iter_mut().enumerate() {
                health.set_active(true);
                health.poll(self.now);
                if health.takes_probe(self.now) {
                    self.seq += 1;
                    health.on_sent(self.now, self.seq);
                    if let Some(rtt) = rtts[index] {
                        replies.push((self.now + Duration::from_millis(rtt), index, self.seq));
                    }
                }
            }
            let state = self.state();
            if seen.last() != Some(&state) {
                seen.push(state);
            }
        }
        seen
    }

    fn assign(&mut self) -> Vec<Assignment> {
        let healths: Vec<&Health> = self.healths.iter().collect();
        self.failover.assign(&self.uplinks, &healths, &[Family::V4], self.now)
    }

    /// For instance `active backup unused`.
    fn state(&mut self) -> String {
        let words: Vec<String> =
            self.assign().iter().map(|a| format!("{:?}", a.in_force).to_lowercase()).collect();
        words.join(" ")
    }
}

const FAST: Option<u64> = Some(20);
const FAR: Option<u64> = Some(80);

#[test]
fn roles_in_force_follow_the_live_bond_uplinks() {
    let mut lab = Lab::new(&[Role::Bond, Role::Backup, Role::Overflow, Role::Off]);
    assert_eq!(lab.run(5000, &[FAST; 4]), ["active backup backup unused"]);
    let after = lab.run(5000, &[None, FAST, FAST, FAST]);
    assert_eq!(after, ["active backup backup unused", "unused active active unused"]);
    let reasons: Vec<String> = lab.assign().iter().map(|a| a.reason.to_string()).collect();
    assert_eq!(
        reasons,
        [
            "probes unanswered for 4 s",
            "no bond uplink is live",
            "no bond uplink is live",
            "switched off: its role is 'off'",
        ]
    );
    let after = lab.run(5000, &[FAST; 4]);
    assert_eq!(after, ["unused active active unused", "active backup backup unused"]);
}

#[test]
fn one_that_flaps_says_how_long_it_is_held_down() {
    let mut lab = Lab::new(&[Role::Bond, Role::Bond]);
    lab.run(5000, &[FAST; 2]);
    for _ in 0..4 {
        lab.run(2000, &[None, FAST]);
        lab.run(6000, &[FAST; 2]);
    }
    assert_eq!(lab.run(2000, &[None, FAST]).last().unwrap(), "unused active");
    assert_eq!(lab.run(2000, &[FAST; 2]), ["unused active"]);
    let reason = lab.assign()[0].reason.to_string();
    assert_eq!(reason, "goes and comes; used again in 7 s if it stays");
    // It fails anew, before the other one has had time to show that the server is there.
    assert_eq!(lab.run(2000, &[None, FAR]), ["unused active"]);
}

#[test]
fn an_overflow_uplink_is_used_while_the_bond_uplinks_are_saturated() {
    let mut lab = Lab::new(&[Role::Overflow, Role::Bond, Role::Backup]);
    assert_eq!(lab.run(5000, &[FAST, FAR, FAST]), ["backup active backup"]);
    lab.failover.set_saturated(true);
    assert_eq!(lab.state(), "active active backup");
    let assignments = lab.assign();
    assert_eq!(assignments[0].reason.to_string(), "the bond uplinks are saturated");
    let healths: Vec<&Health> = lab.healths.iter().collect();
    assert_eq!(best(&assignments, &lab.uplinks, &healths), [1, 0, 2], "not for new connections");
    lab.failover.set_saturated(false);
    assert_eq!(lab.state(), "backup active backup");
}

/// Quotas of these uplinks are reached.
fn caps(names: &[(&str, QuotaAction)]) -> LiteMap<String, Cap> {
    let cap = |action| Cap {
        quota: Quota { bytes: 1000, reset_day: 1, action },
        standing: Standing { bytes: 1000, since: None, until: None },
    };
    names.iter().map(|(name, action)| (name.to_string(), cap(*action))).collect()
}

#[test]
fn an_uplink_whose_quota_is_reached_stands_by_or_is_off() {
    let mut lab = Lab::new(&[Role::Bond, Role::Bond, Role::Overflow, Role::Off]);
    let backup = ["u1", "u2", "u3"].map(|name| (name, QuotaAction::Backup));
    lab.failover.set_caps(caps(&backup));
    assert_eq!(lab.run(5000, &[FAST; 4]), ["active backup backup unused"]);
    let reason = lab.assign()[1].reason.to_string();
    assert_eq!(reason, "quota of 1.00 kB reached (1.00 kB): backup");
    assert_eq!(
        lab.run(5000, &[None, FAST, FAST, None]).last().unwrap(),
        "unused active active unused"
    );

    lab.failover.set_caps(caps(&[("u1", QuotaAction::Off)]));
    assert_eq!(lab.state(), "unused unused active unused");
    assert_eq!(lab.assign()[1].reason.to_string(), "quota of 1.00 kB reached (1.00 kB): off");
    assert!(lab.failover.is_capped_off("u1") && !lab.failover.is_capped_off("u0"));
}

#[test]
fn a_quota_reached_on_all_uplinks_leaves_them_as_backups() {
    let mut lab = Lab::new(&[Role::Bond, Role::Bond]);
    let both = ["u0", "u1"].map(|name| (name, QuotaAction::Backup));
    lab.failover.set_caps(caps(&both));
    assert_eq!(lab.state(), "active active");
    assert_eq!(lab.assign()[0].reason, Reason::TookOver);
}

#[test]
fn a_blackholed_uplink_is_out_within_a_second() {
    let mut lab = Lab::new(&[Role::Bond, Role::Bond]);
    lab.run(5000, &[FAST, FAR]);
    assert_eq!(lab.run(1000, &[None, FAR]), ["active active", "unused active"]);
}

#[test]
fn a_lost_server_is_not_held_against_uplinks() {
    let mut lab = Lab::new(&[Role::Bond, Role::Bond, Role::Backup]);
    lab.run(5000, &[FAST, FAR, FAR]);
    assert_eq!(lab.run(60_000, &[None; 3]), ["active active backup"]);
    assert_eq!(lab.assign()[0].reason, Reason::ServerSilent);
    // Nor at its return, although one uplink notices before another.
    assert_eq!(lab.run(10_000, &[FAR, FAST, Some(300)]), ["active active backup"]);
    assert_eq!(lab.assign()[0].reason, Reason::Live);
}

#[test]
fn an_uplink_that_stays_silent_after_the_servers_return_is_out() {
    let mut lab = Lab::new(&[Role::Bond, Role::Bond]);
    lab.run(5000, &[FAST, FAR]);
    lab.run(20_000, &[None, None]);
    assert_eq!(lab.run(2000, &[FAST, None]), ["active active"]);
    let deadline = lab.failover.deadline().unwrap();
    assert!(deadline > lab.now);
    assert_eq!(lab.run(3000, &[FAST, None]), ["active active", "active unused"]);
    assert_eq!(lab.failover.deadline(), None);
}

#[test]
fn the_only_uplink_stays() {
    let mut lab = Lab::new(&[Role::Bond]);
    lab.run(2000, &[FAST]);
    assert_eq!(lab.run(20_000, &[None]), ["active"]);
}

#[test]
fn without_probes_every_uplink_counts() {
    let mut lab = Lab::new(&[Role::Bond, Role::Backup]);
    lab.healths.clear();
    assert_eq!(lab.state(), "active backup");
    assert_eq!(lab.assign()[0].reason, Reason::Unprobed);
    lab.healths = vec![Health::unprobed(Policy::default(), lab.now); 2];
    assert_eq!(lab.state(), "active backup");
}

#[test]
fn a_backup_goes_on_while_a_dead_bond_uplink_is_on_trial() {
    let mut lab = Lab::new(&[Role::Bond, Role::Backup]);
    lab.run(5000, &[FAST; 2]);
    let seen = lab.run(130_000, &[None, FAST]);
    assert!(seen.contains(&"active active".to_owned()), "there was no trial: {seen:?}");
    assert!(seen.iter().skip(1).all(|state| state.ends_with(" active")), "{seen:?}");
}

#[test]
fn faults_take_an_uplink_out_at_once() {
    let mut lab = Lab::new(&[Role::Bond, Role::Backup]);
    lab.uplinks[0].device.as_mut().unwrap().carrier = false;
    assert_eq!(lab.state(), "unused active");
    assert_eq!(
        lab.assign()[0].reason.to_string(),
        "e0 has no carrier: check cable, modem or signal"
    );
}

#[test]
fn the_kernel_takes_eight_and_standbys_go_first() {
    let mut roles = [Role::Bond; 10];
    roles[0] = Role::Backup;
    let mut lab = Lab::new(&roles);
    let assignments = lab.assign();
    let used: Vec<u8> =
        assignments.iter().filter(|a| a.in_force != InForce::Unused).map(|a| a.slot).collect();
    assert_eq!(used, [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(assignments[0].reason, Reason::TooMany);
    assert_eq!(assignments[9].reason, Reason::TooMany);
}

#[test]
fn dials_through_the_nearest_active_uplink_first() {
    let mut lab = Lab::new(&[Role::Bond, Role::Bond, Role::Backup, Role::Bond, Role::Off]);
    lab.run(5000, &[FAR, FAST, Some(5), None, FAST]);
    let assignments = lab.assign();
    let healths: Vec<&Health> = lab.healths.iter().collect();
    assert_eq!(best(&assignments, &lab.uplinks, &healths), [1, 0, 2]);
}

/// Losses of every second probe, for as long as nothing is down for it.
fn lose_heavily(lab: &mut Lab, index: usize) {
    for n in 0..12 {
        lab.seq += 1;
        lab.healths[index].on_sent(lab.now, lab.seq);
        lab.now += Duration::from_millis(400);
        if n % 2 == 0 {
            lab.healths[index].on_reply(lab.now, lab.seq);
        }
        lab.healths[index].poll(lab.now);
    }
}

#[test]
fn an_uplink_that_loses_heavily_stands_by_for_a_good_one() {
    let mut lab = Lab::new(&[Role::Bond, Role::Bond, Role::Backup]);
    lab.run(5000, &[FAST, FAR, FAST]);
    lose_heavily(&mut lab, 0);
    assert_eq!(lab.state(), "backup active backup");
    let reason = lab.assign()[0].reason.to_string();
    assert_eq!(reason, "loses so many probes that it would slow the other uplinks down");
    lose_heavily(&mut lab, 1);
    assert_eq!(lab.state(), "active active backup", "rather than the backup alone");
    assert_eq!(lab.assign()[0].reason.to_string(), "probes answered, many lost");
}
