//! Turns of agents and their journal: what a model answered and what came of a tool is written before anything follows
//! from it, so that no turn takes a step twice.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;
use serde_json::Value;

use super::Tx;
use crate::clock::Millis;
use crate::error::Error;
use crate::event::Trust;
use crate::id::{EventSeq, TraceId};

/// How a turn stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It waits for its delivery.
    Pending,
    /// It was begun.
    Running,
    /// It has an answer.
    Done,
    /// It has none, and `error` says why.
    Failed,
    /// Somebody stopped it.
    Stopped,
}

impl Status {
    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        ["pending", "running", "done", "failed", "stopped"][self as usize]
    }

    /// True once it does nothing more.
    pub fn is_ended(self) -> bool {
        matches!(self, Status::Done | Status::Failed | Status::Stopped)
    }

    fn of_code(code: i64) -> Status {
        match code {
            0 => Status::Pending,
            1 => Status::Running,
            2 => Status::Done,
            4 => Status::Stopped,
            _ => Status::Failed,
        }
    }
}

/// What a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The answer of a model.
    Answer,
    /// A call of a tool.
    Tool,
}

/// How a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    /// It was begun, and is not known to have ended.
    Begun,
    /// It worked.
    Done,
    /// It failed or was refused.
    Failed,
    /// It was cut off, and nobody knows what it did.
    Unknown,
}

/// A turn that is to begin.
#[derive(Debug, Clone)]
pub struct NewTurn {
    /// Its id.
    pub id: String,
    /// Row number of its session.
    pub session: i64,
    /// Whose turn it is.
    pub agent: String,
    /// Who gets the delivery: `agent/<id>` or `skill/<name>`.
    pub consumer: String,
    /// Row number of the message that it answers.
    pub message: i64,
    /// The event whose delivery it is; none = the one that is stored next in this transaction.
    pub event: Option<EventSeq>,
    /// The trace that it belongs to.
    pub trace: TraceId,
    /// How far what leads to it is believed.
    pub trust: Trust,
    /// Who is behind it.
    pub principal: String,
    /// When it was asked for.
    pub created_ms: Millis,
}

/// A turn as it is stored.
#[derive(Debug, Clone)]
pub struct TurnRow {
    /// Its row number.
    pub number: i64,
    /// Its id.
    pub id: String,
    /// Row number of its session.
    pub session: i64,
    /// Id of its session.
    pub session_id: String,
    /// Whose turn it is.
    pub agent: String,
    /// Row number of the message that it answers.
    pub message: i64,
    /// The event whose delivery it is.
    pub event: EventSeq,
    /// Who gets that delivery.
    pub consumer: String,
    /// How it stands.
    pub status: Status,
    /// Why it has no answer: `code` and `detail`.
    pub error: Option<Value>,
    /// The trace that it belongs to.
    pub trace: String,
    /// How far what led to it is believed; once it has ended, what it read as well.
    pub trust: Trust,
    /// Who is behind it.
    pub principal: String,
    /// Who asked to stop it.
    pub stopped_by: Option<String>,
    /// When it was asked for.
    pub created_ms: Millis,
    /// When it last changed.
    pub updated_ms: Millis,
}

/// A step as it is stored.
#[derive(Debug, Clone)]
pub struct StepRow {
    /// Counts from 1 within its turn.
    pub number: i64,
    /// What it is.
    pub kind: Kind,
    /// The model, or the tool.
    pub name: String,
    /// How it stands.
    pub status: StepStatus,
    /// What was asked and, once it ended, what came of it.
    pub body: Value,
    /// When it began.
    pub started_ms: Millis,
    /// When it ended.
    pub ended_ms: Option<Millis>,
}

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("reading turns")(error)
}

fn unwritten(error: rusqlite::Error) -> Error {
    Error::internal("writing turns")(error)
}

const COLUMNS: &str = "SELECT t.number, t.id, t.session, s.id, t.agent, t.message, t.event, t.consumer, t.status, t.error, \
    t.trace, t.trust, t.principal, t.stopped_by, t.created_ms, t.updated_ms FROM turn t JOIN session s ON s.number = t.session";

fn of_row(row: &Row<'_>) -> rusqlite::Result<TurnRow> {
    Ok(TurnRow {
        number: row.get(0)?,
        id: row.get(1)?,
        session: row.get(2)?,
        session_id: row.get(3)?,
        agent: row.get(4)?,
        message: row.get(5)?,
        event: EventSeq(row.get(6)?),
        consumer: row.get(7)?,
        status: Status::of_code(row.get(8)?),
        error: row.get::<_, Option<String>>(9)?.and_then(|text| serde_json::from_str(&text).ok()),
        trace: row.get(10)?,
        trust: Trust::of_code(row.get(11)?),
        principal: row.get(12)?,
        stopped_by: row.get(13)?,
        created_ms: row.get(14)?,
        updated_ms: row.get(15)?,
    })
}

/// Stores a turn that waits for its delivery; gives its row number.
pub fn begin(tx: &Tx<'_>, new: &NewTurn) -> Result<i64, Error> {
    let event = new.event.unwrap_or(EventSeq(tx.sequence().0 + 1));
    tx.conn
        .prepare_cached(
            "INSERT INTO turn (id, session, agent, message, event, consumer, status, trace, trust, principal, created_ms, \
             updated_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, ?7, ?8, ?9, ?10, ?10)",
        )
        .and_then(|mut s| {
            s.execute(params![
                new.id,
                new.session,
                new.agent,
                new.message,
                event.0,
                new.consumer,
                new.trace.to_string(),
                new.trust.code(),
                new.principal,
                new.created_ms
            ])
        })
        .map_err(unwritten)?;
    Ok(tx.conn.last_insert_rowid())
}

fn one(conn: &Connection, rest: &str, params: impl rusqlite::Params) -> Result<Option<TurnRow>, Error> {
    conn.prepare_cached(&format!("{COLUMNS} {rest}"))
        .and_then(|mut s| s.query_row(params, of_row).optional())
        .map_err(unread)
}

/// The turn with this row number.
pub fn by_number(conn: &Connection, number: i64) -> Result<Option<TurnRow>, Error> {
    one(conn, "WHERE t.number = ?1", [number])
}

/// As [`by_number`], in a transaction that writes.
pub fn by_number_in(tx: &Tx<'_>, number: i64) -> Result<Option<TurnRow>, Error> {
    by_number(tx.conn, number)
}

/// As [`of_delivery`], in a transaction that writes.
pub fn of_delivery_in(tx: &Tx<'_>, event: EventSeq, consumer: &str) -> Result<Option<TurnRow>, Error> {
    of_delivery(tx.conn, event, consumer)
}

/// The turn that the delivery of an event to a consumer is.
pub fn of_delivery(conn: &Connection, event: EventSeq, consumer: &str) -> Result<Option<TurnRow>, Error> {
    one(conn, "WHERE t.event = ?1 AND t.consumer = ?2", params![event.0, consumer])
}

/// The turn of a session that has not ended, the oldest if there are several.
pub fn open_of_session(conn: &Connection, session: i64) -> Result<Option<TurnRow>, Error> {
    one(conn, "WHERE t.session = ?1 AND t.status < 2 ORDER BY t.number LIMIT 1", [session])
}

/// The newest turn of a session.
pub fn newest_of_session(conn: &Connection, session: i64) -> Result<Option<TurnRow>, Error> {
    one(conn, "WHERE t.session = ?1 ORDER BY t.number DESC LIMIT 1", [session])
}

/// The turn with this id.
pub fn by_id(conn: &Connection, id: &str) -> Result<Option<TurnRow>, Error> {
    one(conn, "WHERE t.id = ?1", [id])
}

/// As [`by_id`], in a transaction that writes.
pub fn by_id_in(tx: &Tx<'_>, id: &str) -> Result<Option<TurnRow>, Error> {
    by_id(tx.conn, id)
}

/// Notes that a turn was begun, or is taken up once more; false when somebody stopped it before.
pub fn run(tx: &Tx<'_>, turn: i64, now_ms: Millis) -> Result<bool, Error> {
    tx.conn
        .prepare_cached(
            "UPDATE turn SET status = 1, error = NULL, updated_ms = ?2 WHERE number = ?1 AND status <> 2 AND stopped_by IS NULL",
        )
        .and_then(|mut s| s.execute(params![turn, now_ms]))
        .map(|changed| changed > 0)
        .map_err(unwritten)
}

/// Writes a step: its beginning, or what came of it. The same number again is the same step.
pub fn write_step(tx: &Tx<'_>, turn: i64, step: &StepRow) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "INSERT OR REPLACE INTO turn_step (turn, number, kind, name, status, body, started_ms, ended_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )
        .and_then(|mut s| {
            s.execute(params![
                turn,
                step.number,
                step.kind as i64,
                step.name,
                step.status as i64,
                step.body.to_string(),
                step.started_ms,
                step.ended_ms
            ])
        })
        .map(drop)
        .map_err(unwritten)
}

/// The journal of a turn, oldest first.
pub fn steps(conn: &Connection, turn: i64) -> Result<Vec<StepRow>, Error> {
    let step = |row: &Row<'_>| {
        Ok(StepRow {
            number: row.get(0)?,
            kind: if row.get::<_, i64>(1)? == 0 { Kind::Answer } else { Kind::Tool },
            name: row.get(2)?,
            status: match row.get::<_, i64>(3)? {
                0 => StepStatus::Begun,
                1 => StepStatus::Done,
                3 => StepStatus::Unknown,
                _ => StepStatus::Failed,
            },
            body: serde_json::from_str(&row.get::<_, String>(4)?).unwrap_or_default(),
            started_ms: row.get(5)?,
            ended_ms: row.get(6)?,
        })
    };
    conn.prepare_cached(
        "SELECT number, kind, name, status, body, started_ms, ended_ms FROM turn_step WHERE turn = ?1 ORDER BY number",
    )
    .and_then(|mut s| s.query_map([turn], step)?.collect())
    .map_err(unread)
}

/// How a turn ended.
#[derive(Debug, Clone)]
pub struct End {
    /// Done, failed or stopped.
    pub status: Status,
    /// Why it has no answer: `code` and `detail`.
    pub error: Option<Value>,
    /// How far everything that it read is believed.
    pub trust: Trust,
}

/// Ends a turn.
pub fn end(tx: &Tx<'_>, turn: i64, end: &End, now_ms: Millis) -> Result<(), Error> {
    tx.conn
        .prepare_cached("UPDATE turn SET status = ?2, error = ?3, trust = ?4, updated_ms = ?5 WHERE number = ?1")
        .and_then(|mut s| {
            let error = end.error.as_ref().map(Value::to_string);
            s.execute(params![turn, end.status as i64, error, end.trust.code(), now_ms])
        })
        .map(drop)
        .map_err(unwritten)
}

/// Notes that the open turns of a session are to stop; gives them.
pub fn stop(tx: &Tx<'_>, session: i64, by: &str, now_ms: Millis) -> Result<Vec<TurnRow>, Error> {
    let numbers: Vec<i64> = tx
        .conn
        .prepare_cached(
            "UPDATE turn SET stopped_by = coalesce(stopped_by, ?2), updated_ms = ?3 WHERE session = ?1 AND status < 2 \
             RETURNING number",
        )
        .and_then(|mut s| s.query_map(params![session, by, now_ms], |row| row.get(0))?.collect())
        .map_err(unwritten)?;
    all(tx, numbers)
}

fn all(tx: &Tx<'_>, numbers: Vec<i64>) -> Result<Vec<TurnRow>, Error> {
    numbers.into_iter().filter_map(|number| by_number(tx.conn, number).transpose()).collect()
}

/// Ends, as failed, the open turns of a session, or of all, whose delivery has ended without them: expired, given up, or never
/// made. Gives them.
pub fn end_orphans(tx: &Tx<'_>, session: Option<i64>, now_ms: Millis) -> Result<Vec<TurnRow>, Error> {
    let error = serde_json::json!({
        "code": "interrupted",
        "detail": "Its delivery ended without it: it was cut off too often, given up, or its event expired.",
    });
    let numbers: Vec<i64> = tx
        .conn
        .prepare_cached(
            "UPDATE turn SET status = 3, error = ?1, updated_ms = ?2 WHERE status < 2 AND (?3 IS NULL OR session = ?3) AND \
             NOT EXISTS (SELECT 1 FROM event e JOIN delivery d ON d.id >= e.delivery_first AND \
             d.id < e.delivery_first + e.delivery_count JOIN consumer c ON c.id = d.consumer \
             WHERE e.sequence = turn.event AND c.name = turn.consumer AND d.status < 3) RETURNING number",
        )
        .and_then(|mut s| s.query_map(params![error.to_string(), now_ms, session], |row| row.get(0))?.collect())
        .map_err(unwritten)?;
    all(tx, numbers)
}
