//! Health, for those who watch over the daemon. Public: details name no hosts, paths or keys.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use super::body::{self, Reply};
use super::problem::Problem;
use super::{App, Call};

fn check(ok: bool, detail: &str) -> Value {
    json!({ "ok": ok, "detail": detail })
}

fn answer(app: &App, good: bool, checks: &Map<String, Value>) -> Result<Reply, Problem> {
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if good { "ok" } else { "unavailable" };
    body::reply(status, &json!({ "status": word, "phase": app.lifecycle.phase_name(), "checks": checks }))
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
    let store = app.store.stats().broken.is_none();
    let failed = app.supervisor.status().values().filter(|status| status.state == "failed").count();
    let mut checks = Map::new();
    checks.insert("phase".to_owned(), check(phase, app.lifecycle.phase_name()));
    checks.insert("store".to_owned(), check(store, if store { "writable" } else { "not writable" }));
    let tasks = if failed == 0 { "all run".to_owned() } else { format!("{failed} failed; see /runtime/status") };
    checks.insert("tasks".to_owned(), check(failed == 0, &tasks));
    let config = !app.configured.is_broken();
    let detail = if config { "good" } else { "safe mode: the file is broken, the last good one is in force" };
    checks.insert("config".to_owned(), check(config, detail));
    // A failed task is shown, and does not make the daemon useless.
    answer(&app, phase && store, &checks)
}

/// `GET /health/llm`
pub(super) async fn llm(app: Arc<App>, _: Call) -> Result<Reply, Problem> {
    let mut checks = Map::new();
    checks.insert("llm".to_owned(), check(false, "no provider configured"));
    answer(&app, false, &checks)
}
