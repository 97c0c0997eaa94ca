//! Sources as programs see them.

use serde_json::{Map, Value, json};

use super::Now;
use super::running::Running;
use crate::clock::rfc3339;

/// Settings whose values are never shown, wherever they stand.
const SECRET: [&str; 4] = ["secret", "password", "token", "key"];
/// Settings that hold names with values that may be secrets.
const SECRET_TABLES: [&str; 2] = ["env", "headers"];

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
    let mut shown = json!({
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
        "config": settings(&source.table),
        "changed": now.changes.keys().collect::<Vec<_>>(),
    });
    match &now.running {
        Running::Files(files) => {
            let files = files.source.health();
            shown["path"] = files.path.into();
            shown["files"] = files.files.into();
            shown["watched_dirs"] = files.watched_dirs.into();
        }
        Running::Hook(_) => shown["url"] = format!("/hooks/{}", source.id).into(),
        Running::Task(_) | Running::Failed(_) => {}
    }
    shown
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

/// Settings without what must not be shown.
pub(super) fn settings(table: &toml::Table) -> Map<String, Value> {
    let hidden = || json!({ "populated": true });
    table
        .iter()
        .map(|(key, value)| {
            let shown = match value {
                _ if SECRET.contains(&key.as_str()) => hidden(),
                toml::Value::Table(inner) if SECRET_TABLES.contains(&key.as_str()) => {
                    inner.keys().map(|name| (name.clone(), hidden())).collect::<Map<_, _>>().into()
                }
                toml::Value::Table(inner) => settings(inner).into(),
                toml::Value::String(text) if key == "url" => without_query(text).into(),
                other => serde_json::to_value(other).unwrap_or_default(),
            };
            (key.clone(), shown)
        })
        .collect()
}

/// An address without what follows `?`, which may be a key.
fn without_query(text: &str) -> String {
    text.split_once('?').map_or_else(|| text.to_owned(), |(before, _)| format!("{before}?…"))
}
