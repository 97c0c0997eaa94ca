//! Skills: what is there, and switching it on and off.

use std::sync::Arc;

use serde_json::json;

use super::body::{self, Reply};
use super::problem::Problem;
use super::query::Query;
use super::{App, Call};
use crate::error::Error;
use crate::store::Tx;

/// `GET /skills`, by name.
pub(super) async fn list(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["limit", "cursor"])?;
    query.page("skills", app.skills.list())
}

/// `GET /llm-skills`: what a model is told of: skills that may run or be read, what they are for, and where their text lies.
pub(super) async fn for_models(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["limit", "cursor"])?;
    let visible = app.skills.list().into_iter().filter(|skill| skill.enabled && skill.trusted);
    let shown = visible.map(|skill| {
        json!({
            "name": skill.name,
            "description": skill.description,
            "kind": skill.kind,
            "triggers": skill.triggers,
            "tags": skill.tags,
            "location": format!("{}/SKILL.md", skill.path),
            "digest": skill.digest,
        })
    });
    query.page("llm-skills", shown)
}

/// `GET /skills/search`: best first. Every word must be in the name, the tags, the description or the text.
pub(super) async fn search(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["q", "limit"])?;
    let Some(wanted) = query.get("q") else {
        return Err(Error::invalid("q", "is required: words to look for.").into());
    };
    let hits = app.skills.search(wanted, query.limit()?).await?;
    let shown = hits
        .iter()
        .map(|hit| json!({ "name": hit.name, "score": hit.score, "snippet": hit.snippet, "field": hit.field }));
    body::ok(&json!({ "items": shown.collect::<Vec<_>>(), "next_cursor": null }))
}

/// `GET /skill/{name}`
pub(super) async fn show(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    body::ok(&app.skills.get(call.param("name"))?)
}

/// `GET /skill/{name}/content`
pub(super) async fn content(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    body::ok(&app.skills.content(call.param("name")).await?)
}

/// `GET /skill/{name}/versions`: newest first.
pub(super) async fn versions(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["limit", "cursor"])?;
    let all = app.skills.versions(call.param("name")).await?;
    query.page("versions", all)
}

/// `GET /skill/{name}/diff`: what differs between two contents.
pub(super) async fn diff(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["from", "to"])?;
    body::ok(&app.skills.diff(call.param("name"), query.get("from"), query.get("to")).await?)
}

/// `POST /skill/{name}/rollback`: `digest` or `version` says which content comes back. A dry run tells what would differ.
pub(super) async fn rollback(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let dry_run = Query::read(&call, &["dry_run"])?.flag("dry_run", false)?;
    if dry_run {
        call.draft.skip();
    }
    let mut fields = call.fields().await?;
    let (digest, version) = (fields.text("digest"), fields.text("version"));
    fields.done()?;
    let ((Some(wanted), None) | (None, Some(wanted))) = (digest, version) else {
        return Err(
            Error::invalid("digest", "or version is required, one of them: `aman skill versions` lists both.").into()
        );
    };
    let name = call.param("name").to_owned();
    if dry_run {
        let (from, diff) = app.skills.preview(&name, &wanted).await?;
        return body::ok(&json!({ "dry_run": true, "from": from, "to": diff.to, "files": diff.files }));
    }
    let (begin, end) = (call.draft.clone(), call.draft.clone());
    let (target, done) = (name.clone(), name.clone());
    let detail = json!({ "wanted": wanted });
    let begun = move |tx: &mut Tx<'_>, digest: &str| begin.begin(tx, &target, json!({ "digest": digest }));
    let ended = move |tx: &mut Tx<'_>, before: Option<String>, digest: &str| {
        end.record_with(tx, &done, detail, before, Some(digest.to_owned()))
    };
    body::ok(&app.skills.rollback(&name, &wanted, begun, ended).await?)
}

/// `POST /skill/{name}/enable`
pub(super) async fn enable(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let mut fields = call.fields().await?;
    let digest = fields.digest("digest");
    fields.done()?;
    let (draft, name) = (call.draft.clone(), call.param("name").to_owned());
    let (target, after) = (name.clone(), digest.clone());
    let shown = app
        .skills
        .enable(&name, digest.as_deref(), move |tx| draft.record_with(tx, &target, json!({}), None, after))
        .await?;
    body::ok(&shown)
}

/// `POST /skill/{name}/disable`
pub(super) async fn disable(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    call.fields().await?.done()?;
    let (draft, name) = (call.draft.clone(), call.param("name").to_owned());
    let target = name.clone();
    body::ok(&app.skills.disable(&name, move |tx| draft.record(tx, &target, json!({}))).await?)
}

/// `POST /skills/reload`
pub(super) async fn reload(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    call.fields().await?.done()?;
    let draft = call.draft.clone();
    body::ok(&app.skills.reload(move |tx| draft.record(tx, "skills", json!({}))).await?)
}
