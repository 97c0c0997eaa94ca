//! Values of the interface and values of the daemon, each made of the other.

use aman_plugin_host as guest;
use aman_plugin_host::{Error as Refusal, InvalidField, KvChange, Retry, SqlValue};
use serde_json::Value;

use crate::clock::Millis;
use crate::error::{Error, FieldError};
use crate::event::{Data, Delivery, NewEvent, Priority, RESERVED_ATTRIBUTES, Trust};
use crate::redact;
use crate::store::plugin_data::{self, Bytes, Change};
use crate::store::private;

/// Names of attributes that have a field of their own.
const FIELDS: [&str; 15] = [
    "agentid",
    "data",
    "database64",
    "datacontenttype",
    "dedupkey",
    "delivery",
    "expirytime",
    "id",
    "partitionkey",
    "priority",
    "source",
    "specversion",
    "subject",
    "time",
    "type",
];
/// The longest time that an event may live, in milliseconds: a hundred years.
const TTL_MS_MAX: u64 = 100 * 366 * 86_400_000;

/// How plugins name a trust.
pub fn trust_of(trust: Trust) -> guest::Trust {
    match trust {
        Trust::Unknown => guest::Trust::Unknown,
        Trust::Web => guest::Trust::Web,
        Trust::Plugin => guest::Trust::Plugin,
        Trust::Group => guest::Trust::Group,
        Trust::Paired => guest::Trust::Paired,
        Trust::Owner => guest::Trust::Owner,
    }
}

/// The trust that plugins name so.
pub fn trust_from(trust: guest::Trust) -> Trust {
    match trust {
        guest::Trust::Unknown => Trust::Unknown,
        guest::Trust::Web => Trust::Web,
        guest::Trust::Plugin => Trust::Plugin,
        guest::Trust::Group => Trust::Group,
        guest::Trust::Paired => Trust::Paired,
        guest::Trust::Owner => Trust::Owner,
    }
}

/// The event that a plugin means; its envelope is not checked yet.
pub(super) fn event(sent: guest::NewEvent, source: &str, now_ms: Millis) -> Result<NewEvent, Error> {
    let mut event = NewEvent { source: source.to_owned(), kind: sent.type_, ..NewEvent::default() };
    event.data = data(sent.data, sent.data_content_type.as_deref())?;
    for (name, value) in sent.attributes {
        if RESERVED_ATTRIBUTES.contains(&name.as_str()) || FIELDS.contains(&name.as_str()) {
            return Err(Error::invalid(name, "is no free name of an attribute; the record has a field for it."));
        }
        let value = match value {
            guest::Attribute::Text(text) => Value::String(text),
            guest::Attribute::Integer(number) => Value::from(number),
            guest::Attribute::Boolean(flag) => Value::Bool(flag),
        };
        event.extensions.insert(name, value);
    }
    if let Some(ttl_ms) = sent.ttl_ms {
        let ttl_ms = i64::try_from(ttl_ms.min(TTL_MS_MAX)).unwrap_or(i64::MAX / 4);
        event.expires_ms = Some(now_ms.saturating_add(ttl_ms));
    }
    event.priority = match sent.priority {
        Some(guest::Priority::Low) => Priority::Low,
        Some(guest::Priority::High) => Priority::High,
        Some(guest::Priority::Normal) | None => Priority::Normal,
    };
    event.delivery = match sent.delivery {
        Some(guest::Delivery::AtMostOnce) => Delivery::AtMostOnce,
        Some(guest::Delivery::ExactlyOnce) => Delivery::ExactlyOnce,
        Some(guest::Delivery::AtLeastOnce) | None => Delivery::AtLeastOnce,
    };
    event.id = sent.id;
    event.subject = sent.subject;
    event.time = sent.time;
    event.content_type = sent.data_content_type;
    event.dedup_key = sent.dedup_key;
    event.agent_id = sent.agent_id;
    event.partition_key = sent.partition_key;
    Ok(event)
}

/// JSON must be JSON; other texts are kept as text, anything else as bytes.
fn data(data: Option<Vec<u8>>, content_type: Option<&str>) -> Result<Data, Error> {
    let Some(bytes) = data else { return Ok(Data::None) };
    let essence = content_type.map(|full| full.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    let is_json =
        essence.as_deref().is_none_or(|it| it == "application/json" || it == "text/json" || it.ends_with("+json"));
    match String::from_utf8(bytes) {
        Ok(text) if is_json => Data::json(&text),
        Ok(text) => Ok(Data::Text(text)),
        Err(_) if is_json => Err(Error::invalid("data", "is not JSON: it is no UTF-8 text.")),
        Err(bytes) => Ok(Data::Binary(bytes.into_bytes())),
    }
}

/// A change of a key as the store takes it.
pub(super) fn change_of(change: KvChange) -> Change {
    match change {
        KvChange::Set { key, value } => Change::Set { key, value },
        KvChange::Swap { key, expected, value } => Change::Swap { key, expected: expected.map(Bytes), value },
        KvChange::Delete { key } => Change::Delete { key },
    }
}

/// A statement as the store takes it.
pub(super) fn statement(statement: guest::Statement) -> private::Statement {
    let value = |value| match value {
        SqlValue::Null => private::Value::Null,
        SqlValue::Integer(number) => private::Value::Integer(number),
        SqlValue::Real(number) => private::Value::Real(number),
        SqlValue::Text(text) => private::Value::Text(text),
        SqlValue::Blob(bytes) => private::Value::Blob(bytes),
    };
    private::Statement { sql: statement.sql, params: statement.params.into_iter().map(value).collect() }
}

/// Rows as plugins take them.
pub(super) fn rows(rows: private::Rows) -> guest::Rows {
    let value = |value| match value {
        private::Value::Null => SqlValue::Null,
        private::Value::Integer(number) => SqlValue::Integer(number),
        private::Value::Real(number) => SqlValue::Real(number),
        private::Value::Text(text) => SqlValue::Text(text),
        private::Value::Blob(bytes) => SqlValue::Blob(bytes),
    };
    let row = |row: Vec<private::Value>| row.into_iter().map(value).collect();
    guest::Rows { columns: rows.columns, rows: rows.rows.into_iter().map(row).collect() }
}

/// An error in the words of the interface. What only the operator should know goes to the log.
pub(super) fn refusal(error: Error) -> Refusal {
    let clean = |text: &str| redact::text(text).into_owned();
    match &error {
        Error::NotFound { .. } => Refusal::NotFound(clean(&error.to_string())),
        Error::Invalid { fields, .. } => invalid(fields),
        Error::Forbidden { reason, .. } => Refusal::Denied(clean(reason)),
        Error::Conflict { code: plugin_data::FULL | private::TOO_MUCH, reason } => Refusal::Limit(clean(reason)),
        Error::Conflict { code: private::TOO_LONG, reason } => Refusal::Timeout(clean(reason)),
        Error::Conflict { reason, .. } | Error::Mismatch { reason, .. } => Refusal::Conflict(clean(reason)),
        Error::Busy { what, retry_after_ms, .. } => {
            Refusal::Unavailable(Retry { reason: clean(what), after_ms: Some(*retry_after_ms) })
        }
        Error::Internal { context, .. } => {
            tracing::error!(error = error.chain().join(": "), "A function of the host failed.");
            Refusal::Internal(format!("{context} failed; the daemon's log says more"))
        }
    }
}

fn invalid(fields: &[FieldError]) -> Refusal {
    let (first, more) = fields.split_first().map_or((None, fields), |(first, more)| (Some(first), more));
    let more: String = more.iter().map(|field| format!(" {}: {}", field.field, field.reason)).collect();
    let field = first.map_or_else(String::new, |first| first.field.clone());
    let reason = format!("{}{more}", first.map_or("", |first| first.reason.as_str()));
    Refusal::Invalid(InvalidField { field, reason: redact::text(&reason).into_owned() })
}
