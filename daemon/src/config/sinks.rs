//! `[sinks.<id>]`: where events go.

use std::time::Duration;

use toml::Table;

use super::broker::{Broker, broker};
use super::table::{Faults, Reader};
use super::{Paths, References, Secret};
use crate::egress::Url;
use crate::event::TypePattern;
use crate::expr::Expr;

/// A sink as it is configured.
#[derive(Debug, Clone, PartialEq)]
pub struct Sink {
    /// Its id.
    pub id: String,
    /// Which events go there.
    pub types: Vec<TypePattern>,
    /// jq over the event; it goes there when the first output is neither null nor false.
    pub when: Option<Expr>,
    /// After this time an event is not sent any more.
    pub keep: Duration,
    /// Its table as it was read, for whoever shows it.
    pub table: Table,
    /// The rest.
    pub kind: SinkKind,
}

/// What differs between the kinds.
#[derive(Debug, Clone, PartialEq)]
pub enum SinkKind {
    /// A signed `POST`, after Standard Webhooks.
    Webhook {
        /// Where.
        url: Url,
        /// What it is signed with; each gives a signature.
        secrets: Vec<Secret>,
        /// Further headers; values may be secrets.
        headers: Vec<(String, Secret)>,
        /// How long one call may take.
        timeout: Duration,
    },
    /// A message to an MQTT broker.
    Mqtt {
        /// See [`Broker`].
        broker: Broker,
        /// The topic; `{type}` stands for the event's type with slashes for dots.
        topic: String,
    },
    /// A message to a topic of an ntfy server.
    Ntfy {
        /// The server.
        url: Url,
        /// Whoever knows it reads along.
        topic: Secret,
        /// An access token.
        token: Option<Secret>,
    },
    /// A message on the desktop.
    Desktop,
}

/// What goes to a person when nothing else is said.
const NOTIFICATIONS: &str = "aman.notification.created";
/// Where ntfy's own server is.
const NTFY: &str = "https://ntfy.sh/";

/// Reads the table of a sink; `None` when it cannot be used, and then `faults` says why.
pub(super) fn sink(
    id: &str,
    table: &Table,
    paths: &Paths,
    references: References,
    faults: &mut Faults,
) -> Option<Sink> {
    let mut reader = Reader::new(format!("sinks.{id}"), table, references);
    let wrong_before = faults.wrong.len();
    let types = types(&mut reader, table);
    let when = reader.expr("when");
    let minute = Duration::from_secs(60);
    let keep = reader.duration("keep", minute..=30 * 1440 * minute).unwrap_or(3 * 1440 * minute);
    let kind = match reader.required("kind", "webhook, mqtt, ntfy or desktop.").as_deref() {
        Some("webhook") => webhook(&mut reader),
        Some("mqtt") => {
            let topic = reader.text("topic").unwrap_or_else(|| "aman/{type}".to_owned());
            if topic.is_empty() || topic.contains(['#', '+', '\0']) {
                reader.wrong("topic", "must be a topic without wildcards; {type} stands for the event's type.");
            }
            broker(&mut reader, paths).map(|broker| SinkKind::Mqtt { broker, topic })
        }
        Some("ntfy") => ntfy(&mut reader, table),
        Some("desktop") => Some(SinkKind::Desktop),
        Some(other) => {
            reader.wrong("kind", format!("'{other}' is not known; this version has: webhook, mqtt, ntfy, desktop."));
            None
        }
        None => None,
    };
    reader.finish(faults);
    let kind = kind.filter(|_| faults.wrong.len() == wrong_before)?;
    Some(Sink { id: id.to_owned(), types, when, keep, table: table.clone(), kind })
}

/// Which events are sent; to people it is notifications unless something else is said.
fn types(reader: &mut Reader<'_>, table: &Table) -> Vec<TypePattern> {
    let for_people = matches!(table.get("kind").and_then(toml::Value::as_str), Some("ntfy" | "desktop"));
    let mut types = reader.patterns("types");
    if for_people && !table.contains_key("types") {
        types.extend(TypePattern::parse(NOTIFICATIONS).ok());
    }
    if types.is_empty() {
        reader.wrong("types", "is missing: the event types to send, such as [\"order.**\"].");
    }
    types
}

fn ntfy(reader: &mut Reader<'_>, table: &Table) -> Option<SinkKind> {
    let url = if table.contains_key("url") { reader.url("url", "the server.") } else { Url::parse(NTFY).ok() };
    let topics = reader.secrets("topic");
    let is_topic = |topic: &str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        (1..=64).contains(&topic.len()) && topic.bytes().all(allowed)
    };
    // What stands in for a reference that is not followed is no topic either.
    let refers = table.get("topic").and_then(toml::Value::as_str).is_some_and(super::is_reference);
    let wanted = "must be one topic of 1 to 64 letters, digits, '-' and '_'; whoever knows it can read along.";
    match topics.as_slice() {
        [topic] if is_topic(topic.expose()) || refers => {}
        _ => reader.wrong("topic", wanted),
    }
    let token = reader.secrets("token").into_iter().next();
    Some(SinkKind::Ntfy { url: url?, topic: topics.into_iter().next()?, token })
}

fn webhook(reader: &mut Reader<'_>) -> Option<SinkKind> {
    let (secrets, headers) = (reader.secrets("secret"), reader.headers("headers"));
    if secrets.is_empty() {
        reader.wrong(
            "secret",
            "is missing: what calls are signed with, best as env:NAME, file:PATH or keyring:SERVICE/ACCOUNT.",
        );
    }
    let timeout = reader.duration("timeout", Duration::from_secs(1)..=Duration::from_secs(120));
    let url = reader.url("url", "where events are sent.")?;
    Some(SinkKind::Webhook { url, secrets, headers, timeout: timeout.unwrap_or(Duration::from_secs(20)) })
}
