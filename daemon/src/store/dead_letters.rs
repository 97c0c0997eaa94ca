//! Dead letters: deliveries that were given up, with payload, error chain and attempts, until someone decides.

use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};
use serde::Serialize;

use super::{Tx, deliveries, events};
use crate::clock::Millis;
use crate::error::Error;
use crate::event::{Data, Event};
use crate::id::{ConsumerId, DeliveryId, EventSeq, Ids};
use crate::redact;

/// Why a delivery was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Every attempt failed.
    AttemptsExhausted,
    /// The consumer said that it cannot work.
    Rejected,
    /// The last attempt ran out of time.
    Timeout,
    /// The chain of effects is longer than `bus.max_causation_depth`.
    CausationLoop,
    /// An `at_most_once` attempt was cut off.
    Interrupted,
    /// An `exactly_once` attempt that could act outside was cut off.
    UnknownOutcome,
}

impl Reason {
    /// Its name in JSON and in the database.
    pub fn name(self) -> &'static str {
        match self {
            Reason::AttemptsExhausted => "attempts_exhausted",
            Reason::Rejected => "rejected",
            Reason::Timeout => "timeout",
            Reason::CausationLoop => "causation_loop",
            Reason::Interrupted => "interrupted",
            Reason::UnknownOutcome => "unknown_outcome",
        }
    }
}

/// What makes a delivery a dead letter.
pub struct Death<'a> {
    /// Which delivery.
    pub id: DeliveryId,
    /// Its event.
    pub event: &'a Event,
    /// Its consumer.
    pub consumer: ConsumerId,
    /// Why.
    pub reason: Reason,
    /// Errors, outermost first.
    pub chain: &'a [String],
    /// Attempts that were begun.
    pub attempts: u32,
    /// Groups letters with the same cause.
    pub fingerprint: &'a str,
}

fn unwritten(error: rusqlite::Error) -> Error {
    Error::internal("writing a dead letter")(error)
}

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("reading dead letters")(error)
}

/// Records a death; the same delivery keeps its letter, its attempts add up.
pub fn bury(tx: &Tx<'_>, death: &Death<'_>, now_ms: Millis) -> Result<(), Error> {
    let chain = serde_json::to_string(death.chain).map_err(Error::internal("encoding a failure"))?;
    let chain = redact::json(&chain);
    let first = deliveries::failures(tx.conn, death.id)?.first().map_or(now_ms, |(_, at, _)| *at);
    tx.conn
        .prepare_cached(
            "INSERT INTO dead_letter (delivery, event, consumer, source, type, reason, fingerprint, chain, attempts, \
             first_failed_ms, last_failed_ms, state) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,0) \
             ON CONFLICT (delivery) DO UPDATE SET reason = ?6, fingerprint = ?7, chain = ?8, attempts = attempts + ?9, \
             last_failed_ms = ?11, state = 0",
        )
        .and_then(|mut s| {
            s.execute(params![
                death.id.0,
                death.event.sequence.0,
                death.consumer.0,
                death.event.sent.source,
                death.event.sent.kind,
                death.reason.name(),
                death.fingerprint,
                chain,
                death.attempts,
                first,
                now_ms,
            ])
        })
        .map(|_| ())
        .map_err(unwritten)
}

/// Notes that a delivery that had been a dead letter has now ended well.
pub fn resolve(tx: &Tx<'_>, id: DeliveryId) -> Result<(), Error> {
    tx.conn
        .prepare_cached("UPDATE dead_letter SET state = 2 WHERE delivery = ?1 AND state = 1")
        .and_then(|mut s| s.execute([id.0]))
        .map(|_| ())
        .map_err(unwritten)
}

/// Notes that a delivery that had been a dead letter was given up before it ended, or that its event had expired; the
/// attempts of this round count.
pub fn give_up(tx: &Tx<'_>, id: DeliveryId) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "UPDATE dead_letter SET state = 3, attempts = attempts + coalesce((SELECT attempt FROM delivery WHERE id = ?1), 0) \
             WHERE delivery = ?1 AND state = 1",
        )
        .and_then(|mut s| s.execute([id.0]))
        .map(|_| ())
        .map_err(unwritten)
}

/// Attempts of a delivery that is tried again, in the rounds before this one.
pub fn attempts_before(conn: &Connection, id: DeliveryId) -> Result<u32, Error> {
    conn.prepare_cached("SELECT attempts FROM dead_letter WHERE delivery = ?1 AND state = 1")
        .and_then(|mut s| s.query_row([id.0], |row| row.get(0)).optional())
        .map(|found| found.unwrap_or(0))
        .map_err(unread)
}

/// Opens the delivery again and marks its letter as retrying. Fails when there is no such letter or it is no longer dead.
pub fn retry(tx: &mut Tx<'_>, id: DeliveryId, note: Option<&str>) -> Result<Letter, Error> {
    let letter = find_dead(tx.conn, tx.ids(), id)?;
    if !deliveries::reopen(tx, id)? {
        return Err(Error::conflict(
            "invalid_state",
            "This delivery is not dead any more. GET /events/{id}/why shows how it stands (`aman why`).",
        ));
    }
    set_state(tx, id, 1, note)?;
    tx.look_anew(letter.consumer_id);
    Ok(letter)
}

/// Opens every dead letter with this fingerprint again, oldest first and at most `limit`.
/// They are given without the data of their events, which together may be larger than memory.
pub fn retry_group(tx: &mut Tx<'_>, fingerprint: &str, limit: usize) -> Result<Vec<Letter>, Error> {
    with_fingerprint(tx.conn, fingerprint, limit)?.into_iter().map(|id| retry(tx, id, None).map(lightened)).collect()
}

/// What [`retry_group`] would open.
pub fn group(conn: &Connection, ids: Ids, fingerprint: &str, limit: usize) -> Result<Vec<Letter>, Error> {
    let found = with_fingerprint(conn, fingerprint, limit)?;
    found.into_iter().map(|id| find_dead(conn, ids, id).map(lightened)).collect()
}

fn lightened(mut letter: Letter) -> Letter {
    letter.event.sent.data = Data::None;
    letter
}

/// Throws a dead letter away; it stays as a tombstone.
pub fn discard(tx: &Tx<'_>, id: DeliveryId, note: Option<&str>) -> Result<Letter, Error> {
    let letter = find_dead(tx.conn, tx.ids(), id)?;
    tx.conn.execute("UPDATE delivery SET status = 6 WHERE id = ?1 AND status = 5", [id.0]).map_err(unwritten)?;
    set_state(tx, id, 3, note)?;
    Ok(letter)
}

fn set_state(tx: &Tx<'_>, id: DeliveryId, state: i64, note: Option<&str>) -> Result<(), Error> {
    tx.conn
        .execute("UPDATE dead_letter SET state = ?2, note = ?3 WHERE delivery = ?1", params![id.0, state, note])
        .map(|_| ())
        .map_err(unwritten)
}

/// A letter that is dead now; `Conflict` says what else it is.
pub fn find_dead(conn: &Connection, ids: Ids, id: DeliveryId) -> Result<Letter, Error> {
    let shown = id.0.to_string();
    let (letter, state) = find(conn, ids, id)?.ok_or_else(|| Error::not_found("dead letter", shown))?;
    match state {
        0 => Ok(letter),
        1 => Err(Error::conflict(
            "in_progress",
            "This dead letter is being tried again already. GET /events/{id}/why shows how that goes (`aman why`).",
        )),
        2 => Err(Error::conflict(
            "invalid_state",
            "This delivery was tried again and has ended well: nothing is left to do.",
        )),
        _ => Err(Error::conflict(
            "invalid_state",
            "This dead letter was discarded, or its event had expired. Push its event again if it is to run after all.",
        )),
    }
}

/// A dead letter as programs see it.
#[derive(Debug, Clone)]
pub struct Letter {
    /// Its delivery.
    pub id: DeliveryId,
    /// Its event.
    pub event: Event,
    /// Number of its consumer.
    pub consumer_id: ConsumerId,
    /// Name of its consumer.
    pub consumer: String,
    /// Why.
    pub reason: String,
    /// Errors, outermost first.
    pub chain: Vec<String>,
    /// Attempts over all rounds.
    pub attempts: u32,
    /// When the first attempt failed.
    pub first_failed_ms: Millis,
    /// When the last attempt failed.
    pub last_failed_ms: Millis,
    /// Groups letters with the same cause.
    pub fingerprint: String,
}

const LETTER: &str = "l.delivery, l.consumer, c.name, l.reason, l.chain, l.attempts, l.first_failed_ms, \
    l.last_failed_ms, l.fingerprint, l.state";

fn letter_of(ids: Ids, row: &Row<'_>) -> rusqlite::Result<(Letter, i64)> {
    let chain: String = row.get(4)?;
    let letter = Letter {
        id: DeliveryId(row.get(0)?),
        consumer_id: ConsumerId(row.get(1)?),
        consumer: row.get(2)?,
        reason: row.get(3)?,
        chain: serde_json::from_str(&chain).unwrap_or_default(),
        attempts: row.get(5)?,
        first_failed_ms: row.get(6)?,
        last_failed_ms: row.get(7)?,
        fingerprint: row.get(8)?,
        event: events::from_row_at(ids, row, 10)?,
    };
    Ok((letter, row.get(9)?))
}

fn from(rest: &str) -> String {
    format!(
        "SELECT {LETTER}, {} FROM dead_letter l JOIN consumer c ON c.id = l.consumer \
         JOIN event e ON e.sequence = l.event {rest}",
        events::columns("e")
    )
}

/// A letter in any state; the number is 0 dead, 1 retrying, 2 resolved, 3 discarded.
pub fn find(conn: &Connection, ids: Ids, id: DeliveryId) -> Result<Option<(Letter, i64)>, Error> {
    conn.prepare_cached(&from("WHERE l.delivery = ?1"))
        .and_then(|mut s| s.query_row([id.0], |row| letter_of(ids, row)).optional())
        .map_err(unread)
}

/// Which letters a listing wants; `None` = any.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Reason name.
    pub reason: Option<String>,
    /// Source of the event.
    pub source: Option<String>,
    /// Type of the event.
    pub kind: Option<String>,
    /// Name of the consumer.
    pub consumer: Option<String>,
    /// Fingerprint.
    pub fingerprint: Option<String>,
}

/// Dead letters, newest death first, those before `before` = (last failure, delivery): at most `limit`, or about
/// [`events::LIST_BYTES_MAX`]; and whether there are more.
pub fn list(
    conn: &Connection,
    ids: Ids,
    filter: &Filter,
    before: Option<(Millis, DeliveryId)>,
    limit: usize,
) -> Result<(Vec<Letter>, bool), Error> {
    let (before_ms, before_id) = before.map_or((i64::MAX, i64::MAX), |(at, id)| (at, id.0));
    let rows_max = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
    let mut sql = String::from("WHERE l.state = 0 AND (l.last_failed_ms, l.delivery) < (?1, ?2)");
    let mut values: Vec<&dyn ToSql> = vec![&before_ms, &before_id];
    let wanted = [
        ("l.reason", &filter.reason),
        ("l.source", &filter.source),
        ("l.type", &filter.kind),
        ("c.name", &filter.consumer),
        ("l.fingerprint", &filter.fingerprint),
    ];
    for (column, value) in &wanted {
        if let Some(value) = value {
            values.push(value);
            sql.push_str(&format!(" AND {column} = ?{}", values.len()));
        }
    }
    values.push(&rows_max);
    let order = "ORDER BY l.last_failed_ms DESC, l.delivery DESC";
    // The page is chosen before any event is read: sorting whole events of thousands of letters would cost gigabytes.
    let page = format!(
        "WHERE l.delivery IN (SELECT l.delivery FROM dead_letter l JOIN consumer c ON c.id = l.consumer {sql} {order} \
         LIMIT ?{}) {order}",
        values.len()
    );
    let mut statement = conn.prepare_cached(&from(&page)).map_err(unread)?;
    let mut rows = statement.query(values.as_slice()).map_err(unread)?;
    let (mut found, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next().map_err(unread)? {
        if found.len() == limit || bytes >= events::LIST_BYTES_MAX {
            return Ok((found, true));
        }
        let (letter, _) = letter_of(ids, row).map_err(unread)?;
        bytes += letter.event.weight() + letter.chain.iter().map(String::len).sum::<usize>();
        found.push(letter);
    }
    Ok((found, false))
}

/// Dead letters per consumer name.
pub fn depth(conn: &Connection) -> Result<Vec<(String, i64)>, Error> {
    conn.prepare_cached(
        "SELECT c.name, count(*) FROM dead_letter l JOIN consumer c ON c.id = l.consumer WHERE l.state = 0 GROUP BY l.consumer",
    )
    .map_err(unread)?
    .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
    .and_then(Iterator::collect)
    .map_err(unread)
}

/// Letters with the same cause.
#[derive(Debug, Clone)]
pub struct Group {
    /// What they share.
    pub fingerprint: String,
    /// Consumer of the newest.
    pub consumer: String,
    /// Reason of the newest.
    pub reason: String,
    /// Outermost error of the newest.
    pub error: String,
    /// How many.
    pub count: i64,
    /// First failure of all.
    pub first_failed_ms: Millis,
    /// Last failure of all.
    pub last_failed_ms: Millis,
}

/// Dead letters by fingerprint, newest failure first; at most 1,000 groups.
pub fn groups(conn: &Connection) -> Result<Vec<Group>, Error> {
    conn.prepare_cached(
        "SELECT l.fingerprint, c.name, l.reason, l.chain, count(*), min(l.first_failed_ms), max(l.last_failed_ms) AS last \
         FROM dead_letter l JOIN consumer c ON c.id = l.consumer WHERE l.state = 0 \
         GROUP BY l.fingerprint ORDER BY last DESC LIMIT 1000",
    )
    .map_err(unread)?
    .query_map([], |row| {
        let chain: String = row.get(3)?;
        let chain: Vec<String> = serde_json::from_str(&chain).unwrap_or_default();
        Ok(Group {
            fingerprint: row.get(0)?,
            consumer: row.get(1)?,
            reason: row.get(2)?,
            error: chain.into_iter().next().unwrap_or_default(),
            count: row.get(4)?,
            first_failed_ms: row.get(5)?,
            last_failed_ms: row.get(6)?,
        })
    })
    .and_then(Iterator::collect)
    .map_err(unread)
}

/// Deliveries of the dead letters with this fingerprint, oldest first; at most `limit`.
fn with_fingerprint(conn: &Connection, fingerprint: &str, limit: usize) -> Result<Vec<DeliveryId>, Error> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    conn.prepare_cached(
        "SELECT delivery FROM dead_letter WHERE state = 0 AND fingerprint = ?1 ORDER BY delivery LIMIT ?2",
    )
    .map_err(unread)?
    .query_map(params![fingerprint, limit], |row| row.get(0).map(DeliveryId))
    .and_then(Iterator::collect)
    .map_err(unread)
}

/// The sequence of a letter's event, for programs that only have its id.
pub fn event_of(conn: &Connection, id: DeliveryId) -> Result<Option<EventSeq>, Error> {
    deliveries::find(conn, id).map(|found| found.map(|(event, _, _)| event))
}
