//! Pipes and buffers, lent to a stream only while it moves data; each thread has its own.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::{Deref, DerefMut};

use super::sealed::RECORD;
use crate::os::socket::Pipe;
use crate::tunnel::record::RECORD_MAX;

/// Unused pipes kept: each is two file descriptors, and no memory while empty.
const PIPES_KEPT: usize = 8;
/// The size of a buffer in bytes while few are lent.
const LARGE: usize = 256 * 1024;
/// The size of a buffer in bytes when some are lent: a record of any size fits.
const SMALL: usize = 64 * 1024;
const _: () = assert!(SMALL >= RECORD_MAX);
/// The size of a buffer in bytes when many are lent: what the records made here take.
const LEAST: usize = RECORD;
/// How many large buffers may be lent at once, and how many when only the least are left, so that many
/// streams that are stuck together (an outage of every uplink) do not take the router's memory.
const LARGE_LENT: usize = 16;
const SMALL_LENT: usize = 48;
/// Unused large buffers kept.
const LARGE_KEPT: usize = 2;

thread_local! {
    static PIPES: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
    static BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static LENT: Cell<usize> = const { Cell::new(0) };
}

/// Borrows an empty pipe.
///
/// # Errors
/// When none is kept and none can be made: out of file descriptors.
pub(super) fn pipe() -> io::Result<Pipe> {
    PIPES.with_borrow_mut(Vec::pop).map_or_else(Pipe::new, Ok)
}

/// Gives a pipe back; one that is not empty is closed.
pub(super) fn give_back(pipe: Pipe) {
    PIPES.with_borrow_mut(|pipes| {
        if pipe.is_empty() && pipes.len() < PIPES_KEPT {
            pipes.push(pipe);
        }
    });
}

/// A buffer on loan, of [`LARGE`], [`SMALL`] or [`LEAST`] bytes; what is in it is left over from earlier use.
pub(super) struct LentBuffer(Box<[u8]>);

/// Borrows a buffer.
pub(super) fn buffer() -> LentBuffer {
    let lent = LENT.get();
    LENT.set(lent.saturating_add(1));
    if lent >= LARGE_LENT {
        let size = if lent < SMALL_LENT { SMALL } else { LEAST };
        return LentBuffer(vec![0; size].into_boxed_slice());
    }
    let kept = BUFFERS.with_borrow_mut(Vec::pop);
    LentBuffer(kept.unwrap_or_else(|| vec![0; LARGE].into_boxed_slice()))
}

/// Whether so many are lent on this thread that who takes one should be sure to give it back soon.
pub(super) fn are_scarce() -> bool {
    LENT.get() >= LARGE_LENT
}

/// How many buffers are lent on this thread.
#[cfg(test)]
pub(super) fn lent() -> usize {
    LENT.get()
}

/// How many pipes wait on this thread to be lent.
#[cfg(test)]
pub(super) fn pipes_kept() -> usize {
    PIPES.with_borrow(Vec::len)
}

impl LentBuffer {
    /// Makes room for a record of any size, after what is there.
    pub(super) fn grow(&mut self) {
        if self.0.len() < SMALL {
            let mut bytes = std::mem::take(&mut self.0).into_vec();
            bytes.resize(SMALL, 0);
            self.0 = bytes.into_boxed_slice();
        }
    }
}

impl Deref for LentBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for LentBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for LentBuffer {
    fn drop(&mut self) {
        let _ = LENT.try_with(|lent| lent.set(lent.get().saturating_sub(1)));
        let buffer = std::mem::take(&mut self.0);
        if buffer.len() == LARGE {
            let _ = BUFFERS.try_with(|buffers| {
                let mut buffers = buffers.borrow_mut();
                if buffers.len() < LARGE_KEPT {
                    buffers.push(buffer);
                }
            });
        }
    }
}
