//! Ports of the server that lead to the LAN.

use std::fs;
use std::net::SocketAddr;

use rustix::process::Signal;
use serde_json::Value;

use super::{AgentProgram, ServerProgram};

/// A `config forward` section, named as its port.
pub fn section(port: u16, target: impl Into<SocketAddr>, more: &str) -> String {
    let target = target.into();
    format!(
        "config forward 'p{port}'\n\toption listen '{port}'\n\toption target '{target}'\n{more}\n"
    )
}

/// The same for UDP.
pub fn udp_section(port: u16, target: impl Into<SocketAddr>) -> String {
    section(port, target, "\toption proto 'udp'")
}

/// What the status says of a port.
#[track_caller]
pub fn forward(status: &Value, port: u16) -> &Value {
    let forwards = status["forwards"].as_array().expect("a list");
    forwards.iter().find(|it| it["port"] == port).expect("the port is listed")
}

impl AgentProgram<'_> {
    /// Waits until the agent says this of these ports.
    #[track_caller]
    pub fn wait_forwards(&mut self, state: &str, ports: &[u16]) -> Value {
        self.wait_status(&format!("{ports:?} {state}"), |status| {
            ports.iter().all(|port| forward(status, *port)["state"] == state)
        })
    }
}

impl ServerProgram<'_> {
    /// Lets the router have these ports and no others, and another client 2223.
    pub fn allow_forwards(&mut self, ports: &[u16]) {
        let text = fs::read_to_string(self.config()).expect("read the configuration");
        let kept = text.lines().filter(|line| !line.starts_with("forwards"));
        let text: String = kept.map(|line| format!("{line}\n")).collect();
        let text = text.replace("name = \"other\"\n", "name = \"other\"\nforwards = [2223]\n");
        let name = "name = \"router\"\n";
        let text = text.replace(name, &format!("{name}forwards = {ports:?}\n"));
        fs::write(self.config(), text).expect("write the configuration");
        self.process().signal(Signal::HUP);
    }
}
