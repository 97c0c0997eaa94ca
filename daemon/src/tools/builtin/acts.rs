//! `search_events` tells what happened; `publish_event` and `start_workflow` are what a call sets going on the bus. Its key makes
//! it one event, or one instance, however often it is made.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Shared, failed, number, said, text};
use crate::bus::{NewInstance, Origin, Publish, Wanted};
use crate::clock::{parse_rfc3339, rfc3339};
use crate::error::Error;
use crate::event::{Data, Event, NewEvent, Trust, TypePattern, check_type};
use crate::store::events::{self, Cause, Filter};
use crate::store::workflows::{self, Change};
use crate::tools::{Call, Caller, Output, Preview, ToolFailure};

/// Events that a search gives unless told.
const EVENTS: usize = 20;
/// Bytes of the data of an event that a search gives.
const DATA_BYTES_MAX: usize = 1500;
/// The source of what no agent publishes.
const SOURCE: &str = "tools";

pub(super) fn preview(call: &Call) -> Result<Preview, ToolFailure> {
    let subject = if call.tool == "publish_event" { free_type(call)? } else { text(call, "workflow") };
    Ok(Preview::about(subject, subject))
}

/// The type of the event, which must not be one of the daemon's own.
fn free_type(call: &Call) -> Result<&str, ToolFailure> {
    let kind = text(call, "type");
    let wrong = |why: String| ToolFailure::Arguments("/type".to_owned(), why);
    check_type(kind).map_err(wrong)?;
    // The source is ours; only the type is the caller's.
    NewEvent::new(SOURCE, kind, &json!(null)).check_names_free().map_err(|error| wrong(error.to_string()))?;
    Ok(kind)
}

fn source(caller: &Caller) -> String {
    caller.agent.as_ref().map_or_else(|| SOURCE.to_owned(), |agent| format!("agent/{agent}"))
}

/// `search_events`
pub(super) async fn search(shared: &Shared, call: &Call) -> Result<Output, ToolFailure> {
    // A plugin hears of what its manifest names, and of no more by way of an agent.
    if call.caller.principal.starts_with("plugin/") {
        let why = "a plugin sees the events that its manifest names, and no others.";
        return Err(ToolFailure::Refused("trust_too_low", why.to_owned()));
    }
    let wrong = |field: &str, why: String| ToolFailure::Arguments(format!("/{field}"), why);
    let types = call.arguments["types"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let types: Result<Vec<_>, String> = types.map(TypePattern::parse).collect();
    let filter = Filter {
        types: types.map_err(|why| wrong("types", why))?,
        source: call.arguments["source"].as_str().map(str::to_owned),
    };
    let since = match text(call, "since") {
        "" => i64::MIN,
        at => parse_rfc3339(at).ok_or_else(|| wrong("since", "is no time such as 2026-11-22T08:00:00Z".to_owned()))?,
    };
    let (limit, ids) = (number(call, "limit").unwrap_or(EVENTS), shared.bus.store().ids());
    let found = shared.bus.store().read(move |conn| events::recent(conn, ids, &filter, None, limit)).await;
    let (mut found, rest) = found.map_err(|error| refused(&error))?;
    let is_part = rest.is_some() && found.len() < limit && found.last().is_none_or(|event| event.received_ms >= since);
    found.retain(|event| event.received_ms >= since);
    let trust = found.iter().map(believed).min().unwrap_or(Trust::Owner);
    let mut told = String::new();
    for event in &found {
        let data = match &event.sent.data {
            Data::None => String::new(),
            Data::Json(text) | Data::Text(text) => text.clone(),
            Data::Binary(bytes) => format!("{} bytes", bytes.len()),
        };
        let end = data.floor_char_boundary(DATA_BYTES_MAX);
        let subject = event.sent.subject.as_deref().unwrap_or("-");
        let (kind, source, at) = (&event.sent.kind, &event.sent.source, rfc3339(event.received_ms));
        let cut = if end < data.len() { "…" } else { "" };
        told.push_str(&format!(
            "{at} #{} {kind} from {source} about {subject}: {}{cut}\n",
            event.sequence.0,
            &data[..end]
        ));
    }
    if is_part {
        told.push_str("Not everything was looked through: older ones may be there.");
    } else if found.is_empty() {
        told.push_str("There is no such event.");
    }
    Ok(Output { text: told, value: None, trust })
}

/// How far the words of an event are believed: like whoever wrote them. Some of aman's own repeat those of a consumer.
fn believed(event: &Event) -> Trust {
    let kind = event.sent.kind.as_str();
    let is_theirs = kind == "aman.delivery.dead" || kind.starts_with("aman.plugin.");
    if is_theirs { event.trust.min(Trust::Plugin) } else { event.trust }
}

/// What a refusal of the bus comes to.
fn refused(error: &Error) -> ToolFailure {
    match error {
        Error::Internal { .. } => {
            tracing::error!(error = error.chain().join(": "), "A tool could not act on the bus.");
            failed(error.to_string())
        }
        Error::Invalid { fields, .. } => {
            let field = fields.first().map(|field| field.field.clone()).unwrap_or_default();
            ToolFailure::Arguments(format!("/{}", field.trim_start_matches('/')), error.to_string())
        }
        other => failed(other.to_string()),
    }
}

/// `publish_event`
pub(super) async fn publish(shared: &Shared, call: &Call) -> Result<Output, ToolFailure> {
    let caller = &call.caller;
    let mut event = NewEvent::new(source(caller), free_type(call)?, &call.arguments["data"]);
    event.subject = call.arguments["subject"].as_str().map(str::to_owned);
    event.dedup_key = Some(format!("tool {}", call.key));
    let origin = Origin { principal: caller.principal.clone(), trust: caller.trust, internal: true };
    let published = match &caller.cause {
        Some(cause) => {
            let cause = Cause { event: Arc::clone(cause), delivery: None, span: None };
            shared.bus.publish_caused(Publish::one(event, origin), Some(cause)).await
        }
        None => {
            event.trace = Some(caller.trace);
            shared.bus.publish(Publish::one(event, origin)).await
        }
    };
    let accepted = published.map_err(|error| refused(&error))?;
    let one = accepted.first().ok_or_else(|| failed("nothing was published"))?;
    let value = json!({ "id": one.id, "sequence": one.sequence, "type": one.kind });
    Ok(said(format!("Published {} as event {}.", one.kind, one.id), Some(value)))
}

/// `start_workflow`
pub(super) async fn start_workflow(shared: &Shared, call: &Call) -> Result<Output, ToolFailure> {
    let (caller, workflow) = (&call.caller, text(call, "workflow").to_owned());
    // No other way to start one has keys that begin so.
    let key = format!("tool/{}", call.key);
    let answer = |id: &str| said(format!("Started {workflow} as instance {id}."), Some(json!({ "instance_id": id })));
    let store = shared.bus.store();
    store.takes_new().map_err(|error| refused(&error))?;
    let (name, known) = (workflow.clone(), key.clone());
    let before = store.read(move |conn| workflows::with_key(conn, &name, &known)).await;
    if let Some(id) = before.map_err(|error| refused(&error))? {
        return Ok(answer(&id));
    }
    let wanted = NewInstance {
        workflow: workflow.clone(),
        input: call.arguments["input"].clone(),
        dedup: Some(key),
        principal: source(caller),
        trust: caller.trust,
        trace: caller.trace,
        cause: caller.cause.clone(),
        span: None,
    };
    let change = shared.bus.prepare_instance(Wanted::Start(wanted)).await.map_err(|error| refused(&error))?;
    let Change::Start(row) = &change else { return Err(failed("a start is no signal")) };
    let id = row.id.clone();
    let state = shared.bus.change_instances(vec![change]);
    store.write(move |tx| state(tx)).await.map_err(|error| refused(&error))?;
    Ok(answer(&id))
}
