//! Events: append, find, read in order.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, params};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::Tx;
use crate::clock::Millis;
use crate::error::Error;
use crate::event::{Data, Delivery, Event, NewEvent, Priority, Trust, TypePattern};
use crate::id::{ConsumerId, DeliveryId, EventSeq, Ids, SpanId, TraceId};
use crate::telemetry::traces::Draft;

/// Rows that one page of a long read holds at the most.
pub const PAGE_ROWS: usize = 500;
/// Bytes of data after which a page ends.
pub const PAGE_BYTES: usize = 1 << 20;
/// Rows that one request may look at in search of rare events.
pub const SCAN_ROWS_MAX: usize = 200_000;

/// How long one request may look for rare events.
const SCAN_TIME_MAX: Duration = Duration::from_secs(2);
/// Bytes of events that one listing gives at the most.
pub const LIST_BYTES_MAX: usize = 8 << 20;

const COLUMNS: &str = "sequence, received_ms, source, type, priority, mode, trust, depth, data_kind, data, id, subject, \
    attributes, expires_ms, trace, correlation, causation, cause, principal";

/// An event that passed every check and knows whom it matches.
#[derive(Clone)]
pub struct Prepared {
    /// What was sent.
    pub sent: NewEvent,
    /// How far it is believed.
    pub trust: Trust,
    /// Who brought it in.
    pub principal: String,
    /// When it came.
    pub received_ms: Millis,
    /// What caused it.
    pub cause: Option<Cause>,
    /// Consumers that get it.
    pub matches: Vec<Match>,
    /// What was decided for the consumers whose type pattern matched, as JSON; none when there were none.
    pub decision: Option<String>,
    /// Keys that make it a duplicate of an earlier event.
    pub dedup: Vec<[u8; 16]>,
    /// Until when its keys are kept.
    pub dedup_until_ms: Millis,
    /// For its spans; none when nobody collects any.
    pub draft: Option<Box<Draft>>,
}

/// The event and delivery behind an effect.
#[derive(Clone)]
pub struct Cause {
    /// The causing event.
    pub event: Arc<Event>,
    /// The delivery whose effect it is.
    pub delivery: Option<DeliveryId>,
    /// The span that it comes from, when spans are collected.
    pub span: Option<SpanId>,
}

/// One delivery to make.
#[derive(Debug, Clone, Copy)]
pub struct Match {
    /// Who gets it.
    pub consumer: ConsumerId,
}

/// What became of an append.
pub enum Appended {
    /// Stored as a new event.
    Stored(Arc<Event>),
    /// Already there.
    Duplicate(Arc<Event>),
}

impl Appended {
    /// The stored event, new or old.
    pub fn event(&self) -> &Arc<Event> {
        match self {
            Appended::Stored(event) | Appended::Duplicate(event) => event,
        }
    }
}

/// Counts per type, gathered over a transaction.
pub(super) struct TypeCount {
    count: i64,
    last_ms: Millis,
    last_sequence: i64,
}

fn failed(error: rusqlite::Error) -> Error {
    Error::internal("storing an event")(error)
}

fn unread(error: rusqlite::Error) -> Error {
    Error::internal("reading events")(error)
}

/// Stores an event with its deliveries, or finds the one that has the same key.
pub fn append(tx: &mut Tx<'_>, prepared: Prepared) -> Result<Appended, Error> {
    for key in &prepared.dedup {
        if let Some(event) = find_duplicate(tx, key, prepared.received_ms)? {
            let event = Arc::new(event);
            tx.committed.drafts.extend(prepared.draft.map(|draft| (Arc::clone(&event), draft, true)));
            return Ok(Appended::Duplicate(event));
        }
    }
    let sequence = tx.next_sequence();
    let made_id = prepared.sent.id.is_none().then(|| tx.ids().event(prepared.received_ms, sequence));
    let inherited = prepared.cause.as_ref().map(|cause| cause.event.trace).or(prepared.sent.trace);
    let trace = match (inherited, made_id) {
        (Some(trace), _) => trace,
        (None, Some(made)) => TraceId(made.into_bytes()),
        (None, None) => TraceId::random(),
    };
    let cause = prepared.cause.as_ref();
    let event = Event {
        sequence,
        received_ms: prepared.received_ms,
        made_id,
        trace,
        correlation: cause.map(|c| c.event.correlation.clone().unwrap_or_else(|| c.event.id())),
        causation: cause.map(|c| c.event.id()),
        cause: cause.map(|c| c.event.sequence),
        depth: cause.map_or(0, |c| c.event.depth + 1),
        trust: prepared.trust,
        principal: prepared.principal,
        sent: prepared.sent,
    };
    let first = deliver(tx, &event, &prepared.matches)?;
    let decision = prepared.decision.as_deref();
    insert(tx, &event, cause.and_then(|c| c.delivery), first, prepared.matches.len(), decision)?;
    for key in &prepared.dedup {
        tx.conn
            .prepare_cached("INSERT OR REPLACE INTO dedup (key, sequence, expires_ms, gone) VALUES (?1, ?2, ?3, NULL)")
            .and_then(|mut s| s.execute(params![key, sequence.0, prepared.dedup_until_ms]))
            .map_err(failed)?;
    }
    count_type(tx, &event);
    let event = Arc::new(event);
    tx.committed.events.push(Arc::clone(&event));
    tx.committed.drafts.extend(prepared.draft.map(|draft| (Arc::clone(&event), draft, false)));
    Ok(Appended::Stored(event))
}

fn deliver(tx: &mut Tx<'_>, event: &Event, matches: &[Match]) -> Result<Option<i64>, Error> {
    let mut first = None;
    for to in matches {
        let id = tx.next_delivery();
        first.get_or_insert(id.0);
        let rank = event.sent.priority.code();
        tx.conn
            .prepare_cached(
                "INSERT INTO delivery (id, event, consumer, status, rank, partition, attempt) VALUES (?1,?2,?3,0,?4,?5,0)",
            )
            .and_then(|mut s| {
                s.execute(params![id.0, event.sequence.0, to.consumer.0, rank, event.sent.partition_key])
            })
            .map_err(failed)?;
        tx.committed.deliveries += 1;
        tx.wake(to.consumer, event.sent.priority);
    }
    Ok(first)
}

fn insert(
    tx: &Tx<'_>,
    event: &Event,
    cause_delivery: Option<DeliveryId>,
    delivery_first: Option<i64>,
    delivery_count: usize,
    decision: Option<&str>,
) -> Result<(), Error> {
    let sent = &event.sent;
    let (data_kind, data): (i64, Option<&[u8]>) = match &sent.data {
        Data::None => (0, None),
        Data::Json(text) => (1, Some(text.as_bytes())),
        Data::Text(text) => (2, Some(text.as_bytes())),
        Data::Binary(bytes) => (3, Some(bytes)),
    };
    let own_trace = event.made_id.is_some_and(|made| made.into_bytes() == event.trace.0);
    let count = delivery_first.map(|_| i64::try_from(delivery_count).unwrap_or(i64::MAX));
    tx.conn
        .prepare_cached(
            "INSERT INTO event (sequence, received_ms, source, type, priority, mode, trust, depth, data_kind, data, id, \
             subject, attributes, expires_ms, trace, correlation, causation, cause, cause_delivery, principal, \
             delivery_first, delivery_count, decision) \
             VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?19,?20,?21,?22,?23)",
        )
        .and_then(|mut s| {
            s.execute(params![
                event.sequence.0,
                event.received_ms,
                sent.source,
                sent.kind,
                sent.priority.code(),
                sent.delivery.code(),
                event.trust.code(),
                event.depth,
                data_kind,
                data,
                sent.id,
                sent.subject,
                attributes(sent),
                sent.expires_ms,
                (!own_trace).then_some(event.trace.0),
                event.correlation,
                event.causation,
                event.cause.map(|c| c.0),
                cause_delivery.map(|d| d.0),
                (event.principal != OWNER).then_some(&event.principal),
                delivery_first,
                count,
                decision,
            ])
        })
        .map(|_| ())
        .map_err(failed)
}

/// The principal of the static token; stored as NULL.
pub const OWNER: &str = "owner";

fn attributes(sent: &NewEvent) -> Option<String> {
    let named = [
        ("agentid", &sent.agent_id),
        ("dedupkey", &sent.dedup_key),
        ("partitionkey", &sent.partition_key),
        ("time", &sent.time),
        ("datacontenttype", &sent.content_type),
    ];
    if sent.extensions.is_empty() && named.iter().all(|(_, value)| value.is_none()) {
        return None;
    }
    let mut all = sent.extensions.clone();
    for (name, value) in named {
        if let Some(value) = value {
            all.insert(name.to_owned(), Value::String(value.clone()));
        }
    }
    Some(Value::Object(all).to_string())
}

fn find_duplicate(tx: &Tx<'_>, key: &[u8; 16], now_ms: Millis) -> Result<Option<Event>, Error> {
    let found: Option<(i64, Option<String>)> = tx
        .conn
        .prepare_cached("SELECT sequence, gone FROM dedup WHERE key = ?1 AND expires_ms > ?2")
        .and_then(|mut s| s.query_row(params![key, now_ms], |row| Ok((row.get(0)?, row.get(1)?))).optional())
        .map_err(failed)?;
    match found {
        Some((sequence, Some(gone))) => Ok(Gone::restore(tx.ids(), EventSeq(sequence), &gone)),
        Some((sequence, None)) => by_sequence(tx.conn, tx.ids(), EventSeq(sequence)),
        None => Ok(None),
    }
}

/// What is left of an event that retention removed while one of its keys was still in force: as much as the answer to
/// a duplicate tells.
#[derive(serde::Serialize, serde::Deserialize)]
struct Gone {
    at_ms: Millis,
    id: Option<String>,
    source: String,
    kind: String,
    agent_id: Option<String>,
    trace: String,
}

impl Gone {
    fn restore(ids: Ids, sequence: EventSeq, text: &str) -> Option<Event> {
        let gone: Gone = serde_json::from_str(text).ok()?;
        Some(Event {
            sequence,
            received_ms: gone.at_ms,
            made_id: gone.id.is_none().then(|| ids.event(gone.at_ms, sequence)),
            trace: gone.trace.parse().ok()?,
            correlation: None,
            causation: None,
            cause: None,
            depth: 0,
            trust: Trust::Unknown,
            principal: OWNER.to_owned(),
            sent: NewEvent {
                id: gone.id,
                source: gone.source,
                kind: gone.kind,
                agent_id: gone.agent_id,
                ..NewEvent::default()
            },
        })
    }
}

/// What of `event` is to outlive it for the keys that are still in force, as JSON.
pub(super) fn remains(event: &Event) -> Result<String, Error> {
    serde_json::to_string(&Gone {
        at_ms: event.received_ms,
        id: event.sent.id.clone(),
        source: event.sent.source.clone(),
        kind: event.sent.kind.clone(),
        agent_id: event.sent.agent_id.clone(),
        trace: event.trace.to_string(),
    })
    .map_err(Error::internal("encoding what is left of an event"))
}

fn count_type(tx: &mut Tx<'_>, event: &Event) {
    let seen = TypeCount { count: 1, last_ms: event.received_ms, last_sequence: event.sequence.0 };
    add_count(&mut tx.types, event.sent.kind.clone(), seen);
}

/// Adds `seen` to the counts of a transaction.
pub(super) fn add_count(types: &mut HashMap<String, TypeCount>, kind: String, seen: TypeCount) {
    match types.entry(kind) {
        Entry::Vacant(new) => {
            new.insert(seen);
        }
        Entry::Occupied(known) => {
            let known = known.into_mut();
            known.count += seen.count;
            known.last_ms = known.last_ms.max(seen.last_ms);
            known.last_sequence = known.last_sequence.max(seen.last_sequence);
        }
    }
}

/// Adds the transaction's counts to the table; called once, before the commit.
pub(super) fn flush_types(tx: &mut Tx<'_>) -> rusqlite::Result<()> {
    for (kind, seen) in tx.types.drain() {
        tx.conn
            .prepare_cached(
                "INSERT INTO event_type (type, count, last_ms, last_sequence) VALUES (?1, ?2, ?3, ?4) \
                 ON CONFLICT (type) DO UPDATE SET count = count + ?2, last_ms = ?3, last_sequence = ?4",
            )?
            .execute(params![kind, seen.count, seen.last_ms, seen.last_sequence])?;
    }
    Ok(())
}

/// Reads one event row that was selected by `select`.
fn from_row(ids: Ids, row: &Row<'_>) -> rusqlite::Result<Event> {
    from_row_at(ids, row, 0)
}

/// Reads an event whose columns begin at `at`.
pub(super) fn from_row_at(ids: Ids, row: &Row<'_>, at: usize) -> rusqlite::Result<Event> {
    let sequence = EventSeq(row.get(at)?);
    let received_ms: Millis = row.get(at + 1)?;
    let data = match row.get::<_, i64>(at + 8)? {
        0 => Data::None,
        1 => Data::Json(text_of(row, at + 9)?),
        2 => Data::Text(text_of(row, at + 9)?),
        _ => Data::Binary(row.get(at + 9)?),
    };
    let id: Option<String> = row.get(at + 10)?;
    let made_id = id.is_none().then(|| ids.event(received_ms, sequence));
    let trace: Option<[u8; 16]> = row.get(at + 14)?;
    let mut sent = NewEvent {
        id,
        source: row.get(at + 2)?,
        kind: row.get(at + 3)?,
        subject: row.get(at + 11)?,
        data,
        priority: Priority::of_code(row.get(at + 4)?),
        delivery: Delivery::of_code(row.get(at + 5)?),
        expires_ms: row.get(at + 13)?,
        ..NewEvent::default()
    };
    if let Some(attributes) = row.get_ref(at + 12)?.as_str_or_null()? {
        restore_attributes(&mut sent, attributes);
    }
    Ok(Event {
        sequence,
        received_ms,
        made_id,
        trace: trace.map(TraceId).or(made_id.map(|made| TraceId(made.into_bytes()))).unwrap_or(TraceId([0; 16])),
        correlation: row.get(at + 15)?,
        causation: row.get(at + 16)?,
        cause: row.get::<_, Option<i64>>(at + 17)?.map(EventSeq),
        depth: row.get(at + 7)?,
        trust: Trust::of_code(row.get(at + 6)?),
        principal: row.get::<_, Option<String>>(at + 18)?.unwrap_or_else(|| OWNER.to_owned()),
        sent,
    })
}

fn text_of(row: &Row<'_>, column: usize) -> rusqlite::Result<String> {
    String::from_utf8(row.get(column)?)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, Box::new(e)))
}

fn restore_attributes(sent: &mut NewEvent, attributes: &str) {
    let mut all: Map<String, Value> = serde_json::from_str(attributes).unwrap_or_default();
    let mut take = |name: &str| match all.remove(name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    sent.agent_id = take("agentid");
    sent.dedup_key = take("dedupkey");
    sent.partition_key = take("partitionkey");
    sent.time = take("time");
    sent.content_type = take("datacontenttype");
    sent.extensions = all;
}

pub(super) fn columns(alias: &str) -> String {
    COLUMNS.split(", ").map(|column| format!("{alias}.{}", column.trim())).collect::<Vec<_>>().join(", ")
}

fn select<'c>(conn: &'c Connection, rest: &str) -> Result<CachedStatement<'c>, Error> {
    conn.prepare_cached(&format!("SELECT {COLUMNS} FROM event {rest}")).map_err(unread)
}

/// The event with this sequence.
pub fn by_sequence(conn: &Connection, ids: Ids, sequence: EventSeq) -> Result<Option<Event>, Error> {
    select(conn, "WHERE sequence = ?1")?.query_row([sequence.0], |row| from_row(ids, row)).optional().map_err(unread)
}

/// The events that have this id: none, one, or one for each of several sources. At most 100.
pub fn by_id(conn: &Connection, ids: Ids, id: &str, source: Option<&str>) -> Result<Vec<Event>, Error> {
    let mut found: Vec<Event> = select(conn, "WHERE id = ?1 ORDER BY sequence DESC LIMIT 100")?
        .query_map([id], |row| from_row(ids, row))
        .and_then(Iterator::collect)
        .map_err(unread)?;
    let made = Uuid::parse_str(id).ok().and_then(|uuid| ids.sequence_of(uuid));
    if let Some((at_ms, sequence)) = made
        && let Some(event) = by_sequence(conn, ids, sequence)?
        && event.received_ms == at_ms
        && event.made_id.is_some()
    {
        found.push(event);
    }
    found.retain(|event| source.is_none_or(|source| event.sent.source == source));
    // The same source may reuse an id once the dedup window is over: the newest is meant.
    let mut seen = std::collections::HashSet::new();
    found.retain(|event| seen.insert(event.sent.source.clone()));
    Ok(found)
}

/// Events of a trace in order of sequence: the first `limit` of them or about [`LIST_BYTES_MAX`], and whether there are
/// more.
pub fn by_trace(conn: &Connection, ids: Ids, trace: TraceId, limit: usize) -> Result<(Vec<Event>, bool), Error> {
    let mut found: Vec<Event> = Vec::new();
    if let Some((at_ms, sequence)) = ids.sequence_of(Uuid::from_bytes(trace.0))
        && let Some(event) = by_sequence(conn, ids, sequence)?
        && event.received_ms == at_ms
        && event.trace == trace
    {
        found.push(event);
    }
    let mut statement = select(conn, "WHERE trace = ?1 ORDER BY sequence")?;
    let mut rows = statement.query([trace.0]).map_err(unread)?;
    let mut bytes: usize = found.iter().map(Event::weight).sum();
    while let Some(row) = rows.next().map_err(unread)? {
        if found.len() >= limit || bytes >= LIST_BYTES_MAX {
            return Ok((found, true));
        }
        let event = from_row(ids, row).map_err(unread)?;
        bytes += event.weight();
        found.push(event);
    }
    Ok((found, false))
}

/// Events that `cause` had as effects, each with the delivery that it came from; without their data.
pub fn effects_of(conn: &Connection, ids: Ids, cause: EventSeq) -> Result<Vec<(Event, Option<DeliveryId>)>, Error> {
    let columns = COLUMNS.replace("data_kind, data,", "0, NULL,");
    conn.prepare_cached(&format!(
        "SELECT {columns}, cause_delivery FROM event WHERE cause = ?1 ORDER BY sequence LIMIT 1000"
    ))
    .map_err(unread)?
    .query_map([cause.0], |row| Ok((from_row(ids, row)?, row.get::<_, Option<i64>>(19)?.map(DeliveryId))))
    .and_then(Iterator::collect)
    .map_err(unread)
}

/// The stored decision of an event.
pub fn decision(conn: &Connection, sequence: EventSeq) -> Result<Option<String>, Error> {
    conn.prepare_cached("SELECT decision FROM event WHERE sequence = ?1")
        .and_then(|mut s| s.query_row([sequence.0], |row| row.get(0)).optional())
        .map(Option::flatten)
        .map_err(unread)
}

/// The next events after `since`, in order; a page of at most [`PAGE_ROWS`] or about [`PAGE_BYTES`].
pub fn after(conn: &Connection, ids: Ids, since: EventSeq) -> Result<Vec<Event>, Error> {
    let mut statement = select(conn, "WHERE sequence > ?1 ORDER BY sequence LIMIT ?2")?;
    let rows_max = i64::try_from(PAGE_ROWS).unwrap_or(i64::MAX);
    let mut rows = statement.query(params![since.0, rows_max]).map_err(unread)?;
    let (mut page, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next().map_err(unread)? {
        let event = from_row(ids, row).map_err(unread)?;
        bytes += event.weight();
        page.push(event);
        if bytes >= PAGE_BYTES {
            break;
        }
    }
    Ok(page)
}

/// Which events a listing wants.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Any of these type patterns; empty = all.
    pub types: Vec<TypePattern>,
    /// Exactly this source.
    pub source: Option<String>,
}

impl Filter {
    fn wants_row(&self, row: &Row<'_>) -> rusqlite::Result<bool> {
        let (source, kind) = (row.get_ref(2)?.as_str()?, row.get_ref(3)?.as_str()?);
        Ok((self.types.is_empty() || self.types.iter().any(|p| p.matches(kind)))
            && self.source.as_ref().is_none_or(|wanted| wanted == source))
    }
}

/// Events before `before` (none = from the newest), newest first; and from where to go on, when there may be more.
///
/// Looks at no more than [`SCAN_ROWS_MAX`] rows: a page in search of rare events may hold fewer than `limit`.
pub fn recent(
    conn: &Connection,
    ids: Ids,
    filter: &Filter,
    before: Option<EventSeq>,
    limit: usize,
) -> Result<(Vec<Event>, Option<EventSeq>), Error> {
    let mut from = before.map_or(i64::MAX, |b| b.0);
    if !filter.types.is_empty() {
        let newest = types(conn)?
            .into_iter()
            .filter(|t| filter.types.iter().any(|p| p.matches(&t.kind)))
            .map(|t| t.last_sequence.0)
            .max();
        let Some(newest) = newest else { return Ok((Vec::new(), None)) };
        from = from.min(newest.saturating_add(1));
    }
    let mut statement = select(conn, "WHERE sequence < ?1 ORDER BY sequence DESC")?;
    let mut rows = statement.query([from]).map_err(unread)?;
    let (mut found, mut looked_at, mut bytes) = (Vec::new(), 0, 0);
    let until = Instant::now() + SCAN_TIME_MAX;
    while let Some(row) = rows.next().map_err(unread)? {
        looked_at += 1;
        let sequence = EventSeq(row.get(0).map_err(unread)?);
        // Type and source are looked at before the rest of the row is read.
        if filter.wants_row(row).map_err(unread)? {
            if found.len() == limit || bytes >= LIST_BYTES_MAX {
                return Ok((found, Some(EventSeq(sequence.0 + 1))));
            }
            let event = from_row(ids, row).map_err(unread)?;
            bytes += event.weight();
            found.push(event);
        }
        if looked_at >= SCAN_ROWS_MAX || (looked_at % 256 == 0 && Instant::now() >= until) {
            return Ok((found, Some(sequence)));
        }
    }
    Ok((found, None))
}

/// A type that was seen.
#[derive(Debug, Clone)]
pub struct SeenType {
    /// The type.
    pub kind: String,
    /// Events of it that were ever stored.
    pub count: i64,
    /// When the newest was stored.
    pub last_ms: Millis,
    /// Sequence of the newest.
    pub last_sequence: EventSeq,
}

/// All types that were ever seen, by name.
pub fn types(conn: &Connection) -> Result<Vec<SeenType>, Error> {
    conn.prepare_cached("SELECT type, count, last_ms, last_sequence FROM event_type ORDER BY type")
        .map_err(unread)?
        .query_map([], |row| {
            Ok(SeenType {
                kind: row.get(0)?,
                count: row.get(1)?,
                last_ms: row.get(2)?,
                last_sequence: EventSeq(row.get(3)?),
            })
        })
        .and_then(Iterator::collect)
        .map_err(unread)
}

/// The oldest event that is kept.
pub fn oldest(conn: &Connection) -> Result<Option<EventSeq>, Error> {
    conn.query_row("SELECT min(sequence) FROM event", [], |row| row.get::<_, Option<i64>>(0))
        .map(|found| found.map(EventSeq))
        .map_err(unread)
}

/// The first event after `since` that is kept.
pub fn next_after(conn: &Connection, since: EventSeq) -> Result<Option<EventSeq>, Error> {
    conn.prepare_cached("SELECT min(sequence) FROM event WHERE sequence > ?1")
        .and_then(|mut s| s.query_row([since.0], |row| row.get::<_, Option<i64>>(0)))
        .map(|found| found.map(EventSeq))
        .map_err(unread)
}

/// An answer kept for an `Idempotency-Key`: hash of the request body, status, JSON answer.
pub struct KeptAnswer {
    /// Hash of the body that it answered.
    pub body: [u8; 32],
    /// HTTP status.
    pub status: u16,
    /// JSON answer.
    pub answer: String,
}

/// The answer that was given for `key`, unless it is too old.
pub fn kept_answer(conn: &Connection, key: &[u8; 32], now_ms: Millis) -> Result<Option<KeptAnswer>, Error> {
    conn.prepare_cached("SELECT body, status, answer FROM idempotency WHERE key = ?1 AND expires_ms > ?2")
        .and_then(|mut s| {
            s.query_row(params![key, now_ms], |row| {
                Ok(KeptAnswer { body: row.get(0)?, status: row.get(1)?, answer: row.get(2)? })
            })
            .optional()
        })
        .map_err(unread)
}

/// Within a transaction: the answer that was given for `key`.
pub fn kept_answer_in(tx: &Tx<'_>, key: &[u8; 32], now_ms: Millis) -> Result<Option<KeptAnswer>, Error> {
    kept_answer(tx.conn, key, now_ms)
}

/// Keeps an answer for `key` until `expires_ms`.
pub fn keep_answer(tx: &Tx<'_>, key: &[u8; 32], kept: &KeptAnswer, expires_ms: Millis) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "INSERT OR REPLACE INTO idempotency (key, body, status, answer, expires_ms) VALUES (?1,?2,?3,?4,?5)",
        )
        .and_then(|mut s| s.execute(params![key, kept.body, kept.status, kept.answer, expires_ms]))
        .map(|_| ())
        .map_err(failed)
}
