//! What is shown of workflows and instances.

use serde_json::{Map, Value, json};

use super::Current;
use crate::clock::{Millis, rfc3339};
use crate::store::workflows::{DefinitionRow, InstanceRow, StepRow};
use crate::workflow::{Definition, Schedule};

fn time(at_ms: Option<Millis>) -> Value {
    at_ms.map_or(Value::Null, |at_ms| rfc3339(at_ms).into())
}

fn read(text: Option<&String>) -> Value {
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Null)
}

/// A workflow in a list.
pub(super) fn workflow(current: &Current, open: i64) -> Value {
    let (definition, document) = (&current.definition, &current.definition.written["document"]);
    json!({
        "name": definition.name,
        "namespace": definition.namespace,
        "version": definition.version,
        "title": document["title"],
        "summary": document["summary"],
        "digest": definition.digest,
        "origin": current.row.origin.name(),
        "schedule": definition.written["schedule"],
        "next_at": time(current.row.next_ms),
        "runs_commands": definition.executes(),
        "open_instances": open,
        "updated_at": rfc3339(current.row.updated_ms),
    })
}

/// A workflow with its definition and versions.
pub(super) fn whole(current: &Current, open: i64, versions: &[DefinitionRow]) -> Value {
    let mut shown = workflow(current, open);
    shown["definition"] = current.definition.written.clone();
    let version = |row: &DefinitionRow| {
        json!({
            "version": row.version,
            "digest": row.digest,
            "created_at": rfc3339(row.created_ms),
            "current": row.digest == current.definition.digest,
        })
    };
    shown["versions"] = versions.iter().map(version).collect();
    let source = versions.iter().find(|row| row.digest == current.definition.digest);
    shown["source"] = source.map_or(Value::Null, |row| row.text.as_str().into());
    shown
}

/// What a definition would be, for dry runs.
pub(super) fn preview(definition: &Definition) -> Value {
    let tasks: Vec<&str> = definition.tasks.iter().map(|task| task.pointer.as_str()).collect();
    let starts = match &definition.schedule {
        None => "on request",
        Some(Schedule::Every(_)) => "again and again",
        Some(Schedule::Cron(_)) => "by a time plan",
        Some(Schedule::After(_)) => "after its end",
        Some(Schedule::On(_)) => "on events",
    };
    json!({
        "name": definition.name,
        "namespace": definition.namespace,
        "version": definition.version,
        "digest": definition.digest,
        "tasks": tasks,
        "starts": starts,
        "skills": definition.skills(),
        "secrets": definition.secrets,
        "runs_commands": definition.executes(),
        "dry_run": true,
    })
}

/// An instance.
pub(super) fn instance(row: &InstanceRow) -> Value {
    let status = if row.hold && !row.status.is_ended() { "paused" } else { row.status.name() };
    json!({
        "id": row.id,
        "workflow": row.workflow,
        "digest": row.digest,
        "status": status,
        "input": read(Some(&row.input)),
        "output": read(row.output.as_ref()),
        "error": read(row.error.as_ref()),
        "current": row.current,
        "due_at": time(row.due_ms),
        "created_at": rfc3339(row.created_ms),
        "updated_at": rfc3339(row.updated_ms),
        "trace_id": row.trace,
        "trust": row.trust.name(),
        "started_by": row.principal,
        "cause": read(row.cause.as_ref()),
    })
}

/// A row of the journal.
pub(super) fn step(row: &StepRow) -> Value {
    json!({
        "task": row.task,
        "status": row.status,
        "attempt": row.attempt,
        "started_at": rfc3339(row.started_ms),
        "ended_at": time(row.ended_ms),
        "input": read(row.input.as_ref()),
        "output": read(row.output.as_ref()),
        "error": read(row.error.as_ref()),
    })
}

/// An instance with its journal.
pub(super) fn journaled(row: &InstanceRow, steps: &[StepRow]) -> Value {
    let mut shown = instance(row);
    shown["steps"] = steps.iter().map(step).collect();
    shown
}

/// The pointers of the journal with the last state of each.
pub(super) fn last_states(steps: &[StepRow]) -> Map<String, Value> {
    steps.iter().map(|row| (row.task.clone(), Value::from(row.status.as_str()))).collect()
}
