//! Agents: who they are. Their conversations are in `chat`.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::{Value, json};

use super::audit::Draft;
use super::body::{self, Reply};
use super::problem::Problem;
use super::query::Query;
use super::{App, Call};
use crate::agents::{Audit, Change, Definition, Put};
use crate::error::Error;
use crate::event::{is_json, read_json};
use crate::store::Tx;

/// Media types of TOML (`application/toml` is the registered one; the others are sent besides).
const TOML: [&str; 3] = ["application/toml", "application/x-toml", "text/toml"];

fn audit(draft: &Draft, target: &str, before: Option<String>) -> Audit {
    let (draft, target) = (draft.clone(), target.to_owned());
    Box::new(move |tx: &mut Tx<'_>, answer: &Value| {
        let after = answer["digest"].as_str().map(str::to_owned);
        draft.record_with(tx, &target, json!({ "status": answer["status"] }), before, after)
    })
}

fn principal(call: &Call) -> String {
    call.principal.as_ref().map_or("anonymous", |principal| &principal.name).to_owned()
}

/// The digest of an agent's definition, if it is there.
fn digest(app: &App, id: &str) -> Option<String> {
    app.agents.definition(id).ok().map(|definition| definition.digest.clone())
}

/// `GET /agents`, by id.
pub(super) async fn list(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &["limit", "cursor"])?.page("agents", app.agents.list().await?)
}

/// `GET /agent/{id}`
pub(super) async fn show(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    body::ok(&app.agents.get(call.param("id")).await?)
}

/// `PUT /agent/{id}`: the bare definition, as JSON or TOML.
pub(super) async fn put(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let dry_run = Query::read(&call, &["dry_run"])?.flag("dry_run", false)?;
    if dry_run {
        call.draft.skip();
    }
    let essence = body::media_type(&call.headers)?;
    let as_toml = essence.as_ref().is_some_and(|essence| TOML.contains(&essence.as_str()));
    let as_json = essence.as_ref().is_none_or(|essence| is_json(essence));
    if !as_toml && !as_json {
        return Err(body::unsupported(essence.as_deref().unwrap_or_default()));
    }
    let bytes = call.bytes().await?;
    let definition = if as_toml {
        let text = std::str::from_utf8(&bytes).map_err(|_| Error::invalid("body", "must be UTF-8."))?;
        Definition::parse(text)?
    } else {
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        let value: Value =
            read_json(text).map_err(|error| Error::invalid("body", format!("must be a JSON object: {error}.")))?;
        Definition::parse_json(&value)?
    };
    let id = call.param("id").to_owned();
    let audit = audit(&call.draft, &id, digest(&app, &id));
    let put = Put { id, definition, principal: principal(&call), dry_run };
    let (shown, is_new) = app.agents.put(put, audit).await?;
    body::reply(if is_new && !dry_run { StatusCode::CREATED } else { StatusCode::OK }, &shown)
}

/// `DELETE /agent/{id}`
pub(super) async fn delete(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let id = call.param("id");
    body::ok(&app.agents.remove(id, audit(&call.draft, id, digest(&app, id))).await?)
}

/// `POST /agent/{id}/status`: switches it on or off.
pub(super) async fn status(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let mut fields = call.fields().await?;
    let status = fields.required_text("status");
    fields.done()?;
    let change = match status.as_str() {
        "idle" => Change::Enable,
        "disabled" => Change::Disable,
        _ => {
            let reason = "must be idle, which switches it on, or disabled; what it is doing shows by itself.";
            return Err(Error::invalid("status", reason).into());
        }
    };
    let id = call.param("id");
    body::ok(&app.agents.change(id, change, principal(&call), audit(&call.draft, id, digest(&app, id))).await?)
}

/// `POST /agent/{id}/reload`: reads its file again.
pub(super) async fn reload(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    call.fields().await?.done()?;
    let id = call.param("id");
    body::ok(&app.agents.reload(id, principal(&call), audit(&call.draft, id, digest(&app, id))).await?)
}

/// `GET /agent/{id}/versions`, newest first.
pub(super) async fn versions(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["limit", "cursor"])?;
    query.page("agent-versions", app.agents.versions(call.param("id")).await?)
}

/// `POST /agent/{id}/rollback`: to `{version}` or `{digest}`.
pub(super) async fn rollback(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let mut fields = call.fields().await?;
    let given = (fields.text("version"), fields.text("digest"));
    fields.done()?;
    let wanted = match given {
        (Some(one), None) | (None, Some(one)) if !one.is_empty() => one,
        _ => return Err(Error::invalid("version", "must be given, or else digest, and not both.").into()),
    };
    let id = call.param("id");
    body::ok(&app.agents.rollback(id, &wanted, principal(&call), audit(&call.draft, id, digest(&app, id))).await?)
}
