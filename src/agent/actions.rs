//! What the controller wants done.

use super::{Agent, kernel};
use crate::controller::{Action, Event};
use crate::os::runtime;

impl Agent {
    /// Carries out one action; what comes of it at once, if anything.
    pub(super) async fn carry_out(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Look { thorough } => {
                Some(self.kernel.look(self.controller.uplinks(), thorough).await)
            }
            Action::Apply(plan) => Some(self.kernel.apply(plan, self.controller.kernel()).await),
            Action::Leave => {
                self.kernel.leave().await;
                None
            }
            Action::Probe { slot } => {
                let unsent = Event::ProbeSent { slot, counter: 0, sent: false };
                Some(self.link.probe(slot).unwrap_or(unsent))
            }
            Action::KeepServers(servers) => {
                if let Err(error) = self.link.keep_servers(&servers) {
                    self.tell(log::Level::Error, error);
                }
                None
            }
            Action::UseServer(name) => {
                self.link.use_server(name);
                None
            }
            Action::Resolve(name) => {
                self.link.resolve(&name);
                None
            }
            Action::Dial { server, addresses } => self.link.dial(&server, addresses),
            Action::AskInternet { outlet, url } => {
                self.inquiries.start(outlet, url);
                None
            }
            Action::HangUp(name) => {
                self.link.hang_up(&name);
                None
            }
            Action::PingServer(name) => {
                self.link.ping(&name);
                None
            }
            Action::SetForwards(ports) => {
                self.link.set_forwards(ports);
                None
            }
            Action::SetUdpTargets(targets) => {
                self.link.datagrams().set_targets(targets);
                None
            }
            Action::Forward { incoming, target, proxy_protocol } => {
                if let Some(wishes) = self.link.wishes() {
                    let proxy = self.proxy.clone();
                    runtime::spawn(proxy.forward(incoming, target, proxy_protocol, wishes));
                }
                None
            }
            Action::AdoptServerKey { server, key } => {
                // What comes of dialling is handled in there.
                Box::pin(self.adopt_server_key(server, key)).await;
                None
            }
            Action::SetProbers(outlets) => {
                self.link.set_probers(outlets);
                None
            }
            Action::SetDialOrder(outlets) => {
                self.link.set_dial_order(outlets);
                None
            }
            Action::SaveUsage { text, save } => {
                if let Err(error) = self.usage_files.save(&text, save) {
                    self.tell(log::Level::Error, error);
                }
                None
            }
            Action::ForgetFlows(addresses) => {
                if let Err(error) = kernel::forget_flows(&addresses).await {
                    self.tell(log::Level::Warn, error);
                }
                None
            }
            Action::SetDatagramWays { slots, duplicate } => {
                self.link.datagrams().set_ways(slots, duplicate);
                None
            }
            Action::ForgetUdp(ports) => {
                if let Err(error) = kernel::forget_udp(&ports).await {
                    self.tell(log::Level::Warn, error);
                }
                None
            }
            Action::Log(level, text) => {
                self.tell(level, text);
                None
            }
        }
    }
}
