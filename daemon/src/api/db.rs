//! The database: how it stands, what retention removes, giving room back.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::body::{self, Reply};
use super::problem::Problem;
use super::query::Query;
use super::{App, Call};
use crate::clock::rfc3339;
use crate::error::Error;
use crate::store::{Tx, check, retention, space};
use crate::upkeep::Recorder;

/// Records what was done as the change of this request.
fn recorder(call: &Call) -> Recorder {
    let draft = call.draft.clone();
    Box::new(move |tx: &Tx<'_>, detail: Value| draft.record(tx, "database", detail))
}

/// `GET /db/stats`: tables, room, the span of the events and how much comes in a day.
pub(super) async fn stats(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let now_ms = app.clock.now_ms();
    let read = app.store.read_alone(move |conn| {
        Ok((space::read(conn)?, space::tables(conn)?, space::span(conn, now_ms)?, retention::pruned_to(conn)?))
    });
    let (room, tables, span, pruned_to) = read.await?;
    // What an event costs: itself, and its deliveries.
    let of_events = |name: &str| ["event", "delivery", "failure"].contains(&name);
    let bytes: i64 = tables.iter().filter(|t| of_events(&t.name)).map(|t| t.bytes + t.index_bytes).sum();
    let events = tables.iter().find(|table| table.name == "event").map_or(0, |table| table.rows);
    let a_day = (bytes / events.max(1)).saturating_mul(span.last_day);
    let (stats, counts) = (app.store.stats(), app.upkeep.counts());
    let last_ms = counts.last_ms.load(Ordering::Relaxed);
    body::ok(&json!({
        "bytes": room.pages * room.page_bytes,
        "used_bytes": room.used_bytes(),
        "free_bytes": room.free_bytes(),
        "wal_bytes": stats.wal_bytes,
        "page_bytes": room.page_bytes,
        "pages": room.pages,
        "free_pages": room.free_pages,
        "gives_back": room.incremental,
        "tables": tables,
        "events": {
            "count": events,
            "oldest": span.oldest,
            "oldest_at": span.oldest_ms.map(rfc3339),
            "newest": span.newest,
            "newest_at": span.newest_ms.map(rfc3339),
            "pruned_to": pruned_to.0,
            "last_day": span.last_day,
            "bytes_a_day": a_day,
        },
        "backup": *app.upkeep.backups().standing(),
        "retention": { "last_run": (last_ms > 0).then(|| rfc3339(last_ms)), "removed": counts.events.load(Ordering::Relaxed) },
    }))
}

/// `GET /db/check`: whether the database is whole; one at a time, since it reads all of it.
pub(super) async fn check(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let _turn = app.checking.try_lock().map_err(|_| {
        Error::conflict("in_progress", "The database is being checked already. Wait for the end of that.")
    })?;
    body::ok(&app.store.read_alone(|conn| Ok(check::all(conn))).await?)
}

/// `POST /db/prune`: removes now what is due by `bus.retention`.
pub(super) async fn prune(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let dry_run = Query::read(&call, &["dry_run"])?.flag("dry_run", false)?;
    if dry_run {
        call.draft.skip();
    }
    call.fields().await?.done()?;
    if dry_run {
        let mut answer = json!(app.upkeep.due().await?);
        answer["dry_run"] = true.into();
        return body::ok(&answer);
    }
    body::ok(&app.upkeep.prune(recorder(&call)).await?)
}

/// `POST /db/vacuum`: gives all free pages back to the disk.
pub(super) async fn vacuum(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    call.fields().await?.done()?;
    body::ok(&app.upkeep.vacuum(recorder(&call)).await?)
}
