//! The control socket: one line of JSON asks, one line answers.
//!
//! A client connects to `control.sock` in the run directory, sends `{"method":"status"}`, with
//! `"params"` where the method takes some, and a newline, and receives `{"result":...}` or `{"error":"..."}` and a newline; then the connection
//! ends. After `{"method":"monitor"}` lines follow the answer until one side goes away. The socket
//! belongs to one process: the run directory is locked as long as it lives.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::json;

/// The socket's name in the run directory.
const SOCKET: &str = "control.sock";
/// Bytes of a request, its newline included.
const REQUEST_LIMIT: u64 = 64 * 1024;
/// Bytes of an answer a client takes.
const ANSWER_LIMIT: u64 = 16 * 1024 * 1024;
/// Clients served at once; further ones wait.
const CLIENTS_LIMIT: usize = 32;
/// How long a client may take to ask, or to take its answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the owner of the state may take to answer.
const OWNER_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a client waits in each step: longer than the server's limits together.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a lock is waited for: a child of a killed process has it, too, until it runs `nft`.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause between two attempts to lock.
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Pause after a failed accept, which is mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The method whose answer is followed by lines, as things happen.
pub const MONITOR: &str = "monitor";
/// Lines that wait for a slow reader; the owner never waits.
const LINES_QUEUED: usize = 256;

/// What one who owns the state is asked, by the control socket or over HTTP.
#[derive(Debug)]
pub struct Request {
    /// What to do, for instance `status`.
    pub method: String,
    /// What the method takes: an object, or null.
    pub params: Value,
    /// Takes the answer: the result as JSON text, or why there is none.
    pub reply: oneshot::Sender<Result<String, Refusal>>,
    /// Takes lines after the answer, where the method is [`MONITOR`].
    pub lines: Option<mpsc::Sender<String>>,
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The kind of reason, for programs.
    pub cause: Cause,
    /// The reason in words.
    pub text: String,
}

/// Kinds of reasons to refuse a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A parameter is missing or wrong.
    Parameters,
    /// There is no such method.
    Method,
    /// What a parameter names is not there.
    NotFound,
    /// Something else has to end first.
    Busy,
    /// The configuration is wrong.
    Configuration,
    /// A file or the system stands in the way.
    System,
    /// The operating system does not permit it.
    Permission,
    /// The other side of the network did not answer or did not agree.
    Remote,
    /// The owner of the state did not answer in time.
    Timeout,
}

impl Refusal {
    /// A refusal for this reason.
    pub fn new(cause: Cause, text: impl Into<String>) -> Refusal {
        Refusal { cause, text: text.into() }
    }

    /// Nothing has this name.
    pub fn no_method(name: &str) -> Refusal {
        Refusal::new(Cause::Method, format!("there is no method '{name}'"))
    }

    /// Parameters that are wrong in this way.
    pub fn parameters(text: String) -> Refusal {
        Refusal::new(Cause::Parameters, text)
    }
}

/// Asks the owner of the state and waits for the answer.
pub async fn ask(
    owner: &mpsc::Sender<Request>,
    method: String,
    params: Value,
    lines: Option<mpsc::Sender<String>>,
) -> Result<String, Refusal> {
    let (reply, answer) = oneshot::channel();
    let asked = async {
        let stopping = || Refusal::new(Cause::System, "the program is stopping");
        owner.send(Request { method, params, reply, lines }).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    };
    match timeout(OWNER_TIMEOUT, asked).await {
        Ok(answer) => answer,
        Err(_) => {
            let text = format!("no answer within {} s", OWNER_TIMEOUT.as_secs());
            Err(Refusal::new(Cause::Timeout, text))
        }
    }
}

/// Why the control socket cannot be opened.
#[derive(Debug)]
pub enum ControlError {
    /// Another process owns the run directory.
    AlreadyRunning(PathBuf),
    /// Something other than a socket has the socket's name.
    NotASocket(PathBuf),
    /// An operation failed.
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ControlError::AlreadyRunning(dir) => write!(
                f,
                "already running: another process uses {}; stop it, or give --run-dir another \
                 directory",
                dir.display()
            ),
            ControlError::NotASocket(path) => {
                write!(f, "{} is in the way and is no socket; remove it", path.display())
            }
            ControlError::Io { action, path, error } => {
                write!(f, "cannot {action} {}: {error}", path.display())
            }
        }
    }
}

impl std::error::Error for ControlError {}

/// An open control socket. Dropping it removes the socket and unlocks the run directory.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
    /// Held for its lock alone; declared last, so that the socket is removed under the lock.
    _lock: File,
}

impl Control {
    /// Opens the control socket in `run_dir`, which is made if need be. What a killed process left
    /// is replaced.
    ///
    /// # Errors
    /// [`ControlError::AlreadyRunning`] while another process holds the directory, after a second; and others.
    pub async fn bind(run_dir: &Path) -> Result<Control, ControlError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| ControlError::Io { action, path, error }
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(run_dir)
            .map_err(io("make", run_dir))?;
        // The kernel gives a lock back however its holder ends, so it never is stale.
        let lock = File::open(run_dir).map_err(io("open", run_dir))?;
        let given_up = Instant::now() + LOCK_TIMEOUT;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < given_up => {
                    sleep(LOCK_PAUSE).await;
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(ControlError::AlreadyRunning(run_dir.to_owned()));
                }
                Err(errno) => return Err(io("lock", run_dir)(errno.into())),
            }
        }
        let path = run_dir.join(SOCKET);
        match std::fs::symlink_metadata(&path) {
            Ok(found) if found.file_type().is_socket() => {
                std::fs::remove_file(&path).map_err(io("remove", &path))?;
            }
            Ok(_) => return Err(ControlError::NotASocket(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io("look at", &path)(error)),
        }
        let listener = listen(&path).map_err(io("open", &path))?;
        Ok(Control { listener, path, _lock: lock })
    }

    /// Serves clients, passing what they ask to `owner`, until the returned future is dropped.
    pub async fn serve(self, owner: mpsc::Sender<Request>) {
        let places = Arc::new(Semaphore::new(CLIENTS_LIMIT));
        let mut clients = JoinSet::new();
        loop {
            while clients.try_join_next().is_some() {}
            let Ok(place) = places.clone().acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let owner = owner.clone();
                    clients.spawn(async move {
                        // A client that went away or was too slow is no concern of anybody else's.
                        let _ = serve_client(stream, &owner).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    ::log::debug!("control socket: accept: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    // Nobody can connect before listen, so the mode is in force from the first connection on.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    socket.listen(CLIENTS_LIMIT as i32)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(std::os::fd::OwnedFd::from(socket).into())
}

#[derive(Deserialize)]
struct Question {
    method: String,
    #[serde(default)]
    params: Value,
}

async fn serve_client(mut stream: UnixStream, owner: &mpsc::Sender<Request>) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut line = Vec::new();
    let mut reader = BufReader::new(reader.take(REQUEST_LIMIT));
    let mut queue = None;
    let answer = match timeout(CLIENT_TIMEOUT, reader.read_until(b'\n', &mut line)).await {
        Err(_) => Err("no request in time".to_owned()),
        Ok(Err(error)) => return Err(error),
        Ok(Ok(0)) => return Ok(()),
        Ok(Ok(_)) if line.last() != Some(&b'\n') && line.len() as u64 >= REQUEST_LIMIT => {
            Err(format!("the request is longer than {REQUEST_LIMIT} bytes"))
        }
        Ok(Ok(_)) => match serde_json::from_slice::<Question>(&line) {
            Ok(question) => {
                let lines = (question.method == MONITOR).then(|| {
                    let (lines, waiting) = mpsc::channel(LINES_QUEUED);
                    queue = Some(waiting);
                    lines
                });
                let answer = ask(owner, question.method, question.params, lines).await;
                answer.map_err(|refusal| refusal.text)
            }
            Err(error) => {
                Err(format!("the request is no line such as {{\"method\":\"status\"}}: {error}"))
            }
        },
    };
    let queue = queue.filter(|_| answer.is_ok());
    let mut text = match answer {
        Ok(result) => [RESULT_BEGINS, &result, RESULT_ENDS].concat(),
        Err(error) => format!("{{\"error\":{}}}", Value::String(error)),
    };
    text.push('\n');
    timeout(CLIENT_TIMEOUT, writer.write_all(text.as_bytes())).await??;
    if let Some(queue) = queue {
        pass_on(queue, &mut reader, &mut writer).await?;
    }
    writer.shutdown().await
}

/// Writes lines as they come until the owner ends or the client goes away. A client that does not
/// read holds up nobody but itself.
async fn pass_on(
    mut queue: mpsc::Receiver<String>,
    reader: &mut (impl AsyncReadExt + Unpin),
    writer: &mut (impl AsyncWriteExt + Unpin),
) -> io::Result<()> {
    let writing = async {
        while let Some(mut line) = queue.recv().await {
            line.push('\n');
            writer.write_all(line.as_bytes()).await?;
        }
        Ok(())
    };
    // Whatever it says, it says no more than that it is there.
    let mut sink = tokio::io::sink();
    tokio::select! {
        result = writing => result,
        result = tokio::io::copy(reader, &mut sink) => result.map(drop),
    }
}

/// Why a call over the control socket failed.
#[derive(Debug)]
pub enum CallError {
    /// Nobody listens.
    NotRunning(PathBuf),
    /// The user may not connect.
    NotPermitted(PathBuf),
    /// The connection failed.
    Io(PathBuf, io::Error),
    /// The answer is not one.
    Protocol(String),
    /// The other side says no.
    Refused(String),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::NotRunning(path) => write!(
                f,
                "not running: nobody answers at {}; start it with 'mptcp-bond agent' or \
                 'mptcp-bond server', or give --run-dir the directory it was started with",
                path.display()
            ),
            CallError::NotPermitted(path) => {
                write!(f, "no permission to use {}; run this as root", path.display())
            }
            CallError::Io(path, error) => write!(f, "{}: {error}", path.display()),
            CallError::Protocol(text) => write!(f, "the answer cannot be read: {text}"),
            CallError::Refused(text) => write!(f, "{text}"),
        }
    }
}

impl std::error::Error for CallError {}

/// Lines of a process that owns a run directory, as they come.
pub struct Lines {
    path: PathBuf,
    reader: BufReader<UnixStream>,
}

impl Lines {
    /// Begins to read what [`MONITOR`] yields with these parameters. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// As those of [`call_with`].
    pub async fn follow(run_dir: &Path, params: Value) -> Result<Lines, CallError> {
        let path = run_dir.join(SOCKET);
        let failed = |error| call_error(&path, error);
        let mut stream = UnixStream::connect(&path).await.map_err(failed)?;
        let question = serde_json::json!({ "method": MONITOR, "params": params });
        stream.write_all(format!("{question}\n").as_bytes()).await.map_err(failed)?;
        let mut lines = Lines { path: path.clone(), reader: BufReader::new(stream) };
        let answer = timeout(CALL_TIMEOUT, lines.next()).await;
        let answer = answer.unwrap_or_else(|_| Err(failed(io::ErrorKind::TimedOut.into())))?;
        read_answer(&answer.unwrap_or_default())?;
        Ok(lines)
    }

    /// The next line; `None` when the process has stopped.
    ///
    /// # Errors
    /// [`CallError::Io`] when the connection failed.
    pub async fn next(&mut self) -> Result<Option<String>, CallError> {
        let mut line = String::new();
        let mut reader = (&mut self.reader).take(ANSWER_LIMIT);
        let read = reader.read_line(&mut line).await;
        read.map_err(|error| call_error(&self.path, error))?;
        Ok(line.strip_suffix('\n').map(str::to_owned))
    }
}

fn call_error(path: &Path, error: io::Error) -> CallError {
    let path = path.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => CallError::NotRunning(path),
        io::ErrorKind::PermissionDenied => CallError::NotPermitted(path),
        _ => CallError::Io(path, error),
    }
}

/// What stands around a result.
const RESULT_BEGINS: &str = "{\"result\":";
const RESULT_ENDS: &str = "}";

/// Asks the process that owns `run_dir` for `method` with `params`, and returns the result as JSON
/// text. Blocks, for up to a minute if that process hangs.
///
/// # Errors
/// [`CallError::NotRunning`] when there is no such process, and others.
pub fn call_with(run_dir: &Path, method: &str, params: Value) -> Result<String, CallError> {
    let path = run_dir.join(SOCKET);
    let question = serde_json::json!({ "method": method, "params": params });
    let answer = exchange(&path, &question.to_string());
    read_answer(&answer.map_err(|error| call_error(&path, error))?)
}

fn exchange(path: &Path, question: &str) -> io::Result<String> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // On Unix sockets the send timeout bounds connect too.
    socket.set_write_timeout(Some(CALL_TIMEOUT))?;
    socket.set_read_timeout(Some(CALL_TIMEOUT))?;
    socket.connect(&SockAddr::unix(path)?)?;
    let mut stream = StdUnixStream::from(std::os::fd::OwnedFd::from(socket));
    stream.write_all(format!("{question}\n").as_bytes())?;
    let mut answer = String::new();
    stream.take(ANSWER_LIMIT).read_to_string(&mut answer)?;
    Ok(answer)
}

fn read_answer(answer: &str) -> Result<String, CallError> {
    #[derive(Deserialize)]
    struct Answer {
        result: Option<IgnoredAny>,
        error: Option<String>,
    }
    let unreadable = |what: &str| CallError::Protocol(what.to_owned());
    match json::from_str(answer) {
        Ok(Answer { result: Some(_), error: None }) => {
            let result = answer.trim_end().strip_prefix(RESULT_BEGINS);
            let result = result.and_then(|rest| rest.strip_suffix(RESULT_ENDS));
            result.map(str::to_owned).ok_or_else(|| unreadable("more than a result"))
        }
        Ok(Answer { error: Some(error), result: None }) => Err(CallError::Refused(error)),
        Ok(_) => Err(unreadable("neither a result nor an error")),
        Err(error) => Err(CallError::Protocol(error.to_string())),
    }
}

/// Reads anything as an answer.
#[cfg(any(test, fuzzing))]
pub fn read_anything(bytes: &[u8]) {
    let _ = read_answer(&String::from_utf8_lossy(bytes));
}

#[cfg(test)]
mod tests;
