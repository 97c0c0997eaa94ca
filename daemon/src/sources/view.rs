//! Sources as programs see them.

use serde_json::{Value, json};

use super::Now;
use super::running::Running;
use crate::clock::rfc3339;
use crate::config::shown;

/// A source with its settings.
pub(super) fn source(now: &Now) -> Value {
    let (source, health) = (&now.source, now.running.health());
    let silent = now.running.silent_since();
    let word = match health.state {
        _ if now.paused => "paused",
        "failed" | "failing" | "missing" => "failing",
        _ if silent.is_some() => "silent",
        _ => "ok",
    };
    let mut detail = health.detail;
    if let Some(since) = silent.filter(|_| detail.is_empty() && !now.paused) {
        detail = format!("No event since {}.", rfc3339(since));
    }
    let mut whole = json!({
        "id": source.id,
        "kind": source.kind.name(),
        "source": now.running.name(),
        "enabled": !now.paused,
        "paused": now.paused,
        "state": if now.paused { "paused" } else { health.state },
        "health": word,
        "detail": detail,
        "trust": source.kind.trust().name(),
        "events": health.events,
        "skipped": health.skipped,
        "last_event_at": health.last_event_ms.map(rfc3339),
        "last_error": health.last_error,
        "expect_every_s": source.expect_every.map(|every| every.as_secs()),
        "silent_since": silent.map(rfc3339),
        "config": shown(&source.table),
        "changed": now.changes.keys().collect::<Vec<_>>(),
    });
    match &now.running {
        Running::Files(files) => {
            let files = files.source.health();
            whole["path"] = files.path.into();
            whole["files"] = files.files.into();
            whole["watched_dirs"] = files.watched_dirs.into();
        }
        Running::Hook(_) => whole["url"] = format!("/hooks/{}", source.id).into(),
        Running::Task(_) | Running::Failed(_) => {}
    }
    whole
}

/// How a source stands, for `/runtime/status`.
pub(super) fn status(now: &Now) -> (String, Value) {
    let name = now.running.name();
    if let Running::Files(files) = &now.running {
        return (name, json!(files.source.health()));
    }
    let health = now.running.health();
    let state = if now.paused { "paused" } else { health.state };
    let shown = json!({
        "id": now.source.id,
        "kind": now.source.kind.name(),
        "state": state,
        "detail": health.detail,
        "events": health.events,
        "last_event_ms": health.last_event_ms,
        "skipped": health.skipped,
        "last_error": health.last_error,
    });
    (name, shown)
}
