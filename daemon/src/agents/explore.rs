//! An exploration: a session in which somebody asks what is new, and the instance of the bundled workflow that finds it out
//! and puts the answer there.

use serde_json::{Value, json};

use super::{Agents, Audit, DEFAULT};
use crate::bus::{NewInstance, Wanted};
use crate::error::Error;
use crate::event::Trust;
use crate::id::{TraceId, fresh};
use crate::store::Tx;
use crate::store::chat::{self as rows, Body, Kind, NewMessage, NewSession, Role};
use crate::store::workflows::Change;

/// The bundled workflow.
const WORKFLOW: &str = "explore";

/// An exploration that is wanted.
pub struct NewExplore {
    /// The agent that looks through what is found; none = [`DEFAULT`].
    pub agent: Option<String>,
    /// The names of the sources.
    pub sources: Vec<String>,
    /// What is looked for; none = whatever is new.
    pub query: Option<String>,
    /// Who asks.
    pub principal: String,
    /// How far they are believed.
    pub trust: Trust,
    /// The trace that it belongs to.
    pub trace: TraceId,
}

impl Agents {
    /// Begins an exploration: the session, what is asked in it, the instance and `audit` in one transaction. Gives
    /// `{session_id, trace_id, instance_id, agent_id, sources}`. `Busy` `no_model`; `Forbidden` `soul_boundary`, `Invalid`
    /// `content_policy`; `Conflict` `invalid_state` when the agent is switched off or the workflow was removed.
    pub async fn explore(&self, new: NewExplore, audit: Audit) -> Result<Value, Error> {
        let inner = &self.inner;
        let agent = new.agent.unwrap_or_else(|| DEFAULT.to_owned());
        let definition = self.ready(&agent)?;
        let query = new.query.unwrap_or_default();
        inner.parts.soul.admit_text(&query)?;
        inner.admit_model(&definition).await?;
        let session = NewSession {
            id: fresh(),
            agent: agent.clone(),
            title: None,
            kind: Kind::Person,
            principal: new.principal.clone(),
            trust: new.trust,
            at_ms: inner.now_ms(),
        };
        let input = json!({ "session": session.id, "agent": agent, "query": query, "sources": new.sources });
        let wanted = NewInstance {
            workflow: WORKFLOW.to_owned(),
            input,
            dedup: Some(session.id.clone()),
            principal: new.principal,
            trust: new.trust,
            trace: new.trace,
            cause: None,
            span: None,
        };
        let change = inner.bus.prepare_instance(Wanted::Start(wanted)).await.map_err(without_workflow)?;
        let Change::Start(instance) = &change else {
            return Err(Error::internal("beginning an exploration")("no instance was made"));
        };
        let answer = json!({
            "session_id": session.id, "trace_id": new.trace.to_string(), "instance_id": instance.id, "agent_id": agent,
            "sources": new.sources,
        });
        let start = inner.bus.change_instances(vec![change]);
        inner.bus.store().takes_new()?;
        let said = asked(&query, &new.sources);
        let write = move |tx: &mut Tx<'_>| {
            let row = rows::create(tx, &session)?;
            rows::append(tx, row.number, &message(Role::User, said, session.trust, session.at_ms))?;
            let title = if query.is_empty() { "What is new".to_owned() } else { format!("What is new: {query}") };
            let title = super::sessions::made_title(&title).unwrap_or(title);
            rows::set_title(tx, row.number, &title, false, session.at_ms)?;
            start(tx)?;
            audit(tx, &answer)?;
            Ok(answer)
        };
        inner.bus.store().write(write).await
    }
}

/// What stands in the session as the person's words.
fn asked(query: &str, sources: &[String]) -> String {
    let about = if query.is_empty() { String::new() } else { format!(" about this: {query}") };
    format!("Look through {} for what is new{about}", sources.join(", "))
}

fn message(role: Role, text: String, trust: Trust, at_ms: crate::clock::Millis) -> NewMessage {
    NewMessage { id: fresh(), turn: None, role, text, body: Body::default(), trust, at_ms }
}

fn without_workflow(error: Error) -> Error {
    match error {
        Error::NotFound { .. } => {
            let reason = format!(
                "The workflow '{WORKFLOW}' was removed, and explorations are its instances. Put it back with `aman workflow \
                 put`: it is in the folder workflows/ of aman's source."
            );
            Error::conflict("invalid_state", reason)
        }
        other => other,
    }
}
