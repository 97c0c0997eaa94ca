//! The sources of a plugin: each is polled when it is due, and what it found is stored together with how far it has come.
//! Each is shown, paused and missed like every other source.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aman_plugin_host::{self as guest, Words};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::Plugins;
use super::host::{Begun, Ready, Work};
use super::running::{CallFault, Running};
use crate::bus::cadence::Cadence;
use crate::bus::{Bus, Origin, Publish, StateWrite};
use crate::clock::{Millis, rfc3339};
use crate::config::plugins::PluginSection;
use crate::error::Error;
use crate::event::Trust;
use crate::package::Source;
use crate::store::plugins::{self as records, Cursor};
use crate::store::sources as settings;

/// The wait after a failed poll; it doubles up to the source's own interval, at least up to [`WAIT_MAX`].
const WAIT_FIRST: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(900);
/// The shortest and the longest time that a poll may ask for.
const NEXT_MS: std::ops::RangeInclusive<u64> = 100..=7 * 86_400_000;

/// A source of a version that runs.
pub struct Polled {
    /// As the manifest has it.
    source: Source,
    /// `<plugin>.<source>`: no id of a configured source has a dot.
    id: String,
    now: Mutex<Now>,
    /// Told when it is paused, resumed, or missed otherwise than before.
    changed: Notify,
}

/// How a source stands.
#[derive(Default)]
struct Now {
    paused: bool,
    /// When it last went on after a pause.
    resumed_ms: Option<Millis>,
    polling: bool,
    /// Failures since the last poll that went well, and what the last one was.
    failures: u32,
    why: Option<String>,
    last_error: Option<String>,
    polls: u64,
    /// Events since the start.
    events: u64,
    last_event_ms: Option<Millis>,
    last_poll_ms: Option<Millis>,
    next_poll_ms: Option<Millis>,
    silent_since: Option<Millis>,
}

impl Polled {
    /// A source that was not polled yet.
    pub(super) fn new(plugin: &str, source: &Source) -> Arc<Polled> {
        let id = format!("{plugin}.{}", source.id);
        Arc::new(Polled { source: source.clone(), id, now: Mutex::default(), changed: Notify::new() })
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what is on record. What cannot be read may have been paused, so it is.
    async fn load(&self, plugin: &str, bus: &Bus) {
        let (id, plugin, source) = (self.id.clone(), plugin.to_owned(), self.source.id.clone());
        let read = bus
            .store()
            .read(move |conn| Ok((settings::changed(conn, &id)?.paused, records::cursor(conn, &plugin, &source)?)));
        let (paused, cursor) = read.await.unwrap_or_else(|error| {
            let error = error.chain().join(": ");
            tracing::warn!(source = self.id, error, "What is on record of a plugin's source cannot be read.");
            (true, None)
        });
        let mut now = self.now();
        now.paused = paused;
        if let Some(cursor) = cursor {
            (now.polls, now.last_poll_ms, now.last_event_ms) = (cursor.polls, cursor.polled_ms, cursor.event_ms);
            now.next_poll_ms = Some(cursor.due_ms);
        }
    }

    /// The source as programs see it, with the fields that every source has.
    fn show(&self, running: &Running) -> Value {
        let now = self.now();
        // What came since ends the silence at once.
        let silent_since = now.silent_since.filter(|since| now.last_event_ms.is_none_or(|last_ms| last_ms <= *since));
        let state = match () {
            () if now.paused => "paused",
            () if running.rests().is_some() => "resting",
            () if now.polling => "polling",
            () if now.why.is_some() => "failing",
            () => "waiting",
        };
        let health = match state {
            "paused" => "paused",
            "resting" | "failing" => "failing",
            _ if now.why.is_some() => "failing",
            _ if silent_since.is_some() => "silent",
            _ => "ok",
        };
        let detail = match (&now.why, silent_since) {
            _ if now.paused => String::new(),
            (Some(why), _) => why.clone(),
            (None, Some(since)) => format!("No event since {}.", rfc3339(since)),
            (None, None) => String::new(),
        };
        json!({
            "id": self.id,
            "kind": "plugin",
            "source": format!("plugin/{}", running.manifest.name),
            "plugin": running.manifest.name,
            "enabled": !now.paused,
            "paused": now.paused,
            "state": state,
            "health": health,
            "detail": detail,
            "trust": Trust::Plugin.name(),
            "events": now.events,
            "skipped": 0,
            "polls": now.polls,
            "last_poll_at": now.last_poll_ms.map(rfc3339),
            "next_poll_at": now.next_poll_ms.filter(|_| !now.paused).map(rfc3339),
            "last_event_at": now.last_event_ms.map(rfc3339),
            "last_error": now.last_error,
            "expect_every_s": running.api.expect_every().map(|every| every.as_secs()),
            "silent_since": silent_since.map(rfc3339),
            "config": { "every_s": self.source.every.as_secs() },
            "changed": [],
        })
    }

    fn is_paused(&self) -> bool {
        self.now().paused
    }

    fn set_paused(&self, paused: bool, now_ms: Millis) {
        let mut now = self.now();
        now.paused = paused;
        if !paused {
            now.resumed_ms = Some(now_ms);
        }
        drop(now);
        self.changed.notify_waiters();
    }

    /// Notes a failure, and says it in the log when it is the first.
    fn failed(&self, why: String) -> u32 {
        let mut now = self.now();
        now.failures = now.failures.saturating_add(1);
        if now.failures == 1 {
            tracing::warn!(source = self.id, why, "A poll of a plugin failed.");
        }
        now.last_error = Some(why.clone());
        now.why = Some(why);
        now.failures
    }
}

/// Polls every source of `running` until it is stopped. Without sources nothing ticks.
pub async fn start(running: &Arc<Running>, bus: &Bus) {
    for polled in &running.sources {
        polled.load(&running.manifest.name, bus).await;
        let (running, bus, polled) = (Arc::clone(running), bus.clone(), Arc::clone(polled));
        tokio::spawn(async move {
            let stop = running.stop.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                () = follow(&running, &bus, &polled) => {}
                () = miss(&running, &bus, &polled) => {}
            }
        });
    }
}

async fn follow(running: &Arc<Running>, bus: &Bus, polled: &Polled) {
    loop {
        let mut changed = std::pin::pin!(polled.changed.notified());
        changed.as_mut().enable();
        if polled.is_paused() {
            changed.await;
            continue;
        }
        polled.now().polling = true;
        let outcome = poll(running, bus, polled).await;
        polled.now().polling = false;
        let wait = match outcome {
            Ok(wait) => {
                let mut now = polled.now();
                (now.failures, now.why) = (0, None);
                wait
            }
            // Another call sent it to rest meanwhile; a real end cancels this.
            Err(Ended::Closed) => WAIT_FIRST,
            Err(Ended::Failed(why, after)) => {
                let doublings = polled.failed(why) - 1;
                let grown = WAIT_FIRST.saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX));
                after.unwrap_or_else(|| grown.min(polled.source.every.max(WAIT_FIRST)).min(WAIT_MAX))
            }
        };
        let wait_ms = Millis::try_from(wait.as_millis()).unwrap_or(Millis::MAX / 2);
        polled.now().next_poll_ms = Some(bus.clock().now_ms().saturating_add(wait_ms));
        let due = async {
            match running.rests() {
                Some(_) => running.rested().await,
                None => tokio::time::sleep(wait).await,
            }
        };
        tokio::select! {
            () = due => {}
            () = changed => {}
        }
    }
}

/// Misses its events, if they are expected now and then and it is not paused.
async fn miss(running: &Running, bus: &Bus, polled: &Polled) {
    loop {
        let mut changed = std::pin::pin!(polled.changed.notified());
        changed.as_mut().enable();
        let Some(every) = running.api.expect_every().filter(|_| !polled.is_paused()) else {
            polled.now().silent_since = None;
            changed.await;
            continue;
        };
        let (id, source) = (polled.id.clone(), format!("plugin/{}", running.manifest.name));
        let from_ms = polled.now().resumed_ms;
        let cadence = Cadence { id, source, every, from_ms, bus: bus.clone() };
        let last = || polled.now().last_event_ms;
        let silent = |since: Option<Millis>| polled.now().silent_since = since;
        let missed = async {
            if let Err(error) = cadence.run(last, silent, CancellationToken::new()).await {
                let error = error.chain().join(": ");
                tracing::warn!(source = polled.id, error, "The silence of a plugin's source could not be told.");
                tokio::time::sleep(every).await;
            }
        };
        tokio::select! {
            () = missed => {}
            () = changed => {}
        }
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
async fn poll(running: &Arc<Running>, bus: &Bus, polled: &Polled) -> Result<Duration, Ended> {
    let source = &polled.source;
    let (name, id) = (running.manifest.name.clone(), source.id.clone());
    let at = {
        let (name, id) = (name.clone(), id.clone());
        bus.store().read(move |conn| records::cursor(conn, &name, &id)).await?
    };
    let at = at.unwrap_or_default();
    let left = until(at.due_ms, bus.clock().now_ms()).min(source.every);
    if !left.is_zero() {
        return Ok(left);
    }
    polled.now().last_poll_ms = Some(bus.clock().now_ms());
    let open = running.hold().map_err(ended)?;
    let ready = match running.api.begin(Work::Poll { source: id.clone(), number: at.polls }).await? {
        Begun::Settled(ready) => ready,
        Begun::Fresh(staging) => {
            let (answer, staged) = running.poll(Arc::clone(&staging), &id, at.cursor.clone()).await.map_err(ended)?;
            let found = answer.map_err(|error| match &error {
                guest::Error::Unavailable(retry) => {
                    Ended::Failed(Words(&error).to_string(), retry.after_ms.map(Duration::from_millis))
                }
                _ => Ended::Failed(Words(&error).to_string(), None),
            })?;
            staging.commit(staged, Some(found)).await?
        }
    };
    let next = ready.next_ms.map(|ms| Duration::from_millis(ms.clamp(*NEXT_MS.start(), *NEXT_MS.end())));
    let next = next.unwrap_or(source.every);
    let now_ms = bus.clock().now_ms();
    let cursor = Cursor {
        cursor: ready.cursor.clone(),
        polls: at.polls + 1,
        due_ms: now_ms.saturating_add(Millis::try_from(next.as_millis()).unwrap_or(Millis::MAX / 2)),
        polled_ms: Some(now_ms),
        event_ms: if ready.publish.is_empty() { at.event_ms } else { Some(now_ms) },
    };
    let event_ms = cursor.event_ms;
    let events = store(bus, (name, id), ready, cursor, open).await?;
    let mut now = polled.now();
    (now.polls, now.events, now.last_event_ms) = (at.polls + 1, now.events + events, event_ms);
    Ok(next)
}

fn ended(fault: CallFault) -> Ended {
    match fault {
        CallFault::Closed => Ended::Closed,
        CallFault::Resting(left) => Ended::Failed(fault.text(), Some(left)),
        CallFault::Fault(_) => Ended::Failed(fault.text(), None),
    }
}

/// Stores what a poll of the source `id` of the plugin `name` found, its changes and how far the source has come, in one
/// transaction, and holds `open` until then; the number of events that were new.
async fn store(
    bus: &Bus,
    (name, id): (String, String),
    ready: Ready,
    cursor: Cursor,
    open: TaskTrackerToken,
) -> Result<u64, Error> {
    let origin = Origin { principal: format!("plugin/{name}"), trust: Trust::Plugin, internal: true };
    let (own, now_ms) = (ready.state, bus.clock().now_ms());
    let notices = bus.notices((&origin.principal, "plugin"), origin.trust, None, ready.notify).await;
    let state: StateWrite = Box::new(move |tx| {
        let _open = open;
        if let Some(own) = own {
            own(tx)?;
        }
        notices.store(tx, now_ms)?;
        records::set_cursor(tx, &name, &id, &cursor)
    });
    if ready.publish.is_empty() {
        return bus.store().write(move |tx| state(tx)).await.map(|()| 0);
    }
    let publish = Publish { events: ready.publish, origin, idempotency: None, state: Some(state) };
    let accepted = bus.publish(publish).await?;
    Ok(accepted.iter().filter(|one| !one.deduplicated).count() as u64)
}

fn until(due_ms: Millis, now_ms: Millis) -> Duration {
    Duration::from_millis(u64::try_from(due_ms - now_ms).unwrap_or(0))
}

impl Plugins {
    /// The sources of everything that runs, as JSON, by id.
    pub fn sources(&self) -> Vec<Value> {
        let mut all: Vec<Value> = Vec::new();
        for running in self.inner.all().into_iter().filter_map(|known| known.running) {
            all.extend(running.sources.iter().map(|polled| polled.show(&running)));
        }
        all.sort_by(|a, b| a["id"].as_str().cmp(&b["id"].as_str()));
        all
    }

    /// True when `id` names a source of a plugin that runs.
    pub fn has_source(&self, id: &str) -> bool {
        self.source_of(id).is_ok()
    }

    /// One source as JSON.
    pub fn source(&self, id: &str) -> Result<Value, Error> {
        self.source_of(id).map(|(running, polled)| polled.show(&running))
    }

    /// Switches a source off or on again, durably; `record` commits with that. Fails with `invalid_state` when it is so
    /// already. What it finds meanwhile is found when it goes on.
    pub async fn pause_source(&self, id: &str, paused: bool, record: StateWrite) -> Result<Value, Error> {
        let (running, polled) = self.source_of(id)?;
        if polled.is_paused() == paused {
            let reason = format!("The source '{id}' is {} already.", if paused { "paused" } else { "running" });
            return Err(Error::conflict("invalid_state", reason));
        }
        let (named, now_ms) = (id.to_owned(), self.inner.ground.bus.clock().now_ms());
        let write = move |tx: &mut crate::store::Tx<'_>| {
            settings::set_paused(tx, &named, paused, now_ms)?;
            record(tx)
        };
        self.inner.ground.bus.store().write(write).await?;
        polled.set_paused(paused, now_ms);
        Ok(polled.show(&running))
    }

    /// Puts in force what the configuration says of plugins, at once.
    pub fn configure(&self, sections: &[PluginSection]) {
        self.services().configure(sections);
        for running in self.inner.all().into_iter().filter_map(|known| known.running) {
            running.sources.iter().for_each(|polled| polled.changed.notify_waiters());
        }
    }

    fn source_of(&self, id: &str) -> Result<(Arc<Running>, Arc<Polled>), Error> {
        let found = id.split_once('.').and_then(|(plugin, _)| {
            let running = self.inner.running(plugin)?;
            let polled = running.sources.iter().find(|polled| polled.id == id).cloned()?;
            Some((running, polled))
        });
        found.ok_or_else(|| Error::not_found("source", id))
    }
}
