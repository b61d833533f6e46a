//! A window of counters that accepts each at most once, though they arrive out of order.

/// Counters the window remembers: a warm connection may be used this many streams late.
pub const WINDOW: u64 = 8192;

const WORDS: usize = (WINDOW / 64) as usize;

/// Accepts each counter once; counters [`WINDOW`] or more below the highest seen are refused.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    /// The highest counter accepted.
    highest: Option<u64>,
    /// Bit `counter % WINDOW`: accepted.
    bits: Box<[u64; WORDS]>,
}

impl ReplayWindow {
    /// An empty window.
    pub fn new() -> ReplayWindow {
        ReplayWindow { highest: None, bits: Box::new([0; WORDS]) }
    }

    /// Whether a counter is accepted: true once at most. Call it with authenticated counters only.
    pub fn accept(&mut self, counter: u64) -> bool {
        match self.highest {
            Some(highest) if counter > highest => {
                let fresh = (counter - highest).min(WINDOW);
                for step in 0..fresh {
                    self.set(counter - step, false);
                }
                self.highest = Some(counter);
            }
            Some(highest) if highest - counter >= WINDOW => return false,
            Some(_) => {}
            None => self.highest = Some(counter),
        }
        let fresh = !self.get(counter);
        self.set(counter, true);
        fresh
    }

    fn place(counter: u64) -> (usize, u64) {
        let bit = counter % WINDOW;
        ((bit / 64) as usize, 1 << (bit % 64))
    }

    fn get(&self, counter: u64) -> bool {
        let (word, mask) = ReplayWindow::place(counter);
        self.bits.get(word).is_some_and(|bits| bits & mask != 0)
    }

    fn set(&mut self, counter: u64, accepted: bool) {
        let (word, mask) = ReplayWindow::place(counter);
        if let Some(bits) = self.bits.get_mut(word) {
            if accepted { *bits |= mask } else { *bits &= !mask }
        }
    }
}

impl Default for ReplayWindow {
    fn default() -> ReplayWindow {
        ReplayWindow::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The window in as few words as possible: a set of all counters ever accepted.
    #[derive(Default)]
    struct Model(BTreeSet<u64>);

    impl Model {
        fn accept(&mut self, counter: u64) -> bool {
            let too_old =
                self.0.last().is_some_and(|highest| highest.saturating_sub(counter) >= WINDOW);
            !too_old && self.0.insert(counter)
        }
    }

    /// Steps around and beyond the window, in both directions, and jumps to the ends.
    fn moves() -> impl Strategy<Value = Vec<(bool, u64)>> {
        let distance = prop_oneof![
            4 => 0..4u64,
            2 => 0..200u64,
            2 => WINDOW - 2..WINDOW + 3,
            1 => 0..3 * WINDOW,
            1 => any::<u64>(),
        ];
        proptest::collection::vec((any::<bool>(), distance), 1..200)
    }

    proptest! {
        #[test]
        fn agrees_with_a_set(start in prop_oneof![Just(0), Just(u64::MAX), any::<u64>()],
                             moves in moves()) {
            let (mut window, mut model) = (ReplayWindow::new(), Model::default());
            let mut counter = start;
            for (up, distance) in moves {
                counter = if up {
                    counter.saturating_add(distance)
                } else {
                    counter.saturating_sub(distance)
                };
                prop_assert_eq!(window.accept(counter), model.accept(counter), "{}", counter);
            }
        }
    }

    #[test]
    fn the_edges_of_the_window() {
        let mut window = ReplayWindow::new();
        assert!(window.accept(WINDOW));
        assert!(!window.accept(0), "one too old");
        assert!(window.accept(1), "the oldest");
        assert!(!window.accept(1));
        assert!(window.accept(WINDOW + 1));
        assert!(!window.accept(1), "left behind, though its bit was cleared");
        assert!(window.accept(u64::MAX));
        assert!(window.accept(u64::MAX - 1));
        assert!(!window.accept(u64::MAX));
    }
}
