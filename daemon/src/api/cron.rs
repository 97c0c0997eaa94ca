//! Cron jobs: show, add, change, remove, run.

use std::sync::Arc;

use hyper::StatusCode;
use hyper::header::{HeaderValue, LOCATION};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::audit::Draft;
use super::body::{self, Reply};
use super::problem::Problem;
use super::query::{self, Query};
use super::{App, Call};
use crate::cron::Audit;
use crate::error::{Error, FieldError};
use crate::redact;
use crate::schedule::Job;
use crate::store::Tx;
use crate::store::cron::Status;

const COUNT_DEFAULT: usize = 5;
const COUNT_MAX: usize = 100;

/// Writes the record of a change of the job `id`.
fn audit(draft: &Draft, id: &str, detail: Value) -> Audit {
    let (draft, id) = (draft.clone(), id.to_owned());
    Box::new(move |tx: &mut Tx<'_>, _: &Value| draft.record(tx, &id, detail))
}

/// `GET /cron`, by id.
pub(super) async fn list(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &["limit", "cursor"])?.page("cron", app.cron.list().await?)
}

/// `GET /cron/{id}`
pub(super) async fn show(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    body::ok(&app.cron.get(call.param("id")).await?)
}

/// `GET /cron/{id}/runs`: the ledger of the job, newest row first.
pub(super) async fn runs(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["status", "limit", "cursor"])?;
    let known = "must be queued, running, done, failed or skipped.";
    let status = query.parsed("status", known, Status::of_name)?;
    let (limit, before) = (query.limit()?, query.cursor::<1>("cron-runs")?.map(|[id]| id));
    let mut found = app.cron.runs(call.param("id"), status, before, limit + 1).await?;
    let next = query::cut(&mut found, limit, "cron-runs", |(id, _)| *id);
    let items: Vec<Value> = found.into_iter().map(|(_, shown)| shown).collect();
    body::ok(&json!({ "items": items, "next_cursor": next }))
}

/// `GET /cron/{id}/next`: the slots to come.
pub(super) async fn next(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["count"])?;
    let count = query.count("count", COUNT_MAX)?.unwrap_or(COUNT_DEFAULT);
    body::ok(&app.cron.next(call.param("id"), count).await?)
}

/// `POST /cron/add`
pub(super) async fn add(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let dry_run = Query::read(&call, &["dry_run"])?.flag("dry_run", false)?;
    if dry_run {
        call.draft.skip();
    }
    let mut fields = call.fields().await?;
    let id = fields.required_text("id");
    let mut definition = fields.rest();
    redact::object(&mut definition);
    if id.is_empty() {
        // Everything that is wrong is told at once.
        let mut wrong = vec![FieldError { field: "id".to_owned(), reason: "is required.".to_owned() }];
        wrong.extend(Job::read(definition).err().unwrap_or_default());
        return Err(Error::Invalid { code: "invalid_input", fields: wrong }.into());
    }
    fields.done()?;
    let place = format!("/cron/{}", utf8_percent_encode(&id, NON_ALPHANUMERIC));
    let record = audit(&call.draft, &id, Value::Object(definition.clone()));
    let (again, location) = (call.again.clone(), place.clone());
    let audit: Audit = Box::new(move |tx: &mut Tx<'_>, answer: &Value| {
        record(tx, answer)?;
        again.keep(tx, StatusCode::CREATED, Some(&location), answer)
    });
    let changed = app.cron.add(&id, definition, dry_run, audit).await?;
    if changed.dry_run {
        return body::ok(&changed.shown);
    }
    let mut reply = body::reply(StatusCode::CREATED, &changed.shown)?;
    let place = HeaderValue::from_str(&place).map_err(Error::internal("naming a new job"))?;
    reply.headers.push((LOCATION, place));
    Ok(reply)
}

/// `POST /cron/{id}/update`: a merge patch.
pub(super) async fn update(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let dry_run = Query::read(&call, &["dry_run"])?.flag("dry_run", false)?;
    if dry_run {
        call.draft.skip();
    }
    let mut fields = call.fields().await?;
    let mut patch = fields.rest();
    redact::object(&mut patch);
    fields.done()?;
    let wrong = Job::unknown(patch.keys());
    if !wrong.is_empty() {
        return Err(Error::Invalid { code: "invalid_input", fields: wrong }.into());
    }
    let audit = audit(&call.draft, call.param("id"), Value::Object(patch.clone()));
    body::ok(&app.cron.update(call.param("id"), patch, dry_run, audit).await?.shown)
}

/// `POST /cron/{id}/remove`
pub(super) async fn remove(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    call.fields().await?.done()?;
    body::ok(&app.cron.remove(call.param("id"), audit(&call.draft, call.param("id"), json!({}))).await?)
}

/// `POST /cron/{id}/run`: a run beside the plan.
pub(super) async fn run(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    call.fields().await?.done()?;
    let (draft, again, id) = (call.draft.clone(), call.again.clone(), call.param("id").to_owned());
    let audit: Audit = Box::new(move |tx: &mut Tx<'_>, answer: &Value| {
        draft.record(tx, &id, json!({ "run": answer["run"]["key"] }))?;
        again.keep(tx, StatusCode::OK, None, answer)
    });
    body::ok(&app.cron.run_now(call.param("id"), audit).await?)
}
