//! The task that sends a sink's intents, one after the other, and knows how that goes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{Sent, Sink, WAIT_MAX, spans};
use crate::bus::{Bus, RetryPolicy};
use crate::clock::Millis;
use crate::error::Error;
use crate::redact;
use crate::store::Tx;
use crate::store::outbox::{self as rows, Intent, Status};
use crate::tasks::Supervisor;
use crate::telemetry::traces;

/// How long one attempt to send may take.
const SEND_MAX: Duration = Duration::from_secs(120);
/// How long to wait before what a full disk refused is tried again.
const DISK_WAIT: Duration = Duration::from_secs(1);
/// A waiting intent is looked at again after at most this long, so that a clock that jumped cannot hold it for ever.
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(60);

/// How sending goes; counts since the start of the daemon.
#[derive(Debug, Clone, Default)]
pub(super) struct Health {
    /// Intents that the other side has.
    pub sent: u64,
    /// Attempts that are to be followed by another.
    pub retries: u64,
    /// Intents that were given up.
    pub failed: u64,
    /// Intents of which nobody knows.
    pub unknown: u64,
    /// When the other side last took one.
    pub last_sent_ms: Option<Millis>,
    /// What last went wrong.
    pub last_error: Option<String>,
    /// When it did.
    pub last_error_ms: Option<Millis>,
    /// True when the last attempt did not go well.
    pub failing: bool,
}

/// A sink's lane; cheap to clone. One of the same sink follows the other when its settings change.
#[derive(Clone, Default)]
pub(super) struct Lane {
    /// Held by the one that runs.
    alive: Arc<tokio::sync::Mutex<()>>,
    /// Held while something is sent: a sink does one thing at a time.
    sending: Arc<tokio::sync::Mutex<()>>,
    health: Arc<Mutex<Health>>,
}

impl Lane {
    /// How sending goes.
    pub fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what there is, once the lane before it has ended, until `stop`.
    pub fn start(&self, bus: &Bus, supervisor: &Supervisor, sink: &Arc<dyn Sink>, stop: CancellationToken) {
        let (lane, bus, sink) = (self.clone(), bus.clone(), Arc::clone(sink));
        supervisor.spawn(format!("outbox/{}", sink.name()), move || {
            let (lane, bus, sink, stop) = (lane.clone(), bus.clone(), Arc::clone(&sink), stop.clone());
            async move {
                let _alive = lane.alive.lock().await;
                lane.run(&bus, sink.as_ref(), &stop).await
            }
        });
    }

    /// Waits until no lane of the sink runs.
    pub async fn ended(&self) {
        let _ended = self.alive.lock().await;
    }

    /// Sends one thing when nothing else is being sent.
    pub async fn send(&self, sink: &dyn Sink, key: &str, payload: &Value) -> Sent {
        let _alone = self.sending.lock().await;
        sink.send(key, payload).await
    }

    async fn run(&self, bus: &Bus, sink: &dyn Sink, stop: &CancellationToken) -> Result<(), Error> {
        let mut added = bus.intents();
        // However the lane ended before, with the daemon or by a failure: nothing of this sink is being sent now.
        let (name, idempotent, now_ms) = (sink.name().to_owned(), sink.is_idempotent(), bus.clock().now_ms());
        let left = bus.store().write(move |tx| rows::recover(tx, &name, idempotent, now_ms)).await?;
        if left > 0 {
            tracing::warn!(sink = sink.name(), left, "Sending was cut off before it was known how it ended.");
        }
        while !stop.is_cancelled() {
            added.mark_unchanged();
            let name = sink.name().to_owned();
            let next = bus.store().read(move |conn| rows::next(conn, &name)).await?;
            let now_ms = bus.clock().now_ms();
            let wait = match next {
                Some(intent) if is_due(&intent, now_ms) || intent.expires_ms <= now_ms => {
                    match self.attempt(bus, sink, intent, stop).await {
                        // Nothing was sent, or it is settled by the next run as cut off.
                        Err(Error::Busy { .. }) => pause(bus, stop).await,
                        other => other?,
                    }
                    continue;
                }
                Some(intent) => {
                    Some(Duration::from_millis((intent.next_ms - now_ms).unsigned_abs()).min(LOOK_AGAIN_MAX))
                }
                None => None,
            };
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                changed = added.changed() => if changed.is_err() { return Ok(()) },
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
        }
        Ok(())
    }

    async fn attempt(&self, bus: &Bus, sink: &dyn Sink, intent: Intent, stop: &CancellationToken) -> Result<(), Error> {
        let (id, now_ms) = (intent.id, bus.clock().now_ms());
        if intent.expires_ms <= now_ms {
            let why = "It was too old to be sent.";
            self.note(&Sent::Refused(why.to_owned()), &sink.retry(), intent.attempt, now_ms);
            return bus.store().write(move |tx| rows::end(tx, id, Status::Failed, now_ms, Some(why))).await;
        }
        match bus.store().write(move |tx| rows::begin(tx, id)).await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => {
                // It may be marked all the same, and nobody else would find it then.
                let attempt = intent.attempt;
                while !stop.is_cancelled() && bus.store().write(move |tx| rows::unbegin(tx, id, attempt)).await.is_err()
                {
                    pause(bus, stop).await;
                }
                return Err(error);
            }
        }
        let span = spans::begin(bus, sink.name(), &intent).await;
        let sending = tokio::time::timeout(SEND_MAX, self.send(sink, &intent.key, &intent.payload));
        let sent = traces::within(spans::context(bus, span.as_ref()), sending)
            .await
            .unwrap_or_else(|_| Sent::Unknown(format!("There was no answer for {} s.", SEND_MAX.as_secs())));
        spans::end(bus, span, &sent);
        let (now_ms, number) = (bus.clock().now_ms(), intent.attempt + 1);
        let policy = sink.retry();
        let sent = match sent {
            Sent::Unknown(why) if sink.is_idempotent() => Sent::Later(why, None),
            other => other,
        };
        self.note(&sent, &policy, number, now_ms);
        // What is known now is lost if it is not stored: a full disk only delays it.
        while let Err(error) = bus
            .store()
            .write({
                let sent = sent.clone();
                move |tx| settle(tx, id, sent, &policy, (number, now_ms))
            })
            .await
        {
            if !matches!(error, Error::Busy { .. }) {
                tracing::error!(error = ?error, "How sending ended could not be stored; it is tried again.");
            }
            pause(bus, stop).await;
            if stop.is_cancelled() {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Notes how an attempt ended.
    fn note(&self, sent: &Sent, policy: &RetryPolicy, number: u32, now_ms: Millis) {
        let mut health = self.health();
        health.failing = *sent != Sent::Yes;
        match sent {
            Sent::Yes => {
                health.sent += 1;
                health.last_sent_ms = Some(now_ms);
                return;
            }
            Sent::Later(..) if policy.wait(number).is_some() => health.retries += 1,
            Sent::Later(..) | Sent::Refused(_) => health.failed += 1,
            Sent::Unknown(_) => health.unknown += 1,
        }
        if let Sent::Later(why, _) | Sent::Unknown(why) | Sent::Refused(why) = sent {
            health.last_error = Some(redact::text(why).into_owned());
            health.last_error_ms = Some(now_ms);
        }
    }
}

/// False while it waits for its next attempt. One that would wait for longer than any was stored by a clock that was ahead;
/// a clock that was only put right is no reason to hurry.
fn is_due(intent: &Intent, now_ms: Millis) -> bool {
    let longest = (WAIT_MAX + LOOK_AGAIN_MAX).as_millis();
    let never_ms = now_ms.saturating_add(i64::try_from(longest).unwrap_or(i64::MAX));
    intent.next_ms <= now_ms || intent.next_ms > never_ms
}

/// Waits until trying again what the store refused makes sense, or the daemon stops.
async fn pause(bus: &Bus, stop: &CancellationToken) {
    let room = async {
        tokio::time::sleep(DISK_WAIT).await;
        bus.store().until_writable().await;
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = room => {}
    }
}

fn settle(
    tx: &Tx<'_>,
    id: i64,
    sent: Sent,
    policy: &RetryPolicy,
    (number, now_ms): (u32, Millis),
) -> Result<(), Error> {
    match sent {
        Sent::Yes => rows::end(tx, id, Status::Sent, now_ms, None),
        Sent::Unknown(why) => rows::end(tx, id, Status::Unknown, now_ms, Some(&why)),
        Sent::Refused(why) => rows::end(tx, id, Status::Failed, now_ms, Some(&why)),
        Sent::Later(why, after) => match policy.wait_drawn(number, fastrand::f64()) {
            Some(wait) => {
                let wait = after.unwrap_or(wait).min(WAIT_MAX).as_millis();
                rows::wait(tx, id, now_ms.saturating_add(i64::try_from(wait).unwrap_or(i64::MAX)), &why)
            }
            None => rows::end(tx, id, Status::Failed, now_ms, Some(&why)),
        },
    }
}
