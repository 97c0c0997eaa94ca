//! Time plans: cron expressions in a time zone, and the definition of a job that runs by one. Pure.
//!
//! Arithmetic is `croner`'s over `jiff` zones, with the zone data of this binary: a plan means the same on every
//! machine. Where the clock goes forward, a job at a fixed time that does not exist runs at the end of the gap and one by
//! interval leaves it out; where it goes back, a job at a fixed time runs once, at the first of the two times, and one by
//! interval runs in both.

mod job;

pub use job::{FAILURES_MAX, JITTER_S_MAX, Job, Misfire, Overlap, RUN_ALL_MAX, check_id};

use croner::errors::CronError;
use croner::parser::{CronParser, Seconds, Year};
use croner::{Cron, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

use crate::clock::Millis;
use crate::error::distance;

/// Longest expression, in bytes.
const EXPRESSION_BYTES_MAX: usize = 256;
/// The longest gap that croner steps over, in seconds.
const LONG_GAP_S: i32 = 7200;
/// Transitions that are looked at for a long gap: more than any zone has ahead of it.
const TRANSITIONS_MAX: usize = 400;
/// The fields of an expression, seconds first: their names, and what they can hold.
const FIELDS: [(&str, &str); 6] = [
    ("second", "0-59"),
    ("minute", "0-59"),
    ("hour", "0-23"),
    ("day of the month", "1-31, or L for the last"),
    ("month", "1-12 or JAN-DEC"),
    ("weekday", "0-7 or SUN-SAT, where 0 and 7 are Sunday"),
];
/// What stands for a common expression.
const NICKNAMES: [&str; 7] = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];

/// A cron expression in a time zone.
#[derive(Debug, Clone)]
pub struct Schedule {
    cron: Cron,
    zone: TimeZone,
}

impl Schedule {
    /// Reads `expression` (five fields, six with seconds first, or a nickname such as `@daily`) and the IANA name of its
    /// zone. The error says which of the two is wrong (`true` = the zone), and how.
    pub fn parse(expression: &str, timezone: &str) -> Result<Schedule, (bool, String)> {
        let cron = parse_expression(expression).map_err(|reason| (false, reason))?;
        let zone = parse_zone(timezone).map_err(|reason| (true, reason))?;
        let schedule = Schedule { cron, zone };
        // A date that never comes, such as 30 February, is found out here and not by silence.
        if schedule.next(0).is_none() {
            return Err((false, never(expression)));
        }
        Ok(schedule)
    }

    /// The first slot after `after_ms`; none when there is none any more.
    pub fn next(&self, after_ms: Millis) -> Option<Millis> {
        let after = self.zoned(after_ms)?;
        let mut found = match self.cron.find_next_occurrence(&after, false) {
            Ok(found) => found,
            Err(CronError::TimeSearchLimitExceeded) => self.past_long_gap(&after)?,
            Err(_) => return None,
        };
        // croner counts wall clock seconds from the whole second, so it may step in place around a transition.
        while found.timestamp() <= after.timestamp() {
            let later = found.checked_add(jiff::SignedDuration::from_secs(1)).ok()?;
            found = self.cron.find_next_occurrence(&later, true).ok()?;
        }
        Some(found.timestamp().as_millisecond())
    }

    /// The next `count` slots after `after_ms`.
    pub fn preview(&self, after_ms: Millis, count: usize) -> Vec<Millis> {
        let mut at_ms = after_ms;
        std::iter::from_fn(|| {
            at_ms = self.next(at_ms)?;
            Some(at_ms)
        })
        .take(count)
        .collect()
    }

    /// `2026-11-22T08:00:00+01:00[Europe/Berlin]`: the time as its zone's clocks show it.
    pub fn local(&self, at_ms: Millis) -> String {
        self.zoned(at_ms).map_or_else(String::new, |zoned| zoned.to_string())
    }

    /// The expression in English.
    pub fn describe(&self) -> String {
        self.cron.describe()
    }

    /// The first slot at or past the end of the next gap that is longer than croner looks: a zone that changed sides of the
    /// date line left out a whole day. Asked when croner met such a gap, so nothing lies before it.
    fn past_long_gap(&self, after: &Zoned) -> Option<Zoned> {
        let mut before = after.offset();
        let end = self.zone.following(after.timestamp()).take(TRANSITIONS_MAX).find_map(|transition| {
            let gap = transition.offset().seconds() - before.seconds();
            before = transition.offset();
            (gap > LONG_GAP_S).then(|| transition.timestamp().to_zoned(self.zone.clone()))
        })?;
        let weekday = Weekday::from_days_from_sunday(u32::try_from(end.weekday().to_sunday_zero_offset()).ok()?);
        let (month, day) = (u32::try_from(end.month()).ok()?, u32::try_from(end.day()).ok()?);
        let pattern = &self.cron.pattern;
        let same_day = pattern.day_match(i32::from(end.year()), month, day, weekday).ok()?;
        if same_day && pattern.month_match(month).ok()? {
            return Some(end);
        }
        self.cron.find_next_occurrence(&end, true).ok()
    }

    fn zoned(&self, at_ms: Millis) -> Option<Zoned> {
        Some(Timestamp::from_millisecond(at_ms).ok()?.to_zoned(self.zone.clone()))
    }
}

fn parse_expression(text: &str) -> Result<Cron, String> {
    let fields: Vec<&str> = text.split_whitespace().collect();
    let nickname = NICKNAMES.contains(&text.trim().to_ascii_lowercase().as_str());
    if text.len() > EXPRESSION_BYTES_MAX || !(nickname || matches!(fields.len(), 5 | 6)) {
        let shown: String = text.chars().take(60).collect();
        let found = if fields.len() == 1 { "1 field".to_owned() } else { format!("{} fields", fields.len()) };
        return Err(format!(
            "'{shown}' is no time plan, with {found}: write five (minute hour day month weekday) as in '0 8 * * 1-5', six \
             with seconds first, or one of {}.",
            NICKNAMES.join(", ")
        ));
    }
    // croner takes "," for no minute at all, and looks for it through thousands of years.
    let has_gap = text.split_whitespace().flat_map(|field| field.split(',')).any(str::is_empty);
    let parsed = if has_gap { None } else { Some(parse(text)) };
    match parsed {
        Some(Ok(cron)) => Ok(cron),
        other => Err(fault(&fields, other.and_then(Result::err).map(|error| error.to_string()))),
    }
}

fn parse(text: &str) -> Result<Cron, CronError> {
    CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build().parse(text)
}

/// The names of an expression's fields beside them.
fn named<'a>(fields: &'a [&'a str]) -> impl Iterator<Item = (&'static (&'static str, &'static str), &'a str)> {
    FIELDS[FIELDS.len().saturating_sub(fields.len())..].iter().zip(fields.iter().copied())
}

/// Which part of an expression is wrong: the first that is no good where nothing else is asked for.
fn fault(fields: &[&str], said: Option<String>) -> String {
    let whole = fields.join(" ");
    for (n, ((name, range), field)) in named(fields).enumerate() {
        let alone = |part: &str| {
            let mut probe = vec!["*"; fields.len()];
            probe[n] = part;
            probe.join(" ")
        };
        if field.split(',').any(str::is_empty) {
            return format!(
                "'{whole}' is no time plan: in its {name} '{field}' a comma has nothing before or behind it."
            );
        }
        let wrong = field.split(',').find(|part| parse(&alone(part)).is_err());
        if let Some(part) = wrong.or_else(|| parse(&alone(field)).is_err().then_some(field)) {
            return format!(
                "'{whole}' is no time plan: its {name} '{part}' is wrong. That field holds {range}; also *, 1-3, 1,3 or */2."
            );
        }
    }
    format!("'{whole}' is no time plan: {}", said.unwrap_or_default())
}

/// Says what of an expression keeps its time from ever coming: a date that no year has.
fn never(text: &str) -> String {
    let fields: Vec<&str> = text.split_whitespace().collect();
    let date = named(&fields).filter(|((name, _), _)| ["day of the month", "month"].contains(name));
    let date: Vec<String> = date.map(|((name, _), field)| format!("{name} '{field}'")).collect();
    format!("'{text}' names a time that never comes: no year has the {}.", date.join(" in the "))
}

fn parse_zone(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name).map_err(|_| {
        let shown: String = name.chars().take(60).collect();
        let near = near_zone(name).map_or_else(String::new, |near| format!(" Is '{near}' meant?"));
        format!("'{shown}' is no time zone; write an IANA name such as Europe/Berlin, or UTC.{near}")
    })
}

/// The zone whose name is nearest to `name`, or ends with it.
fn near_zone(name: &str) -> Option<String> {
    let wanted = name.trim().to_ascii_lowercase().replace(' ', "_");
    let away = |known: &str| {
        let known = known.to_ascii_lowercase();
        if known.rsplit('/').next() == Some(wanted.as_str()) { 0 } else { distance(&wanted, &known) }
    };
    let all = jiff::tz::db().available().map(|known| (away(known.as_str()), known.as_str().to_owned()));
    all.min().filter(|(away, _)| *away <= wanted.len() / 3).map(|(_, near)| near)
}

#[cfg(test)]
#[path = "schedule/tests.rs"]
mod tests;
