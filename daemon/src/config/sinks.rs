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
}

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
    let types = reader.patterns("types");
    if types.is_empty() {
        reader.wrong("types", "is missing: the event types to send, such as [\"order.**\"].");
    }
    let when = reader.expr("when");
    let minute = Duration::from_secs(60);
    let keep = reader.duration("keep", minute..=30 * 1440 * minute).unwrap_or(3 * 1440 * minute);
    let kind = match reader.required("kind", "webhook or mqtt.").as_deref() {
        Some("webhook") => webhook(&mut reader),
        Some("mqtt") => {
            let topic = reader.text("topic").unwrap_or_else(|| "aman/{type}".to_owned());
            if topic.is_empty() || topic.contains(['#', '+', '\0']) {
                reader.wrong("topic", "must be a topic without wildcards; {type} stands for the event's type.");
            }
            broker(&mut reader, paths).map(|broker| SinkKind::Mqtt { broker, topic })
        }
        Some(other) => {
            reader.wrong("kind", format!("'{other}' is not known; this version has: webhook, mqtt."));
            None
        }
        None => None,
    };
    reader.finish(faults);
    let kind = kind.filter(|_| faults.wrong.len() == wrong_before)?;
    Some(Sink { id: id.to_owned(), types, when, keep, table: table.clone(), kind })
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
