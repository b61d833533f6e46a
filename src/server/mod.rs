//! `mptcp-bond server`: the aggregation server that routers' tunnels end at.

mod accounts;
mod control;
mod datagrams;
mod handover;
mod host;
mod kernel;
mod rotation;
mod status;

use std::fmt::Display;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::cli::{Fatal, ServerOptions};
use crate::config::server::ServerConfig;
use crate::converter;
use crate::os::addresses::OwnAddresses;
use crate::os::control::{Cause as RefusalCause, Control, Refusal, Request};
use crate::os::handover::Inheritance;
use crate::os::privileges::keep_only;
use crate::os::socket::{self, Acceptor, UdpServer};
use crate::os::{self, http, log as logging, runtime};
use crate::provision::{HTTP_TOKEN, http_token, read_server_config, read_server_keys};
use crate::registry::gate::Pass;
use crate::registry::{Cause, Registry, sharing};
use crate::relay::Workers;
use crate::tunnel::ConnectionKind;
use crate::tunnel::control::READY_TIMEOUT;
use crate::tunnel::datagram::{DATAGRAM_MAX, session_of};
use crate::tunnel::probe::UnverifiedProbe;
use crate::tunnel::stream::PREAMBLE_TIMEOUT;
use crate::web::{Place, Site, metrics};
use accounts::AccountsFile;
use datagrams::{Datagrams, Way};
use handover::Inherited;

/// Connections the kernel holds until they are accepted.
const BACKLOG: i32 = 4096;
/// How long a connection may take to show who it is, by either kind of first byte.
const HELLO_LIMIT: Duration = PREAMBLE_TIMEOUT;
const _: () = assert!(HELLO_LIMIT.as_secs() == READY_TIMEOUT.as_secs());
/// Wait after a datagram could not be received.
const RECEIVE_RETRY: Duration = Duration::from_millis(100);

/// Runs the server until it is told to stop.
pub fn run(options: &ServerOptions) -> ExitCode {
    match start(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => fatal.report(),
    }
}

fn start(options: &ServerOptions) -> Result<(), Fatal> {
    // Before anything else is opened.
    let inheritance = os::handover::take();
    let config = read_server_config(&options.config)?;
    let keys = read_server_keys(&options.config, &config)?;
    logging::init(logging::Destination::choose(options.stderr), config.log_level);
    let registry = Registry::new(options.config.clone(), config, keys);
    runtime::run(serve(options, registry, inheritance)).map_err(Fatal::os)?
}

async fn serve(
    options: &ServerOptions,
    registry: Rc<Registry>,
    inheritance: io::Result<Option<Inheritance>>,
) -> Result<(), Fatal> {
    let control = Control::bind(&options.run_dir).await.map_err(Fatal::unavailable)?;
    if let Err(error) = socket::raise_file_limit() {
        registry.tell(log::Level::Warn, format!("cannot raise the limit of open files: {error}"));
    }
    let config = registry.config.borrow().clone();
    // Before anything listens: connections inherit their buffers' sizes from the listener.
    let (mut kernel, mut facts) = kernel::tune(&options.run_dir, &registry).await;
    let mut inherited = inherit(&registry, inheritance);
    let listeners = match listen(&config.listen, inherited.as_mut()) {
        Ok(listeners) => listeners,
        Err(error) => {
            kernel::restore(&mut kernel).await;
            return Err(Fatal::unavailable(error));
        }
    };
    let (owner, mut requests) = mpsc::channel(16);
    runtime::spawn(control.serve(owner.clone()));
    if let Some(address) = config.metrics_listen
        && let Err(error) = serve_metrics(address, &config.key_path(&options.config), owner)
    {
        registry.tell(log::Level::Error, error);
    }
    // Before anything starts a thread.
    if let Err(error) = keep_only(kernel::privileges(kernel.as_ref(), &config)) {
        let text = format!("cannot give up privileges that are not needed: {error}");
        registry.tell(log::Level::Warn, text);
    }
    match deny_own_addresses(&registry).await {
        Ok(own) => drop(runtime::spawn(watch_own_addresses(registry.clone(), own))),
        Err(error) => {
            let text = format!(
                "cannot list this host's addresses: {error}; deny those that clients must not \
                 reach in [policy]"
            );
            registry.tell(log::Level::Warn, text);
        }
    }
    let workers = Rc::new(Workers::start().map_err(Fatal::os)?);
    let datagrams = Datagrams::new(registry.clone());
    let (mut kept, mut accepting) = (Vec::new(), Vec::new());
    for (tcp, udp) in listeners {
        kept.push(tcp.as_fd().try_clone_to_owned().map_err(Fatal::os)?);
        accepting.push(runtime::spawn(accept(registry.clone(), workers.clone(), tcp)));
        runtime::spawn(serve_udp(registry.clone(), datagrams.clone(), Rc::new(udp)));
    }
    facts.listen = config.listen.iter().map(ToString::to_string).collect();
    let clients = config.credentials().count();
    let text = format!("listening on {} for {clients} clients", facts.listen.join(", "));
    registry.tell(log::Level::Info, text);
    tell_wrong_sources(&registry);
    let resumed = inherited.map_or(0, |inherited| inherited.resume(&registry, &workers));
    if resumed > 0 {
        registry.tell(log::Level::Info, format!("{resumed} streams go on over the restart"));
    }
    if let Err(error) = os::handover::notify("READY=1") {
        registry.tell(log::Level::Warn, format!("cannot tell the service manager: {error}"));
    }

    let mut accounts = AccountsFile::new(&options.config);
    let (saved, problem) = accounts.load();
    *registry.accounts.borrow_mut() = saved;
    problem.into_iter().for_each(|text| registry.tell(log::Level::Error, text));

    let mut second = interval(Duration::from_secs(1));
    let mut sharing = interval(sharing::INTERVAL);
    sharing.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut terminate = signal(SignalKind::terminate()).map_err(Fatal::os)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Fatal::os)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(Fatal::os)?;
    loop {
        tokio::select! {
            now = second.tick() => {
                registry.measure(now.into_std());
                save(&registry, &mut accounts, now.into_std(), false);
                registry.sessions.borrow_mut().forget_expired(now.into_std());
                registry.tidy_forwards(now.into_std());
                datagrams.expire(now.into_std());
                let expired = now.into_std().checked_sub(HELLO_LIMIT);
                for source in expired.map_or_else(Vec::new, |at| registry.gate.expire(at)) {
                    registry.refuse(Cause::Silent, source);
                }
            }
            now = sharing.tick(), if registry.shares_uplink() => registry.share(now.into_std()),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                // The error is logged, and shown by the status.
                let _ = reload(options, &registry, &config, &mut facts);
            }
            Some(request) = requests.recv() => {
                let result = match request.method.as_str() {
                    "status" => {
                        let status = status::snapshot(&registry, &facts);
                        status.answer(request.params).map_err(Refusal::parameters)
                    }
                    "clients" => Ok(status::clients_json(&registry)),
                    "reload" => reload(options, &registry, &config, &mut facts)
                        .map(|()| "{}".to_owned())
                        .map_err(|error| Refusal::new(RefusalCause::Configuration, error)),
                    "metrics" => {
                        let metrics = metrics(&status::snapshot(&registry, &facts));
                        Ok(Value::from(metrics).to_string())
                    }
                    other => Err(Refusal::no_method(other)),
                };
                // Who asked may be gone.
                let _ = request.reply.send(result);
            }
        }
    }
    accepting.iter().for_each(JoinHandle::abort);
    kept.extend(registry.forwards.leave());
    match handover::leave(&registry, &kept).await {
        Ok(0) => registry.tell(log::Level::Info, "stopping".into()),
        Ok(streams) => {
            let text = format!("stopping; {streams} streams go on if this is a restart");
            registry.tell(log::Level::Info, text);
        }
        Err(error) => {
            let text = format!("stopping; no stream goes on over a restart: {error}");
            registry.tell(log::Level::Warn, text);
        }
    }
    registry.measure(Instant::now());
    save(&registry, &mut accounts, Instant::now(), true);
    kernel::restore(&mut kernel).await;
    Ok(())
}

/// Puts the configuration file in force; `started` is the configuration that the server began with.
///
/// # Errors
/// What is wrong with the file; the configuration before it stays in force.
fn reload(
    options: &ServerOptions,
    registry: &Registry,
    started: &ServerConfig,
    facts: &mut status::Facts,
) -> Result<(), String> {
    let read = read_server_config(&options.config)
        .and_then(|new| Ok((read_server_keys(&options.config, &new)?, new)));
    let (keys, new) = match read {
        Ok(read) => read,
        Err(error) => {
            let text = error.to_string();
            let told = format!("configuration not reloaded, the old one stays: {text}");
            registry.tell(log::Level::Error, told);
            facts.config_error = Some(text.clone());
            return Err(text);
        }
    };
    let restart = needs_restart(started, &new);
    logging::set_level(new.log_level);
    registry.set_keys(keys);
    registry.reconfigure(new);
    rotation::settle(registry);
    registry.tidy_forwards(Instant::now());
    registry.tell(log::Level::Info, "configuration reloaded".into());
    tell_wrong_sources(registry);
    if restart {
        let text = "listen, metrics_listen and unauthenticated take effect at the next start";
        registry.tell(log::Level::Warn, text.into());
    }
    facts.config_error = None;
    Ok(())
}

/// Saves what the clients carried, if it is time for that, or at once.
fn save(registry: &Registry, file: &mut AccountsFile, now: Instant, at_once: bool) {
    let text = registry.accounts.borrow_mut().to_be_saved(now, at_once);
    if let Some(Err(error)) = text.map(|text| file.save(&text)) {
        registry.tell(log::Level::Warn, error);
    }
}

/// Serves the metrics over HTTP; beyond this host it takes the token beside the key.
fn serve_metrics(
    address: SocketAddr,
    key: &Path,
    owner: mpsc::Sender<Request>,
) -> Result<(), String> {
    let failed =
        |error: &dyn Display| format!("the metrics are not served: {error}; see 'metrics_listen'");
    let access = Place::of(address).access(|| http_token(&key.with_file_name(HTTP_TOKEN)));
    let access = access.map_err(|error| failed(&error))?;
    let listener = socket::tcp_listen(address, None).map_err(|error| failed(&error))?;
    runtime::spawn(http::serve(listener, Site::Server, access, owner));
    Ok(())
}

/// Says which sources are none of this host's addresses.
fn tell_wrong_sources(registry: &Registry) {
    for source in registry.config.borrow().sources.clone() {
        if let Err(error) = UdpSocket::bind((source, 0)) {
            let text = format!(
                "source {source} cannot be used, and no target of its family be reached: {error}; \
                 give an address of this host"
            );
            registry.tell(log::Level::Error, text);
        }
    }
}

/// Whether a configuration differs from the one started with in what is read only then.
fn needs_restart(started: &ServerConfig, new: &ServerConfig) -> bool {
    let fixed = |config: &ServerConfig| {
        let ServerConfig { listen, metrics_listen, limits, .. } = config.clone();
        (listen, metrics_listen, limits.unauthenticated)
    };
    fixed(started) != fixed(new)
}

/// What the server that ran before left.
fn inherit(registry: &Registry, inheritance: io::Result<Option<Inheritance>>) -> Option<Inherited> {
    let inherited = inheritance.and_then(|left| left.map(Inherited::read).transpose());
    inherited.unwrap_or_else(|error| {
        let text = format!("streams of before the restart have ended: {error}");
        registry.tell(log::Level::Warn, text);
        None
    })
}

/// Sockets for connections and probes at each address; connections may wait already where a listener
/// was inherited.
fn listen(
    addresses: &[SocketAddr],
    mut inherited: Option<&mut Inherited>,
) -> io::Result<Vec<(TcpListener, UdpServer)>> {
    let listen = |&address| {
        let tcp = match inherited.as_mut().and_then(|inherited| inherited.listener(address)) {
            Some(listener) => TcpListener::from_std(listener.into())?,
            None => socket::mptcp_listen(address, BACKLOG)?,
        };
        Ok((tcp, UdpServer::bind(address)?))
    };
    addresses.iter().map(listen).collect()
}

/// Keeps the server's own addresses from being targets; later changes are for
/// [`watch_own_addresses`].
async fn deny_own_addresses(registry: &Registry) -> io::Result<OwnAddresses> {
    let mut own = OwnAddresses::open()?;
    registry.set_own_addresses(own.list().await?);
    Ok(own)
}

async fn watch_own_addresses(registry: Rc<Registry>, mut own: OwnAddresses) {
    loop {
        let listed = match own.changed().await {
            Ok(()) => own.list().await,
            Err(error) => Err(error),
        };
        match listed {
            Ok(addresses) => registry.set_own_addresses(addresses),
            Err(error) => {
                let text = format!("cannot watch this host's addresses any more: {error}");
                return registry.tell(log::Level::Warn, text);
            }
        }
    }
}

async fn accept(registry: Rc<Registry>, workers: Rc<Workers>, listener: TcpListener) {
    let mut acceptor = Acceptor::new(listener);
    loop {
        let (tcp, peer) = acceptor.next().await;
        let (admitted, pass) = oneshot::channel();
        let (serving, relaying) = (registry.clone(), workers.clone());
        let task = runtime::spawn(async move {
            if let Ok(pass) = pass.await {
                greet(serving, relaying, tcp, peer, pass).await;
            }
        });
        let (pass, evicted) = registry.gate.admit(peer.ip(), task.abort_handle(), Instant::now());
        if let Some(source) = evicted {
            registry.refuse(Cause::Crowded, source);
        }
        // The task waits for it: it cannot have ended.
        let _ = admitted.send(pass);
        if registry.gate.is_filling() {
            // Those who have said already who they are go in before others have to give way.
            yield_now().await;
        }
    }
}

/// Finds out what a new connection is for.
async fn greet(
    registry: Rc<Registry>,
    workers: Rc<Workers>,
    mut tcp: TcpStream,
    peer: SocketAddr,
    pass: Pass,
) {
    match tcp.read_u8().await {
        Err(_) => {}
        Ok(byte) => match ConnectionKind::from_first_byte(byte) {
            // Apart: its frame is large, and streams are many.
            Some(ConnectionKind::Control) => {
                Box::pin(control::serve(registry, tcp, peer, pass)).await;
            }
            Some(ConnectionKind::Stream | ConnectionKind::Convert) | None => {
                converter::serve(registry, workers, tcp, peer, pass, byte).await;
            }
        },
    }
}

/// Answers probes, and carries datagrams.
async fn serve_udp(registry: Rc<Registry>, datagrams: Rc<Datagrams>, udp: Rc<UdpServer>) {
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        let datagram = match udp.receive(&mut buffer).await {
            Ok(datagram) => datagram,
            Err(error) => {
                log::debug!("cannot receive a datagram: {error}");
                sleep(RECEIVE_RETRY).await;
                continue;
            }
        };
        let request = buffer.get_mut(..datagram.length).unwrap_or_default();
        let (remote, local) = (datagram.remote, datagram.local.ip());
        if session_of(request).is_some() {
            datagrams.take(Way { socket: udp.clone(), remote, local }, request);
            continue;
        }
        let answer = UnverifiedProbe::parse(request).ok().and_then(|probe| {
            let mut sessions = registry.sessions.borrow_mut();
            let keys = sessions.find(probe.session(), Instant::now())?.state.keys();
            let mut reply = probe.request(keys).ok()?.reply(remote).encode(keys).to_vec();
            // As large as the request, never larger: the way back is tried as well.
            reply.resize(request.len(), 0);
            Some(reply)
        });
        // Strangers and probes of sessions long gone get no answer.
        let Some(answer) = answer else { continue };
        if let Err(error) = udp.send(&answer, remote, local).await {
            log::debug!("cannot answer a probe of {remote}: {error}");
        }
    }
}
