//! Deliveries: find what is ready, claim, settle, recover what a crash cut off.
//!
//! SQLite uses a partial index only for a query that repeats the index's own condition, so every query for open
//! deliveries says `status < 3`, whatever else it says; a test below reads the query plans.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::Value;

use super::{Tx, events};
use crate::clock::Millis;
use crate::error::Error;
use crate::event::Event;
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
    /// Given up by the operator: a dead letter that was thrown away, or what waited for a consumer that was removed.
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
    /// Earlier open deliveries with this key must end first.
    pub key: Option<String>,
}

/// A page of deliveries, bounded in rows and bytes.
#[derive(Debug, Default)]
pub struct Page {
    /// What was found.
    pub ready: Vec<Ready>,
    /// The last row that was looked at, whether it is ready or held by its key.
    pub last: Option<DeliveryId>,
    /// True when there are more rows behind the last.
    pub more: bool,
}

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("reading deliveries")(error)
}

fn unwritten(error: rusqlite::Error) -> Error {
    Error::internal("writing a delivery")(error)
}

fn ready_of(ids: Ids, consumer: ConsumerId, row: &Row<'_>) -> rusqlite::Result<Ready> {
    let event = events::from_row_at(ids, row, 5)?;
    Ok(Ready {
        id: DeliveryId(row.get(0)?),
        consumer,
        event: Arc::new(event),
        attempt: row.get(1)?,
        next_ms: row.get(2)?,
        key: row.get(3)?,
    })
}

/// Selects deliveries `d` with their events; column 4 tells whether an earlier one of the same key is still open.
fn ready_sql(rest: &str) -> String {
    format!(
        "SELECT d.id, d.attempt, d.next_ms, d.partition, d.partition IS NOT NULL AND EXISTS \
         (SELECT 1 FROM delivery b WHERE b.consumer = d.consumer AND b.partition = d.partition \
          AND b.partition IS NOT NULL AND b.status < 3 AND b.id < d.id), {} \
         FROM delivery d CROSS JOIN event e ON e.sequence = d.event WHERE d.consumer = ?1 {rest}",
        events::columns("e")
    )
}

fn in_order_sql(status: Status) -> String {
    let status = status.code();
    ready_sql(&format!("AND d.status = {status} AND d.status < 3 AND d.rank = ?2 AND d.id > ?3 ORDER BY d.id LIMIT ?4"))
}

fn due_sql() -> String {
    ready_sql("AND d.status = 2 AND (d.next_ms <= ?2 OR d.next_ms > ?3) LIMIT ?4")
}

fn key_sql() -> String {
    // Left alone, SQLite takes the index over all open deliveries and sorts.
    ready_sql("AND d.partition = ?2 AND d.partition IS NOT NULL AND d.status < 3 ORDER BY d.id LIMIT 1")
        .replace("FROM delivery d CROSS", "FROM delivery d INDEXED BY delivery_key CROSS")
}

fn running_sql() -> String {
    ready_sql("AND d.status = 1 AND d.status < 3")
}

const NEXT_RETRY: &str =
    "SELECT min(next_ms) FROM delivery WHERE consumer = ?1 AND status = 2 AND next_ms > ?2 AND next_ms <= ?3";

fn page(
    conn: &Connection,
    ids: Ids,
    consumer: ConsumerId,
    sql: &str,
    (first, second, limit): (i64, i64, usize),
    in_order: bool,
) -> Result<Page, Error> {
    let mut statement = conn.prepare_cached(sql).map_err(unread)?;
    let rows_max = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut rows = statement.query(params![consumer.0, first, second, rows_max]).map_err(unread)?;
    let (mut page, mut looked_at, mut bytes) = (Page::default(), 0, 0);
    while let Some(row) = rows.next().map_err(unread)? {
        looked_at += 1;
        page.last = Some(DeliveryId(row.get(0).map_err(unread)?));
        // A serial consumer keeps the order of all; for it a key holds nothing.
        let held = !in_order && row.get(4).map_err(unread)?;
        if !held {
            let ready = ready_of(ids, consumer, row).map_err(unread)?;
            bytes += ready.event.weight();
            page.ready.push(ready);
        }
        if looked_at == limit || bytes >= events::PAGE_BYTES {
            page.more = true;
            break;
        }
    }
    Ok(page)
}

/// The oldest deliveries of a serial consumer that are not running, in order, waiting retries included.
pub fn serial(conn: &Connection, ids: Ids, consumer: ConsumerId, limit: usize) -> Result<Page, Error> {
    let mut all = Page::default();
    // A page that was cut says nothing of what comes after its end, which may stand before the other pages' rest.
    let mut whole_to: Option<DeliveryId> = None;
    for status in [Status::Retrying, Status::Pending] {
        for rank in 0..3 {
            let found = page(conn, ids, consumer, &in_order_sql(status), (rank, 0, limit), true)?;
            if found.more {
                whole_to = whole_to.into_iter().chain(found.last).min();
            }
            all.ready.extend(found.ready);
            all.more |= found.more;
        }
    }
    all.ready.sort_by_key(|ready| ready.id);
    if let Some(last) = whole_to {
        all.ready.retain(|ready| ready.id <= last);
    }
    Ok(all)
}

/// Deliveries of a parallel consumer that were never tried, of one rank, after `after`: those whose key is held by an
/// earlier one are passed over, and are found by [`of_key`] when that ends.
pub fn pending(
    conn: &Connection,
    ids: Ids,
    consumer: ConsumerId,
    (rank, after): (i64, i64),
    limit: usize,
) -> Result<Page, Error> {
    page(conn, ids, consumer, &in_order_sql(Status::Pending), (rank, after, limit), false)
}

/// Retries that are due at `now_ms`. One that waits longer than until `never_ms` was stored by a clock that was ahead,
/// and is due, too.
pub fn due(
    conn: &Connection,
    ids: Ids,
    consumer: ConsumerId,
    (now_ms, never_ms): (Millis, Millis),
    limit: usize,
) -> Result<Page, Error> {
    page(conn, ids, consumer, &due_sql(), (now_ms, never_ms, limit), false)
}

/// The oldest open delivery with this key, unless an attempt of it is claimed.
pub fn of_key(conn: &Connection, ids: Ids, consumer: ConsumerId, key: &str) -> Result<Option<Ready>, Error> {
    let running = "SELECT 1 FROM delivery WHERE id = ?1 AND status = 1";
    let found = conn
        .prepare_cached(&key_sql())
        .and_then(|mut s| s.query_row(params![consumer.0, key], |row| ready_of(ids, consumer, row)).optional())
        .map_err(unread)?;
    let Some(ready) = found else { return Ok(None) };
    let claimed = conn.prepare_cached(running).and_then(|mut s| s.exists([ready.id.0])).map_err(unread)?;
    Ok((!claimed).then_some(ready))
}

/// When the next retry of a consumer after `now_ms` is due. What waits longer than until `never_ms` is due already, and
/// no time to wait for: it may be running, or held by its key.
pub fn next_retry(
    conn: &Connection,
    consumer: ConsumerId,
    (now_ms, never_ms): (Millis, Millis),
) -> Result<Option<Millis>, Error> {
    conn.prepare_cached(NEXT_RETRY)
        .and_then(|mut s| s.query_row([consumer.0, now_ms, never_ms], |row| row.get(0)))
        .map_err(unread)
}

/// Whether a delivery may have another attempt: it is open, or dead with a letter that can be retried.
pub fn may_run(conn: &Connection, id: DeliveryId) -> Result<bool, Error> {
    conn.prepare_cached(
        "SELECT 1 FROM delivery d WHERE d.id = ?1 AND (d.status < 3 \
         OR d.status = 5 AND EXISTS (SELECT 1 FROM dead_letter l WHERE l.delivery = d.id))",
    )
    .and_then(|mut s| s.exists([id.0]))
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

/// Takes a claim back whose attempt was not begun, so that attempt `attempt` + 1 is the next again; nothing when it was not
/// stored.
pub fn unclaim(tx: &Tx<'_>, id: DeliveryId, attempt: u32, now_ms: Millis) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "UPDATE delivery SET status = iif(?2 = 0, 0, 2), attempt = ?2, next_ms = iif(?2 = 0, NULL, ?3), \
             lease_ms = NULL WHERE id = ?1 AND status = 1",
        )
        .and_then(|mut s| s.execute(params![id.0, attempt, now_ms]))
        .map(drop)
        .map_err(unwritten)
}

/// Ends a delivery; false when it had ended already, so that its effects must not be applied.
///
/// `result` is JSON without secrets.
pub fn end(
    tx: &mut Tx<'_>,
    id: DeliveryId,
    status: Status,
    attempt: u32,
    now_ms: Millis,
    result: Option<&str>,
) -> Result<bool, Error> {
    let changed = tx
        .conn
        .prepare_cached(
            "UPDATE delivery SET status = ?2, attempt = ?3, ended_ms = ?4, result = ?5, next_ms = NULL, lease_ms = NULL \
             WHERE id = ?1 AND status < 3",
        )
        .and_then(|mut s| s.execute(params![id.0, status.code(), attempt, now_ms, result]))
        .map_err(unwritten)?;
    tx.committed.deliveries -= i64::from(changed == 1);
    Ok(changed == 1)
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

/// At most `limit` open deliveries of a consumer whose events came until `until_ms`, with their attempts.
pub fn open_of(
    conn: &Connection,
    consumer: &str,
    until_ms: Millis,
    limit: i64,
) -> Result<Vec<(DeliveryId, u32)>, Error> {
    conn.prepare_cached(
        "SELECT d.id, d.attempt FROM delivery d JOIN event e ON e.sequence = d.event \
         WHERE d.consumer = (SELECT id FROM consumer WHERE name = ?1) AND d.status < 3 AND e.received_ms <= ?2 LIMIT ?3",
    )
    .and_then(|mut s| {
        s.query_map(params![consumer, until_ms, limit], |row| Ok((DeliveryId(row.get(0)?), row.get(1)?)))?.collect()
    })
    .map_err(unread)
}

/// Ends open deliveries without an attempt; how many were still open.
pub fn give_up(tx: &mut Tx<'_>, open: &[(DeliveryId, u32)], now_ms: Millis) -> Result<i64, Error> {
    let mut given_up = 0;
    for (id, attempt) in open {
        given_up += i64::from(end(tx, *id, Status::Discarded, *attempt, now_ms, None)?);
        super::dead_letters::give_up(tx, *id)?;
    }
    Ok(given_up)
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
    tx.committed.deliveries += i64::from(changed == 1);
    Ok(changed == 1)
}

/// Keeps why an attempt failed, which was number `attempt` of its round; it is numbered on from the rounds before.
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
        .prepare_cached(
            "INSERT INTO failure (delivery, attempt, at_ms, chain) VALUES (?1, ?2 + coalesce((SELECT attempts FROM \
             dead_letter WHERE delivery = ?1 AND state = 1), 0), ?3, ?4)",
        )
        .and_then(|mut s| s.execute(params![id.0, attempt, now_ms, chain]))
        .map(|_| ())
        .map_err(unwritten)
}

/// Deliveries of a consumer whose claimed attempt was cut off: at a start, or when the consumer comes back, nothing of
/// it runs yet.
pub fn cut_off(conn: &Connection, ids: Ids, consumer: ConsumerId) -> Result<Vec<(Ready, bool)>, Error> {
    let outside = "SELECT coalesce(outside, 0) FROM delivery WHERE id = ?1";
    let found: Vec<Ready> = conn
        .prepare_cached(&running_sql())
        .map_err(unread)?
        .query_map([consumer.0], |row| ready_of(ids, consumer, row))
        .and_then(Iterator::collect)
        .map_err(unread)?;
    let with_outside = |ready: Ready| {
        let outside = conn.query_row(outside, [ready.id.0], |row| row.get::<_, bool>(0)).map_err(unread)?;
        Ok((ready, outside))
    };
    found.into_iter().map(with_outside).collect()
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
    /// Attempts begun, over all rounds, as its dead letter counts them.
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

impl Record {
    /// About how many bytes it takes.
    pub fn weight(&self) -> usize {
        let failures: usize = self.failures.iter().flat_map(|(_, _, chain)| chain).map(String::len).sum();
        256 + failures + self.result.as_ref().map_or(0, |result| result.to_string().len())
    }
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
            // A letter counts the attempts of every round that is over; the delivery those of the round that goes on.
            "SELECT d.id, d.event, c.name, d.status, \
             CASE WHEN l.state IN (0, 3) THEN l.attempts ELSE d.attempt + coalesce(l.attempts, 0) END, \
             d.next_ms, d.ended_ms, d.result FROM delivery d JOIN consumer c ON c.id = d.consumer \
             LEFT JOIN dead_letter l ON l.delivery = d.id WHERE d.id >= ?1 AND d.id < ?1 + ?2 ORDER BY d.id",
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

/// The newest 200 failed attempts of a delivery, oldest first: number, time, chain.
pub fn failures(conn: &Connection, id: DeliveryId) -> Result<Vec<(u32, Millis, Vec<String>)>, Error> {
    let mut newest_first: Vec<_> = conn
        .prepare_cached("SELECT attempt, at_ms, chain FROM failure WHERE delivery = ?1 ORDER BY id DESC LIMIT 200")
        .map_err(unread)?
        .query_map([id.0], |row| {
            let chain: String = row.get(2)?;
            Ok((row.get(0)?, row.get(1)?, serde_json::from_str(&chain).unwrap_or_default()))
        })
        .and_then(Iterator::collect)
        .map_err(unread)?;
    newest_first.reverse();
    Ok(newest_first)
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

/// Open deliveries; reads only the partial index of open ones.
pub fn open_count(conn: &Connection) -> Result<i64, Error> {
    conn.query_row("SELECT count(*) FROM delivery WHERE status < 3", [], |row| row.get(0)).map_err(unread)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what is over for good is told from what may still have an attempt.
    #[test]
    fn deliveries_without_a_letter_are_over() {
        let conn = Connection::open_in_memory().expect("a database");
        conn.execute_batch(include_str!("../../../schemas/sql/0001_core.sql")).expect("the tables");
        let deliveries = "INSERT INTO delivery (id, event, consumer, status, rank, attempt) \
            VALUES (1,1,1,2,1,0), (2,1,1,3,1,0), (3,1,1,5,1,0), (4,1,1,5,1,0);\
            INSERT INTO dead_letter VALUES (3,1,1,'s','t','rejected','f','[]',1,0,0,0,NULL)";
        conn.execute_batch(deliveries).expect("rows");
        let may = [1, 2, 3, 4, 5].map(|id| may_run(&conn, DeliveryId(id)).expect("a look"));
        assert_eq!(may, [true, false, true, false, false]);
    }

    /// Goal: looking for work costs what there is to do, not what was ever done.
    #[test]
    fn looking_for_work_uses_the_partial_indexes() {
        let conn = Connection::open_in_memory().expect("a database");
        conn.execute_batch(include_str!("../../../schemas/sql/0001_core.sql")).expect("the tables");
        let wanted = [
            (in_order_sql(Status::Pending), "delivery_open"),
            (in_order_sql(Status::Retrying), "delivery_open"),
            (due_sql(), "delivery_retry"),
            (key_sql(), "delivery_key"),
            (running_sql(), "delivery_open"),
            (NEXT_RETRY.to_owned(), "delivery_retry"),
        ];
        for (sql, index) in wanted {
            let plan: Vec<String> = conn
                .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
                .and_then(|mut s| {
                    let values = vec![1_i64; s.parameter_count()];
                    s.query_map(rusqlite::params_from_iter(values), |row| row.get(3))?.collect()
                })
                .expect("a plan");
            let plan = plan.join("; ");
            assert!(plan.contains(index) && !plan.contains("SCAN") && !plan.contains("TEMP B-TREE"), "{sql}: {plan}");
        }
    }
}
