//! One GiB each way, an SSH session and a video stream, while uplinks go and come at random.

mod lab;

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lab::traffic::{Kind, TrafficServer, Transfer};
use lab::{
    AgentProgram, Direction, Lab, Random, ServerProgram, SshSession, TARGET_V4, UplinkSpec,
    joining_uploads, until,
};
use rustix::process::Signal;

const GIB: u64 = 1 << 30;
/// How long both transfers together may take.
const TIME: Duration = Duration::from_secs(240);
const LIMIT: Duration = Duration::from_secs(10);
/// How long an uplink stays broken, and works, in turn; what the agent takes to notice is less.
const BROKEN: [Duration; 2] = [Duration::from_millis(300), Duration::from_millis(3000)];
const WORKING: [Duration; 2] = [Duration::from_millis(500), Duration::from_millis(3000)];
/// Pauses longer than this are told.
const PAUSE: Duration = Duration::from_millis(500);
/// The seed of all that is random.
const SEED: u64 = 20_260_101;

/// Breaks one uplink at a time, at random, in random ways; `stop` ends it with all of them whole.
fn disturb(lab: &Lab, stop: &AtomicBool) -> u32 {
    let mut random = Random::new(SEED);
    let begun = Instant::now();
    let mut times = 0;
    while !stop.load(Ordering::Relaxed) {
        let index = random.below(lab.uplinks().len() as u64) as usize;
        let uplink = lab.uplink(index);
        let broken = random.between(BROKEN[0], BROKEN[1]);
        let way = random.below(7);
        let what = match way {
            0 => "blackhole",
            1 => "blackhole of what arrives",
            2 => "link down",
            3 => "no carrier",
            4 => "no address",
            5 => "renumbered",
            _ => "unplugged",
        };
        println!(
            "{:6.1} s: {what}, {}, {broken:.1?}",
            begun.elapsed().as_secs_f64(),
            uplink.device()
        );
        match way {
            0 => uplink.blackhole(Direction::Both),
            1 => uplink.blackhole(Direction::Down),
            2 => uplink.link_down(),
            3 => uplink.carrier_down(),
            4 => uplink.drop_address(),
            5 => uplink.renumber(),
            _ => uplink.unplug(),
        }
        thread::sleep(broken);
        match way {
            0 | 1 => uplink.restore(),
            2 => uplink.link_up(),
            3 => uplink.carrier_up(),
            4 => uplink.obtain_address(),
            5 => {}
            _ => uplink.plug_in(),
        }
        times += 1;
        thread::sleep(random.between(WORKING[0], WORKING[1]));
    }
    times
}

/// Streams a test picture from the target, as a live encoder does, to a player in the LAN that takes
/// any error for its end.
struct Video {
    encoder: lab::Process,
    player: lab::Process,
}

impl Video {
    fn start(lab: &Lab) -> Video {
        let mut command = Command::new("ffmpeg");
        #[rustfmt::skip]
        command.args([
            "-nostdin", "-hide_banner", "-loglevel", "warning", "-re",
            "-f", "lavfi", "-i", "testsrc=size=320x240:rate=25",
            "-f", "lavfi", "-i", "sine=frequency=440",
            "-c:v", "mpeg2video", "-b:v", "1M", "-c:a", "mp2",
            "-f", "mpegts", "tcp://0.0.0.0:8000?listen=1",
        ]);
        let encoder = lab.spawn(&lab.target, "encoder", command);
        until("the encoder listens", LIMIT, || {
            let listening = lab.target.run("ss", &["-Htln", "sport = :8000"]);
            (!listening.is_empty()).then_some(())
        });
        let mut command = Command::new("ffmpeg");
        let source = format!("tcp://{TARGET_V4}:8000");
        #[rustfmt::skip]
        command.args([
            "-nostdin", "-hide_banner", "-loglevel", "warning", "-xerror",
            "-err_detect", "explode", "-re", "-i", &source, "-progress", "pipe:1", "-f", "null", "-",
        ]);
        Video { encoder, player: lab.spawn(&lab.lan, "player", command) }
    }

    /// Ends the stream; gives how much was played.
    fn finish(mut self) -> Duration {
        assert!(self.player.is_running(), "the player has ended: {}", self.player.output());
        // The encoder ends its stream in good order.
        self.encoder.signal(Signal::INT);
        let status = self.player.wait(3 * LIMIT).expect("the player ends with the stream");
        let output = self.player.output();
        assert!(status.success(), "the player: {status}: {output}");
        let (progress, messages): (Vec<&str>, Vec<&str>) = output.lines().partition(|line| {
            line.split_once('=').is_some_and(|(key, _)| {
                key.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            })
        });
        assert!(messages.is_empty(), "the player complained: {messages:#?}");
        let played =
            progress.iter().filter_map(|line| line.strip_prefix("out_time_us=")).next_back();
        Duration::from_micros(played.and_then(|time| time.parse().ok()).expect("what was played"))
    }
}

#[test]
fn a_gibibyte_each_way_a_session_and_a_video_survive_everything() {
    let lab = Lab::builder("endurance")
        .uplink(UplinkSpec::new("wan", 150))
        .uplink(UplinkSpec::new("wanb", 100))
        .uplink(UplinkSpec::new("lte", 80));
    joining_uploads(lab, survive);
}

fn survive(lab: &Lab) {
    let mut server = ServerProgram::start(lab);
    let mut agent = AgentProgram::start(lab, &server);
    let target = TrafficServer::start(&lab.target, Kind::Tcp, 80);
    let dialer = target.dialer(&lab.lan, Kind::Tcp, TARGET_V4);
    let video = Video::start(lab);
    let session = SshSession::open(lab, [&lab.target, &lab.lan], (TARGET_V4, 22).into());
    let (stop, slowest) = (AtomicBool::new(false), AtomicU64::new(0));
    let begun = Instant::now();
    let down = Transfer::download(&dialer, GIB).expect("connect");
    let up = Transfer::upload(&target, &dialer, GIB).expect("connect");
    let (times, lines, ends) = thread::scope(|scope| {
        let disturbing = scope.spawn(|| disturb(lab, &stop));
        let typing = scope.spawn(|| session.type_lines(&stop, &slowest));
        let ends = [("download", down), ("upload", up)].map(|(name, transfer)| {
            let left = TIME.saturating_sub(begun.elapsed());
            (name, transfer.finish(left), begun.elapsed())
        });
        stop.store(true, Ordering::Relaxed);
        let times = disturbing.join().expect("uplinks were disturbed");
        (times, typing.join().expect("the session is intact"), ends)
    });
    for (name, error) in ends.iter().filter_map(|(name, end, _)| Some((name, end.as_ref().err()?)))
    {
        println!("{name}: {error}");
        let streams = server.status().unwrap_or_default()["streams"].clone();
        println!("streams of the server: {streams:#}");
        println!("streams of the agent: {:#}", agent.status().unwrap_or_default()["streams"]);
    }
    for (name, result, after) in ends {
        let report = result.unwrap_or_else(|error| panic!("{name}: {error}"));
        let pause = report.longest_pause();
        println!("{name}: {:.0} Mbit/s, {after:.1?}, longest pause {pause:.2?}", report.goodput());
        for (began, length) in report.pauses.iter().filter(|(_, length)| *length > PAUSE) {
            println!("  {length:.2?} from {:.1} s on", began.as_secs_f64());
        }
        assert_eq!(report.bytes, GIB);
    }
    let played = video.finish();
    println!("{times} disturbances; {lines} lines, the slowest took {slowest:?} ms");
    println!("{played:.1?} of video in {:.1?}", begun.elapsed());
    assert!(times > 10, "uplinks were disturbed {times} times only");
    assert!(played + 2 * LIMIT > begun.elapsed(), "only {played:?} were played");
    let status = agent.wait_ready();
    println!(
        "processor time: agent {:.1?}, server {:.1?}",
        agent.process().cpu_time(),
        server.process().cpu_time()
    );
    assert_eq!(status["streams"]["failed_by_cause"], serde_json::json!({}));
}
