//! What is to leave the machine: intents, and how far each got.

use rusqlite::{Connection, OptionalExtension, params};
use serde_json::Value;

use super::{Tx, events, notifications};
use crate::clock::Millis;
use crate::error::Error;
use crate::id::{DeliveryId, EventSeq, Ids, TraceId};
use crate::redact;

/// How far an intent got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// To be sent.
    Intent,
    /// Being sent; after a crash nobody knows whether it arrived.
    Sending,
    /// The sink took it.
    Sent,
    /// It may or may not have arrived; not sent again unless the sink is idempotent.
    Unknown,
    /// Given up.
    Failed,
}

impl Status {
    /// The number that stands for it in the database.
    pub fn code(self) -> i64 {
        self as i64
    }

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Status::Intent => "intent",
            Status::Sending => "sending",
            Status::Sent => "sent",
            Status::Unknown => "unknown",
            Status::Failed => "failed",
        }
    }

    fn of_code(code: i64) -> Status {
        [Status::Intent, Status::Sending, Status::Sent, Status::Unknown]
            .into_iter()
            .find(|s| s.code() == code)
            .unwrap_or(Status::Failed)
    }
}

/// Something that is to leave the machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Intent {
    /// Row number.
    pub id: i64,
    /// The same for every attempt, so that an idempotent sink takes it once.
    pub key: String,
    /// Which sink.
    pub sink: String,
    /// What it gets.
    pub payload: Value,
    /// Attempts begun.
    pub attempt: u32,
    /// When it may be tried.
    pub next_ms: Millis,
    /// After this it is not sent any more.
    pub expires_ms: Millis,
    /// How far it got.
    pub status: Status,
}

fn unwritten(error: rusqlite::Error) -> Error {
    Error::internal("writing the outbox")(error)
}

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("reading the outbox")(error)
}

/// Where an intent comes from.
pub struct Origin {
    /// The delivery whose effect it is.
    pub delivery: DeliveryId,
    /// Its event.
    pub event: EventSeq,
    /// When the event was stored.
    pub event_ms: Millis,
    /// Which of the delivery's intents it is, from 0: part of its idempotency key.
    pub number: usize,
}

/// Adds an intent as an effect of a delivery; `payload` is JSON without secrets.
pub fn add(
    tx: &mut Tx<'_>,
    origin: &Origin,
    sink: &str,
    payload: &str,
    now_ms: Millis,
    expires_ms: Millis,
) -> Result<(), Error> {
    // The delivery's id holds its time: a row number that a lost disk gives out again makes another key.
    let key = format!("{}-{}", tx.ids().delivery(origin.event_ms, origin.delivery), origin.number);
    tx.conn
        .prepare_cached(
            "INSERT INTO outbox (key, sink, status, payload, delivery, event, attempt, next_ms, expires_ms, created_ms) \
             VALUES (?1, ?2, 0, ?3, ?4, ?5, 0, ?6, ?7, ?6)",
        )
        .and_then(|mut s| {
            s.execute(params![key, sink, payload, origin.delivery.0, origin.event.0, now_ms, expires_ms])
        })
        .map_err(unwritten)?;
    tx.committed.intents = true;
    Ok(())
}

const COLUMNS: &str = "id, key, sink, payload, attempt, next_ms, expires_ms, status";

fn intent_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Intent> {
    let payload: String = row.get(3)?;
    Ok(Intent {
        id: row.get(0)?,
        key: row.get(1)?,
        sink: row.get(2)?,
        payload: serde_json::from_str(&payload).unwrap_or(Value::Null),
        attempt: row.get(4)?,
        next_ms: row.get(5)?,
        expires_ms: row.get(6)?,
        status: Status::of_code(row.get(7)?),
    })
}

/// The sink's intent that is due first, due or not.
pub fn next(conn: &Connection, sink: &str) -> Result<Option<Intent>, Error> {
    let found: Vec<Intent> = conn
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM outbox WHERE sink = ?1 AND status < 2 AND status = 0 ORDER BY next_ms, id LIMIT 1"
        ))
        .map_err(unread)?
        .query_map([sink], intent_of)
        .and_then(Iterator::collect)
        .map_err(unread)?;
    Ok(found.into_iter().next())
}

/// Marks an intent as being sent, before the first byte leaves.
pub fn begin(tx: &Tx<'_>, id: i64) -> Result<bool, Error> {
    tx.conn
        .execute("UPDATE outbox SET status = 1, attempt = attempt + 1 WHERE id = ?1 AND status = 0", [id])
        .map(|changed| changed == 1)
        .map_err(unwritten)
}

/// Takes [`begin`] back where nothing was sent, so that `attempt` attempts were begun.
pub fn unbegin(tx: &Tx<'_>, id: i64, attempt: u32) -> Result<(), Error> {
    tx.conn
        .execute("UPDATE outbox SET status = 0, attempt = ?2 WHERE id = ?1 AND status = 1", params![id, attempt])
        .map(drop)
        .map_err(unwritten)
}

/// Ends an intent as sent, unknown or failed.
pub fn end(tx: &Tx<'_>, id: i64, status: Status, now_ms: Millis, error: Option<&str>) -> Result<(), Error> {
    tx.conn
        .execute(
            "UPDATE outbox SET status = ?2, ended_ms = ?3, error = ?4 WHERE id = ?1",
            params![id, status.code(), now_ms, error.map(redact::text)],
        )
        .map(|_| ())
        .map_err(unwritten)
}

/// Lets an intent wait for another attempt, unless it was given up meanwhile.
pub fn wait(tx: &Tx<'_>, id: i64, next_ms: Millis, error: &str) -> Result<(), Error> {
    tx.conn
        .execute(
            "UPDATE outbox SET status = 0, next_ms = ?2, error = ?3 WHERE id = ?1 AND status < 2",
            params![id, next_ms, redact::text(error)],
        )
        .map(|_| ())
        .map_err(unwritten)
}

/// Settles what a crash cut off while sending: tried again at an idempotent sink, unknown elsewhere.
pub fn recover(tx: &Tx<'_>, sink: &str, idempotent: bool, now_ms: Millis) -> Result<usize, Error> {
    let sql = if idempotent {
        "UPDATE outbox SET status = 0, next_ms = ?2 WHERE sink = ?1 AND status = 1 AND status < 2"
    } else {
        "UPDATE outbox SET status = 3, ended_ms = ?2, error = 'The daemon ended while it was being sent.' \
         WHERE sink = ?1 AND status = 1 AND status < 2"
    };
    tx.conn.execute(sql, params![sink, now_ms]).map_err(unwritten)
}

/// Gives up intents that were too old by `before_ms` and that nobody settled, as those of a sink that was taken out of
/// the configuration; how many, at most `limit`. Waiting for ever they would hold their events for ever. Of what was being
/// sent when the daemon ended nobody knows more now than then.
pub fn strand(tx: &Tx<'_>, before_ms: Millis, now_ms: Millis, limit: i64) -> Result<i64, Error> {
    let sql = "UPDATE outbox SET status = iif(status = 0, 4, 3), ended_ms = ?2, \
               error = iif(status = 0, 'It became too old to be sent: no sink of that name is at work.', \
               'The daemon ended while it was being sent, and no sink of that name is at work.') \
               WHERE id IN (SELECT id FROM outbox WHERE status < 2 AND expires_ms <= ?1 LIMIT ?3)";
    let rows = tx.conn.prepare_cached(sql).and_then(|mut s| s.execute(params![before_ms, now_ms, limit]));
    rows.map(|rows| i64::try_from(rows).unwrap_or(i64::MAX)).map_err(unwritten)
}

/// What a delivery had as effects outside the bus's events: (kind, id, title), kinds `outgoing` and `notification`.
pub fn effects_of(conn: &Connection, delivery: DeliveryId) -> Result<Vec<(&'static str, String, String)>, Error> {
    let sent: Vec<(String, String)> = conn
        .prepare_cached("SELECT key, sink FROM outbox WHERE delivery = ?1 ORDER BY id LIMIT 1000")
        .map_err(unread)?
        .query_map([delivery.0], |row| Ok((row.get(0)?, row.get(1)?)))
        .and_then(Iterator::collect)
        .map_err(unread)?;
    let told = notifications::of_delivery(conn, delivery)?;
    let of_kind = |kind| move |(id, what)| (kind, id, what);
    Ok(sent.into_iter().map(of_kind("outgoing")).chain(told.into_iter().map(of_kind("notification"))).collect())
}

/// How many intents stand where: (status name, count); open ones only by the partial index.
pub fn counts(conn: &Connection) -> Result<Vec<(&'static str, i64)>, Error> {
    conn.prepare_cached("SELECT status, count(*) FROM outbox WHERE status < 2 GROUP BY status")
        .map_err(unread)?
        .query_map([], |row| Ok((Status::of_code(row.get(0)?).name(), row.get(1)?)))
        .and_then(Iterator::collect)
        .map_err(unread)
}

/// Where an intent comes from: its delivery, the attempt that asked for it, and its event's trace. None when that is gone.
pub fn origin(conn: &Connection, ids: Ids, id: i64) -> Result<Option<(DeliveryId, u32, TraceId)>, Error> {
    let found: Option<(i64, u32, i64)> = conn
        .prepare_cached(
            "SELECT delivery.id, delivery.attempt, outbox.event FROM outbox JOIN delivery ON delivery.id = outbox.delivery \
             WHERE outbox.id = ?1",
        )
        .and_then(|mut s| s.query_row([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional())
        .map_err(unread)?;
    let Some((delivery, attempt, event)) = found else { return Ok(None) };
    let event = events::by_sequence(conn, ids, EventSeq(event))?;
    Ok(event.map(|event| (DeliveryId(delivery), attempt, event.trace)))
}

/// How an intent stands, by its key.
pub fn by_key(conn: &Connection, key: &str) -> Result<Option<Intent>, Error> {
    let found: Vec<Intent> = conn
        .prepare_cached(&format!("SELECT {COLUMNS} FROM outbox WHERE key = ?1"))
        .map_err(unread)?
        .query_map([key], intent_of)
        .and_then(Iterator::collect)
        .map_err(unread)?;
    Ok(found.into_iter().next())
}
