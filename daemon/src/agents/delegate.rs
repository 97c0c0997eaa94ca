//! The tool by which an agent asks another: an event for that one, and the end of its delivery, which is a turn of its own.

use std::sync::{Arc, Weak};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{CALL, Inner, consumer_name};
use crate::bus::{Awaited, Origin, Publish, Standing};
use crate::error::Error;
use crate::event::{NewEvent, Trust};
use crate::id::EventSeq;
use crate::store::events::Cause;
use crate::store::turns;
use crate::tools::{Call, Calling, Output, Permission, Provider, Tool, ToolFailure};

/// The tool's name.
const DELEGATE: &str = "delegate";
/// How many agents may ask each other in a row.
const CHAIN_MAX: usize = 4;

/// Offers [`DELEGATE`].
pub(super) struct Delegate {
    pub agents: Weak<Inner>,
}

impl Provider for Delegate {
    fn tools(&self) -> Vec<Tool> {
        vec![Tool {
            name: DELEGATE.to_owned(),
            description:
                "Asks another agent to do something, waits until it is done, and gives its answer. It knows nothing \
                          of this conversation: say all that it needs."
                    .to_owned(),
            schema: json!({
                "type": "object",
                "properties": {
                    "agent": { "type": "string", "description": "The agent's id" },
                    "task": { "type": "string", "minLength": 1, "description": "What it is to do, with all that it needs" },
                },
                "required": ["agent", "task"],
                "additionalProperties": false,
            }),
            source: "agent".to_owned(),
            permission: Permission::Act,
            // The same call again is the same event, whose end is waited for.
            repeatable: true,
        }]
    }

    fn call<'a>(&'a self, call: &'a Call, cancel: &'a CancellationToken) -> Calling<'a> {
        Box::pin(async move {
            let inner = self.agents.upgrade().ok_or_else(|| ToolFailure::Failed("the daemon ends".to_owned()))?;
            delegate(&inner, call, cancel).await
        })
    }
}

async fn delegate(inner: &Arc<Inner>, call: &Call, cancel: &CancellationToken) -> Result<Output, ToolFailure> {
    let text = |key: &str| call.arguments[key].as_str().unwrap_or_default();
    let (agent, caller) = (text("agent"), &call.caller);
    let consumer = consumer_name(agent);
    match inner.bus.router().by_name(&consumer).map(|entry| entry.spec.standing) {
        Some(Standing::Active) => {}
        Some(_) => return Err(ToolFailure::Failed(format!("the agent '{agent}' is switched off; nothing was asked"))),
        None => {
            let all: Vec<String> = inner.held(|held| held.agents.keys().cloned().collect());
            let why = format!("there is no agent '{}'; there are {}.", agent.escape_debug(), all.join(", "));
            return Err(ToolFailure::Arguments("/agent".to_owned(), why));
        }
    }
    let chain = chain(call, agent)?;
    let source = caller.agent.as_deref().map_or_else(|| super::SOURCE.to_owned(), consumer_name);
    let mut event = NewEvent::new(source, CALL, &json!({ "prompt": text("task"), "chain": chain }));
    (event.id, event.agent_id, event.trace) = (Some(call.key.clone()), Some(agent.to_owned()), Some(caller.trace));
    let origin = Origin { principal: caller.principal.clone(), trust: caller.trust, internal: true };
    let cause = caller.cause.as_ref().map(|event| Cause { event: Arc::clone(event), delivery: None, span: None });
    let accepted = inner.bus.publish_caused(Publish::one(event, origin), cause).await;
    let accepted = accepted.map_err(|error| ToolFailure::Failed(format!("nothing was asked: {error}")))?;
    let sequence = EventSeq(accepted.first().map_or(0, |one| one.sequence));
    let ended = tokio::select! {
        ended = inner.bus.end_of(sequence, &consumer) => ended,
        () = cancel.cancelled() => {
            stop(inner, sequence, consumer, caller.principal.clone());
            return Err(ToolFailure::Unknown(format!("'{agent}' was stopped before it had answered")));
        }
    };
    answered(agent, ended)
}

/// The agents that ask each other, up to this one; refuses one that is among them already.
fn chain(call: &Call, agent: &str) -> Result<Vec<String>, ToolFailure> {
    let before =
        call.caller.cause.as_ref().filter(|cause| cause.sent.kind == CALL).map(|cause| cause.sent.data.to_value());
    let known = before.as_ref().and_then(|data| data["chain"].as_array());
    let mut chain: Vec<String> = known.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    chain.extend(call.caller.agent.clone());
    if chain.iter().any(|one| one == agent) || chain.len() >= CHAIN_MAX {
        let why = format!(
            "{} ask each other already: an agent is asked once in a row, and {CHAIN_MAX} at the most.",
            chain.join(", ")
        );
        return Err(ToolFailure::Failed(why));
    }
    Ok(chain)
}

fn answered(agent: &str, ended: Result<Awaited, Error>) -> Result<Output, ToolFailure> {
    match ended {
        Ok(Awaited::Done(result)) if result["status"] == "done" => {
            let trust = result["trust"].as_str().and_then(Trust::of_name).unwrap_or_default();
            let text = result["text"].as_str().unwrap_or_default().to_owned();
            let value = json!({ "session": result["session_id"], "turn": result["turn_id"] });
            Ok(Output { text, value: Some(value), trust })
        }
        Ok(Awaited::Done(_)) => Err(ToolFailure::Failed(format!("'{agent}' was stopped before it had answered"))),
        Ok(Awaited::Failed(why)) => Err(ToolFailure::Failed(format!("'{agent}' has no answer: {why}"))),
        Ok(Awaited::Expired | Awaited::Missed) => Err(ToolFailure::Failed(format!("'{agent}' did not get it"))),
        Ok(Awaited::Forgotten) => Err(ToolFailure::Unknown("it is not on record any more".to_owned())),
        Err(error) => Err(ToolFailure::Unknown(error.to_string())),
    }
}

/// Whoever is asked stops with whoever asked; a daemon that ends stops nobody.
fn stop(inner: &Arc<Inner>, sequence: EventSeq, consumer: String, by: String) {
    if inner.bus.is_draining() {
        return;
    }
    let inner = Arc::clone(inner);
    tokio::spawn(async move {
        let found = inner.bus.store().read(move |conn| turns::of_delivery(conn, sequence, &consumer)).await;
        if let Ok(Some(turn)) = found {
            let agents = super::Agents { inner };
            if let Err(error) = agents.stop(turn.session, &by, |_, _| Ok(())).await {
                tracing::warn!(%error, "A turn that another asked for could not be stopped.");
            }
        }
    });
}
