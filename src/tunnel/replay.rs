//! A window of stream counters, each accepted once (after RFC 6479).

/// How far a counter may lie behind the highest one accepted, in steps of 64.
pub const SPAN: u64 = 8192;
const WORDS: usize = (SPAN / 64) as usize;

/// Which counters have been used. Warm streams arrive out of order, so it is wide.
pub struct Window {
    highest: Option<u64>,
    used: Box<[u64; WORDS]>,
}

impl Default for Window {
    fn default() -> Window {
        Window::new()
    }
}

impl Window {
    /// A window in which nothing was used.
    pub fn new() -> Window {
        Window { highest: None, used: Box::new([0; WORDS]) }
    }

    /// Uses up a counter; false when it was used before or is too old to tell.
    pub fn accept(&mut self, counter: u64) -> bool {
        match self.highest {
            Some(highest) if counter <= highest => {
                // Further back a counter would share the word of a newer one.
                if highest / 64 - counter / 64 >= WORDS as u64 {
                    return false;
                }
            }
            Some(highest) => {
                // Words between the old and the new highest come into use again: they start empty.
                let ahead = (counter / 64 - highest / 64).min(WORDS as u64);
                for step in 1..=ahead {
                    if let Some(word) = self.word((highest / 64).wrapping_add(step)) {
                        *word = 0;
                    }
                }
                self.highest = Some(counter);
            }
            None => self.highest = Some(counter),
        }
        let bit = 1 << (counter % 64);
        match self.word(counter / 64) {
            Some(word) if *word & bit == 0 => {
                *word |= bit;
                true
            }
            _ => false,
        }
    }

    fn word(&mut self, index: u64) -> Option<&mut u64> {
        self.used.get_mut((index % WORDS as u64) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_ends_of_the_range_are_safe() {
        let mut window = Window::new();
        assert!(window.accept(0) && !window.accept(0));
        assert!(window.accept(u64::MAX) && !window.accept(u64::MAX));
        assert!(!window.accept(1));
        assert!(window.accept(u64::MAX - 1));
    }

    proptest! {
        #[test]
        fn each_counter_is_accepted_once(steps in prop::collection::vec(-9000i64..9000, 1..400)) {
            let (mut window, mut used, mut highest) = (Window::new(), BTreeSet::new(), 0u64);
            for step in steps {
                let counter = highest.saturating_add_signed(step);
                let accepted = window.accept(counter);
                if accepted {
                    prop_assert!(used.insert(counter), "{counter} accepted twice");
                    highest = highest.max(counter);
                } else {
                    // Counters share words, so that the oldest 63 of the span may be refused.
                    let old = highest - counter > SPAN - 64;
                    prop_assert!(used.contains(&counter) || old, "{counter} refused");
                }
            }
        }
    }
}
