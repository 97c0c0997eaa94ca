//! The consumer behind a plugin with `[[events]]`: event in, guest, effects out.

use std::sync::{Arc, Weak};
use std::time::Duration;

use aman_plugin_host::{self as guest, Attribute};
use serde_json::Value;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::Inner;
use super::host::{Begun, Ready, Work, trust_of};
use super::running::{CallFault, Running};
use crate::bus::{
    Absence, Attempt, Concurrency, Consumer, ConsumerSpec, Delivered, Effects, Failure, Outcome, RetryPolicy, Rule,
    Standing, StateWrite,
};
use crate::clock::rfc3339;
use crate::event::{Data, Delivery, Event, Priority, Trust};
use crate::package::{AgentRight, Manifest};

/// How much longer than a plugin's own limits the bus waits, so that the plugin host ends a call and says so.
const SLACK: Duration = Duration::from_secs(10);
/// How often a delivery follows its plugin to a new version.
const FOLLOWS_MAX: usize = 5;
/// When a delivery that found no plugin is looked at again, unless the plugin comes back before.
const AWAY: Duration = Duration::from_secs(1);

/// The name of a plugin's consumer.
pub fn name(plugin: &str) -> String {
    format!("plugin/{plugin}")
}

/// What the bus must know of a plugin; `None` when it wants no events.
pub fn spec(manifest: &Manifest, runs: bool) -> Option<ConsumerSpec> {
    if manifest.events.is_empty() {
        return None;
    }
    let rules = manifest.events.iter().flat_map(|subscription| {
        let rule = |pattern: &crate::event::TypePattern| Rule {
            pattern: pattern.clone(),
            condition: subscription.when.clone(),
        };
        subscription.types.iter().map(rule)
    });
    // One consumer has one lane: the strictest of its subscriptions decides.
    let narrowest = manifest.events.iter().map(|subscription| subscription.concurrency).min().unwrap_or(1);
    Some(ConsumerSpec {
        name: name(&manifest.name),
        kind: "plugin",
        rules: rules.collect(),
        concurrency: if narrowest <= 1 { Concurrency::Serial } else { Concurrency::Parallel(narrowest) },
        retry: RetryPolicy::default(),
        timeout: manifest.limits.time + manifest.limits.wait + SLACK,
        trust: Trust::Plugin,
        // What matches while it is switched off waits for it.
        standing: if runs { Standing::Active } else { Standing::Paused },
        acts_outside: !manifest.permissions.http.is_empty()
            || manifest.permissions.agents.iter().any(|right| *right != AgentRight::Read),
    })
}

/// Delivers to whichever version of a plugin runs.
pub struct Events {
    /// The plugins.
    pub plugins: Weak<Inner>,
    /// The plugin's name.
    pub name: String,
}

impl Events {
    fn running(&self) -> Option<Arc<Running>> {
        self.plugins.upgrade()?.running(&self.name)
    }

    /// Waits for the end of a rest. When another version takes over meanwhile, that one counts.
    async fn rested(&self) -> Option<Duration> {
        loop {
            let Some(running) = self.running() else { return Some(AWAY) };
            running.rests()?;
            tokio::select! {
                () = running.rested() => {}
                () = running.stop.cancelled() => {}
            }
            if running.is_ending() {
                return Some(AWAY);
            }
        }
    }
}

impl Consumer for Events {
    fn absence(&self) -> Option<Absence<'_>> {
        let is_there = self.running().is_some_and(|running| running.rests().is_none());
        if is_there { None } else { Some(Box::pin(self.rested())) }
    }

    fn deliver(&self, attempt: Attempt) -> Delivered<'_> {
        Box::pin(async move {
            for _ in 0..FOLLOWS_MAX {
                let Some(running) = self.running() else { return Outcome::Postponed(AWAY) };
                match handle(&running, &attempt).await {
                    // Another version takes its place, and gets the event.
                    Err(CallFault::Closed) => {}
                    // It was sent to rest in this moment, which is waited for before the next attempt.
                    Err(CallFault::Resting(_)) => return Outcome::Postponed(Duration::ZERO),
                    Ok(outcome) => return outcome,
                    Err(fault @ CallFault::Fault(guest::Fault::Timeout { .. })) => {
                        return Outcome::Retry(Failure { timed_out: true, ..Failure::new(fault.text()) }, None);
                    }
                    Err(fault) => return retry(fault.text()),
                }
            }
            Outcome::Postponed(AWAY)
        })
    }
}

fn retry(why: String) -> Outcome {
    Outcome::Retry(Failure::new(why), None)
}

/// The effects; `open` is held until they are written, so that nobody takes the plugin's data away before.
fn effects(ready: Ready, open: TaskTrackerToken) -> Outcome {
    let state = ready.state.map(|state| -> StateWrite {
        Box::new(move |tx| {
            let _open = open;
            state(tx)
        })
    });
    Outcome::Done(Effects { publish: ready.publish, notify: ready.notify, state, ..Effects::default() })
}

/// One attempt.
async fn handle(running: &Arc<Running>, attempt: &Attempt) -> Result<Outcome, CallFault> {
    let open = running.hold()?;
    let (number, id, event) = (attempt.delivery, attempt.delivery_id.clone(), Arc::clone(&attempt.event));
    let work = Work::Delivery { number, id, event };
    let staging = match running.api.begin(work).await {
        Ok(Begun::Fresh(staging)) => staging,
        Ok(Begun::Settled(ready)) => return Ok(effects(ready, open)),
        Err(error) => return Ok(retry(error.chain().join(": "))),
    };
    let caller = running.caller(attempt.event.trace);
    let called = running.event(staging.clone(), caller, to_guest(&attempt.event));
    let (outcome, staged) = tokio::select! {
        called = called => called?,
        () = attempt.cancel.cancelled() => return Ok(retry("the attempt was ended before the plugin was done".to_owned())),
    };
    Ok(match outcome {
        guest::Outcome::Done => match staging.commit(staged, None).await {
            Ok(ready) => effects(ready, open),
            Err(error) => retry(error.chain().join(": ")),
        },
        guest::Outcome::Retry(wanted) => {
            let why = Failure::new(format!("the plugin asks to be tried again: {}", wanted.reason));
            Outcome::Retry(why, wanted.after_ms.map(Duration::from_millis))
        }
        guest::Outcome::Reject(reason) => {
            Outcome::Reject(Failure::new(format!("the plugin rejects the event: {reason}")))
        }
    })
}

/// The event as plugins see it.
fn to_guest(event: &Event) -> guest::Event {
    let sent = &event.sent;
    let data = match &sent.data {
        Data::None => None,
        Data::Json(text) | Data::Text(text) => Some(text.clone().into_bytes()),
        Data::Binary(bytes) => Some(bytes.clone()),
    };
    let attributes = sent.extensions.iter().filter_map(|(name, value)| {
        let value = match value {
            Value::String(text) => Attribute::Text(text.clone()),
            Value::Bool(value) => Attribute::Boolean(*value),
            Value::Number(number) => Attribute::Integer(i32::try_from(number.as_i64()?).ok()?),
            _ => return None,
        };
        Some((name.clone(), value))
    });
    guest::Event {
        id: event.id(),
        source: sent.source.clone(),
        type_: sent.kind.clone(),
        time: sent.time.clone().unwrap_or_else(|| rfc3339(event.received_ms)),
        subject: sent.subject.clone(),
        data_content_type: sent.content_type.clone(),
        data,
        sequence: event.sequence.0.unsigned_abs(),
        trace_id: event.trace.to_string(),
        correlation_id: event.correlation.clone(),
        causation_id: event.causation.clone(),
        trust: trust_of(event.trust),
        priority: match sent.priority {
            Priority::Low => guest::Priority::Low,
            Priority::Normal => guest::Priority::Normal,
            Priority::High => guest::Priority::High,
        },
        delivery: match sent.delivery {
            Delivery::AtMostOnce => guest::Delivery::AtMostOnce,
            Delivery::AtLeastOnce => guest::Delivery::AtLeastOnce,
            Delivery::ExactlyOnce => guest::Delivery::ExactlyOnce,
        },
        expiry_time: sent.expires_ms.map(rfc3339),
        agent_id: sent.agent_id.clone(),
        partition_key: sent.partition_key.clone(),
        attributes: attributes.collect(),
        extensions: Vec::new(),
    }
}
