//! What is written of a machine: its journal, what it listens to, what its parent is told; and how it is given what came.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::lifecycle::{Before, Change};
use crate::clock::Millis;
use crate::error::Error;
use crate::event::{NewEvent, Trust};
use crate::redact;
use crate::store::workflows::{Advance, InstanceRow, Kind, ListenerRow, Status, StepRow};
use crate::workflow::{
    Ended, Env, Fault, Fiber, Frame, Inner as Doing, Kind as TaskKind, Machine, Run, STATE_BYTES_MAX, Step, StepStatus,
    Waiting, Wishes,
};

/// The type of the event that tells of an instance that faulted.
const FAULTED: &str = "aman.workflow.faulted";
/// Bytes of each text of an error in that event.
const TOLD_BYTES_MAX: usize = 4096;

/// Gives the machine something that came, and says how far what it made of it is trusted.
pub(super) fn take(machine: &mut Machine, kind: Kind, body: &Value, env: &Env<'_>) -> Trust {
    match kind {
        Kind::Event | Kind::Signal if machine.offer(body, kind == Kind::Signal, env) => return trust_of(body),
        Kind::Event | Kind::Signal => {}
        Kind::Full => machine
            .overflow("more events came for the instance than it took, as while it was paused or there was no room"),
        Kind::Ended => {
            let Some(key) = body["key"].as_str() else { return Trust::Owner };
            let result = match body.get("error") {
                Some(error) => {
                    Err(serde_json::from_value(error.clone()).unwrap_or_else(|_| Fault::runtime("it failed")))
                }
                None => Ok(body["output"].clone()),
            };
            machine.resolve(key, result.map(|output| child_output(machine, key, output)), env);
            // What was refused before it was begun, or written before this was, says nothing of it.
            return body.get("trust").map_or(Trust::Owner, |_| trust_of(body));
        }
    }
    Trust::Owner
}

/// How far an event, as workflows see it, or the end of an instance is trusted.
pub(super) fn trust_of(event: &Value) -> Trust {
    serde_json::from_value(event["trust"].clone()).unwrap_or_default()
}

/// What `return` of a `run: workflow` makes of the output.
fn child_output(machine: &Machine, key: &str, output: Value) -> Value {
    let fiber = machine.awaited().into_iter().find(|(_, known)| known == key).map(|(fiber, _)| fiber);
    let doing = fiber.and_then(|fiber| machine.state.fibers.get(&fiber)?.doing());
    let wanted = doing.map(|doing| &machine.definition.tasks[doing.task].kind);
    match wanted {
        Some(TaskKind::Run(Run::Workflow(subflow))) if !subflow.wanted => Value::Null,
        _ => output,
    }
}

/// What the parent of an ended instance is told, whose data is trusted so far.
pub(super) fn end_of(key: Option<&str>, ended: &Ended, trust: Trust) -> String {
    clean(match ended {
        Ended::Completed(output) => json!({ "key": key, "output": output, "trust": trust }).to_string(),
        // It is raised anew where the instance was started.
        Ended::Faulted(fault) => {
            let error = Fault { instance: String::new(), ..fault.clone() };
            json!({ "key": key, "error": error, "trust": trust }).to_string()
        }
    })
}

/// JSON without secrets.
pub(super) fn clean(json: String) -> String {
    match redact::json(&json) {
        Cow::Owned(clean) => clean,
        Cow::Borrowed(_) => json,
    }
}

/// What there is to store of a machine at one moment. Made where it holds up nobody: a state may be large, and everything
/// in it is searched for secrets.
pub(super) struct Moment {
    /// Where it stands; whoever stores it says how far its inbox was seen.
    pub advance: Advance,
    /// What it wishes for, besides rows of the journal.
    pub wishes: Wishes,
    /// What its parent is told, once it has ended.
    pub told: Option<String>,
    /// The error that nothing caught.
    pub fault: Option<Fault>,
    /// Keys of the instances that it waits for.
    pub awaited: Vec<String>,
    /// What became of it and of its tasks.
    pub changes: Vec<Change>,
}

impl Moment {
    /// Of the instance with this row number, which its parent knows by `key`, which is trusted so far, and which stood where
    /// `before` says. While it is held nothing begins.
    pub fn of(
        machine: &mut Machine,
        (number, key, trust): (i64, Option<&str>, Trust),
        held: bool,
        (before, now_ms): (Before, Millis),
    ) -> Result<Moment, Error> {
        let mut wishes = machine.take_wishes();
        // Neither does anything once it has ended.
        if !held && machine.state.ended.is_none() {
            machine.mark_sent();
        }
        let awaited: Vec<String> = machine.awaited().into_iter().map(|(_, key)| key).collect();
        // Nobody would end an instance that was given up before it was stored.
        wishes.children.retain(|child| !child.awaited || awaited.contains(&child.key));
        let mut state = state_of(machine)?;
        if state.as_ref().is_some_and(|text| text.len() > STATE_BYTES_MAX) && machine.state.ended.is_none() {
            machine.overflow("the instance holds more data");
            state = state_of(machine)?;
        }
        let waits = |fiber: &Fiber| matches!(fiber.wait, Some(ref wait) if !matches!(wait, Waiting::Action(_)));
        let (status, output, fault) = match &machine.state.ended {
            Some(Ended::Completed(output)) => (Status::Completed, Some(clean(output.to_string())), None),
            Some(Ended::Faulted(fault)) => (Status::Faulted, None, Some(fault.clone())),
            // One that was paused before its first step waits for nothing.
            None if machine.state.fibers.is_empty() => (Status::Running, None, None),
            None if machine.state.fibers.values().all(waits) => (Status::Waiting, None, None),
            None => (Status::Running, None, None),
        };
        let changes = before.changes(machine, &wishes.steps, now_ms);
        let advance = Advance {
            number,
            status,
            state,
            output,
            error: fault.as_ref().map(|fault| clean(fault.to_value().to_string())),
            current: machine.current().first().map(|pointer| (*pointer).to_owned()),
            due_ms: machine.due_ms(),
            steps: steps_of(machine, std::mem::take(&mut wishes.steps)),
            listeners: Some(listeners(machine, number)),
            seen: 0,
            trust,
        };
        Ok(Moment {
            advance,
            wishes,
            told: machine.state.ended.as_ref().map(|ended| end_of(key, ended, trust)),
            fault,
            awaited,
            changes,
        })
    }
}

/// The state as JSON, as long as it can go on, or be taken up again.
fn state_of(machine: &Machine) -> Result<Option<String>, Error> {
    if matches!(machine.state.ended, Some(Ended::Completed(_))) {
        return Ok(None);
    }
    serde_json::to_string(&machine.state).map(Some).map_err(Error::internal("storing the state of an instance"))
}

/// Rows of the journal, the last of each number only.
fn steps_of(machine: &Machine, steps: Vec<Step>) -> Vec<StepRow> {
    let mut written: Vec<StepRow> = Vec::with_capacity(steps.len());
    for step in steps {
        let row = step_row(&machine.definition.tasks[step.task].pointer, step);
        match written.last_mut().filter(|last| last.number == row.number) {
            Some(last) => *last = row,
            None => written.push(row),
        }
    }
    written
}

/// An error whose texts have the length that events carry.
pub(super) fn short(fault: &Fault) -> Fault {
    let cut = |text: &str| text[..text.floor_char_boundary(TOLD_BYTES_MAX)].to_owned();
    Fault {
        kind: cut(&fault.kind),
        title: fault.title.as_deref().map(cut),
        detail: fault.detail.as_deref().map(cut),
        instance: cut(&fault.instance),
        ..fault.clone()
    }
}

/// The event that tells of an instance that faulted.
pub(super) fn faulted(row: &InstanceRow, fault: &Fault) -> NewEvent {
    let error = short(fault).to_value();
    let data = json!({ "workflow": row.workflow, "instance": row.id, "digest": row.digest, "error": error });
    NewEvent {
        subject: Some(row.id.clone()),
        trace: row.trace.parse().ok(),
        ..NewEvent::new(format!("workflow/{}", row.workflow), FAULTED, &data)
    }
}

/// Everything the machine listens to.
pub(super) fn listeners(machine: &Machine, number: i64) -> Vec<ListenerRow> {
    let mut found = Vec::new();
    for fiber in machine.state.fibers.values() {
        for frame in &fiber.frames {
            let Frame::Task(doing) = frame else { continue };
            let (Doing::Listen(listening), TaskKind::Listen { to, .. }) =
                (&doing.inner, &machine.definition.tasks[doing.task].kind)
            else {
                continue;
            };
            if listening.done {
                continue;
            }
            let kinds = to.kinds().unwrap_or_else(|| vec![String::new()]);
            let expected = Value::Object(listening.expected.clone()).to_string();
            let mut kinds: Vec<String> = kinds;
            kinds.sort();
            kinds.dedup();
            for kind in kinds {
                found.push(ListenerRow {
                    kind,
                    instance: number,
                    step: i64::try_from(doing.step).unwrap_or(i64::MAX),
                    task: i64::try_from(doing.task).unwrap_or(i64::MAX),
                    digest: machine.definition.digest.clone(),
                    expected: expected.clone(),
                });
            }
        }
    }
    found
}

fn step_row(pointer: &str, step: Step) -> StepRow {
    let text = |value: Option<Value>| value.map(|value| clean(value.to_string()));
    StepRow {
        number: i64::try_from(step.number).unwrap_or(i64::MAX),
        task: pointer.to_owned(),
        status: status_name(step.status).to_owned(),
        attempt: step.attempt,
        started_ms: step.started_ms,
        ended_ms: step.ended_ms,
        input: text(step.input),
        output: text(step.output),
        error: text(step.error.map(|fault| fault.to_value())),
    }
}

fn status_name(status: StepStatus) -> &'static str {
    match status {
        StepStatus::Running => "running",
        StepStatus::Waiting => "waiting",
        StepStatus::Completed => "completed",
        StepStatus::Faulted => "faulted",
        StepStatus::Skipped => "skipped",
        StepStatus::Cancelled => "cancelled",
    }
}
