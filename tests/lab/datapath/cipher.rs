//! What a cipher itself costs, in memory.

use std::hint::black_box;
use std::time::Duration;

use mptcp_bond::crypto::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use rustix::time::{ClockId, clock_gettime};

/// Bytes sealed at a time: a record's.
const RECORD: usize = 16 * 1024;
/// Bytes sealed and opened in all.
const BYTES: usize = 1 << 30;

/// Processor time for sealing and opening, in seconds for each GB.
pub fn cost(algorithm: &'static aead::Algorithm) -> f64 {
    let key = UnboundKey::new(algorithm, &[7; 32][..algorithm.key_len()]).expect("a key");
    let key = LessSafeKey::new(key);
    let nonce = || Nonce::assume_unique_for_key([9; aead::NONCE_LEN]);
    let mut record = vec![0; RECORD + algorithm.tag_len()];
    let before = cpu_time();
    for _ in 0..BYTES / RECORD {
        let plaintext = &mut record[..RECORD];
        let tag = key.seal_in_place_separate_tag(nonce(), Aad::empty(), plaintext).expect("seal");
        record[RECORD..].copy_from_slice(tag.as_ref());
        black_box(key.open_in_place(nonce(), Aad::empty(), &mut record).expect("open"));
    }
    (cpu_time() - before).as_secs_f64() * 1e9 / BYTES as f64
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
