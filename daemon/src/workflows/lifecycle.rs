//! The lifecycle events of the standard (DSL reference, "Lifecycle Events"): what becomes of instances, and of their tasks where
//! a definition wants that, as events of the bus. They commit with what they tell of; only that an instance was cancelled
//! with the one that waited for it is told right after.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::Inner;
use super::record::{clean, short};
use crate::bus::{Origin, OwnEvent};
use crate::clock::{Millis, rfc3339};
use crate::event::{Event, NewEvent};
use crate::id::EventSeq;
use crate::store::events::Cause;
use crate::store::workflows::InstanceRow;
use crate::workflow::{Definition, Ended, Fault, Kind, Machine, Step, StepStatus, Tell};

/// What the types of all of them begin with.
const PREFIX: &str = "io.serverlessworkflow.";
/// Bytes of an output that an event carries; a longer one is in the instance.
const OUTPUT_BYTES_MAX: usize = 64 << 10;

/// Something that became of an instance or of a task.
pub(super) struct Change {
    /// The type without what all of them begin with, and without the version.
    kind: &'static str,
    /// Pointer of the task, if it is one.
    task: Option<String>,
    /// What is said besides the name.
    data: Map<String, Value>,
}

impl Change {
    /// `kind` happened at `at_ms`, which the event calls `when`.
    pub fn new(kind: &'static str, when: &str, at_ms: Millis) -> Change {
        Change { kind, task: None, data: Map::from_iter([(when.to_owned(), rfc3339(at_ms).into())]) }
    }

    /// It ended by this error.
    pub fn faulted(fault: &Fault, at_ms: Millis) -> Change {
        Change::new("workflow.faulted", "faultedAt", at_ms).with("error", short(fault).to_value())
    }

    fn with(mut self, name: &str, value: Value) -> Change {
        self.data.insert(name.to_owned(), value);
        self
    }

    fn of(self, task: &str) -> Change {
        Change { task: Some(task.to_owned()), ..self }
    }
}

/// Whether an event tells of an instance or a task.
pub(super) fn is_one(event: &Event) -> bool {
    event.sent.kind.starts_with(PREFIX)
}

/// Where a machine stands before it goes on.
#[derive(Clone, Copy)]
pub(super) struct Before {
    is_new: bool,
    next_step: u64,
}

impl Before {
    /// Of this machine.
    pub fn of(machine: &Machine) -> Before {
        let state = &machine.state;
        let is_new = state.fibers.is_empty() && state.ended.is_none();
        Before { is_new, next_step: state.next_step }
    }

    /// What became of the machine since, with these rows of its journal.
    pub fn changes(self, machine: &Machine, steps: &[Step], now_ms: Millis) -> Vec<Change> {
        let (definition, state) = (&machine.definition, &machine.state);
        let mut changes = Vec::new();
        if definition.tells == Tell::Nothing || (state.fibers.is_empty() && state.ended.is_none()) {
            return changes;
        }
        if self.is_new {
            let reference =
                json!({ "name": definition.name, "namespace": definition.namespace, "version": definition.version });
            changes.push(Change::new("workflow.started", "startedAt", now_ms).with("definition", reference));
        }
        let (mut begun, mut over) = (self.next_step, HashSet::new());
        for step in steps {
            let is_first = step.number >= begun;
            begun = begun.max(step.number + 1);
            // An error is noted where it is raised and where it is caught.
            if !over.contains(&step.number) {
                self.step(definition, step, is_first, &mut changes);
            }
            if !matches!(step.status, StepStatus::Running | StepStatus::Waiting) {
                over.insert(step.number);
            }
        }
        match &state.ended {
            Some(Ended::Completed(output)) => {
                let ended = Change::new("workflow.completed", "completedAt", now_ms);
                changes.push(match small(output) {
                    Some(output) => ended.with("output", output),
                    None => ended,
                });
            }
            Some(Ended::Faulted(fault)) => changes.push(Change::faulted(fault, now_ms)),
            None => {}
        }
        changes
    }

    /// What a row of the journal tells, which is the first of its task or not.
    fn step(self, definition: &Definition, step: &Step, is_first: bool, changes: &mut Vec<Change>) {
        let task = &definition.tasks[step.task];
        let (began, ended) = (step.started_ms, step.ended_ms.unwrap_or(step.started_ms));
        if matches!(task.kind, Kind::Listen { .. }) {
            match step.status {
                StepStatus::Waiting if is_first => {
                    changes.push(Change::new("workflow.correlation-started", "startedAt", began));
                }
                StepStatus::Completed => {
                    changes.push(Change::new("workflow.correlation-completed", "completedAt", ended));
                }
                _ => {}
            }
        }
        if definition.tells != Tell::Tasks || step.status == StepStatus::Skipped {
            return;
        }
        let mut tell = |change: Change| changes.push(change.of(&task.pointer));
        if is_first {
            tell(Change::new("task.created", "createdAt", began));
            tell(Change::new("task.started", "startedAt", began));
            if step.attempt > 1 {
                tell(Change::new("task.retried", "retriedAt", began));
            }
        }
        match step.status {
            StepStatus::Completed => {
                let ended = Change::new("task.completed", "completedAt", ended);
                tell(match step.output.as_ref().and_then(small) {
                    Some(output) => ended.with("output", output),
                    None => ended,
                });
            }
            StepStatus::Faulted => {
                let error = step.error.as_ref().map_or(Value::Null, |fault| short(fault).to_value());
                tell(Change::new("task.faulted", "faultedAt", ended).with("error", error));
            }
            StepStatus::Cancelled => tell(Change::new("task.cancelled", "cancelledAt", ended)),
            StepStatus::Running | StepStatus::Waiting | StepStatus::Skipped => {}
        }
    }
}

/// An output without secrets, unless it is long.
fn small(output: &Value) -> Option<Value> {
    let text = clean(output.to_string());
    if text.len() > OUTPUT_BYTES_MAX { None } else { serde_json::from_str(&text).ok() }
}

/// The event that started an instance, as far as effects need it.
pub(super) fn cause(inner: &Inner, row: &InstanceRow) -> Option<Cause> {
    let stored: Value = serde_json::from_str(row.cause.as_ref()?).ok()?;
    let id = stored["id"].as_str()?.to_owned();
    let sent = NewEvent { id: Some(id), ..NewEvent::default() };
    let event = Event {
        sequence: EventSeq(stored["sequence"].as_i64()?),
        received_ms: 0,
        made_id: None,
        sent,
        trace: row.trace.parse().ok()?,
        correlation: stored["correlation"].as_str().map(str::to_owned),
        causation: None,
        cause: None,
        depth: stored["depth"].as_u64().and_then(|depth| u32::try_from(depth).ok()).unwrap_or(0),
        trust: row.trust,
        principal: row.principal.clone(),
    };
    Some(Cause { event: std::sync::Arc::new(event), delivery: None, span: super::spans::id(inner, row) })
}

impl Inner {
    /// The events that tell of what became of an instance, to be stored with it. One that such an event started tells
    /// nothing of itself: workflows that hear of each other would never end.
    pub(super) async fn events_of(
        &self,
        row: &InstanceRow,
        definition: &Definition,
        changes: Vec<Change>,
    ) -> Vec<OwnEvent> {
        let told_of =
            |cause: &String| serde_json::from_str::<Value>(cause).is_ok_and(|cause| cause["lifecycle"] == true);
        if changes.is_empty() || definition.tells == Tell::Nothing || row.cause.as_ref().is_some_and(told_of) {
            return Vec::new();
        }
        let name = format!("{}-{}.{}", row.workflow, row.id, definition.namespace);
        let event = |change: Change| {
            let mut data = change.data;
            match change.task {
                Some(task) => data.extend([("workflow".to_owned(), json!(name)), ("task".to_owned(), json!(task))]),
                None => data.extend([("name".to_owned(), json!(name))]),
            }
            let kind = format!("{PREFIX}{}.v1", change.kind);
            NewEvent {
                subject: Some(row.id.clone()),
                trace: row.trace.parse().ok(),
                parent: super::spans::id(self, row),
                ..NewEvent::new(format!("workflow/{}", row.workflow), kind, &Value::Object(data))
            }
        };
        let origin = Origin { principal: format!("workflow/{}", row.workflow), trust: row.trust, internal: true };
        self.bus.own_events(changes.into_iter().map(event).collect(), origin, cause(self, row)).await
    }

    /// The event of something that is asked of an instance, to be stored with it.
    pub(super) async fn event_of(&self, row: &InstanceRow, kind: &'static str, when: &str) -> Vec<OwnEvent> {
        // What cannot be read has no name that the event could give.
        let Ok(definition) = self.definition(&row.digest).await else { return Vec::new() };
        let change = Change::new(kind, when, self.now_ms());
        self.events_of(row, &definition, vec![change]).await
    }

    /// Tells of instances that were cancelled with the one that waited for them.
    pub(super) async fn tell_cancelled(&self, gone: &[InstanceRow]) {
        for row in gone {
            let told = self.event_of(row, "workflow.cancelled", "cancelledAt").await;
            let stored = self.bus.store().write(move |tx| told.iter().try_for_each(|event| event.store(tx))).await;
            if let Err(error) = stored {
                tracing::warn!(instance = row.id, %error, "An event does not tell that an instance was cancelled.");
            }
        }
    }
}
