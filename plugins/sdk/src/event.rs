//! Events that came, and events to publish.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Attribute, Error, Event, NewEvent, Result, bus};

impl Event {
    /// The data as JSON; an event without data has `null`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(self.data.as_deref().unwrap_or(b"null"))
            .map_err(|error| Error::invalid("data", format!("{error}.")))
    }
}

impl NewEvent {
    /// An event of this type without data. The host sets its source, trace, cause and trust.
    pub fn new(kind: impl Into<String>) -> NewEvent {
        NewEvent {
            id: None,
            type_: kind.into(),
            subject: None,
            time: None,
            data_content_type: None,
            data: None,
            priority: None,
            delivery: None,
            ttl_ms: None,
            dedup_key: None,
            agent_id: None,
            partition_key: None,
            attributes: Vec::new(),
            extensions: Vec::new(),
        }
    }

    /// With JSON data.
    pub fn json(mut self, data: &impl Serialize) -> Result<NewEvent> {
        self.data = Some(serde_json::to_vec(data)?);
        Ok(self)
    }

    /// With what it is about.
    pub fn subject(mut self, subject: impl Into<String>) -> NewEvent {
        self.subject = Some(subject.into());
        self
    }

    /// With the time it happened, RFC 3339 with an offset.
    pub fn time(mut self, time: impl Into<String>) -> NewEvent {
        self.time = Some(time.into());
        self
    }

    /// With a key: of events with equal keys only the first is kept.
    pub fn dedup_key(mut self, key: impl Into<String>) -> NewEvent {
        self.dedup_key = Some(key.into());
        self
    }

    /// With a key: events with equal keys keep their order.
    pub fn partition_key(mut self, key: impl Into<String>) -> NewEvent {
        self.partition_key = Some(key.into());
        self
    }

    /// With a text attribute; the name has lower-case letters and digits.
    pub fn attribute(mut self, name: impl Into<String>, value: impl Into<String>) -> NewEvent {
        self.attributes.push((name.into(), Attribute::Text(value.into())));
        self
    }

    /// Publishes it; see [`bus::publish`].
    pub fn publish(&self) -> Result<Option<String>> {
        bus::publish(self)
    }
}
