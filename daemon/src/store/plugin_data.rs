//! Keys and values of plugins: each plugin has a room of its own, with a size that is kept in the same transaction.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::Tx;
use crate::error::Error;

/// Code of the conflict when a room would become too full.
pub const FULL: &str = "plugin_quota";
/// Code of the conflict when a value is not the one that a swap expects.
pub const SWAP_LOST: &str = "plugin_swap_lost";

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Sets its value.
    Set {
        /// The key.
        key: String,
        /// Its new value.
        #[serde(with = "super::base64_bytes")]
        value: Vec<u8>,
    },
    /// Sets its value if it is the expected one; everything of its transaction fails if it is not.
    Swap {
        /// The key.
        key: String,
        /// None: there must be no value.
        expected: Option<Bytes>,
        /// Its new value.
        #[serde(with = "super::base64_bytes")]
        value: Vec<u8>,
    },
    /// Removes it.
    Delete {
        /// The key.
        key: String,
    },
}

/// Bytes that are kept as base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes(#[serde(with = "super::base64_bytes")] pub Vec<u8>);

impl Change {
    fn parts(&self) -> (&str, Option<&[u8]>) {
        match self {
            Change::Set { key, value } | Change::Swap { key, value, .. } => (key, Some(value)),
            Change::Delete { key } => (key, None),
        }
    }
}

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("reading the data of a plugin")(error)
}

fn unwritten(error: rusqlite::Error) -> Error {
    Error::internal("writing the data of a plugin")(error)
}

/// The value of a key.
pub fn get(conn: &Connection, plugin: &str, key: &str) -> Result<Option<Vec<u8>>, Error> {
    conn.prepare_cached("SELECT value FROM plugin_kv WHERE plugin = ?1 AND key = ?2")
        .and_then(|mut statement| statement.query_row([plugin, key], |row| row.get(0)).optional())
        .map_err(unread)
}

fn size_of(conn: &Connection, plugin: &str, key: &str) -> Result<Option<i64>, Error> {
    conn.prepare_cached("SELECT length(value) FROM plugin_kv WHERE plugin = ?1 AND key = ?2")
        .and_then(|mut statement| statement.query_row([plugin, key], |row| row.get(0)).optional())
        .map_err(unread)
}

/// Keys in byte order that begin with `prefix` and come after `after`, at most `limit`.
pub fn list(
    conn: &Connection,
    plugin: &str,
    prefix: &str,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<String>, Error> {
    let after = after.filter(|after| *after >= prefix);
    let sql = match after {
        Some(_) => "SELECT key FROM plugin_kv WHERE plugin = ?1 AND key > ?2 ORDER BY key LIMIT ?3",
        None => "SELECT key FROM plugin_kv WHERE plugin = ?1 AND key >= ?2 ORDER BY key LIMIT ?3",
    };
    let read = || {
        let mut statement = conn.prepare_cached(sql)?;
        let rows = statement.query_map(params![plugin, after.unwrap_or(prefix), limit], |row| row.get(0))?;
        rows.collect::<rusqlite::Result<Vec<String>>>()
    };
    let mut keys = read().map_err(unread)?;
    keys.truncate(keys.partition_point(|key| key.starts_with(prefix)));
    Ok(keys)
}

/// Bytes of all keys and values of a plugin.
pub fn bytes(conn: &Connection, plugin: &str) -> Result<u64, Error> {
    let found: Option<i64> = conn
        .prepare_cached("SELECT bytes FROM plugin_kv_size WHERE plugin = ?1")
        .and_then(|mut statement| statement.query_row([plugin], |row| row.get(0)).optional())
        .map_err(unread)?;
    Ok(found.map_or(0, i64::unsigned_abs))
}

/// What some changes come to: the last value of each key, and by how much the room grows.
struct Plan<'a> {
    last: BTreeMap<&'a str, Option<&'a [u8]>>,
    grows: i64,
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX / 4)
}

fn plan<'a>(conn: &Connection, plugin: &str, changes: &'a [Change], quota: u64) -> Result<Plan<'a>, Error> {
    let mut last: BTreeMap<&str, Option<&[u8]>> = BTreeMap::new();
    for change in changes {
        let (key, value) = change.parts();
        if let Change::Swap { expected, .. } = change {
            let expected = expected.as_ref().map(|bytes| bytes.0.as_slice());
            let same = match last.get(key) {
                Some(now) => *now == expected,
                None => get(conn, plugin, key)?.as_deref() == expected,
            };
            if !same {
                let reason = "A key of the plugin was changed by somebody else meanwhile.";
                return Err(Error::conflict(SWAP_LOST, reason));
            }
        }
        last.insert(key, value);
    }
    let mut grows = 0;
    for (key, value) in &last {
        let before = size_of(conn, plugin, key)?.map_or(0, |size| size + signed(key.len()));
        grows += value.map_or(0, |value| signed(key.len() + value.len())) - before;
    }
    if grows > 0 {
        let after = bytes(conn, plugin)?.saturating_add(grows.unsigned_abs());
        if after > quota {
            let reason = format!("The plugin may keep {quota} bytes of keys and values; this would make {after}.");
            return Err(Error::conflict(FULL, reason));
        }
    }
    Ok(Plan { last, grows })
}

/// Whether [`change`] would succeed after everything that was written before; the error says why not.
pub fn check(tx: &Tx<'_>, plugin: &str, changes: &[Change], quota: u64) -> Result<(), Error> {
    plan(tx.conn, plugin, changes, quota).map(drop)
}

/// Applies changes in their order, all or none: [`FULL`] and [`SWAP_LOST`] are conflicts.
///
/// What makes a room smaller is done even if it stays too full, as after an upgrade that asks for less.
pub fn change(tx: &Tx<'_>, plugin: &str, changes: &[Change], quota: u64) -> Result<(), Error> {
    let plan = plan(tx.conn, plugin, changes, quota)?;
    let write = || {
        for (key, value) in &plan.last {
            match value {
                Some(value) => tx
                    .conn
                    .prepare_cached(
                        "INSERT INTO plugin_kv (plugin, key, value) VALUES (?1, ?2, ?3) \
                         ON CONFLICT (plugin, key) DO UPDATE SET value = ?3",
                    )?
                    .execute(params![plugin, key, value])?,
                None => tx
                    .conn
                    .prepare_cached("DELETE FROM plugin_kv WHERE plugin = ?1 AND key = ?2")?
                    .execute([plugin, key])?,
            };
        }
        if plan.grows != 0 {
            tx.conn
                .prepare_cached(
                    "INSERT INTO plugin_kv_size (plugin, bytes) VALUES (?1, ?2) \
                     ON CONFLICT (plugin) DO UPDATE SET bytes = bytes + ?2",
                )?
                .execute(params![plugin, plan.grows])?;
        }
        Ok(())
    };
    write().map_err(unwritten)
}

/// Removes all keys of a plugin.
pub fn purge(tx: &Tx<'_>, plugin: &str) -> Result<(), Error> {
    for sql in ["DELETE FROM plugin_kv WHERE plugin = ?1", "DELETE FROM plugin_kv_size WHERE plugin = ?1"] {
        tx.conn.execute(sql, [plugin]).map_err(unwritten)?;
    }
    Ok(())
}
