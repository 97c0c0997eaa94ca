//! The soul: what it says, its history, and what models are told of it.

use std::sync::Arc;

use serde_json::json;

use super::audit::Draft;
use super::body::{self, Reply};
use super::problem::Problem;
use super::query::{self, Query};
use super::{App, Call};
use crate::error::Error;
use crate::event;
use crate::soul::{Audit, PromptParts, Wanted};

/// The record of a change of the soul.
fn audit(draft: &Draft) -> Audit {
    let draft = draft.clone();
    Box::new(move |tx, before, after| {
        draft.record_with(tx, "soul", json!({}), Some(before.to_owned()), Some(after.to_owned()))
    })
}

/// `GET /soul/info`
pub(super) async fn info(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    body::ok(&app.soul.info())
}

/// `GET /soul/raw`
pub(super) async fn raw(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let soul = app.soul.current();
    body::ok(&json!({ "raw": soul.text, "digest": soul.digest }))
}

/// `GET /soul/versions`: newest first.
pub(super) async fn versions(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["limit", "cursor"])?;
    let (limit, before) = (query.limit()?, query.cursor::<1>("soul")?.map(|[number]| number));
    let mut found = app.soul.versions(before, limit + 1).await?;
    let next_cursor = query::cut(&mut found, limit, "soul", |one| one.version);
    body::ok(&json!({ "items": found, "next_cursor": next_cursor }))
}

/// `GET /soul/system-prompt`: what a model is told before everything else; of an agent with its instructions, its skills, and
/// the newest of what it remembers.
pub(super) async fn system_prompt(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let agent = Query::read(&call, &["agent_id"])?.text("agent_id");
    let prompt = match &agent {
        Some(id) => app.agents.prompt(id).await?,
        None => app.soul.system_prompt(&PromptParts { now_ms: app.clock.now_ms(), ..PromptParts::default() }),
    };
    body::ok(&json!({ "agent_id": agent, "system_prompt": prompt, "digest": app.soul.current().digest }))
}

/// `POST /soul/update`: a dry run checks only.
pub(super) async fn update(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let dry_run = Query::read(&call, &["dry_run"])?.flag("dry_run", false)?;
    if dry_run {
        call.draft.skip();
    }
    let mut fields = call.fields().await?;
    let (content, expected) = (fields.required_text("content"), fields.digest("expected_digest"));
    fields.done()?;
    if dry_run {
        let mut shown = json!(app.soul.check(&content, expected.as_deref())?);
        shown["dry_run"] = true.into();
        return body::ok(&shown);
    }
    let principal = principal(&call);
    app.soul.update(&content, expected.as_deref(), &principal, audit(&call.draft)).await?;
    body::ok(&app.soul.info())
}

/// `POST /soul/rollback`: `digest` or `version` says which text comes back.
pub(super) async fn rollback(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let mut fields = call.fields().await?;
    let (digest, version) = (fields.text("digest"), fields.value("version"));
    fields.done()?;
    let wanted = match (digest, version) {
        (Some(digest), None) => Wanted::Digest(digest),
        (None, Some(version)) => {
            let number = event::whole(&version);
            Wanted::Number(number.ok_or_else(|| Error::invalid("version", "must be a number of GET /soul/versions."))?)
        }
        _ => {
            let reason = "or version is required, one of them: `aman soul versions` lists both.";
            return Err(Error::invalid("digest", reason).into());
        }
    };
    let principal = principal(&call);
    app.soul.rollback(&wanted, &principal, audit(&call.draft)).await?;
    body::ok(&app.soul.info())
}

fn principal(call: &Call) -> String {
    call.principal.as_ref().map_or_else(|| "anonymous".to_owned(), |principal| principal.name.to_string())
}
