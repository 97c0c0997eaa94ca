//! Cron: the jobs, and the ledger of their slots.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::Value;

use super::Tx;
use crate::clock::Millis;
use crate::error::Error;

/// Rows of the ledger that a job keeps at the least.
const ROWS_KEPT: i64 = 1000;

/// Where a job is defined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Over HTTP.
    Api,
    /// In the configuration file.
    Config,
    /// In a skill's `SKILL.md`.
    Skill,
}

impl Origin {
    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Origin::Api => "api",
            Origin::Config => "config",
            Origin::Skill => "skill",
        }
    }

    fn of_code(code: i64) -> Origin {
        match code {
            1 => Origin::Config,
            2 => Origin::Skill,
            _ => Origin::Api,
        }
    }
}

/// A job as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRow {
    /// Its id.
    pub id: String,
    /// Where it is defined.
    pub origin: Origin,
    /// Its definition, JSON.
    pub definition: String,
    /// Whether it runs.
    pub enabled: bool,
    /// Why it was switched off.
    pub note: Option<String>,
    /// Failed runs in a row.
    pub failures: u32,
    /// Every slot up to here is dealt with.
    pub cursor_ms: Millis,
    /// When it was made.
    pub created_ms: Millis,
    /// When it was last changed.
    pub updated_ms: Millis,
}

/// Where a slot stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It waits for the end of an earlier run.
    Queued,
    /// Its event is published, its deliveries are not all ended.
    Running,
    /// All deliveries ended well.
    Done,
    /// A delivery died.
    Failed,
    /// It was left out.
    Skipped,
}

impl Status {
    const ALL: [Status; 5] = [Status::Queued, Status::Running, Status::Done, Status::Failed, Status::Skipped];

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Status::Queued => "queued",
            Status::Running => "running",
            Status::Done => "done",
            Status::Failed => "failed",
            Status::Skipped => "skipped",
        }
    }

    /// Reads [`Status::name`] back.
    pub fn of_name(name: &str) -> Option<Status> {
        Status::ALL.into_iter().find(|status| status.name() == name)
    }

    fn of_code(code: i64) -> Status {
        Status::ALL.into_iter().find(|status| *status as i64 == code).unwrap_or(Status::Skipped)
    }
}

/// A row of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its number; 0 before it is stored.
    pub id: i64,
    /// `job@scheduled_time`, also the id of its event.
    pub key: String,
    /// Its job.
    pub job: String,
    /// When it was scheduled.
    pub slot_ms: Millis,
    /// The last slot that the row stands for, when it stands for several.
    pub until_ms: Option<Millis>,
    /// True when somebody asked for it, and no plan.
    pub manual: bool,
    /// Where it stands.
    pub status: Status,
    /// Why it was left out.
    pub reason: Option<String>,
    /// When the row was written.
    pub made_ms: Millis,
    /// When its event was published.
    pub started_ms: Option<Millis>,
    /// When its last delivery ended.
    pub ended_ms: Option<Millis>,
    /// Why it failed.
    pub error: Option<String>,
}

/// What became of the event of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// A delivery is open.
    Open,
    /// All ended, none dead.
    Done,
    /// A delivery is dead; its error.
    Dead(String),
}

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("reading the cron jobs")(error)
}

fn unwritten(error: rusqlite::Error) -> Error {
    Error::internal("writing a cron job")(error)
}

/// Every job by id.
pub fn jobs(conn: &Connection) -> Result<Vec<JobRow>, Error> {
    let of_row = |row: &Row<'_>| {
        Ok(JobRow {
            id: row.get(0)?,
            origin: Origin::of_code(row.get(1)?),
            definition: row.get(2)?,
            enabled: row.get(3)?,
            note: row.get(4)?,
            failures: row.get(5)?,
            cursor_ms: row.get(6)?,
            created_ms: row.get(7)?,
            updated_ms: row.get(8)?,
        })
    };
    conn.prepare_cached(
        "SELECT id, origin, definition, enabled, note, failures, cursor_ms, created_ms, updated_ms FROM cron_job \
         ORDER BY id",
    )
    .and_then(|mut s| s.query_map([], of_row)?.collect())
    .map_err(unread)
}

/// Stores a job, or replaces the one of the same id.
pub fn put(tx: &Tx<'_>, job: &JobRow) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "INSERT OR REPLACE INTO cron_job \
             (id, origin, definition, enabled, note, failures, cursor_ms, created_ms, updated_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )
        .and_then(|mut s| {
            s.execute(params![
                job.id,
                job.origin as i64,
                job.definition,
                job.enabled,
                job.note,
                job.failures,
                job.cursor_ms,
                job.created_ms,
                job.updated_ms
            ])
        })
        .map(drop)
        .map_err(unwritten)
}

/// Removes a job. What became of its slots stays, and what is queued is left out.
pub fn remove(tx: &Tx<'_>, id: &str, now_ms: Millis) -> Result<(), Error> {
    tx.conn.execute("DELETE FROM cron_job WHERE id = ?1", [id]).map_err(unwritten)?;
    tx.conn
        .execute(
            "UPDATE cron_slot SET status = 4, reason = 'removed', ended_ms = ?2 WHERE job = ?1 AND status = 0",
            params![id, now_ms],
        )
        .map(drop)
        .map_err(unwritten)
}

/// Moves a job's cursor.
pub fn set_cursor(tx: &Tx<'_>, id: &str, cursor_ms: Millis) -> Result<(), Error> {
    tx.conn
        .prepare_cached("UPDATE cron_job SET cursor_ms = ?2 WHERE id = ?1")
        .and_then(|mut s| s.execute(params![id, cursor_ms]))
        .map(drop)
        .map_err(unwritten)
}

/// Adds a row to the ledger; an error when there is one with this key. Prunes what the job has too much of.
pub fn add(tx: &Tx<'_>, slot: &Slot) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "INSERT INTO cron_slot (key, job, slot_ms, until_ms, manual, status, reason, made_ms, started_ms, ended_ms, \
             error) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        )
        .and_then(|mut s| {
            s.execute(params![
                slot.key,
                slot.job,
                slot.slot_ms,
                slot.until_ms,
                slot.manual,
                slot.status as i64,
                slot.reason,
                slot.made_ms,
                slot.started_ms,
                slot.ended_ms,
                slot.error
            ])
        })
        .map_err(unwritten)?;
    let newest = tx.conn.last_insert_rowid();
    // The cursor keeps pruned slots from firing again. One row in a hundred pays for the pruning.
    if newest % 100 != 0 {
        return Ok(());
    }
    tx.conn
        .execute(
            "DELETE FROM cron_slot WHERE job = ?1 AND status > 1 AND id < \
             (SELECT id FROM cron_slot WHERE job = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
            params![slot.job, ROWS_KEPT],
        )
        .map(drop)
        .map_err(unwritten)
}

/// Marks a queued slot as running; an error when it is not queued any more.
pub fn begin(tx: &Tx<'_>, key: &str, now_ms: Millis) -> Result<(), Error> {
    let changed = tx
        .conn
        .execute("UPDATE cron_slot SET status = 1, started_ms = ?2 WHERE key = ?1 AND status = 0", params![key, now_ms])
        .map_err(unwritten)?;
    if changed == 1 { Ok(()) } else { Err(Error::not_found("queued run", key)) }
}

/// Ends an open slot.
pub fn end(
    tx: &Tx<'_>,
    key: &str,
    status: Status,
    reason: Option<&str>,
    error: Option<&str>,
    now_ms: Millis,
) -> Result<(), Error> {
    tx.conn
        .execute(
            "UPDATE cron_slot SET status = ?2, reason = ?3, error = ?4, ended_ms = ?5 WHERE key = ?1 AND status < 2",
            params![key, status as i64, reason, error, now_ms],
        )
        .map(drop)
        .map_err(unwritten)
}

/// Counts the failed runs of a job, and switches it off when `note` says why.
pub fn set_failures(tx: &Tx<'_>, id: &str, failures: u32, note: Option<&str>) -> Result<(), Error> {
    tx.conn
        .execute(
            "UPDATE cron_job SET failures = ?2, enabled = enabled AND ?3 IS NULL, note = coalesce(?3, note) WHERE id = ?1",
            params![id, failures, note],
        )
        .map(drop)
        .map_err(unwritten)
}

const SLOT_COLUMNS: &str =
    "id, key, job, slot_ms, until_ms, manual, status, reason, made_ms, started_ms, ended_ms, error";

fn slot_of(row: &Row<'_>) -> rusqlite::Result<Slot> {
    Ok(Slot {
        id: row.get(0)?,
        key: row.get(1)?,
        job: row.get(2)?,
        slot_ms: row.get(3)?,
        until_ms: row.get(4)?,
        manual: row.get(5)?,
        status: Status::of_code(row.get(6)?),
        reason: row.get(7)?,
        made_ms: row.get(8)?,
        started_ms: row.get(9)?,
        ended_ms: row.get(10)?,
        error: row.get(11)?,
    })
}

/// Slots of all jobs that are queued or running, oldest first.
pub fn open(conn: &Connection) -> Result<Vec<Slot>, Error> {
    conn.prepare_cached(&format!("SELECT {SLOT_COLUMNS} FROM cron_slot WHERE status < 2 ORDER BY id"))
        .and_then(|mut s| s.query_map([], slot_of)?.collect())
        .map_err(unread)
}

/// The ledger of a job, newest row first.
pub fn slots(
    conn: &Connection,
    job: &str,
    status: Option<Status>,
    before: Option<i64>,
    limit: usize,
) -> Result<Vec<Slot>, Error> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let status = status.map(|status| status as i64);
    conn.prepare_cached(&format!(
        "SELECT {SLOT_COLUMNS} FROM cron_slot WHERE job = ?1 AND id < ?2 AND (?3 IS NULL OR status = ?3) \
         ORDER BY id DESC LIMIT ?4"
    ))
    .and_then(|mut s| s.query_map(params![job, before.unwrap_or(i64::MAX), status, limit], slot_of)?.collect())
    .map_err(unread)
}

/// The times from `from_ms` on for which the job has rows already; those of manual runs do not count.
pub fn taken(conn: &Connection, job: &str, from_ms: Millis) -> Result<Vec<Millis>, Error> {
    conn.prepare_cached("SELECT slot_ms FROM cron_slot WHERE job = ?1 AND slot_ms >= ?2 AND manual = 0")
        .and_then(|mut s| s.query_map(params![job, from_ms], |row| row.get(0))?.collect())
        .map_err(unread)
}

/// What became of the event with this id from this source.
pub fn fate(conn: &Connection, source: &str, id: &str) -> Result<Fate, Error> {
    let range: Option<(Option<i64>, Option<i64>)> = conn
        .prepare_cached("SELECT delivery_first, delivery_count FROM event WHERE id = ?1 AND source = ?2")
        .and_then(|mut s| s.query_row([id, source], |row| Ok((row.get(0)?, row.get(1)?))).optional())
        .map_err(unread)?;
    let Some((Some(first), Some(count))) = range else { return Ok(Fate::Done) };
    let (open, dead): (i64, Option<i64>) = conn
        .prepare_cached(
            "SELECT coalesce(sum(status < 3), 0), min(CASE WHEN status IN (5, 6) THEN id END) FROM delivery \
             WHERE id >= ?1 AND id < ?1 + ?2",
        )
        .and_then(|mut s| s.query_row([first, count], |row| Ok((row.get(0)?, row.get(1)?))))
        .map_err(unread)?;
    match dead {
        _ if open > 0 => Ok(Fate::Open),
        None => Ok(Fate::Done),
        Some(delivery) => {
            let chain: Option<String> = conn
                .prepare_cached("SELECT chain FROM dead_letter WHERE delivery = ?1")
                .and_then(|mut s| s.query_row([delivery], |row| row.get(0)).optional())
                .map_err(unread)?;
            let chain: Vec<Value> = chain.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
            let chain: Vec<&str> = chain.iter().filter_map(Value::as_str).collect();
            Ok(Fate::Dead(if chain.is_empty() { "A delivery died.".to_owned() } else { chain.join(": ") }))
        }
    }
}
