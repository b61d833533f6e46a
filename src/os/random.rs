//! The kernel's random numbers for the pure half, which takes them as an argument.

use std::io;

/// A source of unpredictable bytes.
///
/// # Errors
/// When the kernel has no random numbers. Once it has it does not stop to; if it did, the program
/// would end rather than make keys that can be guessed.
pub fn source() -> io::Result<impl FnMut(&mut [u8])> {
    getrandom::fill(&mut [0]).map_err(io::Error::other)?;
    Ok(|buffer: &mut [u8]| {
        if getrandom::fill(buffer).is_err() {
            std::process::abort();
        }
    })
}

/// Unpredictable bytes.
///
/// # Errors
/// When the kernel has no random numbers.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}
