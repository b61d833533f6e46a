//! A download or upload that runs on a thread of its own.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::super::wait_for;
use super::server::{CHUNK, receive, send};
use super::{Dialer, Pattern, Recorder, Report, TrafficServer};

/// How long an exchange's upload may go on after the download's end.
const UPLOAD_LIMIT: Duration = Duration::from_secs(60);

/// A running transfer.
pub struct Transfer {
    recorder: Arc<Recorder>,
    stream: TcpStream,
    thread: JoinHandle<io::Result<()>>,
    expected: u64,
}

impl Transfer {
    /// A length for transfers that [`Transfer::stop`] ends.
    pub const ENDLESS: u64 = u64::MAX / 2;

    /// Fetches `bytes` bytes.
    pub fn download(dialer: &Dialer, bytes: u64) -> io::Result<Transfer> {
        let request = format!("download {bytes} 0 {bytes}\n");
        Transfer::fetch(dialer, bytes, move |mut stream| stream.write_all(request.as_bytes()))
    }

    /// Fetches `bytes` bytes, and says that nothing more will be said before they come.
    pub fn download_after_end(dialer: &Dialer, bytes: u64) -> io::Result<Transfer> {
        let request = format!("after-eof {bytes} {bytes}\n");
        Transfer::fetch(dialer, bytes, move |mut stream| {
            stream.write_all(request.as_bytes())?;
            stream.shutdown(Shutdown::Write)
        })
    }

    fn fetch(
        dialer: &Dialer,
        bytes: u64,
        ask: impl FnOnce(&TcpStream) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Transfer> {
        let pattern = Pattern { seed: bytes };
        let recorder = Arc::new(Recorder::new(pattern, 0));
        let stream = dialer.connect()?;
        let work = {
            let recorder = Arc::clone(&recorder);
            let mut stream = stream.try_clone()?;
            move || {
                let mut chunk = vec![0; CHUNK];
                let result = ask(&stream).and_then(|()| {
                    loop {
                        match stream.read(&mut chunk)? {
                            0 => return Ok(()),
                            length => recorder.take(&chunk[..length]),
                        }
                    }
                });
                recorder.finish(result.is_err());
                result
            }
        };
        Transfer::spawn(recorder, stream, bytes, work)
    }

    /// Sends `bytes` bytes to `server`, which records them as they arrive there.
    pub fn upload(server: &TrafficServer, dialer: &Dialer, bytes: u64) -> io::Result<Transfer> {
        let pattern = Pattern { seed: bytes };
        let (id, recorder) = server.expect(pattern);
        let mut stream = dialer.connect()?;
        let handle = stream.try_clone()?;
        let work = move || {
            writeln!(stream, "upload {id}")?;
            send(&stream, pattern, 0, bytes)?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            BufReader::new(&stream).read_line(&mut answer)?;
            let count: u64 = answer.trim().parse().map_err(|_| {
                io::Error::new(io::ErrorKind::InvalidData, format!("the server said '{answer}'"))
            })?;
            if count == bytes {
                Ok(())
            } else {
                Err(io::Error::other(format!("{count} of {bytes} bytes arrived")))
            }
        };
        Transfer::spawn(recorder, handle, bytes, work)
    }

    /// Sends `bytes` bytes to `server`, which said at once that it would not say anything.
    pub fn upload_after_end(
        server: &TrafficServer,
        dialer: &Dialer,
        bytes: u64,
    ) -> io::Result<Transfer> {
        let pattern = Pattern { seed: bytes };
        let (id, recorder) = server.expect(pattern);
        let mut stream = dialer.connect()?;
        let handle = stream.try_clone()?;
        let work = move || {
            writeln!(stream, "eof-first {id}")?;
            match stream.read(&mut [0])? {
                0 => send(&stream, pattern, 0, bytes),
                _ => Err(io::ErrorKind::InvalidData.into()),
            }
        };
        Transfer::spawn(recorder, handle, bytes, work)
    }

    /// Sends `up` bytes and fetches `down` bytes at once over one connection; the report is that of
    /// the download, the end that of both.
    pub fn exchange(
        server: &TrafficServer,
        dialer: &Dialer,
        up: u64,
        down: u64,
    ) -> io::Result<Transfer> {
        let (sent, pattern) = (Pattern { seed: up }, Pattern { seed: down });
        let (id, arrived) = server.expect(sent);
        let recorder = Arc::new(Recorder::new(pattern, 0));
        let mut stream = dialer.connect()?;
        let handle = stream.try_clone()?;
        let work = {
            let recorder = Arc::clone(&recorder);
            move || {
                writeln!(stream, "exchange {id} {} {down}", pattern.seed)?;
                thread::scope(|scope| {
                    let sender = scope.spawn(|| {
                        send(&stream, sent, 0, up)?;
                        stream.shutdown(Shutdown::Write)
                    });
                    receive(&mut &stream, &recorder)?;
                    sender.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
                })?;
                let complete = wait_for(UPLOAD_LIMIT, || (arrived.bytes() >= up).then_some(()));
                match arrived.report() {
                    report if complete.is_none() || report.corrupt_at.is_some() => {
                        let what = "of the upload's bytes arrived, or altered ones";
                        Err(io::Error::other(format!("{} of {up} {what}", report.bytes)))
                    }
                    _ => Ok(()),
                }
            }
        };
        Transfer::spawn(recorder, handle, down, work)
    }

    fn spawn(
        recorder: Arc<Recorder>,
        stream: TcpStream,
        expected: u64,
        work: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Transfer> {
        let thread = thread::Builder::new().name("transfer".to_owned()).spawn(work)?;
        Ok(Transfer { recorder, stream, thread, expected })
    }

    /// What records its arrival.
    pub fn recorder(&self) -> Arc<Recorder> {
        Arc::clone(&self.recorder)
    }

    /// Findings so far.
    pub fn report(&self) -> Report {
        self.recorder.report()
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until this many bytes have arrived; panics at the deadline.
    #[track_caller]
    pub fn wait_bytes(&self, bytes: u64, limit: Duration) {
        let arrived = wait_for(limit, || (self.recorder.bytes() >= bytes).then_some(()));
        assert!(
            arrived.is_some(),
            "{} of {bytes} bytes arrived within {limit:?}",
            self.recorder.bytes()
        );
    }

    /// Ends a transfer early; what arrived until then counts.
    pub fn stop(self) -> Report {
        let report = self.recorder.report();
        let _ = self.stream.shutdown(Shutdown::Both);
        let _ = self.thread.join();
        report
    }

    /// Waits for the end. An error when it failed, was cut short, altered, or took too long.
    pub fn finish(self, limit: Duration) -> Result<Report, String> {
        let finished = wait_for(limit, || self.thread.is_finished().then_some(()));
        if finished.is_none() {
            let _ = self.stream.shutdown(Shutdown::Both);
        }
        let result = self.thread.join();
        let report = self.recorder.report();
        let progress = format!("after {} of {} bytes", report.bytes, self.expected);
        match result {
            _ if finished.is_none() => Err(format!("not done within {limit:?}, {progress}")),
            Err(_) => Err(format!("the transfer's thread panicked {progress}")),
            Ok(Err(error)) => Err(format!("{error}, {progress}")),
            Ok(Ok(())) => match report.corrupt_at {
                Some(offset) => Err(format!("the byte at offset {offset} is wrong")),
                None if report.bytes != self.expected => Err(format!("ended {progress}")),
                None => Ok(report),
            },
        }
    }
}
