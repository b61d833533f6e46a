//! Ports of the server that lead to the LAN.

use std::net::SocketAddr;

use super::{Action, Controller};
use crate::config::agent::ForwardConfig;
use crate::net::Transport;
use crate::tunnel::forward::{Incoming, Port, Verdict};

/// What became of the ports asked for.
#[derive(Default)]
pub(super) struct Forwards {
    /// The server that said so, and what.
    verdicts: Option<(String, Vec<(Port, Verdict)>)>,
}

/// A port of the server, as the status shows it.
#[derive(Clone, Copy, Debug)]
pub struct ForwardView<'a> {
    /// Its configuration.
    pub config: &'a ForwardConfig,
    /// What the server in use says of it; `None` until it has said something.
    pub verdict: Option<Verdict>,
}

fn port_of(config: &ForwardConfig) -> Port {
    Port::of(config.transport, config.listen)
}

impl ForwardView<'_> {
    /// The port.
    pub fn port(&self) -> Port {
        port_of(self.config)
    }

    /// Why the port is not forwarded, and what to do about it, if the server said no.
    pub fn denial(&self) -> Option<(String, &'static str)> {
        let verdict = self.verdict.filter(|verdict| *verdict != Verdict::Granted)?;
        let (name, port) = (&self.config.name, self.port());
        Some((format!("forward {name}: no {port}: {verdict}"), verdict.advice()))
    }
}

impl Forwards {
    fn verdict(&self, server: &str, port: Port) -> Option<Verdict> {
        let (by, verdicts) = self.verdicts.as_ref()?;
        let said = |(of, _): &&(Port, Verdict)| by == server && *of == port;
        verdicts.iter().find(said).map(|(_, verdict)| *verdict)
    }
}

impl Controller {
    /// The ports to ask the server in use for.
    pub(super) fn wanted_ports(&self) -> Vec<Port> {
        if self.config.idle_reason().is_some() {
            return Vec::new();
        }
        self.config.forwards.iter().map(port_of).collect()
    }

    /// The forwarded UDP ports, and where they lead to.
    pub(super) fn udp_targets(&self) -> Vec<(u16, SocketAddr)> {
        if self.config.idle_reason().is_some() {
            return Vec::new();
        }
        let udp = self.config.forwards.iter().filter(|it| it.transport == Transport::Udp);
        udp.map(|forward| (forward.listen, forward.target)).collect()
    }

    /// The ports of the server that lead to the LAN, in the order of the configuration.
    pub fn forwards(&self) -> impl Iterator<Item = ForwardView<'_>> {
        let server = self.servers.used_name().filter(|_| self.servers.used().connected);
        self.config.forwards.iter().map(move |config| ForwardView {
            config,
            verdict: server.and_then(|server| self.forwards.verdict(server, port_of(config))),
        })
    }

    /// A server said what became of the ports.
    pub(super) fn on_forwards(
        &mut self,
        server: &str,
        verdicts: Vec<(Port, Verdict)>,
        actions: &mut Vec<Action>,
    ) {
        if self.servers.used_name() != Some(server) {
            return;
        }
        let before = self.forwards.verdicts.replace((server.to_owned(), verdicts));
        let told = before.map(|(_, verdicts)| verdicts).unwrap_or_default();
        for view in self.forwards() {
            let (ForwardConfig { name, target, .. }, port) = (view.config, view.port());
            let Some(verdict) = view.verdict else { continue };
            if told.contains(&(port, verdict)) {
                continue;
            }
            actions.push(match view.denial() {
                Some((found, advice)) => {
                    Action::Log(log::Level::Warn, format!("{found}: {advice}"))
                }
                None => {
                    let text = format!("forward {name}: {port} of {server} leads to {target}");
                    Action::Log(log::Level::Info, text)
                }
            });
        }
    }

    /// A connection waits at a server.
    pub(super) fn on_incoming(&self, server: &str, incoming: Incoming, actions: &mut Vec<Action>) {
        let port = Port::tcp(incoming.local.port());
        let forward = self.config.forwards.iter().find(|forward| port_of(forward) == port);
        // Only the server in use has streams; others give the connection up by themselves.
        if let Some(forward) = forward.filter(|_| self.servers.used_name() == Some(server)) {
            let &ForwardConfig { target, proxy_protocol, .. } = forward;
            actions.push(Action::Forward { incoming, target, proxy_protocol });
        }
    }
}
