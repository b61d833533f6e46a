//! The DevTools protocol: messages of JSON, each ended by a NUL.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long an answer may take; a machine that is busy with other suites draws slowly.
const LIMIT: Duration = Duration::from_secs(30);

/// The pipes to a browser.
pub struct Connection {
    input: Box<dyn Write>,
    messages: Receiver<Value>,
    last_id: u64,
    /// What happened, by session.
    events: BTreeMap<String, Vec<Value>>,
}

impl Connection {
    /// Takes over the pipes.
    pub fn new(input: impl Write + 'static, output: impl Read + Send + 'static) -> Connection {
        let (sender, messages) = channel();
        thread::spawn(move || {
            for message in BufReader::new(output).split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message).expect("the browser writes JSON");
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        Connection { input: Box::new(input), messages, last_id: 0, events: BTreeMap::new() }
    }

    /// Calls a method, of the browser itself where the session's name is empty.
    ///
    /// # Errors
    /// What the browser says against it, or that it does not answer.
    pub fn call(
        &mut self,
        session: &str,
        method: &str,
        parameters: Value,
    ) -> Result<Value, String> {
        let id = self.send(session, method, parameters)?;
        self.answer(id)
    }

    fn send(&mut self, session: &str, method: &str, parameters: Value) -> Result<u64, String> {
        self.last_id += 1;
        let mut request = json!({ "id": self.last_id, "method": method, "params": parameters });
        if !session.is_empty() {
            request["sessionId"] = json!(session);
        }
        let mut bytes = request.to_string().into_bytes();
        bytes.push(0);
        let sent = self.input.write_all(&bytes).and_then(|()| self.input.flush());
        sent.map_err(|error| format!("the browser takes no calls: {error}"))?;
        Ok(self.last_id)
    }

    fn answer(&mut self, id: u64) -> Result<Value, String> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut message = self.messages.recv_timeout(left).map_err(|error| match error {
                RecvTimeoutError::Timeout => format!("the browser gave no answer in {LIMIT:?}"),
                RecvTimeoutError::Disconnected => "the browser has ended".to_owned(),
            })?;
            if message["id"] == id {
                return match message.get("error") {
                    Some(error) => Err(error.to_string()),
                    None => Ok(message["result"].take()),
                };
            }
            let session = message["sessionId"].as_str().unwrap_or_default().to_owned();
            if message["method"] == "Page.javascriptDialogOpening" {
                // Nothing else is answered while it is open.
                self.send(&session, "Page.handleJavaScriptDialog", json!({ "accept": true }))?;
            }
            self.events.entry(session).or_default().push(message);
        }
    }

    /// The events of a session since the last time.
    pub fn take_events(&mut self, session: &str) -> Vec<Value> {
        self.events.remove(session).unwrap_or_default()
    }
}
