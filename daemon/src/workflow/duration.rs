//! Durations: the DSL's inline form and ISO 8601, in milliseconds.

use serde_json::Value;

use crate::clock::Millis;

/// The longest that anything may be made to wait: ten years.
const MAX_MS: f64 = 10.0 * 366.0 * 86_400_000.0;
const UNITS: [(&str, f64); 5] =
    [("days", 86_400_000.0), ("hours", 3_600_000.0), ("minutes", 60_000.0), ("seconds", 1000.0), ("milliseconds", 1.0)];

/// Reads `{seconds: 3}` or `PT3S`; the error says what is wrong.
pub fn read(value: &Value) -> Result<Millis, String> {
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
            whole(total)
        }
        Value::String(text) => iso(text),
        _ => Err("is no duration; write {seconds: 3} or an ISO 8601 duration such as PT3S.".to_owned()),
    }
}

fn whole(ms: f64) -> Result<Millis, String> {
    if ms > MAX_MS {
        return Err("is longer than ten years.".to_owned());
    }
    Ok(ms.round() as Millis)
}

/// Reads an ISO 8601 duration of weeks, days, hours, minutes and seconds. Years and months have no fixed length.
fn iso(text: &str) -> Result<Millis, String> {
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
    if date.contains(['Y', 'M']) {
        return Err(format!("'{text}' has years or months, which have no fixed length; use days."));
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
    let days = parts(date, &[('W', 7.0 * 86_400_000.0), ('D', 86_400_000.0)]).ok_or_else(wrong)?;
    let time = parts(clock, &[('H', 3_600_000.0), ('M', 60_000.0), ('S', 1000.0)]).ok_or_else(wrong)?;
    whole(days + time)
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
            (json!("P1M"), None),
            (json!("PT1S2M"), None),
            (json!("3 seconds"), None),
            (json!({}), None),
            (json!({ "weeks": 1 }), None),
            (json!({ "seconds": -1 }), None),
            (json!("P9999999D"), None),
        ] {
            assert_eq!(read(&value).ok(), ms, "{value}");
        }
    }
}
