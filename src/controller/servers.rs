//! Which server is used, and which others are tried.
//!
//! The first that answers is used. While it does, earlier ones are tried from time to time, and
//! used again once they have answered steadily; the longer, the more often that was in vain. Streams
//! stay with the server they were opened at.

use std::cmp::Ordering;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::contact::{Contact, Want};
use super::event::{Action, ServerNews};
use super::server::{Expectation, Server};
use crate::config::agent::ServerConfig;
use crate::config::keys::PublicKey;
use crate::net::Family;

/// How long a server may fail before the next one is dialled, and that one before its next.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a server waits for an earlier one, when both answer again after an outage.
const GRACE: Duration = Duration::from_millis(500);
/// How long an earlier server has to answer before it is used again, at first; it doubles each time
/// it is lost soon after.
const HOLD_FIRST: Duration = Duration::from_secs(5);
const HOLD_LAST: Duration = Duration::from_secs(600);
/// A server used again and lost within this time flaps.
const FLAP_WINDOW: Duration = Duration::from_secs(600);

/// A configured server.
pub(super) struct Member {
    config: ServerConfig,
    server: Server,
    contact: Contact,
    /// Since when it answers without a break.
    steady: Option<Instant>,
    /// Since when it does not.
    unwell: Option<Instant>,
    /// When it was taken into use again after another one.
    returned: Option<Instant>,
    /// How often it was lost soon after.
    flaps: u32,
}

impl Member {
    fn new(config: ServerConfig, now: Instant) -> Member {
        let contact = Contact::new(&config.address, now);
        let mut server = Server::default();
        server.addresses = contact.addresses().to_vec();
        let unwell = Some(now);
        Member { config, server, contact, steady: None, unwell, returned: None, flaps: 0 }
    }

    fn hold(&self) -> Duration {
        HOLD_FIRST.saturating_mul(1 << self.flaps.min(16)).min(HOLD_LAST)
    }

    fn judge(&mut self, expected: Expectation, now: Instant) {
        self.server.judge(expected, now);
        if self.server.connected && self.server.reachable {
            self.unwell = None;
            self.steady.get_or_insert(now);
        } else if self.unwell.is_none() {
            self.steady = None;
            // Silence is noticed late.
            self.unwell = self.server.heard.filter(|_| self.server.connected).or(Some(now));
        }
    }

    /// Whether it has been well for so long.
    fn well_for(&self, time: Duration, now: Instant) -> bool {
        self.steady.is_some_and(|since| now >= since + time)
    }

    /// Whether a connection at another address may be better than what there is.
    fn wants_connection(&self) -> bool {
        let Server { connected, reachable, in_use, addresses, .. } = &self.server;
        !connected || !reachable || in_use.is_some_and(|address| !addresses.contains(&address))
    }
}

/// What is shown of a server.
#[derive(Clone, Debug)]
pub struct ServerView<'a> {
    /// Its configuration.
    pub config: &'a ServerConfig,
    /// What is known of it.
    pub server: &'a Server,
    /// Whether it is the one in use.
    pub used: bool,
    /// Why it is used or not, in words; empty for the first one in use.
    pub reason: String,
}

/// The servers in the order of their configuration.
#[derive(Default)]
pub(super) struct Servers {
    members: Vec<Member>,
    used: usize,
    /// Stands in while none is configured.
    none: Server,
}

impl Servers {
    /// Has these servers; those that are the same as before keep their state. Whether the one in
    /// use stays.
    pub(super) fn configure(&mut self, configs: &[ServerConfig], now: Instant) -> bool {
        let used = self.members.get(self.used).map(|member| member.config.clone());
        let mut before = std::mem::take(&mut self.members);
        for config in configs {
            let old = before.iter().position(|member| member.config == *config);
            let mut member =
                old.map_or_else(|| Member::new(config.clone(), now), |at| before.remove(at));
            member.contact.refresh(now);
            self.members.push(member);
        }
        let stays = self.members.iter().position(|member| Some(&member.config) == used.as_ref());
        self.used = stays.unwrap_or(0);
        stays.is_some() || (used.is_none() && self.members.is_empty())
    }

    /// Knows a server by another key from now on.
    pub(super) fn set_key(&mut self, name: &str, key: PublicKey) {
        let named = self.members.iter_mut().map(|member| &mut member.config);
        named.filter(|config| config.name == name).for_each(|config| config.public_key = key);
    }

    /// The server in use, or to be used.
    pub(super) fn used(&self) -> &Server {
        self.members.get(self.used).map_or(&self.none, |member| &member.server)
    }

    /// Its name.
    pub(super) fn used_name(&self) -> Option<&str> {
        self.members.get(self.used).map(|member| member.config.name.as_str())
    }

    /// All of them.
    pub(super) fn view(&self, now: Instant) -> impl Iterator<Item = ServerView<'_>> {
        self.members.iter().enumerate().map(move |(rank, member)| ServerView {
            config: &member.config,
            server: &member.server,
            used: rank == self.used,
            reason: self.reason(rank, member, now),
        })
    }

    fn reason(&self, rank: usize, member: &Member, now: Instant) -> String {
        let used = self.used_name().unwrap_or_default();
        let seconds = |until: Instant| until.saturating_duration_since(now).as_secs() + 1;
        let Member { server, contact, .. } = member;
        match (rank.cmp(&self.used), member.steady) {
            (Ordering::Equal, Some(_)) if rank == 0 => String::new(),
            (Ordering::Equal, Some(_)) => "in use, as those before it do not answer".to_owned(),
            (Ordering::Equal, None) => server.why_lost().to_owned(),
            (_, None) if contact.is_dialling() => format!("{}; being tried", server.why_lost()),
            (Ordering::Less, Some(since)) => {
                let left = seconds(since + member.hold());
                format!("answers again; in use in {left} s if it goes on to")
            }
            (Ordering::Less, None) => {
                let next = seconds(contact.dial_at());
                format!("{}; tried again in {next} s", server.why_lost())
            }
            (Ordering::Greater, _) => format!("stands by for {used}"),
        }
    }

    /// All addresses they are reached at: what LAN hosts send there is not tunnelled.
    pub(super) fn all_addresses(&self) -> Vec<IpAddr> {
        let mut all: Vec<IpAddr> =
            self.members.iter().flat_map(|member| member.server.all_addresses()).collect();
        all.sort();
        all.dedup();
        all
    }

    /// Takes news of one server. Whether it is a session with the one in use.
    pub(super) fn take(
        &mut self,
        name: &str,
        news: ServerNews,
        now: Instant,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Some(rank) = self.members.iter().position(|member| member.config.name == name) else {
            return false;
        };
        let Some(Member { server, contact, .. }) = self.members.get_mut(rank) else { return false };
        match news {
            ServerNews::Resolved(answer) => {
                let reason = answer.as_ref().err().cloned();
                contact.on_resolved(&answer.unwrap_or_default(), now);
                server.addresses = contact.addresses().to_vec();
                match reason {
                    Some(reason) if server.addresses.is_empty() => server.trouble = Some(reason),
                    Some(reason) if contact.resolve_failures() == 1 => {
                        let text = format!("server {name}: {reason}; its last addresses are kept");
                        actions.push(Action::Log(log::Level::Info, text));
                    }
                    _ => {}
                }
            }
            ServerNews::Up { address, datagrams } => {
                server.without_datagrams = !datagrams;
                contact.on_up(address, now);
                let before = server.in_use;
                if server.on_session(address, now) && before.is_some() {
                    let text = format!("server {name}: now at {address}");
                    actions.push(Action::Log(log::Level::Info, text));
                }
                return rank == self.used;
            }
            ServerNews::Heard { lacks_ipv6 } => {
                server.lacks_ipv6 = lacks_ipv6.unwrap_or(false);
                server.on_answer(now);
            }
            // Not of whether it answers.
            ServerNews::Forwards(_) | ServerNews::Incoming(_) | ServerNews::NewKey(_) => {}
            ServerNews::Failed { reason, dice } => {
                contact.on_failed(now, dice);
                server.trouble = Some(reason);
            }
            ServerNews::Down { reason, dice } => {
                contact.on_down(now, dice);
                server.connected = false;
                server.trouble = Some(reason);
            }
        }
        false
    }

    /// The server in use answered a probe.
    pub(super) fn on_probe_answered(&mut self, now: Instant) {
        if let Some(Member { server, contact, .. }) = self.members.get_mut(self.used)
            && server.on_answer(now)
            && !server.connected
        {
            contact.redial(now);
        }
    }

    /// Dials those that are needed without waiting any longer: something has changed.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.members.iter_mut().for_each(|member| member.contact.hurry(now));
    }

    /// A stream to the server in use broke: it is asked for a sign of life, or dialled.
    pub(super) fn suspect(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if let Some(Member { config, server, contact, .. }) = self.members.get_mut(self.used) {
            match server.connected {
                true => {
                    server.on_question(now);
                    actions.push(Action::PingServer(config.name.clone()));
                }
                false => contact.hurry(now),
            }
        }
    }

    /// Decides what to use and whom to try, where there is a choice in the family that more uplinks
    /// have; the one in use answers as `expected`. Whether another one is used than before.
    pub(super) fn poll(
        &mut self,
        expected: Expectation,
        prefer: Option<Family>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) -> bool {
        for rank in 0..self.members.len() {
            let expected = self.expectation(rank, expected);
            if let Some(member) = self.members.get_mut(rank) {
                member.judge(expected, now);
            }
        }
        let better = self.better(now);
        if let Some(rank) = better {
            self.switch(rank, now, actions);
        }
        for rank in 0..self.members.len() {
            let want = self.wanted(rank, now);
            let expected = self.expectation(rank, expected);
            if let Some(member) = self.members.get_mut(rank) {
                tend(member, want, expected, prefer, now, actions);
            }
        }
        better.is_some()
    }

    /// Only the server in use is probed.
    fn expectation(&self, rank: usize, used: Expectation) -> Expectation {
        if rank == self.used { used } else { Expectation::unprobed() }
    }

    /// The server to use instead of the one in use.
    fn better(&self, now: Instant) -> Option<usize> {
        let used = self.members.get(self.used)?;
        let mut others = self.members.iter().enumerate().filter(|(rank, _)| *rank != self.used);
        let (rank, _) = match used.unwell {
            None => others.find(|(rank, it)| *rank < self.used && it.well_for(it.hold(), now)),
            Some(_) => others.find(|(_, it)| it.well_for(GRACE, now)),
        }?;
        Some(rank)
    }

    fn switch(&mut self, rank: usize, now: Instant, actions: &mut Vec<Action>) {
        let returns = rank < self.used;
        let why = match self.members.get_mut(self.used) {
            Some(old) if old.unwell.is_some() => {
                let flapped = old.returned.is_some_and(|returned| now < returned + FLAP_WINDOW);
                old.flaps = if flapped { old.flaps.saturating_add(1) } else { 0 };
                format!("server {}: {}", old.config.name, old.server.why_lost())
            }
            _ => "it answers steadily again".to_owned(),
        };
        self.used = rank;
        let Some(new) = self.members.get_mut(rank) else { return };
        new.returned = returns.then_some(now);
        let name = new.config.name.clone();
        actions.push(Action::Log(log::Level::Info, format!("server {name} is in use: {why}")));
        actions.push(Action::UseServer(name));
    }

    /// How long the server in use may fail before this other one is needed.
    fn patience(&self, rank: usize) -> Duration {
        let turn = rank + usize::from(rank < self.used);
        PATIENCE.saturating_mul(u32::try_from(turn).unwrap_or(u32::MAX))
    }

    fn wanted(&self, rank: usize, now: Instant) -> Want {
        let failing = self.members.get(self.used).and_then(|used| used.unwell);
        match failing {
            _ if rank == self.used => Want::Need,
            Some(since) if now >= since + self.patience(rank) => Want::Need,
            _ if rank < self.used => Want::Trial,
            _ => Want::Rest,
        }
    }

    /// When [`Servers::poll`] decides otherwise by time alone.
    pub(super) fn deadlines(
        &self,
        expected: Expectation,
        now: Instant,
    ) -> impl Iterator<Item = Instant> {
        let failing = self.members.get(self.used).and_then(|used| used.unwell);
        self.members.iter().enumerate().flat_map(move |(rank, member)| {
            let own = [
                failing.map(|since| since + self.patience(rank)),
                member.steady.map(|since| since + GRACE),
                member.steady.map(|since| since + member.hold()),
                member.server.deadline(self.expectation(rank, expected), now),
            ];
            own.into_iter().chain(member.contact.deadlines()).flatten()
        })
    }
}

/// Resolves, dials, asks and hangs up, as is due.
fn tend(
    member: &mut Member,
    want: Want,
    expected: Expectation,
    prefer: Option<Family>,
    now: Instant,
    actions: &mut Vec<Action>,
) {
    let wants_connection = member.wants_connection();
    let Member { config, server, contact, .. } = member;
    let name = || config.name.clone();
    if want == Want::Rest && (server.connected || contact.is_dialling()) {
        server.connected = false;
        server.trouble = None;
        actions.push(Action::HangUp(name()));
    }
    contact.want(want, now);
    if server.connected && !server.reachable {
        contact.doubt();
    }
    if contact.resolve_due(now) {
        actions.push(Action::Resolve(name()));
    }
    if wants_connection && let Some(addresses) = contact.dial_due(prefer, now) {
        actions.push(Action::Dial { server: name(), addresses });
    }
    if server.ping_due(expected, now) {
        actions.push(Action::PingServer(name()));
    }
}
