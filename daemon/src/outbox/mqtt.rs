//! Messages to an MQTT broker, QoS 1: sent until the broker has them. After a crash one may be sent twice; it carries the
//! event's id.

use std::time::Duration;

use rumqttc::{Event, EventLoop, Outgoing, Packet, PublishOptions};
use serde_json::Value;

use super::{Sending, Sent, Sink, patient};
use crate::bus::RetryPolicy;
use crate::config::broker::Broker;
use crate::egress::Egress;
use crate::egress::mqtt::{client, options};

/// For connecting and the broker's word.
const TIME_MAX: Duration = Duration::from_secs(30);

/// A broker.
pub struct MqttSink {
    /// The sink's name in intents.
    pub(super) name: String,
    /// How the broker knows it.
    pub(super) client: String,
    /// Where.
    pub(super) broker: Broker,
    /// With `{type}`.
    pub(super) topic: String,
    /// The way out.
    pub(super) egress: Egress,
}

impl Sink for MqttSink {
    fn name(&self) -> &str {
        &self.name
    }

    /// At least once is what QoS 1 means.
    fn is_idempotent(&self) -> bool {
        true
    }

    fn retry(&self) -> RetryPolicy {
        patient(Duration::from_secs(1), Duration::from_secs(300))
    }

    fn send<'a>(&'a self, _: &'a str, payload: &'a Value) -> Sending<'a> {
        Box::pin(async move {
            let kind = payload["type"].as_str().unwrap_or_default().replace('.', "/");
            let mut options = options(&self.broker, self.client.clone(), &self.egress);
            // The outbox remembers what was not taken; the broker need not.
            options.set_clean_session(true);
            let (client, mut events) = match client(options, 10) {
                Ok(made) => made,
                Err(error) => return Sent::Later(format!("there is no client for this broker: {error}"), None),
            };
            let topic = self.topic.replace("{type}", &kind);
            if let Err(error) = client.try_publish(topic, payload.to_string(), PublishOptions::at_least_once()) {
                return Sent::Refused(format!("it cannot be sent: {error}"));
            }
            let mut left = false;
            let sent = match tokio::time::timeout(TIME_MAX, wait(&mut events, &mut left)).await {
                Ok(Ok(())) => Sent::Yes,
                Ok(Err(why)) if left => Sent::Unknown(why),
                Ok(Err(why)) => Sent::Later(why, None),
                Err(_) => Sent::Later("the broker does not answer".to_owned(), None),
            };
            if sent == Sent::Yes && client.try_disconnect().is_ok() {
                let _farewell = tokio::time::timeout(Duration::from_secs(1), events.poll()).await;
            }
            sent
        })
    }
}

/// Waits until the broker has the message; `left` becomes true once it may have.
async fn wait(events: &mut EventLoop, left: &mut bool) -> Result<(), String> {
    loop {
        match events.poll().await {
            Ok(Event::Outgoing(Outgoing::Publish(_))) => *left = true,
            Ok(Event::Incoming(Packet::PubAck(_))) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(format!("no connection to the broker: {error}")),
        }
    }
}
