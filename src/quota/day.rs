//! Days of the calendar, in UTC.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const SECONDS: u64 = 86_400;
/// 31 December 9999.
const LAST: i32 = 2_932_896;
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A day of the Gregorian calendar, counted from 1 January 1970; in files `2026-11-01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Day(i32);

impl Day {
    /// The day of a time in seconds since 1970 (UTC); the year 9999 is the last.
    pub fn of_unix(seconds: u64) -> Day {
        Day(i32::try_from(seconds / SECONDS).unwrap_or(LAST).min(LAST))
    }

    /// The day with this date; a day beyond the end of its month is the month's last.
    pub(super) fn of_date(year: i32, month: u8, day: u8) -> Day {
        let day = day.min(days_in_month(year, month));
        // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms": a year begins in March, so
        // that the leap day is its last, and 400 of them are an era.
        let year = if month <= 2 { year - 1 } else { year };
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let day_of_year = (153 * ((i32::from(month) + 9) % 12) + 2) / 5 + i32::from(day) - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        Day(era * 146_097 + day_of_era - 719_468)
    }

    /// Year, month (1-12) and day (1-31).
    pub(super) fn date(self) -> (i32, u8, u8) {
        let days = self.0 + 719_468;
        let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        let year = year_of_era + era * 400 + i32::from(month <= 2);
        (year, u8::try_from(month).unwrap_or(1), u8::try_from(day).unwrap_or(1))
    }

    /// The first day of the month-long period this day is in, when periods begin on `reset_day`
    /// (1-31), or on the last day of a month that is shorter.
    pub fn period_start(self, reset_day: u8) -> Day {
        let (year, month, _) = self.date();
        let this = Day::of_date(year, month, reset_day);
        if this <= self {
            return this;
        }
        let (year, month) = if month == 1 { (year - 1, 12) } else { (year, month - 1) };
        Day::of_date(year, month, reset_day)
    }

    /// The first day of the period after the one that begins on this day.
    pub fn next_period(self, reset_day: u8) -> Day {
        let (year, month, _) = self.date();
        let (year, month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
        Day::of_date(year, month, reset_day)
    }

    /// Day and month, such as `1 Nov`.
    pub fn short(self) -> String {
        let (_, month, day) = self.date();
        format!("{day} {}", month_name(month))
    }

    /// Month and day as syslog has them (RFC 3164), such as `Nov  1`.
    pub fn month_first(self) -> String {
        let (_, month, day) = self.date();
        format!("{} {day:>2}", month_name(month))
    }
}

fn month_name(month: u8) -> &'static str {
    MONTHS.get(usize::from(month) - 1).unwrap_or(&"")
}

fn days_in_month(year: i32, month: u8) -> u8 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.date();
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

impl FromStr for Day {
    type Err = String;

    fn from_str(text: &str) -> Result<Day, String> {
        let bad = || format!("'{}' is no date such as 2026-11-01", text.escape_debug());
        let mut parts = text.split('-');
        let mut next = || parts.next().ok_or_else(bad);
        let year: i32 = next()?.parse().map_err(|_| bad())?;
        let month: u8 = next()?.parse().map_err(|_| bad())?;
        let day: u8 = next()?.parse().map_err(|_| bad())?;
        let valid = (1970..=9999).contains(&year) && (1..=12).contains(&month) && day >= 1;
        let made = valid.then(|| Day::of_date(year, month, day));
        // Written otherwise it would be another day.
        made.filter(|made| made.to_string() == text).ok_or_else(bad)
    }
}

impl TryFrom<String> for Day {
    type Error = String;

    fn try_from(text: String) -> Result<Day, String> {
        text.parse()
    }
}

impl From<Day> for String {
    fn from(day: Day) -> String {
        day.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(text: &str) -> Day {
        text.parse().unwrap()
    }

    #[test]
    fn dates_and_days_are_two_sides_of_the_same() {
        assert_eq!(Day::of_unix(0).to_string(), "1970-01-01");
        assert_eq!(Day::of_unix(1_795_219_199).to_string(), "2026-11-20");
        assert_eq!(Day::of_unix(1_795_219_200).to_string(), "2026-11-21");
        assert_eq!(Day::of_unix(u64::MAX).to_string(), "9999-12-31");
        let mut before = (1970, 1, 0);
        for number in 0..=LAST {
            let date = Day(number).date();
            let (year, month, of_month) = date;
            assert_eq!(Day::of_date(year, month, of_month), Day(number), "{date:?}");
            let next = match before {
                (y, 12, 31) => (y + 1, 1, 1),
                (y, m, d) if d == days_in_month(y, m) => (y, m + 1, 1),
                (y, m, d) => (y, m, d + 1),
            };
            assert_eq!(date, next);
            before = date;
        }
    }

    #[test]
    fn periods_begin_on_the_reset_day_or_on_a_short_months_last() {
        for (today, reset_day, start, next) in [
            ("2026-11-20", 1, "2026-11-01", "2026-12-01"),
            ("2026-11-01", 1, "2026-11-01", "2026-12-01"),
            ("2026-12-31", 1, "2026-12-01", "2027-01-01"),
            ("2027-01-14", 15, "2026-12-15", "2027-01-15"),
            ("2027-02-27", 31, "2027-01-31", "2027-02-28"),
            ("2027-02-28", 31, "2027-02-28", "2027-03-31"),
            ("2027-03-30", 31, "2027-02-28", "2027-03-31"),
            ("2028-02-28", 30, "2028-01-30", "2028-02-29"),
            ("2028-02-29", 30, "2028-02-29", "2028-03-30"),
        ] {
            let found = day(today).period_start(reset_day);
            assert_eq!(found.to_string(), start, "{today}, {reset_day}");
            assert_eq!(found.next_period(reset_day).to_string(), next, "{today}, {reset_day}");
        }
    }

    #[test]
    fn each_day_is_in_exactly_one_period() {
        for reset_day in 1..=31 {
            let mut start = day("2026-01-01").period_start(reset_day);
            let mut next = start.next_period(reset_day);
            for number in day("2026-01-01").0..day("2030-01-01").0 {
                if Day(number) == next {
                    (start, next) = (next, next.next_period(reset_day));
                }
                assert_eq!(Day(number).period_start(reset_day), start, "{reset_day}");
            }
        }
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for bad in ["", "2026", "2026-13-01", "2026-02-30", "2026-1-1", "1969-12-31", "x-y-z"] {
            assert!(bad.parse::<Day>().is_err(), "{bad}");
        }
        assert!("10000-01-01".parse::<Day>().is_err());
        assert!("2026-11-00".parse::<Day>().is_err());
        assert_eq!(day("2026-11-01").short(), "1 Nov");
        assert_eq!(day("2026-11-01").month_first(), "Nov  1");
        assert_eq!(day("2026-12-31").month_first(), "Dec 31");
    }
}
