//! Chat: sessions with agents, and what is said in them. Who may see which session is decided by the agents.

use std::sync::Arc;

use hyper::StatusCode;
use hyper::header::{ACCEPT, CONTENT_DISPOSITION, HeaderValue, LOCATION};
use serde_json::{Value, json};

use super::again::Again;
use super::audit::Draft;
use super::auth::Scope;
use super::body::{self, Body, Fields, Reply};
use super::problem::Problem;
use super::query::{self, LIMIT_DEFAULT, Query};
use super::turn_stream::TurnStream;
use super::{App, Call};
use crate::agents::attachments;
use crate::agents::{Asked, Asking, Audit, Format, HITS_MAX, Range, Visitor, WantedSession, check_text};
use crate::error::Error;
use crate::event::{Trust, whole};
use crate::store::Tx;
use crate::store::chat::{Filter, Kind};

/// Longest search, in characters.
pub(super) const SEARCH_CHARS_MAX: usize = 500;

/// Who calls.
pub(super) fn visitor(call: &Call) -> Visitor {
    let who = call.principal.as_ref();
    Visitor {
        principal: who.map_or("anonymous", |who| &who.name).to_owned(),
        trust: who.map_or(Trust::Unknown, |who| who.trust),
        sees_all: who.is_some_and(|who| who.may(Scope::Admin)),
        only: None,
    }
}

/// The record of a change of a session; it holds none of what was said.
fn audit(draft: &Draft, session: &str, detail: fn(&Value) -> Value) -> Audit {
    let (draft, session) = (draft.clone(), session.to_owned());
    Box::new(move |tx: &mut Tx<'_>, answer: &Value| draft.record(tx, &session, detail(answer)))
}

/// As [`audit`], for what creates something: the answer is kept for the request's `Idempotency-Key`.
fn audit_new(call: &Call, session: &str, detail: fn(&Value) -> Value) -> Audit {
    let (draft, again, session) = (call.draft.clone(), call.again.clone(), session.to_owned());
    Box::new(move |tx: &mut Tx<'_>, answer: &Value| {
        draft.record(tx, &session, detail(answer))?;
        Again::keep(&again, tx, StatusCode::ACCEPTED, None, answer)
    })
}

/// `GET /chat/sessions`, those that changed last first.
pub(super) async fn list(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["agent_id", "kind", "state", "limit", "cursor"])?;
    let known = "must be person, event, asked or plugin.";
    let kind = query.parsed("kind", known, Kind::of_name)?;
    let closed = |text: &str| match text {
        "open" => Some(false),
        "closed" => Some(true),
        _ => None,
    };
    let closed = query.parsed("state", "must be open or closed.", closed)?;
    let filter = Filter { agent: query.text("agent_id"), principal: None, kind, closed };
    let (limit, before) = (query.limit()?, query.cursor::<2>("chat-sessions")?.map(|[at, number]| (at, number)));
    let mut found = app.agents.sessions(&visitor(&call), filter, before, limit + 1).await?;
    let more = found.len() > limit;
    found.truncate(limit);
    let last = found.last().filter(|_| more);
    let next = last.map(|((at_ms, number), _)| query::cursor("chat-sessions", &[*at_ms, *number]));
    let items: Vec<Value> = found.into_iter().map(|(_, shown)| shown).collect();
    body::ok(&json!({ "items": items, "next_cursor": next }))
}

/// `POST /chat/session/create`
pub(super) async fn create(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let mut fields = call.fields().await?;
    let (agent, title) = (fields.text("agent_id"), fields.text("title"));
    fields.done()?;
    let (draft, again) = (call.draft.clone(), call.again.clone());
    let audit: Audit = Box::new(move |tx: &mut Tx<'_>, answer: &Value| {
        let id = answer["id"].as_str().unwrap_or_default();
        draft.record(tx, id, json!({ "agent_id": answer["agent_id"] }))?;
        again.keep(tx, StatusCode::CREATED, Some(&place(id)), answer)
    });
    let wanted = WantedSession { agent, title, kind: Kind::Person };
    let shown = app.agents.create_session(&visitor(&call), wanted, audit).await?;
    let mut reply = body::reply(StatusCode::CREATED, &shown)?;
    let place = HeaderValue::from_str(&place(shown["id"].as_str().unwrap_or_default()));
    reply.headers.push((LOCATION, place.map_err(Error::internal("naming a new session"))?));
    Ok(reply)
}

fn place(id: &str) -> String {
    format!("/chat/session/{id}/state")
}

/// `GET /chat/session/{id}/state`: with the newest messages, what it took, and the questions that wait for the person.
pub(super) async fn state(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    body::ok(&app.agents.session_state(&visitor(&call), call.param("id")).await?)
}

/// `GET /chat/session/{id}/history`, oldest first: the branch that is shown, or with `branches=all` all that was said.
pub(super) async fn history(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["branches", "limit", "cursor"])?;
    let known = |text: &str| match text {
        "shown" => Some(false),
        "all" => Some(true),
        _ => None,
    };
    let all = query.parsed("branches", "must be shown or all.", known)?.unwrap_or(false);
    let (limit, after) = (query.limit()?, query.cursor::<1>("chat-history")?.map(|[number]| number));
    // One more than is shown tells whether there is a next page; a page may also be full before, by its bytes.
    let range = Range { after, rows_max: limit + 1, all };
    let (mut found, is_cut) = app.agents.history(&visitor(&call), call.param("id"), range).await?;
    let more = found.len() > limit || is_cut;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map(|(number, _)| query::cursor("chat-history", &[*number]));
    let items: Vec<Value> = found.into_iter().map(|(_, shown)| shown).collect();
    body::ok(&json!({ "items": items, "next_cursor": next }))
}

/// `GET /chat/search`, best first.
pub(super) async fn search(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["q", "agent_id", "limit"])?;
    let limit = query.count("limit", HITS_MAX)?.unwrap_or(LIMIT_DEFAULT);
    let words = query.text("q").ok_or_else(|| Error::invalid("q", "is required: the words to look for."))?;
    if words.chars().count() > SEARCH_CHARS_MAX {
        return Err(Error::invalid("q", format!("may have {SEARCH_CHARS_MAX} characters.")).into());
    }
    let filter = Filter { agent: query.text("agent_id"), ..Filter::default() };
    let hits = app.agents.search_chats(&visitor(&call), words, filter, limit).await?;
    body::ok(&json!({ "items": hits, "next_cursor": null }))
}

/// `GET /chat/session/{id}/export`
pub(super) async fn export(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["format"])?;
    let known = |text: &str| match text {
        "md" => Some(Format::Markdown),
        "json" => Some(Format::Json),
        _ => None,
    };
    let format = query.parsed("format", "must be md or json.", known)?.unwrap_or(Format::Markdown);
    let id = call.param("id");
    let text = app.agents.export(&visitor(&call), id, format).await?;
    let (content_type, ending) = match format {
        Format::Markdown => ("text/markdown; charset=utf-8", "md"),
        Format::Json => ("application/json", "json"),
    };
    // The id, unlike the title, has no character that a header or a file system would mind.
    let name = HeaderValue::from_str(&format!("attachment; filename=\"chat-{id}.{ending}\""));
    let headers = vec![(CONTENT_DISPOSITION, name.map_err(Error::internal("naming an export"))?)];
    Ok(Reply { status: StatusCode::OK, content_type, headers, body: Body::full(text), trace: None })
}

/// `GET /chat/session/{id}/stream`: the turn that is under way, from its begin.
pub(super) async fn stream(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let viewer = app.agents.look_on(&visitor(&call), call.param("id")).await?;
    if app.lifecycle.is_draining() {
        return Err(super::draining());
    }
    if call.head_only {
        return Ok(TurnStream::head());
    }
    Ok(TurnStream::reply(&app, viewer, call.principal.as_ref()))
}

/// `POST /chat/session/{id}/send`
pub(super) async fn send(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let mut fields = begin(&mut call).await?;
    let (text, attached) = (fields.required_text("text"), fields.value("attachments"));
    let expected = expected_version(&mut fields)?;
    fields.done()?;
    let attachments = attached.map_or(Ok(Vec::new()), |given| attachments::read(&given))?;
    check_text(&text)?;
    ask(&app, &call, Asked::Send { text, attachments }, expected).await
}

/// `POST /chat/session/{id}/edit`: other words in the place of earlier ones, on a branch of their own.
pub(super) async fn edit(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let mut fields = begin(&mut call).await?;
    let (message, text) = (fields.required_text("message_id"), fields.required_text("text"));
    let expected = expected_version(&mut fields)?;
    fields.done()?;
    check_text(&text)?;
    ask(&app, &call, Asked::Edit { message, text }, expected).await
}

/// `POST /chat/session/{id}/retry`: another answer to the last words of the person.
pub(super) async fn retry(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let mut fields = begin(&mut call).await?;
    let expected = expected_version(&mut fields)?;
    fields.done()?;
    ask(&app, &call, Asked::Retry, expected).await
}

async fn begin(call: &mut Call) -> Result<Fields, Problem> {
    Query::read(call, &[])?;
    call.fields().await
}

fn expected_version(fields: &mut Fields) -> Result<Option<i64>, Problem> {
    let wrong =
        || Error::invalid("expected_version", "must be a whole number: the version of the state that was seen.");
    let given = fields.value("expected_version");
    Ok(given.map(|value| whole(&value).filter(|version| *version >= 0).ok_or_else(wrong)).transpose()?)
}

/// Has the turn taken; answers once it is stored, or with what happens in it.
async fn ask(app: &Arc<App>, call: &Call, asked: Asked, expected_version: Option<i64>) -> Result<Reply, Problem> {
    let detail = |answer: &Value| json!({ "message_id": answer["message_id"], "turn_id": answer["turn_id"], "agent_id": answer["agent_id"] });
    let id = call.param("id");
    let audit = audit_new(call, id, detail);
    let asking = Asking { asked, expected_version, trace: call.trace };
    let begun = app.agents.ask(&visitor(call), id, asking, audit).await?;
    if streams(call) {
        return Ok(TurnStream::reply(app, begun.viewer, call.principal.as_ref()));
    }
    body::reply(StatusCode::ACCEPTED, &begun.shown)
}

/// Whether the client asks for server-sent events.
fn streams(call: &Call) -> bool {
    let mut accepted = call.headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.any(|value| {
        let mut types = value.split(',').map(|one| one.split(';').next().unwrap_or_default().trim());
        types.any(|one| one.eq_ignore_ascii_case("text/event-stream"))
    })
}

/// `POST /chat/session/{id}/stop`: ends the turn that is under way; what came of it stays.
pub(super) async fn stop(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    begin(&mut call).await?.done()?;
    let id = call.param("id");
    let audit = audit(&call.draft, id, |answer| json!({ "stopped": answer["stopped"] }));
    body::ok(&app.agents.stop_session(&visitor(&call), id, audit).await?)
}

/// `POST /chat/session/{id}/close`
pub(super) async fn close(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    begin(&mut call).await?.done()?;
    let id = call.param("id");
    let audit = audit(&call.draft, id, |_| json!({}));
    body::ok(&app.agents.close_session(&visitor(&call), id, audit).await?)
}

/// `POST /chat/session/{id}/rename`
pub(super) async fn rename(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let mut fields = begin(&mut call).await?;
    let title = fields.required_text("title");
    fields.done()?;
    let id = call.param("id");
    let audit = audit(&call.draft, id, |_| json!({}));
    body::ok(&app.agents.rename_session(&visitor(&call), id, &title, audit).await?)
}

/// `DELETE /chat/session/{id}`
pub(super) async fn delete(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let id = call.param("id");
    let audit = audit(&call.draft, id, |gone| json!({ "agent_id": gone["agent_id"], "messages": gone["messages"] }));
    body::ok(&app.agents.delete_session(&visitor(&call), id, audit).await?)
}
