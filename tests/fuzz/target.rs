//! One fuzz target for each decoder, named as it is.

#![no_main]

use mptcp_bond::fuzzing;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let decode = fuzzing::decoder(env!("CARGO_BIN_NAME")).expect("a decoder of the target's name");
    decode(bytes);
});
