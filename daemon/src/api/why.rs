//! `GET /events/{id}/why`: what was decided for an event, what came of it, and where it came from.

use std::sync::Arc;

use serde_json::{Value, json};

use super::body::{self, Reply};
use super::problem::Problem;
use super::query::Query;
use super::{App, Call, events as shown};
use crate::bus::explain::Scope;
use crate::clock::rfc3339;
use crate::error::Error;
use crate::event::Event;
use crate::store::deliveries::{self, Record, Status};
use crate::store::{events, outbox, retention};

/// Causes that are followed back.
const ANCESTORS_MAX: usize = 128;

/// The state of an event: the first that holds.
fn status(records: &[Record]) -> &'static str {
    let any = |wanted: fn(Status) -> bool| records.iter().any(|record| wanted(record.status));
    if any(Status::is_open) {
        "pending"
    } else if any(|status| status == Status::Dead) {
        "dead_lettered"
    } else if any(|status| status == Status::Expired) {
        "expired"
    } else if records.is_empty() {
        "unmatched"
    } else {
        "handled"
    }
}

fn ancestor(event: &Event) -> Value {
    json!({
        "id": event.id(),
        "source": event.sent.source,
        "type": event.sent.kind,
        "sequence": event.sequence.0,
        "received_at": rfc3339(event.received_ms),
        "principal": event.principal,
    })
}

/// `GET /events/{id}/why`
pub(super) async fn why(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["source", "all", "consumer"])?;
    let scope = Scope { all: query.flag("all", false)?, consumer: query.text("consumer") };
    let event = shown::find(&app, call.param("id"), query.text("source")).await?;
    let considered = app.bus.explain(event.clone(), scope).await?;
    let (ids, sequence, cause) = (app.store.ids(), event.sequence, event.cause.zip(event.causation.clone()));
    let (records, effects, ancestors) = app
        .store
        .read(move |conn| {
            let records = deliveries::of_event(conn, sequence)?;
            let mut effects: Vec<Value> = events::effects_of(conn, ids, sequence)?
                .into_iter()
                .map(|(effect, _)| {
                    json!({ "kind": "event", "id": effect.id(), "consumer": effect.principal, "type": effect.sent.kind })
                })
                .collect();
            for record in &records {
                for (kind, id, what) in outbox::effects_of(conn, record.id)? {
                    effects.push(json!({ "kind": kind, "id": id, "consumer": record.consumer, "title": what }));
                }
            }
            let (mut ancestors, mut next) = (Vec::new(), cause);
            while let Some((cause, id)) = next {
                let Some(event) = events::by_sequence(conn, ids, cause)? else {
                    let pruned_at = retention::pruned_at(conn, cause)?.map(rfc3339);
                    ancestors.push(json!({ "id": id, "sequence": cause.0, "pruned_at": pruned_at }));
                    break;
                };
                next = event.cause.zip(event.causation.clone()).filter(|_| ancestors.len() < ANCESTORS_MAX);
                ancestors.push(ancestor(&event));
            }
            Ok::<_, Error>((records, effects, ancestors))
        })
        .await?;
    let shown: Vec<Value> = records.iter().map(|record| shown::delivery_json(ids, event.received_ms, record)).collect();
    body::ok(&json!({
        "event": event.to_value(),
        "status": status(&records),
        "considered": considered,
        "effects": effects,
        "ancestors": ancestors,
        "deliveries": shown,
    }))
}
