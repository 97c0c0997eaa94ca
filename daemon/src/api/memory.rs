//! What agents remember: looked at, added to, corrected, forgotten and taken along.

use std::sync::Arc;

use hyper::StatusCode;
use hyper::header::{CONTENT_DISPOSITION, HeaderValue, LOCATION};
use serde_json::{Value, json};

use super::audit::Draft;
use super::body::{self, Body, Reply};
use super::problem::Problem;
use super::query::{self, Query};
use super::{App, Call};
use crate::error::Error;
use crate::event::Trust;
use crate::memory::{Audit, Change, NewFact, Of, Writer};

/// Longest id of an agent, in bytes.
const AGENT_BYTES_MAX: usize = 64;

/// The record of a change: of what, not what it says, which is to be forgotten when it is forgotten.
fn audit(draft: &Draft) -> Audit {
    let draft = draft.clone();
    Box::new(move |tx, fact| draft.record(tx, &fact.id, json!({ "agent_id": fact.agent_id })))
}

fn writer(call: &Call) -> Writer {
    match &call.principal {
        Some(principal) => Writer { source: principal.name.to_string(), trust: principal.trust },
        None => Writer { source: "anonymous".to_owned(), trust: Trust::Unknown },
    }
}

/// Whose facts are asked for: `agent_id` means an agent's own and the shared ones, `shared` only these.
fn of(query: &Query) -> Result<Of, Error> {
    if query.flag("shared", false)? {
        return Ok(Of::Shared);
    }
    Ok(query.text("agent_id").map_or(Of::All, Of::Agent))
}

/// `GET /memory`: newest first; with `q`, best first.
pub(super) async fn list(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["agent_id", "shared", "q", "limit", "cursor"])?;
    let (of, limit) = (of(&query)?, query.limit()?);
    let before = query.cursor::<1>("memory")?.map(|[number]| number);
    if let Some(words) = query.get("q") {
        let found = app.memory.search(of, words, limit).await?;
        return body::ok(&json!({ "items": found, "next_cursor": null }));
    }
    let mut found = app.memory.list(of, before, limit + 1).await?;
    let next_cursor = query::cut(&mut found, limit, "memory", |one| one.number);
    body::ok(&json!({ "items": found, "next_cursor": next_cursor }))
}

/// `GET /memory/{id}`
pub(super) async fn show(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    body::ok(&app.memory.get(call.param("id")).await?)
}

/// `GET /memory/export`: everything, as JSON or Markdown.
pub(super) async fn export(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["agent_id", "shared", "format"])?;
    let of = of(&query)?;
    let (mut reply, name) = match query.get("format") {
        None | Some("json") => (body::ok(&app.memory.export(of).await?)?, "memory.json"),
        Some("md") => {
            let text = app.memory.export_markdown(of).await?;
            let reply = Reply {
                status: StatusCode::OK,
                content_type: "text/markdown; charset=utf-8",
                headers: Vec::new(),
                body: Body::full(text),
                trace: None,
            };
            (reply, "memory.md")
        }
        Some(_) => return Err(Error::invalid("format", "must be json or md.").into()),
    };
    let disposition = HeaderValue::from_str(&format!("attachment; filename=\"{name}\""));
    reply.headers.extend(disposition.ok().map(|value| (CONTENT_DISPOSITION, value)));
    Ok(reply)
}

/// The tags of a request: a list of words.
fn tags(value: Option<Value>) -> Result<Option<Vec<String>>, Error> {
    let Some(value) = value else { return Ok(None) };
    let wrong = || Error::invalid("tags", "must be a list of words.");
    let items = value.as_array().ok_or_else(wrong)?;
    items.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(wrong)).collect::<Result<_, _>>().map(Some)
}

/// `POST /memory`
pub(super) async fn add(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let mut fields = call.fields().await?;
    let (text, agent, given) = (fields.required_text("text"), fields.text("agent_id"), fields.value("tags"));
    fields.done()?;
    let tags = tags(given)?.unwrap_or_default();
    if agent.as_ref().is_some_and(|agent| agent.is_empty() || agent.len() > AGENT_BYTES_MAX || !is_id(agent)) {
        return Err(Error::invalid("agent_id", "must be the id of an agent.").into());
    }
    let new = NewFact { agent, text, tags };
    let (fact, is_new) = app.memory.remember(new, writer(&call), audit(&call.draft)).await?;
    if !is_new {
        return body::ok(&fact);
    }
    let mut reply = body::reply(StatusCode::CREATED, &fact)?;
    let location = HeaderValue::from_str(&format!("/memory/{}", fact.id));
    reply.headers.extend(location.ok().map(|value| (LOCATION, value)));
    Ok(reply)
}

fn is_id(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
}

/// `POST /memory/{id}`: corrects it.
pub(super) async fn edit(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let mut fields = call.fields().await?;
    let (text, given) = (fields.text("text"), fields.value("tags"));
    fields.done()?;
    let change = Change { text, tags: tags(given)? };
    if change.text.is_none() && change.tags.is_none() {
        return Err(Error::invalid("text", "or tags are required: what is to change.").into());
    }
    let id = call.param("id").to_owned();
    body::ok(&app.memory.edit(&id, change, writer(&call), audit(&call.draft)).await?)
}

/// `DELETE /memory/{id}`
pub(super) async fn forget(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    call.fields().await?.done()?;
    let id = call.param("id").to_owned();
    app.memory.forget(&id, Of::All, writer(&call), audit(&call.draft)).await?;
    body::ok(&json!({ "deleted": true }))
}

/// `DELETE /memory?id=`: the same, for clients that name it so.
pub(super) async fn forget_named(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["id"])?;
    let Some(id) = query.text("id") else {
        return Err(Error::invalid("id", "is required: which one is to be forgotten.").into());
    };
    call.fields().await?.done()?;
    app.memory.forget(&id, Of::All, writer(&call), audit(&call.draft)).await?;
    body::ok(&json!({ "deleted": true }))
}
