//! What consumers tell the person: prepared before the transaction that settles them, stored in it. A notification that is
//! new is an event too, `aman.notification.created`, so that streams see it and sinks carry it further.

use serde_json::json;

use super::effects::{NewNotification, Severity, StateWrite};
use super::publish::{Bus, Origin, Publish};
use super::router::Entry;
use crate::clock::Millis;
use crate::error::Error;
use crate::event::{NewEvent, Trust};
use crate::id::{fresh, hex, random_bytes, sha256_hex};
use crate::redact;
use crate::store::deliveries::Ready;
use crate::store::events::{Cause, Prepared};
use crate::store::notifications::{self as rows, Limits, New, Told};
use crate::store::{Tx, events};

/// The type of the event that tells of a notification.
pub(super) const CREATED: &str = "aman.notification.created";
/// The source of these events, and who is said to have published them.
const SOURCE: &str = "aman/notifications";

/// A notification with its event; none at the end of a chain of effects, which it must not make longer.
#[derive(Clone)]
struct Notice {
    row: New,
    event: Option<Prepared>,
}

/// Notifications that belong to one transaction.
#[derive(Clone, Default)]
pub struct Notices {
    each: Vec<Notice>,
    /// Told once in place of what is too much.
    rest: Option<Notice>,
    limits: Option<Limits>,
}

impl Notices {
    /// Encodes what the delivery `ready` of `entry` asked for; with `quiet` it is shown, and is no event.
    pub(super) async fn prepare(
        bus: &Bus,
        entry: &Entry,
        ready: &Ready,
        (asked, quiet): (Vec<NewNotification>, bool),
    ) -> Notices {
        if asked.is_empty() {
            return Notices::default();
        }
        let limits = bus.inner.settings.load().notify;
        let about = |row: New| New {
            event: Some((ready.event.id(), ready.event.trace.to_string())),
            delivery: Some(ready.id),
            ..row
        };
        let rest = about(too_much(&entry.spec.name, limits, &asked));
        let mut all: Vec<New> =
            asked.into_iter().map(|one| about(row(&entry.spec.name, entry.spec.kind, one))).collect();
        all.push(rest);
        if quiet {
            let each = all.into_iter().map(|row| (row, None));
            return Notices::of(each.collect(), limits);
        }
        let cause = super::spans::cause(bus, ready);
        let told = bus.prepare_effects(entry, &cause, None, all.iter().map(created).collect()).await;
        Notices::of(all.into_iter().zip(told.into_iter().map(Some)).collect(), limits)
    }

    /// Of rows with their events, of which the last stands for what is too much.
    fn of(rows: Vec<(New, Option<Prepared>)>, limits: Limits) -> Notices {
        let notice = |(row, event): (New, Option<Prepared>)| {
            let event = event.map(|event| Prepared { principal: SOURCE.to_owned(), ..event });
            Notice { row, event }
        };
        let mut each: Vec<Notice> = rows.into_iter().map(notice).collect();
        let rest = each.pop();
        Notices { each, rest, limits: Some(limits) }
    }

    /// Stores them: what was told already is counted, what is too much is summed up.
    pub fn store(&self, tx: &mut Tx<'_>, now_ms: Millis) -> Result<(), Error> {
        for notice in &self.each {
            let mut told = rows::tell(tx, &notice.row, now_ms, self.limits)?;
            let mut shown = notice;
            if let (Told::TooMuch, Some(rest)) = (told, &self.rest) {
                told = rows::tell(tx, &rest.row, now_ms, None)?;
                shown = rest;
            }
            if let (Told::New, Some(event)) = (told, &shown.event) {
                events::append(tx, event.clone())?;
            }
        }
        Ok(())
    }
}

/// What stands in the row for a fingerprint that `consumer` gave.
fn alike(consumer: &str, fingerprint: &str) -> String {
    sha256_hex(format!("{consumer}\nf\n{fingerprint}").as_bytes())
}

/// Puts away what `consumer` told with this fingerprint.
pub fn put_away(tx: &Tx<'_>, consumer: &str, fingerprint: &str, now_ms: Millis) -> Result<(), Error> {
    rows::dismiss_alike(tx, &alike(consumer, fingerprint), now_ms)
}

/// `asked` by `consumer`, of that kind, without secrets.
fn row(consumer: &str, kind: &str, asked: NewNotification) -> New {
    let (title, message) = (redact::text(&asked.title).into_owned(), redact::text(&asked.message).into_owned());
    // What a consumer calls alike is alike among its own only.
    let fingerprint = match &asked.fingerprint {
        Some(fingerprint) => alike(consumer, fingerprint),
        None => sha256_hex(format!("{consumer}\nt\n{title}\n{message}").as_bytes()),
    };
    New {
        id: fresh(),
        severity: asked.severity,
        category: asked.category.unwrap_or_else(|| kind.to_owned()),
        consumer: consumer.to_owned(),
        fingerprint,
        action: asked.action.map(|action| redact::json(&json!(action).to_string()).into_owned()),
        title,
        message,
        event: None,
        delivery: None,
    }
}

/// Stands for all that `consumer` tells beyond its budget.
fn too_much(consumer: &str, limits: Limits, asked: &[NewNotification]) -> New {
    let last = asked.last().map(|one| redact::text(&one.title).into_owned()).unwrap_or_default();
    let message = format!(
        "It told more than {} an hour (notifications.per_hour); the others are counted here only. The last: {last}",
        limits.per_hour
    );
    New {
        severity: asked.iter().map(|one| one.severity).max().unwrap_or_default().max(Severity::Warning),
        title: format!("There is more of {consumer} than is shown"),
        message,
        fingerprint: sha256_hex(format!("{consumer}\nr").as_bytes()),
        ..row(consumer, "notifications", NewNotification::default())
    }
}

/// The event that tells of `row`.
fn created(row: &New) -> NewEvent {
    let action: serde_json::Value =
        row.action.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let data = json!({
        "id": row.id,
        "severity": row.severity,
        "category": row.category,
        "consumer": row.consumer,
        "title": row.title,
        "message": row.message,
        "action": action,
        "event_id": row.event.as_ref().map(|(id, _)| id),
    });
    NewEvent { subject: Some(row.id.clone()), ..NewEvent::new(SOURCE, CREATED, &data) }
}

/// An event of the daemon's own that commits with what it tells of.
#[derive(Clone)]
pub struct OwnEvent(Prepared);

impl OwnEvent {
    /// Stores it, however much is waiting.
    pub fn store(&self, tx: &mut Tx<'_>) -> Result<(), Error> {
        events::append(tx, self.0.clone()).map(drop)
    }
}

impl Bus {
    /// Prepares an event; [`OwnEvent::store`] belongs into the transaction of what it tells of. Whoever makes it sees to
    /// its limits.
    pub async fn own_event(&self, event: NewEvent, origin: Origin) -> OwnEvent {
        let mut prepared = self.prepare(vec![event], origin, None).await;
        OwnEvent(prepared.pop().expect("one event is prepared of one"))
    }

    /// As [`Bus::own_event`], for events that `cause` led to; none at the end of a chain of effects, which they must not make
    /// longer.
    pub async fn own_events(&self, events: Vec<NewEvent>, origin: Origin, cause: Option<Cause>) -> Vec<OwnEvent> {
        let depth_max = self.inner.settings.load().max_causation_depth;
        if events.is_empty() || cause.as_ref().is_some_and(|cause| cause.event.depth + 1 > depth_max) {
            return Vec::new();
        }
        self.prepare(events, origin, cause).await.into_iter().map(OwnEvent).collect()
    }

    /// Prepares what `consumer`, of that kind, tells outside a delivery, because of `cause`; a title that is too long is cut.
    /// At the end of a chain of effects it is shown, and is no event. [`Notices::store`] belongs into the transaction of what
    /// they tell of.
    pub async fn notices(
        &self,
        (consumer, kind): (&str, &str),
        trust: Trust,
        cause: Option<Cause>,
        asked: Vec<NewNotification>,
    ) -> Notices {
        if asked.is_empty() {
            return Notices::default();
        }
        let settings = self.inner.settings.load_full();
        let limits = settings.notify;
        let rest = too_much(consumer, limits, &asked);
        let mut all: Vec<New> = asked.into_iter().map(|one| row(consumer, kind, one.fitted())).collect();
        all.push(rest);
        if cause.as_ref().is_some_and(|cause| cause.event.depth + 1 > settings.max_causation_depth) {
            return Notices::of(all.into_iter().map(|row| (row, None)).collect(), limits);
        }
        let origin = Origin { trust, ..Origin::own(SOURCE) };
        let told = self.prepare(all.iter().map(created).collect(), origin, cause).await;
        Notices::of(all.into_iter().zip(told.into_iter().map(Some)).collect(), limits)
    }

    /// Tells the person something that no delivery asked for, and that is like nothing before; gives its id. `record`
    /// commits with it.
    pub async fn tell(&self, asked: NewNotification, record: StateWrite) -> Result<String, Error> {
        asked.check().map_err(|(field, reason)| Error::invalid(field, format!("{reason}.")))?;
        let fingerprint = Some(hex(&random_bytes::<16>()));
        let new = row("aman", "other", NewNotification { fingerprint, ..asked });
        let (id, event) = (new.id.clone(), created(&new));
        let now_ms = self.clock().now_ms();
        let state: StateWrite = Box::new(move |tx| {
            rows::tell(tx, &new, now_ms, None)?;
            record(tx)
        });
        let origin = Origin::own(SOURCE);
        self.publish(Publish { state: Some(state), ..Publish::one(event, origin) }).await?;
        Ok(id)
    }
}
