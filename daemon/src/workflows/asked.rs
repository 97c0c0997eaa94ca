//! Starts and signals that others ask for: checked and made a change of, which takes effect with whatever it is stored with.

use std::sync::{Arc, Weak};

use serde_json::{Value, json};

use super::consumer::cause_of;
use super::{Inner, fresh, spans};
use crate::bus::{Flows, NewInstance, NewSignal, Preparing, Wanted};
use crate::clock::rfc3339;
use crate::error::Error;
use crate::store::workflows::{Change, InstanceRow, may_hear};
use crate::workflow::{APPROVAL, Env, Machine, State};

/// What the bus hands on.
pub(super) fn flows(inner: &Arc<Inner>) -> Flows {
    let (prepares, hinted) = (Arc::downgrade(inner), Arc::downgrade(inner));
    Flows {
        prepare: Box::new(move |wanted| prepare(Weak::clone(&prepares), wanted)),
        hint: Box::new(move || {
            if let Some(inner) = hinted.upgrade() {
                inner.hint.notify_one();
            }
        }),
    }
}

fn prepare(inner: Weak<Inner>, wanted: Wanted) -> Preparing {
    Box::pin(async move {
        let ending = Error::Busy {
            code: "draining",
            what: "The daemon is shutting down and takes no new work.".to_owned(),
            retry_after_ms: 5000,
        };
        let inner = inner.upgrade().ok_or(ending)?;
        match wanted {
            Wanted::Start(wanted) => inner.new_row(wanted).map(|row| Change::Start(Box::new(row))),
            Wanted::Signal(signal) => inner.heard(signal).await.map(|(_, change)| change),
        }
    })
}

impl Inner {
    /// A new instance as a row; its input fits what the workflow takes.
    pub(super) fn new_row(&self, wanted: NewInstance) -> Result<InstanceRow, Error> {
        let current = self.current(&wanted.workflow)?;
        if let Some(schema) = &current.definition.input.schema {
            schema.check("input", "input.schema of the workflow", &wanted.input)?;
        }
        Ok(InstanceRow {
            trace: wanted.trace.to_string(),
            trust: wanted.trust,
            principal: wanted.principal,
            cause: match wanted.cause {
                Some(event) => Some(cause_of(&event, wanted.span)),
                None => spans::asked(self, wanted.span),
            },
            dedup: wanted.dedup,
            ..fresh(&current, &wanted.input, self.now_ms())
        })
    }

    /// The id of the event, and the change that gives it to its instance. `invalid_state` when that does not wait for it.
    pub(super) async fn heard(self: &Arc<Self>, signal: NewSignal) -> Result<(String, Change), Error> {
        let row = self.by_id(&signal.instance).await?;
        if row.status.is_ended() {
            return Err(Error::conflict(
                "invalid_state",
                "It has ended, and waits for nothing. Start a new instance if one is wanted.",
            ));
        }
        let deaf = || {
            let reason = format!(
                "It does not wait for an event like '{}' now; GET /workflow-instance/{{id}} shows where it is.",
                signal.kind
            );
            Error::conflict("invalid_state", reason)
        };
        let event_id = crate::id::fresh();
        let event = json!({
            "specversion": "1.0",
            "id": event_id,
            "source": format!("signal/{}", signal.principal),
            "type": signal.kind,
            "time": rfc3339(self.now_ms()),
            "trust": signal.trust,
            "data": signal.data,
        });
        if row.state.is_none() {
            return Err(deaf());
        }
        let definition = self.definition(&row.digest).await?;
        let (inner, number) = (Arc::clone(self), row.number);
        let taken = tokio::task::spawn_blocking(move || {
            let text = row.state.unwrap_or_default();
            let state: State =
                serde_json::from_str(&text).map_err(Error::internal("reading the state of an instance"))?;
            let secret = |name: &str| inner.secret(name);
            // A copy looks whether it would take it; the instance itself gets it from its inbox.
            let mut machine = Machine::new(definition, state);
            let asked = machine.questions();
            let taken = machine.offer(&event, true, &Env { now_ms: inner.now_ms(), id: &row.id, secret: &secret });
            Ok::<_, Error>((taken, asked, event.to_string()))
        });
        let (taken, asked, body) = taken.await.map_err(Error::internal("offering an event"))??;
        if !taken {
            return Err(if signal.kind == APPROVAL { unanswered(&asked, &signal.data) } else { deaf() });
        }
        self.bus.store().read(move |conn| may_hear(conn, number)).await?;
        Ok((event_id, Change::Signal { instance: number, id: signal.instance, body }))
    }
}

/// Why an answer answers none of the questions that were asked.
fn unanswered(asked: &[String], data: &Value) -> Error {
    if asked.is_empty() {
        let reason = "No question of it waits for an answer now; GET /workflow-instance/{id} shows where it is.";
        return Error::conflict("invalid_state", reason);
    }
    if !data["approved"].is_boolean() {
        return Error::invalid("data.approved", "must be true or false.");
    }
    let all = asked.join(", ");
    let reason = match data["task"].as_str() {
        Some(_) => format!("is no task that asks something now; these do: {all}."),
        None => format!("must say which question is answered (`aman workflow approve` --task): {all}."),
    };
    Error::invalid("data.task", reason)
}
