//! `[sinks.<id>]` at work: a consumer that turns each fitting event into an intent, and the sink that sends it; and the
//! registry that pauses, resumes, tries and shows them, and takes over what the file says by now.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::desktop::DesktopSink;
use super::mqtt::MqttSink;
use super::ntfy::NtfySink;
use super::webhook::WebhookSink;
use super::{Lane, Sent, Sink, view};
use crate::bus::{
    Attempt, Bus, Concurrency, Consumer, ConsumerSpec, Delivered, Effects, NewIntent, Outcome, RetryPolicy, Rule,
    Standing, StateWrite,
};
use crate::clock::{Millis, rfc3339};
use crate::config::Applied;
use crate::config::sinks::{Sink as Configured, SinkKind};
use crate::egress::Egress;
use crate::error::Error;
use crate::event::Trust;
use crate::id::{hex, random_bytes, sha256_hex};
use crate::redact;
use crate::store::sinks as rows;
use crate::tasks::Supervisor;

/// How long a trial may take; the lane may be sending before it.
const TEST_MAX: Duration = Duration::from_secs(25);
/// How long the end of what is being sent is waited for before the next lane is prepared; it waits on by itself.
const END_WAIT: Duration = Duration::from_secs(2);

/// Intents that one transaction touches when all are to be tried anew, or given up.
const HURRY_MAX: u32 = 1000;

/// How the names of sinks begin in intents, and those of their consumers.
const PREFIX: &str = "sink/";

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

/// The name of a sink in intents, and of its consumer.
pub(super) fn name(id: &str) -> String {
    format!("{PREFIX}{id}")
}

fn consumer(configured: &Configured, gone: bool) -> (ConsumerSpec, Arc<dyn Consumer>) {
    let rule =
        |pattern: &crate::event::TypePattern| Rule { pattern: pattern.clone(), condition: configured.when.clone() };
    let name = name(&configured.id);
    let spec = ConsumerSpec {
        name: name.clone(),
        kind: "sink",
        rules: configured.types.iter().map(rule).collect(),
        concurrency: Concurrency::Serial,
        retry: RetryPolicy::default(),
        timeout: Duration::from_secs(30),
        trust: Trust::Owner,
        standing: if gone { Standing::Disabled } else { Standing::Active },
        acts_outside: false,
    };
    (spec, Arc::new(Forwarder { sink: name, keep: configured.keep }))
}

/// Every configured sink; cheap to clone.
#[derive(Clone)]
pub struct Sinks {
    inner: Arc<Inner>,
}

struct Inner {
    bus: Bus,
    egress: Egress,
    supervisor: Supervisor,
    entries: ArcSwap<BTreeMap<String, Arc<Entry>>>,
    /// Held by whoever pauses, resumes or changes.
    changing: tokio::sync::Mutex<()>,
}

/// A sink at work.
pub(super) struct Entry {
    /// As the file has it.
    pub configured: Configured,
    sink: Arc<dyn Sink>,
    /// True once the other side said 410.
    gone: Arc<AtomicBool>,
    paused: AtomicBool,
    /// What it sends from; outlives a change of its settings.
    pub lane: Lane,
    /// Ends the present lane.
    stop: Mutex<CancellationToken>,
}

impl Entry {
    /// True when it was switched off.
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    /// True when the other side wants no more calls.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    fn begin(&self, inner: &Inner) {
        let stop = inner.supervisor.stop_token().child_token();
        *self.stop.lock().unwrap_or_else(PoisonError::into_inner) = stop.clone();
        self.lane.start(&inner.bus, &inner.supervisor, &self.sink, stop);
    }

    /// Begins nothing more. What is being sent is finished; the next lane of this sink waits for that.
    async fn end(&self) {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner).cancel();
        let _late = tokio::time::timeout(END_WAIT, self.lane.ended()).await;
    }
}

impl Inner {
    /// A sink that is ready to begin.
    fn entry(self: &Arc<Inner>, configured: &Configured, lane: Lane) -> Result<Entry, Error> {
        let id = configured.id.clone();
        let kept = self.bus.store().read_now(|conn| rows::kept(conn, &id))?;
        let address = match &configured.kind {
            SinkKind::Webhook { url, .. } => Some(sha256_hex(url.to_string().as_bytes())),
            SinkKind::Mqtt { .. } | SinkKind::Ntfy { .. } | SinkKind::Desktop => None,
        };
        let gone = Arc::new(AtomicBool::new(kept.gone.is_some() && kept.gone == address));
        if gone.load(Ordering::Acquire) {
            tracing::warn!(sink = id, "This sink is off: the other side answered 410 Gone. Give it another url.");
        }
        let sink: Arc<dyn Sink> = match &configured.kind {
            SinkKind::Webhook { url, secrets, headers, timeout } => Arc::new(WebhookSink {
                name: name(&id),
                url: url.clone(),
                secrets: secrets.clone(),
                headers: headers.clone(),
                timeout: *timeout,
                egress: self.egress.clone(),
                bus: self.bus.clone(),
                on_gone: self.on_gone(&id, &gone),
                gone: Arc::clone(&gone),
                id,
            }),
            SinkKind::Mqtt { broker, topic } => Arc::new(MqttSink {
                name: name(&id),
                client: format!("aman-{:08x}-out-{id}", self.bus.store().ids().node),
                broker: broker.clone(),
                topic: topic.clone(),
                egress: self.egress.clone(),
            }),
            SinkKind::Ntfy { url, topic, token } => Arc::new(NtfySink {
                name: name(&id),
                url: url.clone(),
                topic: topic.clone(),
                token: token.clone(),
                egress: self.egress.clone(),
                bus: self.bus.clone(),
            }),
            SinkKind::Desktop => Arc::new(DesktopSink { name: name(&id) }),
        };
        let paused = AtomicBool::new(kept.paused);
        Ok(Entry { configured: configured.clone(), sink, gone, paused, lane, stop: Mutex::default() })
    }

    /// Has what waits for another attempt tried now: somebody just changed what it failed for.
    async fn hurry(&self, id: &str) {
        let (sink, now_ms) = (name(id), self.bus.clock().now_ms());
        loop {
            let sink = sink.clone();
            match self.bus.store().write(move |tx| rows::hurry(tx, &sink, now_ms, HURRY_MAX)).await {
                Ok(hurried) if hurried == HURRY_MAX as usize => {}
                Ok(_) => return,
                Err(error) => {
                    let why = error.chain().join(": ");
                    return tracing::warn!(
                        id,
                        why,
                        "What waits for a sink is tried again when it is due, not at once."
                    );
                }
            }
        }
    }

    fn on_gone(self: &Arc<Inner>, id: &str, gone: &Arc<AtomicBool>) -> super::webhook::OnGone {
        let (registry, id, gone): (Weak<Inner>, _, _) = (Arc::downgrade(self), id.to_owned(), Arc::clone(gone));
        Box::new(move || {
            let (registry, id, gone) = (registry.clone(), id.clone(), Arc::clone(&gone));
            Box::pin(async move {
                let Some(inner) = registry.upgrade() else { return };
                let _alone = inner.changing.lock().await;
                // Another address may have taken its place meanwhile.
                let same = |entry: &&Arc<Entry>| Arc::ptr_eq(&entry.gone, &gone);
                let Some(entry) = inner.entries.load().get(&id).filter(same).cloned() else { return };
                if let Err(error) = inner.bus.register(vec![consumer(&entry.configured, true)]).await {
                    tracing::error!(why = error.chain().join(": "), "A sink could not be switched off.");
                }
            })
        })
    }
}

impl Sinks {
    /// Registers the consumers of all configured sinks and starts the sinks.
    pub async fn start(
        defined: &[Configured],
        bus: &Bus,
        egress: &Egress,
        supervisor: &Supervisor,
    ) -> Result<Sinks, Error> {
        let inner = Arc::new(Inner {
            bus: bus.clone(),
            egress: egress.clone(),
            supervisor: supervisor.clone(),
            entries: ArcSwap::default(),
            changing: tokio::sync::Mutex::default(),
        });
        let mut entries = BTreeMap::new();
        for configured in defined {
            entries.insert(configured.id.clone(), Arc::new(inner.entry(configured, Lane::default())?));
        }
        let consumers = entries.values().map(|entry| consumer(&entry.configured, entry.is_gone()));
        bus.register(consumers.collect()).await?;
        entries.values().filter(|entry| !entry.is_paused()).for_each(|entry| entry.begin(&inner));
        inner.entries.store(Arc::new(entries));
        Ok(Sinks { inner })
    }

    /// What putting `defined` in force would change.
    pub fn plan(&self, defined: &[Configured]) -> Applied {
        let entries = self.inner.entries.load();
        let before = entries.values().map(|entry| (entry.configured.id.as_str(), &entry.configured));
        Applied::plan("sinks", before, defined.iter().map(|sink| (sink.id.as_str(), sink)))
    }

    /// Puts what the file says by now in force. What waits to be sent waits on; a sink that cannot be changed goes on as
    /// it was.
    pub async fn apply(&self, defined: &[Configured]) -> Applied {
        let _alone = self.inner.changing.lock().await;
        let mut applied = self.plan(defined);
        let mut entries = BTreeMap::clone(&self.inner.entries.load());
        for id in applied.stopped.clone() {
            if let Some(entry) = entries.remove(&id) {
                self.inner.bus.unregister(&[name(&id)]).await;
                entry.end().await;
            }
        }
        for configured in defined {
            if !applied.touches(&configured.id) {
                continue;
            }
            match self.replace(configured, entries.get(&configured.id)).await {
                Ok(entry) => drop(entries.insert(configured.id.clone(), entry)),
                Err(error) => applied.fail(&configured.id, &error),
            }
            self.inner.entries.store(Arc::new(entries.clone()));
        }
        self.inner.entries.store(Arc::new(entries));
        applied
    }

    async fn replace(&self, configured: &Configured, before: Option<&Arc<Entry>>) -> Result<Arc<Entry>, Error> {
        let lane = before.map(|entry| entry.lane.clone()).unwrap_or_default();
        let entry = Arc::new(self.inner.entry(configured, lane)?);
        self.inner.bus.register(vec![consumer(configured, entry.is_gone())]).await?;
        if let Some(before) = before {
            before.end().await;
        }
        self.inner.hurry(&configured.id).await;
        if !entry.is_paused() {
            entry.begin(&self.inner);
        }
        Ok(entry)
    }

    fn entry(&self, id: &str) -> Result<Arc<Entry>, Error> {
        self.inner.entries.load().get(id).cloned().ok_or_else(|| Error::not_found("sink", id))
    }

    /// Every sink as JSON, by id; also those that are in the configuration no more, while something waits for them.
    pub async fn list(&self) -> Result<Vec<Value>, Error> {
        let entries = self.inner.entries.load_full();
        let mut ids: BTreeSet<String> = entries.keys().cloned().collect();
        let with_work = self.inner.bus.store().read(rows::with_work).await?;
        ids.extend(with_work.iter().filter_map(|name| name.strip_prefix(PREFIX)).map(str::to_owned));
        let mut shown = Vec::with_capacity(ids.len());
        for id in ids {
            shown.push(self.show(&id).await?);
        }
        Ok(shown)
    }

    /// One sink as JSON, also one that is in the configuration no more.
    pub async fn show(&self, id: &str) -> Result<Value, Error> {
        let entry = self.entry(id).ok();
        let undelivered = if entry.is_none() { self.known(id).await? } else { 0 };
        let name = name(id);
        let queue = self.inner.bus.store().read(move |conn| rows::queue(conn, &name)).await?;
        Ok(match entry {
            Some(entry) => view::sink(&entry, &queue),
            None => view::removed(id, &queue, undelivered),
        })
    }

    /// How many events have not become intents for this sink yet. `NotFound` when there never was one of this id.
    async fn known(&self, id: &str) -> Result<i64, Error> {
        let name = name(id);
        let known = self.inner.bus.store().read(move |conn| rows::undelivered(conn, &name)).await?;
        known.ok_or_else(|| Error::not_found("sink", id))
    }

    /// Gives up what waits to be sent by a sink, also by one that is in the configuration no more; then also the events
    /// that have not reached it, for good. What waited to be sent is shown among the failures and can be sent again.
    /// `begun` commits before anything is given up; `record` is given the answer.
    pub async fn discard(
        &self,
        id: &str,
        begun: StateWrite,
        record: impl FnOnce(&mut crate::store::Tx<'_>, &Value) -> Result<(), Error> + Send + 'static,
    ) -> Result<Value, Error> {
        // Whoever takes the sink up again waits until this is over.
        let _alone = self.inner.changing.lock().await;
        self.known(id).await?;
        let (bus, gone, now_ms) = (&self.inner.bus, self.entry(id).is_err(), self.inner.bus.clock().now_ms());
        bus.store().write(begun).await?;
        let events = if gone { bus.give_up(&name(id), Millis::MAX).await? } else { 0 };
        let mut intents = 0;
        loop {
            let sink = name(id);
            let write = move |tx: &mut crate::store::Tx<'_>| rows::discard(tx, &sink, gone, now_ms, HURRY_MAX);
            let step = bus.store().write(write).await?;
            intents += step;
            if step < HURRY_MAX as usize {
                break;
            }
        }
        let answer = json!({ "id": id, "discarded": intents, "undelivered": events });
        let told = answer.clone();
        bus.store().write(move |tx| record(tx, &told)).await?;
        Ok(answer)
    }

    /// What failed at a sink for good, newest first: rows as they are shown, each with its number.
    pub async fn failed(&self, id: &str, before: Option<i64>, limit: usize) -> Result<Vec<(i64, Value)>, Error> {
        self.known(id).await?;
        let name = name(id);
        let failed = self.inner.bus.store().read(move |conn| rows::failed(conn, &name, before, limit)).await?;
        Ok(failed.iter().map(|one| (one.id, view::failed(one))).collect())
    }

    /// Sends again what failed, under the same key; `record` commits with that. It may be sent for as long as new events.
    pub async fn retry(&self, id: &str, key: &str, record: StateWrite) -> Result<Value, Error> {
        let (entry, bus) = (self.entry(id)?, &self.inner.bus);
        if entry.is_gone() {
            let reason = format!("The other side of '{id}' answered 410 Gone. Resume the sink first.");
            return Err(Error::conflict("invalid_state", reason));
        }
        let keep_ms = i64::try_from(entry.configured.keep.as_millis()).unwrap_or(i64::MAX / 2);
        let (name, intent, now_ms) = (name(id), key.to_owned(), bus.clock().now_ms());
        let write = move |tx: &mut crate::store::Tx<'_>| {
            rows::retry(tx, &name, &intent, now_ms, now_ms.saturating_add(keep_ms))?;
            record(tx)
        };
        bus.store().write(write).await?;
        Ok(json!({ "id": key, "sink": id, "status": "retrying" }))
    }

    /// Switches a sink off or on again, durably; `record` commits with that. What is for it waits meanwhile. Switched on,
    /// it is called again also if the other side answered 410. Fails with `invalid_state` when it is so already.
    pub async fn set_paused(&self, id: &str, paused: bool, record: StateWrite) -> Result<Value, Error> {
        let _alone = self.inner.changing.lock().await;
        let (entry, inner) = (self.entry(id)?, &self.inner);
        let gone = entry.is_gone() && !paused;
        if entry.is_paused() == paused && !gone {
            let reason = format!("The sink '{id}' is {} already.", if paused { "paused" } else { "running" });
            return Err(Error::conflict("invalid_state", reason));
        }
        let (key, now_ms) = (id.to_owned(), inner.bus.clock().now_ms());
        let write = move |tx: &mut crate::store::Tx<'_>| {
            rows::set_paused(tx, &key, paused, now_ms)?;
            record(tx)
        };
        inner.bus.store().write(write).await?;
        if gone {
            entry.gone.store(false, Ordering::Release);
            inner.bus.register(vec![consumer(&entry.configured, false)]).await?;
        }
        let was_paused = entry.paused.swap(paused, Ordering::AcqRel);
        if paused {
            entry.end().await;
        } else {
            inner.hurry(id).await;
        }
        if !paused && was_paused {
            entry.begin(inner);
        }
        self.show(id).await
    }

    /// Sends one event that is made for it and nowhere stored, and tells how that ended; `record` is given the answer.
    /// With `dry_run` it is only shown.
    pub async fn test(
        &self,
        id: &str,
        data: Option<Value>,
        dry_run: bool,
        record: impl FnOnce(&mut crate::store::Tx<'_>, &Value) -> Result<(), Error> + Send + 'static,
    ) -> Result<Value, Error> {
        let entry = self.entry(id)?;
        let key = format!("test-{}", hex(&random_bytes::<12>()));
        let mut payload = json!({
            "specversion": "1.0",
            "id": key,
            "source": "aman/sinks",
            "type": "aman.sink.test",
            "time": rfc3339(self.inner.bus.clock().now_ms()),
            "datacontenttype": "application/json",
            "data": data.unwrap_or_else(|| json!({ "message": "This is a test of a sink of aman." })),
        });
        redact::value(&mut payload);
        let mut answer = json!({ "id": id, "to": view::place(&entry.configured), "event": payload });
        if dry_run {
            answer["dry_run"] = true.into();
            return Ok(answer);
        }
        let sent = tokio::time::timeout(TEST_MAX, entry.lane.send(entry.sink.as_ref(), &key, &payload)).await;
        let (outcome, why) = match sent {
            Ok(Sent::Yes) => ("sent", None),
            Ok(Sent::Later(why, _)) => ("not_sent", Some(why)),
            Ok(Sent::Refused(why)) => ("refused", Some(why)),
            Ok(Sent::Unknown(why)) => ("unknown", Some(why)),
            Err(_) => ("unknown", Some(format!("There was no answer for {} s.", TEST_MAX.as_secs()))),
        };
        answer["outcome"] = outcome.into();
        answer["detail"] = why.map(|why| redact::text(&why).into_owned()).into();
        let told = answer.clone();
        self.inner.bus.store().write(move |tx| record(tx, &told)).await?;
        Ok(answer)
    }
}
