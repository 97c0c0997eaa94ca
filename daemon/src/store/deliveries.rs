//! Deliveries: find what is ready, claim, settle, recover what a crash cut off.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::Value;

use super::{Tx, events};
use crate::clock::Millis;
use crate::error::Error;
use crate::event::{Delivery as Mode, Event, Priority};
use crate::id::{ConsumerId, DeliveryId, EventSeq, Ids};
use crate::redact;

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Not begun.
    Pending,
    /// An attempt was claimed.
    Running,
    /// An attempt failed; another one follows.
    Retrying,
    /// Settled with its effects.
    Done,
    /// Its event was too old to deliver.
    Expired,
    /// Given up: a dead letter.
    Dead,
    /// A dead letter that the operator threw away.
    Discarded,
}

impl Status {
    const ALL: [Status; 7] = [
        Status::Pending,
        Status::Running,
        Status::Retrying,
        Status::Done,
        Status::Expired,
        Status::Dead,
        Status::Discarded,
    ];

    /// The number that stands for it in the database.
    pub fn code(self) -> i64 {
        self as i64
    }

    /// Reads [`Status::code`] back.
    pub fn of_code(code: i64) -> Status {
        Status::ALL.into_iter().find(|s| s.code() == code).unwrap_or(Status::Pending)
    }

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Running => "running",
            Status::Retrying => "retrying",
            Status::Done => "done",
            Status::Expired => "expired",
            Status::Dead => "dead",
            Status::Discarded => "discarded",
        }
    }

    /// True while it can still be attempted.
    pub fn is_open(self) -> bool {
        matches!(self, Status::Pending | Status::Running | Status::Retrying)
    }
}

/// A delivery that may be attempted.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Which.
    pub id: DeliveryId,
    /// Whose.
    pub consumer: ConsumerId,
    /// Its event.
    pub event: Arc<Event>,
    /// Attempts begun so far.
    pub attempt: u32,
    /// When it may be tried; in the past or now for one that is ready.
    pub next_ms: Option<Millis>,
    /// True when earlier open deliveries of the same key must end first.
    pub keyed: bool,
}

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("reading deliveries")(error)
}

fn unwritten(error: rusqlite::Error) -> Error {
    Error::internal("writing a delivery")(error)
}

fn ready_of(ids: Ids, consumer: ConsumerId, row: &Row<'_>) -> rusqlite::Result<Ready> {
    let event = events::from_row_at(ids, row, 4)?;
    Ok(Ready {
        id: DeliveryId(row.get(0)?),
        consumer,
        event: Arc::new(event),
        attempt: row.get(1)?,
        next_ms: row.get(2)?,
        keyed: row.get::<_, i64>(3)? != 0,
    })
}

/// The oldest deliveries of a serial consumer that are not running, in order, waiting retries included.
pub fn serial(conn: &Connection, ids: Ids, consumer: ConsumerId, limit: usize) -> Result<Vec<Ready>, Error> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut found = Vec::new();
    for status in [Status::Retrying, Status::Pending] {
        let sql = format!(
            "SELECT d.id, d.attempt, d.next_ms, 0, {} FROM delivery d JOIN event e ON e.sequence = d.event \
             WHERE d.consumer = ?1 AND d.status = {} ORDER BY d.rank, d.id LIMIT ?2",
            events::columns("e"),
            status.code()
        );
        let mut statement = conn.prepare_cached(&sql).map_err(unread)?;
        let rows =
            statement.query_map(params![consumer.0, limit], |row| ready_of(ids, consumer, row)).map_err(unread)?;
        for row in rows {
            found.push(row.map_err(unread)?);
        }
    }
    found.sort_by_key(|ready| ready.id);
    found.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    Ok(found)
}

/// Deliveries of a parallel consumer that may run now: due retries first, then by priority and age. Of equal partition
/// keys only the oldest open one is ready.
pub fn parallel(
    conn: &Connection,
    ids: Ids,
    consumer: ConsumerId,
    now_ms: Millis,
    limit: usize,
) -> Result<Vec<Ready>, Error> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut found = Vec::new();
    for (status, due) in [(Status::Retrying, "AND d.next_ms <= ?3"), (Status::Pending, "AND ?3 IS NOT NULL")] {
        let sql = format!(
            "SELECT d.id, d.attempt, d.next_ms, d.partition IS NOT NULL, {} \
             FROM delivery d JOIN event e ON e.sequence = d.event \
             WHERE d.consumer = ?1 AND d.status = {} {due} AND (d.partition IS NULL OR NOT EXISTS \
               (SELECT 1 FROM delivery b WHERE b.consumer = d.consumer AND b.partition = d.partition \
                AND b.status < 3 AND b.partition IS NOT NULL AND b.id < d.id)) \
             ORDER BY d.rank, d.id LIMIT ?2",
            events::columns("e"),
            status.code()
        );
        let mut statement = conn.prepare_cached(&sql).map_err(unread)?;
        let rows = statement
            .query_map(params![consumer.0, limit, now_ms], |row| ready_of(ids, consumer, row))
            .map_err(unread)?;
        for row in rows {
            found.push(row.map_err(unread)?);
        }
    }
    Ok(found)
}

/// When the next waiting retry of a consumer is due.
pub fn next_retry(conn: &Connection, consumer: ConsumerId) -> Result<Option<Millis>, Error> {
    conn.prepare_cached("SELECT min(next_ms) FROM delivery WHERE consumer = ?1 AND status = 2")
        .and_then(|mut s| s.query_row([consumer.0], |row| row.get(0)))
        .map_err(unread)
}

/// Claims an attempt durably; false when the delivery is no longer open.
pub fn claim(tx: &Tx<'_>, id: DeliveryId, lease_ms: Millis, outside: bool) -> Result<bool, Error> {
    tx.conn
        .prepare_cached(
            "UPDATE delivery SET status = 1, attempt = attempt + 1, lease_ms = ?2, outside = ?3, next_ms = NULL \
             WHERE id = ?1 AND status IN (0, 2)",
        )
        .and_then(|mut s| s.execute(params![id.0, lease_ms, outside]))
        .map(|changed| changed == 1)
        .map_err(unwritten)
}

/// Ends a delivery; false when it had ended already, so that its effects must not be applied.
pub fn end(
    tx: &Tx<'_>,
    id: DeliveryId,
    status: Status,
    attempt: u32,
    now_ms: Millis,
    result: Option<&Value>,
) -> Result<bool, Error> {
    let result = result.map(|value| redact::json(&value.to_string()).into_owned());
    tx.conn
        .prepare_cached(
            "UPDATE delivery SET status = ?2, attempt = ?3, ended_ms = ?4, result = ?5, next_ms = NULL, lease_ms = NULL \
             WHERE id = ?1 AND status < 3",
        )
        .and_then(|mut s| s.execute(params![id.0, status.code(), attempt, now_ms, result.as_deref()]))
        .map(|changed| changed == 1)
        .map_err(unwritten)
}

/// Lets an open delivery wait until `next_ms`; false when it had ended already.
pub fn wait(tx: &Tx<'_>, id: DeliveryId, attempt: u32, next_ms: Millis) -> Result<bool, Error> {
    tx.conn
        .prepare_cached(
            "UPDATE delivery SET status = 2, attempt = ?2, next_ms = ?3, lease_ms = NULL WHERE id = ?1 AND status < 3",
        )
        .and_then(|mut s| s.execute(params![id.0, attempt, next_ms]))
        .map(|changed| changed == 1)
        .map_err(unwritten)
}

/// Opens an ended delivery again for a whole new round of attempts.
pub fn reopen(tx: &mut Tx<'_>, id: DeliveryId) -> Result<bool, Error> {
    let changed = tx
        .conn
        .execute(
            "UPDATE delivery SET status = 0, attempt = 0, ended_ms = NULL, next_ms = NULL, result = NULL \
             WHERE id = ?1 AND status = 5",
            [id.0],
        )
        .map_err(unwritten)?;
    tx.committed.deliveries += changed;
    Ok(changed == 1)
}

/// Keeps why an attempt failed.
pub fn record_failure(
    tx: &Tx<'_>,
    id: DeliveryId,
    attempt: u32,
    now_ms: Millis,
    chain: &[String],
) -> Result<(), Error> {
    let chain = serde_json::to_string(chain).map_err(Error::internal("encoding a failure"))?;
    let chain = redact::json(&chain);
    tx.conn
        .prepare_cached("INSERT INTO failure (delivery, attempt, at_ms, chain) VALUES (?1, ?2, ?3, ?4)")
        .and_then(|mut s| s.execute(params![id.0, attempt, now_ms, chain]))
        .map(|_| ())
        .map_err(unwritten)
}

/// A claimed attempt that the end of its daemon cut off.
#[derive(Debug)]
pub struct CutOff {
    /// Which delivery.
    pub id: DeliveryId,
    /// Its event.
    pub event: Arc<Event>,
    /// Its consumer.
    pub consumer: ConsumerId,
    /// Attempts begun, the cut-off one included.
    pub attempt: u32,
    /// True when the attempt could act outside the transaction.
    pub outside: bool,
}

impl CutOff {
    /// What the event's delivery mode says of the attempt.
    pub fn mode(&self) -> Mode {
        self.event.sent.delivery
    }
}

/// Every delivery that is marked running; at start-up nothing runs yet, so these were cut off.
pub fn running(conn: &Connection, ids: Ids) -> Result<Vec<CutOff>, Error> {
    let consumers: Vec<i64> = conn
        .prepare("SELECT id FROM consumer")
        .and_then(|mut s| s.query_map([], |row| row.get(0))?.collect())
        .map_err(unread)?;
    let sql = format!(
        "SELECT d.id, d.consumer, d.attempt, coalesce(d.outside, 0), {} FROM delivery d JOIN event e ON e.sequence = d.event \
         WHERE d.consumer = ?1 AND d.status = 1",
        events::columns("e")
    );
    let mut statement = conn.prepare(&sql).map_err(unread)?;
    let mut found = Vec::new();
    for consumer in consumers {
        let rows = statement
            .query_map([consumer], |row| {
                Ok(CutOff {
                    id: DeliveryId(row.get(0)?),
                    consumer: ConsumerId(row.get(1)?),
                    attempt: row.get(2)?,
                    outside: row.get::<_, i64>(3)? != 0,
                    event: Arc::new(events::from_row_at(ids, row, 4)?),
                })
            })
            .map_err(unread)?;
        for row in rows {
            found.push(row.map_err(unread)?);
        }
    }
    Ok(found)
}

/// A delivery as programs see it.
#[derive(Debug, Clone)]
pub struct Record {
    /// Which.
    pub id: DeliveryId,
    /// Its event.
    pub event: EventSeq,
    /// Name of its consumer.
    pub consumer: String,
    /// Where it stands.
    pub status: Status,
    /// Attempts begun.
    pub attempt: u32,
    /// When it is tried again.
    pub next_ms: Option<Millis>,
    /// When it ended.
    pub ended_ms: Option<Millis>,
    /// What the consumer returned.
    pub result: Option<Value>,
    /// Failed attempts: number, time, chain.
    pub failures: Vec<(u32, Millis, Vec<String>)>,
}

/// The deliveries of an event, in order.
pub fn of_event(conn: &Connection, event: EventSeq) -> Result<Vec<Record>, Error> {
    let range: Option<(Option<i64>, Option<i64>)> = conn
        .prepare_cached("SELECT delivery_first, delivery_count FROM event WHERE sequence = ?1")
        .and_then(|mut s| s.query_row([event.0], |row| Ok((row.get(0)?, row.get(1)?))).optional())
        .map_err(unread)?;
    let Some((Some(first), Some(count))) = range else { return Ok(Vec::new()) };
    let mut records: Vec<Record> = conn
        .prepare_cached(
            "SELECT d.id, d.event, c.name, d.status, d.attempt, d.next_ms, d.ended_ms, d.result \
             FROM delivery d JOIN consumer c ON c.id = d.consumer WHERE d.id >= ?1 AND d.id < ?1 + ?2 ORDER BY d.id",
        )
        .map_err(unread)?
        .query_map(params![first, count], |row| {
            Ok(Record {
                id: DeliveryId(row.get(0)?),
                event: EventSeq(row.get(1)?),
                consumer: row.get(2)?,
                status: Status::of_code(row.get(3)?),
                attempt: row.get(4)?,
                next_ms: row.get(5)?,
                ended_ms: row.get(6)?,
                result: row.get::<_, Option<String>>(7)?.and_then(|text| serde_json::from_str(&text).ok()),
                failures: Vec::new(),
            })
        })
        .and_then(Iterator::collect)
        .map_err(unread)?;
    for record in &mut records {
        record.failures = failures(conn, record.id)?;
    }
    Ok(records)
}

/// The failed attempts of a delivery, oldest first: number, time, chain.
pub fn failures(conn: &Connection, id: DeliveryId) -> Result<Vec<(u32, Millis, Vec<String>)>, Error> {
    conn.prepare_cached("SELECT attempt, at_ms, chain FROM failure WHERE delivery = ?1 ORDER BY id LIMIT 200")
        .map_err(unread)?
        .query_map([id.0], |row| {
            let chain: String = row.get(2)?;
            Ok((row.get(0)?, row.get(1)?, serde_json::from_str(&chain).unwrap_or_default()))
        })
        .and_then(Iterator::collect)
        .map_err(unread)
}

/// The event and consumer of a delivery.
pub fn find(conn: &Connection, id: DeliveryId) -> Result<Option<(EventSeq, ConsumerId, Status)>, Error> {
    conn.prepare_cached("SELECT event, consumer, status FROM delivery WHERE id = ?1")
        .and_then(|mut s| {
            s.query_row([id.0], |row| {
                Ok((EventSeq(row.get(0)?), ConsumerId(row.get(1)?), Status::of_code(row.get(2)?)))
            })
            .optional()
        })
        .map_err(unread)
}

/// Open deliveries per consumer name; reads only the partial index of open ones.
pub fn open_counts(conn: &Connection) -> Result<Vec<(String, i64)>, Error> {
    conn.prepare_cached(
        "SELECT c.name, count(*) FROM delivery d JOIN consumer c ON c.id = d.consumer WHERE d.status < 3 GROUP BY d.consumer",
    )
    .map_err(unread)?
    .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
    .and_then(Iterator::collect)
    .map_err(unread)
}

/// Consumers that have open deliveries, for the first look after a start.
pub fn consumers_with_work(conn: &Connection) -> Result<Vec<(ConsumerId, Priority)>, Error> {
    conn.prepare(
        "SELECT id FROM consumer c WHERE EXISTS (SELECT 1 FROM delivery d WHERE d.consumer = c.id AND d.status < 3)",
    )
    .map_err(unread)?
    .query_map([], |row| Ok((ConsumerId(row.get(0)?), Priority::High)))
    .and_then(Iterator::collect)
    .map_err(unread)
}
