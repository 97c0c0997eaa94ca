//! What the database knows of sources besides their events: pauses, changed settings, what a poll saw last.

use rusqlite::{Connection, OptionalExtension, params};

use super::Tx;
use crate::clock::Millis;
use crate::error::Error;

/// What was changed about a source while the daemon ran.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    /// True when it was switched off.
    pub paused: bool,
    /// JSON object of settings that stand before those of the file.
    pub changes: Option<String>,
}

/// What a polled address answered last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Polled {
    /// SHA-256 of the address, hex: it may hold a key.
    pub address: String,
    /// Its `ETag`.
    pub etag: Option<String>,
    /// Its `Last-Modified`.
    pub last_modified: Option<String>,
    /// SHA-256 of the body, hex.
    pub digest: String,
}

fn unwritten(error: rusqlite::Error) -> Error {
    Error::internal("writing the state of a source")(error)
}

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("reading the state of a source")(error)
}

/// What was changed about the source `id`.
pub fn changed(conn: &Connection, id: &str) -> Result<Changed, Error> {
    conn.prepare_cached("SELECT paused, changes FROM source_setting WHERE id = ?1")
        .and_then(|mut statement| {
            statement.query_row([id], |row| Ok(Changed { paused: row.get(0)?, changes: row.get(1)? })).optional()
        })
        .map(Option::unwrap_or_default)
        .map_err(unread)
}

/// Notes whether a source is switched off.
pub fn set_paused(tx: &Tx<'_>, id: &str, paused: bool, now_ms: Millis) -> Result<(), Error> {
    tx.conn
        .execute(
            "INSERT INTO source_setting (id, paused, updated_ms) VALUES (?1, ?2, ?3) \
             ON CONFLICT (id) DO UPDATE SET paused = ?2, updated_ms = ?3",
            params![id, paused, now_ms],
        )
        .map(drop)
        .map_err(unwritten)
}

/// Replaces the settings that stand before those of the file.
pub fn set_changes(tx: &Tx<'_>, id: &str, changes: Option<&str>, now_ms: Millis) -> Result<(), Error> {
    tx.conn
        .execute(
            "INSERT INTO source_setting (id, changes, updated_ms) VALUES (?1, ?2, ?3) \
             ON CONFLICT (id) DO UPDATE SET changes = ?2, updated_ms = ?3",
            params![id, changes, now_ms],
        )
        .map(drop)
        .map_err(unwritten)
}

/// What the address of the source `id` answered last.
pub fn polled(conn: &Connection, id: &str) -> Result<Option<Polled>, Error> {
    conn.prepare_cached("SELECT address, etag, last_modified, digest FROM source_poll WHERE id = ?1")
        .and_then(|mut statement| {
            let row = |row: &rusqlite::Row<'_>| {
                Ok(Polled { address: row.get(0)?, etag: row.get(1)?, last_modified: row.get(2)?, digest: row.get(3)? })
            };
            statement.query_row([id], row).optional()
        })
        .map_err(unread)
}

/// Notes what the address of the source `id` answered.
pub fn set_polled(tx: &Tx<'_>, id: &str, polled: &Polled, now_ms: Millis) -> Result<(), Error> {
    tx.conn
        .execute(
            "INSERT OR REPLACE INTO source_poll (id, address, etag, last_modified, digest, polled_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![id, polled.address, polled.etag, polled.last_modified, polled.digest, now_ms],
        )
        .map(drop)
        .map_err(unwritten)
}

/// When the last event of `source` was stored, among the newest `rows_max` events.
pub fn last_event_ms(conn: &Connection, source: &str, rows_max: u32) -> Result<Option<Millis>, Error> {
    conn.prepare_cached(
        "SELECT received_ms FROM (SELECT source, received_ms FROM event ORDER BY sequence DESC LIMIT ?2) \
         WHERE source = ?1 LIMIT 1",
    )
    .and_then(|mut statement| statement.query_row(params![source, rows_max], |row| row.get(0)).optional())
    .map_err(unread)
}
