//! Health, for those who watch over the daemon. Public: details name no hosts, paths or keys.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use super::body::{self, Reply};
use super::problem::Problem;
use super::{App, Call};
use crate::clock::is_plausible;
use crate::store::Stats;
use crate::tasks::Status;

fn check(ok: bool, detail: &str) -> Value {
    json!({ "ok": ok, "detail": detail })
}

fn answer(app: &App, word: &str, checks: &Map<String, Value>) -> Result<Reply, Problem> {
    let status = if word == "ok" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    body::reply(status, &json!({ "status": word, "phase": app.lifecycle.phase_name(), "checks": checks }))
}

/// Whether the database takes new work, and how long it still will.
fn storage(store: &Stats) -> Value {
    if let Some(fault) = store.fault {
        return check(false, &format!("{}. {}", fault.what(), fault.advice()));
    }
    match store.free_bytes {
        Some(free) if free < store.keep_free_bytes.saturating_mul(4) => {
            let (free, keep) = (free >> 20, store.keep_free_bytes >> 20);
            check(true, &format!("writable; only {free} MiB are free, and below {keep} MiB nothing new is taken"))
        }
        _ => check(true, "writable"),
    }
}

/// `GET /health/live`: the process answers. A constant, so that watching it costs nothing.
pub(super) async fn live(app: Arc<App>, _: Call) -> Result<Reply, Problem> {
    let mut out = Vec::with_capacity(96);
    out.extend_from_slice(br#"{"status":"ok","phase":""#);
    out.extend_from_slice(app.lifecycle.phase_name().as_bytes());
    out.extend_from_slice(br#"","checks":{"process":{"ok":true,"detail":"answers"}}}"#);
    Ok(body::raw(StatusCode::OK, out))
}

/// `GET /health` and `GET /health/ready`
pub(super) async fn ready(app: Arc<App>, _: Call) -> Result<Reply, Problem> {
    let phase = app.lifecycle.is_ready();
    let store = app.store.stats();
    // One that waits to be started again has just failed.
    let is_down = |status: &Status| matches!(status.state, "waiting" | "failed");
    let failed = app.supervisor.status().values().filter(|status| is_down(status)).count();
    let mut checks = Map::new();
    checks.insert("phase".to_owned(), check(phase, app.lifecycle.phase_name()));
    checks.insert("store".to_owned(), storage(&store));
    let tasks = if failed == 0 { "all run".to_owned() } else { format!("{failed} failed; see /runtime/status") };
    checks.insert("tasks".to_owned(), check(failed == 0, &tasks));
    let now_ms = app.clock.now_ms();
    let detail = if is_plausible(now_ms) { "plausible" } else { "the machine's clock is wrong: set it" };
    checks.insert("clock".to_owned(), check(is_plausible(now_ms), detail));
    let starved = app.counters.is_starved();
    let detail = if starved { "no more can be accepted: too many files are open" } else { "accepted" };
    checks.insert("connections".to_owned(), check(!starved, detail));
    let config = !app.configured.is_broken();
    let detail = if config { "good" } else { "safe mode: the file is broken, the last good one is in force" };
    checks.insert("config".to_owned(), check(config, detail));
    // A failed task is shown, and does not make the daemon useless. One that stores nothing new still shows and streams.
    let word = match (phase, store.fault) {
        (true, None) if starved => "degraded",
        (true, None) => "ok",
        (true, Some(_)) => "degraded",
        (false, _) => "unavailable",
    };
    answer(&app, word, &checks)
}

/// `GET /health/llm`: asks a provider, at most once a minute.
pub(super) async fn llm(app: Arc<App>, _: Call) -> Result<Reply, Problem> {
    let standing = app.models.probe().await;
    let mut checks = Map::new();
    checks.insert("llm".to_owned(), check(standing.ok, &standing.detail));
    answer(&app, if standing.ok { "ok" } else { "unavailable" }, &checks)
}
