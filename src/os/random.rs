//! The kernel's random numbers for the pure half, which takes them as an argument.

use std::io;

/// How many bytes a source gives: more than any one caller draws.
const POOL: usize = 256;

/// A source of up to 256 unpredictable bytes, drawn from the kernel at once so that it cannot fail
/// later.
///
/// # Errors
/// When the kernel has no random numbers.
pub fn source() -> io::Result<impl FnMut(&mut [u8])> {
    let mut pool = [0; POOL];
    getrandom::fill(&mut pool).map_err(io::Error::other)?;
    let mut unused = pool.into_iter();
    Ok(move |buffer: &mut [u8]| {
        for byte in buffer {
            *byte = unused.next().unwrap_or_default();
        }
    })
}
