//! Workflows: definitions, instances, their journal, and what they wait for.

mod asked;
mod progress;

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::Tx;
use crate::clock::Millis;
use crate::error::Error;
use crate::event::Trust;

pub use asked::{Change, KEY_TAKEN, apply, apply_all, check, may_hear, untaken, with_key, workflow_of};
pub use progress::{
    Advance, Brought, InboxRow, Kind, ListenerRow, StepRow, advance, bring, cancel, cancel_below, fault, hold, inbox,
    listeners, reopen, steps,
};

/// Rows of the journal that an instance keeps.
const STEPS_KEPT: i64 = 10_000;
/// Ended instances that a workflow keeps.
const ENDED_KEPT: i64 = 10_000;
/// Events and signals that may wait for one instance, as while it is paused.
const INBOX_ROWS_MAX: i64 = 1000;
/// Their bytes.
const INBOX_BYTES_MAX: i64 = 4 << 20;
/// Ended instances that go at once.
const PRUNED_AT_ONCE: i64 = 20;
/// Rows of their journals that go at once.
const PRUNED_STEPS_AT_ONCE: i64 = 1000;

/// Where a definition came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// HTTP.
    Api,
    /// The data folder.
    File,
    /// This binary.
    Bundled,
}

impl Origin {
    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Origin::Api => "api",
            Origin::File => "file",
            Origin::Bundled => "bundled",
        }
    }

    fn of_code(code: i64) -> Origin {
        match code {
            1 => Origin::File,
            2 => Origin::Bundled,
            _ => Origin::Api,
        }
    }
}

/// How an instance stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It has not begun.
    Pending,
    /// It can go on.
    Running,
    /// It waits.
    Waiting,
    /// It is done.
    Completed,
    /// It failed.
    Faulted,
    /// It was cancelled.
    Cancelled,
}

impl Status {
    const ALL: [Status; 6] =
        [Status::Pending, Status::Running, Status::Waiting, Status::Completed, Status::Faulted, Status::Cancelled];
    /// The names in JSON; `paused` besides them is a running or waiting one that is held.
    pub const NAMES: [&'static str; 7] =
        ["pending", "running", "waiting", "completed", "faulted", "cancelled", "paused"];

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        Status::NAMES[self as usize]
    }

    /// True once it does nothing more by itself.
    pub fn is_ended(self) -> bool {
        self as usize >= Status::Completed as usize
    }

    fn of_code(code: i64) -> Status {
        Status::ALL.into_iter().find(|status| *status as i64 == code).unwrap_or(Status::Faulted)
    }
}

/// A definition as it is stored.
#[derive(Debug, Clone)]
pub struct DefinitionRow {
    /// SHA-256 of its content.
    pub digest: String,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its version.
    pub version: String,
    /// As it was written.
    pub text: String,
    /// When it was stored first.
    pub created_ms: Millis,
}

/// A name and what it stands for.
#[derive(Debug, Clone)]
pub struct WorkflowRow {
    /// The name.
    pub name: String,
    /// The definition that new instances start with; none = removed.
    pub digest: Option<String>,
    /// Where that came from.
    pub origin: Origin,
    /// The content of its file that was taken over last.
    pub file_digest: Option<String>,
    /// When a schedule starts the next instance.
    pub next_ms: Option<Millis>,
    /// What `schedule.on` has heard so far, JSON.
    pub partial: Option<String>,
    /// When it was last changed.
    pub updated_ms: Millis,
}

/// An instance as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InstanceRow {
    /// Its row number; 0 before it is stored.
    pub number: i64,
    /// Its id.
    pub id: String,
    /// Its workflow.
    pub workflow: String,
    /// Its definition.
    pub digest: String,
    /// How it stands.
    pub status: Status,
    /// True while it is paused.
    pub hold: bool,
    /// Where it stands, JSON; none = not begun, or ended for good.
    pub state: Option<String>,
    /// Its input, JSON without secrets.
    pub input: String,
    /// Its output, JSON.
    pub output: Option<String>,
    /// Its error, JSON.
    pub error: Option<String>,
    /// Pointer of the task that it is at.
    pub current: Option<String>,
    /// When it goes on by itself.
    pub due_ms: Option<Millis>,
    /// When it was made.
    pub created_ms: Millis,
    /// When it was last changed.
    pub updated_ms: Millis,
    /// Its trace.
    pub trace: String,
    /// How far its events are trusted.
    pub trust: Trust,
    /// Who started it.
    pub principal: String,
    /// The event that started it, JSON.
    pub cause: Option<String>,
    /// The instance that started it.
    pub parent: Option<i64>,
    /// How that one names it.
    pub parent_key: Option<String>,
    /// Whether that one waits for its end.
    pub awaited: bool,
    /// Equal keys of one workflow are one instance.
    pub dedup: Option<String>,
}

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("reading workflows")(error)
}

fn unwritten(error: rusqlite::Error) -> Error {
    Error::internal("writing workflows")(error)
}

/// Every name, removed ones included.
pub fn workflows(conn: &Connection) -> Result<Vec<WorkflowRow>, Error> {
    let of_row = |row: &Row<'_>| {
        Ok(WorkflowRow {
            name: row.get(0)?,
            digest: row.get(1)?,
            origin: Origin::of_code(row.get(2)?),
            file_digest: row.get(3)?,
            next_ms: row.get(4)?,
            partial: row.get(5)?,
            updated_ms: row.get(6)?,
        })
    };
    conn.prepare_cached(
        "SELECT name, digest, origin, file_digest, next_ms, partial, updated_ms FROM workflow ORDER BY name",
    )
    .and_then(|mut s| s.query_map([], of_row)?.collect())
    .map_err(unread)
}

/// Stores a name, or replaces it.
pub fn put(tx: &Tx<'_>, row: &WorkflowRow) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "INSERT OR REPLACE INTO workflow (name, digest, origin, file_digest, next_ms, partial, updated_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )
        .and_then(|mut s| {
            s.execute(params![
                row.name,
                row.digest,
                row.origin as i64,
                row.file_digest,
                row.next_ms,
                row.partial,
                row.updated_ms
            ])
        })
        .map(drop)
        .map_err(unwritten)
}

/// Sets when a schedule starts the next instance.
pub fn set_next(tx: &Tx<'_>, name: &str, next_ms: Option<Millis>) -> Result<(), Error> {
    tx.conn
        .execute("UPDATE workflow SET next_ms = ?2 WHERE name = ?1", params![name, next_ms])
        .map(drop)
        .map_err(unwritten)
}

/// Keeps what `schedule.on` has heard so far.
pub fn set_partial(tx: &Tx<'_>, name: &str, partial: Option<&str>) -> Result<(), Error> {
    tx.conn
        .execute("UPDATE workflow SET partial = ?2 WHERE name = ?1", params![name, partial])
        .map(drop)
        .map_err(unwritten)
}

/// What `schedule.on` has heard so far.
pub fn partial(conn: &Connection, name: &str) -> Result<Option<String>, Error> {
    conn.prepare_cached("SELECT partial FROM workflow WHERE name = ?1")
        .and_then(|mut s| s.query_row([name], |row| row.get(0)).optional())
        .map(Option::flatten)
        .map_err(unread)
}

/// Stores a definition, unless it is there.
pub fn put_definition(tx: &Tx<'_>, row: &DefinitionRow) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "INSERT OR IGNORE INTO workflow_definition (digest, name, namespace, version, text, created_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )
        .and_then(|mut s| {
            s.execute(params![row.digest, row.name, row.namespace, row.version, row.text, row.created_ms])
        })
        .map(drop)
        .map_err(unwritten)
}

fn definition_of(row: &Row<'_>) -> rusqlite::Result<DefinitionRow> {
    Ok(DefinitionRow {
        digest: row.get(0)?,
        name: row.get(1)?,
        namespace: row.get(2)?,
        version: row.get(3)?,
        text: row.get(4)?,
        created_ms: row.get(5)?,
    })
}

/// The definition with this digest.
pub fn definition(conn: &Connection, digest: &str) -> Result<Option<DefinitionRow>, Error> {
    conn.prepare_cached(
        "SELECT digest, name, namespace, version, text, created_ms FROM workflow_definition WHERE digest = ?1",
    )
    .and_then(|mut s| s.query_row([digest], definition_of).optional())
    .map_err(unread)
}

/// The definitions of a name, newest first.
pub fn definitions(conn: &Connection, name: &str) -> Result<Vec<DefinitionRow>, Error> {
    conn.prepare_cached(
        "SELECT digest, name, namespace, version, text, created_ms FROM workflow_definition WHERE name = ?1 \
         ORDER BY created_ms DESC, digest LIMIT 200",
    )
    .and_then(|mut s| s.query_map([name], definition_of)?.collect())
    .map_err(unread)
}

/// The names and definitions of unfinished instances.
pub fn open_definitions(conn: &Connection) -> Result<Vec<(String, String)>, Error> {
    conn.prepare_cached("SELECT DISTINCT workflow, digest FROM workflow_instance WHERE status < 3")
        .and_then(|mut s| s.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect())
        .map_err(unread)
}

const COLUMNS: &str = "number, id, workflow, digest, status, hold, state, input, output, error, current, due_ms, \
    created_ms, updated_ms, trace, trust, principal, cause, parent, parent_key, awaited, dedup";

fn instance_of(row: &Row<'_>) -> rusqlite::Result<InstanceRow> {
    Ok(InstanceRow {
        number: row.get(0)?,
        id: row.get(1)?,
        workflow: row.get(2)?,
        digest: row.get(3)?,
        status: Status::of_code(row.get(4)?),
        hold: row.get(5)?,
        state: row.get(6)?,
        input: row.get(7)?,
        output: row.get(8)?,
        error: row.get(9)?,
        current: row.get(10)?,
        due_ms: row.get(11)?,
        created_ms: row.get(12)?,
        updated_ms: row.get(13)?,
        trace: row.get(14)?,
        trust: Trust::of_code(row.get(15)?),
        principal: row.get(16)?,
        cause: row.get(17)?,
        parent: row.get(18)?,
        parent_key: row.get(19)?,
        awaited: row.get(20)?,
        dedup: row.get(21)?,
    })
}

/// Stores a new instance and gives its number; that of the one with the same key when there is one (`true` = new).
pub fn start(tx: &Tx<'_>, row: &InstanceRow) -> Result<(i64, bool), Error> {
    if let Some(dedup) = &row.dedup {
        let known = tx
            .conn
            .prepare_cached("SELECT number FROM workflow_instance WHERE workflow = ?1 AND dedup = ?2")
            .and_then(|mut s| s.query_row([&row.workflow, dedup], |row| row.get(0)).optional())
            .map_err(unwritten)?;
        if let Some(number) = known {
            return Ok((number, false));
        }
    }
    tx.conn
        .prepare_cached(
            "INSERT INTO workflow_instance (id, workflow, digest, status, hold, state, input, created_ms, updated_ms, \
             trace, trust, principal, cause, parent, parent_key, awaited, dedup) \
             VALUES (?1, ?2, ?3, 0, 0, ?14, ?4, ?5, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        )
        .and_then(|mut s| {
            s.execute(params![
                row.id,
                row.workflow,
                row.digest,
                row.input,
                row.created_ms,
                row.trace,
                row.trust.code(),
                row.principal,
                row.cause,
                row.parent,
                row.parent_key,
                row.awaited,
                row.dedup,
                row.state
            ])
        })
        .map_err(unwritten)?;
    Ok((tx.conn.last_insert_rowid(), true))
}

/// An instance by its number.
pub fn by_number(conn: &Connection, number: i64) -> Result<Option<InstanceRow>, Error> {
    conn.prepare_cached(&format!("SELECT {COLUMNS} FROM workflow_instance WHERE number = ?1"))
        .and_then(|mut s| s.query_row([number], instance_of).optional())
        .map_err(unread)
}

/// An instance by its id.
pub fn by_id(conn: &Connection, id: &str) -> Result<Option<InstanceRow>, Error> {
    conn.prepare_cached(&format!("SELECT {COLUMNS} FROM workflow_instance WHERE id = ?1"))
        .and_then(|mut s| s.query_row([id], instance_of).optional())
        .map_err(unread)
}

/// Whether an instance is paused.
pub fn is_held(conn: &Connection, number: i64) -> Result<bool, Error> {
    conn.prepare_cached("SELECT hold FROM workflow_instance WHERE number = ?1")
        .and_then(|mut s| s.query_row([number], |row| row.get(0)).optional())
        .map(|hold| hold == Some(true))
        .map_err(unread)
}

/// As [`is_held`], within a change.
pub fn is_held_now(tx: &Tx<'_>, number: i64) -> Result<bool, Error> {
    is_held(tx.conn, number)
}

/// As [`by_number`], within a change.
pub fn current(tx: &Tx<'_>, number: i64) -> Result<Option<InstanceRow>, Error> {
    by_number(tx.conn, number)
}

/// Instances, newest first: of a workflow, of a status by its name.
pub fn instances(
    conn: &Connection,
    workflow: Option<&str>,
    status: Option<&str>,
    before: i64,
    limit: usize,
) -> Result<Vec<InstanceRow>, Error> {
    let code = status.and_then(|name| Status::ALL.into_iter().find(|one| one.name() == name)).map(|one| one as i64);
    let paused = status == Some("paused");
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let by_name = "workflow = ?1 AND number < ?2";
    let all = "?1 IS NULL AND number < ?2";
    // One of them is for the index by name, the other goes through all.
    let place = if workflow.is_some() { by_name } else { all };
    let paused_or = "(?4 AND hold = 1 AND status < 3) OR (NOT ?4 AND status = coalesce(?3, status) AND (?3 IS NULL OR ?3 > 2 OR hold = 0))";
    conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM workflow_instance WHERE {place} AND ({paused_or}) ORDER BY number DESC LIMIT ?5"
    ))
    .and_then(|mut s| s.query_map(params![workflow, before, code, paused, limit], instance_of)?.collect())
    .map_err(unread)
}

/// The instance that an instance started and knows by this key; none =
/// there is none with this key.
pub fn child(tx: &Tx<'_>, parent: i64, key: &str) -> Result<Option<InstanceRow>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM workflow_instance WHERE parent = ?1 AND parent_key = ?2");
    tx.conn
        .prepare_cached(&sql)
        .and_then(|mut s| s.query_row(params![parent, key], instance_of).optional())
        .map_err(unread)
}

/// The instance of a workflow that was started with this key.
pub fn by_key(conn: &Connection, workflow: &str, key: &str) -> Result<Option<InstanceRow>, Error> {
    conn.prepare_cached(&format!("SELECT {COLUMNS} FROM workflow_instance WHERE workflow = ?1 AND dedup = ?2"))
        .and_then(|mut s| s.query_row([workflow, key], instance_of).optional())
        .map_err(unread)
}

/// Another one has taken the place of a cancelled instance, which need not know any more where it stood.
pub fn replaced(tx: &Tx<'_>, workflow: &str, key: &str) -> Result<(), Error> {
    tx.conn
        .prepare_cached("UPDATE workflow_instance SET state = NULL WHERE workflow = ?1 AND dedup = ?2 AND status = 5")
        .and_then(|mut s| s.execute([workflow, key]))
        .map(drop)
        .map_err(unwritten)
}

/// How many instances started each other until this one.
pub fn generations(conn: &Connection, number: i64) -> Result<u32, Error> {
    conn.prepare_cached(
        "WITH RECURSIVE up (number, depth) AS (SELECT ?1, 0 UNION ALL SELECT i.parent, up.depth + 1 \
         FROM up JOIN workflow_instance i ON i.number = up.number WHERE i.parent IS NOT NULL AND up.depth < 1000) \
         SELECT max(depth) FROM up",
    )
    .and_then(|mut s| s.query_row([number], |row| row.get(0)))
    .map_err(unread)
}

/// What there is to do.
#[derive(Debug, Default)]
pub struct Due {
    /// Instances that can go on by now, without the active ones.
    pub ready: Vec<i64>,
    /// Active ones for which something came.
    pub heard: Vec<i64>,
    /// When the next one can go on by itself.
    pub next_ms: Option<Millis>,
}

/// What there is to do while the instances `active`, a JSON list of numbers, are driven: at most `limit` that are ready, and
/// as many whose time has come.
pub fn due(conn: &Connection, active: &str, now_ms: Millis, limit: usize) -> Result<Due, Error> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut ready: Vec<i64> = conn
        .prepare_cached(
            "SELECT number FROM workflow_instance WHERE status < 2 AND hold = 0 \
             AND number NOT IN (SELECT value FROM json_each(?1)) ORDER BY number LIMIT ?2",
        )
        .and_then(|mut s| s.query_map(params![active, limit], |row| row.get(0))?.collect())
        .map_err(unread)?;
    let waits: Vec<i64> = conn
        .prepare_cached(
            "SELECT number FROM workflow_instance WHERE status = 2 AND hold = 0 AND due_ms IS NOT NULL AND due_ms <= ?1 \
             AND number NOT IN (SELECT value FROM json_each(?2)) ORDER BY due_ms LIMIT ?3",
        )
        .and_then(|mut s| s.query_map(params![now_ms, active, limit], |row| row.get(0))?.collect())
        .map_err(unread)?;
    ready.extend(waits);
    let heard = conn
        .prepare_cached(
            "SELECT value FROM json_each(?1) WHERE EXISTS (SELECT 1 FROM workflow_inbox WHERE instance = value)",
        )
        .and_then(|mut s| s.query_map([active], |row| row.get(0))?.collect())
        .map_err(unread)?;
    let next_ms = conn
        .prepare_cached(
            "SELECT min(due_ms) FROM workflow_instance WHERE status = 2 AND hold = 0 AND due_ms IS NOT NULL AND due_ms > ?1",
        )
        .and_then(|mut s| s.query_row([now_ms], |row| row.get(0)))
        .map_err(unread)?;
    Ok(Due { ready, heard, next_ms })
}

/// How many instances of each workflow are not ended.
pub fn open_counts(conn: &Connection) -> Result<Vec<(String, i64)>, Error> {
    conn.prepare_cached("SELECT workflow, count(*) FROM workflow_instance WHERE status < 3 GROUP BY workflow")
        .and_then(|mut s| s.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect())
        .map_err(unread)
}
