//! What the person is told: listed, acknowledged, dismissed, tried.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::{Value, json};

use super::body::{self, Fields, Reply};
use super::problem::Problem;
use super::query::{self, Query};
use super::{App, Call};
use crate::bus::{Action, NewNotification, Severity, StateWrite};
use crate::clock::rfc3339;
use crate::error::Error;
use crate::store::Tx;
use crate::store::notifications::{self as rows, Filter, Notification};

/// Notifications that a list can leave out at its beginning.
const OFFSET_MAX: usize = 1_000_000;
/// What a severity can be.
const SEVERITIES: &str = "must be info, warning, error or critical; several are separated by commas.";

fn shown(one: &Notification) -> Value {
    let status = match (one.dismissed_ms, one.acked_ms) {
        (Some(_), _) => "dismissed",
        (None, Some(_)) => "acknowledged",
        (None, None) => "unread",
    };
    json!({
        "id": one.id,
        "status": status,
        "severity": one.severity,
        "category": one.category,
        "consumer": one.consumer,
        "title": one.title,
        "message": one.message,
        "action": one.action,
        "count": one.count,
        "created_at": rfc3339(one.at_ms),
        "last_at": rfc3339(one.last_ms),
        "event_id": one.event,
        "trace_id": one.trace,
        "acknowledged_at": one.acked_ms.map(rfc3339),
        "dismissed_at": one.dismissed_ms.map(rfc3339),
    })
}

fn severities(text: &str) -> Option<Vec<Severity>> {
    text.split(',').map(|name| Severity::of_name(name.trim())).collect()
}

/// `GET /notifications`, newest first.
pub(super) async fn list(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["active_only", "severity", "category", "limit", "offset", "cursor"])?;
    let filter = Filter {
        active_only: query.flag("active_only", false)?,
        severities: query.parsed("severity", SEVERITIES, severities)?.unwrap_or_default(),
        category: query.text("category"),
    };
    let number = |text: &str| text.parse().ok().filter(|offset| *offset <= OFFSET_MAX);
    let offset = query.parsed("offset", "must be a whole number, 0 or more, at most 1000000.", number)?.unwrap_or(0);
    let (limit, before) = (query.limit()?, query.cursor::<1>("notifications")?.map(|[number]| number));
    let mut found = app.store.read(move |conn| rows::list(conn, &filter, before, offset, limit + 1)).await?;
    let next = query::cut(&mut found, limit, "notifications", |one| one.number);
    let items: Vec<Value> = found.iter().map(shown).collect();
    body::ok(&json!({ "items": items, "next_cursor": next }))
}

/// `GET /notifications/unread-count`
pub(super) async fn unread(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    body::ok(&json!({ "count": app.store.read(rows::unread_count).await? }))
}

/// `GET /notifications/{id}`
pub(super) async fn show(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let id = call.param("id").to_owned();
    body::ok(&shown(&app.store.read(move |conn| rows::find(conn, &id)).await?))
}

/// `POST /notifications/{id}/ack`
pub(super) async fn acknowledge(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    change(app, call, rows::acknowledge).await
}

/// `POST /notifications/{id}/dismiss`
pub(super) async fn dismiss(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    change(app, call, rows::dismiss).await
}

async fn change(
    app: Arc<App>,
    mut call: Call,
    change: fn(&Tx<'_>, &str, crate::clock::Millis) -> Result<Notification, Error>,
) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    call.fields().await?.done()?;
    let (draft, id, now_ms) = (call.draft.clone(), call.param("id").to_owned(), app.clock.now_ms());
    let changed = app.store.write(move |tx| {
        let changed = change(tx, &id, now_ms)?;
        draft.record(tx, &id, json!({ "title": changed.title }))?;
        Ok(changed)
    });
    body::ok(&shown(&changed.await?))
}

/// `POST /notifications/dismiss-all`: all, or those of a severity or category.
pub(super) async fn dismiss_all(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let mut fields = call.fields().await?;
    let (severity, category) = (fields.text("severity"), fields.text("category"));
    fields.done()?;
    let severities = severity.as_deref().map(|text| severities(text).ok_or(SEVERITIES)).transpose();
    let severities = severities.map_err(|reason| Error::invalid("severity", reason))?.unwrap_or_default();
    let filter = Filter { active_only: true, severities, category };
    let (draft, now_ms) = (call.draft.clone(), app.clock.now_ms());
    let dismissed = app.store.write(move |tx| {
        let dismissed = rows::dismiss_all(tx, &filter, now_ms)?;
        draft.record(tx, "notifications", json!({ "dismissed": dismissed }))?;
        Ok(dismissed)
    });
    body::ok(&json!({ "dismissed": dismissed.await? }))
}

/// `POST /notifications/test`: tells what the body says, as if a consumer had.
pub(super) async fn test(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let mut fields = call.fields().await?;
    let asked = asked(&mut fields);
    fields.done()?;
    let asked = asked?;
    if !app.tuned.load().debug_endpoints && app.gate.name() != "none" {
        let detail =
            "Set debug.force_enable_debug_endpoints = true to use this. `aman sink test` tries a sink without it.";
        return Err(Problem::new((StatusCode::FORBIDDEN, "debug_disabled"), detail));
    }
    let draft = call.draft.clone();
    let title = asked.title.clone();
    let record: StateWrite = Box::new(move |tx| draft.record(tx, "notifications", json!({ "title": title })));
    let id = app.bus.tell(asked, record).await?;
    body::ok(&shown(&app.store.read(move |conn| rows::find(conn, &id)).await?))
}

/// The notification of a body.
fn asked(fields: &mut Fields) -> Result<NewNotification, Error> {
    let (title, message, severity) = (fields.text("title"), fields.text("message"), fields.text("severity"));
    let (category, action) = (fields.text("category"), fields.value("action").filter(|action| !action.is_null()));
    let severity = match severity {
        None => Severity::Info,
        Some(name) => Severity::of_name(&name)
            .ok_or_else(|| Error::invalid("severity", "must be info, warning, error or critical."))?,
    };
    let action: Option<Action> = action
        .map(|action| {
            let is_object = action.is_object();
            serde_json::from_value(action).ok().filter(|_| is_object)
        })
        .map(|read| read.ok_or_else(|| Error::invalid("action", "must be an object with label and url.")))
        .transpose()?;
    Ok(NewNotification {
        title: title.unwrap_or_else(|| "A test of notifications".to_owned()),
        message: message.unwrap_or_else(|| "Whoever reads this gets what aman tells.".to_owned()),
        severity,
        category: Some(category.unwrap_or_else(|| "test".to_owned())),
        action,
        fingerprint: None,
    })
}
