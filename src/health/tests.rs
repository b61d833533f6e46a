use super::*;

/// An uplink on a simulated clock, its replies on their way, and what happened to it.
struct Line {
    health: Health,
    start: Instant,
    now: Instant,
    next_seq: u64,
    replies: Vec<(Instant, u64)>,
    log: Vec<(u64, State)>,
    sent: u64,
    packets: u64,
    /// Packets that arrive each millisecond, counted every 50.
    flow: u64,
}

const MS: Duration = Duration::from_millis(1);

impl Line {
    fn new() -> Line {
        let start = Instant::now();
        Line {
            health: Health::new(Policy::default(), start),
            start,
            now: start,
            next_seq: 0,
            replies: Vec::new(),
            log: Vec::new(),
            sent: 0,
            packets: 0,
            flow: 0,
        }
    }

    /// An active one that has answered in 20 ms for ten seconds.
    fn settled(active: bool) -> Line {
        let mut line = Line::new();
        line.health.set_active(active);
        line.run(10_000, |_| Some(20));
        line.start = line.now;
        line.log.clear();
        line.sent = 0;
        line
    }

    /// Milliseconds since the start or settling.
    fn ms(&self) -> u64 {
        (self.now - self.start).as_millis() as u64
    }

    /// Lets time pass, millisecond by millisecond; `rtt` tells what becomes of a probe sent then.
    fn run(&mut self, ms: u64, mut rtt: impl FnMut(u64) -> Option<u64>) {
        let mut wake = self.now;
        for _ in 0..ms {
            let before = self.health.state();
            let mut due: Vec<u64> = Vec::new();
            let now = self.now;
            self.replies.retain(|&(at, seq)| {
                if at <= now {
                    due.push(seq);
                }
                at > now
            });
            for seq in due {
                self.health.on_reply(now, seq);
                wake = now;
            }
            self.packets += self.flow;
            if self.packets > 0 && self.ms().is_multiple_of(50) {
                self.health.on_received(now, self.packets);
                wake = now;
            }
            // Polled only when it asked for it, so that a wrong `wake` shows.
            if wake <= now {
                self.health.poll(now);
                if self.health.due(now) <= now {
                    self.health.on_sent(now, self.next_seq);
                    self.sent += 1;
                    if let Some(rtt) = rtt(self.ms()) {
                        self.replies.push((now + MS * rtt as u32, self.next_seq));
                    }
                    self.next_seq += 1;
                    assert!(self.health.due(now) > now);
                }
                wake = self.health.deadline(now).unwrap();
                assert!(wake > now, "would spin");
            }
            if self.health.state() != before {
                self.log.push((self.ms(), self.health.state()));
            }
            self.now += MS;
        }
    }
}

#[test]
fn a_probe_leaves_an_eighth_of_its_interval_early_if_the_program_is_awake_then() {
    let mut line = Line::settled(false);
    let sent = line.health.last_sent.unwrap();
    let takes = |line: &Line, ms| line.health.takes_probe(sent + MS * ms);
    assert_eq!([1749, 1750].map(|ms| takes(&line, ms)), [false, true]);
    line.health.set_active(true);
    assert_eq!([218, 219].map(|ms| takes(&line, ms)), [false, true]);
}

#[test]
fn starts_unknown_and_comes_up_with_the_first_reply() {
    let mut line = Line::new();
    line.run(1000, |_| Some(20));
    assert_eq!(line.log, [(20, State::Up)]);
    assert_eq!(line.health.rtt().smoothed(), Some(MS * 20));
    assert_eq!(line.health.rtt().least(), Some(MS * 20));
    assert_eq!(line.health.loss(), Some(0.0));
}

#[test]
fn never_answered_goes_down_after_the_longest_timeout() {
    let mut line = Line::new();
    line.run(10_000, |_| None);
    assert_eq!(line.log, [(3500, State::Down)]);
}

#[test]
fn blackhole_under_load_is_down_within_a_second() {
    for phase in (0..250).step_by(10) {
        let mut line = Line::settled(true);
        line.run(phase, |_| Some(20));
        line.run(1000, |_| None);
        let (at, state) = line.log[0];
        assert_eq!(state, State::Down);
        assert!(at - phase <= 950, "{} ms", at - phase);
    }
}

#[test]
fn idle_is_sparse_and_one_loss_makes_it_dense() {
    let mut line = Line::settled(false);
    line.run(20_000, |_| Some(20));
    assert!((9..=11).contains(&line.sent), "{} probes in 20 s", line.sent);
    // From the first lost probe on it takes no longer than under load.
    let mut first = None;
    line.run(5000, |ms| {
        first.get_or_insert(ms);
        None
    });
    let (at, state) = line.log[0];
    assert_eq!(state, State::Down);
    assert!(at - first.unwrap() <= 900, "{} ms", at - first.unwrap());
}

#[test]
fn probes_of_an_active_uplink_cost_little() {
    let mut line = Line::settled(true);
    line.run(10_000, |_| Some(20));
    assert!((39..=41).contains(&line.sent), "{} probes in 10 s", line.sent);
}

#[test]
fn is_up_again_soon_after_it_returns() {
    for outage in [5_000, 60_000, 290_000, 600_000] {
        let mut line = Line::settled(true);
        line.run(outage, |_| None);
        line.sent = 0;
        line.run(60_000, |_| None);
        let most = if outage < 60_000 { 120 } else { 110 };
        assert!(line.sent <= most, "{} probes in a minute", line.sent);
        let back = line.ms();
        line.run(3000, |_| Some(20));
        let (at, state) = *line.log.last().unwrap();
        assert_eq!(state, State::Up, "after {outage} ms: {:?}", line.log);
        assert!(at - back <= 2400, "after {outage} ms: {} ms", at - back);
    }
}

#[test]
fn probes_thin_out_while_down() {
    let mut line = Line::settled(true);
    line.run(310_000, |_| None);
    line.sent = 0;
    line.run(20_000, |_| None);
    assert!((9..=11).contains(&line.sent), "{} probes in 20 s", line.sent);
}

#[test]
fn far_is_not_down() {
    for rtt in [600, 1500, 2500] {
        let mut line = Line::new();
        line.health.set_active(true);
        line.run(60_000, |ms| Some(rtt + ms / 7 % 50));
        assert_eq!(line.log, [(rtt, State::Up)], "{rtt} ms");
    }
}

#[test]
fn a_filling_queue_is_not_down() {
    // 20 ms grow to 1.2 s within three seconds, stay, and fall again.
    let mut line = Line::settled(true);
    line.run(3000, |ms| Some(20 + ms * 2 / 5));
    line.run(5000, |_| Some(1200));
    line.run(5000, |_| Some(20));
    assert!(line.log.iter().all(|&(_, state)| state != State::Down), "{:?}", line.log);
}

#[test]
fn an_uplink_that_became_far_comes_back_by_late_replies() {
    let mut line = Line::settled(true);
    line.run(20_000, |_| Some(2500));
    let states: Vec<State> = line.log.iter().map(|&(_, state)| state).collect();
    assert_eq!(states, [State::Down, State::Degraded]);
    assert!(line.log[1].0 < 4000, "{:?}", line.log);
}

#[test]
fn loss_degrades_and_recovers_with_hysteresis() {
    let mut line = Line::settled(true);
    let mut n = 0;
    line.run(30_000, |_| {
        n += 1;
        (n % 5 != 0).then_some(20)
    });
    let states: Vec<State> = line.log.iter().map(|&(_, state)| state).collect();
    assert_eq!(states, [State::Degraded]);
    assert!((0.15..=0.25).contains(&line.health.loss().unwrap()), "{:?}", line.health.loss());
    line.run(30_000, |_| Some(20));
    assert_eq!(line.health.state(), State::Up);
    assert_eq!(line.health.loss(), Some(0.0));
}

#[test]
fn a_late_reply_corrects_the_loss() {
    let mut line = Line::settled(true);
    let mut n = 0;
    line.run(2000, |_| {
        n += 1;
        Some(if n == 1 { 500 } else { 20 })
    });
    assert_eq!(line.health.loss(), Some(0.0));
    assert_eq!(line.log, []);
}

#[test]
fn flapping_holds_it_down_longer_each_time_and_quiet_forgives() {
    let mut line = Line::settled(true);
    let mut holds = Vec::new();
    for _ in 0..6 {
        while line.health.state() != State::Down {
            line.run(1, |_| None);
        }
        holds.push(line.health.hold_down().as_secs());
        let back = line.ms();
        while line.health.state() == State::Down {
            line.run(1, |_| Some(20));
        }
        assert!(line.ms() - back >= holds.last().unwrap() * 1000);
    }
    assert_eq!(holds, [0, 0, 2, 4, 8, 16]);
    line.run(600_000, |_| Some(20));
    line.run(2000, |_| None);
    assert_eq!(line.health.state(), State::Down);
    assert_eq!(line.health.hold_down(), Duration::ZERO);
}

#[test]
fn without_a_session_it_is_unknown_and_silent() {
    let now = Instant::now();
    let mut health = Health::unprobed(Policy::default(), now);
    let later = now + Duration::from_secs(60);
    health.poll(later);
    assert_eq!((health.deadline(later), health.takes_probe(later)), (None, false));
    assert_eq!(health.state(), State::Unknown);
    assert!(!health.is_probed());
}

#[test]
fn a_suspicion_has_it_probed_densely_until_the_next_reply() {
    let mut line = Line::settled(false);
    line.run(300, |_| Some(20));
    line.sent = 0;
    line.health.suspect();
    line.run(1000, |_| Some(20));
    assert_eq!(line.sent, 1, "the next reply ends it");

    line.health.suspect();
    line.sent = 0;
    line.run(260, |_| None);
    assert!(line.sent >= 1);
}

#[test]
fn probes_that_cannot_be_sent_are_lost() {
    let mut line = Line::settled(true);
    for _ in 0..3 {
        line.health.on_send_failed(line.now);
    }
    assert_eq!(line.health.state(), State::Down);
}

#[test]
fn losses_before_an_answered_probe_are_not_held_against_it() {
    let mut line = Line::settled(true);
    for seq in 0..4 {
        line.health.on_sent(line.now, (1 << 40) + seq);
        line.now += MS;
    }
    line.health.on_reply(line.now, (1 << 40) + 3);
    line.health.poll(line.now + MS * 400);
    assert_eq!((line.health.state(), line.health.failing_since()), (State::Up, None));
    assert_eq!(line.health.loss(), Some(3.0 / 32.0));
}

#[test]
fn unknown_and_repeated_replies_are_ignored() {
    let mut line = Line::settled(true);
    assert_eq!(line.health.on_reply(line.now, u64::MAX), None);
    line.health.on_sent(line.now, 1 << 40);
    assert_eq!(line.health.on_reply(line.now + MS * 7, 1 << 40), Some(MS * 7));
    assert_eq!(line.health.on_reply(line.now + MS * 8, 1 << 40), None);
}

/// A line that has carried 1,000 packets a second for two seconds.
fn busy() -> Line {
    let mut line = Line::settled(true);
    line.flow = 1;
    line.run(2000, |_| Some(20));
    line.start = line.now;
    line
}

#[test]
fn silence_of_traffic_and_an_unanswered_probe_are_a_dead_path() {
    let mut line = busy();
    line.flow = 0;
    line.run(1000, |_| None);
    let [(at, State::Down)] = line.log[..] else { panic!("{:?}", line.log) };
    assert!((200..=300).contains(&at), "after {at} ms");
    let silence = line.health.failing_since().unwrap().saturating_duration_since(line.start);
    assert!(silence <= MS * 50, "it counts from the silence on, not from {silence:?}");
}

#[test]
fn a_transfer_that_ends_is_no_dead_path() {
    let mut line = busy();
    line.flow = 0;
    line.run(3000, |_| Some(20));
    assert_eq!(line.log, []);
}

#[test]
fn silence_of_an_idle_uplink_is_no_dead_path() {
    let mut line = busy();
    line.health.set_active(false);
    line.flow = 0;
    line.run(600, |_| None);
    assert_eq!(line.log, []);
}

#[test]
fn any_sequence_of_calls_is_harmless() {
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    let start = Instant::now();
    let mut health = Health::new(Policy::default(), start);
    let mut now = start;
    for _ in 0..100_000 {
        match random() % 10 {
            0 => health.on_send_failed(now),
            1 | 2 => health.on_sent(now, random() % 64),
            3 => drop(health.on_reply(now, random() % 64)),
            4 => health.suspect(),
            5 => health.set_active(random() % 2 == 0),
            6 => health.poll(start),
            7 => health.on_received(now, random() % 1000),
            8 => health.on_subflows(now, signs(now, random() as u32 % 2000, random() % 4 == 0)),
            _ => now += MS * (random() % 3000) as u32,
        }
        health.poll(now);
        assert!(health.deadline(now).is_some());
        assert!(health.loss().is_none_or(|loss| (0.0..=1.0).contains(&loss)));
    }
}

#[test]
fn much_longer_round_trips_degrade_an_uplink() {
    let mut line = Line::settled(true);
    line.run(5000, |_| Some(700));
    assert_eq!(line.health.state(), State::Degraded);
    assert!(line.health.is_slow());
    line.run(20_000, |_| Some(20));
    assert_eq!(line.health.state(), State::Up);
}

#[test]
fn a_far_uplink_is_not_degraded() {
    let mut line = Line::new();
    line.run(20_000, |_| Some(650));
    assert!(matches!(line.log[..], [(_, State::Up)]), "{:?}", line.log);
}

/// What subflows show that heard the server so many milliseconds ago.
fn signs(now: Instant, ago: u32, stalled: bool) -> Signs {
    Signs { heard: now - MS * ago, stalled, rtt: MS * 30 }
}

impl Line {
    /// Lets time pass without replies to probes, while subflows hear the server all the time.
    fn run_by_subflows(&mut self, ms: u64) {
        for _ in 0..ms / 50 {
            self.run(50, |_| None);
            self.health.on_subflows(self.now, signs(self.now, 10, false));
        }
    }
}

#[test]
fn where_no_probe_gets_through_subflows_decide() {
    let mut line = Line::new();
    line.run_by_subflows(20_000);
    assert_eq!(line.health.state(), State::Up);
    assert!(line.health.is_by_subflows());
    assert_eq!((line.health.loss(), line.health.srtt()), (None, Some(MS * 30)));
    assert!(!line.log.contains(&(0, State::Down)), "{:?}", line.log);
    let sent = line.sent;
    line.run_by_subflows(20_000);
    assert!(line.sent - sent <= 10, "probes go on, sparsely: {}", line.sent - sent);
    line.health.on_subflows(line.now, signs(line.now, 1000, true));
    assert_eq!(line.health.state(), State::Down);
}

#[test]
fn probes_that_stop_getting_through_do_not_take_an_uplink_out_that_works() {
    let mut line = Line::settled(true);
    line.run_by_subflows(20_000);
    assert_eq!(line.log, []);
    assert!(line.health.is_by_subflows());
    line.run(5000, |_| Some(20));
    assert!(!line.health.is_by_subflows());
}

#[test]
fn what_subflows_heard_before_the_path_failed_does_not_count() {
    let mut line = Line::settled(true);
    let cut = line.now;
    for _ in 0..40 {
        line.run(50, |_| None);
        let signs = Signs { heard: cut + MS * 100, stalled: false, rtt: MS * 30 };
        line.health.on_subflows(line.now, signs);
    }
    assert_eq!(line.health.state(), State::Down);
}

#[test]
fn what_was_missing_before_a_rest_does_not_count_after_it() {
    let mut line = Line::settled(false);
    while line.health.losses < 2 {
        line.run(1, |_| None);
    }
    line.health.rest();
    let mut replies = [None; 4].into_iter();
    line.run(5000, |_| replies.next().unwrap_or(Some(20)));
    assert_eq!(line.log, []);
}

#[test]
fn an_uplink_without_an_answer_is_given_trials_ever_more_rarely() {
    let mut line = Line::new();
    line.run(3_600_000, |_| None);
    let trials: Vec<u64> =
        line.log.iter().filter(|(_, state)| *state == State::Unknown).map(|(at, _)| *at).collect();
    assert!((6..=12).contains(&trials.len()), "{trials:?}");
    let gaps: Vec<u64> = trials.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.is_sorted(), "{gaps:?}");
    assert_eq!(line.health.hold_down(), Duration::ZERO, "a trial is no flapping");
    let down = line.now.saturating_duration_since(line.health.since());
    assert!(down > Duration::from_secs(3500) || line.health.is_trial(), "{down:?}");
}

mod loss;
