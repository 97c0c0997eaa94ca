//! Sinks as programs see them.

use serde_json::{Value, json};

use super::sinks::Entry;
use crate::clock::rfc3339;
use crate::config::shown;
use crate::config::sinks::{Sink as Configured, SinkKind};
use crate::store::sinks::{Failed, Queue};

/// A sink with its settings.
pub(super) fn sink(entry: &Entry, queue: &Queue) -> Value {
    let (configured, health) = (&entry.configured, entry.lane.health().clone());
    let state = match () {
        () if entry.is_gone() => "gone",
        () if entry.is_paused() => "paused",
        () if queue.sending > 0 => "sending",
        () if queue.waiting > 0 => "waiting",
        () => "idle",
    };
    let word = match state {
        "paused" => "paused",
        "gone" => "failing",
        _ if health.failing => "failing",
        _ => "ok",
    };
    let detail = match state {
        "gone" => "The other side answered 410 Gone. Give it another url, or resume it.".to_owned(),
        _ if health.failing => health.last_error.clone().unwrap_or_default(),
        _ => String::new(),
    };
    json!({
        "id": configured.id,
        "kind": kind(configured),
        "consumer": super::sinks::name(&configured.id),
        "to": place(configured),
        "types": configured.types.iter().map(|pattern| pattern.as_str()).collect::<Vec<_>>(),
        "enabled": !entry.is_paused() && !entry.is_gone(),
        "paused": entry.is_paused(),
        "state": state,
        "health": word,
        "detail": detail,
        "sent": health.sent,
        "retries": health.retries,
        "failed": health.failed,
        "unknown": health.unknown,
        "last_sent_at": health.last_sent_ms.map(rfc3339),
        "last_error": health.last_error,
        "last_error_at": health.last_error_ms.map(rfc3339),
        "queue": {
            "waiting": queue.waiting,
            "sending": queue.sending,
            "oldest_at": queue.oldest_ms.map(rfc3339),
            "next_at": queue.next_ms.map(rfc3339),
        },
        "config": shown(&configured.table),
    })
}

/// What a sink that is in the configuration no more has left behind; `undelivered` events have not reached it.
pub(super) fn removed(id: &str, queue: &Queue, undelivered: i64) -> Value {
    let waiting = queue.waiting + queue.sending + undelivered;
    let detail = match waiting {
        0 => "It is in the configuration no more.".to_owned(),
        _ => format!(
            "It is in the configuration no more, and {waiting} wait for it until they are too old. Put it back, or give them \
             up: aman sink discard {id}"
        ),
    };
    json!({
        "id": id,
        "kind": null,
        "consumer": super::sinks::name(id),
        "to": null,
        "types": [],
        "enabled": false,
        "paused": false,
        "state": "removed",
        "health": if waiting > 0 { "failing" } else { "ok" },
        "detail": detail,
        "queue": {
            "waiting": queue.waiting + undelivered,
            "sending": queue.sending,
            "oldest_at": queue.oldest_ms.map(rfc3339),
            "next_at": null,
        },
        "config": {},
    })
}

fn kind(configured: &Configured) -> &'static str {
    match configured.kind {
        SinkKind::Webhook { .. } => "webhook",
        SinkKind::Mqtt { .. } => "mqtt",
        SinkKind::Ntfy { .. } => "ntfy",
        SinkKind::Desktop => "desktop",
    }
}

/// Where it sends, without what may be a key.
pub(super) fn place(configured: &Configured) -> String {
    match &configured.kind {
        SinkKind::Webhook { url, .. } => format!("{url:?}"),
        SinkKind::Mqtt { broker, topic } => {
            let scheme = if broker.tls.is_some() { "mqtts" } else { "mqtt" };
            format!("{scheme}://{}:{} {topic}", broker.host, broker.port)
        }
        SinkKind::Ntfy { url, .. } => format!("{url:?}"),
        SinkKind::Desktop => "the desktop".to_owned(),
    }
}

/// Something that failed for good.
pub(super) fn failed(one: &Failed) -> Value {
    let event: Value = serde_json::from_str(&one.payload).unwrap_or_default();
    json!({
        "id": one.key,
        "outcome": if one.unknown { "unknown" } else { "failed" },
        "event": { "id": event["id"], "source": event["source"], "type": event["type"] },
        "attempts": one.attempts,
        "error": one.error,
        "created_at": rfc3339(one.created_ms),
        "failed_at": one.ended_ms.map(rfc3339),
    })
}
