//! Sources: shown, paused, resumed, changed; and the calls of their hooks.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::json;

use super::auth::Scope;
use super::body::{self, Reply};
use super::problem::Problem;
use super::query::Query;
use super::{App, Call, events, gate};
use crate::bus::StateWrite;
use crate::error::Error;
use crate::sources::Door;
use crate::sources::webhook::{Headers, Refusal, Taken};

/// After how long a sender may try a paused hook again.
const PAUSED_RETRY_MS: u64 = 60_000;

/// `GET /event-sources`, by id.
pub(super) async fn list(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let mut all = [app.sources.list(), app.plugins.sources()].concat();
    all.sort_by(|a, b| a["id"].as_str().cmp(&b["id"].as_str()));
    Query::read(&call, &["limit", "cursor"])?.page("sources", all)
}

/// `GET /event-source/{id}`
pub(super) async fn show(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let id = call.param("id");
    body::ok(&if app.plugins.has_source(id) { app.plugins.source(id)? } else { app.sources.show(id)? })
}

/// `POST /event-source/{id}/pause`
pub(super) async fn pause(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    switch(app, call, true).await
}

/// `POST /event-source/{id}/resume`
pub(super) async fn resume(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    switch(app, call, false).await
}

async fn switch(app: Arc<App>, mut call: Call, paused: bool) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    call.fields().await?.done()?;
    let record = record(&call, json!({ "paused": paused }));
    let id = call.param("id");
    body::ok(&if app.plugins.has_source(id) {
        app.plugins.pause_source(id, paused, record).await?
    } else {
        app.sources.set_paused(id, paused, record).await?
    })
}

/// `PUT /event-source/{id}/config`: the whole of what differs from the file.
pub(super) async fn configure(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let wanted = call.fields().await?.into_map();
    if let Some((plugin, _)) = call.param("id").split_once('.').filter(|_| app.plugins.has_source(call.param("id"))) {
        let reason =
            format!("How often it polls is the plugin's own. [plugin.{plugin}] in the file holds its settings.");
        return Err(Error::Forbidden { code: "not_settable", reason }.into());
    }
    let record = record(&call, json!({ "settings": wanted.keys().collect::<Vec<_>>() }));
    body::ok(&app.sources.configure(call.param("id"), wanted, record).await?)
}

fn record(call: &Call, detail: serde_json::Value) -> StateWrite {
    let (draft, id) = (call.draft.clone(), call.param("id").to_owned());
    Box::new(move |tx| draft.record(tx, &id, detail))
}

/// `POST /hooks/{id}`: 202 once what came is durable.
pub(super) async fn hook(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let hook = match app.sources.hook(call.param("id"))? {
        Door::Open(hook) => hook,
        Door::Paused => {
            let detail = "This hook is paused. Try again after Retry-After, or resume it with `aman source resume`.";
            let problem = Problem::new((StatusCode::SERVICE_UNAVAILABLE, "source_paused"), detail);
            return Err(problem.retry_after_ms(PAUSED_RETRY_MS));
        }
    };
    if hook.needs_token() {
        let early = |problem| app.refusals.count(&app, problem);
        let principal = app.gate.identify(Scope::EventsWrite, &call.headers).map_err(early)?;
        gate::permit(principal.as_ref(), Scope::EventsWrite)?;
        call.room = app.rooms.of(true, false);
    }
    let bytes = call.bytes().await?;
    let text = |value: &hyper::header::HeaderValue| value.to_str().ok().map(str::to_owned);
    let headers = call.headers.iter().filter_map(|(name, value)| Some((name.as_str().to_owned(), text(value)?)));
    match hook.take(&Headers(headers.collect()), &bytes).await {
        Ok(Taken::Events(accepted)) => Ok(events::accepted_reply(&accepted, accepted.len() != 1)),
        Ok(Taken::Challenge(challenge)) => body::ok(&json!({ "challenge": challenge })),
        Err(Refusal::Error(error)) => Err(error.into()),
        Err(Refusal::Unverified(why)) => {
            let problem = Problem::new((StatusCode::UNAUTHORIZED, "signature_invalid"), why);
            Err(app.refusals.count(&app, problem))
        }
    }
}

/// `POST /im-channel/{platform}/{instance}/reload`: there are no channels in this version.
pub(super) async fn reload_channel(_: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    call.fields().await?.done()?;
    let name = format!("{}/{}", call.param("platform"), call.param("instance"));
    Err(Error::not_found("channel", name).into())
}
