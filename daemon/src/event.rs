//! The event: a CloudEvents 1.0.2 envelope with the daemon's own attributes; type patterns; the JSON form. Pure.

mod pattern;

pub use pattern::TypePattern;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::{DeserializeSeed, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::clock::{self, Millis};
use crate::error::{Error, FieldError};
use crate::id::{EventSeq, SpanId, TraceId};

/// Longest event type, in bytes.
pub const TYPE_BYTES_MAX: usize = 255;
/// Longest id, in bytes.
pub const ID_BYTES_MAX: usize = 255;
/// Longest source, subject, key or extension value, in bytes.
pub const TEXT_BYTES_MAX: usize = 4096;
/// Most extension attributes that one event may carry.
pub const EXTENSIONS_MAX: usize = 64;
/// Levels that JSON from outside may have: so few that it can still be read inside the answers that hold it.
pub const JSON_DEPTH_MAX: usize = 100;
/// Attributes that only the daemon sets.
pub const RESERVED_ATTRIBUTES: [&str; 5] = ["amansequence", "traceid", "correlationid", "causationid", "trust"];
/// Beginnings of sources that only the daemon's own producers may use; besides everything that begins with `aman`.
pub const RESERVED_SOURCES: [&str; 9] =
    ["files/", "cron/", "hook/", "skill/", "workflow/", "plugin/", "agent/", "mqtt/", "command/"];

/// How far a producer is believed; rides on every event and along causation. Ordered: the lower is trusted less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Trust {
    /// Nobody vouches for it.
    #[default]
    Unknown,
    /// From the web: webhooks, polls.
    Web,
    /// From a plugin.
    Plugin,
    /// From a group chat.
    Group,
    /// From a paired program with a token of its own.
    Paired,
    /// From the owner of the machine.
    Owner,
}

/// Which of the ready deliveries goes first; also what is refused first when the daemon is overloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// After everything else.
    Low,
    /// The usual.
    #[default]
    Normal,
    /// Before everything else.
    High,
}

/// What may happen to an attempt that was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// Claimed durably before it runs, never repeated.
    AtMostOnce,
    /// Repeated.
    #[default]
    AtLeastOnce,
    /// Repeated, unless the consumer acts outside the transaction: then it is dead-lettered as `unknown_outcome`.
    ExactlyOnce,
}

macro_rules! coded {
    ($type:ty, $($variant:path => $code:literal $name:literal),+) => {
        impl $type {
            /// The number that stands for it in the database.
            pub fn code(self) -> i64 {
                match self { $($variant => $code),+ }
            }

            /// Reads [`Self::code`] back; an unknown number gives the default.
            pub fn of_code(code: i64) -> Self {
                match code { $($code => $variant,)+ _ => <$type>::default() }
            }

            /// Its name in JSON.
            pub fn name(self) -> &'static str {
                match self { $($variant => $name),+ }
            }

            /// Reads [`Self::name`] back.
            pub fn of_name(name: &str) -> Option<Self> {
                match name { $($name => Some($variant),)+ _ => None }
            }

            /// All names, for messages.
            pub const NAMES: &'static [&'static str] = &[$($name),+];
        }
    };
}
coded!(Trust, Trust::Unknown => 0 "unknown", Trust::Web => 1 "web", Trust::Plugin => 2 "plugin",
    Trust::Group => 3 "group", Trust::Paired => 4 "paired", Trust::Owner => 5 "owner");
coded!(Priority, Priority::Low => 2 "low", Priority::Normal => 1 "normal", Priority::High => 0 "high");
coded!(Delivery, Delivery::AtMostOnce => 2 "at_most_once", Delivery::AtLeastOnce => 0 "at_least_once",
    Delivery::ExactlyOnce => 1 "exactly_once");

/// The payload, kept byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Data {
    /// No data.
    #[default]
    None,
    /// One JSON text that serde_json reads (checked: depth, numbers, surrogates) and that holds no raw line break.
    Json(String),
    /// Text of another content type.
    Text(String),
    /// Bytes of another content type.
    Binary(Vec<u8>),
}

impl Data {
    /// JSON text as it came; refuses what serde_json could not read back, so that no consumer meets it later.
    pub fn json(text: &str) -> Result<Data, Error> {
        check_json(text.as_bytes()).map_err(|error| Error::invalid("data", format!("is not JSON: {error}")))?;
        // A raw line break in JSON can only stand between tokens; one line is what streams and logs need.
        if text.bytes().any(|b| b == b'\n' || b == b'\r') {
            return Ok(Data::Json(text.replace(['\n', '\r'], " ")));
        }
        Ok(Data::Json(text.to_owned()))
    }

    /// A value as JSON data; as text when it could not be read back.
    pub fn of_value(value: &Value) -> Data {
        if value.is_null() {
            return Data::None;
        }
        let text = value.to_string();
        if check_json(text.as_bytes()).is_ok() { Data::Json(text) } else { Data::Text(text) }
    }

    /// The value that jq sees as `.data`: null unless the data is JSON or text.
    pub fn to_value(&self) -> Value {
        match self {
            Data::Json(text) => serde_json::from_str(text).unwrap_or(Value::Null),
            Data::Text(text) => Value::String(text.clone()),
            Data::None | Data::Binary(_) => Value::Null,
        }
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        match self {
            Data::None => 0,
            Data::Json(text) | Data::Text(text) => text.len(),
            Data::Binary(bytes) => bytes.len(),
        }
    }

    /// True when there is no data.
    pub fn is_empty(&self) -> bool {
        *self == Data::None
    }
}

/// Reads JSON from outside into a value, once it is known to be safe to read; see [`check_json`].
pub fn read_json<T: serde::de::DeserializeOwned>(text: &[u8]) -> serde_json::Result<T> {
    check_json(text)?;
    serde_json::from_slice(text)
}

/// True for the media types that hold JSON; without parameters, in lower case (RFC 6839, 3.1).
pub fn is_json(essence: &str) -> bool {
    essence == "application/json" || essence == "text/json" || essence.ends_with("+json")
}

/// Checks that serde_json can read `text` back as a value, without building it: at most [`JSON_DEPTH_MAX`] levels, and
/// none of the names by which serde_json marks texts that it parses once more, with a depth limit of their own.
pub fn check_json(text: &[u8]) -> serde_json::Result<()> {
    let mut from = serde_json::Deserializer::from_slice(text);
    Readable { depth: 0 }.deserialize(&mut from)?;
    from.end()
}

/// Accepts any JSON that could become a `Value`, without building it.
#[derive(Clone, Copy)]
struct Readable {
    depth: usize,
}

impl Readable {
    fn deeper<E: serde::de::Error>(self) -> Result<Readable, E> {
        if self.depth >= JSON_DEPTH_MAX {
            return Err(E::custom(format!("more than {JSON_DEPTH_MAX} levels")));
        }
        Ok(Readable { depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for Readable {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Readable {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any JSON")
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        while seq.next_element_seed(inner)?.is_some() {}
        Ok(())
    }
    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        while map.next_key_seed(Name)?.is_some() {
            map.next_value_seed(inner)?;
        }
        Ok(())
    }
}

/// Accepts the name of a member, unless serde_json would not take it as a name.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a name")
    }
    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<(), E> {
        if name.starts_with("$serde_json::private::") {
            return Err(E::custom(format!("the name '{name}' cannot be kept")));
        }
        Ok(())
    }
}

/// What a producer says of an event. Its serde form is for what the daemon keeps for itself, not for anybody's input.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct NewEvent {
    /// The producer's id; without one the daemon makes a UUIDv7.
    pub id: Option<String>,
    /// Who produced it (CloudEvents `source`).
    pub source: String,
    /// What happened (CloudEvents `type`).
    pub kind: String,
    /// What it happened to.
    pub subject: Option<String>,
    /// When it happened, RFC 3339 with an offset, as the producer wrote it; default: when it was stored.
    pub time: Option<String>,
    /// The payload.
    pub data: Data,
    /// Media type of the payload; none means `application/json`.
    pub content_type: Option<String>,
    /// See [`Priority`].
    pub priority: Priority,
    /// See [`Delivery`].
    pub delivery: Delivery,
    /// From when on it is not delivered any more.
    pub expires_ms: Option<Millis>,
    /// Equal keys of one source are one event, for `bus.dedup_window`.
    pub dedup_key: Option<String>,
    /// The agent it is for.
    pub agent_id: Option<String>,
    /// Events with an equal key keep their order.
    pub partition_key: Option<String>,
    /// The trace it belongs to, from `traceparent`.
    #[serde(skip)]
    pub trace: Option<TraceId>,
    /// The span of that trace that it comes from; not stored.
    #[serde(skip)]
    pub parent: Option<SpanId>,
    /// Further attributes, kept unchanged: strings, 32-bit integers and booleans.
    pub extensions: Map<String, Value>,
}

/// A stored event: what was sent, and what the daemon knows of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its place in the global order.
    pub sequence: EventSeq,
    /// When it was stored.
    pub received_ms: Millis,
    /// The id that the daemon made; none when the producer gave one.
    pub made_id: Option<Uuid>,
    /// What the producer sent.
    pub sent: NewEvent,
    /// The trace it belongs to.
    pub trace: TraceId,
    /// Id of the first event of the chain; its own id when it has no cause.
    pub correlation: Option<String>,
    /// Id of the event that caused it.
    pub causation: Option<String>,
    /// Sequence of the event that caused it.
    pub cause: Option<EventSeq>,
    /// How many events stand between it and the first of the chain.
    pub depth: u32,
    /// How far it is believed.
    pub trust: Trust,
    /// Who brought it in: the authenticated principal, or the consumer.
    pub principal: String,
}

fn dedup_key(source: &str, what: &str, key: &str) -> [u8; 16] {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    for part in [source, what, key] {
        hash.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let mut short = [0; 16];
    short.copy_from_slice(&hash.finish().as_ref()[..16]);
    short
}

impl NewEvent {
    /// An event of `source` and `kind` with JSON data; everything else by default.
    pub fn new(source: impl Into<String>, kind: impl Into<String>, data: &Value) -> NewEvent {
        NewEvent { source: source.into(), kind: kind.into(), data: Data::of_value(data), ..NewEvent::default() }
    }

    /// What makes it a duplicate of an earlier event: hashes of source and id, and of source and `dedupkey`.
    pub fn dedup_keys(&self) -> Vec<[u8; 16]> {
        let keys = [("id", &self.id), ("key", &self.dedup_key)];
        keys.into_iter().filter_map(|(what, key)| Some(dedup_key(&self.source, what, key.as_deref()?))).collect()
    }

    /// Checks every rule of the envelope and names each field that breaks one.
    pub fn check(&self) -> Result<(), Error> {
        let mut fields = Vec::new();
        let mut wrong = |field: &str, reason: String| fields.push(FieldError { field: field.to_owned(), reason });
        if let Err(reason) = check_type(&self.kind) {
            wrong("type", reason);
        }
        check_text(&mut wrong, "source", Some(&self.source), TEXT_BYTES_MAX);
        check_text(&mut wrong, "id", self.id.as_ref(), ID_BYTES_MAX);
        check_text(&mut wrong, "subject", self.subject.as_ref(), TEXT_BYTES_MAX);
        check_text(&mut wrong, "datacontenttype", self.content_type.as_ref(), ID_BYTES_MAX);
        check_text(&mut wrong, "dedupkey", self.dedup_key.as_ref(), TEXT_BYTES_MAX);
        check_text(&mut wrong, "agentid", self.agent_id.as_ref(), ID_BYTES_MAX);
        check_text(&mut wrong, "partitionkey", self.partition_key.as_ref(), TEXT_BYTES_MAX);
        if let Some(time) = &self.time
            && clock::parse_rfc3339(time).is_none()
        {
            wrong("time", "must be an RFC 3339 time with an offset, such as 2026-01-31T08:00:00Z.".to_owned());
        }
        if self.extensions.len() > EXTENSIONS_MAX {
            wrong("extensions", format!("has {} attributes; at most {EXTENSIONS_MAX}.", self.extensions.len()));
        }
        for (name, value) in &self.extensions {
            if let Err(reason) = check_extension(name, value) {
                wrong(name, reason);
            }
        }
        if fields.is_empty() { Ok(()) } else { Err(Error::Invalid { code: "invalid_input", fields }) }
    }

    /// Refuses sources and types that only the daemon's own producers use.
    pub fn check_names_free(&self) -> Result<(), Error> {
        let taken = if self.source.starts_with("aman")
            || RESERVED_SOURCES.iter().any(|prefix| self.source.starts_with(prefix))
        {
            format!("source: '{}' begins like a source of the daemon's own. Choose another beginning.", self.source)
        } else if self.kind.starts_with("aman.") {
            format!("type: '{}' begins with 'aman.', which only the daemon uses. Choose another.", self.kind)
        } else {
            return Ok(());
        };
        Err(Error::Forbidden { code: "reserved_name", reason: taken })
    }
}

fn check_text(wrong: &mut impl FnMut(&str, String), field: &str, text: Option<&String>, bytes_max: usize) {
    let Some(text) = text else { return };
    if text.is_empty() || text.len() > bytes_max {
        wrong(field, format!("must have 1 to {bytes_max} bytes; it has {}.", text.len()));
    } else if text.chars().any(char::is_control) {
        wrong(field, "must not contain control characters.".to_owned());
    }
}

/// Checks `[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*`, at most [`TYPE_BYTES_MAX`] bytes.
pub fn check_type(kind: &str) -> Result<(), String> {
    if kind.is_empty() || kind.len() > TYPE_BYTES_MAX {
        return Err(format!("must have 1 to {TYPE_BYTES_MAX} bytes; it has {}.", kind.len()));
    }
    let good = |segment: &str| {
        !segment.is_empty() && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    };
    if kind.split('.').all(good) {
        return Ok(());
    }
    Err("must be segments of letters, digits, '_' and '-', separated by single dots, such as mail.received.".to_owned())
}

/// A whole number, however it is written: `2.0` is one, as in JSON Schema.
pub fn whole(value: &Value) -> Option<i64> {
    /// Up to here every whole number has a float of its own.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    value.as_i64().or_else(|| {
        let float = value.as_f64().filter(|float| float.fract() == 0.0 && float.abs() <= EXACT_MAX)?;
        format!("{float:.0}").parse().ok()
    })
}

fn check_extension(name: &str, value: &Value) -> Result<(), String> {
    let good_name =
        (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if !good_name {
        return Err("is no attribute name: 1 to 64 lower-case letters and digits.".to_owned());
    }
    match value {
        Value::Bool(_) => Ok(()),
        Value::Number(n) if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => Ok(()),
        Value::Number(_) => Err("must be an integer of at most 32 bits.".to_owned()),
        Value::String(text) if text.len() > TEXT_BYTES_MAX => Err(format!("must have at most {TEXT_BYTES_MAX} bytes.")),
        Value::String(text) if text.chars().any(char::is_control) => {
            Err("must not contain control characters.".to_owned())
        }
        Value::String(_) => Ok(()),
        Value::Null | Value::Array(_) | Value::Object(_) => {
            Err("must be a string, an integer or a boolean.".to_owned())
        }
    }
}

/// How much of an event a reader may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// All of it.
    Full,
    /// What a stream without credentials shows: id, source, type, time, amansequence, traceid and priority.
    Metadata,
}

impl Event {
    /// Its CloudEvents id.
    pub fn id(&self) -> String {
        match (&self.sent.id, self.made_id) {
            (Some(id), _) => id.clone(),
            (None, Some(made)) => made.to_string(),
            (None, None) => String::new(),
        }
    }

    /// About how many bytes of memory it takes, for everything that is bounded by bytes.
    pub fn weight(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let sent = &self.sent;
        let extensions: usize =
            sent.extensions.iter().map(|(name, value)| name.len() + value.as_str().map_or(8, str::len) + 64).sum();
        512 + sent.data.len()
            + sent.source.len()
            + text(&sent.subject)
            + text(&sent.dedup_key)
            + text(&sent.partition_key)
            + extensions
    }

    /// True when it may not be delivered any more at `now_ms`.
    pub fn is_expired(&self, now_ms: Millis) -> bool {
        self.sent.expires_ms.is_some_and(|at| at <= now_ms)
    }

    /// Appends the event as one line of CloudEvents JSON.
    pub fn write_json(&self, out: &mut Vec<u8>, view: View) {
        let sent = &self.sent;
        out.extend_from_slice(b"{\"specversion\":\"1.0\",\"id\":");
        match (&sent.id, self.made_id) {
            (None, Some(made)) => {
                let mut buffer = Uuid::encode_buffer();
                out.push(b'"');
                out.extend_from_slice(made.hyphenated().encode_lower(&mut buffer).as_bytes());
                out.push(b'"');
            }
            (given, _) => string(out, given.as_deref().unwrap_or_default()),
        }
        member(out, "source", &sent.source);
        member(out, "type", &sent.kind);
        out.extend_from_slice(b",\"time\":");
        match &sent.time {
            Some(time) => string(out, time),
            None => time(out, self.received_ms),
        }
        if view == View::Full {
            self.write_optional(out);
        }
        out.extend_from_slice(b",\"priority\":\"");
        out.extend_from_slice(sent.priority.name().as_bytes());
        out.extend_from_slice(b"\",\"amansequence\":\"");
        let _ = std::io::Write::write_fmt(out, format_args!("{}", self.sequence.0));
        out.extend_from_slice(b"\",\"traceid\":\"");
        let mut trace = [0_u8; 32];
        for (pair, byte) in trace.chunks_exact_mut(2).zip(self.trace.0) {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            pair[0] = HEX[usize::from(byte >> 4)];
            pair[1] = HEX[usize::from(byte & 15)];
        }
        out.extend_from_slice(&trace);
        out.push(b'"');
        if view == View::Full {
            self.write_full(out);
        }
        out.push(b'}');
    }

    fn write_optional(&self, out: &mut Vec<u8>) {
        let sent = &self.sent;
        let optional = [
            ("subject", &sent.subject),
            ("agentid", &sent.agent_id),
            ("dedupkey", &sent.dedup_key),
            ("partitionkey", &sent.partition_key),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                member(out, name, value);
            }
        }
        for (name, value) in &sent.extensions {
            out.push(b',');
            string(out, name);
            out.push(b':');
            let _ = serde_json::to_writer(&mut *out, value);
        }
        if sent.delivery != Delivery::default() {
            member(out, "delivery", sent.delivery.name());
        }
        if let Some(at) = sent.expires_ms {
            out.extend_from_slice(b",\"expirytime\":");
            time(out, at);
        }
    }

    fn write_full(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b",\"correlationid\":");
        match &self.correlation {
            Some(id) => string(out, id),
            None => string(out, &self.id()),
        }
        if let Some(id) = &self.causation {
            member(out, "causationid", id);
        }
        member(out, "trust", self.trust.name());
        let data = &self.sent.data;
        if !data.is_empty() || self.sent.content_type.is_some() {
            member(out, "datacontenttype", self.sent.content_type.as_deref().unwrap_or("application/json"));
        }
        match data {
            Data::None => {}
            Data::Json(text) => {
                out.extend_from_slice(b",\"data\":");
                out.extend_from_slice(text.as_bytes());
            }
            Data::Text(text) => member(out, "data", text),
            Data::Binary(bytes) => member(out, "data_base64", &BASE64.encode(bytes)),
        }
    }

    /// The event as JSON bytes: what consumers and expressions read.
    pub fn to_json(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(512 + self.sent.data.len());
        self.write_json(&mut out, View::Full);
        out
    }

    /// The event as a JSON value.
    pub fn to_value(&self) -> Value {
        serde_json::from_slice(&self.to_json()).unwrap_or(Value::Null)
    }
}

fn member(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    string(out, value);
}

fn string(out: &mut Vec<u8>, text: &str) {
    let _ = serde_json::to_writer(out, text);
}

fn time(out: &mut Vec<u8>, at_ms: Millis) {
    out.push(b'"');
    clock::write_rfc3339(out, at_ms);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn stored(sent: NewEvent) -> Event {
        Event {
            sequence: EventSeq(7),
            received_ms: 1_795_000_000_000,
            made_id: sent.id.is_none().then(|| Uuid::from_u128(1)),
            sent,
            trace: TraceId([1; 16]),
            correlation: None,
            causation: None,
            cause: None,
            depth: 0,
            trust: Trust::Owner,
            principal: "owner".to_owned(),
        }
    }

    #[test]
    fn json_form_keeps_what_was_sent() {
        let mut sent = NewEvent::new("me", "a.b", &json!({"x": "é\"\u{1}"}));
        sent.extensions.insert("comexample".to_owned(), json!(12));
        sent.subject = Some("s".to_owned());
        let value = stored(sent).to_value();
        assert_eq!(value["data"], json!({"x": "é\"\u{1}"}));
        assert_eq!(value["comexample"], 12);
        assert_eq!(value["amansequence"], "7");
        assert_eq!(value["correlationid"], value["id"]);
        let text = NewEvent { data: Data::Binary(vec![0, 255]), ..NewEvent::new("me", "a", &Value::Null) };
        assert_eq!(stored(text).to_value()["data_base64"], "AP8=");
    }

    #[test]
    fn unreadable_json_is_refused() {
        let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
        let again = r#"{"a":[{"$serde_json::private::\u0052awValue":"[1]"}]}"#;
        let deepest = format!("{}1{}", "[".repeat(JSON_DEPTH_MAX), "]".repeat(JSON_DEPTH_MAX));
        assert!(Data::json(&deepest).is_ok());
        for bad in [again, &format!("[{deepest}]"), "1 2", "{", "\"\\ud800\"", "1e999", "nul", "{\"a\":1,}", &deep] {
            assert!(Data::json(bad).is_err(), "{bad}");
        }
        assert_eq!(Data::json("{\n\"a\":\r\n1}").expect("JSON"), Data::Json("{ \"a\":  1}".to_owned()));
    }

    #[test]
    fn each_broken_field_is_named() {
        let good = || NewEvent::new("me", "a.b", &Value::Null);
        let with = |change: fn(&mut NewEvent)| {
            let mut event = good();
            change(&mut event);
            match event.check() {
                Err(Error::Invalid { fields, .. }) => fields.into_iter().map(|f| f.field).collect::<Vec<_>>().join(","),
                Ok(()) => String::new(),
                Err(other) => other.to_string(),
            }
        };
        assert_eq!(with(|_| ()), "");
        assert_eq!(with(|e| e.kind = "a..b".into()), "type");
        assert_eq!(with(|e| e.kind = "ä".into()), "type");
        assert_eq!(with(|e| e.kind = "a".repeat(256)), "type");
        assert_eq!(with(|e| e.source = String::new()), "source");
        assert_eq!(with(|e| e.subject = Some("a\u{7}".into())), "subject");
        assert_eq!(with(|e| e.time = Some("2026-01-01T00:00:00".into())), "time");
        assert_eq!(with(|e| drop(e.extensions.insert("Bad".into(), json!(1)))), "Bad");
        assert_eq!(with(|e| drop(e.extensions.insert("x".into(), json!([])))), "x");
        assert_eq!(with(|e| drop(e.extensions.insert("x".into(), json!(1.5)))), "x");
        assert_eq!(with(|e| (e.kind, e.source) = ("".into(), "".into())), "type,source");
    }
}
