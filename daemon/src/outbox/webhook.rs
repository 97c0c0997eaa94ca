//! Signed calls of other programs' webhooks, after Standard Webhooks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use ring::hmac;
use serde_json::{Value, json};

use super::{Sending, Sent, Sink, patient};
use crate::bus::{Bus, Origin, RetryPolicy};
use crate::config::Secret;
use crate::egress::{Ask, Egress, Heard, Method, Url, status_text};
use crate::event::NewEvent;
use crate::id::sha256_hex;
use crate::store::sinks as rows;
use crate::telemetry::traces;

/// The other side does not want to be called any more.
const GONE: u16 = 410;
/// Waits grow from the first to the second; how long it is tried in all is the intent's own limit.
const WAITS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(6 * 3600));

/// What happens when the other side is gone.
pub(super) type OnGone = Box<dyn Fn() -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// A webhook of another program.
pub struct WebhookSink {
    /// The sink's name in intents.
    pub(super) name: String,
    /// The id in the configuration.
    pub(super) id: String,
    /// Where.
    pub(super) url: Url,
    /// Each gives a signature.
    pub(super) secrets: Vec<Secret>,
    /// Further headers.
    pub(super) headers: Vec<(String, Secret)>,
    /// How long one call may take.
    pub(super) timeout: Duration,
    /// The way out.
    pub(super) egress: Egress,
    /// For the time and the event that tells of its end.
    pub(super) bus: Bus,
    /// True once the other side said 410.
    pub(super) gone: Arc<AtomicBool>,
    /// See [`OnGone`].
    pub(super) on_gone: OnGone,
}

impl Sink for WebhookSink {
    fn name(&self) -> &str {
        &self.name
    }

    /// The other side tells calls apart by `webhook-id`, as Standard Webhooks asks of it.
    fn is_idempotent(&self) -> bool {
        true
    }

    fn retry(&self) -> RetryPolicy {
        patient(WAITS.0, WAITS.1)
    }

    fn send<'a>(&'a self, key: &'a str, payload: &'a Value) -> Sending<'a> {
        Box::pin(async move {
            if self.gone.load(Ordering::Acquire) {
                return Sent::Refused("The other side answered 410 Gone before; it is not called any more.".to_owned());
            }
            // It gets the event, which names its trace.
            match traces::telling(self.egress.ask(self.ask(key, payload))).await {
                Ok(heard) => self.judge(&heard).await,
                Err(unheard) => unheard.into(),
            }
        })
    }
}

impl WebhookSink {
    fn ask(&self, key: &str, payload: &Value) -> Ask {
        let body = payload.to_string();
        let seconds = self.bus.clock().now_ms() / 1000;
        let mut headers: Vec<(String, String)> = [
            ("content-type", "application/cloudevents+json".to_owned()),
            ("webhook-id", key.to_owned()),
            ("webhook-timestamp", seconds.to_string()),
            ("webhook-signature", signatures(&self.secrets, key, seconds, body.as_bytes())),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec();
        headers.extend(self.headers.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())));
        Ask {
            method: Method::POST,
            url: self.url.clone(),
            headers,
            body: Bytes::from(body),
            bytes_max: 0,
            time_max: self.timeout,
            redirects_max: 0,
        }
    }

    async fn judge(&self, heard: &Heard) -> Sent {
        if heard.is_success() {
            return Sent::Yes;
        }
        let why = format!("{:?} answered {}", self.url, status_text(heard.status));
        if heard.status == GONE {
            self.give_up().await;
            return Sent::Refused(why);
        }
        Sent::Later(why, heard.retry_after(self.bus.clock().now_ms()))
    }

    /// By which the database knows the address, which may hold a key.
    fn digest(&self) -> String {
        sha256_hex(self.url.to_string().as_bytes())
    }

    /// Notes durably that the other side wants no more calls, and tells of it.
    async fn give_up(&self) {
        self.gone.store(true, Ordering::Release);
        tracing::warn!(sink = self.id, url = ?self.url, "The other side is gone (410); the sink is off.");
        let (id, address, now_ms) = (self.id.clone(), self.digest(), self.bus.clock().now_ms());
        let data = json!({
            "id": self.id,
            "reason": "gone",
            "message": format!("{:?} answered 410 Gone. Give the sink another url, or remove it.", self.url),
        });
        let event = NewEvent::new("aman/sinks", "aman.sink.disabled", &data);
        let state: crate::bus::StateWrite = Box::new(move |tx| rows::set_gone(tx, &id, &address, now_ms));
        if let Err(error) = self.bus.append_unrefused(event, Origin::own("aman"), Some(state)).await {
            let why = error.chain().join(": ");
            tracing::error!(sink = self.id, why, "The end of a sink could not be stored; it is tried once more later.");
        }
        (self.on_gone)().await;
    }
}

/// The header `webhook-signature`: one signature a secret.
fn signatures(secrets: &[Secret], id: &str, seconds: i64, body: &[u8]) -> String {
    let one = |secret: &Secret| {
        let text = secret.expose();
        let bytes = text.strip_prefix("whsec_").and_then(|coded| BASE64.decode(coded).ok());
        let key = hmac::Key::new(hmac::HMAC_SHA256, &bytes.unwrap_or_else(|| text.as_bytes().to_vec()));
        let mut context = hmac::Context::with_key(&key);
        for part in [id.as_bytes(), b".", seconds.to_string().as_bytes(), b".", body] {
            context.update(part);
        }
        format!("v1,{}", BASE64.encode(context.sign()))
    };
    secrets.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the Standard Webhooks specification's reference libraries.
    #[test]
    fn signs_as_the_standard_says() {
        let secret = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let signed = signatures(&[secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
