//! Skills: what is there, and switching it on and off.

use std::sync::Arc;

use serde_json::{Value, json};

use super::body::{self, Reply};
use super::problem::Problem;
use super::query::Query;
use super::{App, Call};
use crate::error::Error;
use crate::skills::Shown;

/// Longest snippet of a search result, in characters.
const SNIPPET_CHARS: usize = 160;

/// `GET /skills`, by name.
pub(super) async fn list(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["limit", "cursor"])?;
    query.page("skills", app.skills.list())
}

/// `GET /llm-skills`: what a model is told of: skills that may run or be read, with what triggers them.
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
        })
    });
    query.page("llm-skills", shown)
}

/// `GET /skills/search`: best first. Every word must be in the name, the tags or the description.
pub(super) async fn search(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["q", "limit"])?;
    let Some(wanted) = query.get("q").map(str::to_lowercase) else {
        return Err(Error::invalid("q", "is required: words to look for.").into());
    };
    let words: Vec<&str> = wanted.split_whitespace().collect();
    let mut found: Vec<(u32, Value)> =
        app.skills.list().iter().filter_map(|skill| score(skill, &words).map(|hit| shown_hit(skill, hit))).collect();
    found.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1["name"].as_str().cmp(&b.1["name"].as_str())));
    let items: Vec<Value> = found.into_iter().take(query.limit()?).map(|(_, item)| item).collect();
    body::ok(&json!({ "items": items, "next_cursor": null }))
}

/// How well a skill fits, and the field that fits best; none when a word is missing.
fn score(skill: &Shown, words: &[&str]) -> Option<(u32, &'static str)> {
    let tags = skill.tags.join(" ").to_lowercase();
    let fields = [
        ("name", skill.name.to_lowercase(), 10),
        ("tags", tags, 5),
        ("description", skill.description.to_lowercase(), 2),
    ];
    let mut total = 0;
    let mut best: (u32, &'static str) = (0, "name");
    for word in words {
        let hits = fields.iter().filter(|(_, text, _)| text.contains(word));
        let weights: Vec<(u32, &'static str)> =
            hits.map(|(field, text, weight)| (weight * if text == word { 2 } else { 1 }, *field)).collect();
        let top = weights.iter().max_by_key(|(weight, _)| *weight)?;
        total += weights.iter().map(|(weight, _)| weight).sum::<u32>();
        if top.0 > best.0 {
            best = *top;
        }
    }
    (total > 0).then_some((total, best.1))
}

fn shown_hit(skill: &Shown, (score, field): (u32, &'static str)) -> (u32, Value) {
    let text = match field {
        "name" | "description" => &skill.description,
        _ => &skill.tags.join(" "),
    };
    let snippet: String = text.chars().take(SNIPPET_CHARS).collect();
    (score, json!({ "name": skill.name, "score": score, "snippet": snippet, "field": field }))
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
