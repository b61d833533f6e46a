//! What the user has been told of things that change, without end where something flaps.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use litemap::LiteMap;

/// So many changes of one thing are told, ...
const MOST: usize = 6;
/// ... within this time; after so much time without a change the next are told again.
const WINDOW: Duration = Duration::from_secs(60);

/// What to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// How it is now.
    Now,
    /// That its changes are not told until it has been steady for a minute.
    Flaps,
}

struct Entry<V> {
    now: V,
    told: Option<V>,
    changes: VecDeque<Instant>,
    flaps: bool,
}

/// How things were told to be last, by key.
pub(super) struct Told<K, V>(LiteMap<K, Entry<V>>);

impl<K, V> Default for Told<K, V> {
    fn default() -> Told<K, V> {
        Told(LiteMap::new())
    }
}

impl<K: Ord, V: Copy + PartialEq> Told<K, V> {
    /// Whether the changes of a thing are not told at present.
    pub(super) fn flaps(&self, key: &K) -> bool {
        self.0.get(key).is_some_and(|entry| entry.flaps)
    }

    /// Takes how a thing is now, to be told each time it may have changed.
    pub(super) fn note(&mut self, key: K, value: V, now: Instant) -> Option<News> {
        let new = Entry { now: value, told: None, changes: VecDeque::new(), flaps: false };
        let entry = self.0.entry(key).or_insert(new);
        entry.changes.retain(|&at| now < at + WINDOW);
        if entry.now != value {
            entry.now = value;
            entry.changes.push_back(now);
        }
        let flaps = entry.changes.len() > if entry.flaps { 0 } else { MOST };
        match std::mem::replace(&mut entry.flaps, flaps) {
            true if flaps => None,
            false if flaps => Some(News::Flaps),
            _ if entry.told == Some(value) => None,
            _ => {
                entry.told = Some(value);
                Some(News::Now)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn changes_are_told_until_they_do_not_end_and_again_after_a_steady_minute() {
        let (mut told, mut now) = (Told::default(), Instant::now());
        assert_eq!(told.note("wan", true, now), Some(News::Now));
        assert_eq!(told.note("wan", true, now), None);
        let mut news = Vec::new();
        for n in 0..60 {
            now += 2 * SECOND;
            news.extend(told.note("wan", n % 2 == 1, now));
        }
        assert_eq!(news, [vec![News::Now; MOST], vec![News::Flaps]].concat());
        assert_eq!(told.note("lte", true, now), Some(News::Now), "of each its own");

        assert_eq!(told.note("wan", false, now + SECOND), None);
        assert_eq!(told.note("wan", false, now + 59 * SECOND), None);
        assert_eq!(told.note("wan", false, now + 61 * SECOND), Some(News::Now));
        assert_eq!(told.note("wan", true, now + 62 * SECOND), Some(News::Now));
    }

    #[test]
    fn rare_changes_are_all_told() {
        let (mut told, mut now) = (Told::default(), Instant::now());
        for n in 0..100 {
            assert_eq!(told.note(0, n, now), Some(News::Now));
            now += 11 * SECOND;
        }
    }
}
