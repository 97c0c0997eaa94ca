//! `[backup]`: copies of the database that the daemon makes by itself.

use std::path::PathBuf;
use std::time::Duration;

use super::settings::Layers;
use super::{Paths, optional_path, parse_duration};
use crate::clock::Millis;
use crate::schedule::Schedule;

/// The shortest time between copies: each is read whole to be verified.
const EVERY_MIN: Duration = Duration::from_secs(60);

/// When copies are made.
#[derive(Debug, Clone)]
enum Plan {
    /// This long after the one before.
    Every(Duration),
    /// By the clock, in UTC.
    Clock(Box<Schedule>),
}

/// What the daemon is to copy, where to, and how many copies stay.
#[derive(Debug, Clone)]
pub struct Backups {
    /// As it is written; empty = the daemon makes none.
    pub every: String,
    plan: Option<Plan>,
    /// How many copies stay.
    pub keep: usize,
    /// Where they are.
    pub folder: PathBuf,
    /// Bytes that stay free on their disk.
    pub keep_free_bytes: u64,
    /// The private databases of plugins, which go into each copy.
    pub plugin_data: PathBuf,
}

impl PartialEq for Backups {
    fn eq(&self, other: &Backups) -> bool {
        let of = |one: &Backups| (one.every.clone(), one.keep, one.folder.clone(), one.keep_free_bytes);
        of(self) == of(other)
    }
}

impl Backups {
    pub(super) fn read(paths: &Paths, layers: &mut Layers, keep_free_bytes: u64) -> Backups {
        let every = layers.text("backup.every").trim().to_owned();
        let plan = plan(&every).unwrap_or_else(|reason| {
            layers.wrong("backup.every", &reason);
            None
        });
        let keep = usize::try_from(layers.number("backup.keep", 1..=1000)).unwrap_or(1);
        let folder = optional_path("backup.folder", paths, layers).unwrap_or_else(|| paths.data.join("backups"));
        let plugin_data = paths.plugin_data.clone();
        Backups { every, plan, keep, folder, keep_free_bytes, plugin_data }
    }

    /// When the next copy is due if the newest was made at `newest_ms`: at once without one, so that a machine that is off
    /// at the time of the plan has one as well. None without a plan.
    pub fn due_ms(&self, newest_ms: Option<Millis>, now_ms: Millis) -> Option<Millis> {
        let plan = self.plan.as_ref()?;
        let Some(newest_ms) = newest_ms else { return Some(now_ms) };
        // The clock may have been put right since it was made.
        let newest_ms = newest_ms.min(now_ms);
        match plan {
            Plan::Every(every) => {
                Some(newest_ms.saturating_add(Millis::try_from(every.as_millis()).unwrap_or(Millis::MAX)))
            }
            Plan::Clock(schedule) => schedule.next(newest_ms),
        }
    }
}

fn plan(text: &str) -> Result<Option<Plan>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    if let Some(every) = parse_duration(text) {
        let short = "must be at least 1m: each copy is read whole to be verified.";
        return if every < EVERY_MIN { Err(short.to_owned()) } else { Ok(Some(Plan::Every(every))) };
    }
    match Schedule::parse(text, "UTC") {
        Ok(schedule) => Ok(Some(Plan::Clock(Box::new(schedule)))),
        Err((_, reason)) => Err(format!("must be a duration such as 24h, or a time plan in UTC: {reason}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::parse_rfc3339;

    fn backups(every: &str) -> Backups {
        let plan = plan(every).expect("a plan");
        Backups {
            every: every.to_owned(),
            plan,
            keep: 7,
            folder: "/b".into(),
            keep_free_bytes: 0,
            plugin_data: "/p".into(),
        }
    }

    #[test]
    fn copies_are_due_by_the_newest() {
        let at = |text: &str| parse_rfc3339(text).expect("a time");
        let now_ms = at("2026-11-22T12:00:00Z");
        for (every, newest, wanted) in [
            ("", None, None),
            ("24h", None, Some("2026-11-22T12:00:00Z")),
            ("0 3 * * *", None, Some("2026-11-22T12:00:00Z")),
            ("24h", Some("2026-11-22T01:00:00Z"), Some("2026-11-23T01:00:00Z")),
            ("24h", Some("2030-01-01T00:00:00Z"), Some("2026-11-23T12:00:00Z")),
            ("0 3 * * *", Some("2026-11-20T03:00:00Z"), Some("2026-11-21T03:00:00Z")),
            ("@daily", Some("2026-11-22T01:00:00Z"), Some("2026-11-23T00:00:00Z")),
        ] {
            assert_eq!(backups(every).due_ms(newest.map(at), now_ms), wanted.map(at), "{every} {newest:?}");
        }
        for wrong in ["soon", "1s", "0s", "* * *", "0 0 30 2 *"] {
            assert!(plan(wrong).is_err(), "{wrong}");
        }
    }
}
