//! Dead letters: list, count, group, retry, discard.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::body::{self, Reply};
use super::problem::Problem;
use super::query::{self, Query};
use super::{App, Call};
use crate::clock::{Millis, rfc3339};
use crate::error::Error;
use crate::id::{DeliveryId, Ids};
use crate::store::dead_letters::{self as letters, Filter, Letter};

/// Letters that one retry of a group opens again.
const GROUP_MAX: usize = 1000;
const REASON_CHARS_MAX: usize = 1000;
/// Why a delivery can be dead.
pub(super) const REASONS: [&str; 6] =
    ["attempts_exhausted", "rejected", "timeout", "causation_loop", "interrupted", "unknown_outcome"];

fn delivery_id(ids: Ids, letter: &Letter) -> String {
    ids.delivery(letter.event.received_ms, letter.id).to_string()
}

fn letter_json(ids: Ids, kept_ms: Option<Millis>, letter: &Letter) -> Value {
    let expires_ms = kept_ms.map(|kept_ms| letter.last_failed_ms.saturating_add(kept_ms));
    json!({
        "id": delivery_id(ids, letter),
        "event": letter.event.to_value(),
        "consumer": letter.consumer,
        "reason": letter.reason,
        "error_chain": letter.chain,
        "attempts": letter.attempts,
        "first_failed_at": rfc3339(letter.first_failed_ms),
        "last_failed_at": rfc3339(letter.last_failed_ms),
        "fingerprint": letter.fingerprint,
        "expires_at": expires_ms.map(rfc3339),
    })
}

fn retrying_json(ids: Ids, letter: &Letter) -> Value {
    let id = delivery_id(ids, letter);
    json!({ "id": id, "delivery_id": id, "event_id": letter.event.id(), "status": "retrying" })
}

/// `GET /dlq`: newest failure first.
pub(super) async fn list(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["reason", "source", "type", "consumer", "fingerprint", "limit", "cursor"])?;
    let reason = |text: &str| REASONS.contains(&text).then(|| text.to_owned());
    let filter = Filter {
        reason: query.parsed("reason", &format!("must be one of {}.", REASONS.join(", ")), reason)?,
        source: query.text("source"),
        kind: query.text("type"),
        consumer: query.text("consumer"),
        fingerprint: query.text("fingerprint"),
    };
    let (limit, before) = (query.limit()?, query.cursor::<2>("dlq")?.map(|[at, id]| (at, DeliveryId(id))));
    let ids = app.store.ids();
    let (found, more) = app.store.read(move |conn| letters::list(conn, ids, &filter, before, limit)).await?;
    let next = found.last().filter(|_| more).map(|last| query::cursor("dlq", &[last.last_failed_ms, last.id.0]));
    let kept_ms = app.upkeep.letters_kept_ms();
    let items: Vec<Value> = found.iter().map(|letter| letter_json(ids, kept_ms, letter)).collect();
    body::ok(&json!({ "items": items, "next_cursor": next }))
}

/// `GET /dlq/depth`
pub(super) async fn depth(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let by_consumer: BTreeMap<String, i64> = app.store.read(letters::depth).await?.into_iter().collect();
    body::ok(&json!({ "depth": by_consumer.values().sum::<i64>(), "by_consumer": by_consumer }))
}

/// `GET /dlq/groups`: letters with the same cause, newest failure first.
pub(super) async fn groups(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["limit", "cursor"])?;
    let groups = app.store.read(letters::groups).await?.into_iter().map(|group| {
        json!({
            "fingerprint": group.fingerprint,
            "consumer": group.consumer,
            "reason": group.reason,
            "error": group.error,
            "count": group.count,
            "first_failed_at": rfc3339(group.first_failed_ms),
            "last_failed_at": rfc3339(group.last_failed_ms),
        })
    });
    query.page("dlq-groups", groups)
}

/// The letter of the path, and the reason of the body.
async fn letter_and_reason(app: &App, call: &mut Call) -> Result<(DeliveryId, Option<String>), Problem> {
    let mut fields = call.fields().await?;
    let reason = fields.text("reason").map(|text| text.chars().take(REASON_CHARS_MAX).collect());
    fields.done()?;
    let id = call.param("id");
    let known = app.store.ids().delivery_of(id).ok_or_else(|| Error::not_found("dead letter", id))?;
    Ok((known, reason))
}

/// Names a letter that is not there as the client named it.
fn named(call: &Call) -> impl Fn(Error) -> Error {
    let id = call.param("id").to_owned();
    move |error| match error {
        Error::NotFound { kind, .. } => Error::not_found(kind, id.clone()),
        other => other,
    }
}

/// `POST /dlq/{id}/retry`: another round of attempts for the same event, under the same id.
pub(super) async fn retry(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let dry_run = Query::read(&call, &["dry_run"])?.flag("dry_run", false)?;
    let (id, reason) = letter_and_reason(&app, &mut call).await?;
    let ids = app.store.ids();
    if dry_run {
        call.draft.skip();
        let letter = app.store.read(move |conn| letters::find_dead(conn, ids, id)).await.map_err(named(&call))?;
        let mut shown = retrying_json(ids, &letter);
        shown["dry_run"] = true.into();
        return body::ok(&shown);
    }
    let draft = call.draft.clone();
    let letter = app
        .store
        .write(move |tx| {
            let letter = letters::retry(tx, id, reason.as_deref())?;
            let detail = json!({ "event_id": letter.event.id(), "consumer": letter.consumer, "reason": reason });
            draft.record(tx, &delivery_id(ids, &letter), detail)?;
            Ok(letter)
        })
        .await
        .map_err(named(&call))?;
    body::ok(&retrying_json(ids, &letter))
}

/// `POST /dlq/retry`: every letter with this fingerprint.
pub(super) async fn retry_group(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let dry_run = Query::read(&call, &["dry_run"])?.flag("dry_run", false)?;
    if dry_run {
        call.draft.skip();
    }
    let mut fields = call.fields().await?;
    let fingerprint = fields.required_text("fingerprint");
    fields.done()?;
    let (ids, wanted) = (app.store.ids(), fingerprint.clone());
    let found = if dry_run {
        app.store.read(move |conn| letters::group(conn, ids, &wanted, GROUP_MAX)).await?
    } else {
        let draft = call.draft.clone();
        app.store
            .write(move |tx| {
                let found = letters::retry_group(tx, &wanted, GROUP_MAX)?;
                if !found.is_empty() {
                    draft.record(tx, &wanted, json!({ "count": found.len() }))?;
                }
                Ok(found)
            })
            .await?
    };
    if found.is_empty() {
        return Err(Error::not_found("group of dead letters", fingerprint).into());
    }
    let items: Vec<Value> = found.iter().map(|letter| retrying_json(ids, letter)).collect();
    let mut answer = json!({ "fingerprint": fingerprint, "retried": items.len(), "items": items });
    if dry_run {
        answer["dry_run"] = true.into();
    }
    body::ok(&answer)
}

/// `POST /dlq/{id}/discard`: the letter stays as a tombstone.
pub(super) async fn discard(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let (id, reason) = letter_and_reason(&app, &mut call).await?;
    let (ids, draft) = (app.store.ids(), call.draft.clone());
    let letter = app
        .store
        .write(move |tx| {
            let letter = letters::discard(tx, id, reason.as_deref())?;
            let detail = json!({ "event_id": letter.event.id(), "consumer": letter.consumer, "reason": reason });
            draft.record(tx, &delivery_id(ids, &letter), detail)?;
            Ok(letter)
        })
        .await
        .map_err(named(&call))?;
    let id = delivery_id(ids, &letter);
    body::ok(&json!({ "id": id, "delivery_id": id, "event_id": letter.event.id(), "status": "discarded" }))
}
