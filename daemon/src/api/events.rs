//! Events: push, recent, dump, trace, types.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use hyper::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use super::body::{self, Reply};
use super::parse::{self, Pushed};
use super::problem::Problem;
use super::query::{self, Query};
use super::{App, Call, again};
use crate::bus::explain::Considered;
use crate::bus::{Accepted, Idempotency, Origin, Publish};
use crate::clock::rfc3339;
use crate::error::Error;
use crate::event::{Event, View};
use crate::id::{EventSeq, Ids, TraceId};
use crate::redact;
use crate::store::deliveries::{self, Record};
use crate::store::{events, meant, retention};

const PATTERNS_MAX: usize = 64;
/// Events of one trace that are shown.
const TRACE_EVENTS_MAX: usize = 1000;

/// `POST /events/push`: stores events durably, then answers 202 with their ids and sequences.
pub(super) async fn push(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let dry_run = Query::read(&call, &["dry_run"])?.flag("dry_run", false)?;
    let bytes = call.bytes().await?;
    let Pushed { events, batch } = parse::push(&call.headers, &bytes, call.parent, app.clock.now_ms())?;
    let principal = call.principal.as_ref().ok_or_else(|| Problem::unauthorized(Problem::HOW_TO_SHOW))?;
    let origin = Origin { principal: principal.name.to_string(), trust: principal.trust, internal: false };
    let alone_in_batch = batch && events.len() == 1;
    let idempotency = idempotency(&call, &origin.principal, &bytes)?;
    let named = |error: Error| if alone_in_batch { error.at("/0") } else { error };
    if dry_run {
        let targets: Vec<Value> = events
            .iter()
            .map(|event| json!({ "type": redact::text(&event.kind), "target": redact::text(&target(event.agent_id.as_deref())) }))
            .collect();
        let publish = Publish { events, origin, idempotency: None, state: None };
        let considered = app.bus.preview(publish).await.map_err(named)?;
        return preview(targets, considered, batch);
    }
    let publish = Publish { events, origin, idempotency, state: None };
    let accepted = app.bus.publish(publish).await.map_err(named)?;
    Ok(accepted_reply(&accepted, batch))
}

fn target(agent_id: Option<&str>) -> String {
    agent_id.map_or_else(|| "global".to_owned(), |agent| format!("agent:{agent}"))
}

fn preview(targets: Vec<Value>, considered: Vec<Vec<Considered>>, batch: bool) -> Result<Reply, Problem> {
    let mut items: Vec<Value> = targets;
    for (item, considered) in items.iter_mut().zip(considered) {
        let matched: Vec<&str> = considered.iter().filter(|c| c.matched).map(|c| c.consumer.as_str()).collect();
        item["matched"] = json!(matched);
        item["considered"] = json!(considered);
        item["dry_run"] = true.into();
    }
    if batch { body::ok(&json!({ "dry_run": true, "items": items })) } else { body::ok(&items.pop()) }
}

/// What became of pushed events.
pub(super) fn accepted_reply(accepted: &[Accepted], batch: bool) -> Reply {
    let mut out = Vec::with_capacity(192 * accepted.len().max(1) + 16);
    if batch {
        out.extend_from_slice(b"{\"items\":[");
    }
    for (n, one) in accepted.iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        write_accepted(&mut out, one);
    }
    if batch {
        out.extend_from_slice(b"]}");
    }
    let mut reply = body::raw(StatusCode::ACCEPTED, out);
    if let [one] = accepted {
        reply.trace = one.trace_id.parse().ok();
    }
    reply
}

fn write_accepted(out: &mut Vec<u8>, one: &Accepted) {
    let text = |out: &mut Vec<u8>, text: &str| drop(serde_json::to_writer(out, text));
    out.extend_from_slice(b"{\"id\":");
    text(out, &one.id);
    let _ = write!(out, ",\"sequence\":{},\"type\":", one.sequence);
    text(out, &one.kind);
    out.extend_from_slice(b",\"trace_id\":");
    text(out, &one.trace_id);
    out.extend_from_slice(b",\"target\":");
    match &one.agent_id {
        None => out.extend_from_slice(b"\"global\""),
        Some(agent) => text(out, &target(Some(agent))),
    }
    let _ = write!(out, ",\"deduplicated\":{}}}", one.deduplicated);
}

/// The request as far as it must be the same for the same `Idempotency-Key`.
fn idempotency(call: &Call, principal: &str, bytes: &[u8]) -> Result<Option<Idempotency>, Error> {
    let key = again::key(&call.headers, principal, &call.route.route.path)?;
    Ok(key.map(|key| Idempotency { key, body: again::hash(&[bytes, &attributes(&call.headers)]) }))
}

/// The headers that are part of an event.
fn attributes(headers: &HeaderMap) -> Vec<u8> {
    let mut lines: Vec<Vec<u8>> = headers
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("ce-") || *name == "content-type")
        .map(|(name, value)| [name.as_str().as_bytes(), b":", value.as_bytes(), b"\n"].concat())
        .collect();
    lines.sort();
    lines.concat()
}

/// `POST /inject-event`: as push, for tests.
pub(super) async fn inject(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    if !app.tuned.load().debug_endpoints {
        let detail =
            "This route is for tests. Set debug.force_enable_debug_endpoints = true to use it, or POST /events/push.";
        return Err(Problem::new((StatusCode::FORBIDDEN, "debug_disabled"), detail));
    }
    push(app, call).await
}

/// Appends `"name":[event,…]`.
pub(super) fn write_events<'a>(out: &mut Vec<u8>, name: &str, events: impl Iterator<Item = &'a Event>) {
    let _ = write!(out, "\"{name}\":[");
    for (n, event) in events.enumerate() {
        if n > 0 {
            out.push(b',');
        }
        event.write_json(out, View::Full);
    }
    out.push(b']');
}

/// Appends `,"name":value`.
pub(super) fn write_member(out: &mut Vec<u8>, name: &str, value: &Value) {
    let _ = write!(out, ",\"{name}\":{value}");
}

/// `GET /events/recent`: newest first.
pub(super) async fn recent(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["limit", "types", "source", "cursor"])?;
    let filter = events::Filter { types: query.patterns("types", PATTERNS_MAX)?, source: query.text("source") };
    let (limit, before) = (query.limit()?, query.cursor::<1>("recent")?.map(|[at]| EventSeq(at)));
    let ids = app.store.ids();
    let (found, next) = app.store.read(move |conn| events::recent(conn, ids, &filter, before, limit)).await?;
    let mut out = b"{".to_vec();
    write_events(&mut out, "items", found.iter());
    let next = next.map(|at| query::cursor("recent", &[at.0]));
    write_member(&mut out, "next_cursor", &json!(next));
    out.push(b'}');
    Ok(body::raw(StatusCode::OK, out))
}

/// `GET /events/types`, by name: those that were seen, and those that have a schema.
pub(super) async fn types(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["limit", "cursor"])?;
    let mut all: BTreeMap<String, Value> = BTreeMap::new();
    for seen in app.store.read(events::types).await? {
        let shown = json!({ "type": seen.kind, "count": seen.count, "last_seen": rfc3339(seen.last_ms) });
        all.insert(seen.kind, shown);
    }
    for (kind, schema) in app.bus.types().all() {
        let unseen = || json!({ "type": kind, "count": 0, "last_seen": null });
        all.entry(kind.to_owned()).or_insert_with(unseen)["schema"] = schema.clone();
    }
    query.page("types", all.into_values())
}

/// The one event that the path's `id` and the query's `source` mean: its id, else its sequence number, the id of one of its
/// deliveries, or a beginning of an id that fits no other.
pub(super) async fn find(app: &App, id: &str, source: Option<String>) -> Result<Event, Problem> {
    let (ids, wanted) = (app.store.ids(), id.to_owned());
    let (mut found, whole) = app
        .store
        .read(move |conn| {
            let named = events::by_id(conn, ids, &wanted, source.as_deref())?;
            if !named.is_empty() {
                return Ok::<_, Error>((named, true));
            }
            let mut meant = meant::events(conn, ids, &wanted)?;
            meant.retain(|event| source.as_ref().is_none_or(|source| event.sent.source == *source));
            Ok((meant, false))
        })
        .await?;
    if found.len() > 1 {
        let several = |name: fn(&Event) -> String| found.iter().take(10).map(name).collect::<Vec<_>>().join(", ");
        let reason = if whole {
            let sources = several(|event| event.sent.source.clone());
            format!("Several sources used this id: {sources}. Say which with ?source= (--source).")
        } else {
            format!("Several ids begin so: {}, … Give more of the one you mean.", several(Event::id))
        };
        return Err(Error::conflict("ambiguous_id", reason).into());
    }
    match found.pop() {
        Some(event) => Ok(event),
        None => {
            let made = Uuid::parse_str(id).ok().and_then(|made| app.store.ids().sequence_of(made));
            let was = made.map(|(_, sequence)| sequence).or(id.parse().ok().map(EventSeq));
            Err(absent(app, "event", id, was).await?)
        }
    }
}

/// Why there is no such thing: `was` is where the event stood if this database ever had it.
async fn absent(app: &App, kind: &'static str, id: &str, was: Option<EventSeq>) -> Result<Problem, Error> {
    let head = app.live.head();
    let Some(sequence) = was.filter(|sequence| *sequence <= head) else { return Ok(Error::not_found(kind, id).into()) };
    let at_ms = app.store.read(move |conn| retention::pruned_at(conn, sequence)).await?;
    Ok(match at_ms {
        Some(at_ms) => pruned(kind, id, at_ms),
        None => Error::not_found(kind, id).into(),
    })
}

/// 404 for what was there and is no more.
pub(super) fn pruned(kind: &str, id: &str, at_ms: i64) -> Problem {
    let detail = format!(
        "The {kind} '{id}' was removed by retention on {}. How long events are kept is bus.retention.max_age.",
        rfc3339(at_ms)
    );
    Problem::new((StatusCode::NOT_FOUND, "pruned"), detail)
}

/// A delivery, as every route shows it.
pub(super) fn delivery_json(ids: Ids, received_ms: i64, record: &Record) -> Value {
    let failures: Vec<Value> = record
        .failures
        .iter()
        .map(|(attempt, at_ms, chain)| json!({ "attempt": attempt, "at": rfc3339(*at_ms), "error_chain": chain }))
        .collect();
    json!({
        "id": ids.delivery(received_ms, record.id).to_string(),
        "consumer": record.consumer,
        "status": record.status.name(),
        "attempt": record.attempt,
        "next_at": record.next_ms.map(rfc3339),
        "error": record.failures.last().and_then(|(_, _, chain)| chain.first()),
        "ended_at": record.ended_ms.map(rfc3339),
        "result": record.result,
        "failures": failures,
    })
}

/// `GET /events/dump/{id}`
pub(super) async fn dump(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["source"])?;
    let event = find(&app, call.param("id"), query.text("source")).await?;
    let sequence = event.sequence;
    let records = app.store.read(move |conn| deliveries::of_event(conn, sequence)).await?;
    let ids = app.store.ids();
    let records: Vec<Value> = records.iter().map(|record| delivery_json(ids, event.received_ms, record)).collect();
    let mut out = b"{\"event\":".to_vec();
    event.write_json(&mut out, View::Full);
    write_member(&mut out, "deliveries", &records.into());
    out.push(b'}');
    Ok(body::raw(StatusCode::OK, out))
}

/// `GET /events/trace/{trace_id}`: the events of a trace in order, who caused whom, and what was delivered.
pub(super) async fn trace(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let text = call.param("trace_id");
    let wrong = || Error::invalid("trace_id", "must be 32 lower-case hex digits, not all zero.");
    let trace: TraceId = text.parse().map_err(|()| wrong())?;
    let ids = app.store.ids();
    let (found, truncated) = app
        .store
        .read(move |conn| {
            let (found, mut truncated) = events::by_trace(conn, ids, trace, TRACE_EVENTS_MAX)?;
            let (mut shown, mut failures) = (Vec::new(), 0);
            for event in found {
                // What failed is told with each delivery, and may be more than the events.
                if failures >= events::LIST_BYTES_MAX {
                    truncated = true;
                    break;
                }
                let records = deliveries::of_event(conn, event.sequence)?;
                failures += records.iter().map(Record::weight).sum::<usize>();
                shown.push((event, records));
            }
            Ok::<_, Error>((shown, truncated))
        })
        .await?;
    if found.is_empty() {
        let was = app.store.ids().sequence_of(Uuid::from_bytes(trace.0)).map(|(_, sequence)| sequence);
        return Err(absent(&app, "trace", text, was).await?);
    }
    let edges: Vec<Value> = found
        .iter()
        .filter_map(|(event, _)| Some(json!({ "from": event.causation.as_ref()?, "to": event.id() })))
        .collect();
    let mut records = Vec::new();
    for (event, of_event) in &found {
        for record in of_event {
            let mut shown = delivery_json(ids, event.received_ms, record);
            shown["event_id"] = event.id().into();
            records.push(shown);
        }
    }
    let mut out = format!("{{\"trace_id\":\"{trace}\",").into_bytes();
    write_events(&mut out, "events", found.iter().map(|(event, _)| event));
    write_member(&mut out, "deliveries", &records.into());
    write_member(&mut out, "edges", &edges.into());
    if truncated {
        write_member(&mut out, "truncated", &true.into());
    }
    out.push(b'}');
    Ok(body::raw(StatusCode::OK, out))
}
