//! A snapshot in Prometheus' text format (version 0.0.4).
//!
//! Names and units are those of its conventions: counters end in `_total`, times are in seconds, and
//! shares from 0 to 1. Labels are names of the configuration, kernel counters' names, and causes from
//! this program's own list: their number is bounded.

use std::fmt::Write;

use crate::status::{
    AgentSnapshot, AgentState, DatagramStatus, ForwardStatus, KernelStatus, ServerSnapshot,
    ServerState, Snapshot, StreamCounts, UplinkState, UplinkStatus,
};

/// Every family's name begins with it.
const PREFIX: &str = "mptcp_bond_";

/// The metrics of an agent or a server.
pub fn metrics(snapshot: &Snapshot) -> String {
    let mut out = Exposition::default();
    match snapshot {
        Snapshot::Agent(agent) => agent_metrics(&mut out, agent),
        Snapshot::Server(server) => server_metrics(&mut out, server),
    }
    out.0
}

fn agent_metrics(out: &mut Exposition, agent: &AgentSnapshot) {
    common(out, "agent", &agent.version, agent.uptime_seconds, agent.config_error.is_some());
    let states =
        AgentState::ALL.map(|state| Sample::flag(state == agent.state).with("state", state.word()));
    out.gauge("state", "What the agent does: 1 for the state it is in.", states.into());
    uplinks(out, &agent.uplinks);
    let servers = |value: fn(&crate::status::ServerStatus) -> Option<f64>| -> Vec<Sample> {
        let samples = agent
            .servers
            .iter()
            .filter_map(|server| Some(Sample::of(value(server)?).with("server", &server.name)));
        samples.collect()
    };
    let connected =
        servers(|server| Some(f64::from(u8::from(server.state == ServerState::Connected))));
    out.gauge("server_connected", "Whether the server is in use.", connected);
    let rtt = servers(|server| server.rtt_ms.map(|ms| ms / 1000.0));
    out.gauge("server_rtt_seconds", "Round-trip time of the control connection.", rtt);
    forwards(out, &agent.forwards);
    streams(out, &agent.streams);
    datagrams(out, &agent.datagrams);
    kernel(out, &agent.kernel, agent.failures.len());
}

fn uplinks(out: &mut Exposition, all: &[UplinkStatus]) {
    let each = |value: &dyn Fn(&UplinkStatus) -> Option<f64>| -> Vec<Sample> {
        let samples = all
            .iter()
            .filter_map(|uplink| Some(Sample::of(value(uplink)?).with("uplink", &uplink.name)));
        samples.collect()
    };
    let up = |uplink: &UplinkStatus| {
        let up = matches!(uplink.state, UplinkState::Up | UplinkState::Degraded);
        Some(f64::from(u8::from(up)))
    };
    let in_use = |uplink: &UplinkStatus| Some(f64::from(u8::from(uplink.in_use)));
    out.gauge("uplink_up", "Whether the uplink works.", each(&up));
    out.gauge("uplink_in_use", "Whether new data is sent over the uplink.", each(&in_use));
    let help = "Bytes received by the uplink's device.";
    out.counter("uplink_receive_bytes_total", help, each(&|it| Some(it.rx_bytes as f64)));
    let help = "Bytes sent by the uplink's device.";
    out.counter("uplink_transmit_bytes_total", help, each(&|it| Some(it.tx_bytes as f64)));
    let help = "Smoothed round-trip time to the server over the uplink.";
    out.gauge("uplink_rtt_seconds", help, each(&|it| it.rtt_ms.map(|ms| ms / 1000.0)));
    let help = "Share of probes lost on the uplink, from 0 to 1.";
    let loss = each(&|it| it.loss_percent.map(|percent| percent / 100.0));
    out.gauge("uplink_loss_ratio", help, loss);
    let help = "Subflows of the tunnel's connections over the uplink.";
    out.gauge("uplink_subflows", help, each(&|it| Some(f64::from(it.subflows))));
    let help = "Bytes carried in this period of the uplink's quota, or this month.";
    let used = each(&|it| it.usage.as_ref().map(|usage| usage.period_bytes as f64));
    out.gauge("uplink_period_bytes", help, used);
    let quota = each(&|it| Some(it.usage.as_ref()?.quota_bytes? as f64));
    out.gauge("uplink_quota_bytes", "The uplink's quota for a period.", quota);
}

fn forwards(out: &mut Exposition, all: &[ForwardStatus]) {
    let each = |value: fn(&ForwardStatus) -> f64| -> Vec<Sample> {
        let sample = |it: &ForwardStatus| {
            let sample = Sample::of(value(it)).with("forward", &it.name);
            sample.with("protocol", &it.protocol).with("port", &it.port.to_string())
        };
        all.iter().map(sample).collect()
    };
    let help = "Whether the server listens on the port for this router.";
    let granted = each(|it| f64::from(u8::from(it.state == "forwarded")));
    out.gauge("forward_granted", help, granted);
    let help = "Connections to the forwarded port, or flows of UDP, open now.";
    out.gauge("forward_connections", help, each(|it| it.connections as f64));
}

fn server_metrics(out: &mut Exposition, server: &ServerSnapshot) {
    common(out, "server", &server.version, server.uptime_seconds, server.config_error.is_some());
    let clients = |value: fn(&crate::status::ClientStatus) -> f64| -> Vec<Sample> {
        let samples = server.clients.iter();
        samples.map(|it| Sample::of(value(it)).with("client", &it.name)).collect()
    };
    let connected = clients(|client| f64::from(u8::from(client.connected)));
    out.gauge("client_connected", "Whether the client has a session.", connected);
    let help = "Streams of the client that are open.";
    out.gauge("client_streams", help, clients(|client| client.streams as f64));
    let help = "Bytes sent to the client.";
    out.counter("client_transmit_bytes_total", help, clients(|it| it.down_bytes as f64));
    let help = "Bytes received from the client.";
    out.counter("client_receive_bytes_total", help, clients(|it| it.up_bytes as f64));
    let refusals = server.refusals.iter();
    let refusals = refusals.map(|(cause, count)| Sample::of(*count as f64).with("cause", cause));
    out.counter("refusals_total", "Connections and streams refused.", refusals.collect());
    let help = "Connections that have not shown yet who they are.";
    out.gauge("unauthenticated", help, vec![Sample::of(server.unauthenticated as f64)]);
    streams(out, &server.streams);
    datagrams(out, &server.datagrams);
    kernel(out, &server.kernel, server.failures.len());
}

fn common(out: &mut Exposition, role: &str, version: &str, uptime: u64, config_error: bool) {
    let info = Sample::of(1.0).with("role", role).with("version", version);
    out.gauge("info", "Role and version.", vec![info]);
    let help = "Seconds since the program started.";
    out.gauge("uptime_seconds", help, vec![Sample::of(uptime as f64)]);
    let help = "Whether the last reload failed, and the configuration before it is in force.";
    out.gauge("config_error", help, vec![Sample::flag(config_error)]);
}

fn streams(out: &mut Exposition, streams: &StreamCounts) {
    let one = |value: u64| vec![Sample::of(value as f64)];
    out.gauge("streams_open", "LAN connections carried now.", one(streams.open));
    out.gauge("streams_warm", "Connections kept ready for the next stream.", one(streams.warm));
    out.counter("streams_opened_total", "Streams opened.", one(streams.opened_total));
    out.counter("streams_failed_total", "Streams that failed.", one(streams.failed_total));
    let causes = streams.failed_by_cause.iter();
    let causes = causes.map(|(cause, count)| Sample::of(*count as f64).with("cause", cause));
    let help = "Streams in trouble, by cause; some of them went on in another way.";
    out.counter("stream_troubles_total", help, causes.collect());
}

fn datagrams(out: &mut Exposition, datagrams: &DatagramStatus) {
    let DatagramStatus { flows, up_total, down_total, duplicates_removed_total } = *datagrams;
    let one = |value: u64| Sample::of(value as f64);
    out.gauge("udp_flows", "Flows of tunnelled UDP.", vec![one(flows)]);
    let ways = [("up", up_total), ("down", down_total)];
    let ways = ways.map(|(direction, total)| one(total).with("direction", direction));
    out.counter("udp_datagrams_total", "Datagrams of tunnelled UDP.", ways.into());
    let help = "Duplicates of datagrams that were removed.";
    out.counter("udp_duplicates_removed_total", help, vec![one(duplicates_removed_total)]);
}

fn kernel(out: &mut Exposition, kernel: &KernelStatus, failures: usize) {
    let help = "Operations on the kernel that failed and are tried again.";
    out.gauge("failing_operations", help, vec![Sample::of(failures as f64)]);
    // A count of what is there now, and a difference, may fall.
    let (gauges, counters): (Vec<_>, Vec<_>) = kernel
        .counters
        .iter()
        .partition(|counter| counter.name == "MPCurrEstab" || counter.name.contains('-'));
    let samples = |of: Vec<&crate::status::Counter>| -> Vec<Sample> {
        let samples = of.into_iter();
        samples.map(|it| Sample::of(it.value as f64).with("counter", &it.name)).collect()
    };
    let help = "The kernel's MPTCP counters (MPTcpExt in /proc/net/netstat).";
    out.counter("kernel_mptcp_total", help, samples(counters));
    let help = "What the kernel's MPTCP counters tell of this moment.";
    out.gauge("kernel_mptcp", help, samples(gauges));
}

/// A value and its labels.
struct Sample {
    labels: String,
    value: f64,
}

impl Sample {
    fn of(value: f64) -> Sample {
        Sample { labels: String::new(), value }
    }

    fn flag(value: bool) -> Sample {
        Sample::of(f64::from(u8::from(value)))
    }

    fn with(mut self, name: &str, value: &str) -> Sample {
        let between = if self.labels.is_empty() { "" } else { "," };
        self.labels.extend([between, name, "=\""]);
        for c in value.chars() {
            match c {
                '\\' => self.labels.push_str("\\\\"),
                '"' => self.labels.push_str("\\\""),
                '\n' => self.labels.push_str("\\n"),
                c => self.labels.push(c),
            }
        }
        self.labels.push('"');
        self
    }
}

#[derive(Default)]
struct Exposition(String);

impl Exposition {
    fn gauge(&mut self, name: &str, help: &str, samples: Vec<Sample>) {
        self.family(name, "gauge", help, samples);
    }

    fn counter(&mut self, name: &str, help: &str, samples: Vec<Sample>) {
        self.family(name, "counter", help, samples);
    }

    fn family(&mut self, name: &str, kind: &str, help: &str, samples: Vec<Sample>) {
        if samples.is_empty() {
            return;
        }
        let out = &mut self.0;
        // Writing to a string does not fail.
        let _ = writeln!(out, "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}");
        for Sample { labels, value } in samples {
            let _ = match labels.as_str() {
                "" => writeln!(out, "{PREFIX}{name} {value}"),
                labels => writeln!(out, "{PREFIX}{name}{{{labels}}} {value}"),
            };
        }
    }
}
