//! What the database knows of sinks besides what they are to send: pauses, and which do not want to be called any more.

use rusqlite::{Connection, OptionalExtension, params};

use super::Tx;
use super::outbox::Status;
use crate::clock::Millis;
use crate::error::Error;

/// What became of a sink while the daemon ran.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// True when it was switched off.
    pub paused: bool,
    /// SHA-256 of the address that asked not to be called any more, hex.
    pub gone: Option<String>,
}

/// What of a sink waits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Queue {
    /// Intents that are to be sent.
    pub waiting: i64,
    /// Intents that are being sent.
    pub sending: i64,
    /// When the oldest of them was made.
    pub oldest_ms: Option<Millis>,
    /// When the next is tried.
    pub next_ms: Option<Millis>,
}

fn unwritten(error: rusqlite::Error) -> Error {
    Error::internal("writing the state of a sink")(error)
}

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("reading the state of a sink")(error)
}

/// What is kept of the sink `id`.
pub fn kept(conn: &Connection, id: &str) -> Result<Kept, Error> {
    conn.prepare_cached("SELECT paused, gone FROM sink_setting WHERE id = ?1")
        .and_then(|mut statement| {
            statement.query_row([id], |row| Ok(Kept { paused: row.get(0)?, gone: row.get(1)? })).optional()
        })
        .map(Option::unwrap_or_default)
        .map_err(unread)
}

/// Switches a sink off, or on again; then it is called again also if it asked not to be.
pub fn set_paused(tx: &Tx<'_>, id: &str, paused: bool, now_ms: Millis) -> Result<(), Error> {
    tx.conn
        .execute(
            "INSERT INTO sink_setting (id, paused, updated_ms) VALUES (?1, ?2, ?3) \
             ON CONFLICT (id) DO UPDATE SET paused = ?2, gone = iif(?2, gone, NULL), updated_ms = ?3",
            params![id, paused, now_ms],
        )
        .map(drop)
        .map_err(unwritten)
}

/// Notes that the address with this SHA-256 does not want to be called any more.
pub fn set_gone(tx: &Tx<'_>, id: &str, address: &str, now_ms: Millis) -> Result<(), Error> {
    tx.conn
        .execute(
            "INSERT INTO sink_setting (id, gone, updated_ms) VALUES (?1, ?2, ?3) \
             ON CONFLICT (id) DO UPDATE SET gone = ?2, updated_ms = ?3",
            params![id, address, now_ms],
        )
        .map(drop)
        .map_err(unwritten)
}

/// Lets up to `rows_max` intents that wait for another attempt be tried now; how many there were.
pub fn hurry(tx: &Tx<'_>, sink: &str, now_ms: Millis, rows_max: u32) -> Result<usize, Error> {
    tx.conn
        .execute(
            "UPDATE outbox SET next_ms = ?2 WHERE id IN (SELECT id FROM outbox \
             WHERE sink = ?1 AND status < 2 AND status = 0 AND next_ms > ?2 ORDER BY next_ms LIMIT ?3)",
            params![sink, now_ms, rows_max],
        )
        .map_err(unwritten)
}

/// Sinks, by the names that intents give, for which something waits, whether they are in the configuration or not; at
/// most 1,000.
pub fn with_work(conn: &Connection) -> Result<Vec<String>, Error> {
    conn.prepare_cached(
        "SELECT c.name FROM consumer c WHERE c.kind = 'sink' AND (\
         EXISTS (SELECT 1 FROM delivery d WHERE d.consumer = c.id AND d.status < 3) OR \
         EXISTS (SELECT 1 FROM outbox o WHERE o.sink = c.name AND o.status < 2)) ORDER BY c.name LIMIT 1000",
    )
    .and_then(|mut s| s.query_map([], |row| row.get(0))?.collect())
    .map_err(unread)
}

/// Whether there ever was a sink that intents name `sink`; then how many events have not become intents for it yet.
pub fn undelivered(conn: &Connection, sink: &str) -> Result<Option<i64>, Error> {
    conn.prepare_cached(
        "SELECT (SELECT count(*) FROM delivery d WHERE d.consumer = c.id AND d.status < 3) FROM consumer c \
         WHERE c.name = ?1 AND c.kind = 'sink'",
    )
    .and_then(|mut s| s.query_row([sink], |row| row.get(0)).optional())
    .map_err(unread)
}

/// Gives up to `rows_max` intents up that wait to be sent by `sink`; how many there were. With `gone` nobody sends for it
/// any more, and what was being sent when that ended is settled, too.
pub fn discard(tx: &Tx<'_>, sink: &str, gone: bool, now_ms: Millis, rows_max: u32) -> Result<usize, Error> {
    tx.conn
        .execute(
            "UPDATE outbox SET status = iif(status = 0, 4, 3), ended_ms = ?2, \
             error = iif(status = 0, 'It was discarded.', 'It was being sent when its sink was removed.') \
             WHERE id IN (SELECT id FROM outbox WHERE sink = ?1 AND status < 2 AND (status = 0 OR ?3) LIMIT ?4)",
            params![sink, now_ms, gone, rows_max],
        )
        .map_err(unwritten)
}

/// An intent that ended without the other side having it for certain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// Row number.
    pub id: i64,
    /// By which the other side knows it.
    pub key: String,
    /// True when nobody knows whether it arrived.
    pub unknown: bool,
    /// What it is, as JSON.
    pub payload: String,
    /// Attempts that were made.
    pub attempts: u32,
    /// Why it ended.
    pub error: Option<String>,
    /// When it was made.
    pub created_ms: Millis,
    /// When it ended.
    pub ended_ms: Option<Millis>,
}

/// What failed at the sink that intents name `sink`, newest first, before the row `before`.
pub fn failed(conn: &Connection, sink: &str, before: Option<i64>, rows_max: usize) -> Result<Vec<Failed>, Error> {
    let row = |row: &rusqlite::Row<'_>| {
        Ok(Failed {
            id: row.get(0)?,
            key: row.get(1)?,
            unknown: row.get::<_, i64>(2)? == Status::Unknown.code(),
            payload: row.get(3)?,
            attempts: row.get(4)?,
            error: row.get(5)?,
            created_ms: row.get(6)?,
            ended_ms: row.get(7)?,
        })
    };
    let rows_max = i64::try_from(rows_max).unwrap_or(i64::MAX);
    conn.prepare_cached(
        "SELECT id, key, status, payload, attempt, error, created_ms, ended_ms FROM outbox \
         WHERE sink = ?1 AND status > 2 AND id < ?2 ORDER BY id DESC LIMIT ?3",
    )
    .map_err(unread)?
    .query_map(params![sink, before.unwrap_or(i64::MAX), rows_max], row)
    .and_then(Iterator::collect)
    .map_err(unread)
}

/// Has what failed be sent again, under the same key, until `expires_ms`. `NotFound` when nothing failed under this key.
pub fn retry(tx: &mut Tx<'_>, sink: &str, key: &str, now_ms: Millis, expires_ms: Millis) -> Result<(), Error> {
    let changed = tx
        .conn
        .execute(
            "UPDATE outbox SET status = 0, next_ms = ?3, expires_ms = ?4, ended_ms = NULL, error = NULL \
             WHERE key = ?2 AND sink = ?1 AND status > 2",
            params![sink, key, now_ms, expires_ms],
        )
        .map_err(unwritten)?;
    if changed == 0 {
        return Err(Error::not_found("failed sending", key));
    }
    tx.committed.intents = true;
    Ok(())
}

/// What waits for the sink that intents name `sink`; by the index of open intents.
pub fn queue(conn: &Connection, sink: &str) -> Result<Queue, Error> {
    let counts: Vec<(i64, i64, i64, Millis)> = conn
        .prepare_cached(
            "SELECT status, count(*), min(id), min(next_ms) FROM outbox WHERE sink = ?1 AND status < 2 GROUP BY status",
        )
        .map_err(unread)?
        .query_map([sink], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
        .and_then(Iterator::collect)
        .map_err(unread)?;
    let mut queue = Queue::default();
    for (status, count, _, next_ms) in &counts {
        match status {
            0 => (queue.waiting, queue.next_ms) = (*count, Some(*next_ms)),
            _ => queue.sending = *count,
        }
    }
    if let Some(oldest) = counts.iter().map(|(_, _, id, _)| *id).min() {
        queue.oldest_ms = conn
            .query_row("SELECT created_ms FROM outbox WHERE id = ?1", [oldest], |row| row.get(0))
            .optional()
            .map_err(unread)?;
    }
    Ok(queue)
}
