//! Changes of a source's settings over HTTP: which there may be, and what they make of the file's. Pure.

use serde_json::{Map, Value};

use crate::config::sources::{self, Source};
use crate::config::{self, Faults, Paths, References};
use crate::error::{Error, FieldError};

/// Settings that only the file can have: they name an executable, a path, a secret, or a place outside that no guard
/// watches. Who holds a token must not be able to run a command or to read what the daemon can.
const FILE_ONLY: [&str; 20] = [
    "kind",
    "path",
    "command",
    "dir",
    "env",
    "read",
    "write",
    "net",
    "verify",
    "headers",
    "broker",
    "client_id",
    "ca",
    "cert",
    "key",
    "username",
    "password",
    "secret",
    "token",
    "format",
];

/// What of `wanted` differs from the file. Settings that only the file can have are refused, unless they are what is
/// shown anyway.
pub fn changes(file: &Source, wanted: Map<String, Value>) -> Result<Map<String, Value>, Error> {
    let shown = config::shown(&file.table);
    let changes: Map<String, Value> = wanted.into_iter().filter(|(key, value)| shown.get(key) != Some(value)).collect();
    if let Some(key) = changes.keys().find(|key| FILE_ONLY.contains(&key.as_str())) {
        let reason = format!(
            "'{key}' names an executable, a path, a secret or a place. It can be set in the configuration file only."
        );
        return Err(Error::Forbidden { code: "exec_not_allowed", reason });
    }
    Ok(changes)
}

/// The file's settings with `changes`; null removes one. The errors name the settings.
pub fn merged(file: &Source, changes: &Map<String, Value>, paths: &Paths) -> Result<Source, Error> {
    let mut table = file.table.clone();
    let mut wrong = Vec::new();
    for (key, value) in changes {
        if value.is_null() {
            table.remove(key);
            continue;
        }
        match toml::Value::try_from(value) {
            Ok(value) => drop(table.insert(key.clone(), value)),
            Err(_) => wrong.push(FieldError { field: key.clone(), reason: "cannot be a setting.".to_owned() }),
        }
    }
    let mut faults = Faults::default();
    let source = sources::source(&file.id, &table, paths, References::Followed, &mut faults);
    let prefix = format!("sources.{}.", file.id);
    let short = |field: &str| field.strip_prefix(&prefix).unwrap_or(field).to_owned();
    wrong.extend(faults.wrong.into_iter().map(|fault| FieldError { field: short(&fault.field), ..fault }));
    for (key, known) in faults.unknown {
        // What the file has too much is warned of at the start.
        let field = short(&key);
        if changes.contains_key(&field) {
            let reason = format!("is no setting of this source. Known: {}.", known.join(", "));
            wrong.push(FieldError { field, reason });
        }
    }
    match source {
        Some(source) if wrong.is_empty() => Ok(source),
        _ => Err(Error::Invalid { code: "invalid_input", fields: wrong }),
    }
}
