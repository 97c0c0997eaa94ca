//! Sinks: shown, paused, resumed, tried; what waits for them given up.

use std::sync::Arc;

use serde_json::json;

use super::body::{self, Reply};
use super::problem::Problem;
use super::query::{self, Query};
use super::{App, Call};

/// `GET /sinks`, by id.
pub(super) async fn list(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &["limit", "cursor"])?.page("sinks", app.sinks.list().await?)
}

/// `GET /sink/{id}`
pub(super) async fn show(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    body::ok(&app.sinks.show(call.param("id")).await?)
}

/// `POST /sink/{id}/pause`
pub(super) async fn pause(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    switch(app, call, true).await
}

/// `POST /sink/{id}/resume`
pub(super) async fn resume(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    switch(app, call, false).await
}

async fn switch(app: Arc<App>, mut call: Call, paused: bool) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    call.fields().await?.done()?;
    let (draft, id) = (call.draft.clone(), call.param("id").to_owned());
    let record = Box::new(move |tx: &mut crate::store::Tx<'_>| draft.record(tx, &id, json!({ "paused": paused })));
    body::ok(&app.sinks.set_paused(call.param("id"), paused, record).await?)
}

/// `POST /sink/{id}/test`: 200 with how it ended, however that was.
pub(super) async fn test(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let dry_run = Query::read(&call, &["dry_run"])?.flag("dry_run", false)?;
    if dry_run {
        call.draft.skip();
    }
    let mut fields = call.fields().await?;
    let data = fields.value("data");
    fields.done()?;
    let (draft, id) = (call.draft.clone(), call.param("id").to_owned());
    let answer = app.sinks.test(call.param("id"), data, dry_run, move |tx, answer| {
        draft.record(tx, &id, json!({ "outcome": answer["outcome"], "detail": answer["detail"] }))
    });
    body::ok(&answer.await?)
}

/// `POST /sink/{id}/discard`: what waits to be sent is given up, and shown among the failures; of a sink that was removed
/// also the events that had not reached it, for good.
pub(super) async fn discard(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    call.fields().await?.done()?;
    let (draft, id) = (call.draft.clone(), call.param("id").to_owned());
    let (begin, target) = (call.draft.clone(), id.clone());
    let begun = Box::new(move |tx: &mut crate::store::Tx<'_>| begin.begin(tx, &target, json!({})));
    let record = move |tx: &mut crate::store::Tx<'_>, answer: &serde_json::Value| {
        draft.record(tx, &id, json!({ "discarded": answer["discarded"], "undelivered": answer["undelivered"] }))
    };
    body::ok(&app.sinks.discard(call.param("id"), begun, record).await?)
}

/// `GET /sink/{id}/failures`, newest first.
pub(super) async fn failures(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let asked = Query::read(&call, &["limit", "cursor"])?;
    let limit = asked.limit()?;
    let before = asked.cursor::<1>("sink-failures")?.map(|[row]| row);
    let mut found = app.sinks.failed(call.param("id"), before, limit + 1).await?;
    let next = query::cut(&mut found, limit, "sink-failures", |(row, _)| *row);
    let items: Vec<serde_json::Value> = found.into_iter().map(|(_, item)| item).collect();
    body::ok(&json!({ "items": items, "next_cursor": next }))
}

/// `POST /sink/{id}/failure/{key}/retry`
pub(super) async fn retry(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    call.fields().await?.done()?;
    let (draft, id, key) = (call.draft.clone(), call.param("id").to_owned(), call.param("key").to_owned());
    let target = id.clone();
    let detail = json!({ "intent": key });
    let record = Box::new(move |tx: &mut crate::store::Tx<'_>| draft.record(tx, &target, detail));
    body::ok(&app.sinks.retry(&id, &key, record).await?)
}
