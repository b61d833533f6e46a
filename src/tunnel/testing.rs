//! Shared by the tunnel's tests: reproducible randomness and mutated inputs.

use crate::config::keys::PrivateKey;

/// The X25519 public key that belongs to a private key.
pub fn public_key(private: &[u8; 32]) -> [u8; 32] {
    PrivateKey::from_bytes(*private).public().0
}

/// Marsaglia's xorshift64.
pub struct Xorshift(u64);

impl Xorshift {
    /// A generator; the seed must not be 0.
    pub fn new(seed: u64) -> Xorshift {
        Xorshift(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `bound`; 0 for a bound of 0.
    pub fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { (self.next() % bound as u64) as usize }
    }

    /// Fills a buffer.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for byte in buffer {
            *byte = (self.next() >> 32) as u8;
        }
    }
}

/// A counting stand-in for a random number generator: 1, 2, 3, ...
pub fn counting() -> impl FnMut(&mut [u8]) {
    let mut next = 0u8;
    move |buffer: &mut [u8]| {
        for byte in buffer {
            next = next.wrapping_add(1);
            *byte = next;
        }
    }
}

/// Calls `check` with `count` changed, cut, lengthened or wholly random variants of `valid`.
pub fn mutations(
    random: &mut Xorshift,
    valid: &[u8],
    count: usize,
    mut check: impl FnMut(&mut [u8]),
) {
    let mut bytes = Vec::new();
    for _ in 0..count {
        bytes.clear();
        bytes.extend_from_slice(valid);
        for _ in 0..=random.below(3) {
            let (position, other) = (random.below(bytes.len()), random.below(bytes.len()));
            let value = [0, 1, 0x7f, 0x80, 0xff, random.next() as u8][random.below(6)];
            match random.below(8) {
                0 => bytes.truncate(position),
                1 => bytes.insert(position, value),
                2 if !bytes.is_empty() => drop(bytes.remove(position)),
                3 if !bytes.is_empty() => bytes.swap(position, other),
                4 => {
                    bytes.resize(random.below(600), 0);
                    random.fill(&mut bytes);
                }
                5 if !bytes.is_empty() => bytes[position] ^= 1 << random.below(8),
                _ if !bytes.is_empty() => bytes[position] = value,
                _ => bytes.push(value),
            }
        }
        check(&mut bytes);
    }
}

/// Calls `check` with every variant of `valid` that differs in one bit.
pub fn bit_flips(valid: &[u8], mut check: impl FnMut(usize, &mut [u8])) {
    for bit in 0..valid.len() * 8 {
        let mut bytes = valid.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        check(bit, &mut bytes);
    }
}
