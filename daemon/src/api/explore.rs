//! `POST /explore/start`: looks through the configured sources for what is new, and puts that into a session.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::{Value, json};

use super::body::{self, Reply};
use super::problem::Problem;
use super::query::Query;
use super::{App, Call};
use crate::agents::Audit;
use crate::agents::explore::NewExplore;
use crate::error::Error;
use crate::event::Trust;
use crate::store::Tx;

/// Longest text that says what is looked for, in characters.
pub(super) const QUERY_CHARS_MAX: usize = 1000;

/// Begins an exploration; what it finds is said in the session that is answered.
pub(super) async fn start(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let mut fields = call.fields().await?;
    let (agent, source, query) = (fields.text("agent_id"), fields.text("source"), fields.text("query"));
    fields.done()?;
    let wrong = |query: &String| query.chars().count() > QUERY_CHARS_MAX || query.contains('\0');
    if query.as_ref().is_some_and(wrong) {
        return Err(Error::invalid("query", format!("must have at most {QUERY_CHARS_MAX} characters.")).into());
    }
    let sources = app.explore.meant(source.as_deref())?;
    let (draft, again) = (call.draft.clone(), call.again.clone());
    let audit: Audit = Box::new(move |tx: &mut Tx<'_>, answer: &Value| {
        let session = answer["session_id"].as_str().unwrap_or_default();
        let detail = json!({ "agent_id": answer["agent_id"], "instance_id": answer["instance_id"], "sources": answer["sources"] });
        draft.record(tx, session, detail)?;
        again.keep(tx, StatusCode::ACCEPTED, None, answer)
    });
    let who = call.principal.as_ref();
    let new = NewExplore {
        agent,
        sources,
        query: query.map(|query| query.trim().to_owned()).filter(|query| !query.is_empty()),
        principal: who.map_or("anonymous", |who| &who.name).to_owned(),
        trust: who.map_or(Trust::Unknown, |who| who.trust),
        trace: call.trace,
    };
    body::reply(StatusCode::ACCEPTED, &app.agents.explore(new, audit).await?)
}
