//! What is shown of jobs and slots.

use serde_json::{Value, json};

use super::Held;
use crate::clock::{Millis, rfc3339};
use crate::schedule::Job;
use crate::store::cron::Slot;

fn time(at_ms: Option<Millis>) -> Value {
    at_ms.map_or(Value::Null, |at_ms| rfc3339(at_ms).into())
}

/// A definition with its plan in words.
pub(super) fn definition(id: &str, job: &Job) -> Value {
    let mut shown = json!({ "id": id, "description": job.schedule.describe() });
    if let (Value::Object(shown), Value::Object(fields)) = (&mut shown, job.to_value()) {
        shown.extend(fields);
    }
    shown
}

/// A job, how it stands and what it did last.
pub(super) fn job(held: &Held, last: Option<&Slot>) -> Value {
    let row = &held.row;
    let mut shown = definition(&row.id, &held.job);
    let next_ms = held.next_ms.filter(|_| row.enabled);
    let standing = json!({
        "origin": row.origin.name(),
        "enabled": row.enabled,
        "disabled_reason": row.note,
        "failures": row.failures,
        "next_at": time(next_ms),
        "next_local": next_ms.map(|at_ms| held.job.schedule.local(at_ms)),
        "running": held.running.len(),
        "queued": held.queued.len(),
        "last_run": last.map(run),
        "created_at": rfc3339(row.created_ms),
        "updated_at": rfc3339(row.updated_ms),
    });
    if let (Value::Object(shown), Value::Object(standing)) = (&mut shown, standing) {
        shown.extend(standing);
    }
    shown
}

/// A row of the ledger.
pub(super) fn run(slot: &Slot) -> Value {
    let has_event = slot.started_ms.is_some();
    json!({
        "key": slot.key,
        "job": slot.job,
        "kind": if slot.manual { "manual" } else { "scheduled" },
        "scheduled_at": rfc3339(slot.slot_ms),
        "until": time(slot.until_ms),
        "status": slot.status.name(),
        "reason": slot.reason,
        "event_id": has_event.then_some(&slot.key),
        "recorded_at": rfc3339(slot.made_ms),
        "started_at": time(slot.started_ms),
        "ended_at": time(slot.ended_ms),
        "error": slot.error,
    })
}

/// Slots to come.
pub(super) fn preview(id: &str, job: &Job, after_ms: Millis, count: usize) -> Value {
    let slots = job.schedule.preview(after_ms, count);
    let items: Vec<Value> = slots
        .into_iter()
        .map(|at_ms| json!({ "scheduled_at": rfc3339(at_ms), "local": job.schedule.local(at_ms) }))
        .collect();
    json!({ "id": id, "expression": job.expression, "timezone": job.timezone, "items": items })
}
