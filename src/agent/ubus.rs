//! The agent on ubus: its object, which offers what the control socket does, events of its uplinks
//! and servers, and netifd's interfaces.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use litemap::LiteMap;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use crate::controller::Event;
use crate::json;
use crate::netifd::Interface;
use crate::os::control::{Cause, MONITOR, Refusal, Request, ask};
use crate::os::runtime;
use crate::os::ubus::{self, Word};
use crate::ubus::{News, Object, Status, Table, Ticket, TooLarge, blobmsg, table};

/// The object's path.
const PATH: &str = "mptcp-bond";
/// Its methods, and their arguments.
const METHODS: [(&str, &[&str]); 7] = [
    ("status", &[]),
    ("connections", &[]),
    ("history", &["span"]),
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
/// An answer that only reads is given again for so long, unless something was changed: thousands of
/// questions are to cost little more than ten.
const ANSWER_AGE: Duration = Duration::from_millis(100);
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
    let client = Client { owner, words, check: Rc::default(), kept: Rc::default() };
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

/// When an answer was given, and what it was, by call.
type Answers = LiteMap<String, (Instant, Rc<[u8]>)>;

#[derive(Clone)]
struct Client {
    owner: mpsc::Sender<Request>,
    words: mpsc::Sender<Word>,
    check: Rc<RefCell<Check>>,
    /// Answers of calls that only read, by method and arguments.
    kept: Rc<RefCell<Answers>>,
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
        let (status, result) = match self.answer(&method, arguments).await {
            Ok(result) => (Status::OK, Some(result)),
            Err(refusal) => {
                let words = table(json!({ "error": refusal.text }));
                (status(refusal.cause), encoded(&words).ok())
            }
        };
        // Nobody waits for it when the agent is stopping.
        let _ = self.words.send(Word::Answer(ticket, status, result)).await;
    }

    async fn answer(&self, method: &str, arguments: Option<Table>) -> Result<Rc<[u8]>, Refusal> {
        let params = params(method, arguments)?;
        let only_reads = matches!(method, "status" | "connections" | "history");
        let call = format!("{method} {params}");
        let kept = self.kept.borrow().get(&call).filter(|_| only_reads).cloned();
        if let Some((_, answer)) = kept.filter(|(at, _)| at.elapsed() < ANSWER_AGE) {
            return Ok(answer);
        }
        let result = match method {
            "check" => self.check()?,
            _ => self.ask(method, params).await?,
        };
        let answer = encoded(&result)?;
        let mut kept = self.kept.borrow_mut();
        match only_reads {
            true => drop(kept.insert(call, (Instant::now(), answer.clone()))),
            false => *kept = Answers::new(),
        }
        Ok(answer)
    }

    async fn ask(&self, method: &str, params: Value) -> Result<Table, Refusal> {
        let answer = ask(&self.owner, method.to_owned(), params, None).await?;
        json::from_str(&answer)
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
                    let report = client.ask("check", Value::Null).await;
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
                    let event = json::from_str::<Table>(&line).unwrap_or_default();
                    self.tell_one(event).await;
                }
            }
            sleep(PAUSE).await;
        }
    }

    async fn tell_one(&self, event: Table) {
        let name = event.get("event").and_then(Value::as_str);
        let Some(name) = name.filter(|name| EVENTS.contains(name)).map(str::to_owned) else {
            return;
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
    let Some(arguments) = arguments else {
        return Err(Refusal::parameters("the arguments cannot be read".into()));
    };
    let mut params = Table::new();
    for (name, value) in arguments {
        match name.as_str() {
            known if names.contains(&known) => drop(params.insert(name, value)),
            RPC_SESSION => {}
            unknown => {
                let text = format!("'{method}' has no argument '{unknown}'");
                return Err(Refusal::parameters(text));
            }
        }
    }
    Ok(if names.is_empty() { Value::Null } else { params.into() })
}

fn encoded(table: &Table) -> Result<Rc<[u8]>, Refusal> {
    let bytes = blobmsg::encode(table);
    let too_large = |TooLarge| Refusal::new(Cause::Busy, "the answer is too large for ubus");
    bytes.map(Rc::from).map_err(too_large)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_of_rpcd_users_cover_each_method_once() {
        let acl = include_str!("../../files/usr/share/rpcd/acl.d/mptcp-bond.json");
        let acl: Value = serde_json::from_str(acl).unwrap();
        let methods = |right: &str| acl[PATH][right]["ubus"][PATH].as_array().unwrap().clone();
        let (read, write) = (methods("read"), methods("write"));
        let all: Vec<Value> = METHODS.iter().map(|(name, _)| (*name).into()).collect();
        assert_eq!([read, write.clone()].concat(), all);
        assert_eq!(write, ["uplink", "pair", "reload"]);
    }

    #[test]
    fn an_answer_is_given_again_until_something_is_changed() {
        let (owner, mut requests) = mpsc::channel::<Request>(4);
        let (words, _queue) = mpsc::channel(1);
        let client = Client { owner, words, check: Rc::default(), kept: Rc::default() };
        let asked = runtime::run(async {
            let asked = runtime::spawn(async move {
                let mut asked = Vec::new();
                while let Some(request) = requests.recv().await {
                    asked.push(request.method);
                    request.reply.send(Ok("{}".to_owned())).unwrap();
                }
                asked
            });
            for method in ["status", "status", "connections", "reload", "reload", "status"] {
                client.answer(method, Some(Table::new())).await.unwrap();
            }
            drop(client);
            asked.await.unwrap()
        });
        assert_eq!(asked.unwrap(), ["status", "connections", "reload", "reload", "status"]);
    }

    #[test]
    fn arguments_are_those_of_the_method_and_rpcd_may_add_its_session() {
        let asked = |method: &str, arguments: Value| {
            params(method, Some(table(arguments))).map_err(|refusal| status(refusal.cause))
        };
        let role = json!({ "name": "wan", "role": "off" });
        assert_eq!(asked("uplink", role.clone()), Ok(role));
        assert_eq!(asked("status", json!({ "ubus_rpc_session": "0123" })), Ok(Value::Null));
        assert_eq!(asked("history", json!({})), Ok(json!({})));
        let unknown = json!({ "name": "wan", "rôle": "off" });
        assert_eq!(asked("uplink", unknown), Err(Status::INVALID_ARGUMENT));
        assert_eq!(asked("monitor", json!({})), Err(Status::METHOD_NOT_FOUND));
        assert!(params("status", None).is_err(), "what cannot be read is no empty list");
    }
}
