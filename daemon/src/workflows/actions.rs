//! What a task does outside: calls, processes, skills. Each comes with a key that is the same whenever it is repeated.

use std::sync::Arc;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{CALL, Inner, http, openapi, process};
use crate::bus::{Origin, Publish};
use crate::event::{NewEvent, Trust};
use crate::store::deliveries::{self, Status};
use crate::store::events;
use crate::store::workflows::InstanceRow;
use crate::telemetry::traces;
use crate::workflow::{Definition, Fault, Kind, Run, TaskId};

/// Something to do.
pub(super) struct Job {
    /// Its key.
    pub key: String,
    /// What it is done with, secrets included.
    pub args: Value,
    /// Whose it is.
    pub definition: Arc<Definition>,
    /// Which task's.
    pub task: TaskId,
    /// The instance.
    pub row: InstanceRow,
    /// Ends it.
    pub cancel: CancellationToken,
}

/// Whether a task runs a command, which nobody can ask whether it was run before.
pub(super) fn is_process(kind: &Kind) -> bool {
    matches!(kind, Kind::Run(Run::Process(_)))
}

/// Does it.
pub(super) async fn run(inner: &Arc<Inner>, job: Job) -> Result<Value, Fault> {
    let cancel = job.cancel.clone();
    if job.args.get("process").is_some() {
        let _turn = tokio::select! {
            turn = inner.commands.acquire() => turn,
            () = cancel.cancelled() => return Err(Fault::runtime("it was ended before it began")),
        };
        // It ends its process itself, and waits for that.
        return process::run(inner, &job).await;
    }
    let done = async {
        if job.args.get("skill").is_some() {
            return skill(inner, &job).await;
        }
        let _turn = inner.calls.acquire().await;
        if job.args.get("http").is_some() {
            return http::call(inner, &job).await;
        }
        openapi::call(inner, &job).await
    };
    tokio::select! {
        done = done => done,
        () = cancel.cancelled() => Err(Fault::runtime("it was ended before it was done").unknown()),
    }
}

/// Calls a skill: an event that is for it alone, and the end of its delivery.
async fn skill(inner: &Arc<Inner>, job: &Job) -> Result<Value, Fault> {
    let args = &job.args["skill"];
    let Some(name) = args["name"].as_str() else { return Err(Fault::expression("aman.skill: name is no text")) };
    let router = inner.bus.router();
    let Some(entry) = router.by_name(&format!("skill/{name}")) else {
        return Err(Fault::configuration(format!("there is no skill '{name}' that could run")));
    };
    if entry.spec.standing != crate::bus::Standing::Active {
        return Err(Fault::configuration(format!("the skill '{name}' is switched off, or not trusted")));
    }
    let linked = entry.spec.rules.iter().any(|rule| rule.pattern.matches(CALL));
    if !linked {
        return Err(Fault::configuration(format!("the skill '{name}' must be named literally in the definition")));
    }
    let source = format!("workflow/{}", job.row.workflow);
    let mut event = NewEvent::new(source.clone(), CALL, &args["input"]);
    (event.id, event.subject) = (Some(job.key.clone()), Some(name.to_owned()));
    event.trace = job.row.trace.parse().ok();
    event.parent = traces::current().and_then(|here| here.span());
    let origin = Origin { principal: source, trust: job.row.trust, internal: true };
    // The same id again is the same event: a call that was cut off is found, and not repeated.
    let mut ended = inner.bus.ended();
    let accepted = inner
        .bus
        .publish(Publish::one(event, origin))
        .await
        .map_err(|error| Fault::runtime(error.to_string()).unknown())?;
    let sequence = accepted.first().map_or(0, |one| one.sequence);
    loop {
        let ids = inner.bus.store().ids();
        let found = inner.bus.store().read(move |conn| {
            let event = events::by_sequence(conn, ids, crate::id::EventSeq(sequence))?;
            Ok((event.is_some(), deliveries::of_event(conn, crate::id::EventSeq(sequence))?))
        });
        let (there, records) = found.await.map_err(|error| Fault::runtime(error.to_string()).unknown())?;
        let consumer = format!("skill/{name}");
        let Some(record) = records.into_iter().find(|record| record.consumer == consumer) else {
            let why = if there {
                "the skill did not get the call"
            } else {
                "what became of the call is not on record any more"
            };
            return Err(Fault::runtime(why).unknown());
        };
        match record.status {
            Status::Done => return Ok(record.result.unwrap_or(Value::Null)),
            Status::Dead | Status::Discarded => {
                let chain = record.failures.last().map(|(_, _, chain)| chain.join(": ")).unwrap_or_default();
                return Err(Fault::new("runtime", 500, "Skill failed", format!("{name}: {chain}")));
            }
            Status::Expired => return Err(Fault::timeout(format!("the call of {name} expired"))),
            _ => {}
        }
        if ended.changed().await.is_err() {
            return Err(Fault::runtime("the bus is gone").unknown());
        }
    }
}

/// Whether an instance may do what an untrusted event must not cause.
pub(super) fn trusted(row: &InstanceRow) -> Result<(), Fault> {
    if row.trust >= Trust::Paired {
        return Ok(());
    }
    let reason = format!("commands are not run for what came with trust '{}'", row.trust.name());
    Err(Fault::authorization(reason))
}
