//! Topics of an MQTT broker. A message is acknowledged once its event is durable, so the broker keeps it until then,
//! also while the daemon is down; after a crash at the wrong moment one may come twice.

use std::sync::Arc;
use std::time::Duration;

use rumqttc::{AckMode, AsyncClient, Event, EventLoop, Packet, Publish, QoS, SubscribeFilter, SubscribeReasonCode};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::feed::{Feed, back_off};
use super::mapping::{content, shown};
use crate::config::sources::Mqtt;
use crate::egress::Egress;
use crate::egress::mqtt::{client, options};
use crate::error::Error;
use crate::event::NewEvent;

const RECONNECT_FIRST: Duration = Duration::from_secs(1);
const RECONNECT_MAX: Duration = Duration::from_secs(60);
/// Requests that may wait for the connection.
const REQUESTS_MAX: usize = 1000;

/// An MQTT source, ready to run.
pub struct MqttSource {
    /// The way of its events.
    pub feed: Arc<Feed>,
    /// What it listens to.
    pub config: Mqtt,
    /// The way out.
    pub egress: Egress,
}

impl MqttSource {
    /// Runs until `stop`.
    pub async fn run(&self, stop: CancellationToken) -> Result<(), Error> {
        let name = format!("aman-{:08x}-{}", self.feed.bus.store().ids().node, self.feed.id);
        let mut options = options(&self.config.broker, name, &self.egress);
        options.set_clean_session(false).set_ack_mode(AckMode::Manual);
        let (client, mut events) = client(options, REQUESTS_MAX).map_err(Error::internal("making an MQTT client"))?;
        let mut failures = 0;
        loop {
            let polled = tokio::select! {
                () = stop.cancelled() => break,
                polled = events.poll() => polled,
            };
            match polled {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    failures = 0;
                    self.feed.well("connected");
                    let filter = |topic: &String| SubscribeFilter::new(topic.clone(), QoS::AtLeastOnce);
                    if let Err(error) = client.try_subscribe_many(self.config.topics.iter().map(filter)) {
                        self.feed.failing(format!("the topics cannot be subscribed to: {error}"));
                    }
                }
                Ok(Event::Incoming(Packet::SubAck(answer))) => {
                    if answer.return_codes.contains(&SubscribeReasonCode::Failure) {
                        self.feed.failing("the broker refuses some of the topics".to_owned());
                    }
                }
                Ok(Event::Incoming(Packet::Publish(message))) => {
                    if !self.take(&message, &stop).await? {
                        break;
                    }
                    if let Err(error) = client.try_ack(&message) {
                        self.feed.skip(format!("a message could not be acknowledged and comes again: {error}"));
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    failures += 1;
                    self.feed.failing(format!("no connection to the broker: {error}"));
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = tokio::time::sleep(back_off(failures, RECONNECT_FIRST, RECONNECT_MAX)) => {}
                    }
                }
            }
        }
        leave(client, events).await;
        Ok(())
    }

    /// Stores a message; false when the source is to stop first.
    async fn take(&self, message: &Publish, stop: &CancellationToken) -> Result<bool, Error> {
        // The broker remembers topics of earlier settings.
        if !self.config.topics.iter().any(|filter| is_for(&topic(message), filter)) {
            return Ok(true);
        }
        match self.events(message).await {
            Ok(events) if events.is_empty() => Ok(true),
            Ok(events) => self.feed.publish_patiently(events, || None, stop).await,
            Err(error) => {
                self.feed.skip(format!("{}: {error}", topic(message)));
                Ok(true)
            }
        }
    }

    async fn events(&self, message: &Publish) -> Result<Vec<NewEvent>, Error> {
        let frame = &self.feed.frame;
        let input = || json!({ "topic": topic(message), "payload": shown(&message.payload), "retain": message.retain });
        if let Some(events) = frame.mapped(input).await? {
            return Ok(events);
        }
        let (data, content_type) = content(&message.payload, None);
        let event = NewEvent { subject: Some(topic(message)), content_type, ..frame.plain(data) };
        event.check()?;
        Ok(vec![event])
    }
}

/// True when a message on `topic` is for the subscription `filter`, which may be shared with other clients.
fn is_for(topic: &str, filter: &str) -> bool {
    let shared = filter.strip_prefix("$share/").and_then(|rest| rest.split_once('/'));
    let filter = shared.map_or(filter, |(_, inner)| inner);
    // The library's comparison leaves out the broker's own topics, whose first segment no wildcard means.
    match (topic.strip_prefix('$'), filter.strip_prefix('$')) {
        (Some(topic), Some(filter)) => rumqttc::matches(topic, filter),
        (None, None) => rumqttc::matches(topic, filter),
        _ => false,
    }
}

/// UTF-8 by the protocol.
fn topic(message: &Publish) -> String {
    String::from_utf8_lossy(&message.topic).into_owned()
}

/// Says good-bye and sends what waits, such as acknowledgements.
async fn leave(client: AsyncClient, mut events: EventLoop) {
    let _gone = client.try_disconnect();
    let last = async { while events.poll().await.is_ok() {} };
    let _late = tokio::time::timeout(Duration::from_secs(1), last).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_matched_with_filters() {
        for (topic, filter, wanted) in [
            ("home/lamp", "home/#", true),
            ("home", "home/#", true),
            ("home/a/b", "home/+", false),
            ("other", "home/#", false),
            ("home/lamp", "$share/group/home/+", true),
            ("$SYS/load", "#", false),
            ("$SYS/load", "$SYS/#", true),
        ] {
            assert_eq!(is_for(topic, filter), wanted, "{topic} {filter}");
        }
    }
}
