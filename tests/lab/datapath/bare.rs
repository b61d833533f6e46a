//! A relay with nothing to it, the floor of what a hop costs: blocking, a thread for each direction.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::str::FromStr;
use std::thread;

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use crate::lab::traffic::Kind;

/// Bytes moved at a time.
const SIZE: usize = 256 * 1024;

/// How bytes get from one socket to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// read(2) and write(2).
    Copy,
    /// splice(2), through a pipe.
    Splice,
}

impl Way {
    /// The word on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Way::Copy => "copy",
            Way::Splice => "splice",
        }
    }

    fn run(self, from: &TcpStream, to: &TcpStream) -> io::Result<()> {
        match self {
            Way::Copy => copy(from, to),
            Way::Splice => splice_all(from, to),
        }
    }
}

impl FromStr for Way {
    type Err = String;

    fn from_str(text: &str) -> Result<Way, String> {
        let found = [Way::Copy, Way::Splice].into_iter().find(|way| way.word() == text);
        found.ok_or_else(|| format!("'{text}' is no way to relay"))
    }
}

/// One hop: what it listens on and where it connects to.
#[derive(Clone, Copy, Debug)]
pub struct Hop {
    /// How it relays.
    pub way: Way,
    /// The transport and port it is reached at.
    pub listen: (Kind, u16),
    /// By which transport it goes on, and where to.
    pub next: (Kind, SocketAddr),
}

impl Hop {
    /// Relays until it is killed.
    pub fn run(self) -> ExitCode {
        let (kind, port) = self.listen;
        let listener = match kind.listen(port) {
            Ok(listener) => listener,
            Err(error) => {
                eprintln!("cannot listen on port {port}: {error}");
                return ExitCode::FAILURE;
            }
        };
        loop {
            let Ok((near, _)) = listener.accept() else { continue };
            // Who opened the connection sees it end.
            thread::spawn(move || drop(self.serve(&near)));
        }
    }

    fn serve(self, near: &TcpStream) -> io::Result<()> {
        let (kind, address) = self.next;
        let far = kind.connect(address)?;
        near.set_nodelay(true)?;
        thread::scope(|scope| {
            scope.spawn(|| self.direction(near, &far));
            self.direction(&far, near);
        });
        Ok(())
    }

    fn direction(self, from: &TcpStream, to: &TcpStream) {
        // However it ended, there is no more to come.
        let _ = self.way.run(from, to);
        let _ = to.shutdown(Shutdown::Write);
        let _ = from.shutdown(Shutdown::Read);
    }
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; SIZE];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            length => to.write_all(&buffer[..length])?,
        }
    }
}

fn splice_all(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setpipe_size(&writer, SIZE)?;
    loop {
        let mut filled = splice(from, None, &writer, None, SIZE, SpliceFlags::MOVE)?;
        if filled == 0 {
            return Ok(());
        }
        while filled > 0 {
            filled -= splice(&reader, None, to, None, filled, SpliceFlags::MOVE)?;
        }
    }
}
