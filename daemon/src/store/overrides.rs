//! Settings that were changed over HTTP, and how often the configuration was.

use rusqlite::{Connection, params};
use serde_json::Value;

use super::Tx;
use crate::clock::Millis;
use crate::error::Error;

/// What is stored.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stored {
    /// Grows by one with every change; 0 = never changed.
    pub version: i64,
    /// Keys and values that are in force.
    pub values: Vec<(String, Value)>,
}

/// All of it.
pub fn all(conn: &Connection) -> Result<Stored, Error> {
    let unread = |error: rusqlite::Error| Error::internal("reading the changed settings")(error);
    let rows: Vec<(String, Option<String>, i64)> = conn
        .prepare_cached("SELECT key, value, version FROM config_override ORDER BY key")
        .map_err(unread)?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .and_then(Iterator::collect)
        .map_err(unread)?;
    let version = rows.iter().map(|(.., version)| *version).max().unwrap_or(0);
    let read = |(key, value, _): (String, Option<String>, i64)| Some((key, serde_json::from_str(&value?).ok()?));
    Ok(Stored { version, values: rows.into_iter().filter_map(read).collect() })
}

/// Changes settings; `None` removes one. Fails when another change came since `version`. Gives the new version.
pub fn change(tx: &Tx<'_>, version: i64, changes: &[(String, Option<Value>)], now_ms: Millis) -> Result<i64, Error> {
    let is = all(tx.conn)?.version;
    if is != version {
        let reason = format!("The configuration has version {is}, not {version}. Look at it again and decide anew.");
        return Err(Error::conflict("version_conflict", reason));
    }
    for (key, value) in changes {
        let value = value.as_ref().map(Value::to_string);
        tx.conn
            .execute(
                "INSERT INTO config_override (key, value, version, at_ms) VALUES (?1, ?2, ?3, ?4) \
                 ON CONFLICT (key) DO UPDATE SET value = ?2, version = ?3, at_ms = ?4",
                params![key, value, version + 1, now_ms],
            )
            .map_err(|error| Error::internal("storing changed settings")(error))?;
    }
    Ok(version + 1)
}
