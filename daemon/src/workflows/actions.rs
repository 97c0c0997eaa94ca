//! What a task does outside: calls, processes, skills, tools. Each comes with a key that is the same whenever it is repeated.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{CALL, Inner, http, openapi, process};
use crate::bus::{Awaited, Origin, Publish, Standing};
use crate::error::Error;
use crate::event::{Event, NewEvent, Trust};
use crate::id::EventSeq;
use crate::store::workflows::InstanceRow;
use crate::store::{audit, events, turns};
use crate::telemetry::traces;
use crate::tools::{self, Caller, ToolFailure, from_outside};
use crate::workflow::{Definition, Fault, Kind, Run, TaskId};

/// The type of the event that asks an agent, and the agent that is asked when none is named.
const AGENT_CALL: &str = "aman.agent.call";
const DEFAULT_AGENT: &str = "aman";

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
    /// True when it was begun before, and the daemon ended meanwhile.
    pub was_cut_off: bool,
    /// Ends it.
    pub cancel: CancellationToken,
}

/// Whether a task runs a command, which nobody can ask whether it was run before.
pub(super) fn is_process(kind: &Kind) -> bool {
    matches!(kind, Kind::Run(Run::Process(_)))
}

/// Does it; says as well how far what it brought in is trusted.
pub(super) async fn run(inner: &Arc<Inner>, job: Job) -> (Result<Value, Fault>, Trust) {
    let mut read = Trust::Owner;
    let result = result_of(inner, &job, &mut read).await;
    (result, read)
}

async fn result_of(inner: &Arc<Inner>, job: &Job, read: &mut Trust) -> Result<Value, Fault> {
    let cancel = job.cancel.clone();
    if job.args.get("process").is_some() {
        let _turn = tokio::select! {
            turn = inner.commands.acquire() => turn,
            () = cancel.cancelled() => return Err(Fault::runtime("it was ended before it began")),
        };
        // It ends its process itself, and waits for that.
        return process::run(inner, job).await;
    }
    if job.args.get("tool").is_some() {
        // It ends by itself, and takes back what it asked the person.
        return tool(inner, job, read).await;
    }
    let done = async {
        if job.args.get("skill").is_some() {
            return skill(inner, job, read).await;
        }
        if job.args.get("agent").is_some() {
            return agent(inner, job, read).await;
        }
        let _turn = inner.calls.acquire().await;
        // Whatever answers, or says why it does not, is somebody else's.
        *read = Trust::Web;
        if job.args.get("http").is_some() {
            return http::call(inner, job).await;
        }
        openapi::call(inner, job).await
    };
    tokio::select! {
        done = done => done,
        () = cancel.cancelled() => Err(Fault::runtime("it was ended before it was done").unknown()),
    }
}

/// Calls a tool: through the gate, by the policy of `[tools]`, with the task's key, so that a call that was cut off finds
/// the approval that it waited for.
async fn tool(inner: &Arc<Inner>, job: &Job, read: &mut Trust) -> Result<Value, Fault> {
    let args = &job.args["tool"];
    let Some(name) = args["name"].as_str() else { return Err(Fault::expression("aman.tool: name is no text")) };
    let tools = &inner.settings.tools;
    let trace = job.row.trace.parse().map_err(|()| Fault::runtime("the instance has no trace"))?;
    let cause = cause(inner, &job.row).await?;
    let call = tools::Call {
        key: job.key.clone(),
        tool: name.to_owned(),
        arguments: if args["input"].is_null() { serde_json::json!({}) } else { args["input"].clone() },
        caller: Caller {
            principal: format!("workflow/{}", job.row.workflow),
            agent: None,
            session: None,
            trust: job.row.trust,
            trace,
            cause,
            policy: tools.policy(),
        },
    };
    if job.was_cut_off && !job.definition.tasks[job.task].idempotent && !tools.may_repeat(name, &job.key).await {
        let record = tools.cut_off(&call).await;
        let recorded = inner.bus.store().write(move |tx| audit::append(tx, &record)).await;
        recorded.map_err(|error| Fault::runtime(error.to_string()).unknown())?;
        let detail = format!("unknown_outcome: the daemon ended while {name} ran, and nobody knows how far it came");
        return Err(Fault::new("runtime", 500, "unknown_outcome", detail).unknown());
    }
    let done = tools.call(call, &job.cancel, &|_| {}).await;
    *read = match &done {
        Ok(output) => output.trust,
        Err(failure) => failure.trust(tools.get(name).map(|tool| tool.permission)),
    };
    match done {
        Ok(output) => Ok(output.value.unwrap_or_else(|| output.text.into())),
        Err(ToolFailure::Arguments(pointer, why)) => Err(Fault::validation(format!("{name}: input{pointer} {why}"))),
        Err(ToolFailure::Refused(code, why)) => Err(Fault::authorization(format!("{name}: {code}: {why}"))),
        Err(ToolFailure::Failed(why)) => Err(Fault::runtime(format!("{name}: {why}"))),
        Err(ToolFailure::Unknown(why)) => Err(Fault::runtime(format!("{name}: {why}")).unknown()),
    }
}

/// The event that led to the instance, so that what its tools publish counts as one of its effects.
async fn cause(inner: &Arc<Inner>, row: &InstanceRow) -> Result<Option<Arc<Event>>, Fault> {
    let cause = row.cause.as_ref().and_then(|cause| serde_json::from_str::<Value>(cause).ok());
    let Some(sequence) = cause.and_then(|cause| cause["sequence"].as_i64()) else { return Ok(None) };
    let ids = inner.bus.store().ids();
    let found = inner.bus.store().read(move |conn| events::by_sequence(conn, ids, EventSeq(sequence)));
    found.await.map(|event| event.map(Arc::new)).map_err(|error| Fault::runtime(error.to_string()))
}

/// Calls a skill: an event that is for it alone, and the end of its delivery.
async fn skill(inner: &Arc<Inner>, job: &Job, read: &mut Trust) -> Result<Value, Fault> {
    let args = &job.args["skill"];
    let Some(name) = args["name"].as_str() else { return Err(Fault::expression("aman.skill: name is no text")) };
    let router = inner.bus.router();
    let Some(entry) = router.by_name(&format!("skill/{name}")) else {
        return Err(Fault::configuration(format!("there is no skill '{name}' that could run")));
    };
    if entry.spec.standing != Standing::Active {
        return Err(Fault::configuration(format!("the skill '{name}' is switched off, or not trusted")));
    }
    let linked = entry.spec.rules.iter().any(|rule| rule.pattern.matches(CALL));
    if !linked {
        return Err(Fault::configuration(format!("the skill '{name}' must be named literally in the definition")));
    }
    let mut event = NewEvent::new(format!("workflow/{}", job.row.workflow), CALL, &args["input"]);
    event.subject = Some(name.to_owned());
    let consumer = format!("skill/{name}");
    match called(inner, job, event, &consumer, read).await? {
        Awaited::Done(result) => Ok(result),
        Awaited::Failed(why) => Err(Fault::new("runtime", 500, "Skill failed", format!("{name}: {why}"))),
        _ => Err(Fault::timeout(format!("the call of {name} expired"))),
    }
}

/// Asks an agent: an event that is for it alone, and the end of its delivery, which is a turn.
async fn agent(inner: &Arc<Inner>, job: &Job, read: &mut Trust) -> Result<Value, Fault> {
    let args = &job.args["agent"];
    let name = args["agent"].as_str().unwrap_or(DEFAULT_AGENT);
    let consumer = format!("agent/{name}");
    let router = inner.bus.router();
    match router.by_name(&consumer).map(|entry| entry.spec.standing) {
        Some(Standing::Active) => {}
        Some(_) => return Err(Fault::configuration(format!("the agent '{name}' is switched off"))),
        None => return Err(Fault::configuration(format!("there is no agent '{name}'"))),
    }
    let (says, session) = (args["answer"].as_str(), args["session"].as_str().map(str::to_owned));
    let wanted = match says {
        Some(text) => json!({ "answer": text, "session": session, "principal": job.row.principal }),
        None => json!({ "prompt": prompt(args, job.row.trust), "session": session, "output": args["output"],
            "allowed_tools": args["allowed_tools"] }),
    };
    let mut event = NewEvent::new(format!("workflow/{}", job.row.workflow), AGENT_CALL, &wanted);
    event.agent_id = Some(name.to_owned());
    // An answer waits for the end of a turn that is under way in its session, and must not stand before it.
    event.partition_key = session.filter(|_| says.is_none());
    match called(inner, job, event, &consumer, read).await? {
        Awaited::Done(result) if says.is_some() => {
            Ok(json!({ "session": result["session_id"], "message": result["message_id"] }))
        }
        Awaited::Done(result) if result["status"] == "done" => Ok(match &result["value"] {
            Value::Null => {
                json!({ "text": result["text"], "session": result["session_id"], "turn": result["turn_id"] })
            }
            value => value.clone(),
        }),
        Awaited::Done(_) => Err(Fault::new("runtime", 500, "Agent stopped", format!("{name}: its turn was stopped"))),
        Awaited::Failed(why) => Err(Fault::new("runtime", 500, "Agent failed", format!("{name}: {why}"))),
        _ => Err(Fault::timeout(format!("the call of {name} expired"))),
    }
}

/// What an agent is asked; what others have written is marked as theirs.
fn prompt(args: &Value, trust: Trust) -> String {
    let mut prompt = args["prompt"].as_str().unwrap_or_default().to_owned();
    if args["input"].is_null() {
        return prompt;
    }
    let input = from_outside("the input", trust, args["input"].to_string());
    prompt.push_str(&format!("\n\nInput:\n{input}"));
    prompt
}

/// Has an event delivered to a consumer, and waits for the end of that; `read` is how far the turn is trusted that it was, if
/// an agent took it.
async fn called(
    inner: &Arc<Inner>,
    job: &Job,
    mut event: NewEvent,
    consumer: &str,
    read: &mut Trust,
) -> Result<Awaited, Fault> {
    event.id = Some(job.key.clone());
    event.trace = job.row.trace.parse().ok();
    event.parent = traces::current().and_then(|here| here.span());
    let origin = Origin { principal: event.source.clone(), trust: job.row.trust, internal: true };
    let unknown = |error: Error| Fault::runtime(error.to_string()).unknown();
    // The same id again is the same event: a call that was cut off is found, and not repeated.
    let accepted = inner.bus.publish(Publish::one(event, origin)).await.map_err(unknown)?;
    let sequence = EventSeq(accepted.first().map_or(0, |one| one.sequence));
    let ended = inner.bus.end_of(sequence, consumer).await.map_err(unknown)?;
    let wanted = consumer.to_owned();
    let turn =
        inner.bus.store().read(move |conn| turns::of_delivery(conn, sequence, &wanted)).await.map_err(unknown)?;
    *read = match (turn, &ended) {
        (Some(turn), _) => turn.trust,
        // Its session was removed since.
        (None, Awaited::Done(result)) if consumer.starts_with("agent/") => {
            result["trust"].as_str().and_then(Trust::of_name).unwrap_or_default()
        }
        (None, _) => Trust::Owner,
    };
    match ended {
        Awaited::Missed => Err(Fault::runtime(format!("{consumer} did not get the call")).unknown()),
        Awaited::Forgotten => Err(Fault::runtime("what became of the call is not on record any more").unknown()),
        ended => Ok(ended),
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
