//! The spans of workflows: an instance, and below it each of its tasks. An instance may last for weeks and over restarts; its
//! span is recorded once it has ended, and has the same id whenever a task asks for it.

use serde_json::{Value, json};

use super::Inner;
use crate::clock::Millis;
use crate::id::{EventSeq, SpanId, SpanOf, TraceId};
use crate::store::workflows::{InstanceRow, StepRow};
use crate::telemetry::traces::{Context, Kind, Span};
use crate::workflow::Fault;

/// The trace of an instance, if its spans are collected.
fn trace(inner: &Inner, row: &InstanceRow) -> Option<TraceId> {
    if !inner.bus.traces().is_on() {
        return None;
    }
    row.trace.parse().ok().filter(|trace| inner.bus.traces().wants(*trace))
}

/// Notes with what caused an instance the span that it is a child of.
pub(super) fn note(cause: &mut Value, span: Option<SpanId>) {
    if let Some(span) = span {
        cause["span"] = span.to_string().into();
    }
}

/// What caused an instance that a request asked for: none but that span.
pub(super) fn asked(inner: &Inner, span: Option<SpanId>) -> Option<String> {
    let span = span.filter(|_| inner.bus.traces().is_on())?;
    Some(json!({ "span": span.to_string() }).to_string())
}

/// The span of an instance.
pub(super) fn id(inner: &Inner, row: &InstanceRow) -> Option<SpanId> {
    Some(inner.bus.store().ids().span(trace(inner, row)?, SpanOf::Workflow(row.number)))
}

/// What an instance is a child of: the instance that started it, else the attempt that brought the event or the span that
/// asked for it, else the storing of that event.
fn parent(inner: &Inner, row: &InstanceRow, trace: TraceId) -> Option<SpanId> {
    let ids = inner.bus.store().ids();
    if let Some(parent) = row.parent {
        return Some(ids.span(trace, SpanOf::Workflow(parent)));
    }
    let cause: Value = serde_json::from_str(row.cause.as_ref()?).ok()?;
    let noted = cause["span"].as_str().and_then(|span| span.parse().ok());
    noted.or_else(|| Some(ids.span(trace, SpanOf::Publish(EventSeq(cause["sequence"].as_i64()?)))))
}

/// Where a task stands that is being done, by its row of the journal and its attempt.
pub(super) fn of_task(inner: &Inner, row: &InstanceRow, doing: Option<(u64, u32)>) -> Option<Context> {
    let (trace, (step, attempt)) = (trace(inner, row)?, doing?);
    let task = SpanOf::Task(row.number, i64::try_from(step).ok()?, attempt);
    inner.bus.traces().context(trace, Some(inner.bus.store().ids().span(trace, task)))
}

/// Records the tasks that have ended among these rows of the journal.
pub(super) fn tasks(inner: &Inner, row: &InstanceRow, steps: &[StepRow]) {
    let Some(trace) = trace(inner, row) else { return };
    let ids = inner.bus.store().ids();
    let instance = ids.span(trace, SpanOf::Workflow(row.number));
    for step in steps.iter().filter(|step| step.status != "skipped") {
        let Some(ended_ms) = step.ended_ms else { continue };
        let id = ids.span(trace, SpanOf::Task(row.number, step.number, step.attempt));
        let span = Span::new(Kind::Internal, format!("task {}", step.task), trace, id, nanos(step.started_ms))
            .child_of(Some(instance))
            .ended_at(nanos(ended_ms))
            .text("aman.workflow.name", row.workflow.clone())
            .text("aman.workflow.instance", row.id.clone())
            .text("aman.task", step.task.clone())
            .number("aman.attempt", step.attempt)
            .text("aman.outcome", step.status.clone());
        let fault = step.error.as_deref().and_then(|error| serde_json::from_str(error).ok());
        inner.bus.traces().record(failed(span, fault.as_ref()));
    }
}

/// Records an instance that has ended.
pub(super) fn ended(inner: &Inner, row: &InstanceRow, outcome: &'static str, fault: Option<&Fault>) {
    let Some(trace) = trace(inner, row) else { return };
    let id = inner.bus.store().ids().span(trace, SpanOf::Workflow(row.number));
    let span = Span::new(Kind::Internal, format!("workflow {}", row.workflow), trace, id, nanos(row.created_ms))
        .child_of(parent(inner, row, trace))
        .text("aman.workflow.name", row.workflow.clone())
        .text("aman.workflow.instance", row.id.clone())
        .text("aman.workflow.digest", row.digest.clone())
        .text("aman.outcome", outcome);
    inner.bus.traces().record(failed(span, fault));
}

/// Says what kind of error it was. Details hold what others answered, and stay here.
fn failed(span: Span, fault: Option<&Fault>) -> Span {
    let Some(fault) = fault else { return span };
    let kind = fault.kind.rsplit('/').next().unwrap_or_default().to_owned();
    let title = fault.title.clone().unwrap_or_else(|| kind.clone());
    span.failed(kind, format!("{title} ({})", fault.status))
}

fn nanos(at_ms: Millis) -> u64 {
    at_ms.max(0).unsigned_abs().saturating_mul(1_000_000)
}
