//! Durations: the DSL's inline form and ISO 8601.

use jiff::{Timestamp, ToSpan, tz::TimeZone};
use serde_json::Value;

use crate::clock::Millis;

/// The longest that anything may be made to wait: ten years.
const MAX_MS: f64 = 10.0 * 366.0 * 86_400_000.0;
/// A month of the longest year, on average.
const MONTH_MS_MAX: f64 = 366.0 * 86_400_000.0 / 12.0;
const UNITS: [(&str, f64); 5] =
    [("days", 86_400_000.0), ("hours", 3_600_000.0), ("minutes", 60_000.0), ("seconds", 1000.0), ("milliseconds", 1.0)];

/// How long something lasts. Months are those of the calendar, so what some of them come to depends on when they begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Length {
    months: i32,
    ms: Millis,
}

impl Length {
    /// Milliseconds from `from_ms` on, by the calendar of UTC: a month from the last of January is over on the last of
    /// February.
    pub fn after(self, from_ms: Millis) -> Millis {
        if self.months == 0 {
            return self.ms;
        }
        let later = || {
            let from = Timestamp::from_millisecond(from_ms).ok()?.to_zoned(TimeZone::UTC);
            Some(from.checked_add(self.months.months()).ok()?.timestamp().as_millisecond())
        };
        // Ten years from now are in every calendar; from a clock that stands at its end there is no later time.
        later().map_or(0, |at| at - from_ms).saturating_add(self.ms)
    }

    /// Its milliseconds, if they are the same whenever it begins.
    pub fn fixed(self) -> Option<Millis> {
        (self.months == 0).then_some(self.ms)
    }
}

/// Reads `{seconds: 3}` or `PT3S`; the error says what is wrong.
pub fn read(value: &Value) -> Result<Length, String> {
    match value {
        Value::Object(parts) if !parts.is_empty() => {
            let mut total = 0.0;
            for (name, amount) in parts {
                let (_, size) = UNITS.iter().find(|(unit, _)| unit == name).ok_or_else(|| {
                    format!("'{name}' is no unit; write days, hours, minutes, seconds, milliseconds.")
                })?;
                let amount = amount.as_f64().filter(|amount| *amount >= 0.0);
                total += amount.ok_or_else(|| format!("'{name}' must be a number that is not negative."))? * size;
            }
            whole(0.0, total)
        }
        Value::String(text) => iso(text),
        _ => Err("is no duration; write {seconds: 3} or an ISO 8601 duration such as PT3S.".to_owned()),
    }
}

fn whole(months: f64, ms: f64) -> Result<Length, String> {
    if ms + months * MONTH_MS_MAX > MAX_MS {
        return Err("is longer than ten years.".to_owned());
    }
    if months.fract() != 0.0 {
        return Err("has a part of a month, which has no length; use days.".to_owned());
    }
    Ok(Length { months: months as i32, ms: ms.round() as Millis })
}

/// Reads an ISO 8601 duration.
fn iso(text: &str) -> Result<Length, String> {
    let wrong = || format!("'{}' is no ISO 8601 duration such as PT30S or P1DT2H.", text.escape_debug());
    let rest = text.strip_prefix('P').ok_or_else(wrong)?;
    let (date, clock) = match rest.split_once('T') {
        Some((date, clock)) if !clock.is_empty() => (date, clock),
        Some(_) => return Err(wrong()),
        None => (rest, ""),
    };
    if date.is_empty() && clock.is_empty() {
        return Err(wrong());
    }
    let parts = |text: &str, units: &[(char, f64)]| -> Option<f64> {
        let (mut total, mut left, mut from) = (0.0, text, 0);
        while !left.is_empty() {
            let end = left.find(|c: char| c.is_ascii_alphabetic())?;
            let unit = left[end..].chars().next()?;
            let place = units.iter().skip(from).position(|(name, _)| *name == unit)? + from;
            let number = &left[..end];
            if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
                return None;
            }
            total += number.parse::<f64>().ok()? * units[place].1;
            (from, left) = (place + 1, &left[end + 1..]);
        }
        Some(total)
    };
    let (months, days) = date.split_at(date.rfind(['Y', 'M']).map_or(0, |last| last + 1));
    let months = parts(months, &[('Y', 12.0), ('M', 1.0)]).ok_or_else(wrong)?;
    let days = parts(days, &[('W', 7.0 * 86_400_000.0), ('D', 86_400_000.0)]).ok_or_else(wrong)?;
    let time = parts(clock, &[('H', 3_600_000.0), ('M', 60_000.0), ('S', 1000.0)]).ok_or_else(wrong)?;
    whole(months, days + time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_forms_are_read() {
        for (value, ms) in [
            (json!({ "seconds": 3 }), Some(3_000)),
            (json!({ "days": 1, "hours": 2, "milliseconds": 5 }), Some(93_600_005)),
            (json!("PT0.25S"), Some(250)),
            (json!("P1DT2H"), Some(93_600_000)),
            (json!("P1W"), Some(604_800_000)),
            (json!("PT1M30S"), Some(90_000)),
            (json!("P"), None),
            (json!("PT"), None),
            (json!("P0.5M"), None),
            (json!("P11Y"), None),
            (json!("P1D1M"), None),
            (json!("PT1S2M"), None),
            (json!("3 seconds"), None),
            (json!({}), None),
            (json!({ "weeks": 1 }), None),
            (json!({ "seconds": -1 }), None),
            (json!("P9999999D"), None),
        ] {
            assert_eq!(read(&value).ok().and_then(Length::fixed), ms, "{value}");
        }
    }

    /// Goal: years and months are those of the calendar.
    #[test]
    fn months_are_as_long_as_the_calendar_says() {
        let at = |text: &str| crate::clock::parse_rfc3339(text).expect("a time");
        for (from, length, to) in [
            ("2026-01-15T10:00:00Z", "P1M", "2026-02-15T10:00:00Z"),
            ("2026-01-31T10:00:00Z", "P1M", "2026-02-28T10:00:00Z"),
            ("2027-03-01T00:00:00Z", "P1Y", "2028-03-01T00:00:00Z"),
            ("2028-02-29T00:00:00Z", "P1Y", "2029-02-28T00:00:00Z"),
            ("2026-11-22T00:00:00Z", "P0.5Y2M1W1DT1H", "2027-07-30T01:00:00Z"),
        ] {
            let read = read(&json!(length)).unwrap_or_else(|why| panic!("{length}: {why}"));
            assert_eq!((read.after(at(from)), read.fixed()), (at(to) - at(from), None), "{length} from {from}");
        }
    }
}
