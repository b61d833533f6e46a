//! Goodput as iperf3 measures it.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use super::super::{Lab, Namespace, Process, until};
use super::Kind;

/// iperf3's own port.
const PORT: &str = "5201";
/// How often a measurement is begun until it succeeds.
const ATTEMPTS: u32 = 3;

/// A measurement by iperf3; its first second, with TCP's slow start, does not count.
#[derive(Clone, Copy, Debug)]
pub struct Iperf3 {
    /// From the server to the client.
    pub download: bool,
    /// Connections at once.
    pub connections: u32,
    /// Seconds measured, the first included: were it omitted, what it sent and the receiver could not
    /// yet order would count as received later. Ten connections seemed to pass the uplinks' rates so.
    pub seconds: u32,
}

impl Iperf3 {
    /// Mbit/s received; over MPTCP with the help of mptcpize.
    ///
    /// iperf3 (3.12) fails now and then with "control socket has closed unexpectedly", with plain
    /// MPTCP, too: it is tried again.
    #[track_caller]
    pub fn run(
        self,
        lab: &Lab,
        kind: Kind,
        client: &Namespace,
        server: &Namespace,
        address: IpAddr,
    ) -> f64 {
        let mut error = String::new();
        for _ in 0..ATTEMPTS {
            match self.try_run(lab, kind, client, server, address) {
                Ok(rate) => return rate,
                Err(output) => error = output,
            }
        }
        panic!("iperf3 failed {ATTEMPTS} times:\n{error}");
    }

    #[track_caller]
    fn try_run(
        self,
        lab: &Lab,
        kind: Kind,
        client: &Namespace,
        server: &Namespace,
        address: IpAddr,
    ) -> Result<f64, String> {
        let _server: Process = lab.spawn(server, "iperf3-server", {
            let mut command = iperf3(kind);
            command.args(["--server", "--one-off"]);
            command
        });
        until("iperf3 listens", Duration::from_secs(5), || {
            let listeners = server.run("ss", &["-Hltn", &format!("sport = {PORT}")]);
            (!listeners.trim().is_empty()).then_some(())
        });
        let mut command = iperf3(kind);
        command.args(["--json", "--client", &address.to_string()]);
        command.args(["--time", &self.seconds.to_string()]);
        command.args(["--parallel", &self.connections.to_string()]);
        command.args(self.download.then_some("--reverse"));
        let direction = if self.download { "down" } else { "up" };
        let log = format!("iperf3-{kind:?}-{direction}-{}", self.connections);
        let mut client = lab.spawn(client, &log, command);
        let status = client.wait(Duration::from_secs(u64::from(self.seconds) + 15));
        let output = client.output();
        if !status.is_some_and(|status| status.success()) {
            return Err(output);
        }
        // The log has the measurements before this one, too.
        let reports = serde_json::Deserializer::from_str(&output).into_iter::<serde_json::Value>();
        let report = reports.map(|report| report.expect("iperf3 prints JSON")).last();
        let report = report.expect("iperf3 prints a report");
        // Even an error makes a report, and a success of the process.
        let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
        rate.map(|bits| bits / 1e6).ok_or_else(|| report.to_string())
    }
}

fn iperf3(kind: Kind) -> Command {
    let mut command = match kind {
        Kind::Tcp => Command::new("iperf3"),
        Kind::Mptcp => {
            let mut command = Command::new("mptcpize");
            command.args(["run", "iperf3"]);
            command
        }
    };
    command.args(["--port", PORT]);
    command
}
