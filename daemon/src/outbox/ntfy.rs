//! Messages to a topic of an ntfy server (docs.ntfy.sh), which shows them on phones and desktops.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::message::Message;
use super::{Sending, Sent, Sink, patient};
use crate::bus::{Bus, RetryPolicy};
use crate::config::Secret;
use crate::egress::{Ask, Egress, Heard, Method, Url, status_text};

/// Waits grow from the first to the second; how long it is tried in all is the intent's own limit.
const WAITS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(3600));
/// For everything together.
const TIME_MAX: Duration = Duration::from_secs(20);
/// A server makes a file of a text that is longer than 4096 bytes.
const BODY_BYTES_MAX: usize = 4000;

/// A topic of a server.
pub struct NtfySink {
    /// The sink's name in intents.
    pub(super) name: String,
    /// The server.
    pub(super) url: Url,
    /// Whoever knows it can read along and write.
    pub(super) topic: Secret,
    /// An access token of the server.
    pub(super) token: Option<Secret>,
    /// The way out.
    pub(super) egress: Egress,
    /// For the time.
    pub(super) bus: Bus,
}

impl Sink for NtfySink {
    fn name(&self) -> &str {
        &self.name
    }

    /// A message of the same sequence id takes the place of the one before (ntfy 2.16); an older server shows it twice, which
    /// is better than not at all.
    fn is_idempotent(&self) -> bool {
        true
    }

    fn retry(&self) -> RetryPolicy {
        patient(WAITS.0, WAITS.1)
    }

    fn send<'a>(&'a self, key: &'a str, payload: &'a Value) -> Sending<'a> {
        Box::pin(async move {
            match self.egress.ask(self.ask(key, payload)).await {
                Ok(heard) => self.judge(&heard),
                Err(unheard) => unheard.into(),
            }
        })
    }
}

impl NtfySink {
    fn ask(&self, key: &str, payload: &Value) -> Ask {
        let message = Message::of(payload, BODY_BYTES_MAX);
        let (priority, tag) = match message.severity.as_str() {
            "critical" => (5, "rotating_light"),
            "error" => (4, "x"),
            "warning" => (3, "warning"),
            _ => (2, "information_source"),
        };
        let mut body = json!({
            "topic": self.topic.expose(),
            "title": message.title,
            "message": message.body,
            "priority": priority,
            "tags": [tag],
            "sequence_id": key,
        });
        if let Some(link) = message.link {
            body["click"] = link.into();
        }
        let mut headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        headers
            .extend(self.token.iter().map(|token| ("authorization".to_owned(), format!("Bearer {}", token.expose()))));
        Ask {
            method: Method::POST,
            url: self.url.clone(),
            headers,
            body: Bytes::from(body.to_string()),
            bytes_max: 0,
            time_max: TIME_MAX,
            redirects_max: 0,
        }
    }

    fn judge(&self, heard: &Heard) -> Sent {
        if heard.is_success() {
            return Sent::Yes;
        }
        let why = format!("{:?} answered {}", self.url, status_text(heard.status));
        match heard.status {
            // Nothing makes this message a better one.
            400 | 413 => Sent::Refused(why),
            // The token or the topic may be corrected, the server may come back.
            _ => Sent::Later(why, heard.retry_after(self.bus.clock().now_ms())),
        }
    }
}
