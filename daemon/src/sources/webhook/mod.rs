//! Calls of `POST /hooks/{id}`: checked over the bytes as they came, told apart by the delivery's id, stored, answered.

pub mod verify;

use serde_json::{Map, Value, json};

use super::feed::Feed;
use super::mapping::Frame;
use crate::bus::{Accepted, Bus};
use crate::config::sources::{Scheme, Webhook};
use crate::error::Error;
use crate::event::{Data, NewEvent};

/// Longest part of a type that a sender names.
const NAME_BYTES_MAX: usize = 100;

/// A call's headers: names in lower case.
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// The value of a header that is there just once, so that nobody can hide another behind it.
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut found = self.0.iter().filter(|(known, _)| known == name);
        match (found.next(), found.next()) {
            (Some((_, value)), None) => Some(value),
            _ => None,
        }
    }
}

/// What became of a call.
pub enum Taken {
    /// It was stored: so many events, none when the mapping wanted none.
    Events(Vec<Accepted>),
    /// The sender only wants to see this text again.
    Challenge(String),
}

/// Why a call was not taken.
pub enum Refusal {
    /// It is not signed by who holds the secret.
    Unverified(String),
    /// Anything else.
    Error(Error),
}

/// A hook.
pub struct Hook {
    config: Webhook,
    pub(super) feed: Feed,
}

impl Hook {
    /// A hook of this id.
    pub fn new(id: &str, config: &Webhook, bus: Bus) -> Hook {
        let kind = config.mapping.kind.clone().unwrap_or_else(|| "webhook.received".to_owned());
        let frame = Frame { source: format!("hook/{id}"), kind, mapping: config.mapping.clone() };
        Hook { config: config.clone(), feed: Feed::new(id, frame, bus, "listening") }
    }

    /// True when a caller needs a token, because nothing else says who it is.
    pub fn needs_token(&self) -> bool {
        self.config.verify.is_none()
    }

    /// Takes a call. Durable when it answers.
    pub async fn take(&self, headers: &Headers, body: &[u8]) -> Result<Taken, Refusal> {
        if let Some(verify) = &self.config.verify {
            let checked = verify::check(verify, headers, body, self.feed.bus.clock().now_ms());
            if let Err(why) = checked {
                self.feed.health().last_error = Some(why.clone());
                return Err(Refusal::Unverified(why));
            }
        }
        let content = if self.reads_content() { read(headers, body) } else { Value::Null };
        if self.scheme() == Some(Scheme::Slack) && content["type"] == "url_verification" {
            return Ok(Taken::Challenge(content["challenge"].as_str().unwrap_or_default().to_owned()));
        }
        let delivery = self.delivery_id(headers, &content);
        let events = self.events(headers, body, content, delivery.as_deref()).await.map_err(|error| {
            self.feed.skip(error.to_string());
            Refusal::Error(error)
        })?;
        if events.is_empty() {
            return Ok(Taken::Events(Vec::new()));
        }
        self.feed.publish(events, None).await.map(Taken::Events).map_err(Refusal::Error)
    }

    fn scheme(&self) -> Option<Scheme> {
        self.config.verify.as_ref().map(|verify| verify.scheme)
    }

    /// Whether anything but the event's data is taken from what is sent. What is not looked into is not parsed for it.
    fn reads_content(&self) -> bool {
        let looked_into =
            matches!(self.scheme(), Some(Scheme::Slack | Scheme::Stripe | Scheme::Gitlab | Scheme::Standard));
        looked_into || self.feed.frame.mapping.map.is_some()
    }

    /// What the sender calls this delivery, the same when it sends it again.
    fn delivery_id(&self, headers: &Headers, content: &Value) -> Option<String> {
        let verify = self.config.verify.as_ref();
        let named: &[&str] = match self.scheme() {
            Some(Scheme::Github) => &["x-github-delivery"],
            Some(Scheme::Gitlab) => &["idempotency-key", "x-gitlab-event-uuid"],
            Some(Scheme::Standard) => &["webhook-id"],
            Some(Scheme::Slack | Scheme::Stripe) => &[],
            Some(Scheme::Hmac) | None => &["webhook-id", "idempotency-key"],
        };
        let given = verify.and_then(|verify| verify.id_header.as_deref());
        let from_header = given.into_iter().chain(named.iter().copied()).find_map(|name| headers.get(name));
        let from_body = match self.scheme() {
            Some(Scheme::Slack) => content["event_id"].as_str(),
            Some(Scheme::Stripe) => content["id"].as_str(),
            _ => None,
        };
        from_header.or(from_body).filter(|id| !id.is_empty()).map(str::to_owned)
    }

    async fn events(
        &self,
        headers: &Headers,
        body: &[u8],
        content: Value,
        delivery: Option<&str>,
    ) -> Result<Vec<NewEvent>, Error> {
        let frame = &self.feed.frame;
        let kind = self.kind(headers, &content);
        let input = || {
            let shown: Map<String, Value> = headers
                .0
                .iter()
                .filter(|(name, _)| !is_credential(name))
                .map(|(name, value)| (name.clone(), value.clone().into()))
                .collect();
            json!({ "id": delivery, "type": kind, "headers": shown, "body": content })
        };
        let mut events = match frame.mapped(input).await? {
            Some(events) => events,
            None => {
                let mut event = frame.plain(Data::None);
                event.kind = kind;
                (event.data, event.content_type) = data(headers, body)?;
                vec![event]
            }
        };
        for (n, event) in events.iter_mut().enumerate() {
            if event.dedup_key.is_none()
                && let Some(delivery) = delivery
            {
                event.dedup_key = Some(if n == 0 { delivery.to_owned() } else { format!("{delivery}/{n}") });
            }
        }
        Ok(events)
    }

    /// The configured type, or the one that the sender's words make.
    fn kind(&self, headers: &Headers, content: &Value) -> String {
        let frame = &self.feed.frame;
        let sent = match self.scheme() {
            _ if frame.mapping.kind.is_some() => None,
            Some(Scheme::Github) => headers.get("x-github-event").map(|name| ("github", name)),
            Some(Scheme::Gitlab) => content["object_kind"].as_str().map(|name| ("gitlab", name)),
            Some(Scheme::Slack) => content["event"]["type"].as_str().or(content["type"].as_str()).map(|n| ("slack", n)),
            Some(Scheme::Stripe) => content["type"].as_str().map(|name| ("stripe", name)),
            Some(Scheme::Standard) => content["type"].as_str().map(|name| ("webhook", name)),
            Some(Scheme::Hmac) | None => None,
        };
        let made = sent
            .map(|(sender, name)| format!("{sender}.{name}"))
            .filter(|made| made.len() <= NAME_BYTES_MAX && crate::event::check_type(made).is_ok());
        made.unwrap_or_else(|| frame.kind.clone())
    }
}

/// Headers that a mapping must not copy into events.
fn is_credential(name: &str) -> bool {
    ["authorization", "x-aman-token", "cookie", "x-gitlab-token"].contains(&name)
}

fn is_json(headers: &Headers) -> bool {
    let essence = headers.get("content-type").unwrap_or("application/json").split(';').next().unwrap_or_default();
    crate::event::is_json(&essence.trim().to_ascii_lowercase())
}

/// The body as jq sees it: JSON if it is that, the fields of a form, else text.
fn read(headers: &Headers, body: &[u8]) -> Value {
    if is_json(headers) {
        return crate::event::read_json(body).unwrap_or(Value::Null);
    }
    let text = String::from_utf8_lossy(body);
    if headers.get("content-type").is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded")) {
        let decode = |part: &str| {
            let part = part.replace('+', " ");
            percent_encoding::percent_decode_str(&part).decode_utf8_lossy().into_owned()
        };
        let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
        return pairs.map(|(name, value)| (decode(name), Value::from(decode(value)))).collect::<Map<_, _>>().into();
    }
    Value::String(text.into_owned())
}

/// The body as an event's data, byte for byte.
fn data(headers: &Headers, body: &[u8]) -> Result<(Data, Option<String>), Error> {
    if body.is_empty() {
        return Ok((Data::None, None));
    }
    let text = std::str::from_utf8(body).ok();
    if is_json(headers) {
        let data = text.and_then(|text| Data::json(text).ok());
        let data = data.ok_or_else(|| Error::invalid("body", "is not the JSON that its Content-Type says."))?;
        return Ok((data, None));
    }
    let given = headers.get("content-type").unwrap_or("application/octet-stream").to_owned();
    Ok(match text {
        Some(text) => (Data::Text(text.to_owned()), Some(given)),
        None => (Data::Binary(body.to_vec()), Some(given)),
    })
}
