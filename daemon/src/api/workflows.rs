//! Workflows and their instances.

use std::sync::Arc;

use hyper::StatusCode;
use hyper::header::{HeaderValue, LOCATION};
use serde_json::{Value, json};

use super::audit::Draft;
use super::body::{self, Body, Reply};
use super::problem::Problem;
use super::query::{self, Query};
use super::{App, Call};
use crate::bus::{NewInstance, NewSignal};
use crate::error::Error;
use crate::event::{self, Trust, read_json};
use crate::redact;
use crate::store::Tx;
use crate::store::workflows::Status;
use crate::workflows::{Audit, Put};

/// Media types of YAML (RFC 9512, and what is sent besides).
const YAML: [&str; 4] = ["application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"];

fn audit(draft: &Draft, target: &str, detail: Value) -> Audit {
    let (draft, target) = (draft.clone(), target.to_owned());
    Box::new(move |tx: &mut Tx<'_>, _: &Value| draft.record(tx, &target, detail))
}

/// A flowchart.
fn mermaid(text: String) -> Reply {
    Reply {
        status: StatusCode::OK,
        content_type: "text/vnd.mermaid; charset=utf-8",
        headers: Vec::new(),
        body: Body::full(text),
        trace: None,
    }
}

/// Whether a flowchart is wanted.
fn wants_chart(query: &Query) -> Result<bool, Problem> {
    match query.get("format") {
        None | Some("json") => Ok(false),
        Some("mermaid") => Ok(true),
        Some(_) => Err(Error::invalid("format", "must be json or mermaid.").into()),
    }
}

/// `GET /workflows`, by name.
pub(super) async fn list(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &["limit", "cursor"])?.page("workflows", app.workflows.list().await?)
}

/// `GET /workflow/{name}`; `?format=mermaid` draws it.
pub(super) async fn show(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["format"])?;
    if wants_chart(&query)? {
        return Ok(mermaid(app.workflows.chart(call.param("name"))?));
    }
    body::ok(&app.workflows.get(call.param("name")).await?)
}

/// `PUT /workflow/{name}`: the bare definition.
pub(super) async fn put(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let dry_run = Query::read(&call, &["dry_run"])?.flag("dry_run", false)?;
    if dry_run {
        call.draft.skip();
    }
    let essence = body::media_type(&call.headers)?;
    let is_yaml = essence.as_ref().is_some_and(|essence| YAML.contains(&essence.as_str()));
    let is_json = essence.as_ref().is_none_or(|essence| event::is_json(essence));
    if !is_yaml && !is_json {
        return Err(body::unsupported(essence.as_deref().unwrap_or_default()));
    }
    let bytes = call.bytes().await?;
    if is_json {
        let _checked: Value =
            read_json(&bytes).map_err(|error| Error::invalid("body", format!("must be a JSON object: {error}.")))?;
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| Error::invalid("body", "must be UTF-8."))?.to_owned();
    let name = call.param("name").to_owned();
    let (draft, target) = (call.draft.clone(), name.clone());
    let audit: Audit = Box::new(move |tx: &mut Tx<'_>, answer: &Value| {
        let digest = answer["digest"].as_str().map(str::to_owned);
        draft.record_with(tx, &target, json!({ "version": answer["version"] }), None, digest)
    });
    let (shown, is_new) = app.workflows.put(Put { name, text, dry_run }, audit).await?;
    body::reply(if is_new && !dry_run { StatusCode::CREATED } else { StatusCode::OK }, &shown)
}

/// `DELETE /workflow/{name}`
pub(super) async fn delete(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let name = call.param("name");
    body::ok(&app.workflows.delete(name, audit(&call.draft, name, json!({}))).await?)
}

/// `POST /workflow/{name}/create`
pub(super) async fn create(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let dry_run = Query::read(&call, &["dry_run"])?.flag("dry_run", false)?;
    if dry_run {
        call.draft.skip();
    }
    let mut fields = call.fields().await?;
    let (input, dedup_key) = (fields.value("input").unwrap_or(Value::Null), fields.text("dedup_key"));
    fields.done()?;
    if dedup_key.as_ref().is_some_and(|key| key.is_empty() || key.len() > 255 || key.chars().any(char::is_control)) {
        return Err(Error::invalid("dedup_key", "must have 1 to 255 bytes, none of them a control character.").into());
    }
    let mut input = input;
    redact::value(&mut input);
    let principal = call.principal.as_ref().map_or("anonymous", |principal| &principal.name).to_owned();
    let trust = call.principal.as_ref().map_or(Trust::Unknown, |principal| principal.trust);
    let (draft, again) = (call.draft.clone(), call.again.clone());
    let audit: Audit = Box::new(move |tx: &mut Tx<'_>, answer: &Value| {
        let id = answer["id"].as_str().unwrap_or_default();
        draft.record(tx, id, json!({ "workflow": answer["workflow"] }))?;
        again.keep(tx, StatusCode::CREATED, Some(&format!("/workflow-instance/{id}")), answer)
    });
    let wanted = NewInstance {
        workflow: call.param("name").to_owned(),
        input,
        dedup: dedup_key.map(|key| format!("key-{key}")),
        principal,
        trust,
        trace: call.trace,
        cause: None,
        span: call.parent.map(|from| from.span),
    };
    if dry_run {
        return body::ok(&app.workflows.preview(wanted)?);
    }
    let shown = app.workflows.create(wanted, audit).await?;
    let place = format!("/workflow-instance/{}", shown["id"].as_str().unwrap_or_default());
    let mut reply = body::reply(StatusCode::CREATED, &shown)?;
    let place = HeaderValue::from_str(&place).map_err(Error::internal("naming a new instance"))?;
    reply.headers.push((LOCATION, place));
    Ok(reply)
}

/// `GET /workflow-instances`, newest first.
pub(super) async fn instances(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["workflow", "status", "limit", "cursor"])?;
    let known = "must be pending, running, waiting, paused, completed, faulted or cancelled.";
    let named = |name: &str| Status::NAMES.iter().find(|known| **known == name).map(|known| (*known).to_owned());
    let status = query.parsed("status", known, named)?;
    let workflow = query.get("workflow").map(str::to_owned);
    let (limit, before) = (query.limit()?, query.cursor::<1>("workflow-instances")?.map(|[number]| number));
    let mut found = app.workflows.instances(workflow, status, before, limit + 1).await?;
    let next = query::cut(&mut found, limit, "workflow-instances", |(number, _)| *number);
    let items: Vec<Value> = found.into_iter().map(|(_, shown)| shown).collect();
    body::ok(&json!({ "items": items, "next_cursor": next }))
}

/// `GET /workflow-instance/{id}` with its journal; `?format=mermaid` draws where it is.
pub(super) async fn instance(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["format"])?;
    if wants_chart(&query)? {
        return Ok(mermaid(app.workflows.instance_chart(call.param("id")).await?));
    }
    body::ok(&app.workflows.instance(call.param("id")).await?)
}

/// `POST /workflow-instance/{id}/retry`: from the task that failed.
pub(super) async fn retry(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let (id, audit) = plain(&mut call).await?;
    body::ok(&app.workflows.retry(&id, audit).await?)
}

/// `POST /workflow-instance/{id}/cancel`
pub(super) async fn cancel(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let (id, audit) = plain(&mut call).await?;
    body::ok(&app.workflows.cancel(&id, audit).await?)
}

/// `POST /workflow-instance/{id}/pause`
pub(super) async fn pause(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let (id, audit) = plain(&mut call).await?;
    body::ok(&app.workflows.hold(&id, true, audit).await?)
}

/// `POST /workflow-instance/{id}/resume`
pub(super) async fn resume(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let (id, audit) = plain(&mut call).await?;
    body::ok(&app.workflows.hold(&id, false, audit).await?)
}

/// The instance of a request without fields, and its record.
async fn plain(call: &mut Call) -> Result<(String, Audit), Problem> {
    Query::read(call, &[])?;
    call.fields().await?.done()?;
    let id = call.param("id").to_owned();
    let record = audit(&call.draft, &id, json!({}));
    Ok((id, record))
}

/// `POST /workflow-instance/{id}/event`: for this instance alone.
pub(super) async fn signal(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let mut fields = call.fields().await?;
    let (kind, mut data) = (fields.required_text("type"), fields.value("data").unwrap_or(Value::Null));
    fields.done()?;
    event::check_type(&kind).map_err(|reason| Error::invalid("type", reason))?;
    redact::value(&mut data);
    let (id, who) = (call.param("id").to_owned(), call.principal.as_ref());
    let audit = audit(&call.draft, &id, json!({ "type": kind }));
    let signal = NewSignal {
        instance: id,
        kind,
        data,
        principal: who.map_or("anonymous", |who| &who.name).to_owned(),
        trust: who.map_or(Trust::Unknown, |who| who.trust),
    };
    body::ok(&app.workflows.signal(signal, audit).await?)
}
