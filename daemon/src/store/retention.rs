//! Retention: finds what has been kept long enough, and removes it in small steps.
//!
//! Events go in order of their sequence, with their deliveries, failures, settled letters and ended intents: the rows
//! of neighbouring events are neighbours too, so a step is a few range deletions. An event stays while a delivery of it
//! is open, an intent is unsent or was given up not long ago, or a dead letter is kept. What was found on a reading
//! connection is removed by the writer later, unless somebody has an intent sent again in between. What was removed is on record in `pruned`.

use std::ops::AddAssign;

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::Value;

use super::{Tx, chat, events};
use crate::clock::Millis;
use crate::error::Error;
use crate::event::NewEvent;
use crate::id::{EventSeq, Ids};

/// Events that one step looks at.
const STEP_EVENTS: usize = 256;
/// Bytes of data after which a step ends.
const STEP_BYTES: i64 = 1 << 20;
/// Rows of any other table that one step removes.
const STEP_ROWS: i64 = 256;
/// What a row costs besides its data, for estimates, in bytes.
const ROW_BYTES: i64 = 160;
/// Rows of `pruned` that are kept.
const RECORDS_MAX: i64 = 10_000;
/// How the types of the events begin that tell of retention.
const OWN_TYPES: &str = "aman.retention.";
/// Events that are looked through for one whose time is not in the future.
const LOOK_AHEAD: i64 = 100_000;

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("looking for what was kept long enough")(error)
}

fn unwritten(error: rusqlite::Error) -> Error {
    Error::internal("removing what was kept long enough")(error)
}

/// How much was found, or went.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// How many events.
    pub events: i64,
    /// How many of them only tell of earlier runs.
    pub own: i64,
    /// How many deliveries go with them.
    pub deliveries: i64,
    /// About how many bytes.
    pub bytes: i64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.events += other.events;
        self.own += other.own;
        self.deliveries += other.deliveries;
        self.bytes += other.bytes;
    }
}

/// Events with adjacent numbers: what is on record as removed must not span a number that stays.
#[derive(Debug, Clone)]
struct Run {
    first: i64,
    last: i64,
    /// First and last delivery.
    deliveries: Option<(i64, i64)>,
    tally: Tally,
    /// Keys that outlive their event, each with its event and with what is left of that.
    keys: Vec<([u8; 16], i64, String)>,
}

/// Why a step looked no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The step is full.
    More,
    /// The next event came at this time, which is not long enough ago.
    Young(Millis),
    /// There are no more events.
    End,
}

/// Events that may go, found by one look.
#[derive(Debug, Clone)]
pub struct Due {
    runs: Vec<Run>,
    /// How much that is.
    pub tally: Tally,
    /// How many of the events looked at have to stay for now.
    pub held: i64,
    /// The last event that was looked at.
    pub last: EventSeq,
    /// Why it is the last.
    pub stop: Stop,
}

struct Looked {
    sequence: i64,
    received_ms: Millis,
    deliveries: Option<(i64, i64)>,
    bytes: i64,
    keys: Vec<[u8; 16]>,
    held: bool,
    own: bool,
}

// `NOT INDEXED`: by row number. Left alone SQLite may take a partial index over all that is open.
const LOOK: &str = "SELECT e.sequence, e.received_ms, e.delivery_first, e.delivery_count, coalesce(length(e.data), 0), \
    e.source, e.id, e.attributes, e.type, e.delivery_first IS NOT NULL AND (\
    EXISTS (SELECT 1 FROM delivery d NOT INDEXED WHERE d.id >= e.delivery_first \
        AND d.id < e.delivery_first + e.delivery_count AND d.status < 3) OR \
    EXISTS (SELECT 1 FROM dead_letter l NOT INDEXED WHERE l.delivery >= e.delivery_first \
        AND l.delivery < e.delivery_first + e.delivery_count AND l.state < 2) OR \
    EXISTS (SELECT 1 FROM outbox o INDEXED BY outbox_delivery WHERE o.delivery IS NOT NULL \
        AND o.delivery >= e.delivery_first AND o.delivery < e.delivery_first + e.delivery_count \
        AND (o.status < 2 OR o.status > 2 AND o.ended_ms > ?3))) \
    FROM event e WHERE e.sequence > ?1 ORDER BY e.sequence LIMIT ?2";

fn looked_at(row: &Row<'_>) -> rusqlite::Result<Looked> {
    let (first, count): (Option<i64>, Option<i64>) = (row.get(2)?, row.get(3)?);
    let attributes: Option<String> = row.get(7)?;
    let attributes: Value = attributes.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let keyed = NewEvent {
        source: row.get(5)?,
        id: row.get(6)?,
        dedup_key: attributes["dedupkey"].as_str().map(str::to_owned),
        ..NewEvent::default()
    };
    Ok(Looked {
        sequence: row.get(0)?,
        received_ms: row.get(1)?,
        deliveries: first.zip(count).map(|(first, count)| (first, first + count - 1)),
        bytes: row.get(4)?,
        keys: keyed.dedup_keys(),
        own: row.get_ref(8)?.as_str()?.starts_with(OWN_TYPES),
        held: row.get(9)?,
    })
}

/// When an event came at the latest: an event whose time is in the future was stored by a clock that was ahead, and came
/// before the next one that has a believable time.
fn believable(conn: &Connection, sequence: i64, received_ms: Millis, now_ms: Millis) -> Result<Millis, Error> {
    if received_ms <= now_ms {
        return Ok(received_ms);
    }
    conn.prepare_cached(
        "SELECT received_ms FROM event WHERE sequence > ?1 AND sequence < ?1 + ?2 AND received_ms <= ?3 \
         ORDER BY sequence LIMIT 1",
    )
    .and_then(|mut s| s.query_row(params![sequence, LOOK_AHEAD, now_ms], |row| row.get(0)).optional())
    .map(|found| found.unwrap_or(received_ms))
    .map_err(unread)
}

/// Looks at the events after `after` for those that may go: all that came at `cutoff_ms` or before it, with `None` of
/// any age. An intent that was given up after `given_up_ms` holds its event. Gives one step.
pub fn due(
    conn: &Connection,
    ids: Ids,
    after: EventSeq,
    cutoff_ms: Option<Millis>,
    (now_ms, given_up_ms): (Millis, Millis),
) -> Result<Due, Error> {
    let mut due = Due { runs: Vec::new(), tally: Tally::default(), held: 0, last: after, stop: Stop::End };
    let mut statement = conn.prepare_cached(LOOK).map_err(unread)?;
    let limit = i64::try_from(STEP_EVENTS).unwrap_or(i64::MAX);
    let mut rows = statement.query(params![after.0, limit, given_up_ms]).map_err(unread)?;
    let mut looked = 0;
    while let Some(row) = rows.next().map_err(unread)? {
        let one = looked_at(row).map_err(unread)?;
        if let Some(cutoff_ms) = cutoff_ms {
            let came_ms = believable(conn, one.sequence, one.received_ms, now_ms)?;
            if came_ms > cutoff_ms {
                due.stop = Stop::Young(came_ms);
                return Ok(due);
            }
        }
        looked += 1;
        due.last = EventSeq(one.sequence);
        if one.held {
            due.held += 1;
        } else {
            due.take(conn, ids, &one, now_ms)?;
        }
        if looked == STEP_EVENTS || due.tally.bytes >= STEP_BYTES {
            due.stop = Stop::More;
            break;
        }
    }
    Ok(due)
}

impl Due {
    fn take(&mut self, conn: &Connection, ids: Ids, one: &Looked, now_ms: Millis) -> Result<(), Error> {
        let count = one.deliveries.map_or(0, |(first, last)| last - first + 1);
        let bytes = one.bytes + ROW_BYTES * (1 + count);
        let tally = Tally { events: 1, own: i64::from(one.own), deliveries: count, bytes };
        self.tally += tally;
        let mut keys = Vec::new();
        for key in &one.keys {
            let live = conn
                .prepare_cached("SELECT 1 FROM dedup WHERE key = ?1 AND sequence = ?2 AND expires_ms > ?3")
                .and_then(|mut s| s.exists(params![key, one.sequence, now_ms]))
                .map_err(unread)?;
            if live && let Some(event) = events::by_sequence(conn, ids, EventSeq(one.sequence))? {
                keys.push((*key, one.sequence, events::remains(&event)?));
            }
        }
        match self.runs.last_mut().filter(|run| run.last + 1 == one.sequence) {
            Some(run) => {
                run.last = one.sequence;
                run.tally += tally;
                run.keys.append(&mut keys);
                run.deliveries = match (run.deliveries, one.deliveries) {
                    (Some((first, _)), Some((_, last))) => Some((first, last)),
                    (known, None) => known,
                    (None, found) => found,
                };
            }
            None => {
                let (first, last) = (one.sequence, one.sequence);
                self.runs.push(Run { first, last, deliveries: one.deliveries, tally, keys });
            }
        }
        Ok(())
    }
}

/// Removes what [`due`] found, but for what somebody has use for again, and gives what went. Row numbers stay used.
pub fn remove(tx: &mut Tx<'_>, due: &Due, now_ms: Millis) -> Result<Tally, Error> {
    let mut gone = Tally::default();
    for run in &due.runs {
        if let Some((first, last)) = run.deliveries {
            let unsent = "SELECT 1 FROM outbox INDEXED BY outbox_delivery \
                WHERE delivery IS NOT NULL AND delivery >= ?1 AND delivery <= ?2 AND status < 2";
            if tx.conn.prepare_cached(unsent).and_then(|mut s| s.exists([first, last])).map_err(unwritten)? {
                continue;
            }
            for sql in [
                "DELETE FROM failure WHERE delivery >= ?1 AND delivery <= ?2",
                "DELETE FROM dead_letter WHERE delivery >= ?1 AND delivery <= ?2",
                "DELETE FROM notification_cause WHERE delivery >= ?1 AND delivery <= ?2",
                "DELETE FROM outbox WHERE delivery IS NOT NULL AND delivery >= ?1 AND delivery <= ?2",
                "DELETE FROM delivery WHERE id >= ?1 AND id <= ?2",
            ] {
                tx.conn.prepare_cached(sql).and_then(|mut s| s.execute([first, last])).map_err(unwritten)?;
            }
        }
        tx.conn
            .prepare_cached("DELETE FROM event WHERE sequence >= ?1 AND sequence <= ?2")
            .and_then(|mut s| s.execute([run.first, run.last]))
            .map_err(unwritten)?;
        record(tx, run, now_ms)?;
        for (key, sequence, remains) in &run.keys {
            // It may have expired since, and be the key of another event by now.
            tx.conn
                .prepare_cached("UPDATE dedup SET gone = ?3 WHERE key = ?1 AND sequence = ?2")
                .and_then(|mut s| s.execute(params![key, sequence, remains]))
                .map_err(unwritten)?;
        }
        gone += run.tally;
    }
    keep_floors(tx)?;
    Ok(gone)
}

/// Notes the highest row numbers, so that tables that were emptied do not begin anew.
pub(super) fn keep_floors(tx: &Tx<'_>) -> Result<(), Error> {
    for (key, floor) in [("event_floor", tx.counters.sequence), ("delivery_floor", tx.counters.delivery)] {
        tx.conn
            .prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")
            .and_then(|mut s| s.execute(params![key, floor]))
            .map_err(unwritten)?;
    }
    Ok(())
}

/// Notes which sequences went when; what goes on one day is one row where nothing stays in between.
fn record(tx: &Tx<'_>, run: &Run, now_ms: Millis) -> Result<(), Error> {
    const DAY_MS: Millis = 86_400_000;
    let joined = tx
        .conn
        .prepare_cached(
            "UPDATE pruned SET last = ?2, at_ms = ?3 WHERE last = ?1 - 1 AND at_ms / ?4 = ?3 / ?4 \
             AND first = (SELECT max(first) FROM pruned WHERE first < ?1)",
        )
        .and_then(|mut s| s.execute(params![run.first, run.last, now_ms, DAY_MS]))
        .map_err(unwritten)?;
    if joined == 0 {
        tx.conn
            .prepare_cached("INSERT OR REPLACE INTO pruned (first, last, at_ms) VALUES (?1, ?2, ?3)")
            .and_then(|mut s| s.execute(params![run.first, run.last, now_ms]))
            .map_err(unwritten)?;
    }
    Ok(())
}

/// The highest sequence that was removed.
pub fn pruned_to(conn: &Connection) -> Result<EventSeq, Error> {
    conn.prepare_cached("SELECT last FROM pruned ORDER BY first DESC LIMIT 1")
        .and_then(|mut s| s.query_row([], |row| row.get(0)).optional())
        .map(|last| EventSeq(last.unwrap_or(0)))
        .map_err(unread)
}

/// When the event with this sequence was removed; none when it was not, or nobody knows any more.
pub fn pruned_at(conn: &Connection, sequence: EventSeq) -> Result<Option<Millis>, Error> {
    conn.prepare_cached("SELECT at_ms, last FROM pruned WHERE first <= ?1 ORDER BY first DESC LIMIT 1")
        .and_then(|mut s| s.query_row([sequence.0], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?))).optional())
        .map(|found| found.filter(|(_, last)| sequence.0 <= *last).map(|(at_ms, _)| at_ms))
        .map_err(unread)
}

/// When the newest event was stored.
pub fn newest_ms(conn: &Connection) -> Result<Option<Millis>, Error> {
    conn.query_row("SELECT received_ms FROM event ORDER BY sequence DESC LIMIT 1", [], |row| row.get(0))
        .optional()
        .map_err(unread)
}

/// Kinds of rows that have an age of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aged {
    /// Dead letters that nobody decided about.
    DeadLetters,
    /// Messages for the person.
    Notifications,
    /// Ended slots of the cron ledger.
    CronRuns,
    /// Ended instances of workflows, with their journals.
    Instances,
    /// Definitions of workflows that no instance has and no workflow starts with.
    Definitions,
    /// Conversations of persons that nothing was added to, with all that was said.
    Sessions,
    /// The same of conversations that events, schedules and others began.
    BackgroundSessions,
    /// Conversations that were removed, and of which something is left; the cutoff is the present.
    HiddenSessions,
    /// Keys of events and of requests that expired; the cutoff is the present.
    Keys,
    /// Tokens that expired this long ago.
    Tokens,
}

impl Aged {
    /// Tables, primary key, what is due at `?1`, and the time that decides.
    fn tables(self) -> &'static [(&'static str, &'static str, &'static str, &'static str)] {
        match self {
            Aged::DeadLetters => &[("dead_letter", "delivery", "state = 0 AND last_failed_ms <= ?1", "last_failed_ms")],
            Aged::Notifications => &[("notification", "number", "last_ms <= ?1", "last_ms")],
            // A slot that its job's cursor has not passed keeps the job from firing twice.
            Aged::CronRuns => &[(
                "cron_slot",
                "id",
                "status > 1 AND made_ms <= ?1 AND NOT EXISTS \
                 (SELECT 1 FROM cron_job j WHERE j.id = cron_slot.job AND j.cursor_ms < cron_slot.slot_ms)",
                "made_ms",
            )],
            Aged::Instances => &[(
                "workflow_instance",
                "number",
                "status > 2 AND updated_ms <= ?1 \
                 AND NOT EXISTS (SELECT 1 FROM workflow_step s WHERE s.instance = workflow_instance.number)",
                "updated_ms",
            )],
            Aged::Definitions => &[(
                "workflow_definition",
                "digest",
                "created_ms <= ?1 AND NOT EXISTS (SELECT 1 FROM workflow w WHERE w.digest = workflow_definition.digest) \
                 AND NOT EXISTS (SELECT 1 FROM workflow_instance i WHERE i.digest = workflow_definition.digest)",
                "created_ms",
            )],
            Aged::Sessions => &[("session", "number", chat::DUE_PERSONS, "updated_ms")],
            Aged::BackgroundSessions => &[("session", "number", chat::DUE_BACKGROUND, "updated_ms")],
            Aged::HiddenSessions => &[("session", "number", chat::DUE_HIDDEN, "updated_ms")],
            Aged::Keys => &[
                ("dedup", "key", "expires_ms <= ?1", "expires_ms"),
                ("idempotency", "key", "expires_ms <= ?1", "expires_ms"),
            ],
            Aged::Tokens => &[("token", "id", "expires_ms <= ?1", "expires_ms")],
        }
    }
}

/// What one step removed.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// How many rows.
    pub rows: i64,
    /// True when there may be more.
    pub more: bool,
}

/// Removes one step of the rows that are due at `cutoff_ms`, and first what belongs to them.
pub fn remove_aged(tx: &mut Tx<'_>, what: Aged, cutoff_ms: Millis) -> Result<Step, Error> {
    let remove = |(table, key, due): (&str, &str, &str)| {
        let sql = format!("DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE {due} LIMIT ?2)");
        let rows = tx.conn.prepare_cached(&sql).and_then(|mut s| s.execute(params![cutoff_ms, STEP_ROWS]));
        Ok(i64::try_from(rows.map_err(unwritten)?).unwrap_or(i64::MAX))
    };
    if let Aged::Sessions | Aged::BackgroundSessions | Aged::HiddenSessions = what {
        let (rows, more) = chat::remove_due(tx, what.tables()[0].2, cutoff_ms)?;
        return Ok(Step { rows, more });
    }
    let mut parts = 0;
    if what == Aged::Instances {
        let ended = "instance IN (SELECT number FROM workflow_instance WHERE status > 2 AND updated_ms <= ?1)";
        parts = remove(("workflow_step", "instance, number", ended))?;
    }
    let mut rows = 0;
    for (table, key, due, _) in what.tables() {
        rows += remove((table, key, due))?;
    }
    Ok(Step { rows, more: rows + parts > 0 })
}

/// How many rows are due at `cutoff_ms`.
pub fn count_aged(conn: &Connection, what: Aged, cutoff_ms: Millis) -> Result<i64, Error> {
    let one = |(table, _, due, _): &(&str, &str, &str, &str)| {
        let sql = format!("SELECT count(*) FROM {table} WHERE {due}");
        conn.query_row(&sql, [cutoff_ms], |row| row.get::<_, i64>(0)).map_err(unread)
    };
    what.tables().iter().map(one).sum()
}

/// The time of the row that is due first, of kinds that the daemon wakes for.
pub fn oldest_aged(conn: &Connection, what: Aged) -> Result<Option<Millis>, Error> {
    let (table, _, _, time) = what.tables()[0];
    let among = match what {
        Aged::DeadLetters => "WHERE state = 0",
        Aged::CronRuns => "WHERE status > 1",
        Aged::Instances => "WHERE status > 2",
        Aged::Sessions => "WHERE kind = 0",
        Aged::BackgroundSessions => "WHERE kind > 0",
        Aged::Notifications | Aged::Definitions | Aged::HiddenSessions | Aged::Keys | Aged::Tokens => "",
    };
    let sql = format!("SELECT min({time}) FROM {table} {among}");
    conn.prepare_cached(&sql).and_then(|mut s| s.query_row([], |row| row.get(0))).map_err(unread)
}

/// Types that came only before the oldest event that is kept, one step of them.
pub fn types_gone(conn: &Connection) -> Result<Vec<String>, Error> {
    conn.prepare_cached(
        "SELECT type FROM event_type WHERE last_sequence < (SELECT coalesce(min(sequence), 0) FROM event) LIMIT ?1",
    )
    .and_then(|mut s| s.query_map([STEP_ROWS], |row| row.get(0))?.collect())
    .map_err(unread)
}

/// Forgets these types, unless they came again in between.
pub fn forget_types(tx: &mut Tx<'_>, types: &[String]) -> Result<(), Error> {
    let mut statement = tx
        .conn
        .prepare_cached("DELETE FROM event_type WHERE type = ?1 AND last_sequence < (SELECT min(sequence) FROM event)")
        .map_err(unwritten)?;
    types.iter().try_for_each(|kind| statement.execute([kind]).map(drop)).map_err(unwritten)
}

/// Bounds the record of what was removed.
pub fn trim_record(tx: &mut Tx<'_>) -> Result<(), Error> {
    tx.conn
        .execute(
            "DELETE FROM pruned WHERE first <= (SELECT first FROM pruned ORDER BY first DESC LIMIT 1 OFFSET ?1)",
            [RECORDS_MAX],
        )
        .map(drop)
        .map_err(unwritten)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a look at the oldest events costs what these events are, whatever else is stored.
    #[test]
    fn looking_at_the_oldest_events_scans_nothing_else() {
        let conn = Connection::open_in_memory().expect("a database");
        conn.execute_batch(include_str!("../../../schemas/sql/0001_core.sql")).expect("the tables");
        let plan: Vec<String> = conn
            .prepare(&format!("EXPLAIN QUERY PLAN {LOOK}"))
            .and_then(|mut s| s.query_map([0_i64, 1, 0], |row| row.get(3))?.collect())
            .expect("a plan");
        let plan = plan.join("; ");
        for wanted in [
            "SEARCH e USING INTEGER PRIMARY KEY",
            "SEARCH d USING INTEGER PRIMARY KEY",
            "SEARCH l USING INTEGER PRIMARY KEY",
            "SEARCH o USING INDEX outbox_delivery",
        ] {
            assert!(plan.contains(wanted) && !plan.contains("SCAN "), "{wanted}: {plan}");
        }
    }
}
