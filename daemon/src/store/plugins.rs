//! Plugins: what is installed, what was agreed to, and how far their sources have come.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::Tx;
use crate::clock::Millis;
use crate::error::Error;

/// A name and what holds for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugin {
    /// Its name.
    pub name: String,
    /// Switched on by the operator.
    pub enabled: bool,
    /// Digest of the version that may run.
    pub digest: Option<String>,
    /// Digest of the version before.
    pub previous: Option<String>,
    /// Digest of the version that waits for consent.
    pub pending: Option<String>,
    /// The public key that was trusted at first; none = unsigned.
    pub publisher: Option<String>,
    /// JSON: what was agreed to.
    pub granted: String,
    /// When it was last changed.
    pub updated_ms: Millis,
}

/// A version whose files are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The plugin's name.
    pub name: String,
    /// SHA-256 that names its content, hex.
    pub digest: String,
    /// Semantic version.
    pub version: String,
    /// Its `plugin.toml`.
    pub manifest: String,
    /// The key id that signed it.
    pub signed_by: Option<String>,
    /// SHA-256 of its component, hex.
    pub component_sha256: String,
    /// SHA-256 of its compiled code, hex.
    pub code_sha256: String,
    /// Size of its compiled code.
    pub code_bytes: u64,
    /// When it was installed.
    pub installed_ms: Millis,
}

/// How far a source has come; the default before its first poll.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor {
    /// What the source wants to be given at its next poll.
    pub cursor: Option<String>,
    /// How many polls were stored.
    pub polls: u64,
    /// When the next poll is due.
    pub due_ms: Millis,
    /// When the last poll was stored.
    pub polled_ms: Option<Millis>,
    /// When the last one was that found events.
    pub event_ms: Option<Millis>,
}

/// A rest of a plugin that failed too often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rest {
    /// The version that rests.
    pub digest: String,
    /// How many there were in a row.
    pub rests: u32,
    /// Its end.
    pub until_ms: Millis,
    /// The fault that was one too many.
    pub message: String,
    /// When that was.
    pub at_ms: Millis,
}

fn unwritten(error: rusqlite::Error) -> Error {
    Error::internal("recording a plugin")(error)
}

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("reading the plugins' records")(error)
}

fn plugin_of(row: &Row<'_>) -> rusqlite::Result<Plugin> {
    Ok(Plugin {
        name: row.get(0)?,
        enabled: row.get(1)?,
        digest: row.get(2)?,
        previous: row.get(3)?,
        pending: row.get(4)?,
        publisher: row.get(5)?,
        granted: row.get(6)?,
        updated_ms: row.get(7)?,
    })
}

fn version_of(row: &Row<'_>) -> rusqlite::Result<Version> {
    Ok(Version {
        name: row.get(0)?,
        digest: row.get(1)?,
        version: row.get(2)?,
        manifest: row.get(3)?,
        signed_by: row.get(4)?,
        component_sha256: row.get(5)?,
        code_sha256: row.get(6)?,
        code_bytes: row.get::<_, i64>(7)?.unsigned_abs(),
        installed_ms: row.get(8)?,
    })
}

/// Every name and every version.
pub fn all(conn: &Connection) -> Result<(Vec<Plugin>, Vec<Version>), Error> {
    let plugins = conn
        .prepare_cached(
            "SELECT name, enabled, digest, previous, pending, publisher, granted, updated_ms FROM plugin ORDER BY name",
        )
        .and_then(|mut s| s.query_map([], plugin_of)?.collect())
        .map_err(unread)?;
    let versions = conn
        .prepare_cached(
            "SELECT name, digest, version, manifest, signed_by, component_sha256, code_sha256, code_bytes, installed_ms \
             FROM plugin_version ORDER BY name, installed_ms",
        )
        .and_then(|mut s| s.query_map([], version_of)?.collect())
        .map_err(unread)?;
    Ok((plugins, versions))
}

/// Records what holds for a name.
pub fn put(tx: &Tx<'_>, plugin: &Plugin) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "INSERT OR REPLACE INTO plugin (name, enabled, digest, previous, pending, publisher, granted, updated_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )
        .and_then(|mut s| {
            s.execute(params![
                plugin.name,
                plugin.enabled,
                plugin.digest,
                plugin.previous,
                plugin.pending,
                plugin.publisher,
                plugin.granted,
                plugin.updated_ms
            ])
        })
        .map_err(unwritten)?;
    // Versions that nothing names any more are gone; their files go after the commit.
    tx.conn
        .prepare_cached("DELETE FROM plugin_version WHERE name = ?1 AND digest NOT IN (?2, ?3, ?4)")
        .and_then(|mut s| {
            let none = String::new();
            let named = |digest: &Option<String>| digest.as_ref().unwrap_or(&none).clone();
            s.execute(params![plugin.name, named(&plugin.digest), named(&plugin.previous), named(&plugin.pending)])
        })
        .map_err(unwritten)?;
    Ok(())
}

/// Records a version.
pub fn put_version(tx: &Tx<'_>, version: &Version) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "INSERT OR REPLACE INTO plugin_version (name, digest, version, manifest, signed_by, component_sha256, \
             code_sha256, code_bytes, installed_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )
        .and_then(|mut s| {
            s.execute(params![
                version.name,
                version.digest,
                version.version,
                version.manifest,
                version.signed_by,
                version.component_sha256,
                version.code_sha256,
                i64::try_from(version.code_bytes).unwrap_or(i64::MAX),
                version.installed_ms
            ])
        })
        .map_err(unwritten)?;
    Ok(())
}

/// Records the digest of code that was compiled again.
pub fn set_code(tx: &Tx<'_>, component_sha256: &str, code_sha256: &str, code_bytes: u64) -> Result<(), Error> {
    let bytes = i64::try_from(code_bytes).unwrap_or(i64::MAX);
    tx.conn
        .prepare_cached("UPDATE plugin_version SET code_sha256 = ?2, code_bytes = ?3 WHERE component_sha256 = ?1")
        .and_then(|mut s| s.execute(params![component_sha256, code_sha256, bytes]))
        .map_err(unwritten)?;
    Ok(())
}

/// Forgets a name, its pinned key, its rest, how far its sources have come, and which of them are paused.
pub fn forget(tx: &Tx<'_>, name: &str) -> Result<(), Error> {
    for sql in [
        "DELETE FROM plugin WHERE name = ?1",
        "DELETE FROM plugin_version WHERE name = ?1",
        "DELETE FROM plugin_cursor WHERE plugin = ?1",
        "DELETE FROM plugin_rest WHERE plugin = ?1",
        "DELETE FROM source_setting WHERE id GLOB ?1 || '.*'",
        "DELETE FROM source_setting WHERE substr(id, 1, length(?1) + 1) = ?1 || '.'",
    ] {
        tx.conn.prepare_cached(sql).and_then(|mut s| s.execute([name])).map_err(unwritten)?;
    }
    Ok(())
}

/// The last rest of every plugin, by name.
pub fn rests(conn: &Connection) -> Result<BTreeMap<String, Rest>, Error> {
    let rest = |row: &Row<'_>| {
        let (digest, rests) = (row.get(1)?, row.get(2)?);
        Ok((row.get(0)?, Rest { digest, rests, until_ms: row.get(3)?, message: row.get(4)?, at_ms: row.get(5)? }))
    };
    conn.prepare_cached("SELECT plugin, digest, rests, until_ms, message, at_ms FROM plugin_rest")
        .and_then(|mut s| s.query_map([], rest)?.collect())
        .map_err(unread)
}

/// Records that a plugin rests.
pub fn set_rest(tx: &Tx<'_>, plugin: &str, rest: &Rest) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "INSERT OR REPLACE INTO plugin_rest (plugin, digest, rests, until_ms, message, at_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )
        .and_then(|mut s| s.execute(params![plugin, rest.digest, rest.rests, rest.until_ms, rest.message, rest.at_ms]))
        .map(drop)
        .map_err(unwritten)
}

/// Forgets that a plugin rests, and how often it did.
pub fn end_rest(tx: &Tx<'_>, plugin: &str) -> Result<(), Error> {
    let forget = tx.conn.prepare_cached("DELETE FROM plugin_rest WHERE plugin = ?1");
    forget.and_then(|mut s| s.execute([plugin])).map(drop).map_err(unwritten)
}

/// How far a source has come; none before its first poll.
pub fn cursor(conn: &Connection, plugin: &str, source: &str) -> Result<Option<Cursor>, Error> {
    conn.prepare_cached(
        "SELECT cursor, polls, due_ms, polled_ms, event_ms FROM plugin_cursor WHERE plugin = ?1 AND source = ?2",
    )
    .and_then(|mut s| {
        let read = |row: &Row<'_>| {
            Ok(Cursor {
                cursor: row.get(0)?,
                polls: row.get::<_, i64>(1)?.unsigned_abs(),
                due_ms: row.get(2)?,
                polled_ms: row.get(3)?,
                event_ms: row.get(4)?,
            })
        };
        s.query_row([plugin, source], read).optional()
    })
    .map_err(unread)
}

/// Records how far a source has come.
pub fn set_cursor(tx: &Tx<'_>, plugin: &str, source: &str, cursor: &Cursor) -> Result<(), Error> {
    let polls = i64::try_from(cursor.polls).unwrap_or(i64::MAX);
    tx.conn
        .prepare_cached(
            "INSERT OR REPLACE INTO plugin_cursor (plugin, source, cursor, polls, due_ms, polled_ms, event_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )
        .and_then(|mut s| {
            s.execute(params![plugin, source, cursor.cursor, polls, cursor.due_ms, cursor.polled_ms, cursor.event_ms])
        })
        .map_err(unwritten)?;
    Ok(())
}
