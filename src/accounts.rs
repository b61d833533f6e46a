//! What each client of a server has carried on each day (UTC).

use std::time::{Duration, Instant};

use litemap::LiteMap;
use serde::{Deserialize, Serialize};

use crate::json;
use crate::quota::Day;

/// Days kept of each client: today, and the month before.
pub const DAYS: usize = 32;
/// How long what was carried may be in memory alone.
const SAVE_AFTER: Duration = Duration::from_secs(600);

/// Bytes of a client's streams since some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// To the client.
    pub down: u64,
    /// From the client.
    pub up: u64,
}

/// Bytes of a client's streams on a day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DayTraffic {
    /// The day.
    pub date: Day,
    /// Bytes to the client.
    pub down_bytes: u64,
    /// Bytes from the client.
    pub up_bytes: u64,
}

/// A client's days.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Account {
    client: String,
    /// The latest last; days without a byte are left out.
    days: Vec<DayTraffic>,
}

/// All clients' days.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accounts {
    /// One of each client. A list, since a map that can be saved takes 5 kB of code.
    accounts: Vec<Account>,
    /// The totals that were counted so far.
    #[serde(skip)]
    counted: LiteMap<String, Bytes>,
    /// Since when there is something to be saved.
    #[serde(skip)]
    unsaved: Option<Instant>,
}

impl Accounts {
    /// Counts what a client's `total` since the server's start has grown by.
    pub fn count(&mut self, client: &str, total: Bytes, today: Day, now: Instant) {
        let counted = self.counted.entry(client.to_owned()).or_default();
        let down_bytes = total.down.saturating_sub(counted.down);
        let up_bytes = total.up.saturating_sub(counted.up);
        if (down_bytes, up_bytes) == (0, 0) {
            return;
        }
        *counted = total;
        self.unsaved.get_or_insert(now);
        if self.accounts.iter().all(|account| account.client != client) {
            self.accounts.push(Account { client: client.to_owned(), days: Vec::new() });
        }
        let account = self.accounts.iter_mut().find(|account| account.client == client);
        let Some(Account { days, .. }) = account else { return };
        match days.iter_mut().find(|day| day.date == today) {
            Some(day) => {
                day.down_bytes = day.down_bytes.saturating_add(down_bytes);
                day.up_bytes = day.up_bytes.saturating_add(up_bytes);
            }
            None => days.push(DayTraffic { date: today, down_bytes, up_bytes }),
        }
        // A clock that was wrong for a while has put days in another order.
        days.sort_by_key(|day| day.date);
        days.drain(..days.len().saturating_sub(DAYS));
    }

    /// A client's days, the latest last.
    pub fn days(&self, client: &str) -> &[DayTraffic] {
        let account = self.accounts.iter().find(|account| account.client == client);
        account.map_or(&[], |account| account.days.as_slice())
    }

    /// What a client has carried on a day.
    pub fn on(&self, client: &str, date: Day) -> Bytes {
        let day = self.days(client).iter().find(|day| day.date == date);
        day.map_or(Bytes::default(), |day| Bytes { down: day.down_bytes, up: day.up_bytes })
    }

    /// The text to be saved, if it is time for that, or `at_once` and there is something new.
    pub fn to_be_saved(&mut self, now: Instant, at_once: bool) -> Option<String> {
        let since = self.unsaved?;
        if !at_once && now.saturating_duration_since(since) < SAVE_AFTER {
            return None;
        }
        self.unsaved = None;
        serde_json::to_string(self).ok()
    }

    /// What was saved.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Accounts, String> {
        json::from_str(text).map_err(|error| error.to_string())
    }

    /// Forgets a client, whose name may be another's later.
    pub fn forget(&mut self, client: &str, now: Instant) {
        let before = self.accounts.len();
        self.accounts.retain(|account| account.client != client);
        if self.accounts.len() < before {
            self.unsaved.get_or_insert(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    fn day(number: u64) -> Day {
        Day::of_unix(number * DAY)
    }

    fn bytes(down: u64, up: u64) -> Bytes {
        Bytes { down, up }
    }

    #[test]
    fn totals_become_bytes_a_day() {
        let (mut accounts, now) = (Accounts::default(), Instant::now());
        for (total, date) in [(bytes(100, 10), 1), (bytes(150, 10), 1), (bytes(160, 30), 2)] {
            accounts.count("home", total, day(date), now);
            accounts.count("home", total, day(date), now);
        }
        accounts.count("van", bytes(0, 0), day(2), now);
        assert_eq!(accounts.on("home", day(1)), bytes(150, 10));
        assert_eq!(accounts.on("home", day(2)), bytes(10, 20));
        assert_eq!(accounts.on("home", day(3)), bytes(0, 0));
        assert_eq!(accounts.days("van"), []);
    }

    #[test]
    fn a_restart_goes_on_counting() {
        let (mut accounts, now) = (Accounts::default(), Instant::now());
        accounts.count("home", bytes(100, 10), day(1), now);
        let text = accounts.to_be_saved(now, true).unwrap();
        let mut accounts = Accounts::parse(&text).unwrap();
        assert_eq!(accounts.to_be_saved(now, true), None, "nothing is new");
        // Totals begin anew with the server.
        accounts.count("home", bytes(5, 1), day(1), now);
        assert_eq!(accounts.on("home", day(1)), bytes(105, 11));
        assert!(Accounts::parse("{\"accounts\":1}").is_err());
    }

    #[test]
    fn it_is_seldom_written() {
        let (mut accounts, start) = (Accounts::default(), Instant::now());
        let mut written = 0;
        for second in 1..=3600 {
            let now = start + Duration::from_secs(second);
            accounts.count("home", bytes(second * 1_000_000, 0), day(1), now);
            written += u32::from(accounts.to_be_saved(now, false).is_some());
        }
        assert_eq!(written, 5);
        assert!(accounts.to_be_saved(start, true).is_some(), "the rest, at a stop");
    }

    #[test]
    fn old_days_and_clients_are_forgotten() {
        let (mut accounts, now) = (Accounts::default(), Instant::now());
        for number in 1..=100 {
            accounts.count("home", bytes(number, 0), day(number), now);
        }
        let days = accounts.days("home");
        assert_eq!((days.len(), days[0].date), (DAYS, day(101 - DAYS as u64)));
        accounts.forget("home", now);
        assert_eq!(accounts.days("home"), []);
    }
}
