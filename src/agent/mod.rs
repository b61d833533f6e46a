//! `mptcp-bond agent`: where the pure half and the I/O half meet.
//!
//! One loop waits for whatever happens, tells the [`Controller`], and carries out what it returns.

mod actions;
mod check;
mod datagrams;
mod enrol;
mod hearing;
mod http;
mod inquiries;
mod kernel;
mod link;
mod meters;
mod monitor;
mod pair;
mod roles;
mod rotation;
mod status;
mod ubus;
mod usage;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout};

use crate::cli::{AgentOptions, Fatal};
use crate::config::agent::AgentConfig;
use crate::controller::{Controller, Event, Opinion};
use crate::history::History;
use crate::interception::TproxyPorts;
use crate::os::control::{Cause, Control, MONITOR, Refusal, Request};
use crate::os::kernel::{Change, Watch};
use crate::os::path_manager::{PmEvent, PmEventKind};
use crate::os::privileges::{CapabilitySet, keep_only};
use crate::os::socket::{Subflow, UdpServer};
use crate::os::{log as logging, runtime, socket};
use crate::provision::read_agent_config;
use crate::proxy::Proxy;
use crate::registry::unix_seconds;
use crate::relay::Workers;
use crate::status::{EVENTS_SHOWN, EventLog};
use crate::web::metrics;
use datagrams::Datagrams;
pub use enrol::enrol;
use hearing::Hearing;
use inquiries::Inquiries;
use kernel::Kernel;
use link::Link;
use meters::{Meters, SubflowSearch};
use monitor::Monitor;
use pair::Pairing;
pub use rotation::renew_key;
use usage::UsageFiles;

/// How often the path manager's endpoints and limits are looked at: the kernel does not announce
/// their changes, and what others delete has to be back within a second.
const LOOK: Duration = Duration::from_millis(500);
/// Rates are measured at one of so many looks: once a second, without a timer of its own.
const LOOKS_A_SECOND: u32 = 2;
/// How often the packets received are counted while traffic flows: its silence has to show fast.
const TRAFFIC_LOOK: Duration = Duration::from_millis(50);
/// How long netifd may take at the start to tell its interfaces; without it devices' names count.
const NETIFD_WAIT: Duration = Duration::from_millis(500);
/// How often a port that is free for TCP and UDP is looked for.
const PORT_ATTEMPTS: u32 = 16;
/// So many connections are asked what their subflows hear.
const CONNECTIONS_ASKED: usize = 32;

/// What it does to the network, and `http_listen` on a port below 1024.
const PRIVILEGES: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_BIND_SERVICE);

/// Runs the agent until it is told to stop.
pub fn run(options: &AgentOptions) -> ExitCode {
    match start(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => fatal.report(),
    }
}

fn start(options: &AgentOptions) -> Result<(), Fatal> {
    let config = read_agent_config(&options.config)?;
    logging::init(logging::Destination::choose(options.stderr), config.log_level);
    runtime::run(async {
        let (agent, inputs) = Agent::new(options, config).await?;
        agent.serve(inputs).await
    })
    .map_err(Fatal::os)?
}

/// What the agent waits for.
struct Inputs {
    changes: Watch,
    link: link::Inputs,
    opinions: mpsc::UnboundedReceiver<(u8, Opinion)>,
    interfaces: mpsc::UnboundedReceiver<Event>,
    requests: mpsc::Receiver<Request>,
}

/// The running agent.
struct Agent {
    config_file: PathBuf,
    controller: Controller,
    kernel: Kernel,
    link: Link,
    inquiries: Inquiries,
    proxy: Rc<Proxy>,
    meters: Meters,
    hearing: Hearing,
    history: History,
    subflow_search: SubflowSearch,
    usage_files: UsageFiles,
    http: http::Listeners,
    owner: mpsc::Sender<Request>,
    events: EventLog,
    monitor: Monitor,
    /// The check that was begun last.
    check: Option<AbortHandle>,
    pairing: Pairing,
    config_error: Option<String>,
    started: Instant,
    looks: u32,
}

impl Agent {
    async fn new(options: &AgentOptions, config: AgentConfig) -> Result<(Agent, Inputs), Fatal> {
        let control = Control::bind(&options.run_dir).await.map_err(Fatal::unavailable)?;
        if let Err(error) = socket::raise_file_limit() {
            log::warn!("cannot raise the limit of open files: {error}");
        }
        // Before anything starts a thread.
        if let Err(error) = keep_only(PRIVILEGES) {
            log::warn!("cannot give up privileges that are not needed: {error}");
        }
        let (kernel, changes) = Kernel::open(&options.run_dir).await.map_err(Fatal::os)?;
        let (owner, requests) = mpsc::channel(16);
        runtime::spawn(control.serve(owner.clone()));
        let (link, link_inputs) = Link::new(&options.key_dir);
        let (inquiries, opinions) = Inquiries::new();
        let interfaces = ubus::start(&options.ubus_socket, owner.clone());
        let workers = Workers::start().map_err(Fatal::os)?;
        let proxy = Proxy::new(link.pool(), workers, config.on_server_loss);
        let ports = listen(&proxy, link.datagrams()).map_err(Fatal::os)?;
        let now = Instant::now();
        let agent = Agent {
            config_file: options.config.clone(),
            controller: Controller::new(config, ports, now),
            kernel,
            link,
            inquiries,
            proxy,
            meters: Meters::default(),
            hearing: Hearing::default(),
            history: History::new(now),
            subflow_search: SubflowSearch::default(),
            usage_files: UsageFiles::new(&options.run_dir, &options.key_dir),
            http: http::Listeners::new(&options.key_dir, owner.clone()),
            owner,
            events: EventLog::new(EVENTS_SHOWN),
            monitor: Monitor::default(),
            check: None,
            pairing: Pairing::new(options.key_dir.clone()),
            config_error: None,
            started: now,
            looks: 0,
        };
        let inputs = Inputs { changes, link: link_inputs, opinions, interfaces, requests };
        Ok((agent, inputs))
    }

    /// Serves until a signal says to stop.
    async fn serve(mut self, mut inputs: Inputs) -> Result<(), Fatal> {
        let mut terminate = signal(SignalKind::terminate()).map_err(Fatal::os)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Fatal::os)?;
        let mut hangup = signal(SignalKind::hangup()).map_err(Fatal::os)?;
        let mut wake = signal(SignalKind::user_defined1()).map_err(Fatal::os)?;
        let mut look = interval(LOOK);
        let mut traffic_look = interval(TRAFFIC_LOOK);
        for interval in [&mut look, &mut traffic_look] {
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        self.put_in_force();
        self.resume_usage();
        let interfaces = timeout(NETIFD_WAIT, inputs.interfaces.recv()).await;
        if let Ok(Some(Event::Interfaces(interfaces))) = interfaces {
            self.controller.set_interfaces(interfaces);
        }
        self.handle(Event::Started).await;
        // Who asks first is told what is counted, too.
        self.measure().await;
        loop {
            let deadline = self.controller.deadline();
            let event = tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                change = inputs.changes.next() => match change {
                    Change::PathManager(event) => {
                        self.subflow_search.suspect(Instant::now());
                        self.show_subflow(&event);
                        match failed_subflow(&event) {
                            Some(address) => Event::SubflowFailed(address),
                            None => continue,
                        }
                    }
                    Change::Overrun => {
                        self.subflow_search.suspect(Instant::now());
                        Event::Changed
                    }
                    _ => Event::Changed,
                },
                Some(news) = inputs.link.next() => match self.link.take(news) {
                    Some(event) => event,
                    None => continue,
                },
                Some((slot, opinion)) = inputs.opinions.recv() => Event::InternetAsked { slot, opinion },
                Some(event) = inputs.interfaces.recv() => event,
                Some(request) = inputs.requests.recv() => {
                    self.answer(request).await;
                    continue;
                }
                _ = wake.recv() => Event::Changed,
                _ = hangup.recv() => {
                    // What is wrong is logged, and in the status.
                    let _ = self.reload().await;
                    continue;
                }
                _ = look.tick() => {
                    self.look().await;
                    continue;
                }
                _ = traffic_look.tick(), if self.controller.watches_traffic() => {
                    self.look_at_traffic().await;
                    continue;
                }
                () = sleep_until(deadline.into()) => Event::Tick,
            };
            self.handle(event).await;
        }
        self.proxy.abort();
        self.handle(Event::Stopping).await;
        Ok(())
    }

    /// Tells the controller, and carries out what it wants until it wants no more.
    async fn handle(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let actions = self.controller.handle(event, Instant::now());
            self.proxy.set_server_answers(self.controller.server().reachable);
            for action in actions {
                events.extend(self.carry_out(action).await);
            }
        }
        if self.monitor.is_watched() {
            let view = monitor::view(self);
            self.monitor.compare(view);
        }
    }

    /// Tells those who watch of a subflow.
    fn show_subflow(&mut self, event: &PmEvent) {
        if self.monitor.is_watched()
            && let Some(event) = monitor::subflow(event, &self.controller)
        {
            self.monitor.tell(&event);
        }
    }

    async fn look_at_traffic(&mut self) {
        let received = meters::received(self.controller.uplinks());
        self.handle(Event::Received(received)).await;
        if self.controller.wants_subflows() {
            self.look_at_subflows().await;
        }
    }

    async fn look_at_subflows(&mut self) {
        let mut subflows = self.link.pool().subflows();
        subflows.extend(self.proxy.subflows(CONNECTIONS_ASKED));
        let uplinks = self.controller.uplinks();
        let established = subflows.into_iter().filter(Subflow::is_established);
        let placed =
            established.filter_map(|subflow| Some((meters::slot_of(&subflow, uplinks)?, subflow)));
        let signs = self.hearing.take(placed, Instant::now());
        self.handle(Event::Subflows(signs)).await;
    }

    /// Continues counting what the uplinks carry where an earlier agent left off.
    fn resume_usage(&mut self) {
        let (usage, problems) = self.usage_files.load();
        self.controller.resume_usage(usage);
        for problem in problems {
            self.tell(log::Level::Warn, problem);
        }
    }

    /// Looks at what nobody announces.
    async fn look(&mut self) {
        if self.kernel.path_manager_differs(self.controller.kernel()).await {
            self.handle(Event::Changed).await;
        }
        self.looks = self.looks.wrapping_add(1);
        if self.looks.is_multiple_of(LOOKS_A_SECOND) {
            self.measure().await;
        }
    }

    async fn measure(&mut self) {
        let now = Instant::now();
        self.proxy.measure(now);
        self.link.datagrams().expire(now);
        let rates = self.meters.measure(self.controller.uplinks(), now);
        let counters = self.meters.counters();
        let uplinks = self.controller.uplinks().iter();
        let named = uplinks.map(|it| (it.name.clone(), counters.get(&it.slot).copied()));
        self.history.count(now, &named.collect());
        let lost = self.meters.losses(&self.proxy, self.controller.uplinks());
        self.handle(Event::Rates { rates, lost }).await;
        if self.controller.relies_on_subflows() {
            self.look_at_subflows().await;
        }
        let standbys = self.controller.busy_standbys();
        if let Some(used) = self.meters.standbys_used(&self.proxy, &standbys) {
            self.handle(Event::StandbysUsed(used)).await;
        }
        self.handle(Event::Counted { clock: unix_seconds(), counters }).await;
        let expected = self.controller.expected_subflows(now);
        if let Some(missing) = self.subflow_search.missing(&self.proxy, expected, now) {
            self.handle(Event::MissingSubflows(missing)).await;
        }
        // The LAN's devices and addresses come and go.
        self.keep_http();
    }

    async fn reload(&mut self) -> Result<(), Refusal> {
        match read_agent_config(&self.config_file) {
            Ok(config) => {
                self.config_error = None;
                self.tell(log::Level::Info, "configuration reloaded".into());
                self.handle(Event::Configured(Box::new(config))).await;
                self.put_in_force();
                Ok(())
            }
            Err(error) => {
                let error = error.to_string();
                let text = format!("configuration not reloaded, the old one stays: {error}");
                self.tell(log::Level::Error, text);
                self.config_error = Some(error.clone());
                Err(Refusal::new(Cause::Configuration, error))
            }
        }
    }

    /// Whatever of the configuration does not concern the controller.
    fn put_in_force(&mut self) {
        let config = self.controller.config();
        logging::set_level(config.log_level);
        self.proxy.set_on_server_loss(config.on_server_loss);
        self.keep_http();
    }

    async fn answer(&mut self, request: Request) {
        match request.method.as_str() {
            "check" => return check::begin(self, request),
            MONITOR => return monitor::begin(self, request),
            "pair" => return pair::begin(self, request),
            _ => {}
        }
        let result = match request.method.as_str() {
            "status" => status::snapshot(self).answer(request.params).map_err(Refusal::parameters),
            "connections" => Ok(status::connections_json(self)),
            "metrics" => Ok(Value::from(metrics(&status::snapshot(self))).to_string()),
            "page" => Ok(Value::from(status::page(self)).to_string()),
            "history" => status::history_json(self, request.params),
            "uplink" => self.set_role(request.params).await,
            "reload" => self.reload().await.map(|()| "{}".to_owned()),
            "redial" => {
                self.redial().await;
                Ok("{}".to_owned())
            }
            other => Err(Refusal::no_method(other)),
        };
        // Who asked may be gone.
        let _ = request.reply.send(result);
    }

    /// Logs an event and keeps it for the status.
    fn tell(&mut self, level: log::Level, text: String) {
        log::log!(level, "{text}");
        if self.monitor.is_watched() {
            let text = text.clone();
            self.monitor.tell(&crate::monitor::Event::Message { level: level.into(), text });
        }
        self.events.push(Instant::now(), unix_seconds(), level.into(), text);
    }
}

/// The local address of a subflow that ended with an error.
fn failed_subflow(event: &PmEvent) -> Option<IpAddr> {
    let failed = event.kind == PmEventKind::SubflowClosed && event.error.unwrap_or(0) != 0;
    event.saddr.filter(|_| failed && !event.server_side).map(|address| address.to_canonical())
}

/// Opens the sockets that nft's TPROXY diverts to; a family the kernel lacks has none.
fn listen(proxy: &Rc<Proxy>, datagrams: &Rc<Datagrams>) -> Result<TproxyPorts, String> {
    let divert = |address: IpAddr| {
        let (tcp, udp, port) = tproxy_sockets(address)?;
        runtime::spawn(proxy.clone().run(tcp));
        runtime::spawn(datagrams.clone().divert(udp));
        Ok(port)
    };
    let v4 = divert(Ipv4Addr::LOCALHOST.into()).map_err(|error: io::Error| error.to_string())?;
    let v6 = divert(Ipv6Addr::LOCALHOST.into())
        .inspect_err(|error| log::info!("IPv6 from the LAN is not tunnelled: {error}"));
    Ok(TproxyPorts { v4: Some(v4), v6: v6.ok() })
}

/// A TCP and a UDP socket with the same port.
fn tproxy_sockets(address: IpAddr) -> io::Result<(TcpListener, UdpServer, u16)> {
    let mut attempt = 1;
    loop {
        let tcp = socket::tproxy_listen((address, 0).into())?;
        let local = tcp.local_addr()?;
        match UdpServer::tproxy(local) {
            Ok(udp) => return Ok((tcp, udp, local.port())),
            // Somebody else's UDP has the port that TCP was given.
            Err(error) if attempt == PORT_ATTEMPTS => return Err(error),
            Err(_) => attempt += 1,
        }
    }
}
