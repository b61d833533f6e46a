//! Many connections, in quick succession and at once: none fails, nothing leaks.

mod lab;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use lab::traffic::{Dialer, Kind, TrafficServer, churn, open_idle};
use lab::{AgentProgram, Lab, Process, ServerProgram, TARGET_V4, until};

/// Connections opened and closed a second, and for how long.
const RATE: u32 = 200;
const TIME: Duration = Duration::from_secs(60);
/// Connections open at once.
const AT_ONCE: usize = 2000;
/// How long what is closed may take to be forgotten.
const LIMIT: Duration = Duration::from_secs(10);
/// File descriptors that may stay: warm streams, which outlast the demand they were made for.
const MORE_FILES: usize = 64;
/// KiB that may stay: what the allocator keeps in pieces too small to give back.
const MORE_MEMORY: u64 = 6 * 1024;
/// KiB that an idle connection may cost.
const PER_CONNECTION: u64 = 24;

/// What a program holds.
#[derive(Clone, Copy, Debug)]
struct Usage {
    files: usize,
    resident_kib: u64,
}

fn usage(process: &Process) -> Usage {
    Usage { files: process.open_files(), resident_kib: process.resident_kib() }
}

/// Opens connections that are idle, from a few threads.
fn open_many(dialer: &Dialer) -> Vec<TcpStream> {
    thread::scope(|scope| {
        let openers = [(); 4].map(|()| scope.spawn(|| open_idle(dialer, AT_ONCE / 4)));
        let opened =
            openers.map(|opener| opener.join().expect("no panic").expect("all are opened"));
        opened.into_iter().flatten().collect()
    })
}

/// Waits until no more files are open than before, but for what may stay.
#[track_caller]
fn wait_closed(before: &[Usage; 2], mut usage: impl FnMut() -> [Usage; 2]) -> [Usage; 2] {
    until("files are closed", LIMIT, || {
        let now = usage();
        let closed = |(now, before): (&Usage, &Usage)| now.files <= before.files + MORE_FILES;
        now.iter().zip(before).all(closed).then_some(now)
    })
}

#[track_caller]
fn assert_memory(when: &str, before: &[Usage; 2], now: &[Usage; 2], may_grow_kib: u64) {
    for (now, before) in now.iter().zip(before) {
        let more = now.resident_kib.saturating_sub(before.resident_kib);
        assert!(more <= may_grow_kib, "{when}: {more} KiB more than before");
    }
}

#[test]
fn many_connections_come_and_go_without_a_leak() {
    let lab = Lab::two_uplinks("many");
    let mut server = ServerProgram::start(&lab);
    let mut agent = AgentProgram::start(&lab, &server);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let before = [usage(agent.process()), usage(server.process())];
    println!("before: agent {:?}, server {:?}", before[0], before[1]);
    let report = churn(&dialer, RATE, TIME);
    println!("slowest {:?}, load generator late by {:?}", report.slowest, report.lag);
    assert!(
        report.failures.is_empty(),
        "{} of {} failed: {:?} ...",
        report.failures.len(),
        report.done,
        &report.failures[..report.failures.len().min(5)]
    );
    assert_eq!(report.done, u64::from(RATE) * TIME.as_secs());
    let now = wait_closed(&before, || [usage(agent.process()), usage(server.process())]);
    println!("after the short ones: agent {:?}, server {:?}", now[0], now[1]);
    assert_memory("after the short ones", &before, &now, MORE_MEMORY);

    // The allocator keeps what the first ones took, and has to do with that for the second ones.
    let mut peaks = Vec::new();
    for wave in ["first", "second"] {
        let mut idle = open_many(&dialer);
        let peak = [usage(agent.process()), usage(server.process())];
        println!("{AT_ONCE} at once, {wave} time: agent {:?}, server {:?}", peak[0], peak[1]);
        peaks.push(peak);
        let status = agent.status().expect("a status");
        assert_eq!(status["connections"]["total"], AT_ONCE);
        for (index, stream) in idle.iter_mut().enumerate() {
            let byte = index as u8;
            let mut answer = [!byte];
            stream.write_all(&[byte]).and_then(|()| stream.read_exact(&mut answer)).expect("alive");
            assert_eq!(answer, [byte]);
        }
        drop(idle);
        until("the agent has forgotten them", LIMIT, || {
            agent.status().filter(|status| status["connections"]["total"] == 0)
        });
        wait_closed(&before, || [usage(agent.process()), usage(server.process())]);
    }
    assert_memory("at the first peak", &before, &peaks[0], PER_CONNECTION * AT_ONCE as u64);
    assert_memory("at the second peak", &peaks[0], &peaks[1], MORE_MEMORY);
    let failed = &agent.status().expect("a status")["streams"]["failed_by_cause"];
    assert_eq!(failed.as_object().map(serde_json::Map::len), Some(0), "{failed}");
}
