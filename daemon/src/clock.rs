//! Time. Everything that decides by time asks a [`Clock`], so that tests can move it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970-01-01 UTC.
pub type Millis = i64;

/// Where the time comes from: the machine, or a hand that a test moves.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The machine's wall clock.
    #[default]
    System,
    /// Stands still until it is set.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// A clock that shows `now_ms` until [`Clock::advance`] is called.
    pub fn manual(now_ms: Millis) -> Clock {
        Clock::Manual(Arc::new(AtomicI64::new(now_ms)))
    }

    /// Now, in milliseconds since 1970 UTC. May go backwards when the machine's clock is set back.
    pub fn now_ms(&self) -> Millis {
        match self {
            Clock::System => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX)),
            Clock::Manual(now) => now.load(Ordering::SeqCst),
        }
    }

    /// Moves a manual clock by `by_ms`; the machine's clock stays.
    pub fn advance(&self, by_ms: Millis) {
        if let Clock::Manual(now) = self {
            now.fetch_add(by_ms, Ordering::SeqCst);
        }
    }
}

/// The machine's wall clock in nanoseconds since 1970 UTC, for spans: durations below a millisecond matter there.
pub fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// The end of the year 9999, the last that RFC 3339 can write.
const RFC3339_MAX: Millis = 253_402_300_799_999;

/// False before 2026-01-01, when this program was not there, and after 2099: the machine's clock is wrong.
pub fn is_plausible(now_ms: Millis) -> bool {
    (1_767_225_600_000..4_102_444_800_000).contains(&now_ms)
}

/// `2026-11-22T01:13:00.000Z`: RFC 3339, UTC, milliseconds.
pub fn rfc3339(at_ms: Millis) -> String {
    let mut out = Vec::with_capacity(24);
    write_rfc3339(&mut out, at_ms);
    String::from_utf8(out).unwrap_or_default()
}

/// As [`rfc3339`], appended to `out`. Years outside 0–9999 are clamped.
///
/// Source of the date arithmetic: the proleptic Gregorian calendar counted in 400-year eras from 1 March 0000.
pub fn write_rfc3339(out: &mut Vec<u8>, at_ms: Millis) {
    const DAY_MS: i64 = 86_400_000;
    let at_ms = at_ms.clamp(-62_167_219_200_000, RFC3339_MAX);
    let (days, in_day) = (at_ms.div_euclid(DAY_MS), at_ms.rem_euclid(DAY_MS));
    let from_march = days + 719_468;
    let (era, of_era) = (from_march.div_euclid(146_097), from_march.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let mut digits = |value: i64, width: u32, after: &[u8]| {
        for place in (0..width).rev() {
            let digit = value / 10_i64.pow(place) % 10;
            out.push(b'0' + u8::try_from(digit).unwrap_or(0));
        }
        out.extend_from_slice(after);
    };
    digits(year, 4, b"-");
    digits(month, 2, b"-");
    digits(day, 2, b"T");
    digits(in_day / 3_600_000, 2, b":");
    digits(in_day / 60_000 % 60, 2, b":");
    digits(in_day / 1_000 % 60, 2, b".");
    digits(in_day % 1_000, 3, b"Z");
}

/// Reads an RFC 3339 time with an offset; `None` when it is none, or has no offset.
pub fn parse_rfc3339(text: &str) -> Option<Millis> {
    text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_millisecond).or_else(|| last_day(text))
}

/// As [`parse_rfc3339`] for the last day of 9999, which many write for "never": jiff's times end the day before, so that
/// each has a local time everywhere.
fn last_day(text: &str) -> Option<Millis> {
    let read = jiff::fmt::temporal::Pieces::parse(text).ok()?;
    let local = read.date().to_datetime(read.time()?);
    let since = local.duration_since(jiff::civil::date(1970, 1, 1).to_datetime(jiff::civil::Time::midnight()));
    let at_ms = i64::try_from(since.as_millis()).ok()? - i64::from(read.to_numeric_offset()?.seconds()) * 1000;
    (at_ms <= RFC3339_MAX).then_some(at_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_what_it_parses() {
        for text in [
            "1970-01-01T00:00:00.000Z",
            "2000-02-29T23:59:59.999Z",
            "2024-12-31T12:30:45.006Z",
            "2026-11-22T01:13:00.000Z",
            "0000-01-01T00:00:00.000Z",
            "9999-12-30T21:59:59.999Z",
            "9999-12-31T00:00:00.000Z",
            "9999-12-31T23:59:59.999Z",
            "1900-03-01T00:00:00.001Z",
        ] {
            let at = parse_rfc3339(text).expect(text);
            assert_eq!(rfc3339(at), text);
        }
        assert_eq!(parse_rfc3339("2026-11-22T03:13:00+02:00"), parse_rfc3339("2026-11-22T01:13:00Z"));
        assert_eq!(parse_rfc3339("9999-12-31T23:59:59-00:30"), None);
        assert_eq!(parse_rfc3339("9999-12-31T23:59:59+02:00"), parse_rfc3339("9999-12-31T21:59:59Z"));
        assert_eq!(parse_rfc3339("9999-12-31T12:00:00"), None);
        assert_eq!(parse_rfc3339("2026-11-22T01:13:00"), None);
        assert_eq!(parse_rfc3339("yesterday"), None);
    }
}
