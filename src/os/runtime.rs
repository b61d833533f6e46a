//! The runtime that the programs run on: one thread, with tasks that need not be `Send`.

use std::future::Future;
use std::io;
use std::pin::Pin;

use tokio::runtime::Builder;
use tokio::task::{JoinHandle, LocalSet};

/// Runs a future, and the tasks that it spawns, until the future is done.
///
/// A call that blocks on a thread of its own (a name that no server resolves) is not waited for then.
///
/// # Errors
/// When the kernel has no event queue to give.
pub fn run<T>(future: impl Future<Output = T>) -> io::Result<T> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let output = LocalSet::new().block_on(&runtime, future);
    runtime.shutdown_background();
    Ok(output)
}

/// Starts a task on the thread it is called on.
///
/// The future is boxed: tokio's code for a task (1 to 2 kB) then is there once for all of them, rather
/// than once for each.
///
/// # Panics
/// Outside of what [`run`] runs.
pub fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
    tokio::task::spawn_local(Box::pin(future) as Pin<Box<dyn Future<Output = T>>>)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    #[test]
    fn what_blocks_is_not_waited_for() {
        let start = Instant::now();
        let output = super::run(async {
            tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_secs(20)));
            super::spawn(async { 7 }).await
        });
        assert_eq!(output.unwrap().unwrap(), 7);
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
