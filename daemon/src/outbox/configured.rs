//! `[sinks.<id>]` at work: a consumer that turns each fitting event into an intent, and the sink that sends it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::mqtt::MqttSink;
use super::webhook::WebhookSink;
use super::{Sink, start};
use crate::bus::{
    Attempt, Bus, Concurrency, Consumer, ConsumerSpec, Delivered, Effects, NewIntent, Outcome, RetryPolicy, Rule,
    Standing,
};
use crate::config::sinks::{Sink as Configured, SinkKind};
use crate::egress::Egress;
use crate::error::Error;
use crate::event::Trust;
use crate::id::sha256_hex;
use crate::store::sources as rows;
use crate::tasks::Supervisor;

/// Turns events into intents for one sink.
struct Forwarder {
    sink: String,
    keep: Duration,
}

impl Consumer for Forwarder {
    fn deliver(&self, attempt: Attempt) -> Delivered<'_> {
        Box::pin(async move {
            let intent = NewIntent { sink: self.sink.clone(), payload: attempt.event.to_value(), ttl: self.keep };
            Outcome::Done(Effects { outgoing: vec![intent], ..Effects::default() })
        })
    }
}

fn name(configured: &Configured) -> String {
    format!("sink/{}", configured.id)
}

fn consumer(configured: &Configured, standing: Standing) -> (ConsumerSpec, Arc<dyn Consumer>) {
    let rule =
        |pattern: &crate::event::TypePattern| Rule { pattern: pattern.clone(), condition: configured.when.clone() };
    let spec = ConsumerSpec {
        name: name(configured),
        kind: "sink",
        rules: configured.types.iter().map(rule).collect(),
        concurrency: Concurrency::Serial,
        retry: RetryPolicy::default(),
        timeout: Duration::from_secs(30),
        trust: Trust::Owner,
        standing,
        acts_outside: false,
    };
    (spec, Arc::new(Forwarder { sink: name(configured), keep: configured.keep }))
}

/// Registers the consumers of all configured sinks and starts the sinks.
pub async fn configured(all: &[Configured], bus: &Bus, egress: &Egress, supervisor: &Supervisor) -> Result<(), Error> {
    let mut sinks: Vec<Arc<dyn Sink>> = Vec::new();
    let mut consumers = Vec::new();
    for one in all {
        let mut standing = Standing::Active;
        match &one.kind {
            SinkKind::Webhook { url, secrets, headers, timeout } => {
                let (id, address) = (one.id.clone(), sha256_hex(url.to_string().as_bytes()));
                let gone = bus.store().read_now(|conn| rows::is_gone(conn, &id, &address))?;
                if gone {
                    tracing::warn!(
                        sink = id,
                        "This sink is off: the other side answered 410 Gone. Give it another url."
                    );
                    standing = Standing::Disabled;
                }
                let (bus_for_end, end) = (bus.clone(), one.clone());
                sinks.push(Arc::new(WebhookSink {
                    name: name(one),
                    id,
                    url: url.clone(),
                    secrets: secrets.clone(),
                    headers: headers.clone(),
                    timeout: *timeout,
                    egress: egress.clone(),
                    bus: bus.clone(),
                    gone: Arc::new(AtomicBool::new(gone)),
                    on_gone: Box::new(move || {
                        let (bus, off) = (bus_for_end.clone(), consumer(&end, Standing::Disabled));
                        Box::pin(async move {
                            if let Err(error) = bus.register(vec![off]).await {
                                tracing::error!(why = error.chain().join(": "), "A sink could not be switched off.");
                            }
                        })
                    }),
                }));
            }
            SinkKind::Mqtt { broker, topic } => sinks.push(Arc::new(MqttSink {
                name: name(one),
                client: format!("aman-{:08x}-out-{}", bus.store().ids().node, one.id),
                broker: broker.clone(),
                topic: topic.clone(),
                egress: egress.clone(),
            })),
        }
        consumers.push(consumer(one, standing));
    }
    bus.register(consumers).await?;
    start(bus, supervisor, sinks);
    Ok(())
}
