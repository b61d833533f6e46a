//! What became of the last probes.

/// Outcomes remembered.
const HISTORY: u32 = u32::BITS;
/// Losses among them at which an uplink becomes degraded (12.5 %).
const DEGRADED_AT: u32 = 4;
/// Losses at which it stops being so.
const RECOVERED_AT: u32 = 1;
/// The newest outcomes, and how many losses among them are heavy.
const NEWEST: u32 = 10;
const HEAVY_AT: u32 = 4;

/// The outcomes of the last 32 probes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcomes {
    /// A bit for each, the newest lowest, set when a reply came.
    replied: u32,
    counted: u32,
}

impl Outcomes {
    /// Counts one; gives its number.
    pub fn count(&mut self, replied: bool) -> u32 {
        self.replied = self.replied << 1 | u32::from(replied);
        self.counted = self.counted.checked_add(1).unwrap_or(HISTORY);
        self.counted
    }

    /// The reply to the probe whose outcome had this number came after all.
    pub fn correct(&mut self, number: u32) {
        let age = self.counted.wrapping_sub(number);
        self.replied |= 1u32.checked_shl(age).unwrap_or(0);
    }

    /// The share of losses, 0 to 1; `None` before the first outcome.
    pub fn loss(&self) -> Option<f32> {
        let counted = self.counted.min(HISTORY);
        (counted > 0).then(|| self.lost_of(HISTORY) as f32 / counted as f32)
    }

    /// Whether an uplink that was degraded for it, or not, is so now; a single row of losses is an
    /// outage.
    pub fn is_degraded(&self, was: bool) -> bool {
        match was {
            true => self.lost_of(HISTORY) > RECOVERED_AT,
            false => self.lost_of(HISTORY) >= DEGRADED_AT && self.has_gaps(),
        }
    }

    /// Whether an uplink that was lossy, or not, is so now. An outage is a single row of losses, heavy
    /// loss is more; so it takes 32 outcomes to be well again.
    pub fn is_lossy(&self, was: bool) -> bool {
        match was {
            true => self.counted < HISTORY || self.is_degraded(true),
            false => self.lost_of(NEWEST) >= HEAVY_AT && rows(self.lost(NEWEST)) > 1,
        }
    }

    /// Whether any of the newest is a loss.
    pub fn lost_lately(&self) -> bool {
        self.lost_of(NEWEST) > 0
    }

    /// Whether losses are in more than one row: those of an outage are not.
    pub fn has_gaps(&self) -> bool {
        rows(self.lost(HISTORY)) > 1
    }

    /// How many of the newest are losses.
    fn lost_of(&self, newest: u32) -> u32 {
        self.lost(newest).count_ones()
    }

    /// The losses among the newest.
    fn lost(&self, newest: u32) -> u32 {
        let counted = self.counted.min(newest);
        !self.replied & u32::MAX.checked_shr(HISTORY - counted).unwrap_or(0)
    }
}

/// In how many rows the losses are.
fn rows(lost: u32) -> u32 {
    (lost & !(lost << 1)).count_ones()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A letter for each outcome, `.` is a reply and `x` a loss.
    fn outcomes(text: &str) -> Outcomes {
        let mut outcomes = Outcomes::default();
        for letter in text.chars() {
            outcomes.count(letter == '.');
        }
        outcomes
    }

    #[test]
    fn the_loss_is_that_of_the_last_32() {
        assert_eq!(Outcomes::default().loss(), None);
        assert_eq!(outcomes("x").loss(), Some(1.0));
        assert_eq!(outcomes("x...").loss(), Some(0.25));
        assert_eq!(outcomes(&("xxxx".to_owned() + &"...x".repeat(8))).loss(), Some(0.25));
    }

    #[test]
    fn a_late_reply_corrects_its_outcome_alone() {
        let mut outcomes = Outcomes::default();
        let numbers = [false, false, false].map(|replied| outcomes.count(replied));
        outcomes.correct(numbers[1]);
        assert_eq!(outcomes.lost_of(3), 2);
        assert_eq!(outcomes.lost_of(2), 1);
        assert_eq!(outcomes.lost_of(1), 1);
        outcomes = (0..40).fold(outcomes, |mut outcomes, _| {
            outcomes.count(false);
            outcomes
        });
        outcomes.correct(numbers[0]);
        assert_eq!(outcomes.loss(), Some(1.0), "it is forgotten");
    }

    #[test]
    fn four_of_32_degrade_and_one_is_forgiven() {
        assert!(!outcomes("xxx").is_degraded(false));
        assert!(outcomes("xxx.x").is_degraded(false));
        assert!(!outcomes("xxxx").is_degraded(false), "an outage");
        assert!(outcomes("xx").is_degraded(true));
        assert!(!outcomes("x").is_degraded(true));
    }

    #[test]
    fn losses_among_replies_are_heavy_and_those_of_an_outage_are_not() {
        for heavy in ["x.x.x.x", "xx.xx", "x.xxx", "....xx..xx..", ".....x.xxx"] {
            assert!(outcomes(heavy).is_lossy(false), "{heavy}");
        }
        for light in ["x.x.x", "xxx.......xxx", "x....x....x....x", "......xxxx", "..xxxxxx.."] {
            assert!(!outcomes(light).is_lossy(false), "{light}");
        }
    }

    #[test]
    fn the_losses_of_an_outage_are_one_row() {
        for row in ["", "....", "xxxx..", "..xx", ".x."] {
            assert!(!outcomes(row).has_gaps(), "{row}");
        }
        assert!(outcomes("x.x").has_gaps() && outcomes("xxx..xx....").has_gaps());
    }

    #[test]
    fn heavy_loss_is_over_when_31_of_32_were_answered() {
        let well = ".".repeat(31);
        assert!(outcomes(&well).is_lossy(true));
        assert!(!outcomes(&format!("x{well}")).is_lossy(true));
        assert!(outcomes(&format!("xx{}", &well[1..])).is_lossy(true));
    }
}
