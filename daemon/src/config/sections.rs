//! The sections of the file that hold things by id, such as `[sources.<id>]`: what a change of them takes, and how their
//! settings are shown.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use toml::Table;

use crate::error::{Error, FieldError};

/// Sections that take effect while the daemon runs.
pub(super) const LIVE: [&str; 8] = ["explore", "sources", "sinks", "cron", "plugin", "mcp", "prices", "providers"];
/// Settings whose values are never shown, wherever they stand.
const SECRET: [&str; 4] = ["secret", "password", "token", "key"];
/// Settings that hold names with values that may be secrets.
const SECRET_TABLES: [&str; 3] = ["env", "headers", "secrets"];

/// What a change of a section came to, or would; things are named by id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    section: &'static str,
    /// New ones.
    pub started: Vec<String>,
    /// Ones that are named no more.
    pub stopped: Vec<String>,
    /// Ones with other settings.
    pub changed: Vec<String>,
    /// Ones that could not be changed, and why; what ran before runs on.
    pub failed: Vec<FieldError>,
}

impl Applied {
    /// What makes `after` of `before`.
    pub fn plan<'a, T: PartialEq + 'a>(
        section: &'static str,
        before: impl Iterator<Item = (&'a str, &'a T)>,
        after: impl Iterator<Item = (&'a str, &'a T)>,
    ) -> Applied {
        let mut before: BTreeMap<&str, &T> = before.collect();
        let mut plan = Applied { section, ..Applied::default() };
        for (id, wanted) in after {
            match before.remove(id) {
                None => plan.started.push(id.to_owned()),
                Some(same) if same == wanted => {}
                Some(_) => plan.changed.push(id.to_owned()),
            }
        }
        plan.stopped.extend(before.into_keys().map(str::to_owned));
        plan
    }

    /// True when `id` is started or changed.
    pub fn touches(&self, id: &str) -> bool {
        self.started.iter().chain(&self.changed).any(|one| one == id)
    }

    /// Notes that `id` could not be started or changed.
    pub fn fail(&mut self, id: &str, error: &Error) {
        let reason = error.chain().join(": ");
        let key = self.key(id);
        tracing::error!(key, reason, "A part of the configuration could not be put in force; what ran before runs on.");
        self.failed.push(FieldError { field: key, reason: crate::redact::text(&reason).into_owned() });
        self.started.retain(|one| one != id);
        self.changed.retain(|one| one != id);
        self.stopped.retain(|one| one != id);
    }

    fn key(&self, id: &str) -> String {
        format!("{}.{id}", self.section)
    }

    /// Keys of the new ones.
    pub fn started_keys(&self) -> Vec<String> {
        self.started.iter().map(|id| self.key(id)).collect()
    }

    /// Keys of those that are named no more.
    pub fn stopped_keys(&self) -> Vec<String> {
        self.stopped.iter().map(|id| self.key(id)).collect()
    }

    /// Keys of those with other settings.
    pub fn changed_keys(&self) -> Vec<String> {
        self.changed.iter().map(|id| self.key(id)).collect()
    }

    /// Keys of everything that is otherwise now.
    pub fn keys(&self) -> Vec<String> {
        [self.started_keys(), self.changed_keys(), self.stopped_keys()].concat()
    }
}

/// The settings of one thing without what must not be shown.
pub fn shown(table: &Table) -> Map<String, Value> {
    let hidden = || json!({ "populated": true });
    table
        .iter()
        .map(|(key, value)| {
            let shown = match value {
                _ if SECRET.contains(&key.as_str()) => hidden(),
                toml::Value::Table(inner) if SECRET_TABLES.contains(&key.as_str()) => {
                    inner.keys().map(|name| (name.clone(), hidden())).collect::<Map<_, _>>().into()
                }
                toml::Value::Table(inner) => shown(inner).into(),
                toml::Value::String(text) if key == "url" => without_query(text).into(),
                other => serde_json::to_value(other).unwrap_or_default(),
            };
            (key.clone(), shown)
        })
        .collect()
}

/// An address without what follows `?`, which may be a key.
fn without_query(text: &str) -> String {
    text.split_once('?').map_or_else(|| text.to_owned(), |(before, _)| format!("{before}?…"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_says_what_differs() {
        let (before, after) = ([("a", &1), ("b", &2), ("c", &3)], [("b", &2), ("c", &4), ("d", &5)]);
        let mut plan = Applied::plan("x", before.into_iter(), after.into_iter());
        assert_eq!(
            (plan.started.as_slice(), plan.stopped.as_slice()),
            (["d".to_owned()].as_slice(), ["a".to_owned()].as_slice())
        );
        assert_eq!(plan.changed, ["c"]);
        assert!(plan.touches("c") && !plan.touches("b"));
        plan.fail("c", &Error::conflict("invalid_state", "It rains."));
        assert_eq!((plan.failed[0].field.as_str(), plan.keys()), ("x.c", vec!["x.d".to_owned(), "x.a".to_owned()]));
    }
}
