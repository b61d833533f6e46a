//! A pipe between two sockets: splice(2) moves bytes through it without copying them to user space
//! where the kernel can.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// The pipe size asked for, in bytes; where it is refused the kernel's default (64 KiB) does.
const SIZE: usize = 256 * 1024;

/// A non-blocking pipe that knows how many bytes are in it.
#[derive(Debug)]
pub struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    size: usize,
    filled: usize,
}

impl Pipe {
    /// Makes a pipe.
    ///
    /// # Errors
    /// Those of `pipe2(2)`: `EMFILE`, `ENFILE`.
    pub fn new() -> io::Result<Pipe> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let size = match fcntl_setpipe_size(&writer, SIZE) {
            Ok(size) => size,
            Err(_) => rustix::pipe::fcntl_getpipe_size(&writer)?,
        };
        Ok(Pipe { reader, writer, size, filled: 0 })
    }

    /// Bytes that fit when it is empty.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Moves at most `max` bytes from a stream into the pipe; 0 at the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when the stream has nothing (call it on an empty pipe only: a full one blocks
    /// alike); otherwise the stream's error.
    pub fn fill(&mut self, from: impl AsFd, max: usize) -> io::Result<usize> {
        let moved = splice(from, None, &self.writer, None, max, SpliceFlags::NONBLOCK)?;
        self.filled = self.filled.saturating_add(moved);
        Ok(moved)
    }

    /// Moves bytes from the pipe into a stream, as many as it takes.
    ///
    /// # Errors
    /// `WouldBlock` when the stream takes nothing; otherwise the stream's error.
    pub fn drain(&mut self, to: impl AsFd) -> io::Result<usize> {
        let moved = splice(&self.reader, None, to, None, self.filled, SpliceFlags::NONBLOCK)?;
        self.filled = self.filled.saturating_sub(moved);
        Ok(moved)
    }

    /// Reads what is in the pipe, behind what `rest` holds already.
    pub fn empty_into(&mut self, rest: &mut Vec<u8>) {
        rest.reserve_exact(self.filled);
        while self.filled > 0 {
            match rustix::io::read(&self.reader, spare_capacity(rest)) {
                Ok(read) if read > 0 => self.filled = self.filled.saturating_sub(read),
                // It has as many bytes as were moved into it: neither end nor error comes before.
                _ => return,
            }
        }
    }
}
