//! The five ways in which an event comes over HTTP, read without building a JSON tree: plain JSON with the daemon's own
//! names, and CloudEvents as structured JSON, as a batch, or with its attributes in `ce-*` headers.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::HeaderMap;
use hyper::header::CONTENT_TYPE;
use percent_encoding::percent_decode_str;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::body;
use super::problem::Problem;
use crate::clock::{self, Millis};
use crate::error::{Error, FieldError};
use crate::event::{self, Data, Delivery, NewEvent, Priority, RESERVED_ATTRIBUTES};
use crate::id::Traceparent;

/// Events of one batch at the most.
pub const BATCH_MAX: usize = 1000;
/// Ids that are words of the routes below `/events`.
pub const RESERVED_IDS: [&str; 6] = ["dump", "trace", "recent", "types", "push", "stream"];
/// Fields of the plain form, for the answer to an unknown one.
const PLAIN: [&str; 16] = [
    "source",
    "type",
    "event_type",
    "data",
    "payload",
    "agent_id",
    "priority",
    "delivery",
    "ttl_ms",
    "dedup_key",
    "subject",
    "time",
    "id",
    "data_base64",
    "partition_key",
    "datacontenttype",
];

/// What a request brings in.
#[derive(Debug)]
pub struct Pushed {
    /// The events in order.
    pub events: Vec<NewEvent>,
    /// True when they came as a batch: the answer is a list then, and errors name `/3/type`.
    pub batch: bool,
}

/// Reads a push. `from` is what the request's `traceparent` header says.
pub fn push(headers: &HeaderMap, body: &[u8], from: Option<Traceparent>, now_ms: Millis) -> Result<Pushed, Problem> {
    let essence = body::media_type(headers)?;
    let mut pushed = match essence.as_deref() {
        Some("application/cloudevents-batch+json") => batch(body, now_ms)?,
        Some("application/cloudevents+json") => one(structured(text(body)?, Form::Cloud, now_ms)?),
        Some(other) if other.starts_with("application/cloudevents") => return Err(body::unsupported(other)),
        _ if is_binary_mode(headers) => one(binary(headers, essence.as_deref(), body, now_ms)?),
        None | Some("application/json" | "text/json") => one(structured(text(body)?, Form::Plain, now_ms)?),
        Some(other) => return Err(body::unsupported(other)),
    };
    for event in pushed.events.iter_mut().filter(|event| event.trace.is_none()) {
        (event.trace, event.parent) = (from.map(|from| from.trace), from.map(|from| from.span));
    }
    Ok(pushed)
}

fn one(event: NewEvent) -> Pushed {
    Pushed { events: vec![event], batch: false }
}

fn text(body: &[u8]) -> Result<&str, Error> {
    let text = std::str::from_utf8(body).map_err(|_| Error::invalid("body", "is not UTF-8."))?;
    Ok(if text.trim_ascii().is_empty() { "{}" } else { text })
}

fn not_json(error: &serde_json::Error) -> Error {
    Error::invalid("body", format!("is not the JSON it should be: {error}."))
}

fn batch(body: &[u8], now_ms: Millis) -> Result<Pushed, Error> {
    let text = std::str::from_utf8(body).map_err(|_| Error::invalid("body", "is not UTF-8."))?;
    let items: Vec<&RawValue> = serde_json::from_str(text).map_err(|error| not_json(&error))?;
    if items.len() > BATCH_MAX {
        return Err(Error::invalid("body", format!("has {} events; a batch has at most {BATCH_MAX}.", items.len())));
    }
    let mut events = Vec::with_capacity(items.len());
    let mut wrong = Vec::new();
    for (n, item) in items.into_iter().enumerate() {
        match structured(item.get(), Form::Cloud, now_ms).map_err(|error| error.at(&format!("/{n}"))) {
            Ok(event) => events.push(event),
            Err(Error::Invalid { code: "invalid_input", fields }) => wrong.extend(fields),
            Err(other) => return Err(other),
        }
    }
    if wrong.is_empty() {
        return Ok(Pushed { events, batch: true });
    }
    wrong.truncate(100);
    Err(Error::Invalid { code: "invalid_input", fields: wrong })
}

/// The members of a JSON object in order, their values as they were written.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Name<'de>, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Name<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }
        from.deserialize_str(Read)
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Members<'de>, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::with_capacity(8);
                while let Some((Name(name), value)) = map.next_entry()? {
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }
        from.deserialize_map(Read)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// The daemon's own names; unknown ones are refused.
    Plain,
    /// CloudEvents: unknown attributes are kept.
    Cloud,
}

fn structured(text: &str, form: Form, now_ms: Millis) -> Result<NewEvent, Error> {
    let Members(members) = serde_json::from_str(text).map_err(|error| not_json(&error))?;
    // Plain JSON that says it is a CloudEvent is one.
    let form = if members.iter().any(|(name, _)| name == "specversion") { Form::Cloud } else { form };
    let mut reader = Reader::new(form, now_ms);
    for (n, (name, value)) in members.iter().enumerate() {
        if members[..n].iter().any(|(earlier, _)| earlier == name) {
            reader.wrong(name, "is given twice.");
        } else if value.get() != "null" {
            reader.take(name, &Given::Json(value))?;
        }
    }
    reader.finish_json()
}

fn is_binary_mode(headers: &HeaderMap) -> bool {
    ["ce-specversion", "ce-type", "ce-source", "ce-id"].iter().any(|name| headers.contains_key(*name))
}

fn binary(headers: &HeaderMap, essence: Option<&str>, body: &[u8], now_ms: Millis) -> Result<NewEvent, Error> {
    let mut reader = Reader::new(Form::Cloud, now_ms);
    for name in headers.keys() {
        let Some(attribute) = name.as_str().strip_prefix("ce-") else { continue };
        let mut values = headers.get_all(name).iter();
        let (value, again) = (values.next(), values.next());
        let value = value.and_then(|v| v.to_str().ok()).and_then(|v| percent_decode_str(v).decode_utf8().ok());
        match value {
            _ if again.is_some() => reader.wrong(attribute, "is given twice."),
            _ if ["data", "data_base64", "datacontenttype"].contains(&attribute) => {
                reader.wrong(attribute, "is no header: the body is the data, Content-Type is its type.");
            }
            Some(text) => reader.take(attribute, &Given::Text(text))?,
            None => reader.wrong(attribute, "is not readable as percent-encoded UTF-8."),
        }
    }
    let mut event = reader.finish_attributes()?;
    let given = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
    event.data = match essence {
        _ if body.is_empty() => Data::None,
        None => json_data(body)?,
        Some(essence) if event::is_json(essence) => json_data(body)?,
        Some(essence) if is_text(essence) => match std::str::from_utf8(body) {
            Ok(text) => Data::Text(text.to_owned()),
            Err(_) => Data::Binary(body.to_vec()),
        },
        Some(_) => Data::Binary(body.to_vec()),
    };
    event.content_type = given.filter(|given| *given != "application/json").map(str::to_owned);
    Ok(event)
}

fn json_data(body: &[u8]) -> Result<Data, Error> {
    let text = std::str::from_utf8(body).map_err(|_| Error::invalid("data", "is not UTF-8, so it is not JSON."))?;
    Data::json(text)
}

fn is_text(essence: &str) -> bool {
    const OTHERS: [&str; 5] = [
        "application/xml",
        "application/yaml",
        "application/toml",
        "application/javascript",
        "application/x-www-form-urlencoded",
    ];
    essence.starts_with("text/") || essence.ends_with("+xml") || essence.ends_with("+yaml") || OTHERS.contains(&essence)
}

enum Given<'a> {
    Json(&'a RawValue),
    /// A header's value: always a text.
    Text(Cow<'a, str>),
}

impl Given<'_> {
    fn text(&self) -> Option<String> {
        match self {
            Given::Json(raw) => serde_json::from_str(raw.get()).ok(),
            Given::Text(text) => Some(text.clone().into_owned()),
        }
    }

    fn value(&self) -> Value {
        match self {
            // No attribute may be a list or an object; what stands inside is not even read.
            Given::Json(raw) if raw.get().starts_with(['[', '{']) => Value::Array(Vec::new()),
            Given::Json(raw) => serde_json::from_str(raw.get()).unwrap_or(Value::Null),
            Given::Text(text) => Value::String(text.clone().into_owned()),
        }
    }
}

/// Gathers attributes, and everything that is wrong with them.
struct Reader<'a> {
    form: Form,
    now_ms: Millis,
    event: NewEvent,
    version: Option<String>,
    data: Option<&'a str>,
    base64: Option<String>,
    wrong: Vec<FieldError>,
}

impl<'a> Reader<'a> {
    fn new(form: Form, now_ms: Millis) -> Reader<'a> {
        let event = NewEvent::default();
        Reader { form, now_ms, event, version: None, data: None, base64: None, wrong: Vec::new() }
    }

    fn wrong(&mut self, field: &str, reason: impl Into<String>) {
        self.wrong.push(FieldError { field: field.to_owned(), reason: reason.into() });
    }

    /// Takes one member. Fails at once only for attributes that are the daemon's.
    fn take(&mut self, name: &str, given: &Given<'a>) -> Result<(), Error> {
        if RESERVED_ATTRIBUTES.contains(&name) {
            return Err(Error::invalid_as("reserved_attribute", name, "is set by the daemon only. Leave it out."));
        }
        let plain = self.form == Form::Plain;
        match name {
            "data" => self.take_data(name, given),
            "payload" if plain => self.take_data(name, given),
            "source" => self.take_text(name, given, |e| &mut e.source),
            "type" => self.take_text(name, given, |e| &mut e.kind),
            "event_type" if plain => self.take_text(name, given, |e| &mut e.kind),
            "id" => self.take_option(name, given, |e| &mut e.id),
            "subject" => self.take_option(name, given, |e| &mut e.subject),
            "time" => self.take_option(name, given, |e| &mut e.time),
            "datacontenttype" => self.take_option(name, given, |e| &mut e.content_type),
            "dedupkey" => self.take_option(name, given, |e| &mut e.dedup_key),
            "dedup_key" if plain => self.take_option(name, given, |e| &mut e.dedup_key),
            "agentid" => self.take_option(name, given, |e| &mut e.agent_id),
            "agent_id" if plain => self.take_option(name, given, |e| &mut e.agent_id),
            "partitionkey" => self.take_option(name, given, |e| &mut e.partition_key),
            "partition_key" if plain => self.take_option(name, given, |e| &mut e.partition_key),
            "specversion" => self.version = Some(given.text().unwrap_or_default()),
            "data_base64" => match given.text() {
                Some(text) => self.base64 = Some(text),
                None => self.wrong(name, "must be a string of base64."),
            },
            "priority" => match given.text().and_then(|text| Priority::of_name(&text)) {
                Some(priority) => self.event.priority = priority,
                None => self.wrong(name, format!("must be one of {}.", Priority::NAMES.join(", "))),
            },
            "delivery" => match given.text().and_then(|text| Delivery::of_name(&text)) {
                Some(delivery) => self.event.delivery = delivery,
                None => self.wrong(name, format!("must be one of {}.", Delivery::NAMES.join(", "))),
            },
            "ttl_ms" | "expirytime" => self.take_expiry(name, given),
            "traceparent" => self.take_traceparent(name, given),
            _ if plain => self.wrong(name, body::unknown(name, &PLAIN)),
            _ => drop(self.event.extensions.insert(name.to_owned(), given.value())),
        }
        Ok(())
    }

    fn take_data(&mut self, name: &str, given: &Given<'a>) {
        if self.data.is_some() {
            self.wrong(name, "is given besides its other name. Send 'data' or 'payload'.");
        } else if let Given::Json(raw) = given {
            self.data = Some(raw.get());
        }
    }

    fn take_text(&mut self, name: &str, given: &Given<'_>, place: fn(&mut NewEvent) -> &mut String) {
        match given.text() {
            None => self.wrong(name, "must be a string."),
            Some(_) if !place(&mut self.event).is_empty() => {
                self.wrong(name, "is given besides its other name. Send 'type' or 'event_type'.");
            }
            Some(text) if text.is_empty() => self.wrong(name, "must not be empty."),
            Some(text) => *place(&mut self.event) = text,
        }
    }

    fn take_option(&mut self, name: &str, given: &Given<'_>, place: fn(&mut NewEvent) -> &mut Option<String>) {
        match given.text() {
            None => self.wrong(name, "must be a string."),
            Some(_) if place(&mut self.event).is_some() => self.wrong(name, "is given under two names. Send one."),
            Some(text) => *place(&mut self.event) = Some(text),
        }
    }

    fn take_expiry(&mut self, name: &str, given: &Given<'_>) {
        let at = if name == "ttl_ms" {
            let ttl = match given {
                Given::Json(_) => event::whole(&given.value()),
                Given::Text(text) => text.parse().ok(),
            };
            ttl.filter(|ttl| *ttl > 0).map(|ttl| self.now_ms.saturating_add(ttl))
        } else {
            given.text().and_then(|text| clock::parse_rfc3339(&text))
        };
        match at {
            None if name == "ttl_ms" => self.wrong(name, "must be a whole number of milliseconds, 1 or more."),
            None => self.wrong(name, "must be an RFC 3339 time with an offset."),
            Some(_) if self.event.expires_ms.is_some() => {
                self.wrong(name, "is given as ttl_ms and as expirytime. Send one.")
            }
            Some(at) => self.event.expires_ms = Some(at),
        }
    }

    fn take_traceparent(&mut self, name: &str, given: &Given<'_>) {
        let text = given.text().unwrap_or_default();
        match Traceparent::parse(&text) {
            Some(from) => {
                (self.event.trace, self.event.parent) = (Some(from.trace), Some(from.span));
                self.event.extensions.insert(name.to_owned(), Value::String(text));
            }
            None => self.wrong(name, "must be a W3C traceparent: 00-<32 hex digits>-<16 hex digits>-<2 hex digits>."),
        }
    }

    /// Checks what the attributes must have; the caller adds the data.
    fn finish_attributes(mut self) -> Result<NewEvent, Error> {
        if self.form == Form::Cloud && self.version.as_deref() != Some("1.0") {
            self.wrong("specversion", "must be \"1.0\".");
        }
        let named = |reader: &Reader<'_>, field: &str| reader.wrong.iter().any(|f| f.field == field);
        if self.event.source.is_empty() && !named(&self, "source") {
            self.wrong("source", "is required.");
        }
        if self.event.kind.is_empty() && !named(&self, "type") && !named(&self, "event_type") {
            self.wrong("type", "is required.");
        }
        if self.event.id.as_deref().is_some_and(|id| RESERVED_IDS.contains(&id)) {
            self.wrong("id", "is a word that the routes below /events use. Choose another.");
        }
        if self.wrong.is_empty() {
            return Ok(self.event);
        }
        Err(Error::Invalid { code: "invalid_input", fields: self.wrong })
    }

    fn finish_json(mut self) -> Result<NewEvent, Error> {
        let essence = self
            .event
            .content_type
            .as_deref()
            .map(|full| full.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
        let is_json = essence.as_deref().is_none_or(event::is_json);
        let data = match (self.data, self.base64.take()) {
            (Some(_), Some(_)) => Err(Error::invalid("data_base64", "is given together with data. Send one.")),
            (None, None) => Ok(Data::None),
            (Some(raw), None) if !is_json && raw.starts_with('"') => {
                serde_json::from_str(raw).map(Data::Text).map_err(|error| Error::invalid("data", format!("{error}.")))
            }
            (Some(raw), None) => Data::json(raw),
            (None, Some(text)) => match BASE64.decode(text) {
                Err(error) => Err(Error::invalid("data_base64", format!("is not base64: {error}."))),
                Ok(bytes) if essence.is_some() && is_json => json_data(&bytes),
                Ok(bytes) => Ok(Data::Binary(bytes)),
            },
        };
        let data = data.unwrap_or_else(|error| {
            if let Error::Invalid { fields, .. } = error {
                self.wrong.extend(fields);
            }
            Data::None
        });
        let mut event = self.finish_attributes()?;
        if event.content_type.is_none() && matches!(data, Data::Binary(_)) {
            event.content_type = Some("application/octet-stream".to_owned());
        }
        if event.content_type.as_deref() == Some("application/json") && data != Data::None {
            event.content_type = None;
        }
        event.data = data;
        Ok(event)
    }
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
