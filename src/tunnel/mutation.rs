//! Arbitrary and mutated inputs for decoders, the same ones in every run.

/// How many inputs each decoder gets.
const ROUNDS: u32 = 100_000;

struct Xorshift(u64);

impl Xorshift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Calls `decode` with mutations of valid inputs, and with noise.
pub fn mutate(seeds: &[Vec<u8>], mut decode: impl FnMut(&mut Vec<u8>)) {
    let mut random = Xorshift(0x9e37_79b9_7f4a_7c15);
    for round in 0..ROUNDS {
        let mut input = match round % 4 {
            0 => (0..random.below(80)).map(|_| random.next() as u8).collect(),
            _ => seeds[random.below(seeds.len())].clone(),
        };
        for _ in 0..random.below(4) {
            let at = random.below(input.len());
            match random.below(4) {
                0 if !input.is_empty() => input[at] ^= 1 << random.below(8),
                1 if !input.is_empty() => input[at] = [0, 0xff, 0x7f, 0x80][random.below(4)],
                2 => input.truncate(at),
                _ => input.insert(at, random.next() as u8),
            }
        }
        decode(&mut input);
    }
}
