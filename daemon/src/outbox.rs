//! Sends what is to leave the machine. Each sink has a lane: intent → sending → sent, unknown or failed.
//!
//! An intent is marked as sending before the first byte leaves, so a crash cannot hide that it may have arrived: at a
//! sink that is idempotent it is sent again under the same key, elsewhere it ends as unknown and is never repeated.

mod configured;
mod mqtt;
mod webhook;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::bus::{Bus, RetryPolicy};
use crate::clock::Millis;
use crate::error::Error;
use crate::store::Tx;
use crate::store::outbox::{self as rows, Intent, Status};
use crate::tasks::{OnExit, Supervisor};

pub use configured::configured;

/// How long one attempt to send may take.
const SEND_MAX: Duration = Duration::from_secs(120);
/// How long to wait before what a full disk refused is tried again.
const DISK_WAIT: Duration = Duration::from_secs(1);
/// A waiting intent is looked at again after at most this long, so that a clock that jumped cannot hold it for ever.
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(60);

/// How an attempt to send ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// The other side has it.
    Yes,
    /// The other side does not have it, and may take it later; after this time if it said one.
    Later(String, Option<Duration>),
    /// Nobody knows whether the other side has it.
    Unknown(String),
    /// The other side will never take it.
    Refused(String),
}

/// The future of an attempt to send.
pub type Sending<'a> = Pin<Box<dyn Future<Output = Sent> + Send + 'a>>;

/// A way out of the machine.
pub trait Sink: Send + Sync {
    /// The name that intents give.
    fn name(&self) -> &str;
    /// True when sending the same key twice has the effect of sending it once.
    fn is_idempotent(&self) -> bool;
    /// How often and how long to try.
    fn retry(&self) -> RetryPolicy;
    /// Sends `payload`; `key` is the same for every attempt.
    fn send<'a>(&'a self, key: &'a str, payload: &'a Value) -> Sending<'a>;
}

/// Starts a lane for each sink.
pub fn start(bus: &Bus, supervisor: &Supervisor, sinks: Vec<Arc<dyn Sink>>) {
    for sink in sinks {
        let (bus, stop) = (bus.clone(), supervisor.stop_token());
        supervisor.spawn(format!("outbox/{}", sink.name()), OnExit::Restart, move || {
            lane(bus.clone(), Arc::clone(&sink), stop.clone())
        });
    }
}

async fn lane(bus: Bus, sink: Arc<dyn Sink>, stop: CancellationToken) -> Result<(), Error> {
    let mut added = bus.intents();
    // However the lane ended before, with the daemon or by a failure: nothing of this sink is being sent now.
    let (name, idempotent, now_ms) = (sink.name().to_owned(), sink.is_idempotent(), bus.clock().now_ms());
    let left = bus.store().write(move |tx| rows::recover(tx, &name, idempotent, now_ms)).await?;
    if left > 0 {
        tracing::warn!(sink = sink.name(), left, "Sending was cut off before it was known how it ended.");
    }
    loop {
        added.mark_unchanged();
        let name = sink.name().to_owned();
        let next = bus.store().read(move |conn| rows::next(conn, &name)).await?;
        let now_ms = bus.clock().now_ms();
        let wait = match next {
            Some(intent) if intent.next_ms <= now_ms || intent.expires_ms <= now_ms => {
                match attempt(&bus, sink.as_ref(), intent, &stop).await {
                    // Nothing was sent, or it is settled by the next run as cut off.
                    Err(Error::Busy { .. }) => pause(&bus, &stop).await,
                    other => other?,
                }
                if stop.is_cancelled() {
                    return Ok(());
                }
                continue;
            }
            Some(intent) => Some(Duration::from_millis((intent.next_ms - now_ms).unsigned_abs()).min(LOOK_AGAIN_MAX)),
            None => None,
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = added.changed() => if changed.is_err() { return Ok(()) },
            () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
        }
    }
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

async fn attempt(bus: &Bus, sink: &dyn Sink, intent: Intent, stop: &CancellationToken) -> Result<(), Error> {
    let (id, now_ms) = (intent.id, bus.clock().now_ms());
    if intent.expires_ms <= now_ms {
        let why = "It was too old to be sent.";
        return bus.store().write(move |tx| rows::end(tx, id, Status::Failed, now_ms, Some(why))).await;
    }
    if !bus.store().write(move |tx| rows::begin(tx, id)).await? {
        return Ok(());
    }
    let sending = tokio::time::timeout(SEND_MAX, sink.send(&intent.key, &intent.payload));
    let sent =
        sending.await.unwrap_or_else(|_| Sent::Unknown(format!("There was no answer for {} s.", SEND_MAX.as_secs())));
    let (now_ms, number) = (bus.clock().now_ms(), intent.attempt + 1);
    let policy = sink.retry();
    let sent = match sent {
        Sent::Unknown(why) if sink.is_idempotent() => Sent::Later(why, None),
        other => other,
    };
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
                let wait = after.unwrap_or(wait).as_millis();
                rows::wait(tx, id, now_ms.saturating_add(i64::try_from(wait).unwrap_or(i64::MAX)), &why)
            }
            None => rows::end(tx, id, Status::Failed, now_ms, Some(&why)),
        },
    }
}
