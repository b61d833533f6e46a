//! How a rate is divided among those who want more of it than there is: nobody gets less than another
//! who gets more than they want (max-min fairness).

/// Who uses so many hundredths of what they may have is taken to want more.
const HUNGRY: u64 = 90;

/// The most that each may have of `rate`, so that all together use it up and no more, where these rates
/// are `used` while each may have `share`; any unit. Where there is enough for all, what is left is
/// anybody's.
pub fn fair_share(rate: u64, share: u64, used: &[u64]) -> u64 {
    let hungry = |used: u64| used.saturating_mul(100) >= share.saturating_mul(HUNGRY);
    let mut wanted: Vec<u64> =
        used.iter().map(|&used| if hungry(used) { u64::MAX } else { used }).collect();
    wanted.sort_unstable();
    let mut left = rate;
    for (served, &wish) in wanted.iter().enumerate() {
        let waiting = (wanted.len() - served) as u64;
        let equal = left / waiting;
        if wish >= equal {
            return equal;
        }
        left -= wish;
    }
    left.saturating_add(wanted.last().copied().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn those_who_want_more_share_what_the_others_leave() {
        assert_eq!(fair_share(100, 100, &[]), 100);
        assert_eq!(fair_share(100, 100, &[95, 0, 0]), 100, "one alone has all of it");
        assert_eq!(fair_share(100, 100, &[95, 95]), 50);
        assert_eq!(fair_share(100, 50, &[48, 50, 10]), 45);
        assert_eq!(fair_share(100, 45, &[45, 45, 0]), 50);
        assert_eq!(fair_share(100, 50, &[20, 30]), 80, "30, and the 50 that are left");
        assert_eq!(fair_share(100, 100, &[60, 60]), 50, "too much is too much");
    }

    proptest! {
        /// All want as much as they can get of a share, whatever it was before: two steps later
        /// they have equal parts, and those who want little have what they want.
        #[test]
        fn it_settles(rate in 1_000_000..1_000_000_000_u64, modest in prop::collection::vec(0..1_000_u64, 0..50), greedy in 1..100_usize, start in 1_000_000..1_000_000_000_u64) {
            let mut share = start;
            for _ in 0..2 {
                let used = modest.iter().map(|&want| want.min(share)).chain((0..greedy).map(|_| share));
                share = fair_share(rate, share, &used.collect::<Vec<u64>>());
            }
            let left = rate - modest.iter().sum::<u64>();
            prop_assert_eq!(share, left / greedy as u64);
        }
    }
}
