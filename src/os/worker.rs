//! Threads beside the program's own, each with a runtime of its own.

use std::future::Future;
use std::io;
use std::thread;

use futures_util::FutureExt;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use super::{runtime, socket};

/// The stack of a thread in bytes, of which what is used takes memory.
const STACK: usize = 256 * 1024;

type Start = Box<dyn FnOnce() + Send>;

/// A thread that runs the tasks it is given; it ends when this is dropped.
pub struct Worker {
    runtime: Handle,
    /// Not bounded: what is sent waits for its end, and who sends is bounded.
    starts: Option<mpsc::UnboundedSender<Start>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread of this name.
    ///
    /// # Errors
    /// When the kernel has no event queue or no thread to give.
    pub fn start(name: &str) -> io::Result<Worker> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let handle = runtime.handle().clone();
        let (starts, mut arriving) = mpsc::unbounded_channel::<Start>();
        let serve = move || {
            LocalSet::new().block_on(&runtime, async {
                while let Some(start) = arriving.recv().await {
                    start();
                }
            });
        };
        let thread = thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(serve)?;
        Ok(Worker { runtime: handle, starts: Some(starts), thread: Some(thread) })
    }

    /// Has a stream's events come to this thread.
    ///
    /// # Errors
    /// When the kernel refuses to watch it: out of memory. The stream is then reset.
    pub fn adopt(&self, stream: TcpStream) -> io::Result<TcpStream> {
        // Were it merely closed, its peer would believe that it has got everything.
        socket::reset_when_closed(&stream, true)?;
        let stream = stream.into_std()?;
        let _context = self.runtime.enter();
        let stream = TcpStream::from_std(stream)?;
        socket::reset_when_closed(&stream, false)?;
        Ok(stream)
    }

    /// Runs what `task` makes on this thread, from now on; the future gives its output. Dropping the
    /// future drops the task, too.
    ///
    /// The output is `None` when the task panicked.
    pub fn run<T, F>(
        &self,
        task: impl FnOnce() -> F + Send + 'static,
    ) -> impl Future<Output = Option<T>>
    where
        T: Send + 'static,
        F: Future<Output = T> + Unpin + 'static,
    {
        let (mut done, output) = oneshot::channel();
        let start = move || {
            let mut task = task();
            runtime::spawn(async move {
                tokio::select! {
                    output = &mut task => drop(done.send(output)),
                    () = done.closed() => {}
                }
            });
        };
        if let Some(starts) = &self.starts {
            // Where the thread has ended, there is no output.
            let _ = starts.send(Box::new(start));
        }
        output.map(Result::ok)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.starts.take());
        if let Some(Err(_)) = self.thread.take().map(thread::JoinHandle::join) {
            log::error!("a thread panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn, ready};
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::{sleep, timeout};

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn run(test: impl AsyncFnOnce(Worker)) {
        let worker = Worker::start("test").unwrap();
        runtime::run(async { timeout(SOON, test(worker)).await.unwrap() }).unwrap();
    }

    #[test]
    fn a_stream_and_its_task_run_on_the_thread() {
        run(async |worker| {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (mut far, _) = listener.accept().await.unwrap();
            let mut near = worker.adopt(near).unwrap();
            far.write_all(b"hello").await.unwrap();
            let task = || {
                Box::pin(async move {
                    near.read_exact(&mut [0; 5]).await.unwrap();
                    sleep(Duration::from_millis(1)).await;
                    thread::current().name().map(str::to_owned)
                })
            };
            assert_eq!(worker.run(task).await.unwrap().as_deref(), Some("test"));
            assert_eq!(far.read(&mut [0]).await.unwrap(), 0, "the task has dropped its stream");
        });
    }

    #[test]
    fn a_stream_that_cannot_be_adopted_is_reset() {
        run(async |worker| {
            let ended = Worker { runtime: worker.runtime.clone(), starts: None, thread: None };
            drop(worker);
            let any = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
            let tcp = TcpListener::bind(any).await.unwrap();
            let mptcp = socket::mptcp_listen(any, 1).unwrap();
            let remotes = [&tcp, &mptcp].map(|listener| listener.local_addr().unwrap());
            let connections = [
                (socket::tcp_connect(remotes[0], None).await, tcp.accept().await),
                (socket::mptcp_connect(remotes[1], None, None).await, mptcp.accept().await),
            ];
            for (near, far) in connections {
                let (mut near, (mut far, _)) = (near.unwrap(), far.unwrap());
                far.write_all(b"hello").await.unwrap();
                near.read_exact(&mut [0; 5]).await.unwrap();
                assert!(ended.adopt(near).is_err());
                let error = far.read(&mut [0]).await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            }
        });
    }

    #[test]
    fn a_task_ends_with_who_waits_for_it_and_with_the_thread() {
        run(async |worker| {
            let (held, mut ended) = mpsc::channel(1);
            let task = || {
                Box::pin(async move {
                    held.send("started").await.unwrap();
                    pending::<()>().await;
                })
            };
            tokio::select! {
                _ = worker.run(task) => panic!("it never ends"),
                started = ended.recv() => assert_eq!(started, Some("started")),
            }
            assert_eq!(ended.recv().await, None);

            let (held, mut ended) = mpsc::channel::<()>(1);
            let task = || {
                runtime::spawn(async move { held.closed().await });
                ready(())
            };
            worker.run(task).await.unwrap();
            assert!(ended.recv().now_or_never().is_none());
            drop(worker);
            assert_eq!(ended.recv().await, None);
        });
    }

    #[test]
    fn a_panic_is_told_and_ends_nothing_else() {
        run(async |worker| {
            assert_eq!(worker.run(|| poll_fn(|_| panic!("expected"))).await, None::<()>);
            assert_eq!(worker.run(|| ready(7)).await, Some(7));
        });
    }
}
