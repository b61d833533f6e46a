//! A reproducible stream of bytes.

/// Bytes that look random and can be made and checked from any offset: the 8-byte little-endian
/// outputs of SplitMix64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Different seeds give different streams.
    pub seed: u64,
}

impl Pattern {
    /// Writes the stream's bytes from `offset` on.
    pub fn fill(self, mut offset: u64, mut buffer: &mut [u8]) {
        while !offset.is_multiple_of(8) && !buffer.is_empty() {
            buffer[0] = self.word(offset / 8)[(offset % 8) as usize];
            buffer = &mut buffer[1..];
            offset += 1;
        }
        for (index, chunk) in (offset / 8..).zip(buffer.chunks_mut(8)) {
            chunk.copy_from_slice(&self.word(index)[..chunk.len()]);
        }
    }

    /// The offset of the first byte that is not the stream's, if any.
    pub fn first_difference(self, offset: u64, received: &[u8]) -> Option<u64> {
        let mut expected = vec![0; received.len()];
        self.fill(offset, &mut expected);
        if expected == received {
            return None;
        }
        let position = expected.iter().zip(received).position(|(a, b)| a != b);
        position.map(|at| offset + at as u64)
    }

    fn word(self, index: u64) -> [u8; 8] {
        let mut z = self.seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    }
}
