//! What every source but the folders has in common: it publishes under one name, and tells how it stands.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::mapping::Frame;
use crate::bus::{Accepted, Bus, Origin, Publish, StateWrite};
use crate::clock::Millis;
use crate::error::Error;
use crate::event::NewEvent;

/// How a source stands.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// One word: `running`, `waiting`, `failing` …
    pub state: &'static str,
    /// What the state means and what to do about it; empty when all is well.
    pub detail: String,
    /// Events since the start.
    pub events: u64,
    /// When the last event was stored.
    pub last_event_ms: Option<Millis>,
    /// What came and could not become an event, since the start.
    pub skipped: u64,
    /// What last went wrong.
    pub last_error: Option<String>,
}

/// The way of one source onto the bus.
pub struct Feed {
    /// The source's id.
    pub id: String,
    /// What its events have in common.
    pub frame: Frame,
    /// The bus.
    pub bus: Bus,
    health: Mutex<Health>,
}

impl Feed {
    /// A way onto `bus`.
    pub fn new(id: &str, frame: Frame, bus: Bus, state: &'static str) -> Feed {
        let health = Health { state, ..Health::default() };
        Feed { id: id.to_owned(), frame, bus, health: Mutex::new(health) }
    }

    /// How it stands, to be read or changed.
    pub fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that all is well.
    pub fn well(&self, state: &'static str) {
        let mut health = self.health();
        health.state = state;
        health.detail.clear();
    }

    /// Notes a failure, and says it once in the log as long as it stays the same.
    pub fn failing(&self, why: String) {
        let mut health = self.health();
        health.state = "failing";
        if health.detail != why {
            tracing::warn!(source = self.frame.source, why, "A source is failing.");
        }
        health.detail.clone_from(&why);
        health.last_error = Some(why);
    }

    /// Notes something that came and could not become an event.
    pub fn skip(&self, why: String) {
        let mut health = self.health();
        health.skipped += 1;
        if health.last_error.as_ref() != Some(&why) {
            tracing::warn!(source = self.frame.source, why, "Something came in and could not become an event.");
        }
        health.last_error = Some(why);
    }

    /// Stores events, once.
    pub async fn publish(&self, events: Vec<NewEvent>, state: Option<StateWrite>) -> Result<Vec<Accepted>, Error> {
        let trust = self.frame.mapping.trust;
        let origin = Origin { principal: self.frame.source.clone(), trust, internal: true };
        let accepted = self.bus.publish(Publish { events, origin, idempotency: None, state }).await?;
        let fresh = accepted.iter().filter(|one| !one.deduplicated).count();
        if fresh > 0 {
            let mut health = self.health();
            health.events += u64::try_from(fresh).unwrap_or(0);
            health.last_event_ms = Some(self.bus.clock().now_ms());
        }
        Ok(accepted)
    }

    /// Stores events; waits and tries again while the daemon is too busy. `Ok(false)`: `stop` came first.
    pub async fn publish_patiently(
        &self,
        events: Vec<NewEvent>,
        state: impl Fn() -> Option<StateWrite>,
        stop: &CancellationToken,
    ) -> Result<bool, Error> {
        loop {
            match self.publish(events.clone(), state()).await {
                Ok(_) => return Ok(true),
                Err(Error::Busy { retry_after_ms, what, .. }) => {
                    self.health().detail = format!("It waits: {what}");
                    let room = async {
                        tokio::time::sleep(Duration::from_millis(retry_after_ms)).await;
                        self.bus.store().until_clear().await;
                    };
                    tokio::select! {
                        () = stop.cancelled() => return Ok(false),
                        () = room => {}
                    }
                    self.health().detail.clear();
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// The wait after failure number `failures` (from 1): doubles from `first`, at most `most`.
pub fn back_off(failures: u32, first: Duration, most: Duration) -> Duration {
    first.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX)).min(most)
}
