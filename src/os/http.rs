//! HTTP/1.1 for those who look on: one request a connection.
//!
//! Whoever asks must not hold up the connections that the program is there for. So requests are taken
//! at a pace, what they read is kept for a moment, and of the connections the oldest makes way.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::control::{Cause, Request, ask};
use super::runtime;
use super::socket::Acceptor;
use crate::json;
use crate::web::{Access, Answer, Content, HEAD_LIMIT, Head, Site, Wanted, route};

/// Connections served at once; for a further one, the oldest is cut off.
const CONNECTIONS_LIMIT: usize = 64;
/// Pause after each connection taken; others wait in the listener's queue.
const PACE: Duration = Duration::from_millis(10);
/// How long a client may take to ask, and again to take its answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// What was read is the answer to the same question for so long.
const ANSWER_AGE: Duration = Duration::from_millis(100);
/// How long, and for how many bytes, a client is listened to after its answer. A connection closed
/// on unread data is reset, and the client might lose its answer.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 64 * 1024);

/// What is served, to whom, and who knows it.
struct Service {
    site: Site,
    access: Access,
    owner: mpsc::Sender<Request>,
    /// What was read a moment ago, what for, and when.
    kept: Mutex<Vec<(Wanted, Instant, Rc<str>)>>,
}

/// Serves on `listener`, asking `owner`, until the returned future is dropped.
pub async fn serve(
    listener: TcpListener,
    site: Site,
    access: Access,
    owner: mpsc::Sender<Request>,
) {
    let service = Rc::new(Service { site, access, owner, kept: Mutex::default() });
    let mut connections = Connections::default();
    let mut acceptor = Acceptor::new(listener);
    loop {
        let (stream, _) = acceptor.next().await;
        let service = service.clone();
        let task = runtime::spawn(async move {
            // Whatever goes wrong with a connection concerns its client alone.
            let _ = service.serve(stream).await;
        });
        connections.add(task.abort_handle());
        sleep(PACE).await;
    }
}

/// Connections being served, the oldest first; they end with this.
#[derive(Default)]
struct Connections(VecDeque<AbortHandle>);

impl Connections {
    fn add(&mut self, task: AbortHandle) {
        self.0.retain(|task| !task.is_finished());
        if self.0.len() >= CONNECTIONS_LIMIT
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
        }
        self.0.push_back(task);
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

impl Service {
    async fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        let head = match timeout(CLIENT_TIMEOUT, read_head(&mut stream)).await {
            Err(_) => Err(Answer::error(408, "no request in time")),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(head))) => head,
        };
        let (answer, with_body) = match head {
            Err(answer) => (answer, true),
            Ok(head) => (self.answer(&head).await, head.method != "HEAD"),
        };
        timeout(CLIENT_TIMEOUT, stream.write_all(&answer.bytes(with_body))).await??;
        stream.shutdown().await?;
        let (time, bytes) = LINGER;
        let mut rest = stream.take(bytes as u64);
        let _ = timeout(time, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
        Ok(())
    }

    async fn answer(&self, head: &Head) -> Answer {
        let wanted = match route(head, &self.access, self.site) {
            Ok(wanted) => wanted,
            Err(answer) => return answer,
        };
        // Those who ask the same wait here for the first of them.
        let mut kept = self.kept.lock().await;
        kept.retain(|(_, read, _)| read.elapsed() < ANSWER_AGE);
        if let Some((_, _, body)) = kept.iter().find(|(known, ..)| *known == wanted) {
            return Answer::of(wanted.content, body.to_string());
        }
        let result = ask(&self.owner, wanted.method.to_owned(), wanted.params.clone(), None).await;
        let body = match result {
            Ok(json) if wanted.content == Content::Json => json,
            Ok(text) => json::from_str(&text).unwrap_or_default(),
            Err(refusal) if refusal.cause == Cause::Parameters => {
                return Answer::error(400, &refusal.text);
            }
            Err(refusal) => return Answer::error(503, &refusal.text),
        };
        let content = wanted.content;
        kept.push((wanted, Instant::now(), body.as_str().into()));
        Answer::of(content, body)
    }
}

/// Reads a request's head; `None` when the client goes away before it is complete.
async fn read_head(stream: &mut TcpStream) -> io::Result<Option<Result<Head, Answer>>> {
    let mut bytes = Vec::with_capacity(1024);
    loop {
        let left = HEAD_LIMIT.saturating_sub(bytes.len());
        if (&mut *stream).take(left as u64).read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
        if let Some(head) = Head::parse(&bytes).transpose() {
            return Ok(Some(head));
        }
    }
}

#[cfg(test)]
mod tests;
