//! What is written of a machine: its journal, what it listens to, what its parent is told; and how it is given what came.

use serde_json::{Value, json};

use crate::event::Trust;
use crate::store::workflows::{InstanceRow, Kind, ListenerRow, StepRow};
use crate::workflow::{Ended, Env, Fault, Frame, Inner as Doing, Kind as TaskKind, Machine, Run, Step, StepStatus};

/// Bytes of a value that the journal keeps; of longer ones it says how long they are.
const VALUE_BYTES_MAX: usize = 64 << 10;

/// Gives the machine something that came, and says how far what it made of it is trusted.
pub(super) fn take(machine: &mut Machine, kind: Kind, body: &Value, env: &Env<'_>) -> Trust {
    match kind {
        Kind::Event | Kind::Signal if machine.offer(body, kind == Kind::Signal, env) => return trust_of(body),
        Kind::Event | Kind::Signal => {}
        Kind::Ended => {
            let Some(key) = body["key"].as_str() else { return Trust::Owner };
            let result = match body.get("error") {
                Some(error) => {
                    Err(serde_json::from_value(error.clone()).unwrap_or_else(|_| Fault::runtime("it failed")))
                }
                None => Ok(body["output"].clone()),
            };
            machine.resolve(key, result.map(|output| child_output(machine, key, output)), env);
        }
    }
    Trust::Owner
}

/// How far an event, as workflows see it, is trusted.
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

/// What the parent of an ended instance is told.
pub(super) fn end_of(row: &InstanceRow, machine: &Machine) -> String {
    let key = row.parent_key.clone().unwrap_or_default();
    match &machine.state.ended {
        // It is raised anew where the instance was started.
        Some(Ended::Faulted(fault)) => {
            json!({ "key": key, "error": Fault { instance: String::new(), ..fault.clone() } }).to_string()
        }
        Some(Ended::Completed(output)) => json!({ "key": key, "output": output }).to_string(),
        None => json!({ "key": key, "output": null }).to_string(),
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

pub(super) fn step_row(pointer: &str, step: &Step) -> StepRow {
    let short = |value: &Option<Value>| {
        let text = value.as_ref()?.to_string();
        Some(if text.len() > VALUE_BYTES_MAX { json!({ "bytes": text.len() }).to_string() } else { text })
    };
    StepRow {
        number: i64::try_from(step.number).unwrap_or(i64::MAX),
        task: pointer.to_owned(),
        status: status_name(step.status).to_owned(),
        attempt: step.attempt,
        started_ms: step.started_ms,
        ended_ms: step.ended_ms,
        input: short(&step.input),
        output: short(&step.output),
        error: step.error.as_ref().map(|fault| fault.to_value().to_string()),
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
