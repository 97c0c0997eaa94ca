//! Agents: who they are. Their conversations are in `chat`.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Value, json};

use super::audit::Draft;
use super::auth::Scope;
use super::body::{self, Reply};
use super::problem::Problem;
use super::query::Query;
use super::{App, Call};
use crate::agents::idle::{self, NewIdle};
use crate::agents::{Audit, Change, Definition, Put};
use crate::bus::StateWrite;
use crate::error::Error;
use crate::event::{Trust, is_json, read_json};
use crate::store::Tx;

/// Media types of TOML (`application/toml` is the registered one; the others are sent besides).
const TOML: [&str; 3] = ["application/toml", "application/x-toml", "text/toml"];

/// As long as somebody may wait for the end of idle work.
const WAIT_MAX: Duration = Duration::from_secs(600);

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
    let mut agents = app.agents.list().await?;
    agents.iter_mut().for_each(|agent| hide(&call, agent));
    Query::read(&call, &["limit", "cursor"])?.page("agents", agents)
}

/// `GET /agent/{id}`
pub(super) async fn show(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let mut shown = app.agents.get(call.param("id")).await?;
    hide(&call, &mut shown);
    body::ok(&shown)
}

/// Takes out what agents cost, whoever asked them, unless an administrator looks, as at `GET /usage`.
fn hide(call: &Call, shown: &mut Value) {
    if !call.principal.as_ref().is_some_and(|who| who.may(Scope::Admin)) {
        shown["usage"] = Value::Null;
    }
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
    let put = Put { id, definition, principal: principal(&call), narrow: None, dry_run };
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

/// The first skill that may run and is made for this kind of idle time.
fn idle_skill(app: &App, kind: &str) -> Option<String> {
    let has = |skill: &crate::skills::Shown, tag: &str| skill.tags.iter().any(|known| known == tag);
    let fits =
        |skill: &crate::skills::Shown| skill.trusted && skill.enabled && has(skill, idle::TAG) && has(skill, kind);
    app.skills.list().into_iter().find(fits).map(|skill| skill.name)
}

/// `GET /agents/idle-availability`
pub(super) async fn idle_availability(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let has: Vec<(&str, bool)> = idle::KINDS.iter().map(|kind| (*kind, idle_skill(&app, kind).is_some())).collect();
    let agents = app.agents.idle().into_iter().map(|(id, is_idle)| {
        let kinds = has.iter().map(|(kind, has)| ((*kind).to_owned(), Value::from(is_idle && *has)));
        (id, Value::Object(kinds.collect()))
    });
    let agents: serde_json::Map<String, Value> = agents.collect();
    body::ok(&json!({ "agents": agents }))
}

/// `POST /idle-run`: in the background, unless the caller waits.
pub(super) async fn idle_run(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let mut fields = call.fields().await?;
    let (kind, agent, background) = (fields.required_text("tag"), fields.text("agent_key"), fields.value("background"));
    let (project, work) = (fields.text("project_key"), fields.text("work_id"));
    fields.done()?;
    let background = match background {
        None | Some(Value::Null) => true,
        Some(Value::Bool(background)) => background,
        Some(_) => return Err(Error::invalid("background", "must be true or false.").into()),
    };
    if !idle::KINDS.contains(&kind.as_str()) {
        return Err(Error::invalid("tag", format!("must be one of {}.", idle::KINDS.join(", "))).into());
    }
    for (name, value) in [("agent_key", &agent), ("project_key", &project), ("work_id", &work)] {
        if value.as_ref().is_some_and(|key| key.is_empty() || key.len() > 200 || key.chars().any(char::is_control)) {
            return Err(Error::invalid(name, "must have 1 to 200 bytes, none of them a control character.").into());
        }
    }
    let Some(skill) = idle_skill(&app, &kind) else {
        let reason = format!(
            "There is no skill with the tags '{}' and '{kind}' that may run; `aman.tags` names them.",
            idle::TAG
        );
        return Err(Error::conflict("invalid_state", reason).into());
    };
    let (content, allowed_tools) = (app.skills.content(&skill).await?.content, app.skills.allowed_tools(&skill)?);
    let trust = call.principal.as_ref().map_or(Trust::Unknown, |principal| principal.trust);
    let new = NewIdle {
        agent,
        instructions: content,
        skill: skill.clone(),
        allowed_tools,
        project,
        work,
        principal: principal(&call),
        trust,
        trace: call.trace,
    };
    let (draft, again, trace) = (call.draft.clone(), call.again.clone(), call.trace);
    let record = move |id: &str| -> StateWrite {
        let answer = json!({ "run_id": id, "trace_id": trace.to_string(), "skill": skill });
        let id = id.to_owned();
        Box::new(move |tx: &mut Tx<'_>| {
            draft.record(tx, &id, json!({ "skill": answer["skill"], "tag": kind }))?;
            again.keep(tx, StatusCode::ACCEPTED, None, &answer)
        })
    };
    let skill = new.skill.clone();
    let run = app.agents.begin_idle(new, record).await?;
    let mut shown = json!({
        "run_id": run.id, "trace_id": call.trace.to_string(), "skill": skill, "agent": run.agent, "session_id": run.session,
    });
    if !background {
        shown["result"] = app.agents.end_of_idle(&run, WAIT_MAX).await?.unwrap_or(Value::Null);
    }
    body::reply(StatusCode::ACCEPTED, &shown)
}
