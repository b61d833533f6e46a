//! What each uplink has carried this month, and whether its quota is reached.
//!
//! Bytes are those of the device's counters, received and sent, whoever sent them. Months are those
//! of UTC: a router's time zone is known to its C library at best.

mod day;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use litemap::LiteMap;
use serde::{Deserialize, Serialize};

use crate::config::agent::{Quota, QuotaAction, UplinkConfig};
use crate::config::value::show_bytes;
pub use day::Day;

/// A clock that shows less is wrong: it is the time from which on this program exists. Most routers
/// have no clock of their own and start in 1970, or when a file was last written.
const EXISTS_SINCE: u64 = 1_767_225_600;
/// How long a clock must show an earlier period before it is believed.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Periods remembered of each uplink: one that a wrong clock began makes way again.
const PERIODS: usize = 3;
/// Days remembered of each uplink.
const DAYS: usize = 62;
/// Uplinks remembered that are not configured (any more).
const STRANGERS: usize = 16;

/// To flash, for uplinks with a quota: after this share of it in per cent,
const SHARE: u64 = 5;
/// and after this time;
const WITH_QUOTA: Duration = Duration::from_secs(6 * 3600);
/// for others after this time.
const WITHOUT_QUOTA: Duration = Duration::from_secs(24 * 3600);
/// To memory that lasts until a reboot.
const MEMORY: Duration = Duration::from_secs(60);

/// A device's counters at one time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// The device's name.
    pub device: String,
    /// Its index: a device made anew has another one, and counts from zero.
    pub index: u32,
    /// Bytes received and sent.
    pub bytes: u64,
}

/// Bytes carried in a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Count {
    /// Its first day; none as long as the clock was wrong.
    since: Option<Day>,
    bytes: u64,
}

/// Bytes carried on a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DayCount {
    /// The day, such as `2026-11-01`.
    pub day: Day,
    /// Bytes received and sent.
    pub bytes: u64,
}

/// One uplink's account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Account {
    reset_day: u8,
    /// The last reading, from which to count on.
    reading: Option<Reading>,
    /// The count in force, and those in force before, the latest first.
    counts: Vec<Count>,
    /// The last days on which the clock was right, the oldest first.
    #[serde(default)]
    days: Vec<DayCount>,
    /// Since when the clock has shown an earlier period.
    #[serde(skip)]
    behind: Option<Instant>,
}

/// The file's contents.
#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    /// The kernel's boot id: counters begin anew with each boot.
    boot: String,
    uplinks: BTreeMap<String, Account>,
}

/// How an uplink's count stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Bytes in this period.
    pub bytes: u64,
    /// The period's first day; none before the clock was right.
    pub since: Option<Day>,
    /// The first day of the next.
    pub until: Option<Day>,
}

/// A quota that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap {
    /// The quota.
    pub quota: Quota,
    /// The count.
    pub standing: Standing,
}

impl fmt::Display for Cap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Standing { bytes, since, until } = self.standing;
        write!(f, "quota of {} reached ({}", show_bytes(self.quota.bytes), show_bytes(bytes))?;
        if let Some(since) = since {
            write!(f, " since {}", since.short())?;
        }
        f.write_str(match self.quota.action {
            QuotaAction::Backup => "): backup",
            QuotaAction::Off => "): off",
        })?;
        match until {
            Some(until) => write!(f, " until {}", until.short()),
            None => Ok(()),
        }
    }
}

/// Where to write the accounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Save {
    /// To memory that lasts until a reboot.
    Memory,
    /// There, and to flash.
    Flash,
}

/// The accounts of all uplinks.
#[derive(Debug, Default)]
pub struct Usage {
    boot: String,
    accounts: BTreeMap<String, Account>,
    /// The counts on flash.
    on_flash: LiteMap<String, Count>,
    flashed: Option<Instant>,
    saved: Option<Instant>,
}

impl Usage {
    /// Nothing counted yet; `boot` is the kernel's boot id.
    pub fn new(boot: &str) -> Usage {
        Usage { boot: boot.to_owned(), ..Usage::default() }
    }

    /// Continues what [`Usage::to_json`] wrote, in this boot or an earlier one.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn from_json(json: &[u8], boot: &str) -> Result<Usage, String> {
        let file: File = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let mut accounts = file.uplinks;
        for reading in accounts.values_mut().filter_map(|account| account.reading.as_mut()) {
            if file.boot != boot {
                // No device has this index: its counter has begun anew.
                reading.index = 0;
            }
        }
        let on_flash = current_counts(&accounts);
        Ok(Usage { boot: boot.to_owned(), accounts, on_flash, flashed: None, saved: None })
    }

    /// The accounts as text for a file.
    pub fn to_json(&self) -> String {
        let file = File { boot: self.boot.clone(), uplinks: self.accounts.clone() };
        // Neither a map with keys other than strings nor a failing Serialize is among the types.
        serde_json::to_string(&file).unwrap_or_default() + "\n"
    }

    /// Takes the readings of the uplinks' devices by uplink, and the clock in seconds since 1970.
    pub fn count(
        &mut self,
        uplinks: &[UplinkConfig],
        readings: &LiteMap<String, Reading>,
        clock: u64,
        now: Instant,
    ) {
        let today = (clock >= EXISTS_SINCE).then(|| Day::of_unix(clock));
        for uplink in uplinks {
            let reset_day = uplink.quota.map_or(1, |quota| quota.reset_day);
            let account = self.accounts.entry(uplink.name.clone()).or_insert(Account {
                reset_day,
                reading: None,
                counts: Vec::new(),
                days: Vec::new(),
                behind: None,
            });
            account.turn(reset_day, today, now);
            if let Some(reading) = readings.get(&uplink.name) {
                let more = account.add(reading);
                account.add_to_day(today, more);
            }
        }
        let is_stranger = |name: &String| !uplinks.iter().any(|uplink| uplink.name == *name);
        if self.accounts.keys().filter(|name| is_stranger(name)).count() > STRANGERS {
            self.accounts.retain(|name, _| !is_stranger(name));
        }
    }

    /// How an uplink's count stands; none before it was counted.
    pub fn standing(&self, uplink: &str) -> Option<Standing> {
        let account = self.accounts.get(uplink)?;
        let count = account.current()?;
        let until = count.since.map(|since| since.next_period(account.reset_day));
        Some(Standing { bytes: count.bytes, since: count.since, until })
    }

    /// What an uplink has carried on each of the last days, the oldest first.
    pub fn days(&self, uplink: &str) -> &[DayCount] {
        self.accounts.get(uplink).map_or(&[], |account| &account.days)
    }

    /// The quotas that are reached, by uplink.
    pub fn caps(&self, uplinks: &[UplinkConfig]) -> LiteMap<String, Cap> {
        uplinks
            .iter()
            .filter_map(|uplink| {
                let (quota, standing) = (uplink.quota?, self.standing(&uplink.name)?);
                let cap = Cap { quota, standing };
                (standing.bytes >= quota.bytes).then(|| (uplink.name.clone(), cap))
            })
            .collect()
    }

    /// Whether to save now; it is taken as done.
    pub fn save_due(&mut self, uplinks: &[UplinkConfig], now: Instant) -> Option<Save> {
        let elapsed = |then: Instant| now.saturating_duration_since(then);
        let flashed = elapsed(*self.flashed.get_or_insert(now));
        if uplinks.iter().any(|uplink| self.is_flash_due(uplink, flashed)) {
            self.note_saved(now);
            return Some(Save::Flash);
        }
        if self.saved.is_none_or(|saved| elapsed(saved) >= MEMORY) {
            self.saved = Some(now);
            return Some(Save::Memory);
        }
        None
    }

    fn is_flash_due(&self, uplink: &UplinkConfig, flashed: Duration) -> bool {
        let count = self.accounts.get(&uplink.name).and_then(Account::current);
        let Some(count) = count else { return false };
        let old = self.on_flash.get(&uplink.name);
        let changed = old != Some(&count);
        let Some(quota) = uplink.quota else { return changed && flashed >= WITHOUT_QUOTA };
        let Some(old) = old.filter(|old| old.since == count.since) else { return true };
        let reached = |count: &Count| count.bytes >= quota.bytes;
        let more = count.bytes.abs_diff(old.bytes);
        reached(&count) != reached(old)
            || more >= (quota.bytes / 100).saturating_mul(SHARE).max(1)
            || changed && flashed >= WITH_QUOTA
    }

    fn note_saved(&mut self, now: Instant) {
        self.on_flash = current_counts(&self.accounts);
        (self.flashed, self.saved) = (Some(now), Some(now));
    }
}

fn current_counts(accounts: &BTreeMap<String, Account>) -> LiteMap<String, Count> {
    let current = |(name, account): (&String, &Account)| Some((name.clone(), account.current()?));
    accounts.iter().filter_map(current).collect()
}

impl Account {
    fn current(&self) -> Option<Count> {
        self.counts.first().copied()
    }

    /// Puts the count of the period that `today` is in in force. Without a clock that is right the
    /// one in force stays, and so it does for a while if the clock goes back.
    fn turn(&mut self, reset_day: u8, today: Option<Day>, now: Instant) {
        let Some(since) = today.map(|today| today.period_start(reset_day)) else {
            if self.counts.is_empty() {
                self.counts.push(Count { since: None, bytes: 0 });
            }
            return;
        };
        let current = self.current();
        let relabelled = std::mem::replace(&mut self.reset_day, reset_day) != reset_day
            || current.is_some_and(|count| count.since.is_none());
        let back = current.is_some_and(|count| count.since > Some(since));
        if back && !relabelled {
            let behind = *self.behind.get_or_insert(now);
            if now.saturating_duration_since(behind) < PATIENCE {
                return;
            }
        }
        self.behind = None;
        let mut carried = 0;
        if relabelled && !self.counts.is_empty() {
            // The same bytes, in a period that is known only now or begins on another day.
            carried = self.counts.remove(0).bytes;
        }
        let known = self.counts.iter().position(|count| count.since == Some(since));
        let bytes = known.map_or(0, |position| self.counts.remove(position).bytes);
        let count = Count { since: Some(since), bytes: bytes.saturating_add(carried) };
        self.counts.insert(0, count);
        self.counts.truncate(PERIODS);
    }

    /// Counts on from the last reading: all of a device that began anew, nothing of another one. Gives
    /// what is new.
    fn add(&mut self, reading: &Reading) -> u64 {
        let more = match &self.reading {
            Some(last) if last.device == reading.device => {
                let same = last.index == reading.index && last.bytes <= reading.bytes;
                reading.bytes - if same { last.bytes } else { 0 }
            }
            _ => 0,
        };
        if let Some(count) = self.counts.first_mut() {
            count.bytes = count.bytes.saturating_add(more);
        }
        self.reading = Some(reading.clone());
        more
    }

    fn add_to_day(&mut self, today: Option<Day>, more: u64) {
        let Some(day) = today else { return };
        let place = match self.days.binary_search_by_key(&day, |count| count.day) {
            Ok(place) => place,
            Err(place) => {
                self.days.insert(place, DayCount { day, bytes: 0 });
                place
            }
        };
        if let Some(count) = self.days.get_mut(place) {
            count.bytes = count.bytes.saturating_add(more);
        }
        self.days.drain(..self.days.len().saturating_sub(DAYS));
    }
}
