//! The sources of a plugin: each is polled when it is due, and what it found is stored together with how far it has come.

use std::sync::Arc;
use std::time::Duration;

use aman_plugin_host::{self as guest, Words};

use super::host::{Begun, Ready, Work};
use super::running::{CallFault, Running};
use crate::bus::{Bus, Origin, Publish, StateWrite};
use crate::clock::Millis;
use crate::error::Error;
use crate::event::Trust;
use crate::package::Source;
use crate::store::plugins::{self as records, Cursor};

/// The wait after a failed poll; it doubles up to the source's own interval, at least up to [`WAIT_MAX`].
const WAIT_FIRST: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(900);
/// The shortest and the longest time that a poll may ask for.
const NEXT_MS: std::ops::RangeInclusive<u64> = 100..=7 * 86_400_000;

/// Polls every source of `running` until it is stopped. Without sources nothing ticks.
pub fn start(running: &Arc<Running>, bus: &Bus) {
    for source in running.manifest.sources.clone() {
        let (running, bus) = (Arc::clone(running), bus.clone());
        tokio::spawn(async move {
            let stop = running.stop.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                () = follow(&running, &bus, &source) => {}
            }
        });
    }
}

async fn follow(running: &Running, bus: &Bus, source: &Source) {
    let mut failures: u32 = 0;
    loop {
        let wait = match poll(running, bus, source).await {
            Ok(wait) => {
                failures = 0;
                wait
            }
            Err(Ended::Closed) => return,
            Err(Ended::Failed(why, after)) => {
                failures = failures.saturating_add(1);
                if failures == 1 {
                    tracing::warn!(
                        plugin = running.manifest.name,
                        source = source.id,
                        why,
                        "A poll of a plugin failed."
                    );
                }
                let grown = WAIT_FIRST.saturating_mul(1_u32.checked_shl(failures - 1).unwrap_or(u32::MAX));
                after.unwrap_or_else(|| grown.min(source.every.max(WAIT_FIRST)).min(WAIT_MAX))
            }
        };
        tokio::time::sleep(wait).await;
    }
}

enum Ended {
    Closed,
    Failed(String, Option<Duration>),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Ended {
        let after = match &error {
            Error::Busy { retry_after_ms, .. } => Some(Duration::from_millis(*retry_after_ms)),
            _ => None,
        };
        Ended::Failed(error.chain().join(": "), after)
    }
}

/// Polls if it is time, and says how long to wait until the next time.
async fn poll(running: &Running, bus: &Bus, source: &Source) -> Result<Duration, Ended> {
    let (name, id) = (running.manifest.name.clone(), source.id.clone());
    let at = {
        let (name, id) = (name.clone(), id.clone());
        bus.store().read(move |conn| records::cursor(conn, &name, &id)).await?
    };
    let at = at.unwrap_or(Cursor { cursor: None, polls: 0, due_ms: 0 });
    let left = until(at.due_ms, bus.clock().now_ms()).min(source.every);
    if !left.is_zero() {
        return Ok(left);
    }
    let ready = match running.api.begin(Work::Poll { source: id.clone(), number: at.polls }).await? {
        Begun::Settled(ready) => ready,
        Begun::Fresh(staging) => {
            let (answer, staged) = running.poll(Arc::clone(&staging), &id, at.cursor.clone()).await.map_err(ended)?;
            let polled = answer.map_err(|error| match &error {
                guest::Error::Unavailable(retry) => {
                    Ended::Failed(Words(&error).to_string(), retry.after_ms.map(Duration::from_millis))
                }
                _ => Ended::Failed(Words(&error).to_string(), None),
            })?;
            staging.commit(staged, Some(polled)).await?
        }
    };
    let next = ready.next_ms.map(|ms| Duration::from_millis(ms.clamp(*NEXT_MS.start(), *NEXT_MS.end())));
    let next = next.unwrap_or(source.every);
    let due_ms = bus.clock().now_ms().saturating_add(Millis::try_from(next.as_millis()).unwrap_or(Millis::MAX / 2));
    let cursor = Cursor { cursor: ready.cursor.clone(), polls: at.polls + 1, due_ms };
    store(bus, name, id, ready, cursor).await?;
    Ok(next)
}

fn ended(fault: CallFault) -> Ended {
    match fault {
        CallFault::Closed => Ended::Closed,
        CallFault::Resting(left) => Ended::Failed(fault.text(), Some(left)),
        CallFault::Fault(_) => Ended::Failed(fault.text(), None),
    }
}

/// Stores what a poll found, its changes and how far the source has come, in one transaction.
async fn store(bus: &Bus, name: String, id: String, ready: Ready, cursor: Cursor) -> Result<(), Error> {
    let origin = Origin { principal: format!("plugin/{name}"), trust: Trust::Plugin, internal: true };
    let own = ready.state;
    let state: StateWrite = Box::new(move |tx| {
        if let Some(own) = own {
            own(tx)?;
        }
        records::set_cursor(tx, &name, &id, &cursor)
    });
    if ready.publish.is_empty() {
        return bus.store().write(move |tx| state(tx)).await;
    }
    let publish = Publish { events: ready.publish, origin, idempotency: None, state: Some(state) };
    bus.publish(publish).await.map(drop)
}

fn until(due_ms: Millis, now_ms: Millis) -> Duration {
    Duration::from_millis(u64::try_from(due_ms - now_ms).unwrap_or(0))
}
