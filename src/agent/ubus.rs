//! The agent on ubus: its object, which offers what the control socket does, events of its uplinks
//! and servers, and netifd's interfaces.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use crate::controller::Event;
use crate::netifd::Interface;
use crate::os::control::{Cause, MONITOR, Refusal, Request, ask};
use crate::os::runtime;
use crate::os::ubus::{self, Word};
use crate::ubus::{News, Object, Status, Table, Ticket};

/// The object's path.
const PATH: &str = "mptcp-bond";
/// Its methods, and their arguments.
const METHODS: [(&str, &[&str]); 6] = [
    ("status", &[]),
    ("connections", &[]),
    ("check", &[]),
    ("uplink", &["name", "role"]),
    ("pair", &["uri"]),
    ("reload", &[]),
];
/// What rpcd adds to the arguments of every call.
const RPC_SESSION: &str = "ubus_rpc_session";
/// Events of the agent that are told on ubus.
const EVENTS: [&str; 2] = ["uplink", "server"];
/// Words that may wait until they are sent.
const WORDS_QUEUED: usize = 64;
/// A report of a check is the answer for so long; then a new check is begun.
const REPORT_AGE: Duration = Duration::from_secs(10);
/// Pause before the agent is asked again for its events.
const PAUSE: Duration = Duration::from_secs(1);

/// Serves on the bus behind `socket`, asking `owner`; netifd's interfaces come as events. The first
/// of them comes soon, also where there is no netifd.
pub fn start(socket: &Path, owner: mpsc::Sender<Request>) -> mpsc::UnboundedReceiver<Event> {
    let (arrived, news) = mpsc::unbounded_channel();
    let (words, queue) = mpsc::channel(WORDS_QUEUED);
    let (events, interfaces) = mpsc::unbounded_channel();
    let object = Object::new(PATH, &METHODS);
    runtime::spawn(ubus::run(socket.to_owned(), Some(object), arrived, queue));
    let client = Client { owner, words, check: Rc::default() };
    runtime::spawn(client.run(news, events));
    interfaces
}

/// The last check that was asked for over ubus, which takes some seconds.
#[derive(Default)]
enum Check {
    #[default]
    None,
    Running,
    Done(Instant, Result<Table, Refusal>),
}

#[derive(Clone)]
struct Client {
    owner: mpsc::Sender<Request>,
    words: mpsc::Sender<Word>,
    check: Rc<RefCell<Check>>,
}

impl Client {
    async fn run(
        self,
        mut news: mpsc::UnboundedReceiver<News>,
        events: mpsc::UnboundedSender<Event>,
    ) {
        let mut teller: Option<AbortHandle> = None;
        let mut netifd_known = false;
        while let Some(item) = news.recv().await {
            let event = match item {
                News::Call { ticket, method, arguments } => {
                    runtime::spawn(self.clone().serve(ticket, method, arguments));
                    continue;
                }
                News::Published => {
                    // Whoever listens may have missed something, and is told how things are.
                    teller.take().inspect(AbortHandle::abort);
                    teller = Some(runtime::spawn(self.clone().tell()).abort_handle());
                    continue;
                }
                News::Unpublished(Status(status)) => {
                    log::warn!(
                        "ubus: ubusd does not take the object '{PATH}' (status {status}), for \
                         another one has this name; stop the other agent"
                    );
                    continue;
                }
                News::Interfaces(dump) => Event::Interfaces(Interface::all_from_dump(&dump)),
                News::Interface(status) => match Interface::from_status(&status) {
                    Some(interface) => Event::Interface(interface),
                    None => continue,
                },
                // What it told before is the best there is to know.
                News::NoNetifd if netifd_known => continue,
                News::NoNetifd => Event::Interfaces(Vec::new()),
            };
            netifd_known = true;
            // Nobody waits for it when the agent is stopping.
            let _ = events.send(event);
        }
    }

    async fn serve(self, ticket: Ticket, method: String, arguments: Option<Table>) {
        let (status, result) = match self.call(method, arguments).await {
            Ok(result) => (Status::OK, result),
            Err(refusal) => {
                let mut words = Table::new();
                words.insert("error".into(), refusal.text.into());
                (status(refusal.cause), words)
            }
        };
        // Nobody waits for it when the agent is stopping.
        let _ = self.words.send(Word::Answer(ticket, status, Some(result))).await;
    }

    async fn call(&self, method: String, arguments: Option<Table>) -> Result<Table, Refusal> {
        let params = params(&method, arguments)?;
        match method.as_str() {
            "check" => self.check(),
            _ => self.ask(method, params).await,
        }
    }

    async fn ask(&self, method: String, params: Value) -> Result<Table, Refusal> {
        let answer = ask(&self.owner, method, params, None).await?;
        serde_json::from_str(&answer)
            .map_err(|error| Refusal::new(Cause::System, format!("no JSON object: {error}")))
    }

    /// The report of a check that has just ended, or that one is under way.
    fn check(&self) -> Result<Table, Refusal> {
        let mut check = self.check.borrow_mut();
        match &*check {
            Check::Running => {}
            Check::Done(at, report) if at.elapsed() < REPORT_AGE => {
                let report = report.clone()?;
                return Ok(table(json!({ "running": false, "report": report })));
            }
            Check::None | Check::Done(..) => {
                *check = Check::Running;
                let client = self.clone();
                runtime::spawn(async move {
                    let report = client.ask("check".into(), Value::Null).await;
                    *client.check.borrow_mut() = Check::Done(Instant::now(), report);
                });
            }
        }
        Ok(table(json!({ "running": true })))
    }

    /// Tells of what happens, beginning with how things are.
    async fn tell(self) {
        loop {
            let (lines, mut queue) = mpsc::channel(WORDS_QUEUED);
            let params = json!({ "events": EVENTS });
            if ask(&self.owner, MONITOR.to_owned(), params, Some(lines)).await.is_ok() {
                while let Some(line) = queue.recv().await {
                    let event = serde_json::from_str::<Table>(&line).unwrap_or_default();
                    self.tell_one(event).await;
                }
            }
            sleep(PAUSE).await;
        }
    }

    async fn tell_one(&self, mut event: Table) {
        let name = match event.remove("event") {
            Some(Value::String(name)) if EVENTS.contains(&name.as_str()) => name,
            _ => return,
        };
        // Nobody waits for it when the agent is stopping.
        let _ = self.words.send(Word::Event(name, event)).await;
    }
}

/// What a method is asked with: its own arguments alone.
fn params(method: &str, arguments: Option<Table>) -> Result<Value, Refusal> {
    let Some((_, names)) = METHODS.iter().find(|(known, _)| *known == method) else {
        return Err(Refusal::no_method(method));
    };
    let Some(mut arguments) = arguments else {
        return Err(Refusal::parameters("the arguments cannot be read".into()));
    };
    arguments.remove(RPC_SESSION);
    if let Some(unknown) = arguments.keys().find(|key| !names.contains(&key.as_str())) {
        return Err(Refusal::parameters(format!("'{method}' has no argument '{unknown}'")));
    }
    Ok(if names.is_empty() { Value::Null } else { arguments.into() })
}

fn table(value: Value) -> Table {
    match value {
        Value::Object(table) => table,
        _ => Table::new(),
    }
}

fn status(cause: Cause) -> Status {
    match cause {
        Cause::Parameters => Status::INVALID_ARGUMENT,
        Cause::Method => Status::METHOD_NOT_FOUND,
        Cause::NotFound => Status::NOT_FOUND,
        Cause::Busy => Status::NO_MEMORY,
        Cause::Configuration => Status::PARSE_ERROR,
        Cause::System => Status::SYSTEM_ERROR,
        Cause::Permission => Status::PERMISSION_DENIED,
        Cause::Remote => Status::CONNECTION_FAILED,
        Cause::Timeout => Status::TIMEOUT,
    }
}
